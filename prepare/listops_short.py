"""
ListOps in 10 to 60 tokens, nested to depth 4: data/listops_short.

    python prepare/listops_short.py [--min_length=10] [--max_length=60] [--depth=4] [--arguments=5] [--examples=20000]

A version of listops.py that is small enough for a CPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.listops import main

if __name__ == '__main__':
    command(lambda argv: main(argv, __doc__, __file__, examples=20_000, shortest=10, longest=60, depth=4, arguments=5))
