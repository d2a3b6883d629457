"""
The sum of ten digits that are images of MNIST, as one of the classes 0 to 90: data/mnist_addition.

    python prepare/mnist_addition.py [--digits=10] [--examples=10000] [--input=FOLDER] [--name=NAME]

A token is an image of 28 x 28 pixels. The images are mnist.py's, from the same sources; those of a split are used in that split
only, any number of times. mnist_addition_number.py has the same examples with the sum as a number.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.tasks import write_task
from prepare.bit_memory import options, with_tenths
from prepare.digit_addition import of_sums
from prepare.mnist import SIDE, images
from prepare.text import positive


def main(doc, script, classes):
    parser = options(doc, script, examples=10_000)
    parser.add_argument('--digits', type=positive, default=10, help='to be added')
    parser.add_argument('--input', metavar='FOLDER', help='where the four files of MNIST are, instead of the download')
    args = parser.parse_args()
    digits, source = images(args.input, args.seed)
    rng, held, made = np.random.default_rng((args.seed, 1)), with_tenths(args.examples)[1], {}
    for split, (x, y) in digits.items():
        drawn = rng.integers(len(x), size=(args.examples if split == 'train' else held, args.digits))
        made[split] = x.reshape(-1, SIDE * SIDE)[drawn], y[drawn].sum(1, dtype=np.int64 if classes else np.float32)
    write_task(args.name, splits=made, script=Path(script).name, **of_sums(classes, args.digits),
               source={**source, 'name': f'sums of {args.digits} digits, {source["name"]}, seed {args.seed}'},
               draw={'as': 'images', 'height': SIDE, 'width': SIDE, 'channels': 1, 'patch': SIDE})


if __name__ == '__main__':
    main(__doc__, __file__, classes=True)
