"""
CIFAR-10 as images, 32 x 32 pixels with three channels, in ten classes: data/cifar10_images.

    python prepare/cifar10_images.py [--input=FILE.tar.gz] [--seed=0] [--name=NAME]
    python prepare/cifar10_images.py --examples=10000 --name=cifar10_10k            # for experiments on a CPU

The images and their splits are those of cifar10.py: 45,000, 5,000 and 10,000.  --examples takes the first of those for
training.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command
from prepare.cifar10 import LABELS, load, parser
from prepare.common import positive, write_images


def main(argv):
    options = parser(__doc__, __file__)
    options.add_argument('--examples', type=positive, help='images for training (default: all)')
    args = options.parse_args(argv)
    splits, source = load(args.input, args.seed)
    if args.examples:
        x, y = splits['train']
        if args.examples > len(x):
            raise UserError(f'--examples={args.examples}: there are {len(x)} images for training: choose at most as many')
        splits['train'] = x[:args.examples], y[:args.examples]
        source = source | {'name': f'{source["name"]}, {args.examples:,} for training'}
    write_images(args.name, {split: {'x': x.transpose(0, 2, 3, 1), 'y': y} for split, (x, y) in splits.items()}, source,
                 Path(__file__).name, LABELS)


if __name__ == '__main__':
    command(main)
