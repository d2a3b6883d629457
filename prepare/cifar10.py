"""
CIFAR-10, photographs of ten kinds of things, in patches of 4 x 4 pixels: data/cifar10.

    python prepare/cifar10.py [--input=FILE.tar.gz] [--seed=0] [--name=NAME]

- An image of 3 x 32 x 32 becomes 64 tokens, the patches in reading order; a token is the 48 numbers of a patch, its red
  pixels first, then the green and the blue ones.
- Of the 50,000 images published to train on, a tenth, drawn by the seed, is to validate on; 10,000 more are to test on.
- The archive holds pickles, and a pickle can call whatever it names. Nothing that these name is called, or even looked up.
"""

import io
import pickle
import sys
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, files
from harness.tasks import write_task
from prepare.bit_memory import options
from prepare.mnist import patches

URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz'
MD5 = 'c58f30108f718f92721af3b95e74349a'
LABELS = 'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'
TRAIN, TEST = [f'data_batch_{i}' for i in range(1, 6)], ['test_batch']
SIDE, PATCH = 32, 4


def members(path, wanted):
    """(name, content) of those files of a tar archive whose name is wanted(name), read once from front to back."""
    try:
        with tarfile.open(path) as tar:
            for member in tqdm(tar, unit=' files', leave=False, disable=None):
                name = PurePosixPath(member.name)
                if member.isfile() and wanted(name):
                    yield name, tar.extractfile(member).read()
            while tar.fileobj.read(1 << 20):        # on to the end, where gzip keeps its checksum
                pass
    except (OSError, EOFError, tarfile.TarError, zlib.error) as e:
        raise UserError(f'{path} cannot be read as a tar archive, or is cut off ({" ".join(str(e).split())[:80]}): '
                        f'put the whole file there') from None


class Stub:
    """What the pickles make in place of an array, its class and its dtype: it keeps what they tell of it."""
    def __init__(self, *args):
        self.state = None

    def __setstate__(self, state):
        self.state = state


KNOWN = {('numpy.core.multiarray', '_reconstruct'): Stub, ('numpy._core.multiarray', '_reconstruct'): Stub,
         ('numpy', 'ndarray'): Stub, ('numpy', 'dtype'): Stub,
         ('_codecs', 'encode'): lambda text, encoding: text.encode('latin-1')}      # how Python 3 tells Python 2 of bytes


class Unpickler(pickle.Unpickler):
    """Reads pickles of plain values and numpy arrays, which become Stubs.  Raises UserError for whatever else they name."""

    def find_class(self, module, name):
        if (module, name) not in KNOWN:
            raise UserError(f'the archive holds a pickle that asks for {module}.{name}, which no data of images needs: '
                            f'do not trust it')
        return KNOWN[module, name]


def batch(raw, where):
    """The images (N, 3, 32, 32) and classes (N,) of one pickled file, uint8."""
    try:
        content = Unpickler(io.BytesIO(raw), encoding='bytes').load()
        _, shape, _, by_column, pixels = content[b'data'].state
        x = np.frombuffer(pixels, np.uint8).reshape(shape, order='F' if by_column else 'C')
        y = np.array(content[b'labels'], np.uint8)
        x = x.reshape(len(y), 3, SIDE, SIDE)
    except Exception as e:      # a pickle that is none may fail in any way
        raise UserError(f'{where} does not hold images of 3 x {SIDE} x {SIDE} and their classes '
                        f'({type(e).__name__}: {" ".join(str(e).split())[:80]}): put {URL} there') from None
    if y.max(initial=0) >= len(LABELS):
        raise UserError(f'{where} holds the class {y.max()}, but there are {len(LABELS)}: put {URL} there')
    return x, y


def images(path=None, seed=0):
    """({split: (images (N, 3, 32, 32), classes (N,)), uint8}, source) of the archive at hand, else of the download."""
    own, name = path is not None, URL.rpartition('/')[2]
    if not own:
        try:
            path = files.download(URL, name)
        except OSError as e:
            raise files.must_put_by_hand('CIFAR-10', name, URL, [e]) from None
        if files.digest(path, 'md5') != MD5:
            raise UserError(f'{path} is not the file that {URL} holds (its MD5 differs): remove it, or put the right one there')
    read = {file.name: batch(content, f'{path}, {file.name},')
            for file, content in members(path, lambda file: file.name in TRAIN + TEST)}
    if missing := [file for file in TRAIN + TEST if file not in read]:
        raise UserError(f'{path} holds no {missing[0]}: the version of CIFAR-10 for Python is wanted, {URL}')
    (x, y), test = ([np.concatenate([read[file][i] for file in names]) for i in (0, 1)] for names in (TRAIN, TEST))
    order = np.random.default_rng(seed).permutation(len(x))
    val, train = np.split(order, [len(x) // 10])
    source = {'name': f'{Path(path).name if own else "CIFAR-10"}, seed {seed}', 'sha256': files.digest(path)}
    return {'train': (x[train], y[train]), 'val': (x[val], y[val]), 'test': test}, source


def arguments(doc, script):
    parser = options(doc, script)
    parser.add_argument('--input', metavar='FILE', help='cifar-10-python.tar.gz at hand, instead of the download')
    return parser.parse_args()


if __name__ == '__main__':
    args = arguments(__doc__, __file__)
    splits, source = images(args.input, args.seed)
    write_task(args.name, 'classify', {split: (patches(x, PATCH), y) for split, (x, y) in splits.items()}, len(LABELS), source,
               Path(__file__).name, labels=LABELS,
               draw={'as': 'image', 'height': SIDE, 'width': SIDE, 'channels': 3, 'patch': PATCH})
