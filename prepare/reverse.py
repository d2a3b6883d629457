"""
Sequences of random letters, to be reversed, by character: data/reverse.

    python prepare/reverse.py [--letters=8] [--longest=12] [--examples=20000] [--seed=0] [--name=NAME]

    fadbb       bbdaf

Lengths are uniform from 1 to --longest. No sequence is in two splits, and short ones occur only once.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command
from prepare.common import DRAWS, char_tokenizer, held_out, positive, require_fit, task_parser, write_pairs

ALPHABET = 'abcdefghijklmnopqrstuvwxyz'


def main(argv):
    parser = task_parser(__doc__, __file__, 20_000)
    parser.add_argument('--letters', type=positive, default=8, help='size of the alphabet, at most 26')
    parser.add_argument('--longest', type=positive, default=12, help='letters of the longest sequence')
    args = parser.parse_args(argv)
    if args.letters > len(ALPHABET):
        raise UserError(f'--letters={args.letters} must be at most {len(ALPHABET)}')
    require_fit(args, 'examples', 'longest', size=2 * args.longest)
    rng, held, found = np.random.default_rng(args.seed), held_out(args.examples), {}
    letters, count = [*ALPHABET[:args.letters]], args.examples + 2 * held
    known = args.longest if args.letters == 1 else sum(args.letters ** n for n in range(1, min(args.longest, 64) + 1))
    if count > known:
        raise UserError(f'--examples={args.examples} needs {count:,} different sequences, but there are {known:,} of up to '
                        f'{args.longest} letters: choose fewer, or more --letters or a larger --longest')
    for _ in range(DRAWS * count):
        if len(found) == count:
            break
        found[''.join(rng.choice(letters, rng.integers(1, args.longest + 1)))] = None
    else:
        raise UserError(f'{DRAWS * count:,} draws gave {len(found):,} different sequences, but {count:,} are needed: choose '
                        f'fewer --examples, or more --letters or a larger --longest')
    pairs = [(s, s[::-1]) for s in found]
    pairs = [pairs[i] for i in rng.permutation(count)]      # the short ones were found first
    write_pairs(args.name, {'train': pairs[2 * held:], 'val': pairs[held:2 * held], 'test': pairs[:held]},
                char_tokenizer(letters), {'name': f'{args.letters} letters, up to {args.longest}, reversed, seed {args.seed}'},
                Path(__file__).name)


if __name__ == '__main__':
    command(main)
