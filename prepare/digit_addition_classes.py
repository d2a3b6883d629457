"""
The sum of ten digits, as one of the classes 0 to 90: data/digit_addition_classes.

    python prepare/digit_addition_classes.py [--digits=10] [--examples=10000] [--name=NAME]

The examples are those of digit_addition.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.digit_addition import main

if __name__ == '__main__':
    command(lambda argv: main(argv, __doc__, __file__, classes=True))
