"""
Metrics of a race, differences between entrants with their p-values, and the sentences that state them.

record, the content of results.json: {'command', 'date', 'machine', 'budget': [kind, amount], 'windows', 'notes',
'data': {'name', 'fingerprint', 'source'},
'entrants': [{'name', 'arch', 'parameters', 'trained', 'predicts', 'leaks', 'settings', 'runs'}]}.

- A run has a 'seed', a 'curve' (not in old records), and either METRICS or the reason why it has none: 'diverged' or 'failed'.
- A run that was repeated has 'repeated': the result of its first attempt.
- A race that has not ended has 'progress': [finished runs, all runs].
- A confirmed race has 'protocol' (race/confirm.py), and once it has ended 'verdicts': confirmed().
- 'floors': [{'name', metrics}] of methods without a network on the same data (extras/floors.py).
- A race on a task has 'task': {'kind', 'metric', 'guess': {metric: that of a constant answer on the test split}}.
"""

import math
import statistics

from harness import LEAKS

METRICS = {     # of a run: title, format
    'steps': ('steps', ',.0f'), 'tokens': ('tokens', ',.0f'), 'seconds': ('seconds', ',.0f'),
    'tokens_per_second': ('tokens/s', ',.0f'), 'flops': ('FLOPs', ''), 'memory': ('peak MiB', ',.0f'),
    'train_loss': ('train loss', '.3f'), 'val_loss': ('val_loss', '.3f'), 'val_loss_full': ('val_loss_full', '.3f'),
    'bits_per_character': ('bits/character', '.3f'), 'bits_per_dimension': ('bits/dimension', '.3f'),
    'accuracy_full': ('accuracy', '.1%'), 'test_loss': ('test loss', '.3f'), 'accuracy': ('accuracy', '.1%'),
    'error': ('error', '.3f'), 'auc': ('ROC-AUC', '.3f')}
TASK_METRICS = {'accuracy': 'test accuracy', 'error': 'test error', 'auc': 'test ROC-AUC'}
HIGHER = ('accuracy', 'accuracy_full', 'auc')       # is better
ENOUGH = 3      # seeds: with fewer there is no p-value


def engineering(x):
    """A number with three digits and a unit: 3.2e11 is '320 G'."""
    if not (x and math.isfinite(x)):
        return f'{x:g}'
    power = max(0, min(5, int(math.log10(abs(x) * 1.0005) // 3)))
    return f'{x / 1000 ** power:.3g} {" kMGTP"[power]}'.strip()


def format_metric(name, value):
    return engineering(value) if name == 'flops' else format(value, METRICS[name][1])


def format_difference(name, d, sign=''):
    """A difference of two metrics: percentage points for an accuracy."""
    return f'{100 * d:{sign}.1f} points' if name.startswith('accuracy') else f'{d:{sign}.3f}'


def format_budget(record):
    """What each run may spend: '120 seconds', '1,536,000 tokens', '10 T FLOPs'."""
    kind, amount = record['budget']
    if kind == 'flops':
        return f'{engineering(amount)} FLOPs'
    return f'{format(amount, ",.6g" if amount < 1e6 else ",.0f" if amount < 1e9 else ".3g")} {kind}'


def learns_all(entrant):
    """Whether it is trained on all positions of a window, so that its val_loss is over all of them."""
    return entrant['predicts'] == 'every' and not entrant['settings']['last_only']


def main_metric(record):
    """The metric that all entrants are compared by: a task's own; val_loss if all entrants are trained on all positions; else
    val_loss_full."""
    if 'protocol' in record:
        return record['protocol']['metric']
    if 'task' in record:
        return record['task']['metric']
    return 'val_loss' if all(map(learns_all, record['entrants'])) else 'val_loss_full'


def second_metric(record):
    """The metric beside val_loss: of pictures, whose last pixel says little, the same in bits."""
    pictures = any('bits_per_dimension' in r for e in record['entrants'] for r in e['runs'])
    return 'bits_per_dimension' if pictures else 'val_loss_full'


def values(entrant, metric):
    """{seed: value} of the runs that finished."""
    return {r['seed']: r[metric] for r in entrant['runs'] if metric in r and 'diverged' not in r}


def difference(record, entrant, metric):
    """(mean difference from the first entrant over the common seeds, p-value of a two-sided paired t-test, seeds).

    p is nan with fewer than ENOUGH seeds, and where all differences are equal but not 0: their deviation is 0, and a t-test
    says nothing.  Returns None where the two cannot be compared."""
    first = record['entrants'][0]
    ours, theirs = values(entrant, metric), values(first, metric)
    seeds = sorted(ours.keys() & theirs.keys())
    same = metric != 'val_loss' or all(learns_all(e) and not e['leaks'] for e in (entrant, first))      # positions
    if entrant is first or not seeds or not same:
        return None
    d, p = [ours[s] - theirs[s] for s in seeds], math.nan
    rounding = 1e-12 * max(abs(ours[s]) + abs(theirs[s]) for s in seeds)
    if len(seeds) >= ENOUGH:
        if max(map(abs, d)) <= rounding:
            p = 1.0
        elif max(d) - min(d) > rounding:
            from scipy.stats import ttest_1samp
            p = float(ttest_1samp(d, 0).pvalue)
    return statistics.mean(d), p, len(seeds)


def holm(p):
    """The p-values of several tests, adjusted by Holm's method."""
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        adjusted[i] = largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
    return adjusted


def paired(d, margin):
    """(95 % interval of the mean, p-value of a mean of 0, p-value of a mean of at least `margin` on either side) of the
    differences d: a paired t-test, and two one-sided ones.  Where all differences are equal there is no deviation for a t-test,
    and the p-values are those of sign tests."""
    from scipy.stats import t
    n, mean, error = len(d), statistics.mean(d), statistics.stdev(d) / math.sqrt(len(d))
    if max(d) - min(d) <= 1e-12 * max(1.0, *map(abs, d)):
        return [mean, mean], 2.0 ** (1 - n) if abs(mean) > 1e-12 else 1.0, 0.5 ** n if abs(mean) < margin else 1.0
    half = t.ppf(0.975, n - 1) * error
    return ([mean - half, mean + half], float(2 * t.sf(abs(mean) / error, n - 1)),
            float(t.sf((margin - abs(mean)) / error, n - 1)))


def confirmed(record):
    """[{'entrant', 'word', 'difference', 'interval', 'p', 'p_equivalent'}] of each rival of a confirmed race against its first
    entrant; empty before the race has ended.

    The p-values are adjusted by Holm's method over the rivals.  word: 'equivalent' if p_equivalent is below 0.05; else 'better'
    or 'worse' if p is; else 'undecided', as where a run diverged (no other figures)."""
    first, metric, found = record['entrants'][0], main_metric(record), []
    if 'progress' in record or any('failed' in r for e in record['entrants'] for r in e['runs']):
        return []
    for e in record['entrants'][1:]:
        ours, theirs, verdict = values(e, metric), values(first, metric), {'entrant': e['name'], 'word': 'undecided'}
        if ours.keys() == theirs.keys() == set(record['protocol']['seeds']):
            d = [ours[s] - theirs[s] for s in ours]
            interval, p, equal = paired(d, record['protocol']['margin'])
            verdict |= {'difference': statistics.mean(d), 'interval': interval, 'p': p, 'p_equivalent': equal}
        found.append(verdict)
    for k in ('p', 'p_equivalent'):
        for v, p in zip(found, holm([v.get(k, 1.0) for v in found]), strict=True):
            v |= {k: p} if k in v else {}
    for v in found:
        if v.get('p_equivalent', 1) < 0.05:
            v['word'] = 'equivalent'
        elif v.get('p', 1) < 0.05:
            v['word'] = 'better' if (v['difference'] > 0) == (metric in HIGHER) else 'worse'
    return found


def format_interval(metric, verdict):
    """A difference with its 95 % interval: '+0.037 [+0.030, +0.044]'."""
    mean, low, high = (format_difference(metric, v, '+') for v in (verdict['difference'], *verdict['interval']))
    return f'{mean} [{low}, {high}]'


def state(v, record):
    """A verdict of confirmed() in words."""
    first, metric, protocol = record['entrants'][0]['name'], main_metric(record), record['protocol']
    if 'p' not in v:
        return f'Confirmed race: {v["entrant"]} against {first} is undecided: not all of their runs reached the end.'
    verb = {'equivalent': f'is equivalent to {first}', 'undecided': f'against {first} is undecided'}
    verb = verb.get(v['word'], f'is {v["word"]} than {first}')
    return (f'Confirmed race: {v["entrant"]} {verb} after {format_budget(record)}: '
            f'{TASK_METRICS.get(metric, metric)} {format_interval(metric, v)}, 95 % interval of {len(protocol["seeds"])} fresh '
            f'seeds; p {v["p"]:.2g}, of a difference of at least {format_difference(metric, protocol["margin"])} '
            f'{v["p_equivalent"]:.2g}.')


def doubt(p, n):
    """Why there is no p-value, or whether the difference is noise."""
    if math.isnan(p):
        return f'{n} seed{"s" * (n > 1)}: too few' if n < ENOUGH else f'equal in {n} seeds: no p'
    return f'p {p:.2g}' + (': noise' if p >= 0.05 else '')


def verdicts(record):
    """One sentence per rival: whether it learned more than the first entrant."""
    budget = f'the same {format_budget(record)}'
    first, metric, sentences = record['entrants'][0]['name'], main_metric(record), []
    if any(e['settings']['leaking_split'] for e in record['entrants']):
        sentences.append('THE SPLIT LEAKS: windows were split at random, so the text of the validation windows was trained on. '
                         'The losses in this table are evidence of the leak only.')
    if 'protocol' in record:
        return [*sentences, *(state(v, record) for v in confirmed(record))]
    better = 1 if metric in HIGHER else -1
    for e in record['entrants'][1:]:
        name, found = e['name'], difference(record, e, metric)
        if e['leaks']:
            sentences.append(f'{name} is not compared: {LEAKS}.')
        elif found is None and record['entrants'][0]['leaks']:
            sentences.append(f'{name} is not compared with {first}: {LEAKS}.')
        elif found is None:
            if 'progress' not in record:
                sentences.append(f'{name} cannot be compared with {first}: no seed has a finished run of both.')
        else:
            d, p, n = found
            change = (f'{TASK_METRICS.get(metric, metric)} {"lower" if d < 0 else "higher"} by '
                      f'{format_difference(metric, abs(d))}')
            if n < ENOUGH:
                sentences.append(f'{name} against {first}: {change}, but {n} seed{"s are" if n > 1 else " is"} too few to '
                                 f'distinguish that from noise.')
            elif math.isnan(p):
                sentences.append(f'{name} against {first}: {change} with each of {n} seeds, so a t-test gives no p-value.')
            elif p < 0.05:
                sentences.append(f'{name} learns {"more" if better * d > 0 else "less"} than {first} from {budget}: {change} '
                                 f'(p {p:.2g}, {n} seeds).')
            else:
                sentences.append(f'{name} against {first} from {budget}: {change}, which {n} seeds do not distinguish from '
                                 f'noise (p {p:.2g}).')
    return sentences


def floors_above(record):
    """The floors that are better than every entrant."""
    metric = main_metric(record)
    sign = 1 if metric in HIGHER else -1
    means = [sign * statistics.mean(v) for e in record['entrants'] if (v := list(values(e, metric).values()))]
    return [f for f in record.get('floors', ()) if means and sign * f.get(metric, -sign * math.inf) > max(means)]


def notes(record):
    """What a reader of the tables must know."""
    sentences, entrants = [*record['notes']], record['entrants']
    if 'progress' in record:
        sentences.insert(0, 'This race has not ended: {} of {} runs.'.format(*record['progress']))
    machines = dict.fromkeys(r['machine'] for e in entrants for r in e['runs'] if 'machine' in r)
    if len(machines) > 1:
        sentences.append(f'The runs are of {len(machines)} machines or settings, so their times are not comparable: '
                         f'{" | ".join(machines)}.')
    if above := floors_above(record):
        sentences.append(f'Better than every entrant, without a network: {", ".join(f["name"] for f in above)}. Differences '
                         f'between entrants say little here.')
    for e in entrants:
        runs, more = e['runs'], e['parameters'] / entrants[0]['parameters'] - 1
        if abs(more) > 0.05 and 'task' not in record:
            sentences.append(f'{e["name"]} has {more:+.0%} parameters: --match=parameters makes them equal.')
        if e['predicts'] == 'last' or e['settings']['last_only']:
            sentences.append(f'{e["name"]} is trained on the last token of each window only: one target per '
                             f'{e["settings"]["block_size"]} tokens.')
        for r in (r for r in runs if 'repeated' in r):
            was = r['repeated']['tokens_per_second']
            now = f', the repetition has {r["tokens_per_second"]:,.0f}' if 'tokens_per_second' in r else ''
            sentences.append(f'{e["name"]}, seed {r["seed"]}, was repeated: its {was:,.0f} tokens/s were more than 10 % from '
                             f'the median of its siblings{now}.')
        for word in ('diverged', 'failed'):
            if stopped := [r for r in runs if word in r]:
                sentences.append(f'{e["name"]} {word} in {len(stopped)} of {len(runs)} runs: {stopped[0][word]}')
    return sentences
