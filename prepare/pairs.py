"""
Your own pairs of sequences, such as sentences and their translations: data/<name>.

    python prepare/pairs.py NAME FILE [--tokens=char|bytes|gpt2] [--longest=200]

Each line of FILE is a source and its target, with a tab between them. A tenth of the sources, chosen at random, is for
validation and a tenth for testing; all targets of one source are in the same split. A pair that occurs again is left out.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command
from harness.tokenizer import gpt2_spec
from prepare.common import Parser, char_tokenizer, natural, positive, read_text, write_pairs


def read(path, longest):
    """{source: [target, ...]} of a file.  Raises UserError, with the line, for a line that is no pair."""
    found, repeated = {}, 0
    for number, line in enumerate(read_text(path).split('\n'), 1):
        if not line.strip():
            continue
        pair = [side.strip() for side in line.split('\t')]
        where = f'{path}, line {number}'
        if len(pair) != 2:
            raise UserError(f'{where} has {len(pair)} columns: expected a source and a target with one tab between them')
        if not all(pair):
            raise UserError(f'{where} has an empty {"target" if pair[0] else "source"}: fill it in, or remove the line')
        if max(map(len, pair)) > longest:
            raise UserError(f'{where} has {max(map(len, pair)):,} characters on one side: remove the line, or raise '
                            f'--longest={longest} (a batch takes as much memory as its longest pair)')
        targets = found.setdefault(pair[0], [])
        if pair[1] in targets:
            repeated += 1
        else:
            targets.append(pair[1])
    if repeated:
        print(f'{repeated:,} pairs occur more than once: each is used once')
    if len(found) < 10:
        raise UserError(f'{path} has {len(found)} different sources: at least 10 are needed')
    return found


def main(argv):
    parser = Parser(__doc__)
    parser.add_argument('name', help='the data set becomes data/<name>; train on it with --dataset=<name>')
    parser.add_argument('file', metavar='FILE', help='a source, a tab and a target in each line, in UTF-8')
    parser.add_argument('--tokens', choices=('char', 'bytes', 'gpt2'), default='char', help='the tokenizer of both sides')
    parser.add_argument('--longest', type=positive, default=200, help='characters of a source or a target, at most')
    parser.add_argument('--seed', type=natural, default=0, help='random seed of the split')
    args = parser.parse_args(argv)
    found = read(args.file, args.longest)
    known = [*found]
    sources = [known[i] for i in np.random.default_rng(args.seed).permutation(len(found))]
    held = max(1, len(sources) // 10)
    splits = {split: [(s, t) for s in sources[part] for t in found[s]] for split, part in (
        ('train', slice(2 * held, None)), ('val', slice(held, 2 * held)), ('test', slice(held)))}
    text = ''.join(s + t for pairs in splits.values() for s, t in pairs)
    tokenizer = {'char': lambda: char_tokenizer(text), 'bytes': lambda: {'kind': 'bytes'}, 'gpt2': gpt2_spec}[args.tokens]()
    source = {'name': Path(args.file).name, 'sha256': hashlib.sha256(text.encode()).hexdigest()}
    write_pairs(args.name, splits, tokenizer, source, Path(__file__).name)


if __name__ == '__main__':
    command(main)
