"""
The sum of ten digits that are images of MNIST, as one of the classes 0 to 90: data/mnist_addition.

    python prepare/mnist_addition.py [--digits=10] [--examples=10000] [--input=FOLDER] [--name=NAME]

A token is an image of 28 x 28 pixels, drawn at random from mnist.py's images of the same split, so no image is in two splits.
mnist_addition_number.py has the same examples with the sum as a number.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.common import held_out, positive, require_fit, sum_task, task_parser, write_task
from prepare.mnist import SIDE, load


def main(argv, doc=__doc__, script=__file__, classes=True):
    parser = task_parser(doc, script, examples=10_000)
    parser.add_argument('--digits', type=positive, default=10, help='digits per example')
    parser.add_argument('--input', metavar='FOLDER', help='folder with the four files of MNIST, instead of the download')
    args = parser.parse_args(argv)
    require_fit(args, 'digits', 'examples', size=args.digits * SIDE ** 2)
    images, source = load(args.input, args.seed)
    rng, splits = np.random.default_rng((args.seed, 1)), {}
    for split, (x, y) in images.items():
        count = args.examples if split == 'train' else held_out(args.examples)
        drawn = rng.integers(len(x), size=(count, args.digits))
        splits[split] = x.reshape(-1, SIDE * SIDE)[drawn], y[drawn].sum(1, dtype=np.int64 if classes else np.float32)
    write_task(args.name, splits=splits, script=Path(script).name, **sum_task(classes, args.digits),
               source={**source, 'name': f'sums of {args.digits} digits, {source["name"]}, seed {args.seed}'},
               draw={'as': 'images', 'height': SIDE, 'width': SIDE, 'channels': 1, 'patch': SIDE})


if __name__ == '__main__':
    command(main)
