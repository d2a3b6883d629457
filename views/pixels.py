"""
Pictures of a model of pixels, on validation pictures: how it completes them, and the loss of each pixel.

N pictures   T pixels   H, W height and width
"""

import math
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from harness import palette
from harness.generate import continuations
from views.attention import attention, attention_maps
from views.behaviour import draw_influence, excerpt, influence, progress

SHOWN, SAMPLES = 6, 5       # pictures in a figure; completions of each
MANY = 256                  # pictures whose losses are averaged


@torch.no_grad()
def losses(model, data, starts):
    """The loss of each pixel of pictures in nats (N, T).  A model that sees both sides is given all other pixels."""
    device, rows = next(model.parameters()).device, []
    for start in progress(starts, 'pictures'):
        x, y = (t.to(device) for t in data.windows('val', [start], data.size))
        logits = model.infill(x) if model.bidirectional else model(x)[0]
        rows.append(F.cross_entropy(logits[0].float(), y[0], reduction='none').cpu())
    return torch.stack(rows).numpy()


def views(model, data):
    """{name: function that yields (name, figure)} for a run on pixels.  data: its PixelText."""
    spec, device = data.tokenizer.spec, next(model.parameters()).device

    def starts(count):
        return data.val_indices(count, data.size)

    def completions():
        yield 'completions', draw_completions(model, data, starts(SHOWN), spec)

    def surprise():
        chosen = starts(SHOWN)
        pictures = [palette.picture(data.windows('val', [s], data.size)[1][0].tolist(), spec) for s in chosen]
        yield 'surprise', draw_surprise(pictures, losses(model, data, chosen) / math.log(2))

    def pixels():
        bits = losses(model, data, starts(SHOWN if model.bidirectional else MANY)) / math.log(2)
        yield 'pixels', draw_pixels(bits.mean(0).reshape(spec['height'], spec['width']), len(bits))

    def moved():
        x = data.windows('val', starts(9), data.size)[0].to(device)
        x, first = excerpt(model, x, pictures=True)
        yield 'influence', draw_influence(influence(model, x, first=first), bidirectional=model.bidirectional)
    found = {'completions': completions, 'surprise': surprise, 'pixels': pixels, 'influence': moved}
    if model.bidirectional:
        del found['completions']
    one = data.windows('val', starts(1), data.size)[0].to(device)
    if attention_maps(model, one):
        found['attention'] = partial(attention, model, one)
    return found


def draw_completions(model, data, starts, spec):
    """A row for each picture: its upper half, SAMPLES completions of it, and the picture."""
    half = data.size // 2 // spec['width'] * spec['width']
    x, y = data.windows('val', starts, data.size)
    given = [row[:half + 1].tolist() for row in x for _ in range(SAMPLES)]
    made = list(continuations(model, given, data.size - half, 1.0, 0, 1.0, data.tokenizer.n_vocab, seed=0))
    pictures = [palette.picture([*start, *ids], spec) for start, ids in zip(given, made, strict=True)]
    fig, axes = plt.subplots(len(starts), SAMPLES + 2, figsize=(1.1 * (SAMPLES + 2), 1.1 * len(starts) + 0.5),
                             layout='constrained', squeeze=False)
    for i, row in enumerate(axes):
        whole = y[i].tolist()
        shown = [palette.picture(whole[:half], spec), *pictures[i * SAMPLES:(i + 1) * SAMPLES], palette.picture(whole, spec)]
        for ax, one in zip(row, shown, strict=True):
            ax.imshow(one, interpolation='nearest')
            ax.set_axis_off()
    for ax, title in zip(axes[0], ['given', *[f'sample {i + 1}' for i in range(SAMPLES)], 'original'], strict=True):
        ax.set_title(title, fontsize=9)
    fig.suptitle('validation pictures, completed at temperature 1', fontsize=10)
    return fig


def draw_surprise(pictures, bits):
    """Each picture above the surprise of its pixels; bits: (N, T)."""
    H, W, _ = pictures[0].shape
    fig, axes = plt.subplots(2, len(pictures), figsize=(1.7 * len(pictures) + 1, 3.8), layout='constrained', squeeze=False)
    for picture, values, above, below in zip(pictures, bits, *axes, strict=True):
        above.imshow(picture, interpolation='nearest')
        image = below.imshow(values.reshape(H, W), cmap='YlOrRd', vmin=0, vmax=np.quantile(bits, 0.99), interpolation='nearest')
        below.set_title(f'{values.mean():.2f} bits per pixel', fontsize=8)
        above.set_axis_off()
        below.set(xticks=[], yticks=[])
    fig.colorbar(image, ax=axes, label='surprise of each pixel in bits', fraction=0.02, extend='max')
    fig.suptitle('validation pictures', fontsize=10)
    return fig


def draw_pixels(bits, count):
    """The mean loss at each place of a picture; bits: (H, W)."""
    fig, ax = plt.subplots(figsize=(5, 4.2), layout='constrained')
    fig.colorbar(ax.imshow(bits, cmap='YlOrRd', vmin=0, interpolation='nearest'), ax=ax, label='bits')
    ax.set(xticks=[], yticks=[])
    ax.set_title(f'loss of each pixel, mean of {count} validation pictures:\n{bits.mean():.3f} bits per dimension', fontsize=9)
    return fig
