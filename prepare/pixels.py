"""
A data set of images as texts of pixels, for every language model: data/<name>.

    python prepare/pixels.py NAME IMAGES [--size=16] [--colours=512 | --grey=8]

IMAGES is a data set of images, such as mnist_images or cifar10_images, or one of your own pictures by prepare/pictures.py. Each
pixel becomes the nearest colour of a palette: --colours by k-means over training pixels (Image-GPT has 512), or --grey evenly
spaced greys. --size is the width to which pictures are scaled, by area averaging. Splits and classes are those of
IMAGES. Pictures for validation or testing whose tokens are those of a training picture are left out.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import SPLITS, UserError, command
from harness.files import atomic
from harness.palette import nearest, resize, tokens
from prepare.common import Parser, check_new, data_folder, natural, positive, text_meta

SAMPLE = 1 << 17        # pixels of the training split from which a palette is made
ROUNDS = 30             # of k-means


def kmeans(pixels, count, seed=0, rounds=ROUNDS):
    """The `count` colours (K, 3) uint8 that Lloyd's algorithm finds for pixels (n, 3) uint8, from the dark to the light ones.
    It starts from pixels drawn in proportion to their squared distance to those drawn before (k-means++, Arthur and
    Vassilvitskii 2007).  Raises UserError if the pixels have fewer colours."""
    found, times = np.unique(pixels, axis=0, return_counts=True)
    if len(found) < count:
        raise UserError(f'--colours={count}: the training images have {len(found)} different colours: choose at most as many')
    rng, points = np.random.default_rng(seed), found.astype(np.float64)
    centres = points[[rng.choice(len(points), p=times / times.sum())]]
    distance = np.full(len(points), np.inf)
    while len(centres) < count:
        distance = np.minimum(distance, np.square(points - centres[-1]).sum(1))
        centres = np.vstack([centres, points[rng.choice(len(points), p=times * distance / (times * distance).sum())]])
    for _ in range(rounds):
        own = nearest(found, centres)
        weights = np.bincount(own, times, count)
        moved = np.stack([np.bincount(own, times * points[:, c], count) for c in range(3)], 1) / np.maximum(weights, 1)[:, None]
        moved[weights == 0] = centres[weights == 0]
        if np.array_equal(moved, centres):
            break
        centres = moved
    colours = np.unique(centres.round().astype(np.uint8), axis=0)
    numbers = (c.astype(np.int64) @ [1 << 16, 1 << 8, 1] for c in (found, colours))
    spare = found[~np.isin(*numbers)]                                   # two centres may be rounded to one colour
    colours = np.vstack([colours, spare[:count - len(colours)]])
    return colours[np.argsort(colours @ [0.299, 0.587, 0.114], kind='stable')]


def write(name, splits, spec, labels, source, script):
    """Write data/<name>.  splits: {split: (tokens (N, T), classes (N,) or None)}."""
    folder, start, hashes, counts = data_folder(name), len(spec['colours']), [], {}
    dtype = np.dtype('uint16' if start < 1 << 16 else 'uint32')
    known = {row.tobytes() for row in splits['train'][0]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'meta.json').unlink(missing_ok=True)      # it must never describe other tokens
        for split, (rows, y) in splits.items():
            new = np.array([split == 'train' or row.tobytes() not in known for row in rows], bool)
            if not new.any():
                raise UserError(f'{source["name"]}: the {split} split has no picture that is not in the training split: more '
                                f'are needed')
            if not new.all():
                print(f'{len(new) - new.sum():,} pictures of the {split} split have the tokens of a training picture: they are '
                      f'left out')
            rows = np.insert(rows[new], 0, start, axis=1).astype(dtype)
            counts[split] = rows.size
            hashes.append(hashlib.sha256(rows.tobytes()).hexdigest())
            with atomic(folder / f'{split}.bin') as f:
                f.write(rows.tobytes())
            if labels:
                hashes.append(hashlib.sha256(y[new].tobytes()).hexdigest())
                with atomic(folder / f'{split}_y.npy') as f:
                    np.save(f, y[new], allow_pickle=False)
        meta = text_meta(counts, hashes, dtype, spec, source, script, vocab_size=start + 1, labels=labels)
        with atomic(folder / 'meta.json', 'w') as f:
            json.dump(meta, f)
    except OSError as e:
        raise UserError(f'{folder} cannot be written ({e})') from None
    size, pictures = spec['width'] * spec['height'] + 1, f'pictures of {spec["width"]} x {spec["height"]} pixels'
    print(f'data/{name}: {", ".join(f"{n // size:,} {split}" for split, n in counts.items())} {pictures}, vocabulary '
          f'{start + 1}; {source["name"]}; fingerprint {meta["fingerprint"]}')


def make(argv, doc, script, images=None, size=None, colours=512, grey=None):
    """Write the data set of a script.  images: the data set of images; None: arguments name both."""
    parser = Parser(doc)
    if images is None:
        parser.add_argument('name', help='the data set becomes data/<name>; train on it with --dataset=<name>')
        parser.add_argument('images', help='the data set of images')
    else:
        parser.add_argument('--name', default=Path(script).stem, help='the data set becomes data/<name>')
        parser.set_defaults(images=images)
    parser.add_argument('--size', type=positive, default=size, help='the width of the pictures (default: that of the images)')
    how = parser.add_mutually_exclusive_group()
    how.add_argument('--colours', type=positive, help=f'the colours of the palette, by k-means (default: {colours})')
    how.add_argument('--grey', type=positive, help='evenly spaced greys instead')
    parser.add_argument('--seed', type=natural, default=0, help='random seed of k-means')
    args = parser.parse_args(argv)
    if args.colours is None and args.grey is None:
        args.colours, args.grey = colours, grey
    which = 'grey' if args.grey else 'colours'
    if not 2 <= getattr(args, which) <= (256 if args.grey else 4096):
        raise UserError(f'--{which}={getattr(args, which)} must be from 2 to {256 if args.grey else 4096}')
    check_new(args.name, args.overwrite)
    from harness.data import ensure, read_meta  # these import torch, which --help does not need
    from harness.images import ImageData
    folder = ensure(args.images)
    if (kind := read_meta(folder)['kind']) != 'images':
        raise UserError(f'data/{args.images} has no images (its kind is {kind}): choose mnist_images, cifar10_images, or your '
                        f'own pictures by prepare/pictures.py')
    data = ImageData(folder, read_meta(folder), 'pixels')
    H, W, _ = data.shape
    width, height = args.size or W, max(1, round(H * (args.size or W) / W))
    if width > W:
        raise UserError(f'--size={width}: the images of data/{args.images} are {W} x {H} pixels: choose at most {W}')
    small = {split: resize(x, width, height) for split, (x, _) in data.splits.items()}
    if args.grey:
        palette = np.linspace(0, 255, args.grey).round().astype(np.uint8)[:, None].repeat(3, 1)
    else:
        pixels = small['train'].reshape(-1, small['train'].shape[-1])
        some = np.sort(np.random.default_rng(args.seed).permutation(len(pixels))[:SAMPLE])
        palette = kmeans(np.broadcast_to(pixels[some], (len(some), 3)), args.colours, args.seed)
    spec = {'kind': 'palette', 'colours': palette.tolist(), 'width': width, 'height': height}
    source = data.meta['source']
    how = f'{width} x {height} in {len(palette)} {"greys" if args.grey else "colours"}'
    write(args.name, {split: (tokens(small[split], spec), data.splits[split][1]) for split in SPLITS}, spec,
          data.meta.get('labels'), source | {'name': f'{source["name"]}, {how}', 'images': data.fingerprint}, Path(script).name)


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__))
