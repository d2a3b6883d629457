"""
Bit memory: recall the pattern of which half the bits are shown: data/bit_memory.

    python prepare/bit_memory.py [--patterns=5] [--bits=1000] [--examples=5000] [--name=NAME]

A token is a pattern of bits, -1 or 1. The last token is the query: one of the patterns with half of its bits masked (0). All
bits of the answer are scored, so copying the bits of the query and guessing the others has an accuracy of 75 %.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.common import distinct, held_out, positive, require_fit, split_examples, task_parser, write_task


def main(argv):
    parser = task_parser(__doc__, __file__, examples=5000)
    parser.add_argument('--patterns', type=positive, default=5, help='patterns to remember')
    parser.add_argument('--bits', type=positive, default=1000, help='bits per pattern')
    args = parser.parse_args(argv)
    require_fit(args, 'patterns', 'bits', 'examples', size=args.patterns * args.bits)
    rng, held = np.random.default_rng(args.seed), held_out(args.examples)
    count = args.examples + 2 * held
    patterns = distinct(count, lambda n: rng.integers(2, size=(n, args.patterns, args.bits), dtype=np.int8))
    answers = patterns[np.arange(count), rng.integers(args.patterns, size=count)]
    x = 2 * np.concatenate([patterns, answers[:, None]], axis=1) - 1
    x[:, -1] *= rng.integers(2, size=answers.shape, dtype=np.int8)
    write_task(args.name, 'bits', split_examples(x, answers.astype(np.uint8), held), outputs=args.bits,
               script=Path(__file__).name, guess={'accuracy': 0.75}, draw={'as': 'bits'},
               source={'name': f'bit memory, {args.patterns} patterns of {args.bits:,} bits, seed {args.seed}'})


if __name__ == '__main__':
    command(main)
