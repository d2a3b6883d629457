"""What a race has come to: figures that can be worked out by hand, sentences that follow from them, a page that stands
alone."""

import base64
import copy
import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from harness import ROOT, flops, report

PIXEL = base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')


def run(seed, loss, **more):
    """A run that has come to its end; its figures are told from `loss`, each another one."""
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


def stopped(word, seed=1):
    return {'seed': seed, word: f'it {word} at step 7'}


# floating-point operations ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind, groups', [(nn.Conv1d, 1), (nn.Conv1d, 4), (nn.Conv1d, 12), (nn.Conv2d, 3), (nn.Conv2d, 12),
                                          (nn.ConvTranspose1d, 4)])
def test_a_convolution_costs_twice_as_much_backward(kind, groups):
    """One multiplication and one addition for each output (of a transposed one: input) and tap that it is made of."""
    conv = kind(12, 24, 5, padding=2, stride=3, groups=groups)
    x = torch.randn(2, 12, *[10] * (conv.weight.dim() - 2), requires_grad=True)
    ends, others = (x.numel(), 24) if kind is nn.ConvTranspose1d else (conv(x).numel(), 12)
    forward = 2 * ends * (others // groups) * 5 ** (x.dim() - 2)
    assert flops.count(lambda: conv(x)) == forward
    assert flops.count(lambda: conv(x).sum().backward()) == 3 * forward
    assert flops.count(lambda: conv(x.detach()).sum().backward()) == 2 * forward        # pixels need no gradient


def test_attention_is_counted_on_a_cpu():
    """Scores and their weighted sum, each of T x T products a head, masked or not: that is what is computed."""
    B, H, T, D = 2, 3, 8, 4
    q, k, v = (torch.randn(B, H, T, D, requires_grad=True) for _ in range(3))
    forward = 2 * (2 * B * H * T * T * D)
    for causal in (False, True):
        assert flops.count(lambda c=causal: F.scaled_dot_product_attention(q, k, v, is_causal=c)) == forward
        step = lambda c=causal: F.scaled_dot_product_attention(q, k, v, is_causal=c).sum().backward()   # noqa: E731
        assert flops.count(step) == 3 * forward


def test_a_whole_gpt():
    """Worked out by hand; the embedding is looked up and costs nothing, all the rest has two gradients a product."""
    c = model.Config.tiny()
    gpt, B, T, C = model.Model(c), 3, c.block_size, c.n_embd
    x = torch.randint(c.vocab_size, (B, T))
    linear = 2 * B * T * (C * 3 * C + C * C + C * 4 * C + 4 * C * C)
    attention = 2 * (2 * B * T * T * C)         # H heads of C / H channels
    head = 2 * B * T * C * c.vocab_size
    forward = c.n_layer * (linear + attention) + head
    assert flops.count(lambda: gpt(x)) == forward
    assert flops.count(lambda: gpt(x, x)[1].backward()) == 3 * forward


def test_what_is_not_called_is_not_counted():
    a = torch.randn(4, 5)
    assert flops.count(lambda: None) == 0 and flops.count(lambda: a + a) == 0
    assert flops.count(lambda: a @ a.T) == 2 * 4 * 5 * 4


# differences --------------------------------------------------------------------------------------------------------------

def student(t):
    """Two-sided p-value with 2 degrees of freedom, in closed form."""
    return 1 - abs(t) / math.sqrt(t * t + 2)


def test_a_paired_t_test():
    r = record(entrant('gpt', {1: 10.0, 2: 20.0, 3: 30.0}), entrant('pic', {1: 11.0, 2: 22.0, 3: 33.0}))
    d, p, n = report.difference(r, r['entrants'][1], 'val_loss')
    assert (d, n) == (2, 3) and p == pytest.approx(student(2 / (1 / math.sqrt(3)))) and 0.07 < p < 0.08
    assert report.difference(r, r['entrants'][0], 'val_loss') is None
    mirrored = record(*r['entrants'][::-1])
    assert report.difference(mirrored, r['entrants'][0], 'val_loss') == (-2, pytest.approx(p), 3)


def test_seeds_are_paired_whatever_their_order_and_whichever_is_missing():
    r = record(entrant('gpt', {1: 10.0, 2: 20.0, 3: 30.0, 4: 99.0}), entrant('pic', {5: 5.0, 3: 33.0, 1: 11.0, 2: 22.0}))
    d, p, n = report.difference(r, r['entrants'][1], 'val_loss')
    assert (d, n) == (2, 3) and p == pytest.approx(student(2 * math.sqrt(3)))
    r['entrants'][0]['runs'][1] = stopped('diverged', 2)
    d, p, n = report.difference(r, r['entrants'][1], 'val_loss')
    assert (d, n) == (2, 2) and math.isnan(p)
    r['entrants'][0]['runs'] = [stopped('failed')]
    assert report.difference(r, r['entrants'][1], 'val_loss') is None


def test_identical_runs_do_not_differ():
    """The t statistic would be 0 / 0."""
    r = record(entrant('gpt', GPT), entrant('copy', GPT))
    assert report.difference(r, r['entrants'][1], 'val_loss') == (0, 1, 3)
    assert 'learn the same' in report.verdicts(r)[0]


@pytest.mark.parametrize('seeds, said', [(1, '1 seed: too few'), (2, '2 seeds: too few')])
def test_too_few_seeds(seeds, said):
    r = record(*(entrant(n, dict(list(losses.items())[:seeds])) for n, losses in (('gpt', GPT), ('pic', PIC))))
    d, p, n = report.difference(r, r['entrants'][1], 'val_loss')
    assert d == pytest.approx(-0.1 if seeds == 1 else -0.095) and math.isnan(p) and n == seeds
    assert said in report.difference_cell(r, r['entrants'][1], 'val_loss')
    sentence, = report.verdicts(r)
    assert f'{seeds} seed{"s are" if seeds > 1 else " is"} too few' in sentence and 'learns' not in sentence, sentence


@pytest.mark.parametrize('which', [0, 1])
@pytest.mark.parametrize('how', ['predicts', 'last_only'])
def test_a_loss_over_all_positions_is_compared_only_where_all_are_learned(which, how):
    r = record()
    assert report.main_figure(r) == 'val_loss'
    changed = r['entrants'][which]
    (changed if how == 'predicts' else changed['settings'])[how] = {'predicts': 'last', 'last_only': True}[how]
    rival = r['entrants'][1]
    assert report.main_figure(r) == 'val_loss_full'
    assert report.difference(r, rival, 'val_loss') is None and report.difference_cell(r, rival, 'val_loss') == ''
    assert report.difference(r, rival, 'val_loss_full') is not None
    assert 'val_loss_full lower by 0.100' in report.verdicts(r)[0]
    assert any(changed['name'] in s and 'one target in 16 tokens read' in s for s in report.notes(r))


def test_a_third_that_learns_otherwise_leaves_the_others_comparable():
    r = record(*record()['entrants'], entrant('seed', PIC, predicts='last'))
    assert report.difference(r, r['entrants'][1], 'val_loss') is not None
    assert report.difference(r, r['entrants'][2], 'val_loss') is None


# sentences and tables -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('shift, said', [
    ((-0.1, -0.09, -0.11), 'pic learns more than gpt from the same 640 tokens: val_loss lower by 0.100 (p 0.0033, 3 seeds)'),
    ((0.1, 0.09, 0.11), 'pic learns less than gpt from the same 640 tokens: val_loss higher by 0.100 (p 0.0033, 3 seeds)'),
    ((-0.1, 0.3, -0.5), 'pic and gpt learn the same from the same 640 tokens, as far as 3 seeds can tell'),
])
def test_verdicts(shift, said):
    r = record(entrant('gpt', GPT), entrant('pic', {s: v + d for (s, v), d in zip(GPT.items(), shift, strict=True)}))
    sentence, = report.verdicts(r)
    assert said in sentence, sentence
    assert (': noise)' in report.text(r)) == ('learn the same' in said)


def test_a_rival_without_a_finished_run():
    r = record(entrant('gpt', GPT), entrant('pic', {}, runs=[stopped('diverged')]))
    assert report.verdicts(r) == ['pic cannot be compared with gpt: no seed of both has come to its end.']


@pytest.mark.parametrize('word', ['diverged', 'failed'])
def test_runs_that_came_to_no_end(word):
    r = record(entrant('gpt', GPT), entrant('pic', {}, runs=[stopped(word, 1), stopped(word, 2)]))
    (_, learned), (_, cost) = report.tables(r)
    assert set(learned[1][2:]) == {word, ''} and set(cost[1][1:]) == {word}
    assert f'pic {word} in 2 of 2 runs: it {word} at step 7' in report.notes(r)
    r['entrants'][1]['runs'].append(run(3, 1.25))               # one of three is left, and its figures are shown
    (_, learned), (_, cost) = report.tables(r)
    assert learned[1][3] == '1.250' and cost[1][1] == '10'
    assert f'pic {word} in 2 of 3 runs: it {word} at step 7' in report.notes(r)


def test_figures_of_a_run_that_diverged_do_not_count():
    r = record(entrant('gpt', {**GPT, 4: 1.0}))
    r['entrants'][0]['runs'][-1]['diverged'] = 'the training loss became nan'
    assert report.values(r['entrants'][0], 'steps').keys() == GPT.keys()


@pytest.mark.parametrize('parameters, told', [(1040, False), (1060, True), (960, False), (900, True)])
def test_more_than_a_twentieth_in_parameters_is_pointed_out(parameters, told):
    r = record(entrant('gpt', GPT), entrant('pic', PIC, parameters=parameters))
    share = f'{parameters / 10 - 100:+.0f}%'
    assert any(f'pic has {share} parameters' in s and '--match' in s for s in report.notes(r)) == told
    assert report.tables(r)[0][1][1][1] == f'{parameters:,}' + (f' ({share}!)' if told else '')


def leaking():
    r = record(notes=['a note of the race'])
    for e in r['entrants']:
        e['settings']['leaking_split'] = True
    return r


def test_a_leak_is_said_before_any_verdict():
    """Who reads 'learns more' first may read no further."""
    told = report.text(leaking())
    assert told.index('THE SPLIT LEAKS') < told.index('learns more') and told.count('THE SPLIT LEAKS') == 1
    assert 'a note of the race' in told and 'LEAKS' not in report.text(record())


def test_a_model_that_sees_its_targets_is_out_of_the_race():
    r = record()
    r['entrants'][1]['leaks'] = True
    assert any('out of the race' in s and 'sees the tokens' in s for s in report.verdicts(r))
    assert not any('learns more' in s for s in report.verdicts(r))


def test_markdown():
    lines = report.markdown(['name', 'a'], [['x', '1.5'], ['longer', '10.25']]).splitlines()
    assert lines == ['| name   |     a |', '| ------ | ----: |', '| x      |   1.5 |', '| longer | 10.25 |']


def test_text():
    r = record(notes=['pic: --n_embd=20 gives 1,000 parameters'], budget=['flops', 2e15], windows=0)
    told = report.text(r)
    for s in ('1.633 ± 0.153', '1.533 ± 0.146', '| bits/character', '- pic learns more than gpt',
              '- pic: --n_embd=20 gives', '2e+15 FLOPs each', 'judged on all windows', 'fingerprint abc', 'a machine'):
        assert s in told, (s, told)
    (headers, rows), (_, cost) = report.tables(r)
    assert cost[0][1:3] == ['10', '640'] and cost[1][5:] == ['5e+06', '300']       # the same for all seeds: no deviation
    assert all(len(row) == len(headers) for row in rows) and rows[0][4] == rows[0][6] == ''
    d, p, _ = report.difference(r, r['entrants'][1], 'val_loss')
    assert rows[1][4] == f'{d:+.3f} (p {p:.2g})'


def test_csv():
    r = record(entrant('gpt', GPT), entrant('pic, the second', PIC), entrant('bad', {}, runs=[stopped('failed')]))
    f = io.StringIO()
    report.write_csv(r, f)
    rows = list(csv.DictReader(io.StringIO(f.getvalue())))
    assert [(row['config'], row['runs']) for row in rows] == [('gpt', '3'), ('pic, the second', '3'), ('bad', '0')]
    for row, e in zip(rows[:2], r['entrants'], strict=False):
        for k in report.FIGURES.keys() & e['runs'][0].keys():
            values = np.array([x[k] for x in e['runs']], dtype=float)
            assert float(row[f'{k}_mean']) == pytest.approx(values.mean(), rel=1e-12)
            assert float(row[f'{k}_std']) == pytest.approx(values.std(ddof=1), rel=1e-9, abs=1e-12)
    d = np.array(list(PIC.values())) - np.array(list(GPT.values()))
    for k in ('val_loss', 'val_loss_full'):
        assert float(rows[1][f'{k}_difference']) == pytest.approx(d.mean())
        assert float(rows[1][f'{k}_p']) == pytest.approx(student(d.mean() / (d.std(ddof=1) / math.sqrt(3))))
        assert rows[0][f'{k}_difference'] == rows[2][f'{k}_difference'] == ''
    assert rows[2]['val_loss_mean'] == rows[2]['val_loss_std'] == ''


# curves -------------------------------------------------------------------------------------------------------------------

def rows_of(points, **more):
    """Rows of metrics.csv; points: {step: val_loss}, None where a row has no validation."""
    return [{'step': s, 'tokens': 64 * s, 'seconds': s / 10, **({} if v is None else {'val_loss': v}), **more}
            for s, v in points.items()]


def test_a_band_over_seeds():
    """Runs on a budget of seconds are evaluated at other moments: what lies between is drawn straight, and nothing is made up
    where a seed has not been."""
    runs = [rows_of({0: 9.0, 10: 4.0, 15: None, 20: 2.0}), rows_of({0: 9.0, 5: 8.0, 15: 3.0, 25: 1.0})]
    e = entrant('gpt', GPT)
    grid, mean, low, high = report.band(runs, e, 'tokens', 'val_loss')
    assert grid.tolist() == [640, 960, 1280]
    assert np.allclose(mean, [(4 + 5.5) / 2, 3, 2]) and np.allclose(low, [4, 3, 2]) and np.allclose(high, [5.5, 3, 2])
    assert np.allclose(report.band(runs, e, 'seconds', 'val_loss')[0], [1, 1.5, 2])
    assert np.allclose(report.band(runs, e, 'flops', 'val_loss')[0], np.array([10, 15, 20]) * 5e6 / 10)


def test_points_that_are_not_numbers_are_not_drawn():
    runs = [rows_of({10: 4.0, 20: math.nan}), rows_of({10: 2.0, 15: math.inf})]
    grid, mean, low, high = report.band(runs, entrant('gpt', GPT), 'tokens', 'val_loss')
    assert [a.tolist() for a in (grid, mean, low, high)] == [[640], [3], [2], [4]]
    nothing = [rows_of({0: 4.0, 10: math.nan}), []]
    assert report.band(nothing, entrant('gpt', GPT), 'tokens', 'val_loss') is None
    assert report.band(runs, entrant('gpt', {}, runs=[stopped('failed')]), 'flops', 'val_loss') is None     # cost unknown


@pytest.mark.parametrize('word', ['diverged', 'failed'])
def test_a_run_that_came_to_no_end_does_not_cut_the_curve_of_the_others(word):
    """The table leaves it out, and so must the mean that is drawn."""
    e = entrant('gpt', {1: 1.5, 2: 1.6})
    e['runs'].append(stopped(word, 3))
    runs = [rows_of({10: 4.0, 20: 2.0}), rows_of({10: 6.0, 20: 4.0}), rows_of({10: 50.0})]
    grid, mean, _, high = report.band(runs, e, 'tokens', 'val_loss')
    assert grid.tolist() == [640, 1280] and mean.tolist() == [5, 3] and high.tolist() == [6, 4]


# the page -----------------------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    """All tags with their attributes, and whether they nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ''
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ('meta', 'img', 'wbr', 'br', 'link'):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.text += data


NASTY = '<script>alert("1 & 2")</script>'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """(folder, record) of a report on two entrants, one of them called what no page would survive unescaped."""
    out = tmp_path_factory.mktemp('report')
    r = record(entrant('gpt', GPT), entrant(NASTY, PIC), notes=[f'a note & {NASTY}'], command=f"compare.py '{NASTY}'")
    r['entrants'][1]['runs'][0]['sample'] = f'ROMEO: {NASTY}\n</pre>'
    r['entrants'][1]['settings']['dims'] = [1, 2]
    r['entrants'][1]['runs'].append(stopped('diverged', 4))
    curves = {e['name']: [rows_of({0: 4.0, 5: 3.0, 10: x.get('val_loss', math.nan)}) for x in e['runs']] for e in r['entrants']}
    report.write(copy.deepcopy(r), curves, {'gpt': {f'a picture & {NASTY}': PIXEL}}, out)
    return out, r


def test_all_files_are_written(written):
    out, r = written
    assert {p.name for p in out.iterdir()} == {'report.html', 'race.png', 'table.md', 'table.csv', 'results.json'}
    assert (out / 'race.png').read_bytes().startswith(b'\x89PNG\r\n')
    assert (out / 'table.md').read_text(encoding='utf-8') == report.text(r)
    kept = json.loads((out / 'results.json').read_text(encoding='utf-8'))
    assert kept == r and report.text(kept) == report.text(r)
    with open(out / 'table.csv', newline='', encoding='utf-8') as f:
        assert [row['config'] for row in csv.DictReader(f)] == ['gpt', NASTY]


def test_the_page_needs_nothing_from_elsewhere(written):
    page = (written[0] / 'report.html').read_text(encoding='utf-8')
    parsed = Page(page)
    assert not parsed.open and not {'script', 'link', 'iframe', 'object', 'base'} & {tag for tag, _ in parsed.tags}
    links = [v for _, attributes in parsed.tags for k, v in attributes.items() if k in ('src', 'href', 'xlink:href', 'srcset')]
    assert links and all(v.startswith(('#', 'data:')) for v in links)
    assert all(s.startswith('#') for s in re.findall(r'url\(["\']?([^)]*)', page)) and '@import' not in page
    images = [attributes['src'] for tag, attributes in parsed.tags if tag == 'img']
    assert [base64.b64decode(s.removeprefix('data:image/png;base64,')) for s in images] == [PIXEL]


def test_the_plots_are_whole_and_take_the_ink_of_the_page(written):
    page = (written[0] / 'report.html').read_text(encoding='utf-8')
    plots = re.findall(r'<svg.*?</svg>', page, re.S)
    assert len(plots) == 3
    for plot, label in zip(plots, report.AXES.values(), strict=True):
        root = ET.fromstring(plot)
        assert root.get('viewBox') and root.get('width') is None and root.get('height') is None     # as wide as the page
        assert any(label in ''.join(t.itertext()) for t in root.iter('{http://www.w3.org/2000/svg}text'))
        assert report.COLOURS[0] in plot and report.COLOURS[1] in plot and 'currentColor' in plot
    assert report.INK not in page
    marks = [i for plot in plots for i in re.findall(r'<clipPath id="(\w+)"', plot)]
    assert len(marks) == len(set(marks)) >= 3       # all three are in one page: a shared name would cut by another's frame


def test_whatever_is_written_is_text(written):
    out, r = written
    page = (out / 'report.html').read_text(encoding='utf-8')
    assert '<script' not in page and '&lt;script&gt;' in page and page.count('</pre>') == 2
    shown = Page(page).text
    for s in (f'ROMEO: {NASTY}\n</pre>', f'a note & {NASTY}', f'a picture & {NASTY}', f"compare.py '{NASTY}'",
              f'{NASTY} diverged in 1 of 4 runs', f'gpt against {NASTY}', 'a text of 1', '1.633 ± 0.153'):
        assert s in shown, s
    assert all(s in shown for s in report.verdicts(r) + report.notes(r))
    assert re.search(r'<code>dims</code></th><td></td><td>\[1, 2\]', page) and '<code>block_size</code>' not in page


def test_a_page_of_a_race_that_nobody_finished(tmp_path):
    r = record(*(entrant(n, {}, runs=[stopped(w)]) for n, w in (('gpt', 'failed'), ('pic', 'diverged'))))
    report.write(r, {'gpt': [[]], 'pic': [rows_of({0: 4.0, 5: math.nan})]}, {}, tmp_path)
    page = Page((tmp_path / 'report.html').read_text(encoding='utf-8')).text
    assert page.count('no run came to its end') == 2 and 'gpt failed in 1 of 1 runs' in page and 'Who sees whom' not in page
    assert (tmp_path / 'race.png').stat().st_size > 1000


@pytest.mark.parametrize('trials, headers, rows', [
    ({('lion', 0.01): 1.0, ('adamw', 0.01): 2.0, ('lion', 0.001): 3.0, ('adamw', 0.001): None},
     ['a, b', '0.001', '0.01'], [['lion', '3.000', '1.000'], ['adamw', 'failed', '2.000']]),
    ({('lion', 0.01): 1.0, ('adamw', 0.01): 2.0, ('lion', 0.001): 3.0},         # not every pair
     ['a', 'b', 'val_loss'], [['lion', '0.01', '1.000'], ['adamw', '0.01', '2.000'], ['lion', '0.001', '3.000']]),
    ({(2,): 1.0, (1,): 2.0}, ['a', 'val_loss'], [['2', '1.000'], ['1', '2.000']])], ids=['grid', 'list', 'one'])
def test_what_a_sweep_has_found(trials, headers, rows):
    record = {'trials': [{'values': dict(zip('ab', key, strict=False))} | ({} if loss is None else {'val_loss': loss})
                         for key, loss in trials.items()]}
    assert report.grid(record) == (headers, rows)


def test_a_leaking_race_shows_what_is_known_by_heart():
    record = json.loads((ROOT / 'results' / 'pacing_leaking.json').read_text(encoding='utf-8'))
    head, _, row = report.short(record).splitlines()[:3]
    cells = [v['accuracy_full'] for v in record['entrants'][0]['runs']]
    assert head.endswith('accuracy |') and f'{sum(cells) / len(cells):.1%}' in row
