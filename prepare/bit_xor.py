"""
Bit XOR: the exclusive or of two patterns of bits, bit by bit: data/bit_xor.

    python prepare/bit_xor.py [--patterns=2] [--bits=5] [--name=NAME]

A token is a pattern of bits, -1 or 1. If there are at most 65,536 different inputs, all are used: a tenth for validation, a
tenth for testing, the rest for training. Else 20,000 random inputs are for training and 1,000 for each of the others. No input
is in two splits. A constant answer has an accuracy of 50 %.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.common import distinct, positive, require_fit, split_examples, task_parser, write_task

MAX_WIDTH = 16                  # bits of an input, up to which all inputs are used
TRAIN, HELD = 20_000, 1000      # examples, of wider inputs


def main(argv):
    parser = task_parser(__doc__, __file__)
    parser.add_argument('--patterns', type=positive, default=2, help='patterns per input')
    parser.add_argument('--bits', type=positive, default=5, help='bits per pattern')
    args = parser.parse_args(argv)
    require_fit(args, 'patterns', 'bits', size=args.patterns * args.bits, examples=TRAIN)
    rng, width = np.random.default_rng(args.seed), args.patterns * args.bits
    if width <= MAX_WIDTH:
        held = max(1, 2 ** width // 10)
        bits = rng.permutation(2 ** width)[:, None] >> np.arange(width) & 1
    else:
        held, bits = HELD, distinct(TRAIN + 2 * HELD, lambda n: rng.integers(2, size=(n, width), dtype=np.int8))
    bits = bits.reshape(-1, args.patterns, args.bits).astype(np.int8)
    write_task(args.name, 'bits', split_examples(2 * bits - 1, np.bitwise_xor.reduce(bits, axis=1).astype(np.uint8), held),
               outputs=args.bits, script=Path(__file__).name, guess={'accuracy': 0.5}, draw={'as': 'bits'},
               source={'name': f'bit XOR, {args.patterns} patterns of {args.bits:,} bits, seed {args.seed}'})


if __name__ == '__main__':
    command(main)
