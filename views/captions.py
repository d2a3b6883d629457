"""
Pictures of a model that compares images with captions: how similar each image of the validation split is to each caption, and
the pairs that it gets right and wrong.

N pairs   E dimensions of the space
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch

SHOWN = 12          # pairs in similarity.png
EXAMPLES = 1000     # pairs among which the best and the worst are chosen, at most
EXTREMES = 6        # of each, in pairs.png


def views(model, dataset):
    """{name: function that yields (name, figure)}.  dataset: its ContrastiveData."""
    indices, images, texts = distinct(model, dataset)

    def similarity():
        shown = indices[:SHOWN]
        yield 'similarity', draw_similarity(cosines(images[:SHOWN], texts[:SHOWN]), dataset.splits['val'][0][shown],
                                            captions(dataset, shown))

    def pairs():
        logits = images @ texts.T
        own = logits.diagonal()
        lead = own - logits.masked_fill(torch.eye(len(logits), dtype=torch.bool), -torch.inf).amax(1)
        order = lead.argsort(descending=True)
        yield 'pairs', draw_pairs(dataset, indices, order, logits, lead)
    return {'similarity': similarity, 'pairs': pairs}


def captions(dataset, indices):
    return [dataset.text(row) for row in dataset.splits['val'][1][indices]]


@torch.no_grad()
def distinct(model, dataset, batch_size=100):
    """Validation examples with different captions: (indices, vectors of the images times the scale (N, E), vectors of the
    captions (N, E))."""
    rows = dataset.splits['val'][1]
    _, first = np.unique(rows[:20 * EXAMPLES], axis=0, return_index=True)
    indices = np.random.default_rng(0).permutation(np.sort(first))[:EXAMPLES]
    where, output = next(model.parameters()).device, []
    for i in range(0, len(indices), batch_size):
        x, y = dataset.examples('val', indices[i:i + batch_size])
        output.append(model(x.to(where), y.to(where))[0].float().cpu())
    return indices, *torch.cat(output).unbind(1)


def cosines(images, texts):
    return torch.nn.functional.normalize(images, dim=1) @ texts.T


def draw_similarity(matrix, images, texts):
    """The cosines (N, N) of images, a row each, with captions, a column each."""
    n = len(matrix)
    fig, ax = plt.subplots(figsize=(0.62 * n + 3.5, 0.55 * n + 3.5), layout='constrained')
    drawn = ax.imshow(matrix, cmap='RdBu_r', vmin=-1, vmax=1)
    for i in range(n):
        for j in range(n):
            ax.text(j, i, f'{matrix[i, j]:.2f}', ha='center', va='center', fontsize=7, fontweight='bold' if i == j else None,
                    color='white' if abs(matrix[i, j]) > 0.6 else 'black')
    for i, image in enumerate(images):
        thumb = ax.inset_axes((-1.45, i - 0.42, 0.84, 0.84), transform=ax.transData)
        thumb.imshow(image.repeat(3 // image.shape[2], 2))
        thumb.set_axis_off()
    ax.set_yticks([])
    ax.set_xticks(range(n), [textwrap.fill(text, 40) for text in texts], rotation=60, ha='right', fontsize=8, parse_math=False)
    fig.colorbar(drawn, ax=ax, fraction=0.04, label='cosine')
    fig.suptitle('similarity of each image (row) to each caption (column); the pairs are on the diagonal', fontsize=10)
    return fig


def draw_pairs(dataset, indices, order, logits, lead):
    """The pairs whose own caption leads by most, and those whose own caption trails another by most."""
    fig, axes = plt.subplots(2, EXTREMES, figsize=(2.2 * EXTREMES, 6.6), layout='constrained', squeeze=False)
    texts = captions(dataset, indices)
    for row, chosen in zip(axes, (order[:EXTREMES], order.flip(0)[:EXTREMES]), strict=True):
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, k in zip(row, chosen.tolist(), strict=False):
            image = dataset.splits['val'][0][indices[k]]
            ax.imshow(image.repeat(3 // image.shape[2], 2))
            other = logits[k].clone()
            other[k] = -torch.inf
            ax.set_title(f'{lead[k]:+.1f}', fontsize=9, color='#2f8458' if lead[k] > 0 else '#b8434f')
            lines = f'own: {texts[k]}', f'other: {texts[int(other.argmax())]}'
            ax.set_xlabel('\n'.join(textwrap.fill(line, 28) for line in lines), fontsize=7, parse_math=False)
    fig.suptitle(f'the best (above) and the worst (below) of {len(indices):,} pairs, by the logit of the own caption minus the '
                 f'highest of another', fontsize=10)
    return fig
