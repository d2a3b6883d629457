"""
CIFAR-10 as images, 32 x 32 pixels with three channels, in ten classes: data/cifar10_images.

    python prepare/cifar10_images.py [--input=FILE.tar.gz] [--seed=0] [--name=NAME]

The images and their splits are those of cifar10.py: 45,000, 5,000 and 10,000.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.cifar10 import LABELS, load, parser
from prepare.common import write_images


def main(argv):
    args = parser(__doc__, __file__).parse_args(argv)
    splits, source = load(args.input, args.seed)
    write_images(args.name, {split: {'x': x.transpose(0, 2, 3, 1), 'y': y} for split, (x, y) in splits.items()}, source,
                 Path(__file__).name, LABELS)


if __name__ == '__main__':
    command(main)
