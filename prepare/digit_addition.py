"""
The sum of ten digits, as a number: data/digit_addition.

    python prepare/digit_addition.py [--digits=10] [--examples=10000] [--name=NAME]

A token is a digit. digit_addition_classes.py has the same examples with each possible sum, 0 to 90, as a class. No two
examples are the same. Always saying 45 is wrong by 7.3 on average.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.tasks import write_task
from prepare.bit_memory import distinct, options, splits, with_tenths
from prepare.text import positive


def of_sums(classes, digits):
    """What write_task() is to know of the sums of so many digits, as classes or as a number."""
    return {'kind': 'classify', 'outputs': 9 * digits + 1, 'numbers': True} if classes else {'kind': 'regress', 'outputs': 1}


def main(doc, script, classes):
    parser = options(doc, script, examples=10_000)
    parser.add_argument('--digits', type=positive, default=10, help='to be added')
    args = parser.parse_args()
    rng, (count, held) = np.random.default_rng(args.seed), with_tenths(args.examples)
    x = distinct(count, lambda n: rng.integers(10, size=(n, args.digits), dtype=np.uint8))
    y = x.sum(1, dtype=np.int64 if classes else np.float32)
    write_task(args.name, splits=splits(x, y, held), vocab_size=10, script=Path(script).name,
               source={'name': f'sums of {args.digits} digits, seed {args.seed}'}, **of_sums(classes, args.digits))


if __name__ == '__main__':
    main(__doc__, __file__, classes=False)
