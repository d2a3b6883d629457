"""
State tracking in S5: a ball lies under the first of five cups, which are swapped: where is it?  data/s5.

    python prepare/s5.py [--length=16] [--examples=50000] [--seed=0] [--name=NAME]

    read      aeaj          a swaps cups 1 and 2, b 1 and 3, c 1 and 4, d 1 and 5, e 2 and 3, ..., j 4 and 5
    answers   2333

Harder: more swaps.  The tests ask only after the last one.  The swaps generate the group S5, whose word problem no transformer
or state space model of fixed depth solves at every length, unless TC0 = NC1 (Merrill et al. 2024, arXiv 2404.08819).
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.examples import make, random_text

SWAPS = dict(zip('abcdefghij', itertools.combinations(range(1, 6), 2), strict=True))


def draw(rng, n, *_):
    swaps, ball, answers = random_text(rng, [*SWAPS], n), 1, ''
    for swap in swaps:
        one, two = SWAPS[swap]
        ball = {one: two, two: one}.get(ball, ball)
        answers += str(ball)
    return swaps, answers


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, draw, [*SWAPS, *'12345'], size=lambda n: n, trained=16, counted='swaps',
                              dense=True))
