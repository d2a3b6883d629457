"""
Parity: whether the number of ones so far is odd: data/parity.

    python prepare/parity.py [--length=24] [--examples=50000] [--seed=0] [--name=NAME]

    read      0110100
    answers   0100111

Harder: more bits.  The tests ask only after the last one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.examples import make


def draw(rng, n, *_):
    bits = rng.integers(2, size=n)
    return ''.join(map(str, bits.tolist())), ''.join(map(str, (bits.cumsum() % 2).tolist()))


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, draw, '01', size=lambda n: n, trained=24, counted='bits', dense=True))
