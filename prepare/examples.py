"""
What the scripts of the small tasks share (copying, recall, induction, parity, s5, sorting, needle): examples of any number from
a seed, as texts with answers; harness/examples.py says how they are stored.

- training and validation have 1 to --length letters (or pairs, ...), all numbers equally often; the test split has a part for
  each of --length / 4, / 2, * 1, * 3 / 2 and * 2
- the split of an example is decided by a checksum of it, so none is in two splits; short ones occur more than once in one
- an example stands at a random place of its window, with blanks around it, so all positions are trained
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from harness import UserError
from harness.files import atomic
from prepare.common import (
    char_tokenizer,
    check_new,
    data_folder,
    held_out,
    positive,
    require_fit,
    task_parser,
    text_meta,
)

TESTS = 500         # examples of each part of the test split
DRAWS = 1000        # for one example, before it is given up


def levels(trained):
    return trained // 4, trained // 2, trained, 3 * trained // 2, 2 * trained


def split_of(x, y):
    """A tenth of all examples are for testing, a tenth for validation."""
    return {0: 'test', 1: 'val'}.get(zlib.crc32(f'{x}\n{y}'.encode()) % 10, 'train')


def random_text(rng, letters, n):
    return ''.join(letters[i] for i in rng.integers(len(letters), size=n).tolist())


def make(argv, doc, script, draw, chars, size, trained, counted='letters', option='length', most=None, dense=False):
    """Writes the data set of a script.

    draw(rng, n, trained, T) -> (x, y), two texts as long as each other, of an example with n letters; trained: the most for
    training; T: of a window.  chars: those of x and y.  size(n): the tokens of the longest example with n.  counted, option:
    the name of n, in a picture and on the command line.  most: of it, for training.  dense: an example has an answer at many
    places, of which the test split keeps the last."""
    parser = task_parser(doc, script)
    parser.add_argument(f'--{option}', type=positive, default=trained, help=f'the most {counted} of an example for training')
    parser.add_argument('--examples', type=positive, default=50_000, help='training examples')
    args = parser.parse_args(argv)
    check_new(args.name, args.overwrite)
    trained = getattr(args, option)
    if not 4 <= trained <= (most or trained):
        raise UserError(f'--{option}={trained} must be at least 4' + f', and at most {most}' * (most is not None))
    T = -(-size(2 * trained) // 16) * 16        # a multiple of the rows of PACING's grid
    require_fit(args, option, 'examples', size=3 * T)
    rng, parts, chars = np.random.default_rng(args.seed), dict.fromkeys(map(str, levels(trained)), TESTS), sorted({' ', *chars})

    def example(split, n=None):
        for _ in range(DRAWS):
            x, y = draw(rng, n or int(rng.integers(1, trained + 1)), trained, T)
            if split_of(x, y) == split:
                if split == 'test' and dense:
                    y = ' ' * (len(y) - 1) + y[-1]
                at = int(rng.integers(T - len(x) + 1))
                return (' ' * at + x).ljust(T) + (' ' * at + y).ljust(T)
        raise UserError(f'--{option}={trained}: there are too few examples with {n} {counted} for a test split: choose a '
                        f'larger one')
    wanted = {'test': [int(n) for n in parts for _ in range(TESTS)], 'val': [None] * held_out(args.examples),
              'train': [None] * args.examples}
    table, counts, hashes, folder = np.zeros(128, np.uint16), {}, [], data_folder(args.name)
    table[[ord(c) for c in chars]] = range(len(chars))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'meta.json').unlink(missing_ok=True)      # it must never describe other tokens
        for split, numbers in wanted.items():
            rows = ''.join(example(split, n) for n in tqdm(numbers, split, leave=False, disable=None))
            tokens = table[np.frombuffer(rows.encode('ascii'), np.uint8)].tobytes()
            counts[split] = len(rows)
            hashes.append(hashlib.sha256(tokens).hexdigest())
            with atomic(folder / f'{split}.bin') as f:
                f.write(tokens)
        name = f'{args.name}, up to {trained} {counted} for training, seed {args.seed}'
        meta = text_meta(counts, hashes, np.dtype('uint16'), char_tokenizer(chars), {'name': name}, Path(script).name,
                         answers={'size': T, 'trained': trained, 'counted': counted}, parts=parts)
        with atomic(folder / 'meta.json', 'w') as f:
            json.dump(meta, f, indent=1)
    except OSError as e:
        raise UserError(f'{folder} cannot be written ({e})') from None
    print(f'data/{args.name}: {args.examples:,} examples of {T} tokens with up to {trained} {counted}, {TESTS} tests with each '
          f'of {", ".join(parts)}; vocabulary {len(chars)}; fingerprint {meta["fingerprint"]}')
