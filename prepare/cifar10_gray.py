"""
CIFAR-10 in gray, one token per pixel, as in the Long Range Arena: data/cifar10_gray.

    python prepare/cifar10_gray.py [--input=FILE.tar.gz] [--seed=0] [--name=NAME]

An image is 1,024 tokens of a vocabulary of 256, the luma of its pixels in reading order. The model has no information about
which pixels are neighbors, nor about the order of the gray levels. The images and their splits are those of cifar10.py.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.cifar10 import make

LUMA = np.array([299, 587, 114], np.uint32)     # weights of red, green and blue in thousandths: ITU-R BT.601


def gray(x):
    """(N, 3, 32, 32) -> (N, 1024), uint8."""
    return ((np.einsum('nchw,c->nhw', x, LUMA) + 500) // 1000).astype(np.uint8).reshape(len(x), -1)


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, gray, channels=1, patch=1, vocab_size=256))
