"""A race: the same budget, the same windows and no run twice, whatever comes between; and what cannot be raced is refused."""

import contextlib
import csv
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from conftest import begin, contents, until

import compare
from harness import UserError, checkpoint, config, data, device, runs
from harness.log import read as rows_of
from train import evaluate
from train import main as train_here


@pytest.fixture(scope='module')
def configs(dataset, tmp_path_factory):
    """A folder with two configs of networks that train in a moment, gpt.py and pic.py."""
    folder = tmp_path_factory.mktemp('configs')
    for name, lines in (('gpt', "arch = 'model'\nn_layer, n_head, n_embd = 1, 2, 16"),
                        ('pic', "arch = 'pacing'\nn_layer, n_embd, columns = 1, 16, 4")):
        (folder / f'{name}.py').write_text(f"{lines}\ndataset, device = '{dataset.name}', 'cpu'\n"
                                           'block_size, batch_size, eval_windows, warmup_iters = 16, 4, 8, 2\n')
    return folder


def main(*words):
    """compare.py in this process, which has imported all that takes it seconds.  Returns what it prints."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        compare.main(list(map(str, words)))
    return shown.getvalue()


def quick(words, folder, *_):
    """In the place of compare.train(): the run in this process."""
    with open(folder.with_name(f'{folder.name}.log'), 'w') as f, contextlib.redirect_stdout(f):
        try:
            train_here([*words, f'--out_dir={folder}'])
        except UserError as e:
            return str(e)


def stamps(out):
    """{path: when it was written} of what a run that is trained again would replace."""
    return {p: p.stat().st_mtime_ns for name in ('ckpt.pt', 'result.json', 'metrics.csv') for p in out.glob(f'*/{name}')}


def results(out):
    return json.loads((out / 'results.json').read_text(encoding='utf-8'))


def turns(shown):
    """[(name, seed)] of the runs in the order in which they came to their end."""
    return [(m[1], int(m[2])) for m in re.finditer(r'^(.+), seed (\d+): ', shown, re.M)]


@pytest.fixture(scope='module')
def race(configs, cli, tmp_path_factory):
    """A race of two on the command line, which a second and a third seed join later.  Look, do not touch: `going_on` is a
    copy.  .trained: the folders of the runs that joined, in turn."""
    out, trained = tmp_path_factory.mktemp('race') / 'race', []
    words = [configs / 'gpt.py', configs / 'pic.py', '--steps=10', '--windows=200', '--set', 'eval_interval=5']
    done = cli('compare.py', *words, f'--out={out}', '--seeds=1')
    assert done.returncode == 0, done.stderr
    before = stamps(out)
    with mock.patch.object(compare, 'train', lambda *args: (trained.append(args[1].name), quick(*args))[1]):
        two, three = (main(*words, f'--out={out}', f'--seeds={seeds}') for seeds in (2, 3))
    return SimpleNamespace(out=out, words=words, one=done.stdout, two=two, three=three, errors=done.stderr, before=before,
                           trained=trained)


@pytest.fixture
def reported(monkeypatch):
    """The records of races, which are not drawn: that takes a while."""
    records = []
    monkeypatch.setattr(compare.report, 'write', lambda record, *_: records.append(json.loads(json.dumps(record))))
    monkeypatch.setattr(compare, 'sights', lambda *_: {})
    return records


@pytest.fixture
def going_on(race, tmp_path):
    """(words, folder) of a copy of the race, to go on with."""
    shutil.copytree(race.out, tmp_path / 'race')        # with the times of the files
    return [*race.words, f'--out={tmp_path / "race"}'], tmp_path / 'race'


# a race -------------------------------------------------------------------------------------------------------------------

def test_runs_take_turns_and_leave_all_their_files(race):
    assert turns(race.one) == [('gpt', 1337), ('pic', 1337)] and race.errors == ''
    assert race.trained == ['gpt-1338', 'pic-1338', 'gpt-1339', 'pic-1339']
    names = {p.name for p in race.out.iterdir()}
    assert names >= {'race.json', 'results.json', 'report.html', 'race.png', 'table.md', 'table.csv'}
    for name in ('gpt', 'pic'):
        for seed in (1337, 1338, 1339):
            assert {f'{name}-{seed}', f'{name}-{seed}.log'} <= names
            assert (race.out / f'{name}-{seed}' / 'result.json').exists()
            assert checkpoint.load(race.out / f'{name}-{seed}' / 'ckpt.pt')['loop']['seed'] == seed
    assert (race.out / 'table.md').read_text(encoding='utf-8') in race.three
    assert [len(e['runs']) for e in results(race.out)['entrants']] == [3, 3]
    page = (race.out / 'report.html').read_text(encoding='utf-8')
    assert page.count('<svg') == 3 and page.count('data:image/png') == 2       # curves; what each of the two sees


def test_the_last_weights_are_judged_on_the_same_windows(race, dataset):
    """By hand: evaluate() of the checkpoint, in batches of another size than the race's."""
    machine, text = device.setup('cpu', 'float32', False), data.TextData(dataset)
    for e in results(race.out)['entrants']:
        assert [r['seed'] for r in e['runs']] == [1337, 1338, 1339] and e['predicts'] == 'every'
        for r in e['runs']:
            model, content = checkpoint.load_model(race.out / f'{e["name"]}-{r["seed"]}' / 'ckpt.pt')
            assert content['step'] == 10 and e['parameters'] == sum(p.numel() for p in model.parameters())
            by_hand = evaluate(model, text, text.val_starts(200, 16), 16, 64, machine)
            for k, v in by_hand.items():
                assert r[k] == pytest.approx(v, rel=1e-5), k
            assert r['bits_per_character'] == pytest.approx(by_hand['val_loss_full'] / math.log(2), rel=1e-5)   # by character
            assert len(r['sample']) == 400 and set(r['sample']) <= set('abcdefgh .\n')
    assert len({r['val_loss'] for e in results(race.out)['entrants'] for r in e['runs']}) == 6      # six runs, none a copy


def test_the_best_weights_are_of_no_account(going_on, configs):
    """They were chosen on the validation text.  Without them the same comes out."""
    _, out = going_on
    (out / 'pic-1338' / 'best.pt').unlink()
    kept, plan = json.loads((out / 'pic-1338' / 'result.json').read_text()), {'flops_per_step': 1}
    e, = enter(configs / 'pic.py')[0]
    again = compare.judge(e, 1338, out / 'pic-1338', plan, 200, device.setup('cpu', 'float32', False))
    assert again == {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-6) for k, v in kept.items()} | {'flops': 10}


def test_all_spend_the_budget(race):
    plans = json.loads((race.out / 'race.json').read_text())['entrants']
    for e in results(race.out)['entrants']:
        per_step = plans[e['name']]['plan']['flops_per_step']
        assert per_step > 6 * 64 * e['parameters'] / 2      # more than half of it is weights of products
        for r in e['runs']:
            assert (r['steps'], r['tokens'], r['flops']) == (10, 10 * 4 * 16, 10 * per_step)
            rows = rows_of(race.out / f'{e["name"]}-{r["seed"]}' / 'metrics.csv')
            assert [row['step'] for row in rows if 'val_loss' in row] == [0, 5, 10]
            assert r['seconds'] == rows[-1]['seconds'] > 0 and r['train_loss'] == rows[-1]['train_loss']
            assert r['tokens_per_second'] == pytest.approx(640 / r['seconds'])


def test_the_table_holds_what_the_runs_have_come_to(race):
    with open(race.out / 'table.csv', newline='', encoding='utf-8') as f:
        rows = list(csv.DictReader(f))
    for row, e in zip(rows, results(race.out)['entrants'], strict=True):
        assert float(row['val_loss_mean']) == pytest.approx(sum(r['val_loss'] for r in e['runs']) / 3, rel=1e-12)
    assert 'difference' in race.two and '(2 seeds: too few)' in race.two and '(p ' not in race.two
    assert '(p ' in race.three and 'too few' not in race.three


def test_a_seed_that_joins_repeats_no_other(race):
    assert turns(race.three) == [(name, seed) for seed in (1337, 1338, 1339) for name in ('gpt', 'pic')]
    after = stamps(race.out)
    assert len(race.before) == 6 and len(after) == 18
    assert all(after[p] == stamp for p, stamp in race.before.items())
    assert 'counting and timing' in race.one and 'counting and timing' not in race.two + race.three     # nor is a step measured


def test_the_same_command_again_trains_nothing_and_says_the_same(race, going_on, untrained):
    words, out = going_on
    before = stamps(out)
    main(*words)
    assert stamps(out) == before
    assert results(out)['entrants'] == results(race.out)['entrants']
    assert (out / 'table.csv').read_bytes() == (race.out / 'table.csv').read_bytes()


def test_an_entrant_joins_and_one_that_diverges_is_shown_and_not_tried_again(going_on, monkeypatch):
    words, out = going_on
    before = stamps(out)
    monkeypatch.setattr(compare, 'train', quick)
    words[2:2] = [f'{words[0]} --optimizer=sgd --learning_rate=1e30 --grad_clip=0']
    shown = main(*words, '--seeds=1')           # no UserError: a race in which a run diverges ends as any other
    assert all(stamps(out)[p] == stamp for p, stamp in before.items())
    name = 'gpt optimizer=sgd learning_rate=1e30 grad_clip=0'
    e = results(out)['entrants'][2]
    assert e['name'] == name and re.search(r'loss became (nan|inf) at step \d+:', e['runs'][0]['diverged'])
    assert e['runs'][0]['steps'] < 10
    assert f'{name} diverged in 1 of 1 runs: the ' in shown and '| diverged |' in (out / 'table.md').read_text(encoding='utf-8')
    assert 'no run came to its end' in (out / 'report.html').read_text(encoding='utf-8')
    before = stamps(out)
    monkeypatch.setattr(compare, 'train', unwanted)
    main(*words, '--seeds=1')
    assert stamps(out) == before and results(out)['entrants'][2] == e


# what comes between ---------------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads /proc to find the process that trains')


def children(pid):
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):          # it has ended since
            found += [int(path.parent.name)] * (int(path.read_text().rpartition(')')[2].split()[1]) == pid)
    return found


def slow(words):
    """The command with an entrant whose steps take long enough to be interrupted, and the entrant's name."""
    return [*words[:2], f'{words[0]} --tokens_per_step=3200', *words[2:], '--seeds=1'], 'gpt_tokens_per_step=3200-1337'


@linux
def test_a_race_that_is_stopped_goes_on(going_on, reported):
    words, out = going_on
    before = stamps(out)
    words, name = slow(words)
    others, trained = children(os.getpid()), []

    def stop():
        while not (out / name / 'ckpt.pt').exists() and racing:         # of step 0
            time.sleep(0.01)
        trained.extend(set(children(os.getpid())) - set(others))
        os.kill(os.getpid(), signal.SIGTERM)
    racing, stopper = [True], threading.Thread(target=stop)
    stopper.start()
    assert refusal(*words) == 'the race was stopped: the same command goes on with it'
    stopper.join()
    with pytest.raises(ProcessLookupError):                 # it has been ended and waited for
        os.kill(*trained, 0)
    step = checkpoint.load(out / name / 'ckpt.pt')['step']
    assert 0 < step < 10 and not (out / name / 'result.json').exists()
    assert f'stopped at step {step} and saved' in (out / f'{name}.log').read_text()
    assert 'gpt tokens_per_step' not in (out / 'results.json').read_text()
    shown = main(*words)
    assert turns(shown) == [('gpt', 1337), ('pic', 1337), ('gpt tokens_per_step=3200', 1337)]
    assert f'resumed at step {step}' in (out / f'{name}.log').read_text()
    r, = reported[0]['entrants'][2]['runs']
    assert (r['steps'], r['tokens']) == (10, 32_000)
    assert all(stamps(out)[p] == stamp for p, stamp in before.items())


@linux
def test_a_race_that_is_killed_keeps_others_out_while_its_run_lives(going_on, untrained):
    words, out = going_on
    words, name = slow(words)
    process = begin(compare.main, list(map(str, words)))
    until((out / f'{name}.log').exists, process)
    trained, = until(lambda: children(process.pid), process)
    try:
        process.kill()
        process.join()
        said = refusal(*words)
        assert f'{out} is in use by another race, or by a run that a killed race left behind' in said
    finally:
        os.kill(trained, signal.SIGKILL)
    for _ in range(1000):                       # its end is not ours to wait for, but the lock's is
        with contextlib.suppress(UserError), compare.locked(out):
            break
        time.sleep(0.01)
    with compare.locked(out), pytest.raises(UserError, match='is in use'), compare.locked(out):
        pass


FAILS = """
import model
from model import Config
class Model(model.Model):
    calls = 0
    def forward(self, x, y=None):
        self.calls += y is not None
        if self.calls > 8:          # compare.py itself takes 6 steps to count and time them
            raise RuntimeError('the ninth step is too much')
        return super().forward(x, y)
"""


def test_a_run_that_fails_does_not_stop_the_race(tree, configs, dataset, tmp_path, monkeypatch):
    (tree / 'fails.py').write_text(FAILS)
    (tree / 'data').mkdir()
    (tree / 'data' / dataset.name).symlink_to(dataset)
    monkeypatch.setattr(compare, 'ROOT', tree)          # its train.py is what is run
    monkeypatch.setattr(config, 'ROOT', tree)
    monkeypatch.setattr('sys.path', [*sys.path])
    real = compare.train
    monkeypatch.setattr(compare, 'train', lambda words, *more: (real if '--arch=fails' in words else quick)(words, *more))
    gpt, out = configs / 'gpt.py', tmp_path / 'race'
    errors = refusal(f'{gpt} --arch=fails', gpt, '--steps=10', '--windows=50', '--seeds=1', f'--out={out}')
    assert errors == ('1 of 2 runs failed, first gpt arch=fails, seed 1337: RuntimeError: the ninth step is too much; to try '
                      'again, repeat the command')
    fails, gpt = results(out)['entrants']
    assert fails['runs'] == [{'seed': 1337, 'failed': 'RuntimeError: the ninth step is too much'}]
    assert gpt['runs'][0]['steps'] == 10 and gpt['runs'][0]['val_loss'] < math.log(11) + 0.1
    told = (out / 'table.md').read_text(encoding='utf-8')
    assert 'gpt arch=fails failed in 1 of 1 runs: RuntimeError: the ninth step is too much' in told
    assert re.search(r'^\| gpt arch=fails \|.*\| +failed \|', told, re.M)
    assert 'Traceback' in (out / 'gpt_arch=fails-1337.log').read_text()      # where it is looked for


def one(race, tmp_path, rows, why):
    """What compare.run() makes of a run that leaves these rows and ends so.  Returns (result, how often it was trained)."""
    folder, calls = tmp_path / 'run', []

    def train(words, folder, *_):
        folder.mkdir(exist_ok=True)
        calls.append(words)
        lines = [','.join(map(str, row)) for row in (('step', 'tokens', 'seconds', 'train_loss', 'grad_norm'), *rows)]
        (folder / 'metrics.csv').write_text('\n'.join(lines) + '\n')
        return why
    e = SimpleNamespace(name='gpt', words=[])
    with mock.patch.object(compare, 'train', train):
        found = [compare.run(e, 1, folder, json.loads((race.out / 'race.json').read_text()), None, None, None) for _ in 'ab']
    assert found[0] == found[1]
    return found[0], len(calls)


def test_what_failed_is_tried_again_and_what_diverged_is_not(race, tmp_path):
    rows = [(1, 64, 0.5, 2.5, 1.0), (2, 128, 1.0, 2.4, 1.0)]
    assert one(race, tmp_path, rows, 'no space') == ({'seed': 1, 'failed': 'no space'}, 2)
    assert one(race, tmp_path, rows, None) == ({'seed': 1, 'failed': 'it was stopped at step 2'}, 2)
    assert one(race, tmp_path, [], None) == ({'seed': 1, 'failed': 'it was stopped at step 0'}, 2)
    r, trained = one(race, tmp_path, [*rows, (3, 192, 1.5, 'nan', '')], 'the training loss became nan at step 2')
    assert trained == 1
    assert r == {'seed': 1, 'diverged': 'the training loss became nan at step 2', 'steps': 3, 'tokens': 192, 'seconds': 1.5}


def test_a_gradient_that_overflowed_is_no_loss_that_did(race, tmp_path):
    """float16 meets an infinite gradient now and then, and skips the step.  Who is killed after it has not diverged."""
    r, trained = one(race, tmp_path, [(1, 64, 0.5, 2.5, 'inf')], 'it was killed by signal 9')
    assert (r, trained) == ({'seed': 1, 'failed': 'it was killed by signal 9'}, 2)


# refusals -----------------------------------------------------------------------------------------------------------------

def unwanted(*_):
    pytest.fail('a run was started')


@pytest.fixture
def untrained(monkeypatch):
    """Nothing may be trained."""
    monkeypatch.setattr(compare, 'train', unwanted)


def refusal(*words):
    """The sentence in which compare.py refuses."""
    with pytest.raises(UserError) as e:
        main(*words)
    assert isinstance(e.value.code, str) and '\n' not in e.value.code
    return e.value.code


@pytest.mark.parametrize('rival, words, said', [
    ('pic.py --dataset=OTHER', [], ['reads other data (OTHER, ', 'cannot be compared', '--set dataset=']),
    ('pic.py --leaking_split', [], ['reads other data', '-leaking)', 'cannot be compared']),
    ('pic.py --block_size=8', [], ['windows of 8 tokens', 'of 16,', 'different validation windows', '--set block_size=16']),
    ('nosuch.py', [], ["cannot read the config file '", 'nosuch.py', 'No such file']),
    ('pic.py --n_lyer=2', [], ["unknown setting 'n_lyer'", "did you mean 'n_layer'?"]),
    ('gpt.py', [], ["two entrants are called 'gpt'", 'in quotes behind its config']),
    ('pic.py', ['--set', 'n_lyer=2'], ['--set n_lyer=2: none of these configs has such a setting']),
    ('pic.py', ['--set', 'n_layer=2', 'columns'], ["cannot read --set 'columns': name=value is wanted"]),
    ('pic.py', ['--set', 'max_iters=0', 'max_seconds=1'], ['gpt has no max_iters to tell the budget', '--seconds']),
    ('pic.py', ['--seeds=0'], ['--seeds=0 must be at least 1']),
    ('pic.py', ['--windows=-1'], ['--windows=-1 not negative']),
    ('pic.py', ['--steps=0'], ['--steps=0 must be above 0']),
    ('pic.py', ['--seconds=nan'], ['--seconds=nan must be above 0']),
    ('pic.py', ['--steps=10', '--tokens=1e6'], ['--tokens: not allowed with argument --steps', '--help']),
    ('pic.py', ['--tokens=10'], ['--tokens=10 gives gpt 0 steps of 64 tokens each', 'too few', ' 64 are the least']),
    ('pic.py', ['--steps=10', '--set', 'eval_interval=50'], ['--steps=10 gives gpt 10 steps', 'too few', ' 50 are the least']),
    ('pic.py', ['--flops=1e4'], ['--flops=10000 gives gpt 0 steps', 'too few']),
])
def test_refused_before_anything_is_trained(configs, other_data, tmp_path, untrained, rival, words, said):
    out = tmp_path / 'race'
    sentence = refusal(configs / 'gpt.py', f'{configs}/{rival.replace("OTHER", other_data)}', *words, f'--out={out}')
    assert all(s.replace('OTHER', other_data) in sentence for s in said), sentence
    assert not out.exists() or [p.name for p in out.iterdir()] == ['.lock']


@pytest.mark.parametrize('words, said', [
    (['--steps=20'], ["its budget is ['steps', 10.0], this one asks for ['steps', 20.0]"]),
    (['--tokens=640'], ["its budget is ['steps', 10.0], this one asks for ['tokens', 640.0]"]),
    (['--steps=10', '--windows=100'], ['its windows is 200, this one asks for 100']),
    (['--steps=10', '--set', 'learning_rate=1e-3'], ['holds another gpt: its learning_rate is 0.004, this one has 0.001']),
    (['--steps=10', '--set', 'columns=8'], ['holds another pic: its columns is 4, this one has 8']),
    (['--steps=10', '--set', 'DATA'], ['holds another gpt: its data is ']),
], ids=['steps', 'tokens', 'windows', 'rate', 'columns', 'data'])
def test_a_folder_that_holds_another_race(race, other_data, untrained, words, said):
    before = contents(race.out)
    words = [w.replace('DATA', f'dataset={other_data}') for w in words]
    sentence = refusal(*race.words[:2], *race.words[-2:], '--windows=200', f'--out={race.out}', *words)    # the last is taken
    assert str(race.out) in sentence and all(s in sentence for s in [*said, '--out', '--overwrite']), sentence
    assert contents(race.out) == before


def test_overwrite_begins_anew(going_on, monkeypatch):
    """But not before it is known that the new race can be run at all."""
    words, out = going_on
    before = stamps(out)
    monkeypatch.setattr(compare, 'train', lambda *_: 'this is a test')
    refusal(*words, '--overwrite', '--set', 'n_lyer=2')
    assert stamps(out) == before
    assert '6 of 6 runs failed' in refusal(*words, '--overwrite')
    assert not stamps(out)


def test_a_folder_that_cannot_be_used(configs, tmp_path, untrained):
    (tmp_path / 'file').write_text('mine')
    for out in (tmp_path / 'file', tmp_path / 'file' / 'race'):
        assert f'--out={out} cannot be written' in refusal(configs / 'gpt.py', '--steps=10', f'--out={out}')
    (tmp_path / 'race.json').write_text('{"budget": ')
    assert f'{tmp_path / "race.json"} is damaged' in refusal(configs / 'gpt.py', '--steps=10', f'--out={tmp_path}')


def test_an_error_of_an_architecture_is_not_blamed_on_the_folder(configs, tmp_path, monkeypatch, untrained):
    """It comes while a step is counted."""
    def cost(*_):
        raise ValueError('a bug of the architecture')
    monkeypatch.setattr(compare, 'cost', cost)
    with pytest.raises((ValueError, UserError), match='a bug of the architecture') as e:
        main(configs / 'gpt.py', '--steps=10', f'--out={tmp_path / "race"}')
    assert 'damaged' not in str(e.value)


# the entrants -------------------------------------------------------------------------------------------------------------

def enter(*words):
    return compare.enter(compare.arguments(list(map(str, words))))


def test_settings_behind_a_config_and_of_all(configs):
    gpt, deep, pic = enter(configs / 'gpt.py', f'{configs}/gpt.py --n_layer=2', configs / 'pic.py',
                           '--set', 'columns=8', 'max_iters=7', 'seed=5')[0]
    assert [e.name for e in (gpt, deep, pic)] == ['gpt', 'gpt n_layer=2', 'pic']
    assert [e.model.n_layer for e in (gpt, deep, pic)] == [1, 2, 1]
    assert pic.model.columns == 8 and {e.settings.loop.max_iters for e in (gpt, deep, pic)} == {7}
    assert gpt.settings.loop.seed == 5 and gpt.tokens_per_step == 64


def test_what_an_entrant_is_called_is_what_it_is(configs):
    """A setting of its own, which names it, comes before one of all."""
    gpt, deep = enter(configs / 'gpt.py', f'{configs}/gpt.py --n_layer=3', '--set', 'n_layer=2')[0]
    assert (gpt.model.n_layer, deep.name, deep.model.n_layer) == (2, 'gpt n_layer=3', 3)


def test_no_two_entrants_share_a_folder(configs, tmp_path):
    """Else the second would be given the results of the first."""
    for name in ('my gpt', 'my_gpt'):
        shutil.copy(configs / 'gpt.py', tmp_path / f'{name}.py')
    with contextlib.suppress(UserError):        # to refuse them would do, too
        a, b = enter(f"'{tmp_path}/my gpt.py'", tmp_path / 'my_gpt.py')[0]
        assert a.name != b.name and a.folder(tmp_path, 1) != b.folder(tmp_path, 1)


def test_a_budget_becomes_steps(configs):
    e, = enter(configs / 'gpt.py')[0]
    args, machine = compare.arguments([str(configs / 'gpt.py')]), device.setup('cpu', 'float32', False)
    each = compare.cost(e, machine)[0]
    for budget in (('steps', 100), ('tokens', 6400), ('tokens', 6463), ('flops', 100 * each)):
        plan = compare.plan(e, args, budget, machine)
        assert plan == {'flags': {'max_seconds': 0, 'max_iters': 100, 'eval_interval': 5, 'sample_tokens': 0},
                        'flops_per_step': each}
    plan = compare.plan(e, args, ('seconds', 30), machine)['flags']
    assert plan['max_seconds'] == 30 and plan['max_iters'] == 0 and plan['eval_interval'] > 1
    assert compare.done(compare.plan(e, args, ('seconds', 30), machine), {'seconds': 15, 'step': 10 ** 6}) == 0.5


@pytest.mark.parametrize('words', ['--eval_interval=7', '--eval_interval 7'])
def test_an_eval_interval_that_is_said_is_kept(configs, words):
    e, = enter(f'{configs}/gpt.py {words}')[0]
    machine = device.setup('cpu', 'float32', False)
    assert compare.plan(e, None, ('steps', 100), machine)['flags']['eval_interval'] == 7


def test_what_a_step_costs(configs):
    machine = device.setup('cpu', 'float32', False)
    one, four = enter(configs / 'gpt.py', f'{configs}/gpt.py --tokens_per_step=256', '--set', 'optimizer=sgd')[0]
    # linear layers, attention, head; and twice as much for the gradients. sgd multiplies no matrices, but Muon does
    forward = 2 * 64 * (12 * 16 * 16) + 2 * (2 * 4 * 16 * 16 * 16) + 2 * 64 * 16 * 11
    assert compare.cost(one, machine)[0] == 3 * forward
    assert four.tokens_per_step == 4 * one.tokens_per_step and compare.cost(four, machine)[0] == 4 * 3 * forward
    muon, = enter(configs / 'gpt.py')[0]
    assert muon.settings.loop.optimizer == 'muon'
    assert compare.cost(muon, machine)[0] > 3 * forward


def test_enough_is_asked_by_default():
    args = compare.arguments(['gpt.py'])
    assert (args.seeds, args.windows, args.budget, args.out) == (3, 5000, None, 'out/race')
    assert compare.arguments(['gpt.py', '--tokens=2e6']).budget == ('tokens', 2e6)


def size(words):
    """Parameters of what train.py would train with these words."""
    settings = config.load(list(map(str, words)), compare.Loop)
    with torch.device('meta'):
        model = settings.arch.Model(config.build(settings.arch, {'vocab_size': 11} | settings.model))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('rival, width', [('pic.py', '--n_embd='), ('pic.py --n_embd=200', '--n_embd='),
                                          ('gpt.py --n_layer=4', '--n_embd='),
                                          ('pic.py --predicts=last --patch_size=4 --depths=1,1 --dims=8,16', '--dims=')],
                         ids=['up', 'down', 'heads', 'last'])
def test_matching_parameters(configs, rival, width):
    first = f'{configs}/gpt.py --n_embd=64'
    (gpt, e), (note,) = enter(first, f'{configs}/{rival}', '--match=parameters')
    assert gpt.parameters == size([configs / 'gpt.py', '--n_embd=64'])
    assert abs(e.parameters / gpt.parameters - 1) <= 0.02
    assert size(e.words) == e.parameters                # what is trained is what was counted
    said = next(w for w in reversed(e.words) if w.startswith(width))
    assert f'{said} gives {e.parameters:,} parameters, to match {gpt.parameters:,}' in note and note.startswith(f'{e.name}: ')
    assert e.name == ' '.join(w.lstrip('-') for w in rival.replace('.py', '').split())


def test_what_matches_already_stays_as_it_is(configs):
    (_, e), notes = enter(configs / 'gpt.py', f'{configs}/gpt.py --learning_rate=1e-2', '--match=parameters')
    assert notes == [] and e.model.n_embd == 16
    assert enter(configs / 'gpt.py', configs / 'pic.py')[0][1].model.n_embd == 16       # nor is anything scaled unasked


def test_a_width_that_cannot_match_is_refused(configs):
    """64 heads: from 64 channels to 128 there is no width."""
    with pytest.raises(UserError, match=r'no width brings gpt n_head=64 n_embd=64 within 2% of .*change its layers or heads'):
        enter(f'{configs}/gpt.py --n_embd=90', f'{configs}/gpt.py --n_head=64 --n_embd=64', '--match=parameters')


def test_a_width_is_found_though_most_parameters_do_not_depend_on_it(configs):
    """A large vocabulary embedded in patches of a fixed size."""
    seed = '--predicts=last --patch_size=4 --depths=1,1 --vocab_size=2000'
    wanted, small = size([configs / 'pic.py', *seed.split(), '--dims=64,128']), f'{configs}/pic.py {seed} --dims=8,16'
    (_, e), _ = enter(f'{configs}/pic.py {seed} --dims=64,128', small, '--match=parameters')
    assert abs(e.parameters / wanted - 1) <= 0.02


FIGURES = {'steps': 10, 'tokens': 640, 'seconds': 1.0, 'tokens_per_second': 640.0, 'flops': 1e6, 'memory': 1.0, 'sample': 'abc',
           'train_loss': 2.0, 'val_loss_full': 2.0, 'bits_per_character': 2.9, 'accuracy_full': 0.5}


@pytest.fixture
def made_up(monkeypatch):
    """Runs that nobody trains."""
    monkeypatch.setattr(compare, 'run', lambda e, seed, *_: {'seed': seed, 'val_loss': 2 + seed % 7 / 100, **FIGURES})
    monkeypatch.setattr(compare, 'sights', lambda *_: {})


def test_a_race_on_a_leaking_split_says_so(configs, tmp_path, made_up):
    out = tmp_path / 'race'
    words = [configs / 'gpt.py', configs / 'pic.py', '--steps=10', f'--out={out}']
    assert 'THE SPLIT LEAKS' in main(*words, '--set', 'leaking_split=True')
    assert results(out)['data']['fingerprint'].endswith('-leaking')
    for name in ('table.md', 'report.html'):
        assert 'THE SPLIT LEAKS' in (out / name).read_text(encoding='utf-8')
    assert 'its data is ' in refusal(*words)            # nor can it be gone on with as if it were honest


def test_a_race_of_a_model_that_leaks_says_so(configs, tmp_path, made_up):
    """train.py and sample.py do, and nobody reads those where compare.py says who won."""
    words = f'{configs}/gpt.py --arch=wavenet --join=4 --reads='
    shown = main(configs / 'gpt.py', f'{words}memory', f'{words}leak', '--steps=10', f'--out={tmp_path / "race"}')
    said = [s for s in shown.splitlines() if 'sees the tokens that it is to predict' in s]
    assert len(said) == 1 and 'reads=leak' in said[0]


def test_what_a_model_sees_is_looked_at_in_text_alone(configs, tmp_path, monkeypatch):
    """Before the first window there is none, and what stands for it is no token to put elsewhere."""
    e, = enter(f'{configs}/gpt.py --arch=wavenet --join=4 --reads=memory')[0]
    looked, machine = [], device.setup('cpu', 'float32', False)
    monkeypatch.setattr(checkpoint, 'load_model', lambda path: (runs.new_model(e.settings, e.text).eval(), {}))
    monkeypatch.setattr(compare.look, 'influence', lambda model, x: looked.append(x) or torch.eye(16, 32).numpy())
    shown = compare.sights(e, [{'seed': 1, 'failed': 'no space'}, {'seed': 2, **FIGURES, 'val_loss': 2.0}], machine, tmp_path)
    (title, png), = shown.items()
    assert '(seed 2)' in title and png.startswith(b'\x89PNG')
    assert looked[0].shape == (8, 32) and (looked[0] >= 0).all()
    assert compare.sights(e, [{'seed': 1, 'failed': 'no space'}], machine, tmp_path) == {}


def test_a_damaged_result_is_told(configs, tmp_path):
    e, = compare.enter(compare.arguments([str(configs / 'gpt.py')]))[0]
    folder = tmp_path / 'gpt-1'
    folder.mkdir()
    (folder / 'result.json').write_text('{"seed": 1, ')
    with pytest.raises(UserError, match=r'is damaged .*remove it, and the run is judged again'):
        compare.run(e, 1, folder, {'entrants': {e.name: {'plan': {}}}}, None, None, None)
