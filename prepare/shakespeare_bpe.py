"""
Shakespeare in the tokens of a byte pair encoding of 1,024 merges, trained on it: data/shakespeare_bpe.

    python prepare/shakespeare_bpe.py [--input=FILE]

The text is that of shakespeare_char.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.bpe import train_tokenizer
from prepare.shakespeare_char import make

if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, lambda text: train_tokenizer('shakespeare_bpe', text, 1024)))
