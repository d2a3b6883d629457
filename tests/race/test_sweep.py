"""A sweep: its search space, trials that do not depend on interruptions, and the best of them as a config."""

import csv
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from conftest import contents, printed, sentence, train_here, until

from harness import ROOT, checkpoint, command, config, data, device, log, runs
from race.entrants import read
from race.processes import spent
from train import TrainConfig, evaluate

optuna = pytest.importorskip('optuna', reason='sweep.py searches with it')
import sweep
import train
from sweep import Space, read_space

GPT = ROOT / 'config' / 'shakespeare_gpt.py'
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope='module')
def gpt(dataset, tmp_path_factory):
    """A config whose 30 steps take long enough to be interrupted."""
    path = tmp_path_factory.mktemp('configs') / 'gpt.py'
    path.write_text(f"dataset, device, optimizer = '{dataset.name}', 'cpu', 'adamw'\n"
                    'n_layer, n_head, n_embd, block_size = 1, 2, 16, 16\n'
                    'batch_size, tokens_per_step, eval_windows, eval_interval = 4, 640, 8, 10\n'
                    'min_lr, max_iters, log_interval = 0, 30, 5\n')
    return path


def main(*words):
    return printed(sweep.main, words)


def refusal(*words):
    return sentence(command, lambda _: main(*words))


def results(out):
    found = [json.loads(p.read_text()) for p in out.glob('trial-*/result.json')]
    return sorted(({k: v for k, v in r.items() if k != 'seconds'} for r in found), key=lambda r: r['number'])


def table(out):
    rows = csv.DictReader((out / 'table.csv').read_text(encoding='utf-8').splitlines())
    return [{k: v for k, v in row.items() if k != 'seconds'} for row in rows]


@pytest.fixture(scope='module')
def swept(gpt, tmp_path_factory):
    """Four trials, of which some fail.  Read only: `copied` is a copy."""
    out = tmp_path_factory.mktemp('sweep') / 'sweep'
    words = [gpt, '--search', 'learning_rate=log(1e-4,1)', 'n_head=2,3', 'dropout=(0,0.5)', '--set', 'weight_decay=0']
    with mock.patch.object(sweep, 'train', train_here):
        return SimpleNamespace(out=out, words=words, shown=main(*words, f'--out={out}', '--trials=4'))


@pytest.fixture
def copied(swept, tmp_path):
    shutil.copytree(swept.out, tmp_path / 'sweep')
    return [*swept.words, '--trials=4', f'--out={tmp_path / "sweep"}'], tmp_path / 'sweep'


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(sweep, 'train', lambda *_: pytest.fail('a trial is trained'))


@pytest.mark.parametrize(('text', 'name', 'space'), [
    ('learning_rate=log(1e-4,1e-1)', 'learning_rate', Space(low=1e-4, high=1e-1, log=True)),
    ('dropout = ( 0, 0.3 )', 'dropout', Space(low=0.0, high=0.3)), ('n_layer=2..5', 'n_layer', Space(low=2, high=5)),
    ('n_layer=2,5', 'n_layer', Space((2, 5))), ('optimizer=adamw,lion', 'optimizer', Space(('adamw', 'lion'))),
    ('bias=True,false', 'bias', Space((True, False))), ('dropout=0,0.1', 'dropout', Space((0.0, 0.1))),
    ('dims=(40,80),(80,)', 'dims', Space(('(40, 80)', '(80,)')))])
def test_spaces(text, name, space):
    found = read_space(text, [str(GPT).replace('gpt', 'pacing' if name == 'dims' else 'gpt')])
    assert found == (name, space) and repr(found[1]) == repr(space)         # 2 == 2.0, but their types differ
    found[1].distribution()


@pytest.mark.parametrize(('words', 'parts'), [
    *(([text], parts) for text, parts in (
        ('=1,2', ["'=1,2'"]), ('n_layer=2..2', ['2 must be below 2']), ('dropout=0,0.0', ['at least 2']),
        ('n_layer=log(1,4)', ['int', 'n_layer=a..b']), ('dropout=0..0.5', ['float', 'dropout=lin(a,b)']),
        ('bias=0..1', ['bias', "'0'"]), ('n_layer=1..2.5', ['n_layer', '2.5', 'int']), ('beta1=0.8,0.9', ['beta1']),
        ('learning_rate=log(1,2,3)', ['log(1,2,3)']), *((f'{k}=1,2', [f'differ in {k}']) for k in ('out_dir', 'block_size')))),
    (['n_layer=1..2', '--steps=0.5'], ['--steps=0.5 ']), (['n_layer=1..2', '--tokens=639'], ['--tokens=639 ']),
    (['n_layer=1..2', '--set', 'n_heads=1'], ["'n_head'"]), (['n_layer=1..2', '--steps=5', '--tokens=5'], ['--steps'])])
def test_bad_commands_are_refused(words, parts, gpt, untrained, tmp_path):
    said = refusal(f'{gpt} --beta1=0.9', '--search', *words, f'--out={tmp_path / "out"}')
    assert all(part in said for part in parts) and not (tmp_path / 'out').exists(), said


def test_optuna_is_missing(gpt, monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    assert 'pip install optuna' in refusal(gpt, '--search', 'n_layer=1..2')


def bowl(values):
    """Lowest, at 0, with a learning rate of 10 ** -2.5, 6 layers, lion and a dropout of 0.2."""
    return ((math.log10(values['learning_rate']) + 2.5) ** 2 + 0.05 * (values['n_layer'] - 6) ** 2
            + 0.5 * (values['optimizer'] != 'lion') + 2 * (values['dropout'] - 0.2) ** 2)


def search(texts, trials, seed, result):
    """(results, spaces) of a search with results that are computed."""
    spaces, found = dict(read_space(text, [str(GPT)]) for text in texts), []
    for number in range(trials):
        values = sweep.suggest(spaces, found, seed, number)
        found.append({'number': number, 'values': values, **result(values)})
    return found, spaces


@pytest.fixture(scope='module')
def searches():
    """Four searches of 40 trials on a bowl in which 7 and 8 layers fail."""
    texts = ('learning_rate=log(1e-5,1)', 'n_layer=1..8', 'optimizer=adamw,lion,muon,sgd', 'dropout=lin(0,0.9)')
    return [search(texts, 40, seed, lambda v: {'failed': 'too deep'} if v['n_layer'] > 6 else {'val_loss': bowl(v)})
            for seed in range(4)]


def test_suggestions_improve_and_avoid_failures(searches):
    """Random ones would have equal means in both halves, and a quarter of failures."""
    for trials, _ in searches:
        early, late = ([r['val_loss'] for r in half if 'val_loss' in r] for half in (trials[:10], trials[20:]))
        assert np.mean(late) < 0.6 * np.mean(early)
    assert np.mean(['failed' in r for trials, _ in searches for r in trials[20:]]) < 0.18


def test_suggestions_depend_on_the_seed_and_the_earlier_results(searches):
    trials, spaces = searches[0]
    for number in (0, 1, 9, 25):
        assert sweep.suggest(spaces, json.loads(json.dumps(trials[:number])), 0, number) == trials[number]['values']
        assert sweep.suggest(spaces, trials[:number], 5, number) != trials[number]['values']
    assert len({json.dumps(r['values']) for r in trials}) == 40
    for space, value in ((spaces[name], value) for r in trials for name, value in r['values'].items()):
        assert value in space.choices if space.choices else space.low <= value <= space.high
        assert space.choices or len(re.sub(r'e.*|\.|^[0.]+', '', repr(value))) <= 4         # digits


def test_few_combinations_are_all_tried_once():
    trials, spaces = search(('n_layer=1..5', 'optimizer=adamw,lion'), 10, 0, lambda v: {'val_loss': float(v['n_layer'])})
    assert len({json.dumps(r['values']) for r in trials}) == 10 == math.prod(s.size for s in spaces.values())


def test_the_last_weights_are_judged(swept, dataset):
    """Those of the best trial, the only ones that are kept, by evaluate(); the others by the log of their run."""
    done = [r for r in results(swept.out) if 'val_loss' in r]
    for r in done:
        rows = log.read(swept.out / f'trial-{r["number"]}' / 'metrics.csv')
        assert [row['step'] for row in rows if 'val_loss' in row] == [0, 10, 20, 30]
        assert (r['val_loss'], r['step'], r['tokens']) == (rows[-1]['val_loss'], 30, 30 * 640)
        assert max(rows[:2], key=lambda row: row['step'])['lr'] == pytest.approx(       # a warm-up of a tenth: 3 steps
            max(row['lr'] for row in rows if 'lr' in row), rel=0.1)
    best = min(done, key=lambda r: r['val_loss'])
    assert {p.parent.name for p in swept.out.glob('*/*.pt')} == {f'trial-{best["number"]}'}
    model, content = checkpoint.load_model(swept.out / f'trial-{best["number"]}' / 'ckpt.pt')
    text = data.TextData(dataset)
    expected = evaluate(model, text, text.val_indices(8, 16), 8, device.setup('cpu', 'float32', False))
    assert content['step'] == 30 and best['val_loss'] == pytest.approx(expected['val_loss'], rel=1e-5)
    assert len({r['val_loss'] for r in done}) == len(done) > 1


def test_tables_have_the_best_first_and_the_reasons_of_failures(swept):
    rows, found = table(swept.out), {str(r['number']): r for r in results(swept.out)}
    losses = [float(r['val_loss'] or 'inf') for r in rows]
    assert losses == sorted(losses) and math.isfinite(losses[0]) and losses[-1] == math.inf
    for row in rows:
        assert {k: float(row[k]) for k in ('learning_rate', 'n_head', 'dropout')} == found[row['number']]['values']
        if row['failed']:
            assert row['n_head'] == '3' and 'n_embd=16' in row['failed'] and 'n_head=3' in row['failed']
            assert re.search(rf'^\| +{row["number"]} .*failed .*n_embd=16', swept.shown, re.M)
    assert re.findall(r'^\| +(\d) ', swept.shown, re.M) == [r['number'] for r in rows]


def test_the_best_as_a_config_trains_the_same(swept, tmp_path):
    best, settings = table(swept.out)[0], config.load([str(swept.out / 'best.py')], TrainConfig)
    assert settings.train.weight_decay == 0 and settings.train.learning_rate == float(best['learning_rate'])
    text = (swept.out / 'best.py').read_text()
    assert 'python sweep.py ' in text and "'learning_rate=log(1e-4,1)'" in text and f'(number {best["number"]}, ' in text
    printed(train.main, [swept.out / 'best.py', f'--out_dir={tmp_path / "run"}'])
    assert log.read(tmp_path / 'run' / 'metrics.csv')[-1]['val_loss'] == float(best['val_loss'])


def test_the_picture_shows_every_trial_on_its_tick(monkeypatch, tmp_path):
    import matplotlib.pyplot as plt
    figures = []
    monkeypatch.setattr(plt, 'close', figures.append)
    spaces = dict(read_space(text, [str(GPT)]) for text in ('learning_rate=log(1e-4,1)', 'n_layer=1..4', 'bias=True,False'))
    ordered = [{'number': n, 'values': {'learning_rate': 10.0 ** -n, 'n_layer': n, 'bias': n == 2}}
               | ({'failed': 'a reason'} if loss is None else {'val_loss': loss})
               for n, loss in ((3, 1.5), (1, 2.5), (2, 3.5), (4, None))]
    sweep.draw(ordered, spaces, 'a config with a very long name $x ' * 8, tmp_path / 'sweep.png')
    axes, box = figures[0].axes, figures[0]._suptitle.get_window_extent()
    assert [ax.get_xlabel() for ax in axes] == [*spaces] and box.x0 >= 0 and box.x1 <= figures[0].bbox.x1      # not clipped
    for ax, xs in zip(axes, ([1e-3, 0.1, 1e-2, 1e-4], [3, 1, 2, 4], [1, 1, 0, 1]), strict=True):
        points, (star, ticks) = ax.collections[0].get_offsets(), ax.lines
        assert points[:, 1].tolist() == [1.5, 2.5, 3.5] and points[:, 0].tolist() == pytest.approx(xs[:3])
        assert star.get_ydata() == [1.5] and star.get_xdata() == points[0, 0] and list(ticks.get_xdata()) == [xs[3]]


def test_an_interrupted_sweep_has_the_same_trials(swept, tmp_path, monkeypatch):
    """Started on the command line with fewer trials, stopped within a run, and resumed."""
    out = tmp_path / 'sweep'
    process = subprocess.Popen([sys.executable, 'sweep.py', *map(str, swept.words), f'--out={out}', '--trials=3'], cwd=ROOT,
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = next(r['number'] for r in results(swept.out) if 'val_loss' in r)
    until((out / f'trial-{first}' / 'ckpt.pt').exists, SimpleNamespace(is_alive=lambda: process.poll() is None, exitcode='?'))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1 and 'was stopped' in errors and errors.count('\n') == 1
    assert results(out)[-1] == {'number': first, 'values': results(swept.out)[first]['values']}
    step = checkpoint.load(out / f'trial-{first}' / 'ckpt.pt')['step']
    assert step < 30
    main(*swept.words, f'--out={out}', '--trials=3')
    assert f'resumed at step {step}' in (out / f'trial-{first}.log').read_text() and results(out) == results(swept.out)[:3]
    monkeypatch.setattr(sweep, 'train', train_here)
    shown = main(*swept.words, f'--out={out}', '--trials=4')
    assert re.findall(r'^trial (\d), learning_rate=\S+ n_head=\d dropout=\S+: (?:val|model)', shown, re.M) == ['3']
    assert results(out) == results(swept.out) and table(out) == table(swept.out)


def test_lost_tables_are_made_again_without_training(copied, swept, untrained):
    words, out = copied
    kept = json.loads((out / 'results.json').read_text())
    assert [t['number'] for t in kept['trials']] == [int(r['number']) for r in table(out)]
    assert kept['command'].startswith('python sweep.py ') and kept['data']['fingerprint']
    for name in ('table.csv', 'best.py', 'sweep.png', 'results.json'):
        (out / name).unlink()
    worst = next(r for r in reversed(table(swept.out)) if r['val_loss'])['number']
    shutil.copy(next(out.glob('*/ckpt.pt')), out / f'trial-{worst}' / 'ckpt.pt')
    main(*words)
    for name in ('table.csv', 'best.py'):
        assert (out / name).read_text().splitlines()[3:] == (swept.out / name).read_text().splitlines()[3:]
    assert (out / 'sweep.png').exists() and not (out / f'trial-{worst}' / 'ckpt.pt').exists()
    assert json.loads((out / 'results.json').read_text())['trials'] == kept['trials']


def test_another_sweep_in_the_same_folder_is_refused(copied, gpt, untrained):
    words, out = copied
    kept = contents(out)
    for asked, parts in (([gpt, '--search', 'n_layer=1..2'], ['search']), ([*words, '--steps=20'], ['budget', '20']),
                         ([*words, '--seed=1'], ['--seed is 0']), ([*words, '--set', 'beta1=0.5'], ['beta1 is 0.9', '0.5'])):
        said = refusal(*asked, f'--out={out}')
        assert said.startswith(f'{out} holds another sweep') and all(p in said for p in [*parts, '--overwrite'])
    with runs.lock(out, '--out'):
        assert 'is in use' in refusal(*words)
    assert contents(out) == kept
    (out / 'trial-0' / 'result.json').write_text('{"number": 0, "values": {"n_head": 9, "learning_rate": 0.1, "dropout": 0}}')
    assert refusal(*words).startswith(f'{out / "trial-0" / "result.json"} ')        # of another sweep


def test_a_wider_search_keeps_its_trials(gpt, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(sweep, 'train', lambda words, *rest: trained.append(words) or train_here(words, *rest))
    rates = ['1e-3', '1e-2', '1e-1']
    for n in (2, 3):
        main(gpt, '--search', f'learning_rate={",".join(rates[:n])}', f'--trials={n}', f'--out={tmp_path}')
        assert sorted(t['values']['learning_rate'] for t in results(tmp_path)) == [*map(float, rates[:n])]
        assert len(trained) == n
    kept = contents(tmp_path)
    said = refusal(gpt, '--search', 'learning_rate=1e-2,1e-1', '--trials=2', f'--out={tmp_path}')
    assert said.startswith(f'{tmp_path} holds another sweep: its search is ') and contents(tmp_path) == kept


def test_a_sweep_without_success_ends_early_and_can_be_started_again(gpt, tmp_path, untrained):
    said = refusal(gpt, '--search', 'n_head=3,5,6,7,9,11', f'--out={tmp_path}')
    assert 'all 5 trials failed' in said and 'n_embd=16' in said and '--overwrite' in said
    assert len(table(tmp_path)) == len(results(tmp_path)) == 5 and not (tmp_path / 'best.py').exists()
    assert 'all 2 trials failed' in refusal(gpt, '--search', 'n_head=3,5', f'--out={tmp_path}', '--overwrite')
    assert len(results(tmp_path)) == 2 and not (tmp_path / 'trial-2').exists()


@pytest.mark.parametrize(('row', 'reason', 'result'), [
    ('5,50,1.0,nan', 'the loss became nan', 'diverged: its train_loss was nan at step 5'), ('7,70,1.0,2.5', None, None)])
def test_a_diverged_trial_failed_and_a_stopped_one_did_not(gpt, tmp_path, monkeypatch, row, reason, result):
    def train(words, folder, progress):
        (folder / 'metrics.csv').write_text(f'step,tokens,seconds,train_loss\n{row}\n')
        return reason
    monkeypatch.setattr(sweep, 'train', train)
    said = refusal(gpt, '--search', 'n_layer=1..2', f'--out={tmp_path}', '--trials=1')
    assert (result or 'trial 0 was stopped at step 7') in said and results(tmp_path)[0].get('failed') == result


def test_a_trial_on_a_task_has_the_loss_of_its_best_weights(task_data, tmp_path, monkeypatch):
    """Those are judged.  stop_after may end a trial before its budget is spent."""
    folder = task_data('classify')
    (tmp_path / 'lstm.py').write_text(f"arch, dataset, device, stop_after = 'baselines', '{folder.name}', 'cpu', 1\n")

    def train(words, folder, progress):
        (folder / 'metrics.csv').write_text('step,tokens,seconds,train_loss,val_loss\n5,50,1.0,2.0,1.5\n7,70,1.0,2.0,1.75\n')
    monkeypatch.setattr(sweep, 'train', train)
    printed(sweep.main, [tmp_path / 'lstm.py', '--search', 'learning_rate=1e-3,2e-3', '--trials=2', f'--out={tmp_path}/out'])
    assert [(t['val_loss'], t['step']) for t in results(tmp_path / 'out')] == [(1.5, 7), (1.5, 7)]


def test_the_budget_of_a_trial(gpt):
    first, tokens = read([str(gpt), '--tokens_per_step=0']), ('tokens', 640)
    for batch_size, budget, expected in ((2, tokens, (20, 0)), (4, tokens, (10, 0)), (5, tokens, (8, 0)),
                                         (2, ('seconds', 2.5), (0, 2.5)), (2, None, (30, 0))):
        cfg = sweep.entrant(first, {'batch_size': batch_size}, budget).settings.train
        assert (cfg.max_iters, cfg.max_seconds, cfg.warmup_iters) == (*expected, 'auto')
    assert [spent(0, 2.5, {'step': 9, 'seconds': 0.5}), spent(30, 0, {'step': 45}), spent(30, 0, {})] == [0.2, 1, 0]


@pytest.mark.parametrize(('name', 'values'), [('shakespeare_pacing', {'predicts': 'last'}),
                                              ('shakespeare_wavegpt', {'reads': 'leak'})])
def test_trials_with_other_losses_are_refused(dataset, name, values):
    first = read([str(ROOT / 'config' / f'{name}.py'), f'--dataset={dataset.name}'])
    assert 'cannot be compared' in sentence(sweep.entrant, first, values, None)
