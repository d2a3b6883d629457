"""
Attention maps.

B batch   T tokens   H heads   D channels of a head
"""

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import PowerNorm

import model as gpt
from views.text import visible

READABLE = 24       # tokens whose text fits along an axis
TINY = 4            # tokens: maps of at most so many have their weights written in the cells


@torch.no_grad()
def attention_maps(model, x):
    """softmax(q k^T / sqrt(D)) of every SelfAttention for the first example of x: arrays (H, T, T), a row for each query."""
    layers, maps = [m for m in model.modules() if isinstance(m, gpt.SelfAttention)], []

    def record(module, args, output):
        B, T, _ = args[0].shape
        q, k, _ = module.c_attn(args[0]).view(B, T, 3, module.n_head, -1).permute(2, 0, 3, 1, 4)     # each (B, H, T, D)
        scores = q @ k.mT / math.sqrt(q.shape[-1])                                                  # (B, H, T, T)
        future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1) & module.causal
        maps.append(scores.masked_fill(future, -torch.inf).softmax(-1)[0].float().cpu().numpy())
    hooks = [layer.register_forward_hook(record) for layer in layers]
    model(x)
    for hook in hooks:
        hook.remove()
    return maps


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
