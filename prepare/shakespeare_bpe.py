"""
Shakespeare in the tokens of a byte pair encoding of its own, 1024 merges: data/shakespeare_bpe.

    python prepare/shakespeare_bpe.py [--input=FILE]

The text is shakespeare_char.py's, with the same two sources.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import data
from prepare.bpe import spec
from prepare.shakespeare_char import argument, shakespeare

if __name__ == '__main__':
    text, source = shakespeare(argument())
    data.write_text('shakespeare_bpe', text, spec('shakespeare_bpe', text, 1024), source, Path(__file__).name)
