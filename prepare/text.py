"""
Any text of your own: data/<name>.

    python prepare/text.py NAME FILE_OR_FOLDER ... [--tokens=char|bytes|gpt2] [--characters=120000]

Folders are searched for *.txt and *.md, in the order of their names. The last tenth of the whole, or of
its first --characters, is the validation text.
"""

import argparse
import hashlib
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, data
from harness.config import Arguments
from harness.tokenizer import gpt2_spec


def read(paths):
    """(text, names of the files) of files and folders."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob('*') if p.suffix in ('.txt', '.md') and p.is_file())
            if not inside:
                raise UserError(f'{path} holds no .txt and no .md file')
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f'there is no file or folder {path}')
    texts = []
    for path in found:
        try:
            texts.append(path.read_text(encoding='utf-8-sig'))      # without the mark that some editors put at the start
        except UnicodeDecodeError as e:
            raise UserError(f'{path} is not UTF-8 text (byte {e.start}): convert it first') from None
        except OSError as e:
            raise UserError(f'{path} cannot be read ({e.strerror})') from None
    return '\n\n'.join(texts), [p.name for p in found]


def positive(word):
    """The type of an argument that is 1, 2, 3, ..."""
    if not re.fullmatch('0*[1-9][0-9]{,17}', word):
        raise argparse.ArgumentTypeError(f"'{word}' is not a whole number from 1 on")
    return int(word)


def several(names):
    """A name for all of them together."""
    return names[0] if len(names) == 1 else f'{names[0]} and {len(names) - 1} more'


def first(text, name, count):
    """(the first `count` characters of a text, its name that says so); None: all of them."""
    return (text, name) if count is None or count >= len(text) else (text[:count], f'{name}, first {count:,} characters')


if __name__ == '__main__':
    parser = Arguments(description=__doc__)
    parser.add_argument('name', help='the data set becomes data/<name>; train on it with --dataset=<name>')
    parser.add_argument('paths', nargs='+', metavar='FILE_OR_FOLDER')
    parser.add_argument('--tokens', choices=('char', 'bytes', 'gpt2'), default='char', help='what a token is')
    parser.add_argument('--characters', type=positive, help='take only so many, from the start')
    args = parser.parse_args()
    data.check_name(args.name)
    text, names = read(args.paths)
    text, name = first(text, several(names), args.characters)
    spec = gpt2_spec() if args.tokens == 'gpt2' else \
        {'kind': 'char', 'chars': sorted(set(text))} if args.tokens == 'char' else {'kind': 'bytes'}
    source = {'name': name, 'sha256': hashlib.sha256(text.encode()).hexdigest()}
    data.write_text(args.name, text, spec, source, Path(__file__).name)
