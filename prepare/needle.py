"""
A needle in a haystack: the digit behind the mark #, however long ago: data/needle.

    python prepare/needle.py [--length=48] [--examples=50000] [--seed=0] [--name=NAME]

    read      w3k#7p0ez?b9?
    answers            7  7

Harder: it is longer ago.
"""

import string
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.examples import make, random_text

HAY = string.ascii_lowercase + string.digits


def draw(rng, n, trained, T):
    text, asked = list(random_text(rng, HAY, T)), rng.random(T) < 1 / 3
    asked[-1], asked[:T - n] = True, False
    text[T - 2 - n], digit = '#', random_text(rng, string.digits, 1)
    text[T - 1 - n] = digit                 # n tokens before the last, which asks for it
    return ''.join('?' if a else c for a, c in zip(asked, text, strict=True)), ''.join(digit if a else ' ' for a in asked)


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, draw, HAY + '#?', size=lambda n: n + 2, trained=48, counted='tokens ago',
                              dense=True))
