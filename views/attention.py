"""
Attention maps.

B batch   T tokens   H heads   D channels of a head
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import PowerNorm
from torch.overrides import TorchFunctionMode

from views.text import visible

READABLE = 24       # tokens whose text fits along an axis
TINY = 4            # tokens: maps of at most so many have their weights written in the cells


class Recorder(TorchFunctionMode):
    """Within it, each call of scaled_dot_product_attention, by any architecture, adds its weights for the first example to
    maps: arrays (H, T, S), a row for each query."""

    def __init__(self):
        super().__init__()
        self.maps = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            self.maps.append(weights(*args, **(kwargs or {}))[0].float().cpu().numpy())
        return function(*args, **(kwargs or {}))


def weights(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """softmax(q k^T / sqrt(D)), (B, H, T, S), of the arguments of scaled_dot_product_attention."""
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)


@torch.no_grad()
def attention_maps(model, x):
    """The attention weights of every layer for the first example of x: arrays (H, T, T), a row for each query; [] without
    attention.  T: that of x, or more or fewer if the model adds tokens or has a memory."""
    with Recorder() as recorder:
        model(x)
    return [m for m in recorder.maps if m.shape[1] == m.shape[2]]


def attention(model, x, labels=None):
    """The map of each head, a row of panels for each layer.  labels: the text of the tokens x (1, T), if they have one.
    Only the last READABLE tokens are read, unless the model needs a whole window."""
    if labels and model.predicts == 'every' and not model.memory:
        x, labels = x[:, -READABLE:], labels[-READABLE:]
    maps = attention_maps(model, x)
    T, heads = max(m.shape[-1] for m in maps), max(map(len, maps))
    side = 1.1 if T <= TINY else 2.3 if not labels else 2.9
    fig, axes = plt.subplots(len(maps), heads, figsize=(max(side * heads, 4) + 1, side * len(maps) + 0.8), layout='constrained',
                             squeeze=False, sharey=True)
    for i, row in enumerate(axes):
        for h, ax in enumerate(row):
            if h >= len(maps[i]):
                ax.set_axis_off()
                continue
            image = ax.imshow(maps[i][h], cmap='magma_r', norm=PowerNorm(0.5, 0, 1), interpolation='nearest')
            ax.set_title(f'layer {i + 1}, head {h + 1}', fontsize=8)
            ax.tick_params(length=2)
            label_axes(ax, maps[i].shape[-1], labels)
            if T <= TINY:
                for (q, k), weight in [((q, k), maps[i][h][q, k]) for q in range(T) for k in range(T)]:
                    ax.text(k, q, f'{weight:.2f}', ha='center', va='center', fontsize=8,
                            color='white' if weight > 0.4 else 'black')
    fig.colorbar(image, ax=axes, label='attention weight', ticks=[0, 0.01, 0.1, 0.25, 0.5, 1], fraction=0.03, pad=0.02)
    fig.suptitle('attention of the token of each row to the token of each column', fontsize=10)
    yield 'attention', fig


def label_axes(ax, T, labels):
    """Ticks with the texts of the tokens, or without labels with their numbers from 1."""
    offset = T - len(labels or [])       # a memory in front of the labelled tokens, or tokens without a text
    step = -(-T // READABLE) if labels else max(1, T // 4)
    ticks = range(0, T, step)
    texts = [visible(labels[i - offset]) if labels and i >= offset else '' if labels else str(i + 1) for i in ticks]
    style = {'family': 'DejaVu Sans Mono', 'fontsize': 7, 'parse_math': False}
    ax.set_xticks(ticks, texts, rotation=90 if labels and max(map(len, texts)) > 1 else 0, **style)
    ax.set_yticks(ticks, texts, **style)
