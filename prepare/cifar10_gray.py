"""
CIFAR-10 in grey, a token a pixel: data/cifar10_gray, as the Long Range Arena has it.

    python prepare/cifar10_gray.py [--input=FILE.tar.gz] [--seed=0] [--name=NAME]

An image is 1,024 tokens of a vocabulary of 256, the luma of its pixels in reading order: a model is told neither what is
beside what, nor that 128 is a little more than 127. The images and their splits are cifar10.py's.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.tasks import write_task
from prepare.cifar10 import LABELS, SIDE, arguments, images

LUMA = np.array([299, 587, 114], np.uint32)     # of red, green and blue, in thousandths: ITU-R BT.601


def gray(x):
    """(N, 3, 32, 32) -> (N, 1024), uint8."""
    return ((np.einsum('nchw,c->nhw', x, LUMA) + 500) // 1000).astype(np.uint8).reshape(len(x), -1)


if __name__ == '__main__':
    args = arguments(__doc__, __file__)
    splits, source = images(args.input, args.seed)
    write_task(args.name, 'classify', {split: (gray(x), y) for split, (x, y) in splits.items()}, len(LABELS), source,
               Path(__file__).name, vocab_size=256, labels=LABELS,
               draw={'as': 'image', 'height': SIDE, 'width': SIDE, 'channels': 1, 'patch': 1})
