"""A sweep: the spaces, the trials that are the same however often it was stopped, and the best of them as a config."""

import contextlib
import csv
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import compare
from harness import ROOT, UserError, checkpoint, config, data, device, log
from train import Loop, evaluate

optuna = pytest.importorskip('optuna', reason='sweep.py searches by it')
import sweep

GPT = ROOT / 'config' / 'shakespeare_gpt.py'
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope='module')
def gpt(dataset, tmp_path_factory):
    """A config whose 30 steps take long enough to be interrupted."""
    path = tmp_path_factory.mktemp('configs') / 'gpt.py'
    path.write_text(f"dataset, device, optimizer = '{dataset.name}', 'cpu', 'adamw'\n"
                    'n_layer, n_head, n_embd, block_size = 1, 2, 16, 16\n'
                    'batch_size, tokens_per_step, eval_windows, eval_interval = 4, 640, 8, 10\n'
                    'warmup_iters, min_lr, max_iters, log_interval = 2, 0, 30, 5\n')
    return path


def main(*words):
    """sweep.py in this process.  Returns what it prints."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            sweep.main(list(map(str, words)))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return shown.getvalue()


def refusal(*words):
    with pytest.raises(UserError) as e:
        main(*words)
    return str(e.value)


def start(*words):
    return subprocess.Popen([sys.executable, 'sweep.py', *map(str, words)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def results(out):
    """What the trials have come to, but for the time that they took."""
    found = [json.loads(p.read_text()) for p in out.glob('trial-*/result.json')]
    return sorted(({k: v for k, v in r.items() if k != 'seconds'} for r in found), key=lambda r: r['number'])


def table(out):
    with open(out / 'table.csv', newline='', encoding='utf-8') as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope='module')
def swept(gpt, tmp_path_factory):
    """Four trials on the command line, of which one fails.  Look, do not touch: `copied` is a copy."""
    out = tmp_path_factory.mktemp('sweep') / 'sweep'
    words = [gpt, '--search', 'learning_rate=log(1e-4,1)', 'n_head=2,3', 'dropout=(0,0.5)', '--set', 'weight_decay=0']
    process = start(*words, f'--out={out}', '--trials=4')
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return SimpleNamespace(out=out, words=words, shown=shown, errors=errors)


@pytest.fixture
def copied(swept, tmp_path):
    """(words, folder) of a copy of the sweep, to go on with."""
    shutil.copytree(swept.out, tmp_path / 'sweep')
    return [*swept.words, '--trials=4', f'--out={tmp_path / "sweep"}'], tmp_path / 'sweep'


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(sweep, 'train', lambda *_: pytest.fail('a trial is trained again'))


# spaces -------------------------------------------------------------------------------------------------------------------

Floats, Ints, Choices = sweep.FloatDistribution, sweep.IntDistribution, sweep.CategoricalDistribution


@pytest.mark.parametrize('text, name, space', [
    ('learning_rate=log(1e-4,1e-1)', 'learning_rate', Floats(1e-4, 1e-1, log=True)),
    ('dropout=lin(0,0.3)', 'dropout', Floats(0, 0.3)),
    ('dropout = ( 0, 0.3 )', 'dropout', Floats(0, 0.3)),
    ('n_layer=2..5', 'n_layer', Ints(2, 5)),
    ('n_layer=2,5', 'n_layer', Choices([2, 5])),
    ('optimizer=adamw,lion', 'optimizer', Choices(['adamw', 'lion'])),
    ('bias=True,false', 'bias', Choices([True, False])),
    ('dropout=0,0.1', 'dropout', Choices([0.0, 0.1])),
])
def test_a_space_is_read(text, name, space):
    found = sweep.space(text, [str(GPT)])
    assert found == (name, space)
    assert [type(c) for c in getattr(found[1], 'choices', ())] == [type(c) for c in getattr(space, 'choices', ())]


def test_choices_of_several_numbers():
    words = [str(ROOT / 'config' / 'shakespeare_pacing.py')]
    name, space = sweep.space('dims=(40,80),(80,)', words)
    loaded = [config.load([*words, f'--{name}={c}'], Loop).model['dims'] for c in space.choices]
    assert loaded == [(40, 80), (80,)]


@pytest.mark.parametrize('text, said', [
    ('n_layer', "cannot read --search 'n_layer': name=log(a,b), name=lin(a,b), name=a..b (whole numbers) or name=x,y,z"),
    ('=1,2', "cannot read --search '=1,2'"),
    ('n_layer=', "cannot read --search 'n_layer='"),
    ('n_layers=2..5', "unknown setting 'n_layers' (for arch 'model'): did you mean 'n_layer'?"),
    ('n_layer=5..2', 'the first end must be below the second'),
    ('n_layer=2..2', 'the first end must be below the second'),
    ('learning_rate=log(0.1,0.01)', 'the first end must be above 0 and below the second'),
    ('learning_rate=log(0,1)', 'the first end must be above 0 and below the second'),
    ('learning_rate=log(-1,1)', 'learning_rate=-1.0 must not be negative'),
    ('n_layer=log(1,4)', 'n_layer is of type int, so n_layer=a..b is wanted'),
    ('n_layer=lin(1.5,4)', "n_layer='1.5' is of the wrong type: int is wanted, this is float"),
    ('n_layer=1..2.5', "n_layer='2.5' is of the wrong type: int is wanted, this is float"),
    ('dropout=0..0.5', 'dropout is of type float, so dropout=lin(a,b) or dropout=log(a,b) is wanted'),
    ('bias=0..1', "bias='0' is of the wrong type: bool is wanted, this is int"),
    ('wandb_project=1..2', 'wandb_project is of type str, so wandb_project=x,y is wanted'),
    ('optimizer=adamw', 'must have two choices or more, each once, or a range'),
    ('dropout=0,0.0', 'must have two choices or more, each once, or a range'),
    ('learning_rate=log(1,2,3)', "learning_rate='log(1,2,3)' is of the wrong type"),
    ('optimizer=adamw,lyon', "optimizer='lyon' is unknown"),
    ('n_layer=2,three', "n_layer='three' is of the wrong type: int is wanted, this is str"),
    ('seed=1,2', 'the losses of trials that differ in seed cannot be compared'),
    ('out_dir=a,b', 'the losses of trials that differ in out_dir cannot be compared'),
    ('block_size=16,32', 'the losses of trials that differ in block_size cannot be compared'),
    ('help=1,2', 'the losses of trials that differ in help cannot be compared'),
    ('beta1=0.8,0.9', 'beta1 is set to one value, too: do one of the two'),
])
def test_a_bad_space_is_refused_before_anything_is_trained(text, said, untrained):
    assert said in refusal(f'{GPT} --beta1=0.9', '--search', text)


@pytest.mark.parametrize('words, said', [
    (['--search', 'n_layer=1..2', 'n_layer=1,2'], "--search 'n_layer=1,2': n_layer is searched twice"),
    (['--search', 'n_layer=1..2', '--set', 'n_layer=1'], 'n_layer is set to one value, too'),
    (['--search', 'n_layer=1..2', '--set', 'n_heads=1'], "did you mean 'n_head'?"),
    (['--search', 'n_layer=1..2', '--trials=0'], '--trials=0 must be at least 1'),
    (['--search', 'n_layer=1..2', '--seconds=0'], '--seconds=0 must be above 0'),
    (['--search', 'n_layer=1..2', '--steps=0.5'], '--steps=0.5 is less than one step'),
    (['--search', 'n_layer=1..2', '--tokens=639'], '--tokens=639 is less than one step'),
    (['--search', 'n_layer=1..2', '--steps=5', '--tokens=5'], 'not allowed with argument'),
    ([], 'the following arguments are required: --search'),
])
def test_a_bad_command_is_refused(words, said, gpt, untrained, tmp_path):
    assert said in refusal(gpt, *words, f'--out={tmp_path / "out"}')
    assert not (tmp_path / 'out').exists()


def test_a_config_that_is_none_is_refused(gpt):
    assert 'is no config (not enough values' in refusal('', '--search', 'n_layer=1..2')
    assert 'is no config (No closing quotation)' in refusal(f'{gpt} "', '--search', 'n_layer=1..2')
    assert "cannot read the config file 'gtp.py'" in refusal('gtp.py', '--search', 'n_layer=1..2')


def test_optuna_is_missing(refused, gpt, tmp_path):
    (tmp_path / 'optuna.py').write_text('raise ImportError')
    said = refused('sweep.py', gpt, '--search', 'n_layer=1..2', env={'PYTHONPATH': str(tmp_path)})
    assert said == 'sweep.py searches by optuna, which is not installed: pip install optuna'


# what is tried ------------------------------------------------------------------------------------------------------------

def bowl(values):
    """Lowest, at 0, with a learning rate of 10 ** -2.5, 6 layers, lion and a dropout of 0.2."""
    return ((math.log10(values['learning_rate']) + 2.5) ** 2 + 0.05 * (values['n_layer'] - 6) ** 2
            + 0.5 * (values['optimizer'] != 'lion') + 2 * (values['dropout'] - 0.2) ** 2)


@pytest.fixture(scope='module')
def search():
    """{seed: results} of 40 trials on a bowl in which 7 and 8 layers fail, and the spaces."""
    spaces = dict(sweep.space(text, [str(GPT)]) for text in
                  ('learning_rate=log(1e-5,1)', 'n_layer=1..8', 'optimizer=adamw,lion,muon,sgd', 'dropout=lin(0,0.9)'))
    found = {seed: [] for seed in range(4)}
    for seed, trials in found.items():
        for number in range(40):
            values = sweep.suggest(spaces, trials, seed, number)
            came_to = {'failed': 'too deep'} if values['n_layer'] > 6 else {'val_loss': bowl(values)}
            trials.append({'number': number, 'values': values, **came_to})
    return found, spaces


def test_what_is_tried_gets_better_and_keeps_away_from_failure(search):
    """By chance, the mean of the second half is that of the first, and a quarter of both fail."""
    for trials in search[0].values():
        early, late = ([r['val_loss'] for r in half if 'val_loss' in r] for half in (trials[:10], trials[20:]))
        assert sum(late) / len(late) < 0.6 * sum(early) / len(early)
    late = [r for trials in search[0].values() for r in trials[20:]]
    assert sum('failed' in r for r in late) < 0.18 * len(late)


def test_what_is_tried_depends_on_the_seed_and_on_what_was_tried(search):
    found, spaces = search
    trials = found[0]
    through_json = json.loads(json.dumps(trials))
    for number in (0, 1, 9, 25):
        assert sweep.suggest(spaces, through_json[:number], 0, number) == trials[number]['values']
        assert sweep.suggest(spaces, trials[:number], 5, number) != trials[number]['values']
    assert len({json.dumps(r['values']) for r in trials}) == 40
    for r in trials:
        for name, value in r['values'].items():
            space = spaces[name]
            assert value in space.choices if name == 'optimizer' else space.low <= value <= space.high
            assert len(re.sub(r'e.*|\.|^[0.]+', '', repr(value))) <= 4 or name == 'optimizer'       # digits


def test_few_combinations_are_all_tried_once():
    spaces = dict(sweep.space(text, [str(GPT)]) for text in ('n_layer=1..5', 'optimizer=adamw,lion'))
    trials = []
    for number in range(10):
        values = sweep.suggest(spaces, trials, 0, number)
        trials.append({'number': number, 'values': values, 'val_loss': float(values['n_layer'])})
    assert len({json.dumps(r['values']) for r in trials}) == 10


# a sweep ------------------------------------------------------------------------------------------------------------------

def test_the_last_weights_are_judged(swept, dataset):
    """The best's, whose weights are kept, by hand; of all, what the last row of the run's log says."""
    found = results(swept.out)
    assert [r['number'] for r in found] == [0, 1, 2, 3] and swept.errors == ''
    done = [r for r in found if 'val_loss' in r]
    for r in done:
        rows = log.read(swept.out / f'trial-{r["number"]}' / 'metrics.csv')
        assert [row['step'] for row in rows if 'val_loss' in row] == [0, 10, 20, 30]
        assert (r['val_loss'], r['step'], r['tokens']) == (rows[-1]['val_loss'], 30, 30 * 640)
    best = min(done, key=lambda r: r['val_loss'])
    model, content = checkpoint.load_model(swept.out / f'trial-{best["number"]}' / 'ckpt.pt')
    assert content['step'] == 30
    text = data.TextData(dataset)
    by_hand = evaluate(model, text, text.val_starts(8, 16), 16, 8, device.setup('cpu', 'float32', False))
    assert best['val_loss'] == pytest.approx(by_hand['val_loss'], rel=1e-5)
    assert len({r['val_loss'] for r in done}) == len(done) > 1


def test_no_weights_are_kept_but_the_best(swept):
    best = table(swept.out)[0]['number']
    assert {p.parent.name for p in swept.out.glob('*/*.pt')} == {f'trial-{best}'}
    assert len(list(swept.out.glob('*/metrics.csv'))) == sum('val_loss' in r for r in results(swept.out))


def test_a_failed_trial_is_kept_with_its_reason(swept):
    failed = [r for r in results(swept.out) if 'failed' in r]
    assert failed and all(r['values']['n_head'] == 3 for r in failed)
    why = 'model: n_embd=16 is not divisible by n_head=3'
    assert all(r['failed'].startswith(why) for r in failed)
    assert [r['number'] for r in table(swept.out) if r['failed'].startswith(why)] == [str(r['number']) for r in failed]
    assert re.search(rf'^trial {failed[0]["number"]}, learning_rate=.* n_head=3 .*: {why}', swept.shown, re.M)
    assert re.search(rf'^\| {failed[0]["number"]} .*failed .*{why}', swept.shown, re.M)


def test_the_table_has_the_best_first(swept):
    rows, found = table(swept.out), {str(r['number']): r for r in results(swept.out)}
    losses = [float(r['val_loss'] or 'inf') for r in rows]
    assert losses == sorted(losses) and math.isfinite(losses[0])
    for row in rows:
        assert {k: float(row[k]) for k in ('learning_rate', 'n_head', 'dropout')} == found[row['number']]['values']
    shown = re.findall(r'^\| (\d) ', swept.shown, re.M)
    assert shown == [r['number'] for r in rows]


def test_the_best_as_a_config_is_the_best_trial(swept, cli, tmp_path):
    """The same settings, and on the command line the same loss."""
    best = table(swept.out)[0]
    kept = json.loads((swept.out / f'trial-{best["number"]}' / 'config.json').read_text())
    settings = config.load([str(swept.out / 'best.py')], Loop)
    but = ('out_dir', 'overwrite', 'sample_tokens')
    assert {k: v for k, v in vars(settings.loop).items() if k not in but} == \
        {k: v for k, v in kept['loop'].items() if k not in but}
    assert vars(settings.arch.Config(**settings.model)).items() >= {
        k: v for k, v in kept['config'].items() if k != 'vocab_size'}.items()
    assert settings.loop.weight_decay == 0 and settings.loop.learning_rate == float(best['learning_rate'])
    text = (swept.out / 'best.py').read_text()
    assert 'python sweep.py ' in text and "'learning_rate=log(1e-4,1)'" in text and f'(number {best["number"]}, ' in text
    done = cli('train.py', swept.out / 'best.py', f'--out_dir={tmp_path / "run"}')
    assert done.returncode == 0, done.stderr
    assert log.read(tmp_path / 'run' / 'metrics.csv')[-1]['val_loss'] == float(best['val_loss'])


def test_the_plot_shows_every_trial(monkeypatch, tmp_path):
    import matplotlib.pyplot as plt
    figures = []
    monkeypatch.setattr(plt, 'close', figures.append)
    spaces = dict(sweep.space(text, [str(GPT)]) for text in
                  ('learning_rate=log(1e-4,1)', 'n_layer=1..4', 'bias=True,False', 'dropout=lin(0,0.5)'))
    ordered = [{'number': n, 'values': {'learning_rate': 10.0 ** -n, 'n_layer': n, 'bias': n == 2, 'dropout': n / 10}}
               for n in (3, 1, 2, 4)]
    for r, loss in zip(ordered, (1.5, 2.5, 3.5), strict=False):
        r['val_loss'] = loss
    ordered[3]['failed'] = 'so it goes'
    sweep.draw(ordered, spaces, 'four', tmp_path / 'sweep.png')
    assert (tmp_path / 'sweep.png').read_bytes().startswith(b'\x89PNG')
    axes = figures[0].axes
    assert [ax.get_xlabel() for ax in axes] == list(spaces)
    assert [ax.get_xscale() for ax in axes] == ['log', 'linear', 'linear', 'linear']
    assert [t.get_text() for t in axes[2].get_xticklabels()] == ['True', 'False']
    for ax, xs in zip(axes, ([1e-3, 0.1, 1e-2], [3, 1, 2], [1, 1, 0], [0.3, 0.1, 0.2]), strict=True):
        points = ax.collections[0].get_offsets()
        assert points[:, 1].tolist() == [1.5, 2.5, 3.5]
        assert points[:, 0].tolist() == pytest.approx(xs, abs=0.3 if ax is axes[2] else 1e-9)
        star, ticks = ax.lines
        assert star.get_ydata() == [1.5] and star.get_xdata() == points[0, 0] and len(ticks.get_xdata()) == 1
    assert [ax.lines[1].get_xdata()[0] for ax in axes] == [1e-4, 4, pytest.approx(1, abs=0.3), 0.4]


# stopped and gone on with -------------------------------------------------------------------------------------------------

def test_a_sweep_that_is_stopped_has_the_trials_of_one_that_is_not(swept, tmp_path):
    """Begun with fewer trials, stopped in the midst of a run, and gone on with."""
    out = tmp_path / 'sweep'
    process = start(*swept.words, f'--out={out}', '--trials=3')
    first = next(r['number'] for r in results(swept.out) if 'val_loss' in r)
    while not (out / f'trial-{first}' / 'ckpt.pt').exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.endswith('was stopped: the same command goes on with it\n')
    assert errors.count('\n') == 1
    stopped = [r for r in results(out) if r['number'] == first]
    assert stopped == [{'number': first, 'values': results(swept.out)[first]['values']}]
    step = checkpoint.load(out / f'trial-{first}' / 'ckpt.pt')['step']
    assert step < 30
    main(*swept.words, f'--out={out}', '--trials=3')
    assert f'resumed at step {step}' in (out / f'trial-{first}.log').read_text()
    assert results(out) == results(swept.out)[:3]
    shown = main(*swept.words, f'--out={out}', '--trials=4')
    assert re.findall(r'^trial (\d), ', shown, re.M) == ['3']
    assert results(out) == results(swept.out)
    names = [name for name in table(out)[0] if name != 'seconds']
    assert [[r[k] for k in names] for r in table(out)] == [[r[k] for k in names] for r in table(swept.out)]
    assert [s for s in (out / 'best.py').read_text().splitlines() if s[:1] != '#'] == \
        [s for s in (swept.out / 'best.py').read_text().splitlines() if s[:1] != '#']


def test_what_a_kill_left_undone_is_done_without_training(copied, swept, untrained):
    """It came after the last trial, before the tables; older weights were still there."""
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
    kept = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    for asked, what in (([gpt, '--search', 'n_layer=1..2'], 'its search is '),
                        ([*words, '--steps=20'], "its budget is the config's"),
                        ([*words, '--seed=1'], 'its --seed is 0, this one asks for 1'),
                        ([*words, '--set', 'beta1=0.5'], 'its beta1 is 0.9, this one asks for 0.5')):
        said = refusal(*asked, f'--out={out}')
        assert said.startswith(f'{out} holds another sweep: {what}')
        assert said.endswith('choose another --out, or --overwrite it')
    assert all(p.read_bytes() == content for p, content in kept.items())
    with compare.locked(out):
        assert 'is in use' in refusal(*words, f'--out={out}')


@pytest.mark.parametrize('name, content', [
    ('trial-0/result.json', '{"number": 0, "val'), ('trial-0/result.json', '[]'), ('trial-0/result.json', '{"number": 0}'),
    ('trial-0/result.json', '{"number": 0, "values": {"n_head": 9, "learning_rate": 0.1, "dropout": 0}}'), ('sweep.json', '[]'),
])
def test_a_damaged_file_is_told(copied, untrained, name, content):
    words, out = copied
    (out / name).write_text(content)
    said = refusal(*words)
    assert said.startswith(f'{out / name} is damaged (') and said.endswith('): remove it, and the same command makes it anew')


def test_what_cannot_be_written_is_told(copied, refused):
    words, out = copied
    (out / 'table.csv').unlink()
    (out / 'table.csv').mkdir()
    said = refused('sweep.py', *words)
    assert said == f'{out / "table.csv"} could not be written (Is a directory): mend that, and the same command goes on'


# trials that fail ---------------------------------------------------------------------------------------------------------

def test_a_sweep_without_success_ends_early_and_can_be_begun_anew(gpt, tmp_path, untrained):
    out = tmp_path / 'sweep'
    said = refusal(gpt, '--search', 'n_head=3,5,6,7,9,11', f'--out={out}')
    assert said.startswith('no trial of 5 came to its end, the last since: model: n_embd=16 is not divisible by n_head=')
    assert said.endswith('; mend that, and begin anew with --overwrite')
    assert len(table(out)) == len(results(out)) == 5 and not (out / 'best.py').exists()
    said = refusal(gpt, '--search', 'n_head=3,5', f'--out={out}', '--overwrite')
    assert said.startswith('no trial of 2 came to its end')            # there are no more
    assert len(results(out)) == 2 and not (out / 'trial-2').exists()


def test_a_trial_that_diverges_has_failed(gpt, tmp_path):
    said = refusal(f'{gpt} --optimizer=sgd --grad_clip=0', '--search', 'learning_rate=1e30,1e29', '--trials=1', '--steps=10',
                   f'--out={tmp_path}')
    assert 'the last since: diverged: its train_loss was nan at step 5; mend' in said
    assert results(tmp_path)[0]['step'] == 5 and not list(tmp_path.glob('*/*.pt'))


def test_a_run_that_was_ended_by_others_is_no_failure(gpt, tmp_path, monkeypatch):
    """train.py, told to end, saves and ends well: at a step that is not the last one."""
    def ended(words, folder, lock, progress):
        (folder / 'metrics.csv').write_text('step,tokens,seconds,train_loss\n7,70,1.0,2.5\n')
    monkeypatch.setattr(sweep, 'train', ended)
    said = refusal(gpt, '--search', 'n_layer=1..2', f'--out={tmp_path}')
    assert said == 'trial 0 was stopped at step 7: the same command goes on with it'
    assert 'failed' not in results(tmp_path)[0]


def test_a_budget_of_tokens_is_one_of_steps_that_depend_on_the_batch(gpt):
    first = compare.read([str(gpt), '--tokens_per_step=0'], [])
    for batch_size, steps in ((2, 20), (4, 10), (5, 8)):
        e = sweep.entrant(first, {'batch_size': batch_size}, ('tokens', 640))
        assert (e.settings.loop.max_iters, e.settings.loop.max_seconds) == (steps, 0)
    loop = sweep.entrant(first, {}, ('seconds', 2.5)).settings.loop
    assert (loop.max_iters, loop.max_seconds) == (0, 2.5)
    assert sweep.spent(loop, {'step': 9, 'seconds': 0.5}) == 0.2
    loop = sweep.entrant(first, {}, None).settings.loop
    assert (loop.max_iters, loop.max_seconds) == (30, 0) and sweep.spent(loop, {'step': 45}) == 1


@pytest.mark.parametrize('config, values', [('shakespeare_pacing', {'predicts': 'last'}),
                                            ('shakespeare_wavegpt', {'reads': 'leak'})])
def test_a_trial_that_is_judged_otherwise_is_refused(dataset, config, values):
    first = compare.read([str(ROOT / 'config' / f'{config}.py'), f'--dataset={dataset.name}'], [])
    with pytest.raises(UserError, match='or it sees its targets: it cannot be compared'):
        sweep.entrant(first, values, None)
