"""What a file of plain data must hold, as a table {name: kind}, for checkpoints, meta.json and the records of races and sweeps.

A name with dots leads into dicts.  One that ends in ? may be missing or None.  A kind is one of KINDS, or a tuple of values."""

import json
import math
from pathlib import Path

from harness import UserError


def is_number(v):
    return type(v) in (int, float) and math.isfinite(v)


def is_count(v):
    return type(v) is int and v >= 0


KINDS = {       # what is expected, and whether a value is that
    'text': ('a text', lambda v: isinstance(v, str)),
    'bool': ('true or false', lambda v: isinstance(v, bool)),
    'count': ('a whole number of at least 0', is_count),
    'number': ('a number', is_number),
    'loss': ('a number or infinity', lambda v: is_number(v) or v == math.inf),
    'numbers': ('a list of numbers', lambda v: isinstance(v, list | tuple) and all(map(is_number, v))),
    'counts': ('a list of whole numbers', lambda v: isinstance(v, list) and all(map(is_count, v))),
    'texts': ('a list of texts', lambda v: isinstance(v, list) and all(isinstance(s, str) for s in v)),
    'list': ('a list', lambda v: isinstance(v, list)),
    'dict': ('a dict', lambda v: isinstance(v, dict)),
    'dict of numbers': ('a dict of numbers', lambda v: isinstance(v, dict) and all(map(is_number, v.values()))),
}


def check(content, table, path, advice):
    """Raises UserError if the dict in the file `path` does not hold what the table says.  advice: what to do then."""
    wrong, missing = [], set()
    for name, kind in table.items():
        value, path_to, optional = content, '', name.endswith('?')
        for key in name.removesuffix('?').split('.'):
            if value is not None:
                value, path_to = value.get(key) if isinstance(value, dict) else None, f'{path_to}.{key}'.lstrip('.')
        expected, right = KINDS[kind] if isinstance(kind, str) else (f'one of {", ".join(kind)}', list(kind).__contains__)
        if value is None:
            missing |= set() if optional else {path_to}
        elif not right(value):
            wrong.append(f'its {path_to} is {" ".join(repr(value)[:60].split())}, not {expected}')
    if missing or wrong:
        what = f'lacks {", ".join(sorted(missing))}' if missing else f'is damaged: {wrong[0]}'
        raise UserError(f'{path} {what}: {advice}')


def read(path, table, advice):
    """The dict in a JSON file.  Raises UserError if it cannot be read or is not what the table says."""
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as e:
        raise UserError(f'{path} cannot be read ({e.strerror}): {advice}') from None
    except (ValueError, RecursionError) as e:
        raise UserError(f'{path} is not JSON ({e}): {advice}') from None
    content = content if isinstance(content, dict) else {}
    check(content, table, path, advice)
    return content
