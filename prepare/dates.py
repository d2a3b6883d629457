"""
Dates as people write them in English, to ISO 8601, by character: data/dates.

    python prepare/dates.py [--examples=20000] [--seed=0] [--name=NAME]

    the 3rd of March, 1999      1999-03-03

The days of 1900 to 2099 are divided at random: a tenth for validation, a tenth for testing, the rest for training, so no day
of one split is in another. Each example is a day in a random one of FORMATS, some in capitals or in small letters. With slashes
the month is first, as in the United States, with dots the day.
"""

import datetime
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command
from prepare.common import char_tokenizer, held_out, task_parser, write_pairs

FORMATS = ['{d} {month} {y}', '{month} {d}, {y}', '{d} {mon} {y}', '{mon} {d} {y}', '{d}{th} {month} {y}',
           '{month} {d}{th}, {y}', 'the {d}{th} of {month}, {y}', '{d}{th} of {mon} {y}', '{weekday}, {d} {month} {y}',
           '{day} {mon} {d}, {y}', '{weekday} the {d}{th} of {month} {y}', '{m}/{d}/{y}', '{m:02}/{d:02}/{y}', '{d}.{m}.{y}',
           '{d:02}.{m:02}.{y}', '{d}-{mon}-{y}', '{y}/{m}/{d}', '{y}, {month} {d}']
CASES = [str, str, str, str.lower, str.upper]
FIRST, LAST = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()


def write(day, form, case):
    """(source, target) of a day, an ordinal number, in one of FORMATS and CASES."""
    date = datetime.date.fromordinal(int(day))
    th = 'th' if 10 < date.day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(date.day % 10, 'th')
    text = form.format(d=date.day, m=date.month, y=date.year, th=th, month=f'{date:%B}', mon=f'{date:%b}',
                       weekday=f'{date:%A}', day=f'{date:%a}')
    return case(text), date.isoformat()


def main(argv):
    args = task_parser(__doc__, __file__, 20_000).parse_args(argv)
    rng, held = np.random.default_rng(args.seed), held_out(args.examples)
    days = rng.permutation(np.arange(FIRST, LAST + 1))
    parts = dict(zip(('test', 'val', 'train'), np.split(days, [len(days) // 10, len(days) // 5]), strict=True))
    if held > len(parts['test']):
        raise UserError(f'--examples={args.examples} needs {held:,} days for testing, but 200 years give '
                        f'{len(parts["test"]):,}: choose at most {10 * len(parts["test"]):,}')
    splits = {}
    for split, days in parts.items():
        count = args.examples if split == 'train' else held
        splits[split] = [write(day, FORMATS[rng.integers(len(FORMATS))], CASES[rng.integers(len(CASES))])
                         for day in rng.choice(days, count, replace=count > len(days))]
    write_pairs(args.name, splits, char_tokenizer(*(text for pairs in splits.values() for pair in pairs for text in pair)),
                {'name': f'dates, {args.examples:,} for training, seed {args.seed}'}, Path(__file__).name)


if __name__ == '__main__':
    command(main)
