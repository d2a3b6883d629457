"""Tasks: their data, the loop on them, the test split that is looked at once, the race, and the pictures."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import OUTPUTS, contents, script, sentence, task_splits

import compare
from harness import checkpoint, data, log, report, tasks
from harness.tasks import TaskData

KINDS = ['classify', 'bits', 'regress']
FPT = ['--arch=fpt', '--n_layer=2', '--n_head=2', '--n_embd=16', '--positions=16', '--dropout=0.1', '--optimizer=adamw']
QUICK = ['--batch_size=8', '--eval_interval=5', '--warmup_iters=2', '--device=cpu', '--learning_rate=1e-2']


def go(folder, out, *more):
    script('train.py', f'--dataset={folder.name}', f'--out_dir={out}', *FPT, *QUICK, *more)
    return checkpoint.load(out / 'ckpt.pt')


# data -----------------------------------------------------------------------------------------------------------------------

def test_rows_are_what_was_written(task_data):
    task, splits = data.open_data(task_data('regress').name), task_splits('regress')
    x, y = task.rows('val', [3, 0])
    whole, numbers = splits['train']
    mean, deviation = whole.astype(float).mean(), whole.astype(float).std()
    expected = (splits['val'][0][[3, 0]] - mean) / deviation
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(y.numpy(), (splits['val'][1][[3, 0]] - numbers.mean()) / numbers.std(), rtol=1e-5)
    assert task.shape() == {'block_size': 3, 'vocab_size': 0, 'features': 4, 'outputs': 1, 'kind': 'regress'}
    assert list(task.val_starts(0, 3)) == list(range(60)) and len(task.val_starts(7, 3)) == 7


def test_a_batch_is_a_function_of_the_step(task_data):
    task = data.open_data(task_data('bits').name)
    assert list(task.batch_starts(50, 3, 1, 2)) == list(task.batch_starts(50, 3, 1, 2)) != list(task.batch_starts(50, 3, 1, 3))


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 10, 60).astype(float), rng.integers(0, 2, 60)
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(scores[labels == 1], scores[labels == 0])]
    assert tasks.auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert np.isnan(tasks.auc(scores, np.zeros(60)))


def test_figures_and_guesses(root):
    """By hand: three examples each."""
    def task(kind, y, outputs, **more):
        x = np.zeros((len(y), 2, 3), np.int8)
        tasks.write_task('t', kind, {s: (x, np.array(y)) for s in tasks.SPLITS}, outputs, {'name': 't'}, 't.py', **more)
        return data.open_data('t')
    t = task('classify', [0, 1, 1], 2)
    found = t.total([t.score(torch.tensor([[2., 0.], [0., 1.], [3., 0.]]), torch.tensor([0, 1, 1]))])
    assert found['accuracy'] == pytest.approx(2 / 3) and found['auc'] == pytest.approx(0.5)     # -2 against 1 and -3
    assert t.guess() == {'accuracy': pytest.approx(2 / 3), 'auc': 0.5} and t.metric == 'accuracy'
    t = task('classify', [0, 2, 2], 4, numbers=True)
    found = t.total([t.score(torch.eye(4)[[0, 3, 1]], torch.tensor([0, 2, 2]))])
    assert found['error'] == pytest.approx(2 / 3) and t.guess()['error'] == pytest.approx(2 / 3) and t.metric == 'error'
    t = task('bits', [[0, 1], [1, 1], [0, 1]], 2)
    found = t.total([t.score(torch.tensor([[-1., 1.], [-1., 1.], [1., 1.]]), torch.tensor([[0., 1.], [1., 1.], [0., 1.]]))])
    assert found['accuracy'] == pytest.approx(4 / 6) and t.guess()['accuracy'] == pytest.approx(5 / 6)
    t = task('regress', [0.0, 3.0, 9.0], 1)
    y = t.rows('val', [0, 1, 2])[1]
    found = t.total([t.score(torch.full((3, 1), float(y[1])), y)])
    assert found['error'] == pytest.approx(3, abs=1e-5) and t.guess()['error'] == 3


@pytest.mark.parametrize('kind', KINDS)
def test_scores_of_parts_are_those_of_the_whole(task_data, kind):
    task = data.open_data(task_data(kind).name)
    y = task.rows('val', range(60))[1]
    logits = torch.randn(60, OUTPUTS[kind], generator=torch.Generator().manual_seed(0))
    whole = task.total([task.score(logits, y)])
    assert whole == pytest.approx(task.total([task.score(logits[i:i + 7], y[i:i + 7]) for i in range(0, 60, 7)]))


def test_damaged_tasks(root):
    tasks.write_task('t', 'bits', task_splits('bits'), 4, {'name': 't'}, 't.py')
    folder = root / 'data' / 't'
    whole = contents(folder)
    (folder / 'val_x.npy').write_bytes(whole['val_x.npy'][:-20])
    assert 'val_x.npy is missing or truncated' in sentence(data.open_data, 't')
    (folder / 'val_x.npy').unlink()
    assert 'run python prepare/t.py again' in sentence(data.open_data, 't')
    (folder / 'val_x.npy').write_bytes(whole['test_x.npy'])
    assert 'are not the 60 examples that meta.json tells of' in sentence(data.open_data, 't')
    (folder / 'meta.json').write_text('{"kind": "bits"}')
    assert 'meta.json lacks examples, fingerprint, outputs' in sentence(data.open_data, 't')


def test_a_token_that_is_not_in_the_vocabulary(root):
    x = np.array([[0, 1], [2, 9]], np.uint8)
    tasks.write_task('t', 'classify', {s: (x, np.array([0, 1])) for s in tasks.SPLITS}, 2, {'name': 't'}, 't.py', vocab_size=3)
    assert 'holds the token 9, but the vocabulary has 3' in sentence(data.open_data('t').rows, 'val', [0, 1])


def test_a_class_or_a_split_without_examples(root):
    def write(y, n=4):
        x = np.zeros((4, 2, 3), np.int8)
        splits = {'train': (x, np.array(y)), 'val': (x, np.array(y)), 'test': (x[:n], np.array(y[:n]))}
        tasks.write_task('t', 'classify', splits, 3, {'name': 'the file'}, 't.py', labels=['cat', 'dog', 'ship'])
    assert 'the file: the class dog has no examples in the training split' in sentence(write, [0, 2, 2, 0])
    assert 'the file: the test split has no examples' in sentence(write, [0, 1, 2, 0], 0)
    assert not list((root / 'data').rglob('*.npy'))


def test_a_fingerprint_tells_data_apart(root):
    found = set()
    for change in range(3):
        splits = task_splits('bits', seed=min(change, 1))
        tasks.write_task('t', 'bits', splits, 4, {'name': 't'}, 't.py', **({'guess': {'accuracy': 0.5}} if change == 2 else {}))
        found.add(data.open_data('t').fingerprint)
    assert len(found) == 3


# the loop -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', KINDS)
def test_a_run_learns_and_looks_at_the_test_split_once(task_data, tmp_path, capsys, kind):
    content = go(task_data(kind), tmp_path, '--max_iters=60', '--eval_interval=20')
    rows = [r for r in log.read(tmp_path / 'metrics.csv') if 'val_loss' in r]
    assert rows[-1]['val_loss'] < rows[0]['val_loss']
    found, printed = json.loads((tmp_path / 'test.json').read_text()), capsys.readouterr().out
    best = checkpoint.load(tmp_path / 'best.pt')
    assert found['step'] == best['step'] and found['examples'] == 50
    model, task = checkpoint.load_model(tmp_path / 'best.pt')[0], data.open_data(task_data(kind).name)
    x, y = task.rows('test', range(50))
    assert found['test_loss'] == pytest.approx(model(x, y)[1].item(), rel=1e-5)
    assert '(guessing ' in printed and f'a made-up {kind}' in printed and ' are trained' in printed
    assert content['data']['fingerprint'] == task.fingerprint


@pytest.mark.parametrize('more', [(), ('--mode=urt',), ('--trained=norms+output', '--stop_after=3')], ids=' '.join)
def test_ten_steps_and_ten_more_are_twenty(task_data, tmp_path, more):
    """To the bit, with a schedule that does not know the end."""
    folder, how = task_data('classify'), ['--schedule=constant', *more]
    whole = go(folder, tmp_path / 'whole', '--max_iters=20', *how)
    go(folder, tmp_path / 'parts', '--max_iters=10', *how)
    parts = go(folder, tmp_path / 'parts', '--max_iters=20', '--resume', *how)
    assert all(torch.equal(v, parts['model'][k]) for k, v in whole['model'].items())


def test_two_processes_take_the_steps_of_one(task_data, tmp_path, cli):
    words = ['--max_iters=6', '--tokens_per_step=24', '--optimizer=sgd', '--dropout=0', '--eval_interval=3']
    folder = task_data('classify')
    one = go(folder, tmp_path / 'one', *words)
    done = cli('-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone', 'train.py', f'--dataset={folder.name}',
               f'--out_dir={tmp_path / "two"}', *FPT, *QUICK, *words)
    assert done.returncode == 0, done.stderr
    two = checkpoint.load(tmp_path / 'two' / 'ckpt.pt')
    for key, value in one['model'].items():
        torch.testing.assert_close(value, two['model'][key], atol=1e-5, rtol=1e-4)
    a, b = (json.loads((tmp_path / n / 'test.json').read_text()) for n in ('one', 'two'))
    assert a['accuracy'] == b['accuracy'] and a['test_loss'] == pytest.approx(b['test_loss'], rel=1e-4)
    for a, b in zip(*(log.read(tmp_path / n / 'metrics.csv') for n in ('one', 'two')), strict=True):
        assert a.get('val_loss', -1) == pytest.approx(b.get('val_loss', -1), rel=1e-4)
        assert a.get('accuracy', -1) == pytest.approx(b.get('accuracy', -1), rel=1e-4)


def test_stopping_early(task_data, tmp_path):
    """A rate of 0 never improves: the run ends after the evaluations that it was told to wait for."""
    content = go(task_data('bits'), tmp_path, '--max_iters=1000', '--stop_after=3', '--learning_rate=0', '--min_lr=0')
    assert content['step'] == 15 and checkpoint.load(tmp_path / 'best.pt')['step'] == 0
    assert json.loads((tmp_path / 'test.json').read_text())['step'] == 0


def test_the_trunk_is_trained_first_when_it_is_missing(tree, dataset, task_data, tmp_path):
    (tree / 'config').mkdir()
    for folder in (dataset, task_data('bits')):
        shutil.copytree(folder, tree / 'data' / folder.name)
    small = (f"dataset = '{dataset.name}'", 'n_layer, n_head, n_embd = 2, 2, 16', 'block_size = 16',
             'max_iters, eval_interval, eval_windows = 4, 4, 4')
    (tree / 'config' / 'small_gpt.py').write_text('\n'.join(small))
    words = [sys.executable, 'train.py', f'--dataset={task_data("bits").name}', '--trunk=out/small_gpt', '--max_iters=5',
             '--out_dir=out/frozen', *FPT[:1], *QUICK]
    done = subprocess.run(words, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'out/small_gpt is missing: running python train.py config/small_gpt.py first' in done.stdout
    trunk = checkpoint.load(tree / 'out' / 'small_gpt' / 'best.pt')
    content = checkpoint.load(tree / 'out' / 'frozen' / 'ckpt.pt')
    assert content['config']['n_embd'] == 16 and trunk['arch'] == 'model'
    done = subprocess.run([*words[:-len(QUICK)], *QUICK, '--overwrite'], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0 and 'is missing' not in done.stdout


# what cannot be -------------------------------------------------------------------------------------------------------------

def test_models_and_data_that_do_not_fit(task_data, dataset, refused, tmp_path):
    bits, out = task_data('bits').name, f'--out_dir={tmp_path / "run"}'
    assert 'model.py continues texts, and' in refused('train.py', f'--dataset={bits}', out)
    assert 'fpt.py answers tasks, and' in refused('train.py', '--arch=fpt', f'--dataset={dataset.name}', out)
    assert 'features=7, but' in refused('train.py', *FPT, f'--dataset={bits}', '--features=7', out)
    assert 'only windows of text overlap' in refused('train.py', *FPT, f'--dataset={bits}', '--leaking_split', out)
    assert 'last_only: a task has one answer' in refused('train.py', *FPT, f'--dataset={bits}', '--last_only', out)
    assert 'network=nac gives a number' in refused('train.py', '--arch=baselines', '--network=nac', f'--dataset={bits}', out)
    assert 'neither a checkpoint or file at hand nor a model' in refused('train.py', '--arch=fpt', '--trunk=out/no_such_run',
                                                                         f'--dataset={bits}', out)
    assert not (tmp_path / 'run').exists()


def test_what_does_not_work_on_a_run_of_a_task(task_data, refused, tmp_path):
    go(task_data('bits'), tmp_path, '--max_iters=2')
    assert 'answers a task, and writes no text' in refused('sample.py', tmp_path)
    assert 'has no counterpart on the hub' in refused('export.py', tmp_path, tmp_path / 'hub')
    assert '--prompt: ' in refused('look.py', tmp_path, '--prompt=abc')


# the race -------------------------------------------------------------------------------------------------------------------

def test_a_race_on_a_task(task_data, tmp_path, capsys):
    config = tmp_path / 'small_fpt.py'
    config.write_text(f"arch = 'fpt'\ndataset = '{task_data('classify').name}'\n"
                      'n_layer, n_head, n_embd, positions = 2, 2, 16, 16\n'
                      "optimizer, learning_rate, batch_size, dropout, stop_after = 'adamw', 1e-2, 8, 0.0, 4\n")
    words = [config, f'{config} --mode=urt', '--steps=60', '--seeds=2', '--out', tmp_path / 'race', '--set', 'device=cpu',
             'warmup_iters=2']
    script('compare.py', *words)
    record = json.loads((tmp_path / 'race' / 'results.json').read_text())
    torch.manual_seed(7)
    trained = {p: p.stat().st_mtime_ns for p in (tmp_path / 'race').rglob('ckpt.pt')}
    script('compare.py', *words)            # again: trains nothing
    assert trained == {p: p.stat().st_mtime_ns for p in (tmp_path / 'race').rglob('ckpt.pt')} and len(trained) == 4
    assert json.loads((tmp_path / 'race' / 'results.json').read_text())['entrants'] == record['entrants']
    assert record['task'] == {'kind': 'classify', 'metric': 'accuracy',
                              'guess': TaskData(task_data('classify'), data.read_meta(task_data('classify'))).guess('test')}
    frozen, whole = record['entrants']
    assert frozen['trained'] < frozen['parameters'] == whole['trained'] == whole['parameters']
    for e in record['entrants']:
        for r in e['runs']:
            kept = json.loads((tmp_path / 'race' / f'{compare.slug(e["name"])}-{r["seed"]}' / 'test.json').read_text())
            assert (r['accuracy'], r['test_loss'], r['best_step']) == (kept['accuracy'], kept['test_loss'], kept['step'])
    table = (tmp_path / 'race' / 'table.md').read_text()
    assert 'test accuracy' in table and f'{frozen["trained"]:,}' in table and '| guessing' in table
    assert 'too few to tell that from noise' in table
    assert (tmp_path / 'race' / 'report.html').exists() and 'test accuracy' in capsys.readouterr().out


def made_up(name, metric, figures):
    guess = {'accuracy': 0.5} if metric == 'accuracy' else {'error': 7.3}
    return {'data': {'name': name, 'source': 's', 'fingerprint': 'f'}, 'budget': ['steps', 10], 'windows': 0, 'notes': [],
            'date': 'd', 'machine': 'm', 'task': {'kind': 'bits', 'metric': metric, 'guess': guess},
            'entrants': [{'name': mode, 'arch': 'fpt', 'parameters': 9, 'trained': 5, 'predicts': 'task', 'leaks': False,
                          'settings': {'mode': mode, 'sees': 'back', 'last_only': False, 'leaking_split': False},
                          'runs': [{'seed': i, metric: v, 'steps': 10} for i, v in enumerate(vs)]}
                         for mode, vs in figures.items()]}


def test_higher_accuracy_and_lower_error_are_better():
    said = report.verdicts(made_up('a', 'accuracy', {'fpt': [0.5, 0.52, 0.51], 'urt': [0.9, 0.91, 0.92]}))
    assert said[0].startswith('urt learns more than fpt from the same 10 steps: test accuracy higher by 40.0 points (p 0.')
    said = report.verdicts(made_up('a', 'error', {'fpt': [5, 5.2, 5.1], 'urt': [9, 9.1, 9.2]}))
    assert said[0].startswith('urt learns less than fpt from the same 10 steps: test error higher by 4.000 (p ')


def test_one_table_over_several_tasks():
    headers, rows = report.across([made_up('xor', 'accuracy', {'fpt': [1.0, 1.0], 'urt': [0.5, 0.6]}),
                                   made_up('sum', 'error', {'fpt': [7.0, 7.2]})])
    assert headers == ['', 'xor, accuracy', 'sum, error']
    assert rows == [['FPT', '100.0% (5)', '7.100 ± 0.141 (5)'], ['URT', '55.0% ± 7.1% (5)', ''], ['guessing', '50.0%', '7.300']]


# pictures -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('kind', 'own'), [('classify', 'confusion'), ('bits', 'bits'), ('regress', 'numbers')])
def test_pictures_of_a_run_on_a_task(task_data, tmp_path, kind, own):
    go(task_data(kind), tmp_path, '--max_iters=2')
    script('look.py', tmp_path)
    assert {p.name for p in (tmp_path / 'look').iterdir()} == {f'{n}.png' for n in ('trained', own, 'wrong', 'attention')}


def test_examples_are_drawn_as_what_they_are():
    """An image comes back from its patches; the others are drawn without an error."""
    import matplotlib.pyplot as plt

    import answers
    image = np.arange(3 * 8 * 12).reshape(3, 8, 12) % 256
    patches = [image[:, i:i + 4, j:j + 4].ravel() for i in range(0, 8, 4) for j in range(0, 12, 4)]
    draw = {'as': 'image', 'height': 8, 'width': 12, 'channels': 3, 'patch': 4}
    assert np.array_equal(answers.unpatched(np.array(patches), draw), image.transpose(1, 2, 0))
    for x, kind in ((np.array(patches), draw), (np.zeros((3, 16), np.uint8), draw | {'as': 'images', 'height': 4, 'width': 4,
                                                                                      'channels': 1}),
                    (np.zeros((4, 80), np.int16), {'as': 'wave', 'rate': 8000}),
                    (np.array([0, 0, 1, 2]), {'as': 'text', 'tokens': ['', 'C', '[nH]']}),
                    (np.array([[1, -1]]), {'as': 'bits'}), (np.array([3, 4]), {})):
        _, ax = plt.subplots()
        answers.draw_example(ax, x, kind)
        plt.close()


def test_a_dry_run_tells_what_is_frozen(task_data, capsys, tmp_path):
    script('train.py', f'--dataset={task_data("bits").name}', f'--out_dir={tmp_path}', *FPT, *QUICK, '--dry_run')
    printed = capsys.readouterr().out
    assert '8 examples of 3' in printed and ' frozen' in printed and not list(tmp_path.iterdir())


def test_values_with_commas_are_entrants(task_data, tmp_path):
    config = tmp_path / 'small_fpt.py'
    config.write_text(f"arch = 'fpt'\ndataset = '{task_data('bits').name}'\n"
                      'n_layer, n_head, n_embd, positions = 2, 2, 16, 16\n'
                      "optimizer = 'adamw'\n")
    split, common = compare.each([[str(config)], ['config/shakespeare_pacing.py']], [
        '--trunk=random,out/missing', '--dropout=0.2,0.3', '--warmup_iters=2', '--dims=8,8'])
    assert common == ['--warmup_iters=2', '--dims=8,8']
    pairs = [[f'--trunk={t}', f'--dropout={d}'] for t in ('random', 'out/missing') for d in ('0.2', '0.3')]
    assert split == [[str(config), *pair] for pair in pairs] + [
        ['config/shakespeare_pacing.py', f'--dropout={d}'] for d in ('0.2', '0.3')]
