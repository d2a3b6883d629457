"""Pictures of models that draw images: images and what is rebuilt of them, images of captions, and the codes of a codebook."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch

from harness.drawings import draw, to_images

SHOWN, CAPTIONS, EACH = 12, 4, 8        # images that are rebuilt; captions that are drawn, and images of each
WHITE = 255


def views(model, dataset, y=None):
    """{name: function that yields (name, figure)}.  y: the caption to draw, (1, T); None: those of the validation split."""
    if model.modality == 'patches':
        return {'rebuilt': lambda: rebuilt(model, dataset), 'codes': lambda: codes(model, dataset)}
    return {'samples': lambda: samples(model, dataset, y)}


@torch.no_grad()
def rebuilt(model, dataset):
    """Images of the validation split above what the model makes of their tokens."""
    x, _ = dataset.examples('val', dataset.val_indices(SHOWN, model.config.block_size))
    where, training = next(model.parameters()).device, model.training
    made = model.eval()(x.to(where))[0]
    model.train(training)
    rows = [to_images(patches, dataset.meta, dataset.patch) for patches in (x, made)]
    yield 'rebuilt', strips(rows, ['images of the validation split', f'rebuilt from {model.config.block_size} tokens each'])


@torch.no_grad()
def codes(model, dataset):
    """How often each code occurs in the images of the validation split, and which patches it is: the means over these."""
    x, _ = dataset.examples('val', dataset.val_indices(1000, model.config.block_size))
    tokens = model.tokens(x.to(next(model.parameters()).device)).cpu().flatten()
    counts = tokens.bincount(minlength=model.config.codes)
    order = counts.argsort(descending=True)
    fig, ax = plt.subplots(figsize=(8, 3), layout='constrained')
    ax.bar(range(len(order)), counts[order] / counts.sum(), width=1)
    ax.set(yscale='log', xlabel='code, by frequency', ylabel='share of the tokens')
    fig.suptitle(f'{int((counts > 0).sum())} of {len(counts)} codes occur in {len(x):,} images')
    yield 'codes', fig


def samples(model, dataset, y=None):
    """Images that the model draws of a caption, or of the captions of four images of the validation split."""
    if y is None:
        y = dataset.examples('val', dataset.val_indices(CAPTIONS, model.config.block_size))[1]
    training = model.training
    images = draw(model.eval(), y.repeat_interleave(EACH, 0), dataset.meta, dataset.patch)
    model.train(training)
    yield 'samples', strips(images.reshape(-1, EACH, *images.shape[1:]), [dataset.text(row) for row in y])


def strips(rows, texts):
    """A figure of rows of images (N, H, W, C) uint8, with a text above each row."""
    N, H, W, _ = np.shape(rows[0])
    width = max(4, min(10, 0.7 * N))
    fig, axes = plt.subplots(len(rows), 1, figsize=(width, len(rows) * (width * (H + 1) / (N * (W + 1)) + 0.3)), squeeze=False,
                             layout='constrained')
    for ax, row, text in zip(axes[:, 0], rows, texts, strict=True):
        gap = np.full((H, 1, row[0].shape[-1]), WHITE, np.uint8)
        line = np.concatenate([part for image in row for part in (image, gap)][:-1], axis=1)
        ax.imshow(line if line.shape[-1] == 3 else line[..., 0], cmap='gray', vmin=0, vmax=255, interpolation='nearest')
        ax.set_title(textwrap.shorten(text, 110), fontsize=9, parse_math=False, loc='left')
        ax.set_axis_off()
    return fig
