"""
Shakespeare in the tokens of GPT-2's BPE: data/shakespeare_gpt2, for fine-tuning and evaluating GPT-2.

    python prepare/shakespeare_gpt2.py [--input=FILE]

The text is shakespeare_char.py's, with the same two sources.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import data
from harness.tokenizer import gpt2_spec
from prepare.shakespeare_char import argument, shakespeare

if __name__ == '__main__':
    text, source = shakespeare(argument())
    data.write_text('shakespeare_gpt2', text, gpt2_spec(), source, Path(__file__).name)
