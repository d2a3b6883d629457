"""
Pictures and the page of a race, from its record, and the picture of a record of bench.py windows:

    python -m race.page results/race_120s.json race.png
"""

import base64
import datetime
import io
import itertools
import json
import math
import re
import shlex
import statistics
import textwrap
from pathlib import Path

import numpy as np

from harness import UserError, command, device
from harness.files import atomic
from race.statistics import HIGHER, METRICS, TASK_METRICS, format_budget, format_metric, main_metric, notes, values, verdicts
from race.tables import tables, text, without_shared, write_csv

COLOURS = ('#d1495b', '#2e86ab', '#3f9c6b', '#d98e04', '#8e6bbf', '#8c6d46')       # readable on white and on black
STYLES = ('-', '--', ':')        # of lines, and marks of dots, after as many entrants as there are colours
MARKS = ('o', 's', '^')
INK = '#7f7f7e'         # of axes and text; report.html replaces it by its own colour
AXES = {'tokens': 'tokens', 'seconds': 'seconds of training', 'flops': 'FLOPs of training'}
TASK_AXES = {'step': 'steps', 'seconds': 'seconds of training', 'parameters': 'parameters'}     # an image is one token or many
POINTS = 25             # of a curve that is kept in a record


def curve(rows, metric=None):
    """{'step': [...], 'tokens': [...], ...}: at most POINTS evaluations of metrics.csv, evenly spaced, with the last one.
    metric: that of a task, which is kept if every evaluation has it."""
    keys = [k for k in ('step', 'tokens', 'seconds', 'val_loss', 'val_loss_full') if any(k in r for r in rows)]
    rows = [r for r in rows if all(math.isfinite(r.get(k, math.nan)) for k in keys)]
    if metric and rows and all(math.isfinite(r.get(metric, math.nan)) for r in rows):
        keys.append(metric)
    if len(rows) > POINTS:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, POINTS).round().astype(int)]
    return {k: [r[k] if isinstance(r[k], int) else float(f'{r[k]:.5g}') for r in rows] for k in keys}


def band(entrant, x, y):
    """Mean, lowest and highest y over the seeds of an entrant, along x: (grid, mean, low, high) without the untrained network,
    or None.  Runs that diverged or failed are left out, unless there are no others."""
    per_step = next((r['flops'] / r['steps'] for r in entrant['runs'] if r.get('flops')), math.nan)
    lines = []
    finished = [r for r in entrant['runs'] if 'val_loss' in r and 'diverged' not in r]
    for c in (r.get('curve', {}) for r in finished or entrant['runs']):
        xs = np.array(c.get('step', []), float) * per_step if x == 'flops' else np.array(c.get(x, []), float)
        ys = np.array(c.get(y, []), float)
        if len(xs) == len(ys) and (keep := np.isfinite(xs) & np.isfinite(ys) & (xs > 0)).any():
            lines.append((xs[keep], ys[keep]))
    if not lines:
        return None
    grid = np.unique(np.concatenate([xs for xs, _ in lines]))
    grid = grid[(grid >= max(xs[0] for xs, _ in lines)) & (grid <= min(xs[-1] for xs, _ in lines))]
    stack = np.stack([np.interp(grid, *line) for line in lines])                # (seeds, points)
    return (grid, stack.mean(0), stack.min(0), stack.max(0)) if len(grid) else None


def contest(found, better=-1):
    """Which of the values are close to the best: all before the first gap that is wider than twice the spread so far and than
    a tenth of the best.  better: -1 if low values are good, 1 if high ones are."""
    order = sorted(range(len(found)), key=lambda i: -better * found[i])
    best = found[order[0]] if order else 0
    inside, last = set(), best
    for i in order:
        if abs(found[i] - last) > max(2 * abs(last - best), abs(best) / 10):
            break
        inside.add(i)
        last = found[i]
    return [i in inside for i in range(len(found))]


def axes_of(record):
    """{key of a curve, or 'parameters': label} of the panels of a record."""
    return TASK_AXES if 'task' in record else AXES


def draw_sizes(ax, record):
    """The metric of a task on its test split by the number of parameters, or of trained weights if some are frozen: a dot per
    seed, a line at their mean.  Returns the metric."""
    metric, key, sizes = main_metric(record), 'parameters', []
    if any(e['trained'] != e['parameters'] for e in record['entrants']):
        key = 'trained'
        ax.set_xlabel('trained weights')
    for i, e in enumerate(record['entrants']):
        if found := list(values(e, metric).values()):
            colour, mark = COLOURS[i % len(COLOURS)], MARKS[i // len(COLOURS) % 3]
            ax.plot([e[key]] * len(found), found, mark, color=colour, alpha=0.6, mew=0)
            ax.plot(e[key], statistics.mean(found), '_', color=colour, ms=18, mew=3)
            sizes.append(e[key])
    if max(sizes, default=1) > 10 * min(sizes, default=1):
        ax.set_xscale('log')
    else:
        ax.locator_params(axis='x', nbins=4)
    ax.set_ylabel(TASK_METRICS[metric])
    return metric


def draw_lines(ax, record, x):
    """Curves along x, with a band over the seeds.  Returns the metric."""
    y = main_metric(record)
    if 'task' in record and not all(y in r['curve'] for e in record['entrants'] for r in e['runs'] if r.get('curve')):
        y = 'val_loss'
    bands = {i: b for i, e in enumerate(record['entrants']) if (b := band(e, x, y))}
    inside = dict(zip(bands, contest([mean[-1] for _, mean, _, _ in bands.values()]), strict=True))
    if 'task' in record:        # any value is near enough to be seen
        inside = dict.fromkeys(bands, True)
    near = [b for i, b in bands.items() if inside[i]]
    if near:        # the first quarter of the curves in the contest is far from their ends
        def late(grid, v):
            kept = v[grid >= grid[0] + (grid[-1] - grid[0]) / 4]
            return kept if len(kept) else v[-1:]
        rising = y in HIGHER
        top = max((high if rising else late(grid, high)).max() for grid, _, _, high in near)
        bottom = min((late(grid, low) if rising else low).min() for grid, _, low, _ in near)
        margin = 0.04 * (top - bottom) or 0.1
        ax.set_ylim(bottom - margin, top + margin)
    for i, (grid, mean, low, high) in bands.items():
        colour, label = COLOURS[i % len(COLOURS)], record['entrants'][i]['name']
        if mean[-1] > ax.get_ylim()[1]:
            label += f' (above: {mean[-1]:.2f})'
            ax.annotate('', (0.04 + 0.05 * i, 1.0), (0.04 + 0.05 * i, 0.9), 'axes fraction',
                        arrowprops={'arrowstyle': '->', 'color': colour, 'lw': 2})
        style = i // len(COLOURS) % 3
        ax.plot(grid, mean, STYLES[style], color=colour, lw=2, marker=MARKS[style], ms=3, label=label)
        ax.fill_between(grid, low, high, color=colour, alpha=0.2, lw=0)
    ends = [grid[-1] for grid, *_ in bands.values()]
    if max(ends, default=0) > 20 * min(ends, default=1):        # the cheap ones would be a line on the left
        ax.set_xscale('log')
    else:
        ax.locator_params(axis='x', nbins=6)
    ax.set_ylabel(f'validation {y}' if y in TASK_METRICS else f'{y} (nats)')
    return y


def draw_curves(ax, record, x, ink='black'):
    """A panel: the validation loss of all entrants along x.  Of a task its metric (in old records the loss), and by parameters
    that of the test split."""
    from matplotlib.ticker import EngFormatter, PercentFormatter
    ax.set_xlabel(axes_of(record)[x])
    ax.grid(color=ink, alpha=0.2)
    ax.spines[['top', 'right']].set_visible(False)
    y = draw_sizes(ax, record) if x == 'parameters' else draw_lines(ax, record, x)
    ax.xaxis.set_major_formatter(EngFormatter(sep=' '))
    if METRICS[y][1].endswith('%'):
        ax.yaxis.set_major_formatter(PercentFormatter(1))


def dots_size(record):
    """The figsize for draw_dots: a row is as high as the longest name, which is wrapped."""
    lines = max(row_name(e).count('\n') + 1 for e in without_shared(record)[0]['entrants'])
    return 9, 1.3 + max(0.45, 0.2 * lines) * len(record['entrants'])


def row_name(entrant):
    return textwrap.fill(entrant['name'], 44, break_on_hyphens=False)


def draw_dots(ax, record):
    """The final metric: a row per entrant, a dot per seed, a line at the mean; an arrow at the edge for one that is far behind.
    This is all that a record without curves can show."""
    record, _ = without_shared(record)
    entrants = record['entrants']
    metric = 'val_loss_full' if any('val_loss_full' in r for e in entrants for r in e['runs']) else main_metric(record)
    better = 1 if metric in HIGHER else -1
    found = [list(values(e, metric).values()) for e in entrants]
    means = [statistics.mean(v) if v else -better * math.inf for v in found]
    inside = contest(means, better) if any(found) else [False] * len(found)
    near = [v for v, ok in zip(found, inside, strict=True) if ok for v in v]
    low, high = (min(near), max(near)) if near else (0, 1)
    margin = 0.08 * (high - low) or 0.1
    ax.set_xlim(low - margin, high + margin)
    for row, (e, v) in enumerate(zip(entrants, found, strict=True)):
        colour = COLOURS[row % len(COLOURS)]
        if not v:
            ax.text(low, row, 'diverged' if any('diverged' in r for r in e['runs']) else 'no run', va='center', color=colour)
        elif inside[row]:
            ax.plot(v, [row] * len(v), 'o', color=colour, ms=8, alpha=0.6, mew=0)
            ax.plot([means[row]] * 2, [row - 0.28, row + 0.28], color=colour, lw=3)
        else:
            end = 1 if means[row] > high else 0
            ax.annotate('', (end, row), (end - 0.07 * (2 * end - 1), row), ax.get_yaxis_transform(),
                        arrowprops={'arrowstyle': '-|>', 'color': colour, 'lw': 3})
            ax.text(end - 0.08 * (2 * end - 1), row, format_metric(metric, means[row]), transform=ax.get_yaxis_transform(),
                    va='center', ha='right' if end else 'left', color=colour)
    ax.set_yticks(range(len(entrants)), [row_name(e) for e in entrants], parse_math=False)
    ax.set_ylim(len(entrants) - 0.4, -0.6)
    ax.set_xlabel(f'{TASK_METRICS.get(metric, f"{metric} (nats)")}, {"higher" if better > 0 else "lower"} is better')
    if METRICS[metric][1].endswith('%'):
        ax.xaxis.set_major_formatter(lambda x, _: f'{x:.0%}')
    ax.grid(axis='x', alpha=0.2)
    ax.spines[['top', 'right']].set_visible(False)
    ax.set_title(f'{format_budget(record)} each; a dot per seed, a line at their mean', fontsize=10, loc='left')


def draw_race(record, path):
    """race.png: three panels, or dots if the record has no curves."""
    record, _ = without_shared(record)
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    entrants = record['entrants']
    if not any(r.get('curve', {}).get('step') for e in entrants for r in e['runs']):
        fig, ax = plt.subplots(figsize=dots_size(record), layout='constrained')
        draw_dots(ax, record)
    else:
        fig, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout='constrained')
        for ax, x in zip(axes, axes_of(record), strict=True):
            draw_curves(ax, record, x)
        handles, labels = axes[1].get_legend_handles_labels()
        columns = max(1, min(len(labels), 200 // (max(map(len, labels), default=0) + 8)))
        legend = fig.legend(handles, labels, loc='outside lower center', ncols=columns, frameon=False)
        for t in legend.get_texts():
            t.set_parse_math(False)         # a name may have a $ in it
    with atomic(path) as f:
        fig.savefig(f, format='png', dpi=110)
    plt.close(fig)


def draw_costs(record, path):
    """The costs per token by window, of a record of bench.py windows."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    names, kinds = ([*dict.fromkeys(r[k] for r in record['costs'])] for k in ('name', 'kind'))
    fig, axes = plt.subplots(2, len(kinds), figsize=(5 * len(kinds), 8), layout='constrained', squeeze=False)
    for (row, key), (column, kind) in itertools.product(enumerate(('seconds', 'bytes')), enumerate(kinds)):
        ax = axes[row, column]
        for r in (r for r in record['costs'] if r['kind'] == kind):
            i = names.index(r['name'])
            ax.loglog(r['windows'], r[key], marker='o', ms=4, color=COLOURS[i % len(COLOURS)], label=r['name'],
                      ls=STYLES[i // len(COLOURS) % 3])
        windows = sorted({w for r in record['costs'] for w in r['windows']})
        ax.set(title=f'{kind}, {key} per token', xlabel='tokens in the window')
        ax.set_xticks(windows, [f'{w:,}' for w in windows])
        ax.minorticks_off()
        ax.grid(alpha=0.2)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=4, frameon=False)
    with atomic(path) as f:
        fig.savefig(f, format='png', dpi=90)
    plt.close(fig)


def svg(fig):
    """A figure as an <svg> with the text colour of the page."""
    f = io.StringIO()
    fig.savefig(f, format='svg', transparent=True)
    picture = f.getvalue()
    picture = picture[picture.index('<svg'):].replace(INK, 'currentColor')
    head, rest = picture.split('>', 1)
    head = ' '.join(w for w in head.split() if not w.startswith(('width=', 'height=')))
    return f'{head}>{rest}'


def origin(module, argv, where):
    """What a record of a command `python -m module` begins with: the command, the date and the machine.  where: --device."""
    return {'command': shlex.join(['python', '-m', module, *argv]), 'date': datetime.date.today().isoformat(),
            'machine': device.setup(where, 'auto', compile=False).describe()}


def write_record(record, path):
    """A record as JSON, with each list of numbers on one line."""
    content = re.sub(r'\[[\s\d.,e+-]+\]', lambda m: ' '.join(m[0].split()), json.dumps(record, indent=1))
    with atomic(path, 'w') as f:
        f.write(content)


def write(record, pictures, out):
    """results.json, table.md, table.csv, race.png and report.html in the folder `out`.

    pictures: {name: {title: PNG}}, the influence of each input position."""
    write_record(record, out / 'results.json')
    with atomic(out / 'table.md', 'w') as f:
        f.write(text(record))
    with atomic(out / 'table.csv', 'w') as f:
        write_csv(record, f)
    draw_race(record, out / 'race.png')
    import jinja2
    import matplotlib.pyplot as plt
    plots = []
    style = dict.fromkeys(('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'), INK)
    with plt.rc_context(style | {'svg.fonttype': 'none', 'font.size': 12, 'font.family': 'sans-serif'}):
        for x in axes_of(record):
            fig, ax = plt.subplots(figsize=(4.7, 3.5), layout='constrained')
            draw_curves(ax, record, x, ink=INK)
            plots.append(svg(fig))
            plt.close(fig)
    entrants = record['entrants']
    names = sorted({k for e in entrants for k in e['settings']})
    settings = [(k, [e['settings'].get(k, '') for e in entrants]) for k in names]
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name('page.html').read_text(encoding='utf-8'))
    page = template.render(
        record=record, verdicts=verdicts(record), notes=notes(record), tables=tables(record), plots=plots, colours=COLOURS,
        metric=main_metric(record), settings=[(k, v) for k, v in settings if any(w != v[0] for w in v)],
        images=[(e['name'], title, base64.b64encode(png).decode()) for e in entrants
                for title, png in pictures.get(e['name'], {}).items()],
        samples=[(e['name'], next((r['sample'] for r in e['runs'] if 'sample' in r), None)) for e in entrants])
    with atomic(out / 'report.html', 'w') as f:
        f.write(page)


def main(argv):
    if len(argv) != 2 or argv[0].startswith('-'):
        raise UserError('usage: python -m race.page RECORD.json PICTURE.png')
    try:
        record = json.loads(Path(argv[0]).read_text(encoding='utf-8'))
        (draw_costs if 'costs' in record else draw_race)(record, argv[1])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f'{argv[0]} cannot be drawn ({type(e).__name__}: {e}): name a record of compare.py or of bench.py '
                        f'windows, and a picture to write') from None


if __name__ == '__main__':
    command(main)
