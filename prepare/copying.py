"""
Copying: a text of letters, a mark, and the same text again: data/copying.

    python prepare/copying.py [--length=16] [--examples=50000] [--seed=0] [--name=NAME]

    read      dbca=dbc
    answers       dbca

Harder: a longer text.  Source: Jelassi et al. 2024, "Repeat After Me", arXiv 2402.01032.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.examples import make, random_text

LETTERS = 'abcdefghijklmnop'


def draw(rng, n, *_):
    text = random_text(rng, LETTERS, n)
    return f'{text}={text[:-1]}', ' ' * n + text


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, draw, LETTERS + '=', size=lambda n: 2 * n, trained=16))
