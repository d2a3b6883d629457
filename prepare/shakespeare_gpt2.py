"""
Shakespeare in the tokens of GPT-2's BPE: data/shakespeare_gpt2, for fine-tuning and evaluating GPT-2.

    python prepare/shakespeare_gpt2.py [--input=FILE]

The text is that of shakespeare_char.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from harness.tokenizer import gpt2_spec
from prepare.shakespeare_char import make

if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, lambda text: gpt2_spec()))
