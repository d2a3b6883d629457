"""
Any text of your own: data/<name>.

    python prepare/text.py NAME FILE_OR_FOLDER ... [--tokens=char|bytes|gpt2]

Folders are searched for *.txt and *.md, in the order of their names. The last tenth of the whole is the validation text.
"""

import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, data
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


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='the data set becomes data/<name>; train on it with --dataset=<name>')
    parser.add_argument('paths', nargs='+', metavar='FILE_OR_FOLDER')
    parser.add_argument('--tokens', choices=('char', 'bytes', 'gpt2'), default='char', help='what a token is')
    args = parser.parse_args()
    data.check_name(args.name)
    text, names = read(args.paths)
    spec = gpt2_spec() if args.tokens == 'gpt2' else \
        {'kind': 'char', 'chars': sorted(set(text))} if args.tokens == 'char' else {'kind': 'bytes'}
    source = {'name': names[0] if len(names) == 1 else f'{names[0]} and {len(names) - 1} more',
              'sha256': hashlib.sha256(text.encode()).hexdigest()}
    data.write_text(args.name, text, spec, source, Path(__file__).name)
