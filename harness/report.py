"""
What a race has come to: tables, curves and a page, all from one record of plain data (results.json).

    python -m harness.report        # bring the tables of README.md up to date with the records in results/

record: {'command', 'date', 'machine', 'budget': [kind, amount], 'windows', 'notes', 'data': {'name', 'fingerprint', 'source'},
'entrants': [{'name', 'arch', 'parameters', 'predicts', 'leaks', 'settings': {...}, 'runs': [...]}]}; a run has a 'seed' and
either the figures of FIGURES, or why it has none: 'diverged' or 'failed'.  The record of a race on a task has 'task' too:
{'kind', 'metric', 'guess': {metric: what guessing scores on the test split}}, an entrant what is 'trained' of its parameters,
and a run the figures of the test split.
"""

import base64
import csv
import io
import json
import math
import re
import statistics
from pathlib import Path

import numpy as np

from harness import LEAKS, ROOT
from harness.files import atomic

FIGURES = {     # of a run: title, format
    'steps': ('steps', ',.0f'), 'tokens': ('tokens', ',.0f'), 'seconds': ('seconds', ',.0f'),
    'tokens_per_second': ('tokens/s', ',.0f'), 'flops': ('FLOPs', '.3g'), 'memory': ('peak memory, MiB', ',.0f'),
    'train_loss': ('train loss', '.3f'), 'val_loss': ('val_loss', '.3f'), 'val_loss_full': ('val_loss_full', '.3f'),
    'bits_per_character': ('bits/character', '.3f'), 'accuracy_full': ('accuracy', '.1%'), 'test_loss': ('test loss', '.3f'),
    'accuracy': ('accuracy', '.1%'), 'error': ('error', '.3f'), 'auc': ('ROC-AUC', '.3f')}
METRICS = {'accuracy': 'test accuracy', 'error': 'test error', 'auc': 'test ROC-AUC'}      # of tasks
ENOUGH = 3      # seeds, below which no difference can be told from noise


def budget(record):
    """What each run might spend: '120 seconds', '1,536,000 tokens', '1e+13 FLOPs'."""
    kind, amount = record['budget']
    return f'{format(amount, ",.6g" if amount < 1e6 else ",.0f" if amount < 1e9 else ".3g")} {kind.replace("flops", "FLOPs")}'


def main_figure(record):
    """What all entrants can be judged by: a task's metric; the loss over all positions if all of them learn to predict them,
    else over the last."""
    if 'task' in record:
        return record['task']['metric']
    every = all(e['predicts'] == 'every' and not e['settings']['last_only'] for e in record['entrants'])
    return 'val_loss' if every else 'val_loss_full'


def values(entrant, figure):
    """{seed: value} of the runs that have come to their end."""
    return {r['seed']: r[figure] for r in entrant['runs'] if figure in r and 'diverged' not in r}


def difference(record, entrant, figure):
    """(mean difference from the first entrant over the seeds, p-value of a paired t-test, seeds); p is nan when there are
    too few seeds.  None where the two cannot be compared."""
    first = record['entrants'][0]
    ours, theirs = values(entrant, figure), values(first, figure)
    same = all(e['predicts'] == 'every' and not e['settings']['last_only'] for e in (entrant, first))
    seeds = sorted(ours.keys() & theirs.keys())
    if entrant is first or not seeds or (figure == 'val_loss' and not same):
        return None
    d = [ours[s] - theirs[s] for s in seeds]
    p = math.nan
    if len(seeds) >= ENOUGH:
        from scipy.stats import ttest_1samp
        p = float(ttest_1samp(d, 0).pvalue) if len(set(d)) > 1 else float(d[0] == 0)
    return statistics.mean(d), p, len(seeds)


def amount(figure, d, sign=''):
    """A difference of two figures: points of per cent for an accuracy."""
    return f'{100 * d:{sign}.1f} points' if figure == 'accuracy' else f'{d:{sign}.3f}'


def verdicts(record):
    """For each rival, in a sentence, whether it learned more than the first."""
    spent = f'the same {budget(record)}'
    first, figure, said = record['entrants'][0]['name'], main_figure(record), []
    if any(e['settings']['leaking_split'] for e in record['entrants']):
        said.append('THE SPLIT LEAKS: windows were split at random, and the text of the validation windows was trained on. '
                    'No loss in this table is evidence of anything but the leak.')
    sign = -1 if figure == 'accuracy' else 1        # what is better
    for e in record['entrants'][1:]:
        found = difference(record, e, figure)
        if e['leaks']:
            said.append(f'{e["name"]} is out of the race: {LEAKS}.')
            continue
        if found is None:
            said.append(f'{e["name"]} cannot be compared with {first}: no seed of both has come to its end.')
            continue
        d, p, n = found
        told = f'{METRICS.get(figure, figure)} {"lower" if d < 0 else "higher"} by {amount(figure, abs(d))}'
        if math.isnan(p):
            said.append(f'{e["name"]} against {first}: {told}, but {n} seed{"s are" if n > 1 else " is"} too few to tell that '
                        f'from noise.')
        elif p < 0.05:
            said.append(f'{e["name"]} learns {"more" if sign * d < 0 else "less"} than {first} from {spent}: {told} '
                        f'(p {p:.2g}, {n} seeds).')
        else:
            said.append(f'{e["name"]} and {first} learn the same from {spent}, as far as {n} seeds can tell: {told} '
                        f'(p {p:.2g}).')
    return said


def notes(record):
    """What a reader of the tables has to know."""
    said, entrants = [*record['notes']], record['entrants']
    for e in entrants:
        runs = e['runs']
        more = e['parameters'] / entrants[0]['parameters'] - 1
        if abs(more) > 0.05 and 'task' not in record:
            said.append(f'{e["name"]} has {more:+.0%} parameters: --match=parameters would make them equal.')
        if e['predicts'] == 'last' or e['settings']['last_only']:
            said.append(f'{e["name"]} learns from the last token of each window alone: one target in '
                        f'{e["settings"]["block_size"]} tokens read.')
        for word in ('diverged', 'failed'):
            if stopped := [r for r in runs if word in r]:
                said.append(f'{e["name"]} {word} in {len(stopped)} of {len(runs)} runs: {stopped[0][word]}')
    return said


def cell(entrant, figure):
    """mean ± standard deviation over the seeds, or why there is none."""
    v, form = list(values(entrant, figure).values()), FIGURES[figure][1]
    if not v:
        return 'diverged' if any('diverged' in r for r in entrant['runs']) else 'failed'
    text = format(statistics.mean(v), form)
    return text if len(v) < 2 or len(set(v)) == 1 else f'{text} ± {format(statistics.stdev(v), form)}'


def difference_cell(record, entrant, figure):
    found = difference(record, entrant, figure)
    if found is None:
        return ''
    d, p, n = found
    told = amount(figure, d, '+')
    return told + (f' ({n} seed{"s" * (n > 1)}: too few)' if math.isnan(p) else f' (p {p:.2g}{"" if p < 0.05 else ": noise"})')


def task_table(record):
    """(headers, rows) of what was learned of a task: what guessing scores comes last."""
    task, found = record['task'], [k for k in METRICS if k in record['task']['guess']]
    rows = [[e['name'], f'{e["trained"]:,}', f'{e["parameters"]:,}', *(cell(e, k) for k in ('steps', 'train_loss', 'val_loss')),
             *(c for k in found for c in (cell(e, k), *([difference_cell(record, e, k)] if k == task['metric'] else [])))]
            for e in record['entrants']]
    guess = [c for k in found for c in (format(task['guess'][k], FIGURES[k][1]), *([''] if k == task['metric'] else []))]
    return (['config', 'trained weights', 'of', 'steps', 'train loss', 'val_loss',
             *(c for k in found for c in (METRICS[k], *(['difference'] if k == task['metric'] else [])))],
            [*rows, ['guessing', *[''] * 5, *guess]])


def kind_of(entrant):
    """What a row of a table over several tasks is called, by its settings."""
    s = entrant['settings']
    name = s['mode'].upper() if 'mode' in s else s.get('network', entrant['arch']).upper()
    name += ', shuffled' if s.get('shuffled') else ''
    return f'V-{name}' if s.get('sees') == 'both' and s['mode'] in ('fpt', 'upt') else name


def across(records):
    """(headers, rows) of several tasks: a row for each kind of entrant, a column for each task, and what guessing scores."""
    kinds = list(dict.fromkeys(kind_of(e) for r in records for e in r['entrants']))
    headers = ['', *(f'{r["data"]["name"]}, {METRICS[r["task"]["metric"]].removeprefix("test ")}' for r in records)]
    rows = []
    for kind in kinds:
        found = [[e for e in r['entrants'] if kind_of(e) == kind] for r in records]
        rows.append([kind, *(f'{cell(es[0], r["task"]["metric"])} ({es[0]["trained"]:,})' if es else ''
                             for r, es in zip(records, found, strict=True))])
    tasks = [(r['task']['guess'], r['task']['metric']) for r in records]
    return headers, [*rows, ['guessing', *(format(guess[metric], FIGURES[metric][1]) for guess, metric in tasks)]]


def tables(record):
    """(headers, rows) of what was learned, and of what it cost."""
    first = record['entrants'][0]
    learned, cost = [], []
    for e in record['entrants']:
        more = e['parameters'] / first['parameters'] - 1
        parameters = f'{e["parameters"]:,}' + (f' ({more:+.0%}!)' if abs(more) > 0.05 else '')
        learned.append([e['name'], parameters, cell(e, 'train_loss'),
                        cell(e, 'val_loss'), difference_cell(record, e, 'val_loss'),
                        cell(e, 'val_loss_full'), difference_cell(record, e, 'val_loss_full'),
                        cell(e, 'bits_per_character'), cell(e, 'accuracy_full')])
        cost.append([e['name'], *(cell(e, k) for k in ('steps', 'tokens', 'seconds', 'tokens_per_second', 'flops', 'memory'))])
    title = {k: v[0] for k, v in FIGURES.items()}
    headers = (['config', 'parameters', title['train_loss'], 'val_loss', 'difference', 'val_loss_full', 'difference',
                title['bits_per_character'], title['accuracy_full']])
    return (task_table(record) if 'task' in record else (headers, learned),
            (['config', *(title[k] for k in ('steps', 'tokens', 'seconds', 'tokens_per_second', 'flops', 'memory'))], cost))


def speeds(record):
    """(headers, rows) of bench.py's record of training steps."""
    base = record['speeds'][0]
    rows = [[r['name'], f'{r["parameters"]:,}', f'{r["windows"]} x {r["block_size"]:,}', f'{r["seconds"]:.3g}',
             f'{r["windows"] / r["seconds"]:.3g}', f'{r["windows"] / r["seconds"] / (base["windows"] / base["seconds"]):.2f}',
             f'{r["windows"] * r["block_size"] / r["seconds"]:,.0f}'] for r in record['speeds']]
    return ['config', 'parameters', 'step', 'seconds', 'windows/s', 'ratio', 'tokens/s'], rows


def grid(record):
    """(headers, rows) of what sweep.py has found, best first; if it searched two settings and tried every pair of values, the
    losses with a row for each value of the first and a column for each of the second."""
    trials, names = record['trials'], list(record['trials'][0]['values'])

    def loss(trial):
        return f'{trial["val_loss"]:.3f}' if 'val_loss' in trial else 'failed'

    def shown(value):
        return f'{value:g}' if isinstance(value, float) else str(value)
    found = {tuple(t['values'].values()): loss(t) for t in trials}
    if len(names) == 2:
        down, across = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))       # the best value first
        across = sorted(across) if not any(isinstance(v, str) for v in across) else across
        if len(found) == len(down) * len(across):
            return ([f'{names[0]}, {names[1]}', *map(shown, across)],
                    [[shown(a), *(found[a, b] for b in across)] for a in down])
    return [names[0], *names[1:], 'val_loss'], [[*map(shown, key), value] for key, value in found.items()]


def markdown(headers, rows):
    """A table of Markdown with its columns aligned, so that it reads in a terminal as well."""
    widths = [max(len(r[i]) for r in [headers, *rows]) for i in range(len(headers))]
    pad = [str.ljust] + [str.rjust] * (len(headers) - 1)
    lines = [[f(c, w) for f, c, w in zip(pad, row, widths, strict=True)] for row in (headers, *rows)]
    lines.insert(1, ['-' * widths[0], *('-' * (w - 1) + ':' for w in widths[1:])])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def judged_on(record):
    return 'the test split' if 'task' in record else f'{record["windows"] or "all"} windows'


def text(record):
    """All of it in Markdown."""
    d = record['data']
    about = (f'{budget(record)} each; {d["source"]}, fingerprint {d["fingerprint"]}; judged on {judged_on(record)}; '
             f'{record["date"]}; {record["machine"]}')
    parts = [*(markdown(*t) for t in tables(record)), '\n'.join(f'- {s}' for s in verdicts(record) + notes(record)), about]
    return '\n\n'.join(p for p in parts if p) + '\n'


def short(record):
    """What README.md shows of a record, of a race, a sweep or bench.py: a table, and what it was measured with."""
    if 'speeds' in record:
        return f'{markdown(*speeds(record))}\n\n<sub>{record["date"]}; {record["machine"]}</sub>\n'
    d = record['data']
    if 'trials' in record:
        about = f'one seed; {d["source"]}, fingerprint {d["fingerprint"]}; {record["date"]}; {record["machine"]}'
        return f'{markdown(*grid(record))}\n\n<sub>{about}</sub>\n'
    headers = ['config', 'parameters', 'tokens', 'val_loss', 'difference', 'val_loss_full', 'difference']
    rows = [[e['name'], f'{e["parameters"]:,}', cell(e, 'tokens'), cell(e, 'val_loss'), difference_cell(record, e, 'val_loss'),
             cell(e, 'val_loss_full'), difference_cell(record, e, 'val_loss_full')] for e in record['entrants']]
    if any(e['settings']['leaking_split'] for e in record['entrants']):         # how much of the text is known by heart
        headers.append('accuracy')
        rows = [[*row, cell(e, 'accuracy_full')] for row, e in zip(rows, record['entrants'], strict=True)]
    seeds = len(record['entrants'][0]['runs'])
    about = (f'{budget(record)}, {seeds} seed{"s" * (seeds > 1)}, {judged_on(record)}; {d["source"]}, '
             f'fingerprint {d["fingerprint"]}; {record["date"]}; {record["machine"]}')
    if 'task' in record:
        headers, rows = task_table(record)
    return f'{markdown(headers, rows)}\n\n<sub>{about}</sub>\n'


MARK = re.compile(r'(<!-- (results/[\w.]+\.json(?: results/[\w.]+\.json)*) -->\n).*?(<!-- end -->)', re.S)


def refreshed(readme, root):
    """The text of README.md in which each table behind a mark is that of the record which the mark names; of several tasks, one
    table."""
    def table(found):
        records = [json.loads((root / name).read_text(encoding='utf-8')) for name in found[2].split()]
        return f'{found[1]}\n' + (short(*records) if len(records) == 1 else f'{markdown(*across(records))}\n') + found[3]
    return MARK.sub(table, readme)


def write_csv(record, f):
    figures = [k for k in FIGURES if any(k in r for e in record['entrants'] for r in e['runs'])]
    compared = [k for k in ('val_loss', 'val_loss_full', *METRICS) if k in figures]
    keys = [f'{k}_{what}' for k in figures for what in ('mean', 'std')]
    keys += [f'{k}_{what}' for k in compared for what in ('difference', 'p')]
    writer = csv.DictWriter(f, ['config', 'parameters', 'runs', *keys])
    writer.writeheader()
    for e in record['entrants']:
        row = {'config': e['name'], 'parameters': e['parameters'], 'runs': len(values(e, 'val_loss'))}
        for k in figures:
            v = list(values(e, k).values())
            row |= {f'{k}_mean': statistics.mean(v)} if v else {}
            row |= {f'{k}_std': statistics.stdev(v)} if len(v) > 1 else {}
        for k in compared:
            if found := difference(record, e, k):
                row |= {f'{k}_difference': found[0], f'{k}_p': found[1]}
        writer.writerow(row)


# pictures and the page ------------------------------------------------------------------------------------------------------

COLOURS = ('#d1495b', '#2e86ab', '#3f9c6b', '#d98e04', '#8e6bbf', '#8c6d46')       # on white and on black
INK = '#7f7f7e'         # of axes and text: becomes the page's own colour in report.html
AXES = {'tokens': 'tokens read', 'seconds': 'seconds of training', 'flops': 'FLOPs of training'}


def band(runs, entrant, x, y):
    """Mean, lowest and highest loss of the runs of an entrant along an axis: (grid, mean, low, high), or None.

    runs: rows of metrics.csv, a list for each seed."""
    per_step = next((r['flops'] / r['steps'] for r in entrant['runs'] if r.get('flops')), math.nan)
    lines = []
    ended = [rows for rows, r in zip(runs, entrant['runs'], strict=False) if 'val_loss' in r and 'diverged' not in r]
    for rows in ended or runs:
        points = [(r['step'] * per_step if x == 'flops' else r[x], r[y]) for r in rows if r['step'] and y in r]
        points = [p for p in points if all(map(math.isfinite, p))]
        if points:
            lines.append(np.array(points).T)
    if not lines:
        return None
    grid = np.unique(np.concatenate([line[0] for line in lines]))
    grid = grid[(grid >= max(line[0][0] for line in lines)) & (grid <= min(line[0][-1] for line in lines))]
    losses = np.stack([np.interp(grid, *line) for line in lines])               # (seeds, points)
    return grid, losses.mean(0), losses.min(0), losses.max(0)


def draw(ax, record, curves, x, ink='black'):
    from matplotlib.ticker import EngFormatter
    y, lowest, high = 'val_loss' if 'task' in record else main_figure(record), [], []
    for i, e in enumerate(record['entrants']):
        found = band(curves[e['name']], e, x, y)
        if found is None or not len(found[0]):
            continue
        grid, mean, low, up = found
        colour = COLOURS[i % len(COLOURS)]
        ax.plot(grid, mean, color=colour, lw=2, label=e['name'])
        ax.fill_between(grid, low, up, color=colour, alpha=0.25, lw=0)
        lowest.append(low.min())
        high.append(mean[min(1, len(mean) - 1)])
    if lowest:          # the first steps fall so far that nothing else would be seen
        ax.set_ylim(min(lowest) - 0.02, max(high) + 0.05)
    ax.set(xlabel=AXES[x], ylabel=y if 'task' in record else f'{y}, nats')
    ax.xaxis.set_major_formatter(EngFormatter(sep=' '))
    ax.grid(color=ink, alpha=0.2)
    ax.spines[['top', 'right']].set_visible(False)


def svg(fig):
    """A figure as an <svg> whose ink is the page's own."""
    f = io.StringIO()
    fig.savefig(f, format='svg', transparent=True)
    text = f.getvalue()
    text = text[text.index('<svg'):].replace(INK, 'currentColor')
    head, rest = text.split('>', 1)
    head = ' '.join(w for w in head.split() if not w.startswith(('width=', 'height=')))
    return f'{head}>{rest}'


def write(record, curves, pictures, out):
    """results.json, table.md, table.csv, race.png and report.html in the folder `out`.

    curves: {name: rows of metrics.csv for each seed}.  pictures: {name: {title: PNG}}, what the models see."""
    import matplotlib
    matplotlib.use('Agg')
    import jinja2
    import matplotlib.pyplot as plt
    with atomic(out / 'results.json', 'w') as f:
        json.dump(record, f, indent=1)
    with atomic(out / 'table.md', 'w') as f:
        f.write(text(record))
    with atomic(out / 'table.csv', 'w') as f:
        write_csv(record, f)
    fig, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout='constrained')
    for ax, x in zip(axes, AXES, strict=True):
        draw(ax, record, curves, x)
    if axes[0].lines:
        fig.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=6, frameon=False)
    with atomic(out / 'race.png') as f:
        fig.savefig(f, format='png', dpi=110)
    plt.close(fig)
    plots = []
    style = dict.fromkeys(('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'), INK)
    with plt.rc_context(style | {'svg.fonttype': 'none', 'font.size': 12, 'font.family': 'sans-serif'}):
        for x in AXES:
            fig, ax = plt.subplots(figsize=(4.7, 3.5), layout='constrained')
            draw(ax, record, curves, x, ink=INK)
            plots.append(svg(fig))
            plt.close(fig)
    names = sorted({k for e in record['entrants'] for k in e['settings']})
    settings = [(k, [e['settings'].get(k, '') for e in record['entrants']]) for k in names]
    settings = [(k, v) for k, v in settings if any(w != v[0] for w in v)]
    images = [(e['name'], title, base64.b64encode(png).decode()) for e in record['entrants']
              for title, png in pictures.get(e['name'], {}).items()]
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name('report.html').read_text(encoding='utf-8'))
    page = template.render(record=record, verdicts=verdicts(record), notes=notes(record), tables=tables(record), plots=plots,
                           settings=settings, images=images, colours=COLOURS, figure=main_figure(record),
                           samples=[(e['name'], next((r['sample'] for r in e['runs'] if 'sample' in r), None))
                                    for e in record['entrants']])
    with atomic(out / 'report.html', 'w') as f:
        f.write(page)
    print(text(record))
    print(f'written to {out}/: report.html, race.png, table.md, table.csv, results.json')


if __name__ == '__main__':
    path = ROOT / 'README.md'
    new = refreshed(path.read_text(encoding='utf-8'), ROOT)
    with atomic(path, 'w') as f:
        f.write(new)
