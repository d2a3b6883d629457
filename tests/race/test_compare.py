"""A race: every run has the same budget and windows, and no run is repeated, however often the race is interrupted."""

import contextlib
import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from conftest import begin, contents, names, printed, sentence, train_here, until

import compare
from harness import UserError, checkpoint, data, device, runs
from harness.log import read as read_rows
from race import processes
from race.entrants import slug
from train import evaluate

FIGURES = {'steps': 10, 'tokens': 640, 'seconds': 1.0, 'tokens_per_second': 640.0, 'flops': 1e6, 'memory': 1.0, 'sample': 'abc',
           'train_loss': 2.0, 'val_loss_full': 2.0, 'bits_per_character': 2.9, 'accuracy_full': 0.5}


def main(*words):
    return printed(compare.main, words)


def refusal(*words):
    return sentence(main, *words)


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(compare, 'train', lambda *_: pytest.fail('a run was started'))


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(compare, 'run', lambda e, seed, *_: {'seed': seed, 'val_loss': 2 + seed % 7 / 100, **FIGURES})
    monkeypatch.setattr(compare, 'influence', lambda *_: {})


def stamps(out):
    """{path: time of the last write} of the files that training a run again would replace."""
    return {p: p.stat().st_mtime_ns for name in ('ckpt.pt', 'result.json', 'metrics.csv') for p in out.glob(f'*/{name}')}


def results(out):
    return json.loads((out / 'results.json').read_text(encoding='utf-8'))


def turns(shown):
    """[(name, seed)] of the runs in the order in which they ended."""
    return [(m[1], int(m[2])) for m in re.finditer(r'^(?!run )(.+), seed (\d+): ', shown, re.M)]


@pytest.fixture(scope='module')
def race(race_configs, cli, tmp_path_factory):
    """A race of two entrants on the command line, which a second and a third seed join.  Read only: `copied` is a copy."""
    out, trained, partial = tmp_path_factory.mktemp('race') / 'race', [], []
    words = [race_configs / 'gpt.py', race_configs / 'pic.py', '--steps=10', '--windows=200', '--set', 'eval_interval=5']
    done = cli('compare.py', *words, f'--out={out}', '--seeds=1', timeout=600)
    assert done.returncode == 0, done.stderr
    before = stamps(out)

    def train(words, folder, *_):
        partial.append(results(out).get('progress'))
        trained.append(folder.name)
        return train_here(words, folder)
    with mock.patch.object(compare, 'train', train):
        more = [main(*words, f'--out={out}', f'--seeds={seeds}') for seeds in (2, 3)]
    return SimpleNamespace(out=out, words=words, shown=[done.stdout, *more], before=before, trained=trained, partial=partial)


@pytest.fixture
def copied(race, tmp_path):
    """(words, folder) of a copy of the race, to resume."""
    shutil.copytree(race.out, tmp_path / 'race')
    return [*race.words, f'--out={tmp_path / "race"}'], tmp_path / 'race'


def test_entrants_take_turns_and_no_run_is_repeated(race, copied, untrained):
    """Neither when seeds join, nor by the same command again, which finds the same; a partial report follows every run."""
    order = [(name, seed) for seed in (1337, 1338, 1339) for name in ('gpt', 'pic')]
    assert [turns(shown) for shown in race.shown] == [order[:2], order[:4], order]
    assert race.trained == ['gpt-1338', 'pic-1338', 'gpt-1339', 'pic-1339'] and race.partial == [None, [3, 4], None, [5, 6]]
    assert '2 runs x 10 steps, about' in race.shown[0] and ['measuring' in s for s in race.shown] == [True, False, False]
    after = stamps(race.out)
    assert len(race.before) == 6 and len(after) == 18 and all(after[p] == stamp for p, stamp in race.before.items())
    files = {'race.json', 'results.json', 'report.html', 'race.png', 'table.md', 'table.csv'}
    assert files <= {*names(race.out)} and 'progress' not in results(race.out)
    page = (race.out / 'report.html').read_text(encoding='utf-8')
    assert page.count('<svg') == 3 and page.count('data:image/png') == 2        # curves; the influence of each entrant
    words, out = copied
    before = stamps(out)
    main(*words)
    assert stamps(out) == before and results(out)['entrants'] == results(race.out)['entrants']
    assert (out / 'table.csv').read_bytes() == (race.out / 'table.csv').read_bytes()


def test_the_last_weights_are_judged_on_the_same_windows(race, dataset):
    """evaluate() of each checkpoint, in batches of another size."""
    machine, text = device.setup('cpu', 'float32', False), data.TextData(dataset)
    plans = json.loads((race.out / 'race.json').read_text())['entrants']
    for e in results(race.out)['entrants']:
        per_step = plans[e['name']]['plan']['flops_per_step']
        assert per_step > 6 * 64 * e['parameters'] / 2      # most of it is in products with the weights
        for r, seed in zip(e['runs'], (1337, 1338, 1339), strict=True):
            model, content = checkpoint.load_model(race.out / f'{e["name"]}-{seed}' / 'ckpt.pt')
            assert content['step'] == 10 and content['loop']['seed'] == r['seed'] == seed
            expected = evaluate(model, text, text.val_indices(200, 16), 64, machine)
            assert {k: r[k] for k in expected} == pytest.approx(expected, rel=1e-5)
            assert r['bits_per_character'] == pytest.approx(expected['val_loss_full'] / math.log(2), rel=1e-5)
            assert (r['steps'], r['tokens'], r['flops']) == (10, 10 * 4 * 16, 10 * per_step)
            rows = [row for row in read_rows(race.out / f'{e["name"]}-{seed}' / 'metrics.csv') if 'val_loss' in row]
            assert r['curve']['step'] == [row['step'] for row in rows] == [0, 5, 10]
            assert r['curve']['val_loss'] == pytest.approx([row['val_loss'] for row in rows], rel=1e-4)
    assert len({r['val_loss'] for e in results(race.out)['entrants'] for r in e['runs']}) == 6


def test_the_best_weights_do_not_matter(copied, race_configs):
    _, out = copied
    (out / 'pic-1337' / 'best.pt').unlink()
    e, = compare.enter([str(race_configs / 'pic.py')], [])[0]
    again = compare.judge(e, 1337, out / 'pic-1337', 1, 200, device.setup('cpu', 'float32', False))
    kept = json.loads((out / 'pic-1337' / 'result.json').read_text())
    assert kept.pop('ended') and kept.pop('machine') and kept.pop('commit') is not None
    assert again == {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-6) for k, v in kept.items()} | {'flops': 10}
    assert len(again['sample']) == 400 and set(again['sample']) <= set('abcdefgh .\n')


def test_a_diverged_entrant_is_reported_and_not_tried_again(copied, untrained):
    words, out = copied
    before = stamps(out)
    words[2:2] = [f'{words[0]} --arch=highorder --optimizer=sgd --learning_rate=1e12']     # a nan is an index there
    with mock.patch.object(compare, 'train', train_here):
        shown = main(*words, '--seeds=1')
    assert all(stamps(out)[p] == stamp for p, stamp in before.items())
    e = results(out)['entrants'][2]
    assert re.search(r'loss became (nan|inf) at step \d+', e['runs'][0]['diverged']) and e['runs'][0]['steps'] < 10
    assert f'{e["name"]} diverged in 1 of 1 runs' in shown and '| diverged |' in (out / 'table.md').read_text(encoding='utf-8')
    before = stamps(out)
    main(*words, '--seeds=1')
    assert stamps(out) == before and results(out)['entrants'][2] == e


def test_all_runs_are_judged_on_the_windows_of_the_first_command(race_configs, tmp_path, made_up, monkeypatch):
    """Without --windows their number depends on measured times, which differ when the race is resumed."""
    words = [race_configs / 'gpt.py', '--steps=10', f'--out={tmp_path}', '--seeds=1']
    monkeypatch.setattr(compare, 'affordable', lambda *_: (70, 1200))
    main(*words)
    monkeypatch.setattr(compare, 'affordable', lambda *_: (80, 3000))
    main(words[0], race_configs / 'pic.py', *words[1:])
    assert results(tmp_path)['windows'] == 1200 and json.loads((tmp_path / 'race.json').read_text())['eval_windows'] == 70
    assert '1200' in refusal(*words, '--windows=3000')


ALIVE = SimpleNamespace(is_alive=lambda: True)      # for until(), where no process is begun
linux = pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads /proc to find the process that trains')


def children(pid):
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):          # it has ended since
            found += [int(path.parent.name)] * (int(path.read_text().rpartition(')')[2].split()[1]) == pid)
    return found


def slow(words):
    """The command with an entrant whose steps take long enough to be interrupted, and the name of its folder."""
    return [*words[:2], f'{words[0]} --tokens_per_step=3200', *words[2:], '--seeds=1'], 'gpt_tokens_per_step=3200-1337'


@linux
def test_a_stopped_race_resumes(copied, monkeypatch):
    words, out = copied
    before = stamps(out)
    words, name = slow(words)
    monkeypatch.setattr(compare.page, 'write', lambda *_: None)
    monkeypatch.setattr(compare, 'influence', lambda *_: {})
    others, trained = children(os.getpid()), []

    def stop():
        until((out / name / 'ckpt.pt').exists, ALIVE)       # of step 0
        trained.extend(set(children(os.getpid())) - set(others))
        os.kill(os.getpid(), signal.SIGTERM)
    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        main(*words)
    stopper.join()
    with pytest.raises(ProcessLookupError):                 # compare.py waited for its end
        os.kill(*trained, 0)
    step = checkpoint.load(out / name / 'ckpt.pt')['step']
    assert 0 < step < 10 and not (out / name / 'result.json').exists()
    assert turns(main(*words)) == [('gpt', 1337), ('pic', 1337), ('gpt tokens_per_step=3200', 1337)]
    assert f'resumed at step {step}' in (out / f'{name}.log').read_text()
    r = json.loads((out / name / 'result.json').read_text())
    assert (r['steps'], r['tokens']) == (10, 32_000) and all(stamps(out)[p] == stamp for p, stamp in before.items())


@linux
def test_a_killed_race_takes_its_run_with_it(copied):
    words, out = copied
    words, name = slow(words)
    process = begin(compare.main, list(map(str, words)))
    until((out / f'{name}.log').exists, process)
    trained, = until(lambda: children(process.pid), process)
    until((out / name / '.lock').exists, process)
    with pytest.raises(UserError, match='is in use'):
        main(*words)
    process.kill()
    process.join()
    for folder in (out, out / name):            # both locks go with the processes, at once or in a moment
        for _ in range(100_000):
            with contextlib.suppress(UserError), runs.lock(folder, '--out'):
                break
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):    # the lock goes before the process, which frees memory
        until(lambda: 'Z' in Path(f'/proc/{trained}/stat').read_text().split(), ALIVE)
    assert turns(main(*words))[-1] == ('gpt tokens_per_step=3200', 1337)


def test_a_failed_run_does_not_stop_the_race(race_configs, tmp_path, monkeypatch):
    """Its reason is the last line that it printed."""
    error, real = 'raise RuntimeError("the ninth step is too much")', compare.train
    monkeypatch.setattr(processes.runs, 'start', lambda words, **more: subprocess.Popen(
        [sys.executable, '-c', error], stdin=subprocess.PIPE, **more))
    monkeypatch.setattr(compare, 'train', lambda words, *more: (real if '--n_layer=2' in words else train_here)(words, *more))
    gpt, out = race_configs / 'gpt.py', tmp_path / 'race'
    errors = refusal(f'{gpt} --n_layer=2', gpt, '--steps=10', '--windows=50', '--seeds=1', f'--out={out}')
    assert errors.startswith('1 of 2 runs failed, first gpt n_layer=2, seed 1337: RuntimeError: the ninth step is too much')
    fails, gpt = (e['runs'][0] for e in results(out)['entrants'])
    assert fails['failed'] == 'RuntimeError: the ninth step is too much' and gpt['steps'] == 10
    assert 'gpt n_layer=2 failed in 1 of 1 runs: RuntimeError' in (out / 'table.md').read_text(encoding='utf-8')
    assert 'Traceback' in (out / 'gpt_n_layer=2-1337.log').read_text()


ROWS = [(1, 64, 0.5, 2.5, 1.0), (2, 128, 1.0, 2.4, 1.0)]


@pytest.mark.parametrize(('rows', 'reason', 'result', 'trained'), [
    (ROWS, 'no space', {'failed': 'no space'}, 2), (ROWS, None, {'failed': 'it was stopped at step 2'}, 2),
    ([], None, {'failed': 'it was stopped at step 0'}, 2),
    ([(*row, v) for row, v in zip(ROWS, (2.0, 3.0), strict=True)], None, {'failed': 'it was stopped at step 2'}, 2),
    # float16 skips a step whose gradient overflowed: that is no divergence
    ([(1, 64, 0.5, 2.5, 'inf')], 'it was killed by signal 9', {'failed': 'it was killed by signal 9'}, 2),
    ([*ROWS, (3, 192, 1.5, 'nan', '')], 'the training loss became nan',
     {'diverged': 'the training loss became nan', 'steps': 3, 'tokens': 192, 'seconds': 1.5}, 1)])
def test_failed_runs_are_tried_again_and_diverged_ones_are_not(tmp_path, monkeypatch, rows, reason, result, trained):
    folder, calls = tmp_path / 'run', []

    def train(words, folder, *_):
        folder.mkdir(exist_ok=True)
        calls.append(words)
        lines = ['step,tokens,seconds,train_loss,grad_norm,val_loss', *(','.join(map(str, row)) for row in rows), '']
        (folder / 'metrics.csv').write_text('\n'.join(lines))
        return reason
    monkeypatch.setattr(compare, 'train', train)
    race = {'entrants': {'gpt': {'plan': {'flags': {'max_iters': 10, 'max_seconds': 0}}}}}
    e = SimpleNamespace(name='gpt', words=[], settings=SimpleNamespace(train=SimpleNamespace(stop_after=2)))
    for _ in range(2):
        assert compare.run(e, 1, folder, race, None, None) == {'seed': 1} | result
    assert len(calls) == trained


def test_a_run_that_stop_after_has_ended():
    for losses, stop_after, expected in (([2, 1, 3], 1, True), ([2, 1, 3], 2, False), ([2, 1, 3], 0, False), ([], 1, False),
                                         ([1, 1], 1, True)):
        assert processes.stopped_early(stop_after, [{'step': 1}, *({'val_loss': v} for v in losses)]) is expected


@pytest.mark.parametrize(('rival', 'words', 'parts'), [
    ('pic.py --dataset=OTHER', [], ['other data (OTHER, ']), ('pic.py --leaking_split', [], ['other data', '-leaking)']),
    ('pic.py --block_size=8', [], ['windows of 8 tokens', 'of 16,', 'block_size=16']), ('pic.py --n_lyer=2', [], ['n_layer']),
    ('pic.py', ['--set', 'out_dir=x'], ['--out_dir=x', '--out']), ('pic.py --resume', [], ['--resume', '--out']),
    ('pic.py', ['--set', 'max_iters=0', 'max_seconds=1'], ['gpt has no max_iters', '--seconds']),
    ('pic.py', ['--windows=few'], ['--windows=few', "'auto'"]), ('pic.py', ['--flops=1e4'], ['--flops=10000 ', 'gpt 0 ']),
    ('pic.py', ['--tokens=10'], ['--tokens=10 ', 'gpt 0 steps of 64 tokens', 'at least 64']),
    ('pic.py', ['--steps=10', '--set', 'eval_interval=50'], ['--steps=10 ', 'gpt 10 steps', 'at least 50'])], ids=range(11))
def test_bad_commands_are_refused_before_training(race_configs, other_data, tmp_path, untrained, rival, words, parts):
    out = tmp_path / 'race'
    said = refusal(race_configs / 'gpt.py', f'{race_configs}/{rival.replace("OTHER", other_data)}', *words, f'--out={out}')
    assert all(s.replace('OTHER', other_data) in said for s in parts), said
    assert names(out) in ([], ['.lock'])


def test_images_that_are_drawn_have_no_race(tmp_path, untrained):
    (tmp_path / 'mine.py').write_text("arch, dataset = 'dvae', 'shapes'\n")
    assert 'mine: dvae.py rebuilds or draws images' in refusal(tmp_path / 'mine.py', '--steps=8', f'--out={tmp_path}/race')


def test_data_is_compared_before_a_trunk_is_trained(race_configs, task_data, tmp_path, monkeypatch):
    monkeypatch.setattr('harness.runs.start', lambda *_, **__: pytest.fail('a trunk was trained'))
    task = f'{race_configs}/gpt.py --arch=fpt --trunk=out/shakespeare_gpt --dataset='
    bits, classify = (f'{task}{task_data(kind).name}' for kind in ('bits', 'classify'))
    for pair in ((race_configs / 'gpt.py', bits), (bits, race_configs / 'gpt.py'), (bits, classify)):
        assert 'cannot be compared' in refusal(*pair, '--steps=10', f'--out={tmp_path}')


@pytest.mark.parametrize(('words', 'parts'), [
    (['--steps=20'], ['budget', '10.0', '20.0']), (['--tokens=640'], ['budget', 'steps', 'tokens']),
    (['--steps=10', '--windows=100'], ['windows', '200', '100']),
    (['--steps=10', '--set', 'learning_rate=1e-3'], ['another gpt', 'learning_rate', '0.004', '0.001']),
    (['--steps=10', '--set', 'columns=8'], ['another pic', 'columns', '4', '8']),
    (['--steps=10', '--set', 'dataset=OTHER'], ['another gpt', 'data'])], ids=range(6))
def test_another_race_in_the_same_folder_is_refused(race, other_data, untrained, words, parts):
    before, words = contents(race.out), [w.replace('OTHER', other_data) for w in words]
    said = refusal(*race.words[:2], *race.words[-2:], '--windows=200', f'--out={race.out}', *words)
    assert all(s in said for s in [*parts, str(race.out), '--overwrite']), said
    assert contents(race.out) == before


def test_overwrite_starts_again(copied, monkeypatch):
    words, out = copied
    before = stamps(out)
    monkeypatch.setattr(compare, 'train', lambda *_: 'this is a test')
    refusal(*words, '--overwrite', '--set', 'n_lyer=2')
    assert stamps(out) == before                    # the new race was not valid
    assert '6 of 6 runs failed' in refusal(*words, '--overwrite') and not stamps(out)


def test_a_leak_is_reported(race_configs, tmp_path, made_up):
    wave = f'{race_configs}/gpt.py --arch=wavenet --join=4 --reads='
    shown = main(race_configs / 'gpt.py', f'{wave}memory', f'{wave}leak', '--steps=10', f'--out={tmp_path / "model"}')
    line, = (s for s in shown.splitlines() if 'is not compared' in s)
    assert 'reads=leak' in line
    words = [race_configs / 'gpt.py', '--steps=10', f'--out={tmp_path / "split"}', '--seeds=1']
    assert 'THE SPLIT LEAKS' in main(*words, '--set', 'leaking_split=True') and '-leaking' in refusal(*words)


def test_a_race_on_a_task(task_data, tmp_path, untrained):
    config, out, folder = tmp_path / 'small_fpt.py', tmp_path / 'race', task_data('classify')
    config.write_text(f"arch, dataset, device, positions, stop_after, dropout = 'fpt', '{folder.name}', 'cpu', 16, 4, 0.0\n"
                      "n_layer, n_head, n_embd, optimizer, learning_rate, batch_size = 2, 2, 16, 'adamw', 1e-2, 8\n")
    words = [config, f'{config} --mode=urt', '--steps=60', '--seeds=2', '--out', out]
    with mock.patch.object(compare, 'train', train_here):
        main(*words)
    record, before = results(out), stamps(out)
    main(*words)
    assert stamps(out) == before and results(out)['entrants'] == record['entrants']
    assert record['task'].items() >= {'kind': 'classify', 'metric': 'accuracy',
                                      'guess': data.open_data(folder.name).chance('test')}.items()
    frozen, whole = record['entrants']
    assert frozen['trained'] < frozen['parameters'] == whole['trained'] == whole['parameters']
    for e in record['entrants']:
        for r in e['runs']:
            kept = json.loads((out / f'{slug(e["name"])}-{r["seed"]}' / 'test.json').read_text())
            assert (r['accuracy'], r['test_loss'], r['best_step']) == (kept['accuracy'], kept['test_loss'], kept['step'])
    for r in frozen['runs']:            # the weights that were frozen, which the settings do not name
        content = checkpoint.load(out / f'{slug(frozen["name"])}-{r["seed"]}' / 'ckpt.pt')
        assert r['model']['trunk_hash'] == content['config']['trunk_hash'] != ''
    assert all(s in (out / 'table.md').read_text() for s in ('test accuracy', f'{frozen["trained"]:,}', '| chance'))
    accuracies = [float(row['accuracy_mean']) for row in csv.DictReader((out / 'table.csv').read_text().splitlines())]
    assert accuracies == [pytest.approx(sum(r['accuracy'] for r in e['runs']) / 2) for e in record['entrants']]
