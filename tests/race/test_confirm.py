"""A confirmed race: the whole path from two sweeps to a record, what is refused, and the arithmetic of its verdicts."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import printed, sentence, train_here
from test_compare import FIGURES
from test_report import entrant, record

import compare
from extras import floors
from harness import checkpoint, data, device
from harness.files import digest
from race import confirm, processes, statistics, tables
from train import evaluate

PROTOCOL = ("claim = 'pic against gpt'\nentrants = ['gpt.json', 'pic.json']\n"
            "metric, margin, steps = 'val_loss', 0.5, 6\nseeds = {}\n")


def write_record(path, folder, name):
    """A record of sweep.py of three rates, as if its trials had had losses of 2.0, 1.5 and 1.9."""
    e, = compare.enter([f'{folder}/{name}.py --validate=tune'], [])[0]
    record = {'command': f'python sweep.py {name}.py', 'words': [f'{folder}/{name}.py'], 'validate': 'tune',
              'budget': ['steps', 3], 'settings': compare.settings_of(e), 'machine': 'numbers float32',
              'data': {'fingerprint': e.data.fingerprint},
              'trials': [{'values': {'learning_rate': rate}, 'val_loss': loss}
                         for rate, loss in ((1e-3, 2.0), (2e-3, 1.5), (4e-3, 1.9))]}
    path.write_text(json.dumps(record))


@pytest.fixture
def claim(race_configs, tmp_path, monkeypatch):
    """A protocol with records of sweeps, in the folder of this process; results/ is there, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, 'RESULTS', tmp_path / 'results')
    for name, value in (('commit', lambda: 'abc'), ('changed_since', lambda _: False), ('uncommitted', lambda _: [])):
        monkeypatch.setattr(compare, name, value)
    (tmp_path / 'results').mkdir()
    for name in ('gpt', 'pic'):
        write_record(tmp_path / f'{name}.json', race_configs, name)
    (tmp_path / 'claim.py').write_text(PROTOCOL.format([1, 2, 3, 4, 5]))
    return tmp_path / 'claim.py'


def test_from_sweeps_to_a_verdict(race_configs, dataset, claim, monkeypatch):
    """Two sweeps of three rates that never open val.bin, then five seeds of each, judged on all of it; resumed after a stop."""
    sweep = pytest.importorskip('sweep', exc_type=ImportError)
    pytest.importorskip('optuna', reason='sweep.py searches with it')
    text, opened, real = data.TextData(dataset), [], data.TextData._open
    monkeypatch.setattr(data.TextData, '_open', lambda self, split: opened.append(split) or real(self, split))
    monkeypatch.setattr(sweep, 'train', train_here)
    for name in ('gpt', 'pic'):
        printed(sweep.main, [race_configs / f'{name}.py', '--search', 'learning_rate=1e-5,2e-3,9', '--steps=6', '--tune',
                             '--trials=3', f'--out={claim.parent / name}'])
        shutil.copy(claim.parent / name / 'results.json', claim.parent / f'{name}.json')
        assert 'validate' not in (claim.parent / name / 'best.py').read_text()
    assert set(opened) == {'train'}
    trained = []

    def train(words, folder, *_):
        trained.append(folder.name)
        if len(trained) == 5:
            raise KeyboardInterrupt
        opened.clear()
        assert train_here(words, folder) is None and set(opened) == {'train'}
    monkeypatch.setattr(compare, 'train', train)
    with pytest.raises(KeyboardInterrupt):
        printed(compare.main, [f'--confirm={claim}'])
    assert not (claim.parent / 'results' / 'claim.json').exists()
    assert 'Confirmed' not in (claim.parent / 'out' / 'claim' / 'table.md').read_text()
    monkeypatch.setattr(floors, 'trees', lambda *_: {'name': 'trees', 'val_loss_full': 3.0})
    shown = printed(compare.main, [f'--confirm={claim}', '--floors'])
    assert len(trained) == 11 and len(set(trained)) == 10
    kept = json.loads((claim.parent / 'results' / 'claim.json').read_text())
    assert kept['commit'] == 'abc'
    assert kept['protocol'].items() >= {'margin': 0.5, 'sha256': digest(claim), 'seeds': [1, 2, 3, 4, 5]}.items()
    assert kept['protocol']['entrants'] == {f'{n}.json': digest(f'{n}.json') for n in ('gpt', 'pic')}
    assert [e['settings']['learning_rate'] for e in kept['entrants']] == [2e-3, 2e-3]
    machine = device.setup('cpu', 'float32', False)
    for e in kept['entrants']:
        assert [r['seed'] for r in e['runs']] == [1, 2, 3, 4, 5]
        assert all(r['ended'] and r['tokens_per_second'] and 'commit' in r and r['curve'] == {} for r in e['runs'])
        model = checkpoint.load_model(claim.parent / 'out' / 'claim' / f'{e["name"].replace(" ", "_")}-3' / 'ckpt.pt')[0]
        expected = evaluate(model, text, text.val_indices(0, 16), 64, machine)
        assert e['runs'][2]['val_loss'] == pytest.approx(expected['val_loss'], rel=1e-5)
    assert kept['floors'][-1]['name'] == 'trees' and '| floor: equal probabilities ' in shown
    verdict, = kept['verdicts']
    assert verdict == statistics.confirmed(kept)[0] and verdict['word'] in ('better', 'worse', 'equivalent', 'undecided')
    assert f'Confirmed race: {verdict["entrant"]} ' in shown and f': {verdict["word"]} |' in tables.short(kept)
    assert 'margin 0.500, ' in tables.short(kept)
    monkeypatch.setattr(compare, 'train', lambda *_: pytest.fail('a run was started'))
    printed(compare.main, [f'--confirm={claim}'])
    path, without = claim.parent / 'results' / 'claim.json', {k: v for k, v in kept.items() if k != 'floors'}
    path.write_text(json.dumps(without))                # floors can be added later
    monkeypatch.setattr(compare, 'commit', lambda: 'def')
    monkeypatch.setattr(compare, 'changed_since', lambda _: True)       # by other code, because all runs have ended
    printed(compare.main, [f'--confirm={claim}'])
    assert json.loads(path.read_text())['floors'] == kept['floors'] and json.loads(path.read_text())['commit'] == 'abc'
    claim.write_text(claim.read_text().replace('0.5', '0.1'))
    for where in ('results/claim.json', 'out/claim/race.json'):     # each of them binds
        said = sentence(compare.main, [f'--confirm={claim}'])
        assert 'its margin is 0.1,' in said and where in said and 'with 0.5' in said
        (claim.parent / where).unlink()


@pytest.mark.parametrize(('old', 'new', 'parts'), [
    ('pic.json', 'absent.json', ['absent.json', 'sweep.py', '--tune']), ("'pic.json'", "'gpt.json'", ['one record twice']),
    (", 'pic.json'", '', ['1 entrants', '2']), ('[1, 2, 3, 4, 5]', '[1, 2, 3, 4]', ['4 seeds', '5']),
    ('[1, 2, 3, 4, 5]', '[1, 2, 3, 4, 1]', ['a seed twice']), ('[1, 2, 3, 4, 5]', '[1, 2, 3, 4, 1337]', ['1337', 'gpt.json']),
    ('0.5, 6', '0, 6', ['margin=0']), ('0.5', '"much"', ['margin', 'a number']), ('steps = ', 'epochs = ', ['epochs', 'steps']),
    ("'val_loss'", "'accuracy'", ['no accuracy', 'val_loss, val_loss_full']), ('claim = ', '', ['claim']),
    ('claim = ', 'tokens = 9\nclaim = ', ['2 budgets'])], ids=str)
def test_protocols_that_are_refused(claim, old, new, parts):
    claim.write_text(claim.read_text().replace(old, new) if claim.read_text().count(old) else pytest.fail(old))
    said = sentence(compare.main, [f'--confirm={claim}'])
    assert all(part in said for part in parts) and not (claim.parent / 'out').exists(), said


@pytest.mark.parametrize(('change', 'parts'), [
    (lambda s: s.pop('validate'), ['validate', 'sweep.py']), (lambda s: s.update(budget=['steps', 4]), ["['steps', 4]"]),
    (lambda s: s.update(budget=['steps', 2]), ['6 steps', 'at 2', 'factor of 2']),
    (lambda s: s.update(budget=None), ['without a budget']),
    (lambda s: s.update(machine='numbers bfloat16'), ['bfloat16', 'float32']),
    (lambda s: s['trials'][0].update(failed='killed', val_loss=None) or s['trials'][0].pop('val_loss'), ['is the smallest']),
    (lambda s: s['trials'].append(s['trials'][0]), ['3 trials', 'pic.json 4']),
    (lambda s: s.update(validate='val'), ['judged on', 'sweep.py pic.py --tune']),
    (lambda s: s['trials'][0].update(val_loss=1.0), ['0.001, is the smallest', 'sweep.py pic.py']),
    (lambda s: s['trials'][2].update(val_loss=1.0), ['0.004, is the largest', 'sweep.py pic.py']),
    (lambda s: [t['values'].update(optimizer=o) for t, o in zip(s['trials'], ('lion', 'muon', 'muon'), strict=True)],
     ['0.002, is the smallest']),           # of those with the same optimizer
    (lambda s: [t.update(val_loss=None) for t in s['trials']], ['no trial that ended']),
    (lambda s: [t.update(values={'dropout': 0.0}) for t in s['trials']], ['no learning_rate']),
    (lambda s: s['settings'].update(n_layer=2), ['n_layer=1', 'had 2']),
    (lambda s: s['data'].update(fingerprint='abc-tune'), ['other data (abc-tune)']),
    (lambda s: s['words'].append('--predicts=last'), ['predicts=last', 'had every'])], ids=range(16))
def test_sweeps_that_are_refused(claim, change, parts):
    path = claim.parent / 'pic.json'
    change(sweep := json.loads(path.read_text()))
    path.write_text(json.dumps(sweep))
    said = sentence(compare.main, [f'--confirm={claim}'])
    assert all(part in said for part in parts) and not (claim.parent / 'out').exists(), said


def test_a_changed_file_is_refused(claim, monkeypatch):
    """The record names the commit of the code that ran."""
    monkeypatch.setattr(compare, 'commit', lambda: 'abc+')
    assert 'commit abc' in sentence(compare.main, [f'--confirm={claim}'])
    assert not (claim.parent / 'results' / 'claim.json').exists()


def test_a_run_has_the_commit_that_it_began_with(tmp_path, monkeypatch):
    now = ['old']
    for name, value in (('commit', lambda: now[0]), ('train', lambda *_: now.insert(0, 'new')), ('spent', lambda *_: 1),
                        ('judge', lambda *_: {})):
        monkeypatch.setattr(compare, name, value)
    plan = {'flags': {'max_iters': 1, 'max_seconds': 0}, 'flops_per_step': 1}
    race = {'entrants': {'gpt': {'plan': plan}}, 'windows': 1}
    e = SimpleNamespace(name='gpt', words=[], settings=SimpleNamespace(train=SimpleNamespace(stop_after=0)))
    assert compare.run(e, 1, tmp_path, race, SimpleNamespace(describe=str), None)['commit'] == 'old'


def test_what_is_inside_a_grid(claim):
    """A dropout of 0 has nothing below it, and a trial that diverged is one that was tried."""
    path = claim.parent / 'pic.json'
    sweep = json.loads(path.read_text())
    del sweep['trials'][2]['val_loss']
    sweep['trials'][2]['failed'] = 'diverged: its val_loss was nan at step 2'
    for t, dropout in zip(sweep['trials'], (0.1, 0.0, 0.2), strict=True):
        t['values']['dropout'] = dropout
    path.write_text(json.dumps(sweep))
    assert confirm.best(confirm.read_sweep(path, [1])) == {'learning_rate': 2e-3, 'dropout': 0.0}


def test_a_task_is_tuned_on_its_validation_split(task_data, tmp_path):
    (tmp_path / 'lstm.py').write_text(f"arch, dataset, device = 'baselines', '{task_data('classify').name}', 'cpu'\n")
    entrants = compare.enter([str(tmp_path / 'lstm.py')], [])[0]
    sweep = {'command': 'python sweep.py lstm.py', 'validate': 'val', 'machine': 'numbers float32',
             'settings': compare.settings_of(entrants[0]), 'data': {'fingerprint': entrants[0].data.fingerprint},
             'trials': [{'values': {'learning_rate': 1.0}, 'val_loss': 1.0}]}
    protocol, found = {'metric': 'accuracy', 'path': 'claim.py', 'seeds': [4, 5]}, {'lstm.json': sweep}
    confirm.check(protocol, found, entrants, 'numbers float32 (set)', tmp_path)
    said = sentence(confirm.check, protocol | {'metric': 'val_loss'}, found, entrants, 'numbers float32', tmp_path)
    assert said == 'claim.py: lstm has no val_loss that can be compared: set metric to one of accuracy'
    earlier = {'entrants': [{'runs': [{'seed': 6}, {'seed': 5}]}], 'data': {'fingerprint': entrants[0].data.fingerprint}}
    (tmp_path / 'earlier.json').write_text(json.dumps(earlier))
    said = sentence(confirm.check, protocol, found, entrants, 'numbers float32', tmp_path)
    assert said.startswith('claim.py: seed 5 is not fresh: results/earlier.json')
    entrants[0].data.meta['answers'] = {}
    said = sentence(confirm.check, protocol | {'seeds': [1]}, found, entrants, 'numbers float32', tmp_path)
    assert 'on its validation split' in said


def test_the_files_of_a_claim_are_those_of_a_commit(race_configs, claim, tmp_path, monkeypatch):
    """Nothing that a race reads may be changed, or added, after it began."""
    root = tmp_path / 'repository'
    root.mkdir()

    def git(*words):
        status, printed = processes.git('-c', 'user.name=a', '-c', 'user.email=a@b', *words, root=root)
        assert status == 0, words
        return printed
    for name in ('a.py', 'b.md'):
        (root / name).write_text('1')
    git('init', '-q')
    assert processes.uncommitted([root / 'a.py'], root) == [root / 'a.py']
    git('add', '.')
    git('commit', '-q', '-m', 'x')
    commit = git('rev-parse', 'HEAD')
    assert processes.uncommitted([root / 'a.py', root / 'b.md'], root) == [] and processes.changed_since('0' * 40, root)
    (root / 'b.md').write_text('2')
    assert not processes.changed_since(commit, root)
    (root / 'a.py').write_text('2')
    git('commit', '-q', '-a', '-m', 'y')
    assert processes.changed_since(commit, root) and not processes.changed_since('HEAD', root)
    for name, value, said in (('commit', '', 'a clone'), ('uncommitted', ['new.py'], 'does not keep new.py')):
        with monkeypatch.context() as patch:
            patch.setattr(compare, name, lambda *_, value=value: value)
            assert said in sentence(compare.main, [f'--confirm={claim}'])
    monkeypatch.setattr(compare, 'train', lambda *_: 'stopped')
    sentence(compare.main, [f'--confirm={claim}'])
    assert 'a confirmed race' in sentence(compare.main, [f'{race_configs}/gpt.py', '--steps=6', '--out=out/claim'])
    monkeypatch.setattr(compare, 'changed_since', lambda commit: commit == 'abc')
    assert 'changed since commit abc' in sentence(compare.main, [f'--confirm={claim}'])


def test_the_protocol_says_all(claim):
    for words in ('gpt.py', '--seconds=9', '--seeds=9', '--set n_layer=1', '--match=parameters', '--windows=9', '--overwrite'):
        assert '--confirm=' in sentence(compare.main, [f'--confirm={claim}', *words.split()])


SEEDS = [*range(1, 9)]
NOISE = [0.01, -0.02, 0.015, -0.005, 0.0, 0.02, -0.01, -0.01]


def confirmed(*shifts, metric='val_loss', margin=0.05, **more):
    base = {s: 1.5 + s / 10 for s in SEEDS}
    rivals = [entrant(f'rival {i}', {s: base[s] + shift + n for s, n in zip(SEEDS, NOISE, strict=True)})
              for i, shift in enumerate(shifts)]
    return record(entrant('gpt', base), *rivals, protocol={'metric': metric, 'margin': margin, 'seeds': SEEDS}, **more)


def test_verdicts_agree_with_scipy_and_are_adjusted_by_holm():
    from scipy import stats
    r = confirmed(0.1, 0.0, -0.014)
    found = statistics.confirmed(r)
    raw, equal = [], []
    for e, v in zip(r['entrants'][1:], found, strict=True):
        d = np.array([a['val_loss'] - b['val_loss'] for a, b in zip(e['runs'], r['entrants'][0]['runs'], strict=True)])
        test = stats.ttest_1samp(d, 0)
        assert [*v['interval'], v['difference']] == pytest.approx([*test.confidence_interval(0.95), d.mean()])
        raw.append(test.pvalue)
        equal.append(max(stats.ttest_1samp(d, -0.05, alternative='greater').pvalue,
                         stats.ttest_1samp(d, 0.05, alternative='less').pvalue))
    assert [v['word'] for v in found] == ['worse', 'equivalent', 'equivalent']
    for name, p in (('p', raw), ('p_equivalent', equal)):
        order = sorted(p)       # Holm by hand: 3 times the smallest, 2 times the next
        by_hand = [3 * order[0], max(3 * order[0], 2 * order[1]), max(3 * order[0], 2 * order[1], order[2])]
        assert [v[name] for v in found] == pytest.approx([min(1, by_hand[order.index(x)]) for x in p])
    alone, = statistics.confirmed(confirmed(-0.014, margin=0.001))
    assert 0.01 < alone['p'] < 0.05 and alone['word'] == 'better'           # but not among three comparisons
    assert statistics.confirmed(confirmed(0, -0.014, 0, margin=0.001))[1]['word'] == 'undecided'


def test_a_table_names_only_what_differs():
    r = confirmed(0.1)
    r['protocol']['path'] = 'claim.py'
    for e, name in zip(r['entrants'], ('gpt seed=9 rate=1', 'pic mode=x seed=9 rate=2'), strict=True):
        e['name'] = name
    found = tables.short(r)
    for part in ('| gpt rate=1 ', '| pic mode=x rate=2 ', ': worse |', '; all with seed=9; '):
        assert part in found
    r['entrants'][1]['name'] = 'pic dims=(1, 2) seed=9 rate=2'
    assert '| pic dims=(1, 2) rate=2 ' in tables.short(r)


def test_a_table_of_several_sweeps():
    about = {'data': {'source': 'a text', 'fingerprint': 'abc'}, 'date': 'today', 'machine': 'a machine'}
    first, second = ({'words': ['config/gpt.py', '--seed=9', *more], 'trials': [
        {'values': {'rate': v}, **({'val_loss': v} if v < 4 else {})} for v in values]} | about
        for more, values in (([], (1.0, 2.0)), (['--mode=x'], (2.0, 4.0))))
    found = tables.searches([first, second])
    rows = [[c.strip() for c in line.strip('|').split('|')] for line in found.splitlines() if '|' in line and '--' not in line]
    assert rows == [['rate, val_loss', '1', '2', '4'], ['gpt', '1.000', '2.000', ''], ['gpt mode=x', '', '2.000', 'failed']]
    for other in ({'trials': [{'values': {'n': 1}}]}, {'words': None}, {'trials': None}):
        other = {k: v for k, v in (second | other).items() if v is not None}
        assert 'one setting' in sentence(tables.searches, [first, other])
    assert 'one setting' in sentence(tables.searches, [first | {'trials': [{'values': {'rate': 1, 'n': 1}}]}] * 2)



@pytest.mark.parametrize(('shift', 'metric', 'margin', 'word'), [
    (0.1, 'val_loss', 0.05, 'worse'), (-0.1, 'val_loss', 0.05, 'better'), (0.0, 'val_loss', 0.05, 'equivalent'),
    (0.01, 'val_loss', 0.001, 'undecided'), (0.1, 'accuracy_full', 0.01, 'worse')])         # the accuracy falls with the loss
def test_words(shift, metric, margin, word):
    r = confirmed(shift, metric=metric, margin=margin)
    v, = statistics.confirmed(r)
    assert v['word'] == word
    said, = [s for s in statistics.verdicts(r) if s.startswith('Confirmed')]
    assert word in said and statistics.format_interval(metric, v) in said and 'learns' not in said
    assert tables.difference_cell(r, r['entrants'][1], metric).endswith(f': {word}')
    assert tables.difference_cell(r, r['entrants'][1], 'train_loss') == ''


def test_no_word_before_the_end_and_none_of_a_run_that_diverged():
    assert statistics.verdicts(confirmed(0.1, progress=[3, 16])) == []
    r = confirmed(0.1, 0.1)
    r['entrants'][1]['runs'][3] = {'seed': 4, 'diverged': 'a reason'}
    assert [v['word'] for v in statistics.confirmed(r)] == ['undecided', 'worse'] and 'undecided' in statistics.verdicts(r)[0]
    r['entrants'][1]['runs'][3] = {'seed': 4, 'failed': 'a reason'}
    assert statistics.confirmed(r) == []


def test_equal_differences_have_the_p_values_of_sign_tests():
    assert statistics.paired([0.25] * 8, 0.5) == ([0.25, 0.25], 2 / 256, 1 / 256)
    assert statistics.paired([0.25] * 8, 0.1) == ([0.25, 0.25], 2 / 256, 1.0)
    assert statistics.paired([0.0] * 5, 0.1) == ([0, 0], 1.0, 1 / 32)


def test_a_run_with_a_strange_speed_is_repeated_once(race_configs, tmp_path, monkeypatch):
    """In a race by seconds only; the record keeps its first result, and a note says so."""
    speeds, made = iter([1000, 1050, 700, 640, 900, 1]), []

    def run(e, seed, folder, race, *_):
        path = folder / 'result.json'
        if not path.exists():
            folder.mkdir(exist_ok=True)
            made.append(seed)
            result = {'seed': seed, 'val_loss': 2 + seed % 7 / 100, **FIGURES, 'tokens_per_second': next(speeds)}
            path.write_text(json.dumps(result | ({'repeated': race['repeated'][folder.name]} if race.get('repeated') else {})))
        return json.loads(path.read_text())
    monkeypatch.setattr(compare, 'run', run)
    monkeypatch.setattr(compare, 'influence', lambda *_: {})
    monkeypatch.setattr(compare, 'measure', lambda *_: SimpleNamespace(flops=1e6, seconds=0.01, evaluation=1e-5))
    for _ in range(2):
        shown = printed(compare.main, [race_configs / 'gpt.py', '--seconds=9', f'--out={tmp_path}'])
        kept = json.loads((tmp_path / 'results.json').read_text())
        assert made == [1337, 1338, 1339, 1339] and 'progress' not in kept
        assert [r['tokens_per_second'] for r in kept['entrants'][0]['runs']] == [1000, 1050, 640]
        assert kept['entrants'][0]['runs'][2]['repeated']['tokens_per_second'] == 700
        assert 'gpt, seed 1339, was repeated: its 700 tokens/s were more than 10 %' in shown and 'repetition has 640' in shown
