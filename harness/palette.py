"""
Pictures as tokens: each pixel is the nearest colour of a palette, in reading order.  No torch is needed here.

N pictures   H, W height and width in pixels   C channels, 1 or 3   K colours   T = H * W pixels
"""

import math
from pathlib import Path

import numpy as np

from harness import UserError
from harness.files import atomic, pillow, read_image

CHUNK = 1 << 14             # pixels that are compared with all colours at once
SHADES = '  ', '░░', '▒▒', '▓▓', '██'
UNKNOWN = 90, 110, 140      # the colour of a pixel without a token
SIDE, GAP = 112, 6          # of a picture in a grid, at least, and between two, in pixels


def check(spec):
    """Raises ValueError for a palette that is not one."""
    colours = [tuple(c) if isinstance(c, list | tuple) else c for c in spec['colours']]
    if not all(isinstance(c, tuple) and len(c) == 3 and all(type(v) is int and 0 <= v < 256 for v in c) for c in colours) or \
            len(set(colours)) < max(2, len(colours)):
        raise ValueError('its colours are not two or more different ones of three numbers from 0 to 255')
    if spec['width'] < 1 or spec['height'] < 1:
        raise ValueError(f'its pictures of {spec["width"]} x {spec["height"]} have no pixels')


def nearest(pixels, colours):
    """The index of the nearest of colours (K, 3) for each of pixels (n, 3), all uint8; of equally near ones the first: (n,)."""
    c = np.asarray(colours, np.float32)
    found = np.empty(len(pixels), np.int64)
    for i in range(0, len(pixels), CHUNK):          # |p - c|^2 = |p|^2 - 2 p c + |c|^2, whole numbers that float32 holds
        found[i:i + CHUNK] = ((c * c).sum(1) - 2 * pixels[i:i + CHUNK].astype(np.float32) @ c.T).argmin(1)
    return found


def averages(size, new):
    """The matrix (new, size) that averages over areas: each of `new` equal parts of a line of `size` pixels."""
    edges = np.linspace(0, size, new + 1)
    start, end = edges[:-1, None], edges[1:, None]
    overlap = np.minimum(end, np.arange(1, size + 1)) - np.maximum(start, np.arange(size))
    return overlap.clip(0) / (end - start)


def resize(images, width, height):
    """Images (N, H, W, C) uint8 of another size, (N, height, width, C), by area averaging."""
    if images.shape[1:3] == (height, width):
        return images
    down, across = averages(images.shape[1], height), averages(images.shape[2], width)
    parts = [np.einsum('hH,NHWC,wW->NhwC', down, images[i:i + 256], across, optimize=True).round().astype(np.uint8)
             for i in range(0, len(images), 256)]
    return np.concatenate(parts)


def tokens(images, spec):
    """The tokens (N, T) of images (N, height, width, C) uint8.  A palette of greys reads the luminance (ITU-R BT.601)."""
    colours = np.array(spec['colours'], np.uint8)
    pixels = images.reshape(-1, images.shape[-1])
    if pixels.shape[1] == 3 and (colours == colours[:, :1]).all():
        pixels = (pixels @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)[:, None]
    return nearest(np.broadcast_to(pixels, (len(pixels), 3)), colours).reshape(len(images), -1)


def read(path, spec):
    """The tokens of a picture, or of the upper part of one: a file of any size, scaled to the width of the palette's pictures.
    Raises UserError."""
    image, width, height = read_image(Path(path)), spec['width'], spec['height']
    rows = round(image.shape[0] * width / image.shape[1])
    if not 0 < rows < height:
        raise UserError(f'{path} has {image.shape[1]} x {image.shape[0]} pixels, which are {rows} of the {height} rows of a '
                        f'picture of {width} x {height}: cut out its upper part, so that 1 to {height - 1} rows are given')
    return tokens(resize(image[None], width, rows), spec)[0].tolist()


def picture(ids, spec):
    """The picture (height, width, 3) uint8 of at most T tokens; ids that are no colours, such as the start, are left out."""
    pixels = np.full((spec['height'] * spec['width'], 3), UNKNOWN, np.uint8)
    ids = [i for i in ids if 0 <= i < len(spec['colours'])][:len(pixels)]
    pixels[:len(ids)] = np.array(spec['colours'], np.uint8)[ids]
    return pixels.reshape(spec['height'], spec['width'], 3)


def grid(rows):
    """Rows of pictures (H, W, 3) as one image, enlarged, on white; a row may be shorter than the others."""
    H, W, _ = rows[0][0].shape
    scale = max(1, SIDE // W)
    h, w = H * scale + GAP, W * scale + GAP
    image = np.full((len(rows) * h + GAP, max(map(len, rows)) * w + GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, one in enumerate(row):
            image[GAP + i * h:(i + 1) * h, GAP + j * w:(j + 1) * w] = one.repeat(scale, 0).repeat(scale, 1)
    return image


def write(starts, texts, spec, path):
    """Draws the pictures that continue starts, lists of ids, as a PNG: of each start a row that begins with what was given, or
    a square of pictures that begin with nothing.  Prints the path."""
    given, rows = {}, {}
    for start, ids in zip(starts, texts, strict=True):
        given.setdefault(tuple(start), picture(start, spec))
        rows.setdefault(tuple(start), []).append(picture([*start, *ids], spec))
    count = sum(map(len, rows.values()))
    if all(len(start) == 1 for start in rows):
        made = [one for row in rows.values() for one in row]
        side = math.ceil(math.sqrt(count))
        rows = [made[i:i + side] for i in range(0, count, side)]
    else:
        rows = [[given[start], *row] for start, row in rows.items()]
    try:
        with atomic(path) as f:
            pillow().fromarray(grid(rows)).save(f, 'PNG')
    except OSError as e:
        raise UserError(f'{path} cannot be written ({e.strerror}): choose another file by --out') from None
    print(f'{count} picture{"s" * (count > 1)} of {spec["width"]} x {spec["height"]} pixels: {path}')


def shades(ids, spec):
    """Yields each token of a picture as two characters of its brightness, with a line break after each row."""
    light = (np.array(spec['colours']) @ [0.299, 0.587, 0.114] * len(SHADES) / 256).astype(int)
    at = 0
    for i in ids:
        if 0 <= i < len(light):
            at += 1
            yield SHADES[light[i]] + '\n' * (at % spec['width'] == 0)
