"""
CIFAR-10 as texts of pixels, 16 x 16 in a palette of 512 colours: data/cifar10_pixels.

    python prepare/cifar10_pixels.py [--size=16] [--colours=512 | --grey=K] [--name=NAME]

The images, their splits and their classes are those of cifar10_images.py. See pixels.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.pixels import make

if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, 'cifar10_images', size=16, colours=512))
