"""
The protocol of a confirmed race: a file of plain assignments, written before the race, for compare.py --confirm:

    claim = 'PACING has a lower loss than GPT at equal tokens'
    entrants = ['results/tune_pacing.json', 'results/tune_gpt.json']    # records of sweeps, the claim's first
    metric, margin = 'val_loss', 0.01           # what is compared, and the smallest difference that matters
    tokens = 1_536_000                          # or seconds, flops or steps
    seeds = [2001, 2002, 2003, 2004, 2005, 2006, 2007, 2008]            # the default
    windows = 0                                 # of the test text, the default: all that do not overlap

An entrant is the config of its sweep with the values of the best trial, so that nothing else can be raced.
"""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

from harness import UserError, config, schema
from harness.files import digest
from race.statistics import HIGHER, TASK_METRICS, learns_all

BUDGETS = ('seconds', 'tokens', 'flops', 'steps')
PROTOCOL = {'claim': 'text', 'entrants': 'texts', 'metric': 'text', 'margin': 'number', 'seeds?': 'counts',
            'windows?': 'count', **{f'{k}?': 'number' for k in BUDGETS}}
SWEEP = {'command': 'text', 'machine': 'text', 'words': 'texts', 'validate': ('val', 'tune'), 'settings': 'dict',
         'settings.seed': 'count', 'data.fingerprint': 'text', 'trials': 'list'}
LEAST_SEEDS = 5
FIRST = ('python sweep.py CONFIG --search learning_rate=1e-3,2e-3,4e-3,8e-3 --tune --out=out/tune, and keep '
         'out/tune/results.json under that name')


def read(path):
    """The protocol in a file, as plain data: its names, with 'budget', 'path', 'sha256' and the 'sha256' of each sweep's record
    under 'entrants'.  Raises UserError if it is not complete, or its sweeps do not allow a confirmed race."""
    found, advice = config.run_file(path), 'write it as docs/racing.md shows'
    schema.check(found, PROTOCOL, path, advice)
    known = {k.removesuffix('?') for k in PROTOCOL}
    if unknown := found.keys() - known:
        raise UserError(f'{path} has the unknown name {min(unknown)}: it may have {", ".join(sorted(known))}')
    budget = [[k, float(found[k])] for k in BUDGETS if k in found]
    seeds, margin, records = found.get('seeds', list(range(2001, 2009))), found['margin'], found['entrants']
    for ok, wrong in (
            (len(budget) == 1 and budget[0][1] > 0, f'sets {len(budget)} budgets: set one of {", ".join(BUDGETS)}, above 0'),
            (margin > 0, f'has margin={margin}: set it to the smallest difference that matters, above 0'),
            (margin < 1 or found['metric'] not in HIGHER, f'has margin={margin}, but {found["metric"]} is at most 1: set it to '
                                                          f'the smallest difference that matters, such as 0.01'),
            (len(records) > 1, f'has {len(records)} entrants: name the records of the sweeps of at least 2'),
            (len(set(records)) == len(records), 'names one record twice: name the sweep of each entrant'),
            (len(seeds) >= LEAST_SEEDS, f'has {len(seeds)} seeds: set at least {LEAST_SEEDS}, or leave seeds out for 8'),
            (len(set(seeds)) == len(seeds), 'has a seed twice: set different seeds')):
        if not ok:
            raise UserError(f'{path} {wrong}')
    sweeps = {name: read_sweep(name, seeds) for name in records}
    for name, sweep in sweeps.items():
        kind, amount = sweep.get('budget') or ('', 0)
        if not kind:
            raise UserError(f'{name} was searched without a budget, so nothing says that the others had as much: run '
                            f'{sweep["command"]} with --{budget[0][0]}, then --confirm')
        if kind == budget[0][0] and not 0.5 <= budget[0][1] / amount <= 2:
            raise UserError(f'{path} has a budget of {budget[0][1]:g} {kind}, and the settings of {name} were searched at '
                            f'{amount:g}: set them within a factor of 2')
    for what, of in (('trials', lambda s: len(s['trials'])), ('as budget of a trial', lambda s: s.get('budget'))):
        one, *others = ((name, of(s)) for name, s in sweeps.items())
        if other := [(name, n) for name, n in others if n != one[1]]:
            raise UserError(f'{one[0]} has {one[1]} {what} and {other[0][0]} {other[0][1]}, but every entrant must be searched '
                            f'equally: run {sweeps[other[0][0]]["command"]} with the same, then --confirm')
    return {'claim': found['claim'], 'metric': found['metric'], 'margin': margin, 'budget': budget[0], 'seeds': seeds,
            'windows': found.get('windows', 0), 'entrants': {name: digest(name) for name in records}, 'path': str(path),
            'sha256': digest(path)}, sweeps


def best(sweep):
    """The values of the best trial of a sweep."""
    return min((t for t in sweep['trials'] if t.get('val_loss') is not None), key=lambda t: t['val_loss'])['values']


def read_sweep(path, seeds):
    """The record of a sweep whose best trial is inside what was tried.  Raises UserError."""
    sweep = schema.read(path, SWEEP, f'run {FIRST}')
    trials, seed = sweep['trials'], sweep['settings']['seed']
    for t in trials:
        schema.check(t, {'values': 'dict', 'val_loss?': 'number'}, path, f'run {FIRST}')
    if all(t.get('val_loss') is None for t in trials) or 'learning_rate' not in best(sweep):
        raise UserError(f'{path} has no learning_rate that was searched, or no trial that ended: run {FIRST}')
    if seed in seeds:
        raise UserError(f'seed {seed} is that of {path}, so it is not fresh: set other seeds')

    def number(v):
        return type(v) in (int, float)
    values = best(sweep)
    # a trial that diverged is a neighbour, one that was killed is not
    like = [t['values'] for t in trials if all(number(v) or t['values'].get(k) == v for k, v in values.items())
            and ('val_loss' in t or t.get('failed', '').startswith('diverged'))]
    for name in (k for k, v in values.items() if number(v)):
        low, high, mine = min(v[name] for v in like), max(v[name] for v in like), values[name]
        if mine == high or mine == low != 0:        # nothing is below a dropout or a decay of 0
            raise UserError(f'the best {name} of {path}, {mine:g}, is the {"largest" if mine == high else "smallest"} that was '
                            f'tried, so a better one may lie beyond: repeat its sweep with more values on that side and '
                            f'more trials ({sweep["command"]})')
    return sweep


def config_of(sweep):
    """The config of a sweep with the values of its best trial, as compare.py takes it."""
    return shlex.join([*sweep['words'], *(f'--{k}={v}' for k, v in best(sweep).items())])


def used_seeds(fingerprint, folder, but):
    """{seed: record} of the races on this data, confirmed or explored, in a folder of records, except the record `but`."""
    found = {}
    for path in sorted(folder.glob('*.json')):
        record = json.loads(path.read_text(encoding='utf-8')) if path.stem != but else {}
        if record.get('data', {}).get('fingerprint') == fingerprint:
            found |= {run['seed']: path.name for e in record.get('entrants', ()) for run in e['runs']}
    return found


def numbers(machine):
    """The number format in the description of a machine."""
    return re.search(r'numbers (\w+)|$', machine)[1]


def check(protocol, sweeps, entrants, machine, folder):
    """Raises UserError if a sweep has read the test split, or an entrant is not that of its sweep, or has no such metric, or if
    a seed has been raced on this data.  machine: its description.  folder: of the records of other claims."""
    used = used_seeds(entrants[0].data.fingerprint, folder, Path(protocol['path']).stem)
    if seeds := used.keys() & set(protocol['seeds']):
        raise UserError(f'{protocol["path"]}: seed {min(seeds)} is not fresh: results/{used[min(seeds)]} has raced it on this '
                        f'data: set other seeds')
    if 'answers' in entrants[0].data.meta:
        raise UserError(f'{entrants[0].name}: compare.py judges a text with answers on its validation split, which the sweeps '
                        f'have read: --confirm races other texts and tasks')
    for e, (path, sweep) in zip(entrants, sweeps.items(), strict=True):
        text = e.data.test_indices() is None
        if sweep['validate'] != ('tune' if text else 'val'):
            raise UserError(f'{path} validated on the text that this race is judged on: run {sweep["command"]} --tune')
        if sweep['data']['fingerprint'].removesuffix('-tune') != e.data.fingerprint:
            raise UserError(f'{path} is of other data ({sweep["data"]["fingerprint"]}) than {e.name} ({e.data.fingerprint}): '
                            f'run {sweep["command"]} again')
        if numbers(sweep['machine']) != numbers(machine):
            raise UserError(f'{path} was searched in {numbers(sweep["machine"])}, and this machine computes in '
                            f'{numbers(machine)}: run {sweep["command"]} again, with one dtype for all')
        now = json.loads(json.dumps(asdict(e.settings.train) | asdict(e.model)))
        for k in sorted(now.keys() & sweep['settings'].keys() - {'validate', *best(sweep)}):
            if now[k] != sweep['settings'][k]:
                raise UserError(f'{e.name} has {k}={now[k]}, and its sweep {path} had {sweep["settings"][k]}: run '
                                f'{sweep["command"]} again, or restore its config')
        if e.leaks or e.settings.train.leaking_split:
            raise UserError(f'{e.name} sees its targets or its validation text, so nothing about it can be confirmed: leave '
                            f'{path} out')
        metrics = [k for k in e.data.chance('test') if k in TASK_METRICS] if not text else (
            ['val_loss'] * learns_all({'predicts': e.predicts, 'settings': asdict(e.settings.train)}) +
            ['bits_per_dimension' if e.data.whole else 'val_loss_full'] * (not e.bidirectional))
        if protocol['metric'] not in metrics:
            raise UserError(f'{protocol["path"]}: {e.name} has no {protocol["metric"]} that can be compared: set metric to '
                            f'one of {", ".join(metrics)}')


def pin(protocol, kept, where):
    """Raises UserError if a race that has begun had another protocol.  kept: that protocol; where: the file that holds it."""
    for k in (k for k in protocol if k != 'path'):
        if kept.get(k) != protocol[k]:
            raise UserError(f'{protocol["path"]}: its {k} is {protocol[k]}, but {where} has begun with {kept.get(k)}: restore '
                            f'the file, or write another claim with fresh seeds')
