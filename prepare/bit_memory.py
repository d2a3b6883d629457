"""
Bit memory: patterns of bits, and one of them again with half of its bits masked, to be recalled: data/bit_memory.

    python prepare/bit_memory.py [--patterns=5] [--bits=1000] [--examples=5000] [--name=NAME]

A token is a pattern, the last one the query: -1 or 1 a bit, 0 where it is masked. All bits of the answer are scored, and half
of them stand in the query: who copies these and guesses the others has 75 % right.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, data
from harness.config import Arguments
from harness.tasks import write_task
from prepare.text import positive

DRAWS = 20      # for each example that is wanted, until there seem to be no more


def options(doc, script, examples=None):
    """A parser with what all tasks have: --name, --seed and, if there is a number of them by default, --examples."""
    def named(word):
        data.check_name(word)
        return word

    def natural(word):
        if not re.fullmatch('[0-9]{1,18}', word):
            raise argparse.ArgumentTypeError(f"'{word}' is not a whole number from 0 on")
        return int(word)
    parser = Arguments(description=doc)
    parser.add_argument('--name', type=named, default=Path(script).stem, help='the data set becomes data/<name>')
    parser.add_argument('--seed', type=natural, default=0, help='of all that is random')
    if examples:
        parser.add_argument('--examples', type=positive, default=examples,
                            help='to train on; a tenth as many each are to validate and to test on')
    return parser


def distinct(count, draw):
    """Rows, no two the same: (count, ...).  draw(n) gives n random ones.  Raises UserError if there are not so many."""
    rows, drawn = {}, 0
    with tqdm(total=count, unit=' examples', leave=False, disable=None) as bar:
        while len(rows) < count:
            if drawn >= DRAWS * count:
                raise UserError(f'{count:,} different examples are wanted, and {drawn:,} draws gave {len(rows):,}: ask for '
                                f'fewer (--examples), or for larger ones')
            missing = count - len(rows)
            drawn += missing
            for row in draw(missing):
                rows.setdefault(row.tobytes(), row)
                bar.update(len(rows) - bar.n)
    return np.stack(list(rows.values()))


def with_tenths(examples):
    """(how many there are in all, how many each to validate and to test on) for so many training examples."""
    held = max(1, examples // 10)
    return examples + 2 * held, held


def splits(x, y, held):
    """{split: (x, y)}: the last `held` examples are to test on, those before them to validate on."""
    return {split: (x[part], y[part]) for split, part in (('train', slice(-2 * held)), ('val', slice(-2 * held, -held)),
                                                          ('test', slice(-held, None)))}


if __name__ == '__main__':
    parser = options(__doc__, __file__, examples=5000)
    parser.add_argument('--patterns', type=positive, default=5, help='to be remembered')
    parser.add_argument('--bits', type=positive, default=1000, help='of a pattern')
    args = parser.parse_args()
    rng, (count, held) = np.random.default_rng(args.seed), with_tenths(args.examples)
    patterns = distinct(count, lambda n: rng.integers(2, size=(n, args.patterns, args.bits), dtype=np.int8))
    wanted = patterns[np.arange(count), rng.integers(args.patterns, size=count)]
    x = 2 * np.concatenate([patterns, wanted[:, None]], axis=1) - 1
    x[:, -1] *= rng.integers(2, size=wanted.shape, dtype=np.int8)
    write_task(args.name, 'bits', splits(x, wanted.astype(np.uint8), held), outputs=args.bits, script=Path(__file__).name,
               source={'name': f'bit memory, {args.patterns} patterns of {args.bits:,} bits, seed {args.seed}'},
               guess={'accuracy': 0.75}, draw={'as': 'bits'})
