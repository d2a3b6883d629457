"""
Bit XOR: patterns of bits, of which the exclusive or is wanted, bit by bit: data/bit_xor.

    python prepare/bit_xor.py [--patterns=2] [--bits=5] [--name=NAME]

A token is a pattern: -1 or 1 a bit. Where there are at most 65,536 different inputs, all of them are taken, a tenth to
validate and a tenth to test on; else 20,000 to train on and 1,000 each. No input is in two splits.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.tasks import write_task
from prepare.bit_memory import distinct, options, splits
from prepare.text import positive

ALL = 1 << 16
TRAIN, HELD = 20_000, 1000      # of more inputs than that

if __name__ == '__main__':
    parser = options(__doc__, __file__)
    parser.add_argument('--patterns', type=positive, default=2, help='of an input')
    parser.add_argument('--bits', type=positive, default=5, help='of a pattern')
    args = parser.parse_args()
    rng, width = np.random.default_rng(args.seed), args.patterns * args.bits
    if width <= ALL.bit_length() - 1:
        held = max(1, 2 ** width // 10)
        bits = rng.permutation(2 ** width)[:, None] >> np.arange(width) & 1
    else:
        held, bits = HELD, distinct(TRAIN + 2 * HELD, lambda n: rng.integers(2, size=(n, width), dtype=np.int8))
    bits = bits.reshape(-1, args.patterns, args.bits).astype(np.int8)
    write_task(args.name, 'bits', splits(2 * bits - 1, np.bitwise_xor.reduce(bits, axis=1).astype(np.uint8), held),
               outputs=args.bits, script=Path(__file__).name, guess={'accuracy': 0.5}, draw={'as': 'bits'},
               source={'name': f'bit XOR, {args.patterns} patterns of {args.bits:,} bits, seed {args.seed}'})
