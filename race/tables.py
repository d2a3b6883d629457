"""
Tables of records, and the tables of README.md and docs/:

    python -m race.tables       # refresh each table between <!-- results/NAME.json --> and <!-- end -->
"""

import csv
import itertools
import json
import math
import re
import statistics

from harness import ROOT, Arguments, UserError, command
from harness.arch import load_arch
from harness.files import atomic
from harness.log import markdown
from race.statistics import (
    HIGHER,
    METRICS,
    TASK_METRICS,
    confirmed,
    difference,
    doubt,
    floors_above,
    format_budget,
    format_difference,
    format_interval,
    format_metric,
    learns_all,
    main_metric,
    notes,
    second_metric,
    values,
    verdicts,
)

WIDTH = 120     # characters of a line in a terminal


def cell(entrant, metric):
    """Mean ± standard deviation over the seeds, or the reason why there is none.  A model that is trained on last positions has
    no val_loss: it would be over other positions than that of the others."""
    if metric == 'val_loss' and entrant['predicts'] != 'task' and not learns_all(entrant) and values(entrant, metric):
        return ''
    v = list(values(entrant, metric).values())
    if not v:
        return next((word for word in ('diverged', 'failed') if any(word in r for r in entrant['runs'])), '')
    text = format_metric(metric, statistics.mean(v))
    deviation = format_metric(metric, statistics.stdev(v)) if len(set(v)) > 1 else '0'
    text = text if deviation == '0' else f'{text} ± {deviation}'
    lost = any(word in r for r in entrant['runs'] for word in ('diverged', 'failed'))
    return f'{text} ({len(v)} of {len(entrant["runs"])})' if lost else text


def difference_cell(record, entrant, metric):
    if 'protocol' in record:        # its metric is the only one that is tested
        found = [v for v in confirmed(record) if v['entrant'] == entrant['name'] and metric == main_metric(record)]
        return ''.join((f'{format_interval(metric, v)}: ' if 'p' in v else '') + v['word'] for v in found)
    found = difference(record, entrant, metric)
    return f'{format_difference(metric, found[0], "+")} ({doubt(*found[1:])})' if found else ''


def floor_rows(record, *columns):
    """A row per floor.  columns: the metric of each column after the first; '' leaves it empty."""
    above = floors_above(record)
    return [[f'floor: {f["name"]}' + ' (above all entrants!)' * (f in above),
             *(format_metric(k, f[k]) if k in f else '' for k in columns)] for f in record.get('floors', ())]


def tables(record):
    """[(headers, rows)] of a race: what was learned, further metrics, and what it cost."""
    entrants = record['entrants']

    def table(*metrics):
        return ['config', *(METRICS[k][0] for k in metrics)], [[e['name'], *(cell(e, k) for k in metrics)] for e in entrants]
    cost = table('steps', 'tokens', 'seconds', 'tokens_per_second', 'flops', 'memory')
    if 'task' in record:
        return [task_table(record), cost]
    rows, second = [], second_metric(record)
    for e in entrants:
        more = e['parameters'] / entrants[0]['parameters'] - 1
        rows.append([e['name'], f'{e["parameters"]:,}' + (f' ({more:+.0%}!)' if abs(more) > 0.05 else ''),
                     *(c for k in ('val_loss', second) for c in (cell(e, k), difference_cell(record, e, k)))])
    rows += floor_rows(record, '', 'val_loss', '', second, '')
    headers, full = ['config', 'parameters', 'val_loss', 'difference', second, 'difference'], second == 'val_loss_full'
    return [(headers, rows), table('train_loss', *(('bits_per_character', 'accuracy_full') if full else ['accuracy'])), cost]


def task_table(record):
    """(headers, rows) of a race on a task.  The last row is what a constant answer scores."""
    task, metrics = record['task'], [k for k in TASK_METRICS if k in record['task']['guess']]
    rows = [[e['name'], f'{e["trained"]:,}', f'{e["parameters"]:,}', *(cell(e, k) for k in ('steps', 'train_loss', 'val_loss'))]
            for e in record['entrants']]
    rows += [[chance_name(task), *[''] * 5], *floor_rows(record, *[''] * 5)]
    headers = ['config', 'trained weights', 'of', 'steps', 'train loss', 'val_loss']
    for k in metrics:
        headers.append(TASK_METRICS[k])
        column = [*(cell(e, k) for e in record['entrants']), format_metric(k, task['guess'][k]),
                  *(row[1] for row in floor_rows(record, k))]
        for row, c in zip(rows, column, strict=True):
            row.append(c)
        if k == main_metric(record):
            headers.append('difference')
            for row, e in itertools.zip_longest(rows, record['entrants']):
                row.append(difference_cell(record, e, k) if e else '')
    return headers, rows


def chance_name(task):
    return f'chance ({task["constant"]})' if task.get('constant') else 'chance'


def label(entrant):
    """The row of an entrant in a table over several tasks."""
    try:
        arch = load_arch(entrant['arch'])
    except UserError:               # the record is older than the removal of its architecture
        arch = None
    if arch and arch.label:
        return arch.label(entrant['settings'])
    return entrant['settings'].get('network', entrant['arch']).upper()


def labels_of(record):
    """The label of each entrant, or its name if another one has the same label, as with another trunk."""
    found = [label(e) for e in record['entrants']]
    return [e['name'] if found.count(name) > 1 else name for e, name in zip(record['entrants'], found, strict=True)]


def across(records):
    """(headers, rows) over several tasks: a row per label, a column per task, and what a constant answer scores."""
    labels = [*map(labels_of, records)]
    headers = ['', *(f'{r["data"]["name"]}, {TASK_METRICS[r["task"]["metric"]].removeprefix("test ")}' for r in records)]
    rows = []
    for name in dict.fromkeys(name for names in labels for name in names):
        found = [r['entrants'][names.index(name)] if name in names else None for r, names in zip(records, labels, strict=True)]
        rows.append([name, *(f'{cell(e, r["task"]["metric"])} ({e["trained"]:,})' if e else ''
                             for r, e in zip(records, found, strict=True))])
    chance = [format_metric(r['task']['metric'], r['task']['guess'][r['task']['metric']]) for r in records]
    rows.append(['chance', *chance])
    if any(r.get('floors') for r in records):
        best = [max(r.get('floors', []), key=lambda f, k=k: f[k] if k in HIGHER else -f[k], default=None)
                for r, k in ((r, r['task']['metric']) for r in records)]
        rows.append(['best floor', *(f'{format_metric(r["task"]["metric"], f[r["task"]["metric"]])} ({f["name"]})' +
                                     '!' * (f in floors_above(r)) if f else '' for r, f in zip(records, best, strict=True))])
    return headers, rows


def speeds(record):
    """(headers, rows) of a record of bench.py train."""
    base = record['speeds'][0]
    rows = [[r['name'], f'{r["parameters"]:,}', f'{r["windows"]} x {r["block_size"]:,}', f'{r["seconds"]:.3g}',
             f'{r["windows"] / r["seconds"]:.3g}', f'{r["windows"] / r["seconds"] / (base["windows"] / base["seconds"]):.2f}',
             f'{r["windows"] * r["block_size"] / r["seconds"]:,.0f}'] for r in record['speeds']]
    return ['config', 'parameters', 'step', 'seconds', 'windows/s', 'ratio', 'tokens/s'], rows


def significant(value):
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def costs(record):
    """Two (headers, rows) of a record of bench.py windows: microseconds and KiB per token, by window.  The last column is the
    factor by which the cost of a token grows when the window doubles, between the two longest windows."""
    windows = sorted({w for r in record['costs'] for w in r['windows']})
    for key, scale in (('seconds', 1e6), ('bytes', 1 / 1024)):
        rows = []
        for r in record['costs']:
            found = dict(zip(r['windows'], r[key], strict=True))
            growth = '-'
            if len(found) > 1:
                (a, b), (x, y) = r['windows'][-2:], r[key][-2:]
                growth = f'{(y / x) ** (1 / math.log2(b / a)):.2f}'
            shown = [significant(found[w] * scale) if w in found else '-' for w in windows]
            rows.append([r['name'], r['kind'], *shown, growth])
        yield ['config', 'pass', *(f'{w:,}' for w in windows), 'growth'], rows


def gpu(record):
    """The table of a record of bench.py gpu, and the results of its other stages, in Markdown."""
    found, rows = record['gpu'], []
    for name in {**found.get('speed', {}), **found.get('compiled', {})}:
        plain, fast = (found.get(stage, {}).get(name, {}) for stage in ('speed', 'compiled'))
        best = max((r for r in (plain, fast) if 'mfu' in r), key=lambda r: r['tokens_per_second'], default={})
        rates = [f'{r["tokens_per_second"]:,.0f}' if 'mfu' in r else 'failed' if r else '' for r in (plain, fast)]
        size = [f'{best["parameters"]:,}', f'{best["windows"]} x {best["block_size"]:,}'] if best else ['', '']
        cost = [f'{best["tflops"]:.1f}', f'{best["mfu"] or 0:.1%}', f'{best["memory"]:,.0f}'] if best else [''] * 3
        rows.append([name, *size, *rates, *cost])
    lines = [f'- {stage}, {name}: ' + ', '.join(f'{k} {v:.4g}' if isinstance(v, float) else f'{k} {v}'
                                                for k, v in result.items() if k != 'took')
             for stage, results in found.items() if stage not in ('speed', 'compiled') for name, result in results.items()]
    headers = ['config', 'parameters', 'step', 'tokens/s', 'compiled', 'TFLOP/s', 'MFU', 'MiB']
    return '\n\n'.join([*([markdown(headers, rows)] if rows else []), *(['\n'.join(lines)] if lines else [])])


def trials(record):
    """(headers, rows) of a sweep, best first.  If it tried every pair of values of two settings: a row per value of the first
    and a column per value of the second."""
    found = {tuple(t['values'].values()): f'{t["val_loss"]:.3f}' if 'val_loss' in t else 'failed' for t in record['trials']}
    names = list(record['trials'][0]['values'])

    def shown(value):
        return f'{value:g}' if isinstance(value, float) else str(value)
    if len(names) == 2:
        down, right = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))        # the best value first
        right = right if any(isinstance(v, str) for v in right) else sorted(right)
        if len(found) == len(down) * len(right):
            return ([f'{names[0]}, {names[1]}', *map(shown, right)],
                    [[shown(a), *(found[a, b] for b in right)] for a in down])
    return [*names, 'val_loss'], [[*map(shown, key), value] for key, value in found.items()]


def searches(records):
    """Sweeps of one setting in one table, in Markdown: a row per config, a column per value that was tried in one of them.
    Raises UserError."""
    settings = {(*t['values'],) for r in records for t in r.get('trials', [{'values': {}}])}
    if len(settings) > 1 or len(*settings) != 1 or any('words' not in r for r in records):
        raise UserError('a table of several sweeps is of one setting, the same for all: give each record a mark of its own')
    words = [[re.sub(r'^config/|\.py$|^--', '', w) for w in r['words']] for r in records]
    names = [' '.join([first, *(w for w in more if not all(w in other for other in words))]) for first, *more in words]
    (setting,), = settings
    found = [{t['values'][setting]: f'{t["val_loss"]:.3f}' if 'val_loss' in t else 'failed' for t in r['trials']}
             for r in records]
    values = sorted({v for trials in found for v in trials})
    return markdown([f'{setting}, val_loss', *(f'{v:g}' if isinstance(v, float) else str(v) for v in values)], [
        [name, *(trials.get(v, '') for v in values)] for name, trials in zip(names, found, strict=True)]) + (
        f'\n\n<sub>one seed; {about(records[0])}</sub>')


def drawn(record):
    """(headers, rows) of a record of extras.drawn: of each part and number of shapes, the share of true images."""
    shares = {'true': 'true', 'reranked': 'reranked', 'floor': 'captions of others', 'rebuilt': 'rebuilt'}
    used = [k for k in shares if k in record['groups'][0]]
    return ['captions', 'shapes', *(shares[k] for k in used)], [
        [g['part'], str(g['shapes']), *(f'{g[k]:.1%}' for k in used)] for g in record['groups']]


def truth(found):
    """(headers, rows) of a record of extras.truth: of each part, the share of true captions."""
    return ['pictures', 'true', 'captions of others', 'those of the data set'], [
        [part, *(f'{row[k]:.1%}' for k in ('true', 'floor', 'same'))] for part, row in found.items()]


def zeroshot(found):
    """A record of extras.zeroshot in Markdown: the accuracies of groups of classes, if it has any, and the recall of images and
    captions."""
    r = found['recall']
    recall = markdown([f'recall, {r["images"]:,} images with {r["captions"]:,} captions', 'at 1', 'at 5'], [
        *([name, *(f'{r[f"{key}_at_{k}"]:.1%}' for k in (1, 5))] for key, name in (
            ('caption', 'the caption of an image'), ('image', 'an image of a caption'))),
        ['chance', *(f'{min(1, k / r["captions"]):.2%}' for k in (1, 5))]])
    if 'classes' not in found:
        return recall
    rows = {f'zero-shot, {found["prompts"][0]!r}': found['prompt'],
            f'zero-shot, {len(found["prompts"])} prompts': found['ensemble'],
            **{f'linear probe, {n} of each class': row for n, row in found['few_shot'].items()}}
    groups = [(group, n) for group, n in found['classes'].items() if n]
    return markdown(['classifier', *(f'{n} classes {group}' for group, n in groups)], [
        [name, *(f'{row[group]:.1%}' for group, _ in groups)] for name, row in rows.items()]) + '\n\n' + recall


def probe(found):
    """(headers, rows) of a record of extras.probe: the test accuracy by layer."""
    layers = enumerate(zip(found['trained'], found['untrained'], strict=True))
    return ['layer', 'trained on pixels', 'random weights'], [
        *([str(i), *(f'{accuracy:.1%}' for accuracy in pair)] for i, pair in layers),
        ['the pixels themselves', f'{found["pixels"]:.1%}', ''], ['chance', f'{found["chance"]:.1%}', '']]


def abilities(record):
    """(headers, rows) of a record of extras.abilities: for each rival and task the accuracy at the longest examples of training
    and at those of twice the length."""
    def shown(accuracy, trained):
        return ', '.join(f'{100 * accuracy[str(n)]:.0f}' for n in (trained, 2 * trained))
    headers = ['accuracy in %', *(f'{task}, {t["trained"]} and {2 * t["trained"]} {t["counted"]}'
                                  for task, t in record['abilities'].items())]
    rows = [[r['name'] + ' (last answer)' * (r['predicts'] == 'last'), *(
        shown(r['tasks'][task]['accuracy'], t['trained']) if task in r['tasks'] else ''
        for task, t in record['abilities'].items())] for r in record['rivals']]
    return headers, [*rows, ['chance', *(shown(t['chance'], t['trained']) for t in record['abilities'].values())]]


# text -------------------------------------------------------------------------------------------------------------------------

def fitted(headers, rows, width=WIDTH):
    """A table as Markdown, split into several that repeat its first column where it is wider than `width` characters."""
    widths = [max(len(r[i]) for r in [headers, *rows]) + 3 for i in range(len(headers))]
    parts, used = [[0]], widths[0] + 1
    for i in range(1, len(headers)):
        # a difference stays beside its metric
        wide = widths[i] + (widths[i + 1] if i + 1 < len(headers) and headers[i + 1] == 'difference' else 0)
        if used + wide > width and len(parts[-1]) > 1 and headers[i] != 'difference':
            parts.append([0])
            used = widths[0] + 1
        parts[-1].append(i)
        used += widths[i]
    return '\n\n'.join(markdown([headers[i] for i in part], [[r[i] for i in part] for r in rows]) for part in parts)


def about(record):
    d = record['data']
    return f'{d["source"]}, fingerprint {d["fingerprint"]}; {record["date"]}; {record["machine"]}'


def judged_on(record):
    return 'the test split' if 'task' in record else f'{record["windows"] or "all"} windows'


def text(record, width=None):
    """A race in Markdown: its tables, verdicts and notes.  width: split wider tables, for a terminal."""
    parts = [markdown(*t) if width is None else fitted(*t, width) for t in tables(record)]
    parts += ['\n'.join(f'- {s}' for s in verdicts(record) + notes(record)),
              f'{format_budget(record)} each; judged on {judged_on(record)}; FLOPs of matrix products and convolutions only; '
              f'{about(record)}']
    return '\n\n'.join(p for p in parts if p) + '\n'


def without_shared(record):
    """(the record, and if it is of a confirmed race, in its names only what differs between the entrants; what all share)."""
    if 'protocol' not in record:
        return record, ''
    names = [re.split(r' (?=\w+=)', e['name']) for e in record['entrants']]
    shared = [word for word in names[0][1:] if all(word in name[1:] for name in names)]
    return record | {'entrants': [e | {'name': ' '.join(word for word in name if word not in shared)}
                                  for e, name in zip(record['entrants'], names, strict=True)]}, ' '.join(shared)


def measured(record):
    """The tables of a record of bench.py, in Markdown."""
    if 'speeds' in record:
        return markdown(*speeds(record))
    if 'costs' in record:
        return '\n\n'.join(f'{unit} per token:\n\n{markdown(*table)}' for unit, table in zip(
            ('Microseconds', 'KiB'), costs(record), strict=True))
    headers = [*dict.fromkeys(name for row in record['rows'] for name in row)]
    return markdown(headers, [[format_cell(row.get(name, '')) for name in headers] for row in record['rows']])


def format_cell(value):
    return value if isinstance(value, str) else f'{value:,}' if isinstance(value, int) else significant(value)


def short(record):
    """The table of a record in README.md and docs/, of a race, a sweep or bench.py, and what it was measured with."""
    if {'speeds', 'costs', 'rows'} & record.keys():
        return f'{measured(record)}\n\n<sub>{record["date"]}; {record["machine"]}</sub>\n'
    if 'abilities' in record:
        return (f'{markdown(*abilities(record))}\n\n<sub>{record["steps"]:,} steps of {record["examples"]} examples, one seed, '
                f'the best of the rates {record["rates"]}; {record["date"]}; {record["machine"]}</sub>\n')
    if 'groups' in record:
        quality = record['codebook']
        return (f'{markdown(*drawn(record))}\n\n<sub>{record["samples"]} images of each caption, temperature '
                f'{record["temperature"]}, top_p {record["top_p"]}, guidance {record["guidance"]}, after {record["step"]:,} '
                f'steps; pictures of the data set rebuilt: PSNR {quality["psnr"]:.1f} dB, perplexity of the codes '
                f'{quality["perplexity"]:.1f}; {record["date"]}; {record["machine"]}</sub>\n')
    if 'zeroshot' in record:
        return f'{zeroshot(record["zeroshot"])}\n\n<sub>{record["date"]}; {record["machine"]}</sub>\n'
    for kind, table in (('truth', truth), ('probe', probe)):
        if kind in record:
            return f'{markdown(*table(record[kind]))}\n\n<sub>{record["date"]}; {record["machine"]}</sub>\n'
    if 'gpu' in record:
        return f'{gpu(record)}\n\n<sub>{record["date"]}; {record["machine"]}</sub>\n'
    if 'trials' in record:
        return f'{markdown(*trials(record))}\n\n<sub>one seed; {about(record)}</sub>\n'
    second, (record, shared) = second_metric(record), without_shared(record)
    headers = ['config', 'parameters', 'tokens', 'val_loss', 'difference', second, 'difference']
    rows = [[e['name'], f'{e["parameters"]:,}', cell(e, 'tokens'), cell(e, 'val_loss'), difference_cell(record, e, 'val_loss'),
             cell(e, second), difference_cell(record, e, second)] for e in record['entrants']]
    if any(e['settings']['leaking_split'] for e in record['entrants']):         # shows how much of the text is memorised
        headers.append('accuracy')
        rows = [[*row, cell(e, 'accuracy_full')] for row, e in zip(rows, record['entrants'], strict=True)]
    rows += [row[:len(headers)] for row in floor_rows(record, '', '', 'val_loss', '', second, '', 'accuracy_full')]
    if 'task' in record:
        headers, rows = task_table(record)
    seeds, protocol = len(record['entrants'][0]['runs']), ''
    if 'protocol' in record:
        margin = format_difference(main_metric(record), record['protocol']['margin'])
        protocol = (f'; difference with its 95 % interval, margin {margin}, {record["protocol"]["path"]}' +
                    (f'; all with {shared}' if shared else ''))
    return (f'{markdown(headers, rows)}\n\n<sub>{format_budget(record)}, {seeds} seed{"s" * (seeds > 1)}, {judged_on(record)}'
            f'{protocol}; {about(record)}</sub>\n')


def write_csv(record, f):
    metrics = [k for k in METRICS if any(k in r for e in record['entrants'] for r in e['runs'])]
    compared = [k for k in ('val_loss', 'val_loss_full', 'bits_per_dimension', *TASK_METRICS) if k in metrics]
    keys = [f'{k}_{part}' for k in metrics for part in ('mean', 'std')]
    keys += [f'{k}_{part}' for k in compared for part in ('difference', 'p')]
    writer = csv.DictWriter(f, ['config', 'parameters', 'runs', *keys])
    writer.writeheader()
    for e in record['entrants']:
        row = {'config': e['name'], 'parameters': e['parameters'], 'runs': len(values(e, 'val_loss'))}
        for k in metrics:
            v = list(values(e, k).values())
            row |= {f'{k}_mean': statistics.mean(v)} if v else {}
            row |= {f'{k}_std': statistics.stdev(v)} if len(v) > 1 else {}
        for k in compared:
            if found := difference(record, e, k):
                row |= {f'{k}_difference': found[0], f'{k}_p': found[1]}
        writer.writerow(row)


MARK = re.compile(r'(<!-- (results/[\w.]+\.json(?: results/[\w.]+\.json)*) -->\n).*?(<!-- end -->)', re.S)


def refreshed(page, root):
    """The text of a page in which each table after a mark is that of the record which the mark names; of several records, one
    table over their tasks, or of sweeps over their values.  The hardware stands below the first table of a page that was
    measured on it."""
    machines = set()

    def table(found):
        records = [json.loads((root / name).read_text(encoding='utf-8')) for name in found[2].split()]
        if len(records) > 1:
            made = searches(records) if any('trials' in r for r in records) else markdown(*across(records))
            return f'{found[1]}\n{made}\n{found[3]}'
        machine = records[0]['machine']
        shown = short(records[0]).replace(f'; {machine}', '' if machine in machines else f'; {machine}')
        machines.add(machine)
        return f'{found[1]}\n{shown}{found[3]}'
    return MARK.sub(table, page)


def main(argv):
    Arguments(description=__doc__).parse_args(argv)
    for path in (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))):
        old = path.read_text(encoding='utf-8')
        new = refreshed(old, ROOT)
        if new != old:
            with atomic(path, 'w') as f:
                f.write(new)
            print(f'{path.relative_to(ROOT)}: refreshed')


if __name__ == '__main__':
    command(main)
