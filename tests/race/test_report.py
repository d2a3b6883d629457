"""What is reported of a race: differences that are worked out by hand, verdicts, tables, curves and the page."""

import base64
import copy
import csv
import io
import json
import math
import re
import statistics as reference
from html import unescape

import numpy as np
import pytest

from race import page, statistics, tables
from race.statistics import difference, verdicts


def run(seed, loss, **more):
    """A finished run whose metrics follow from `loss`, each another one."""
    return {'seed': seed, 'steps': 10, 'tokens': 640, 'seconds': 2.0 + loss, 'tokens_per_second': 320 / loss, 'flops': 5e6,
            'memory': 300.5, 'train_loss': loss - 0.2, 'val_loss': loss, 'val_loss_full': loss + 0.1,
            'bits_per_character': loss / math.log(2), 'accuracy_full': 1 / (1 + loss), 'sample': f'a text of {seed}', **more}


def entrant(name, losses, **more):
    """losses: {seed: val_loss}."""
    settings = {'arch': name, 'last_only': False, 'leaking_split': False, 'block_size': 16}
    return {'name': name, 'arch': 'model', 'parameters': 1000, 'predicts': 'every', 'leaks': False, 'settings': settings,
            'runs': [run(seed, loss) for seed, loss in losses.items()], **more}


GPT, PIC = {1: 1.5, 2: 1.6, 3: 1.8}, {1: 1.4, 2: 1.51, 3: 1.69}


def record(*entrants, **more):
    return {'command': 'python compare.py gpt.py', 'date': '2026-01-02', 'machine': 'a machine', 'budget': ['tokens', 640.0],
            'windows': 200, 'notes': [], 'data': {'name': 'mine', 'fingerprint': 'abc', 'source': 'a text'},
            'entrants': list(entrants) or [entrant('gpt', GPT), entrant('pic', PIC)], **more}


def task_record(metric, results):
    """results: {name: the metric for each seed}."""
    entrants = [entrant(name, {}, trained=5, predicts='task',
                        runs=[{'seed': i, metric: value, 'steps': 10} for i, value in enumerate(values)])
                for name, values in results.items()]
    return record(*entrants, budget=['steps', 10],
                  task={'kind': 'bits', 'metric': metric, 'guess': {metric: 0.5}, 'constant': 'always 9'})


def stopped(word, seed=1):
    return {'seed': seed, word: f'it {word} at step 7'}


def student(t):
    """Two-sided p-value with 2 degrees of freedom, in closed form."""
    return 1 - abs(t) / math.sqrt(t * t + 2)


@pytest.mark.parametrize(('ours', 'theirs', 'expected'), [
    ({1: 11.0, 2: 22.0, 3: 33.0}, {1: 10.0, 2: 20.0, 3: 30.0}, (2, student(2 * math.sqrt(3)), 3)),
    ({5: 5.0, 3: 33.0, 1: 11.0, 2: 22.0}, {1: 10.0, 2: 20.0, 3: 30.0, 4: 99.0}, (2, student(2 * math.sqrt(3)), 3)),
    (GPT, GPT, (0, 1, 3)),                                                      # t is 0 / 0
    ({s: v + 0.1 for s, v in GPT.items()}, GPT, (0.1, math.nan, 3)),            # t is infinite: no noise was seen
    ({1: 1.4, 2: 1.5}, GPT, (-0.1, math.nan, 2)), ({1: 1.4}, GPT, (-0.1, math.nan, 1)),
    ({}, GPT, None), ({7: 1.0}, GPT, None)])
def test_differences_are_paired_by_seed(ours, theirs, expected):
    r = record(entrant('gpt', theirs), entrant('pic', ours))
    found = difference(r, r['entrants'][1], 'val_loss')
    assert found == expected if expected is None else found == pytest.approx(expected, nan_ok=True)
    assert difference(r, r['entrants'][0], 'val_loss') is None


@pytest.mark.parametrize(('shift', 'part', 'doubt'), [
    ((-0.1, -0.09, -0.11), 'learns more than gpt from the same 640 tokens: val_loss lower by 0.100 (p 0.0033, 3', '(p 0.'),
    ((0.1, 0.09, 0.11), 'learns less than gpt from the same 640 tokens: val_loss higher by 0.100 (p 0.0033, 3', '(p 0.'),
    ((-0.1, 0.3, -0.5), 'lower by 0.100, which 3 seeds do not distinguish from noise (p 0.', ': noise)'),
    ((-0.1, -0.1, -0.1), 'lower by 0.100 with each of 3 seeds', '(equal in 3 seeds: no p)'),
    ((-0.1, -0.09), 'lower by 0.095, but 2 seeds', '(2 seeds: too few)'),
    ((-0.1,), 'lower by 0.100, but 1 seed is', '(1 seed: too few)')], ids=str)
def test_verdicts(shift, part, doubt):
    r = record(entrant('gpt', GPT), entrant('pic', {s: v + d for (s, v), d in zip(GPT.items(), shift, strict=False)}))
    sentence, = verdicts(r)
    assert part in sentence and doubt in tables.difference_cell(r, r['entrants'][1], 'val_loss')


def test_higher_accuracy_and_lower_error_are_better():
    results = {'fpt': [0.5, 0.52, 0.51], 'urt': [0.9, 0.91, 0.92]}
    assert verdicts(task_record('accuracy', results))[0].startswith('urt learns more than fpt from the same 10 steps: test acc')
    assert 'learns less' in verdicts(task_record('error', results))[0]
    assert tables.task_table(task_record('accuracy', results))[1][-1][0] == 'chance (always 9)'


@pytest.mark.parametrize('which', [0, 1])
@pytest.mark.parametrize('how', ['predicts', 'last_only'])
def test_val_loss_is_compared_only_between_models_that_learn_all_positions(which, how):
    r = record()
    assert statistics.main_metric(r) == 'val_loss'
    changed, rival = r['entrants'][which], r['entrants'][1]
    (changed if how == 'predicts' else changed['settings'])[how] = {'predicts': 'last', 'last_only': True}[how]
    r['entrants'].append(entrant('third', PIC))
    assert statistics.main_metric(r) == 'val_loss_full' and 'val_loss_full lower by 0.100' in verdicts(r)[0]
    assert difference(r, rival, 'val_loss') is None and tables.difference_cell(r, rival, 'val_loss') == ''
    assert (difference(r, r['entrants'][2], 'val_loss') is None) == (which == 0)
    assert [row[2] == '' for row in tables.tables(r)[0][1]] == [i == which for i in range(3)]       # nor is it shown
    assert any(changed['name'] in s and 'one target per 16 tokens' in s for s in statistics.notes(r))


def test_a_race_on_pictures_is_in_bits_per_dimension():
    r = record()
    for one in (one for e in r['entrants'] for one in e['runs']):
        del one['val_loss_full'], one['bits_per_character'], one['accuracy_full']
        one |= {'bits_per_dimension': one['val_loss'] / math.log(2), 'accuracy': 0.8}
    for shown in (tables.text(r), tables.short(r)):
        assert 'bits_per_dimension' in shown and '-0.144' in shown and 'val_loss_full' not in shown
    assert 'val_loss lower by 0.100' in verdicts(r)[0]


@pytest.mark.parametrize('word', ['diverged', 'failed'])
def test_unfinished_runs(word):
    r = record(entrant('gpt', GPT), entrant('pic', {}, runs=[stopped(word, 1), stopped(word, 2)]))
    first, _, cost = (rows[1] for _, rows in tables.tables(r))
    assert set(first[2:]) == {word, ''} and set(cost[1:]) == {word} and 'cannot be compared' in verdicts(r)[0]
    r['entrants'][1]['runs'].append(run(3, 1.25))               # the third has finished
    first, _, cost = (rows[1] for _, rows in tables.tables(r))
    assert first[2] == '1.250 (1 of 3)' and cost[1] == '10 (1 of 3)'
    assert f'pic {word} in 2 of 3 runs: it {word} at step 7' in statistics.notes(r)
    r['entrants'][1]['runs'][-1]['diverged'] = 'the training loss became nan'       # whatever metrics it has
    assert statistics.values(r['entrants'][1], 'steps') == {}


def test_leaks_and_sizes_and_progress():
    r = record(notes=['a note of the race'], progress=[4, 9])
    r['entrants'][0]['settings']['leaking_split'] = r['entrants'][1]['settings']['leaking_split'] = True
    text = tables.text(r)
    assert text.index('THE SPLIT LEAKS') < text.index('learns more') and 'a note of the race' in text and '4 of 9 runs' in text
    r = record(entrant('gpt', GPT), entrant('pic', PIC, leaks=True))
    assert 'not compared' in verdicts(r)[0] and 'learns' not in verdicts(r)[0] and 'LEAKS' not in tables.text(r)
    first = record(entrant('gpt', GPT, leaks=True), entrant('pic', PIC))
    assert 'pic is not compared with gpt' in verdicts(first)[0] and 'no seed' not in verdicts(first)[0]
    assert [tables.difference_cell(r, r['entrants'][1], k) == '' for k in ('val_loss', 'val_loss_full')] == [True, False]
    for parameters, share in ((1040, None), (1060, '+6%'), (900, '-10%')):
        r = record(entrant('gpt', GPT), entrant('pic', PIC, parameters=parameters))
        assert any(f'pic has {share} parameters' in s for s in statistics.notes(r)) == bool(share)
        assert tables.tables(r)[0][1][1][1] == f'{parameters:,}' + (f' ({share}!)' if share else '')
    r = record(entrant('gpt', GPT), entrant('pic', {}), progress=[3, 6])        # no run of the second one yet
    assert verdicts(r) == [] and tables.cell(r['entrants'][1], 'val_loss') == ''


def test_runs_of_two_machines_are_noted():
    r = record(entrant('gpt', GPT), entrant('pic', GPT))
    for e, machines in zip(r['entrants'], (['A'] * 3, ['A', 'A', 'B']), strict=True):
        for x, machine in zip(e['runs'], machines, strict=False):
            x['machine'] = machine
    assert any('2 machines' in s and 'A | B' in s for s in statistics.notes(r))
    r['entrants'].pop()
    assert not any('machines' in s for s in statistics.notes(r))


def test_numbers_and_text():
    for x, text in ((3.12e10, '31.2 G'), (999.9, '1 k'), (999.4, '999'), (0, '0'), (1.5e18, '1.5e+03 P'), (2.5, '2.5')):
        assert statistics.engineering(x) == text
    text = tables.text(record(notes=['a note'], budget=['flops', 2e15], windows=0))
    for part in ('1.633 ± 0.153', '1.533 ± 0.146', '- pic learns more than gpt', '- a note', '2 P FLOPs each', 'all windows'):
        assert part in text, (part, text)


@pytest.mark.parametrize('name', ['gpt', 'a config with a long name learning_rate=0.01'])
def test_tables_fit_a_terminal(name):
    r = record(*(entrant(f'{name} {i}', {s: v * 1000 + i * s for s, v in GPT.items()}) for i in range(3)))
    lines = [line for line in tables.text(r, 120).splitlines() if line.startswith('|')]
    assert max(map(len, lines)) <= 120 and any(re.search('val_loss_full.* difference', line) for line in lines)
    cells = [c for _, rows in tables.tables(r) for row in rows for c in row]
    assert all(any(c in line for line in lines) for c in cells)         # nothing is lost


def test_csv():
    r = record(entrant('gpt', GPT), entrant('pic, the second', PIC), entrant('bad', {}, runs=[stopped('failed')]))
    tables.write_csv(r, f := io.StringIO())
    rows = list(csv.DictReader(io.StringIO(f.getvalue())))
    assert [(row['config'], row['runs']) for row in rows] == [('gpt', '3'), ('pic, the second', '3'), ('bad', '0')]
    for row, e in zip(rows[:2], r['entrants'], strict=False):
        for k in statistics.METRICS.keys() & e['runs'][0].keys():
            values = [x[k] for x in e['runs']]
            expected = pytest.approx([reference.mean(values), reference.stdev(values)], abs=1e-12)
            assert [float(row[f'{k}_mean']), float(row[f'{k}_std'])] == expected
    d, p, _ = difference(r, r['entrants'][1], 'val_loss')
    assert (float(rows[1]['val_loss_difference']), float(rows[1]['val_loss_p'])) == (d, p)
    assert rows[0]['val_loss_difference'] == rows[2]['val_loss_difference'] == rows[2]['val_loss_mean'] == ''


def rows_of(points):
    """Rows of metrics.csv.  points: {step: val_loss}, None for a row without evaluation."""
    return [{'step': s, 'tokens': 64 * s, 'seconds': s / 10, **({} if v is None else {'val_loss': v})}
            for s, v in points.items()]


def with_curves(e, curves):
    for r, points in zip(e['runs'], curves, strict=True):
        r['curve'] = page.curve(rows_of(points))
    return e


def test_a_kept_curve_is_short_and_finite():
    found = page.curve(rows_of({s: None if s % 2 else 1 / (1 + s) for s in range(201)} | {300: math.nan}))
    assert set(map(len, found.values())) == {25} and (found['step'][0], found['step'][-1]) == (0, 200) and page.curve([]) == {}
    assert page.curve(rows_of({0: 2.123456789, 5: 1.0})) == {'step': [0, 5], 'tokens': [0, 320], 'seconds': [0.0, 0.5],
                                                            'val_loss': [2.1235, 1.0]}


def test_a_band_over_seeds():
    """Runs on a budget of seconds are evaluated at different steps: curves are interpolated, and never extrapolated."""
    curves = {0: 9.0, 10: 4.0, 15: None, 20: 2.0}, {0: 9.0, 5: 8.0, 15: 3.0, 25: 1.0}
    e = with_curves(entrant('gpt', {1: 1.5, 2: 1.6}), curves)
    for x, grid in (('tokens', [640, 960, 1280]), ('seconds', [1, 1.5, 2]), ('flops', [5e6, 7.5e6, 1e7])):
        assert np.allclose(page.band(e, x, 'val_loss'), [grid, [(4 + 5.5) / 2, 3, 2], [4, 3, 2], [5.5, 3, 2]])
    e['runs'].append(stopped('diverged', 3))            # it does not shorten the band
    with_curves(e, [{10: 4.0, 20: 2.0}, {10: 6.0, 20: 4.0}, {10: 50.0, 20: math.nan}])
    assert np.allclose(page.band(e, 'tokens', 'val_loss'), [[640, 1280], [5, 3], [4, 2], [6, 4]])
    e['runs'] = e['runs'][2:]                           # there is no other run, and its FLOPs are unknown
    assert page.band(e, 'tokens', 'val_loss')[1].tolist() == [50] and page.band(e, 'flops', 'val_loss') is None
    assert page.band(entrant('gpt', GPT), 'tokens', 'val_loss') is None


def test_pictures(tmp_path):
    """The axis shows the contest, with names that are no formulas; records with curves and without, of text and of tasks."""
    import matplotlib.pyplot as plt
    for values, better, inside in (([1.54, 1.51, 2.41, 1.56, 1.63], -1, [True, True, False, True, True]), ([], -1, []),
                                   ([0.98, 0.5, 0.97], 1, [True, False, True]), ([1.0, 1.05, 1.14], -1, [True] * 3)):
        assert page.contest(values, better) == inside
    curves = with_curves(entrant('a$_{b', GPT), [{0: 4.0, 5: 2.0, 10: 1.5}] * 3)
    far = with_curves(entrant('far $x', {1: 5.0}), [{0: 9.0, 5: 6.0, 10: 5.0}])
    _, ax = plt.subplots()
    page.draw_curves(ax, record(curves, far), 'tokens')
    assert ax.get_ylim()[1] < 3 and [line.get_label() for line in ax.lines] == ['a$_{b', 'far $x (above: 5.00)']
    _, ax = plt.subplots()
    page.draw_dots(ax, record(entrant('a$_{b', GPT), entrant('far', {1: 9.0}), entrant('none', {})))
    assert ax.get_xlim()[1] < 2.5 and '9.100' in [t.get_text() for t in ax.texts]       # val_loss_full
    assert [t.get_text() for t in ax.get_yticklabels()] == ['a$_{b', 'far', 'none']
    plt.close('all')
    for r in (record(curves, far), record(entrant('$', GPT)), task_record('accuracy', {'fpt': [0.5], 'urt': [0.9]})):
        page.write_record(r, tmp_path / 'a.json')
        assert json.loads((tmp_path / 'a.json').read_text()) == r
        page.main([str(tmp_path / 'a.json'), str(tmp_path / 'a.png')])
        assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
        (tmp_path / 'a.png').unlink()


NASTY = '<script>alert("1 & 2")</script>'


def shown(page):
    return unescape(re.sub('<[^>]*>', '', page))


def test_the_page_stands_alone_and_escapes_everything(tmp_path):
    r = record(entrant('gpt', GPT), entrant(NASTY, PIC), notes=[f'a note & {NASTY}'], command=f"compare.py '{NASTY}'")
    rival = r['entrants'][1]
    rival['runs'][0]['sample'], rival['settings']['dims'] = f'ROMEO: {NASTY}\n</pre>', [1, 2]
    rival['runs'].append(stopped('diverged', 4))
    for e in r['entrants']:
        with_curves(e, [{0: 4.0, 5: 3.0, 10: x.get('val_loss', math.nan)} for x in e['runs']])
    page.write(copy.deepcopy(r), {'gpt': {f'a picture & {NASTY}': b'a PNG'}}, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {'report.html', 'race.png', 'table.md', 'table.csv', 'results.json'}
    assert (tmp_path / 'table.md').read_text(encoding='utf-8') == tables.text(r)
    kept = (tmp_path / 'results.json').read_text(encoding='utf-8')
    assert json.loads(kept) == r and '[ 0, 5, 10 ]' in kept             # a line for each list of numbers
    html = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert not {'script', 'link', 'iframe', 'object', 'base'} & {*re.findall(r'<(\w+)', html)} and '@import' not in html
    links = re.findall(r'(?:src|href|srcset)="([^"]*)|url\(["\']?([^)]*)', html)
    assert links and all(link.startswith(('#', 'data:')) for link in map(''.join, links))
    assert f'"data:image/png;base64,{base64.b64encode(b"a PNG").decode()}"' in html and html.count('<img') == 1
    for s in (f'ROMEO: {NASTY}\n</pre>', f'a note & {NASTY}', f'a picture & {NASTY}', f"compare.py '{NASTY}'", 'a text of 1',
              f'{NASTY} diverged in 1 of 4 runs', '1.633 ± 0.153', *verdicts(r), *statistics.notes(r)):
        assert s in shown(html), s
    assert re.search(r'<code>dims</code></th><td></td><td>\[1, 2\]', html) and '<code>block_size</code>' not in html
    plots = re.findall(r'<svg.*?</svg>', html, re.S)
    for plot, label in zip(plots, page.AXES.values(), strict=True):
        assert all(s in plot for s in (label, *page.COLOURS[:2], 'currentColor', 'viewBox')) and '<svg width' not in plot
    clips = [i for plot in plots for i in re.findall(r'<clipPath id="(\w+)"', plot)]
    assert len(clips) == len(set(clips)) >= 3 and page.INK not in html      # one id twice, and one plot would clip another


def test_the_page_of_a_race_without_finished_runs(tmp_path):
    r = record(*(entrant(n, {}, runs=[stopped(w)]) for n, w in (('gpt', 'failed'), ('pic', 'diverged'))), progress=[2, 6])
    with_curves(r['entrants'][1], [{0: 4.0, 5: math.nan}])
    page.write(r, {}, tmp_path)
    text = shown((tmp_path / 'report.html').read_text(encoding='utf-8'))
    assert text.count('no finished run') == 2 and 'gpt failed in 1 of 1 runs' in text and '2 of 6 runs' in text


def test_curves_of_a_task_show_every_entrant():
    """By steps, as an image is one token or many; a cheap one is no line at the left, and none is above the panel.  They are of
    the metric where every curve has it; the last panel has it by parameters, or by trained weights where some are frozen."""
    import matplotlib.pyplot as plt
    r = task_record('accuracy', {'net': [0.5], 'vit': [0.9]})
    for e, loss, seconds in zip(r['entrants'], (1.2, 9.0), (1, 100), strict=True):
        rows = [{'step': s, 'seconds': s * seconds / 8, 'val_loss': v, 'accuracy': a}
                for s, v, a in ((0, 9.5, 0.1), (2, 9.2, 0.2), (4, 9.1, 0.8), (8, loss, 0.6))]
        e['runs'][0] |= {'val_loss': loss, 'curve': page.curve(rows, 'accuracy')}
        assert page.curve([*rows, rows[-1] | {'accuracy': math.nan}], 'accuracy').keys() == page.curve(rows).keys()
    fig, (first, second, third) = plt.subplots(1, 3)
    assert list(page.axes_of(r)) == ['step', 'seconds', 'parameters']
    page.draw_curves(first, r, 'step')
    assert first.get_ylabel() == 'validation accuracy' and first.get_ylim()[0] > 0.2 and first.get_ylim()[1] > 0.8
    del r['entrants'][1]['runs'][0]['curve']['accuracy']            # an old record
    page.draw_curves(second, r, 'seconds')
    assert second.get_xscale() == 'log' and second.get_ylim()[1] > 9.0 and not second.texts
    assert second.get_ylabel() == 'val_loss (nats)'
    for trained, sizes in ((None, [1000, 20_000]), (5, [5, 20_000])):
        for e, size in zip(r['entrants'], (1000, 20_000), strict=True):
            e['parameters'] = e['trained'] = size
        r['entrants'][0]['trained'] = trained or 1000
        third.clear()
        page.draw_curves(third, r, 'parameters')
        assert third.get_xlabel() == ('trained weights' if trained else 'parameters') and third.get_xscale() == 'log'
        assert sorted({line.get_xdata()[0] for line in third.lines}) == sizes
    first.clear()
    page.draw_curves(first, task_record('accuracy', {f'net {i}': [0.1 * i] for i in range(8)}), 'parameters')
    looks = {(line.get_color(), line.get_marker()) for line in first.lines if line.get_marker() in page.MARKS}
    assert len(looks) == 8 > len(page.COLOURS)
    plt.close(fig)
