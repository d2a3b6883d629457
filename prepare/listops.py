"""
ListOps: nested lists of digits under MAX, MIN, MED and SM, of which the value is wanted: data/listops.

    python prepare/listops.py [--min_length=500] [--max_length=2000] [--depth=10] [--arguments=10] [--examples=10000]

    [MAX 2 [SM 7 6 ] [MED 9 1 4 1 ] ]       is 3

Made by the rules of the Long Range Arena (Tay et al. 2020), after Nangia and Bowman (2018): the median is rounded down, SM is
the sum modulo 10. Unlike there, a closing bracket is a token that the model sees, and nothing is cut. Shorter examples have
the token 0 in front, so the last token of each is its last bracket. No two examples are the same.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError
from harness.tasks import write_task
from prepare.bit_memory import distinct, options, splits, with_tenths
from prepare.text import positive

OPERATOR = 0.25     # how often an argument is a list and not a digit (the Arena's code calls it VALUE_P)
TRIES = 100_000     # expressions of a wrong length, one after the other, until there seem to be no right ones


def median(values):
    values = sorted(values)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) // 2


OPERATORS = {'[MAX': max, '[MIN': min, '[MED': median, '[SM': lambda values: sum(values) % 10}
TOKENS = ['', *'0123456789', *OPERATORS, ']']
FIRST, CLOSE = TOKENS.index('[MAX'), TOKENS.index(']')
EVALUATE = [*OPERATORS.values()]


def uniform(rng):
    """Numbers from 0 to 1 without end.  Drawn one by one they would take ten times as long."""
    while True:
        yield from rng.random(1 << 14).tolist()


def grow(tokens, random, depth, arguments, longest):
    """Append a random expression to the tokens.  Returns its value.  One that is longer than `longest` is ended soon."""
    if depth == 1 or len(tokens) > longest or next(random) >= OPERATOR:
        digit = int(10 * next(random))
        tokens.append(1 + digit)
        return digit
    operator = int(len(EVALUATE) * next(random))
    tokens.append(FIRST + operator)
    values = [grow(tokens, random, depth - 1, arguments, longest) for _ in range(2 + int((arguments - 1) * next(random)))]
    tokens.append(CLOSE)
    return EVALUATE[operator](values)


def rows(count, random, args):
    """Yields the tokens of `count` random expressions, each with its value behind it: (max_length + 1,)."""
    for _ in range(count):
        for _ in range(TRIES):
            tokens = []
            value = grow(tokens, random, args.depth, args.arguments, args.max_length)
            if args.min_length <= len(tokens) <= args.max_length:
                break
        else:
            raise UserError(f'of {TRIES:,} expressions none has {args.min_length:,} to {args.max_length:,} tokens: take other '
                            f'lengths, or another --depth or --arguments')
        row = np.zeros(args.max_length + 1, dtype=np.uint8)
        row[-1 - len(tokens):] = [*tokens, value]
        yield row


def main(doc, script, examples, shortest, longest, depth, arguments):
    parser = options(doc, script, examples)
    parser.add_argument('--min_length', type=positive, default=shortest, help='tokens of an example, brackets too, at least')
    parser.add_argument('--max_length', type=positive, default=longest, help='and at most')
    parser.add_argument('--depth', type=positive, default=depth, help='of the nesting: lists in lists, and the digits in them')
    parser.add_argument('--arguments', type=positive, default=arguments, help='of an operator, at most')
    args = parser.parse_args()
    if args.min_length > args.max_length:
        raise UserError(f'--min_length={args.min_length} is more than --max_length={args.max_length}: turn them round')
    if args.arguments < 2:
        raise UserError('--arguments=1 leaves nothing to compare or add: an operator has at least 2')
    random, (count, held) = uniform(np.random.default_rng(args.seed)), with_tenths(args.examples)
    found = distinct(count, lambda n: rows(n, random, args))
    write_task(args.name, 'classify', splits(found[:, :-1], found[:, -1], held), outputs=10, vocab_size=len(TOKENS),
               labels=[*'0123456789'], script=Path(script).name, draw={'as': 'text', 'tokens': TOKENS},
               source={'name': f'ListOps, {args.min_length:,} to {args.max_length:,} tokens, depth {args.depth}, at most '
                               f'{args.arguments} arguments, seed {args.seed}'})


if __name__ == '__main__':
    main(__doc__, __file__, examples=10_000, shortest=500, longest=2000, depth=10, arguments=10)
