"""
The sum of ten digits that are images of MNIST, as a number: data/mnist_addition_number.

    python prepare/mnist_addition_number.py [--digits=10] [--examples=10000] [--input=FOLDER] [--name=NAME]

The examples are those of mnist_addition.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.mnist_addition import main

if __name__ == '__main__':
    command(lambda argv: main(argv, __doc__, __file__, classes=False))
