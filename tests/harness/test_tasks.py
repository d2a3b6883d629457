"""Tasks: their data, training on them, the test split, and the pictures."""

import itertools
import json
import re
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import OUTPUTS, script, sentence, task_splits

import look
from harness import checkpoint, data, log, tasks
from prepare.common import SPLITS, write_task
from views import tasks as answers

KINDS = ['classify', 'bits', 'regress']
FPT = ['--arch=fpt', '--n_layer=2', '--n_head=2', '--n_embd=16', '--positions=16', '--dropout=0.1', '--optimizer=adamw']
QUICK = ['--batch_size=8', '--eval_interval=5', '--warmup_iters=2', '--device=cpu', '--learning_rate=1e-2']


def go(folder, out, *more):
    script('train.py', f'--dataset={folder.name}', f'--out_dir={out}', *FPT, *QUICK, *more)
    return checkpoint.load(out / 'ckpt.pt')


def test_examples_are_standardised_by_the_training_split(task_data):
    task, splits = data.open_data(task_data('regress').name), task_splits('regress')
    for found, known, val in zip(task.examples('val', [3, 0]), splits['train'], splits['val'], strict=True):
        known = known.astype(float)
        np.testing.assert_allclose(found.numpy(), (val[[3, 0]] - known.mean()) / known.std(), rtol=1e-5)
    assert task.model_settings() == {'block_size': 3, 'vocab_size': 0, 'features': 4, 'outputs': 1, 'kind': 'regress'}
    assert list(task.val_indices(0, 3)) == list(range(60)) and len(task.val_indices(7, 3)) == 7
    indices = [list(task.train_indices(50, 3, 1, step)) for step in (2, 2, 3)]
    assert indices[0] == indices[1] != indices[2]


def test_metrics_and_chance(root):
    """AUC is the share of pairs in order; the others by hand: three examples, whose constant answer is in chance_answer()."""
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 10, 60).astype(float), rng.integers(0, 2, 60)
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(scores[labels == 1], scores[labels == 0])]
    assert tasks.auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert np.isnan(tasks.auc(scores, np.zeros(60)))

    def task(kind, y, outputs, **more):
        x = np.zeros((len(y), 2, 3), np.int8)
        write_task('t', kind, {s: (x, np.array(y)) for s in SPLITS}, outputs, {'name': 't'}, 't.py', **more)
        return data.open_data('t')
    t = task('classify', [0, 1, 1], 2, labels=['cat', 'dog'])
    found = t.total([t.score(torch.tensor([[2., 0.], [0., 1.], [1., 0.]]), None, torch.tensor([0, 1, 1]))])
    assert found['accuracy'] == pytest.approx(2 / 3) and found['auc'] == 1         # -2 against 1 and -1
    assert t.chance() == {'accuracy': pytest.approx(2 / 3), 'auc': 0.5} and t.metric == 'accuracy'
    assert 'accuracy 66.7% (always dog: 66.7%), ROC-AUC 1.000 (any constant: 0.500)' in t.format_metrics(found)
    t = task('classify', [0, 2, 2], 4, numbers=True)
    found = t.total([t.score(torch.eye(4)[[0, 3, 1]], None, torch.tensor([0, 2, 2]))])
    assert found['error'] == pytest.approx(2 / 3) and t.chance()['error'] == pytest.approx(2 / 3) and t.metric == 'error'
    assert t.chance_answer('accuracy') == 'always 2' and t.chance_answer() == 'always 2'
    bits = torch.tensor([[0., 1.], [1., 1.], [0., 1.]])
    t = task('bits', bits.numpy().astype(np.uint8), 2)
    found = t.total([t.score(torch.tensor([[-1., 0.1], [-1., 0.1], [1., 0.1]]), None, bits)])
    assert found['accuracy'] == pytest.approx(4 / 6) and t.chance()['accuracy'] == pytest.approx(5 / 6)
    assert t.chance_answer() == 'the more frequent value of each bit'
    assert task('bits', bits.numpy().astype(np.uint8), 2, guess={'accuracy': 0.5}).chance() == {'accuracy': 0.5}
    t = task('regress', [0.0, 3.0, 9.0], 1)
    y = t.examples('val', [0, 1, 2])[1]
    found = t.total([t.score(torch.full((3, 1), float(y[1])), None, y)])
    assert found['error'] == pytest.approx(3, abs=1e-5) and t.chance()['error'] == 3 and t.chance_answer() == 'always 3'


def test_damaged_tasks(root):
    write_task('t', 'bits', task_splits('bits'), 4, {'name': 't'}, 't.py')
    path = root / 'data' / 't' / 'val_x.npy'
    for content, reason in ((path.read_bytes()[:-20], 'val_x.npy is missing or truncated'), (b'', 'python prepare/t.py'),
                            (path.with_name('test_x.npy').read_bytes(), 'are not the 60 examples')):
        path.write_bytes(content)
        assert reason in sentence(data.open_data, 't')
    shutil.copy(path.with_name('test_y.npy'), path.with_name('val_y.npy'))
    assert 'are not the 60 examples' in sentence(data.open_data, 't')


@pytest.mark.parametrize('array, index, value, reason', [
    ('x', (3, 1, 2), np.nan, 'row 3: nan'), ('x', (2, 0, 0), -np.inf, 'row 2: -inf'), ('x', (4, 0, 0), 1e39, r'row 4: 1e\+39'),
    ('tokens', (4, 1), 7, 'row 4: 7 .* 0 to 6'), ('tokens', (0, 1), -1, 'row 0: -1'), ('tokens', (0, 1), 2.5, 'type float64'),
    ('x', None, None, r'(shape \(6, 2, 3, 1\)|are not the 6 examples)'),
    ('classify', 3, 4, 'row 3: 4 .* 0 to 3'), ('classify', 1, -1, 'row 1: -1'),
    ('classify', 1, 0.5, 'type float64'), ('bits', (2, 1), 2, 'row 2: 2 .* 0 or 1'), ('bits', (2, 1), 0.5, 'row 2: 0.5'),
    ('bits', None, None, r'y \(6, 4, 1\)'), ('regress', 5, np.nan, 'row 5: nan'), ('regress', None, None, r'y \(6, 1\)')])
def test_values_that_a_task_cannot_have(root, monkeypatch, array, index, value, reason):
    """They are refused when they are written, and when they are read, in chunks."""
    monkeypatch.setattr(tasks, 'CHUNK', 7)
    kind, tokens, which = array if array in KINDS else 'classify', 7 * (array == 'tokens'), int(array in KINDS)
    good = [np.ones((6, 2), int) if tokens else np.ones((6, 2, 3)),
            {'classify': np.arange(6) % 4, 'bits': np.eye(6, 4), 'regress': np.arange(6.0)}[kind]]
    bad = [*good]
    bad[which] = good[which][..., None] if index is None else good[which].astype(type(value))
    if index is not None:
        bad[which][index] = value
    rest = OUTPUTS[kind], {'name': 'the file'}, 't.py', tokens
    write_task('t', kind, dict.fromkeys(SPLITS, good), *rest)
    for split in SPLITS:
        said = sentence(write_task, 't', kind, {**dict.fromkeys(SPLITS, good), split: bad}, *rest)
        assert re.search(f'the file: {split}_[xy]\\b.*{reason}', said)
        path = root / 'data' / 't' / f'{split}_{"xy"[which]}.npy'
        np.save(path, bad[which])
        assert re.search(f'{split}_[xy].npy.*{reason}', sentence(data.open_data, 't'))
        np.save(path, good[which])
    data.open_data('t')


@pytest.mark.parametrize('y, n, reason', [([0, 2, 2, 0], 4, 'the file: the class dog has no examples'),
                                          ([0, 1, 2, 0], 0, 'the file: the test split has no examples')])
def test_a_class_or_a_split_without_examples(root, y, n, reason):
    x, y = np.zeros((4, 2, 3), np.int8), np.array(y)
    splits = {'train': (x, y), 'val': (x, y), 'test': (x[:n], y[:n])}
    rest = 't', 'classify', splits, 3, {'name': 'the file'}, 't.py'
    assert reason in sentence(write_task, *rest, labels=['cat', 'dog', 'ship'])
    assert not list((root / 'data').rglob('*.npy'))


def test_the_fingerprint_depends_on_the_examples_and_meta(root):
    found = set()
    for seed, more in ((0, {}), (1, {}), (1, {'guess': {'accuracy': 0.5}})):
        write_task('t', 'bits', task_splits('bits', seed), 4, {'name': 't'}, 't.py', **more)
        found.add(data.open_data('t').fingerprint)
    assert len(found) == 3


@pytest.mark.parametrize(('kind', 'own'), [('classify', 'confusion'), ('bits', 'bits'), ('regress', 'numbers')])
def test_a_run_learns_evaluates_the_test_split_and_is_drawn(task_data, tmp_path, capsys, kind, own):
    content = go(task_data(kind), tmp_path, '--max_iters=60', '--eval_interval=20')
    rows = [r for r in log.read(tmp_path / 'metrics.csv') if 'val_loss' in r]
    assert rows[-1]['val_loss'] < rows[0]['val_loss']
    found, printed = json.loads((tmp_path / 'test.json').read_text()), capsys.readouterr().out
    model, best = checkpoint.load_model(tmp_path / 'best.pt')
    assert found['step'] == best['step'] and found['examples'] == 50
    task = data.open_data(task_data(kind).name)
    assert found['test_loss'] == pytest.approx(model(*task.examples('test', range(50)))[1].item(), rel=1e-5)
    assert f'({task.chance_answer()}: {tasks.format_metric(task.metric, task.chance("test")[task.metric])})' in printed
    assert f'a made-up {kind}' in printed and ' are trained' in printed
    assert content['data']['fingerprint'] == task.fingerprint
    look.main([str(tmp_path)])
    assert {p.stem for p in (tmp_path / 'look').iterdir()} == {'trained', own, 'wrong', 'attention'}


def test_stopping_early(task_data, tmp_path):
    content = go(task_data('bits'), tmp_path, '--max_iters=1000', '--stop_after=3', '--learning_rate=0', '--min_lr=0')
    assert content['step'] == 15 and checkpoint.load(tmp_path / 'best.pt')['step'] == 0
    assert json.loads((tmp_path / 'test.json').read_text())['step'] == 0


def test_the_trunk_is_trained_first_when_it_is_missing(tree, dataset, task_data, tmp_path, cli):
    (tree / 'config').mkdir()
    for folder in (dataset, task_data('bits')):
        shutil.copytree(folder, tree / 'data' / folder.name)
    (tree / 'config' / 'small_gpt.py').write_text(f"dataset = '{dataset.name}'\nn_layer, n_head, n_embd = 2, 2, 16\n"
                                                  'block_size, max_iters, eval_interval, eval_windows = 16, 4, 4, 4\n')
    words = ['train.py', f'--dataset={task_data("bits").name}', '--arch=fpt', '--trunk=out/small_gpt', '--max_iters=5',
             '--out_dir=out/frozen', *QUICK]
    done = cli(*words, cwd=tree)
    assert done.returncode == 0, done.stderr
    assert 'out/small_gpt is missing: running python train.py config/small_gpt.py first' in done.stdout
    assert checkpoint.load(tree / 'out' / 'small_gpt' / 'best.pt')['arch'] == 'model'
    assert checkpoint.load(tree / 'out' / 'frozen' / 'ckpt.pt')['config']['n_embd'] == 16
    done = cli(*words, '--overwrite', '--dry_run', cwd=tree)
    assert done.returncode == 0 and 'is missing' not in done.stdout and '8 examples of 3' in done.stdout
    shutil.rmtree(tree / 'out' / 'small_gpt')       # another trunk would be refused, so none is trained
    done = cli(*words, '--resume', '--max_iters=9', cwd=tree)
    assert done.returncode == 1 and 'out/small_gpt' in done.stderr and not (tree / 'out' / 'small_gpt').exists()


def test_examples_are_drawn_as_what_they_are():
    """An image comes back from its patches; the others are drawn without an error."""
    image = np.arange(3 * 8 * 12).reshape(3, 8, 12) % 256
    patches = np.array([image[:, i:i + 4, j:j + 4].ravel() for i in range(0, 8, 4) for j in range(0, 12, 4)])
    draw = {'as': 'image', 'height': 8, 'width': 12, 'channels': 3, 'patch': 4}
    assert np.array_equal(answers.unpatched(patches, draw), image.transpose(1, 2, 0))
    for x, kind in ((patches, draw), (np.zeros((3, 16)), draw | {'as': 'images', 'height': 4, 'width': 4, 'channels': 1}),
                    (np.zeros((4, 80), np.int16), {'as': 'wave', 'rate': 8000}), (np.array([[1, -1]]), {'as': 'bits'}),
                    (np.array([0, 0, 1, 2]), {'as': 'text', 'tokens': ['', 'C', '[nH]']}), (np.array([3, 4]), {})):
        _, ax = plt.subplots()
        answers.draw_example(ax, x, kind)
        plt.close()
