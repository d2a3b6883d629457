"""
A data set of your own text: data/<name>.

    python prepare/text.py NAME FILE_OR_FOLDER ... [--tokens=char|bytes|gpt2|MODEL] [--characters=120000]

Folders are searched for *.txt and *.md, in alphabetical order, and so are linked folders, but not hidden ones and node_modules.
The last tenth of the text, or of its first --characters, is the validation text. No text may occur twice.
"""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command
from harness.tokenizer import gpt2_spec, published_spec
from prepare.common import Parser, char_tokenizer, check_distinct, positive, read_text, summarize, truncate, walk, write_text


def read(paths):
    """(text, name) of files and folders: their texts, joined by an empty line.  Raises UserError."""
    found = []
    for path in map(Path, paths):
        inside = [p for p in walk(path) if p.suffix.lower() in ('.txt', '.md')] if path.is_dir() else [path]
        if not inside:
            raise UserError(f'{path} contains no .txt and no .md file')
        found += inside
    texts = [read_text(path) for path in found]
    check_distinct(zip(found, texts, strict=True))
    return '\n\n'.join(texts), summarize([p.name for p in found])


def text_parser(doc):
    parser = Parser(doc)
    parser.add_argument('name', help='the data set becomes data/<name>; train on it with --dataset=<name>')
    parser.add_argument('paths', nargs='+', metavar='FILE_OR_FOLDER')
    return parser


def source_of(name, text):
    return {'name': name, 'sha256': hashlib.sha256(text.encode()).hexdigest()}


def main(argv):
    parser = text_parser(__doc__)
    parser.add_argument('--tokens', default='char',
                        help="the tokenizer: char, bytes, gpt2, or a published model (its folder, or owner/model) for its own")
    parser.add_argument('--characters', type=positive, help='use only this many characters, from the start')
    args = parser.parse_args(argv)
    text, name = truncate(*read(args.paths), args.characters)
    kinds = {'char': lambda: char_tokenizer(text), 'bytes': lambda: {'kind': 'bytes'}, 'gpt2': gpt2_spec}
    if (tokenizer := kinds.get(args.tokens, lambda: published_spec(args.tokens))()) is None:
        raise UserError(f'--tokens={args.tokens} must be {", ".join(kinds)}, or a model with a tokenizer.json')
    write_text(args.name, text, tokenizer, source_of(name, text), Path(__file__).name)


if __name__ == '__main__':
    command(main)
