"""
Stamps of the drawing program Tux Paint, photographs and drawings with a sentence each: data/stamps.

    python prepare/stamps.py [--size=32] [--seed=0] [--name=NAME]

"A great blue heron." Pictures of many sizes become --size x --size: each in the middle of a white square; the same sentence
may belong to several. A random tenth is for validation and a tenth for testing; pictures with the same sentence, or nearly the
same pixels, are in one split. They come from Debian's package tuxpaint-stamps-default (GPL-2), which apt-get downloads where it
is installed.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command
from prepare.common import fetch_package, members
from prepare.emoji import parser, write
from prepare.pictures import read_images

PACKAGE, SHA256 = 'tuxpaint-stamps-default', '6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34'
ARCHIVE = 'tuxpaint-stamps-default_2022.06.04-1_all.deb'
ALIKE = 0.95        # correlation of the grey values of two pictures, above which they show the same


def groups_of(sentences, sources):
    """[[indices of pictures]] that belong together: their sentences are the same but for capital letters and punctuation, or
    their pixels nearly are, also when one is mirrored or has other colours."""
    from scipy.sparse.csgraph import connected_components  # slow to import
    grey = read_images(sources, (16, 16), square=True).mean(3)
    grey -= grey.mean((1, 2), keepdims=True)
    grey /= np.linalg.norm(grey, axis=(1, 2), keepdims=True) + 1e-9                     # (N, 16, 16), of length 1
    rows, mirrored = grey.reshape(len(grey), -1), grey[:, :, ::-1].reshape(len(grey), -1)
    texts = np.array([''.join(c for c in text.lower() if c.isalnum() or c == ' ') for text in sentences])
    _, which = connected_components((np.maximum(rows @ rows.T, rows @ mirrored.T) > ALIKE) | (texts[:, None] == texts))
    return [np.flatnonzero(which == group).tolist() for group in range(which.max() + 1)]


def main(argv):
    args = parser(__doc__, __file__).parse_args(argv)
    path = fetch_package('Tux Paint', f'the file {ARCHIVE} of Debian', ARCHIVE, PACKAGE, SHA256, 'apt-get', None)
    found = {str(file): raw for file, raw in members(path, lambda file: file.suffix in ('.png', '.txt'))}
    # the first line of the text beside a picture is English, the others are translations
    texts = {name[:-4]: raw.decode(errors='replace').split('\n')[0].strip() for name, raw in found.items()
             if name.endswith('.txt')}
    names = sorted(name for name in found if name.endswith('.png') and texts.get(name[:-4]))
    if not names:
        raise UserError(f'{path} contains no pictures with a text: replace it with {ARCHIVE}')
    sentences, sources = [texts[name[:-4]] for name in names], [(name, found[name]) for name in names]
    groups = groups_of(sentences, sources)
    alike = sum(len(group) for group in groups if len(group) > 1)
    write(args, __file__, sentences, sources, {'name': f'Tux Paint stamps ({PACKAGE})', 'sha256': SHA256}, groups=groups,
          alike=alike)
    print(f'{alike} of the {len(names)} pictures have the sentence of another, or nearly its pixels, and are in its split')


if __name__ == '__main__':
    command(main)
