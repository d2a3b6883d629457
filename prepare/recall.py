"""
Associative recall: pairs of a letter and a digit, then some of the letters, each to be followed by its digit: data/recall.

    python prepare/recall.py [--pairs=16] [--examples=50000] [--seed=0] [--name=NAME]

    read      a3f7c1=c1a
    answers          1 3

Up to 8 letters are asked for.  Harder: more pairs.  Source: Arora et al. 2023, "Zoology", arXiv 2312.04927.
"""

import string
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.examples import make, random_text

KEYS, QUERIES = string.ascii_letters, 8


def draw(rng, n, *_):
    keys, values = [KEYS[i] for i in rng.permutation(len(KEYS))[:n]], random_text(rng, string.digits, n)
    asked = rng.permutation(n)[:QUERIES]
    x = ''.join(map(str.__add__, keys, values)) + '=' + ''.join(keys[i] + values[i] for i in asked)
    return x[:-1], ' ' * (2 * n + 1) + ' '.join(values[i] for i in asked)


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, draw, KEYS + string.digits + '=', lambda n: 2 * n + 2 * QUERIES,
                              trained=16, counted='pairs', option='pairs', most=len(KEYS) // 2))
