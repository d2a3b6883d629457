"""Grids of images: an image with a label on each patch, and convolution kernels.  H, W: height and width in pixels."""

import numpy as np

from views.text import visible


def image_grid(image, labels, columns, size, title):
    """A figure of an image (H, W, 3) made of patches of size x size pixels, with labels in reading order, `columns` to a row.
    The contrast is stretched to the central 98 % of the values; nan is drawn white."""
    import matplotlib.pyplot as plt
    from matplotlib.patheffects import withStroke
    low, high = np.nanquantile(image, (0.01, 0.99))
    image = np.clip((image - low) / (high - low + 1e-9), 0, 1)
    rows = image.shape[0] // size
    fig, ax = plt.subplots(figsize=(7, 0.9 + 6.6 * rows / columns), layout='constrained')
    ax.imshow(np.where(np.isnan(image), 1, image), interpolation='nearest')
    ax.set(xticks=[], yticks=[])
    for edge in range(columns + 1):
        ax.axvline(edge * size - 0.5, color='white', lw=1)
    for edge in range(rows + 1):
        ax.axhline(edge * size - 0.5, color='white', lw=1)
    for i, label in enumerate(labels):
        row, column = divmod(i, columns)
        ax.text((column + 0.5) * size - 0.5, (row + 0.5) * size - 0.5, visible(label), ha='center', va='center', color='white',
                fontsize=9, family='DejaVu Sans Mono', parse_math=False,
                path_effects=[withStroke(linewidth=2, foreground='black')])
    fig.suptitle(title, fontsize=10)
    return fig


def kernel_grid(kernels, title):
    """A figure of the first 48 of kernels (C, H, W), with one colour scale.  nan, where there is no weight, is left blank."""
    import matplotlib.pyplot as plt
    kernels = kernels[:48]
    top, rows = np.nanmax(np.abs(kernels)), -(-len(kernels) // 12)
    size = (11, 0.9 + rows * (0.2 + 0.75 * kernels.shape[1] / kernels.shape[2]))
    fig, axes = plt.subplots(rows, 12, figsize=size, layout='constrained', squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if i < len(kernels):
            drawn = ax.imshow(kernels[i], cmap='RdBu_r', vmin=-top, vmax=top)
    fig.colorbar(drawn, ax=axes, fraction=0.02, label='weight')
    fig.suptitle(title, fontsize=10)
    return fig
