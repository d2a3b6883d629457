"""
MNIST as texts of pixels, 14 x 14 in 8 greys: data/mnist_pixels.

    python prepare/mnist_pixels.py [--size=14] [--grey=8 | --colours=K] [--name=NAME]

The images, their splits and their classes are those of mnist_images.py. See pixels.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.pixels import make

if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, 'mnist_images', size=14, grey=8))
