"""
Induction: what came after this letter when it last occurred: data/induction.

    python prepare/induction.py [--length=16] [--examples=50000] [--seed=0] [--name=NAME]

    read      kqdbwqxbk
    answers        d wq

Harder: it is longer ago; what is longer ago than --length is not asked for in training.  Source: Olsson et al. 2022,
"In-context Learning and Induction Heads", arXiv 2209.11895.
"""

import string
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.examples import make, random_text

LETTERS = string.ascii_lowercase


def draw(rng, n, trained, T):
    text = list(random_text(rng, LETTERS, T))
    letter = text[-1] = text[T - 1 - n]
    for t in range(T - n, T - 1):           # the last letter has last occurred n letters ago
        while text[t] == letter:
            text[t] = random_text(rng, LETTERS, 1)
    answers, last = [], {}
    for t, letter in enumerate(text):
        near = letter in last and (t - last[letter] <= trained or t == T - 1)
        answers.append(text[last[letter] + 1] if near else ' ')
        last[letter] = t
    return ''.join(text), ''.join(answers)


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, draw, LETTERS, size=lambda n: n + 1, trained=16,
                              counted='letters ago', dense=True))
