"""
Sorting: a text of letters, a mark, and the letters in alphabetical order: data/sorting.

    python prepare/sorting.py [--length=16] [--examples=50000] [--seed=0] [--name=NAME]

    read      dbca=abc
    answers       abcd

Harder: a longer text.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.examples import make, random_text

LETTERS = 'abcdefghijklmnop'


def draw(rng, n, *_):
    text = random_text(rng, LETTERS, n)
    ordered = ''.join(sorted(text))
    return f'{text}={ordered[:-1]}', ' ' * n + ordered


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, draw, LETTERS + '=', size=lambda n: 2 * n, trained=16))
