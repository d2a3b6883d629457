"""
The sum of ten digits, as a number: data/digit_addition.

    python prepare/digit_addition.py [--digits=10] [--examples=10000] [--name=NAME]

A token is a digit. No two examples are the same. digit_addition_classes.py has the same examples with each possible sum, 0 to
90, as a class. The constant answer 45 has a mean absolute error of 7.3.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.common import distinct, held_out, positive, require_fit, split_examples, sum_task, task_parser, write_task


def main(argv, doc=__doc__, script=__file__, classes=False):
    parser = task_parser(doc, script, examples=10_000)
    parser.add_argument('--digits', type=positive, default=10, help='digits per example')
    args = parser.parse_args(argv)
    require_fit(args, 'digits', 'examples', size=args.digits)
    rng, held = np.random.default_rng(args.seed), held_out(args.examples)
    x = distinct(args.examples + 2 * held, lambda n: rng.integers(10, size=(n, args.digits), dtype=np.uint8))
    y = x.sum(1, dtype=np.int64 if classes else np.float32)
    write_task(args.name, splits=split_examples(x, y, held), vocab_size=10, script=Path(script).name,
               source={'name': f'sums of {args.digits} digits, seed {args.seed}'}, **sum_task(classes, args.digits))


if __name__ == '__main__':
    command(main)
