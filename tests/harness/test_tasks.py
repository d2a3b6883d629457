"""Tasks: their data, training on them, the test split, the race, and the pictures."""

import itertools
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import OUTPUTS, contents, script, sentence, task_splits

from harness import checkpoint, data, log, tasks
from prepare.common import SPLITS, write_task

KINDS = ['classify', 'bits', 'regress']
FPT = ['--arch=fpt', '--n_layer=2', '--n_head=2', '--n_embd=16', '--positions=16', '--dropout=0.1', '--optimizer=adamw']
QUICK = ['--batch_size=8', '--eval_interval=5', '--warmup_iters=2', '--device=cpu', '--learning_rate=1e-2']


def go(folder, out, *more):
    script('train.py', f'--dataset={folder.name}', f'--out_dir={out}', *FPT, *QUICK, *more)
    return checkpoint.load(out / 'ckpt.pt')


# data ---------------------------------------------------------------------------------------------------------------------


def test_examples_are_standardised_by_the_training_split(task_data):
    task, splits = data.open_data(task_data('regress').name), task_splits('regress')
    x, y = task.examples('val', [3, 0])
    train_x, train_y = splits['train']
    expected = (splits['val'][0][[3, 0]] - train_x.astype(float).mean()) / train_x.astype(float).std()
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(y.numpy(), (splits['val'][1][[3, 0]] - train_y.mean()) / train_y.std(), rtol=1e-5)
    assert task.model_settings() == {'block_size': 3, 'vocab_size': 0, 'features': 4, 'outputs': 1, 'kind': 'regress'}
    assert list(task.val_indices(0, 3)) == list(range(60)) and len(task.val_indices(7, 3)) == 7
    indices = [list(task.train_indices(50, 3, 1, step)) for step in (2, 2, 3)]
    assert indices[0] == indices[1] != indices[2]


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 10, 60).astype(float), rng.integers(0, 2, 60)
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(scores[labels == 1], scores[labels == 0])]
    assert tasks.auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert np.isnan(tasks.auc(scores, np.zeros(60)))


def test_metrics_and_chance(root):
    """By hand: three examples each, whose constant answer is written in chance_answer()."""
    def task(kind, y, outputs, **more):
        x = np.zeros((len(y), 2, 3), np.int8)
        write_task('t', kind, {s: (x, np.array(y)) for s in SPLITS}, outputs, {'name': 't'}, 't.py', **more)
        return data.open_data('t')
    t = task('classify', [0, 1, 1], 2, labels=['cat', 'dog'])
    found = t.total([t.score(torch.tensor([[2., 0.], [0., 1.], [3., 0.]]), None, torch.tensor([0, 1, 1]))])
    assert found['accuracy'] == pytest.approx(2 / 3) and found['auc'] == pytest.approx(0.5)     # -2 against 1 and -3
    assert t.chance() == {'accuracy': pytest.approx(2 / 3), 'auc': 0.5} and t.metric == 'accuracy'
    assert 'accuracy 66.7% (always dog: 66.7%), ROC-AUC 0.500 (any constant: 0.500)' in t.format_metrics(found)
    t = task('classify', [0, 2, 2], 4, numbers=True)
    found = t.total([t.score(torch.eye(4)[[0, 3, 1]], None, torch.tensor([0, 2, 2]))])
    assert found['error'] == pytest.approx(2 / 3) and t.chance()['error'] == pytest.approx(2 / 3) and t.metric == 'error'
    assert t.chance_answer('accuracy') == 'always 2' and t.chance_answer() == 'always 2'
    bits = torch.tensor([[0., 1.], [1., 1.], [0., 1.]])
    t = task('bits', bits.numpy().astype(np.uint8), 2)
    found = t.total([t.score(torch.tensor([[-1., 1.], [-1., 1.], [1., 1.]]), None, bits)])
    assert found['accuracy'] == pytest.approx(4 / 6) and t.chance()['accuracy'] == pytest.approx(5 / 6)
    assert t.chance_answer() == 'the more frequent value of each bit'
    assert task('bits', bits.numpy().astype(np.uint8), 2, guess={'accuracy': 0.5}).chance() == {'accuracy': 0.5}
    t = task('regress', [0.0, 3.0, 9.0], 1)
    y = t.examples('val', [0, 1, 2])[1]
    found = t.total([t.score(torch.full((3, 1), float(y[1])), None, y)])
    assert found['error'] == pytest.approx(3, abs=1e-5) and t.chance()['error'] == 3 and t.chance_answer() == 'always 3'


@pytest.mark.parametrize('kind', KINDS)
def test_scores_of_batches_add_up(task_data, kind):
    task = data.open_data(task_data(kind).name)
    y = task.examples('val', range(60))[1]
    output = torch.randn(60, OUTPUTS[kind], generator=torch.Generator().manual_seed(0))
    parts = [task.score(output[i:i + 7], None, y[i:i + 7]) for i in range(0, 60, 7)]
    assert task.total([task.score(output, None, y)]) == pytest.approx(task.total(parts))


def test_damaged_tasks(root):
    write_task('t', 'bits', task_splits('bits'), 4, {'name': 't'}, 't.py')
    folder = root / 'data' / 't'
    whole = contents(folder)
    for name, content, reason in (('val_x.npy', whole['val_x.npy'][:-20], 'val_x.npy is missing or truncated'),
                                  ('val_x.npy', b'', 'python prepare/t.py'),
                                  ('val_x.npy', whole['test_x.npy'], 'are not the 60 examples'),
                                  ('meta.json', b'{"kind": "bits"}', 'lacks examples, fingerprint, outputs')):
        (folder / name).write_bytes(content)
        assert reason in sentence(data.open_data, 't')


@pytest.mark.parametrize('letter, index, value, reason', [
    ('x', (3, 1, 2), np.nan, 'row 3: nan'), ('x', (2, 0, 0), -np.inf, 'row 2: -inf'), ('x', (4, 0, 0), 1e39, r'row 4: 1e\+39'),
    ('x', (4, 1), 7, 'row 4: 7 .* 0 to 6'), ('x', (0, 1), -1, 'row 0: -1'), ('x', (0, 1), 2.5, 'type float64'),
    ('x', None, None, r'(shape \(6, 2, 3, 1\)|are not the 6 examples)'),
    ('classify', 3, 4, 'row 3: 4 .* 0 to 3'), ('classify', 1, -1, 'row 1: -1'),
    ('classify', 1, 0.5, 'type float64'), ('bits', (2, 1), 2, 'row 2: 2 .* 0 or 1'), ('bits', (2, 1), 0.5, 'row 2: 0.5'),
    ('bits', None, None, r'y \(6, 4, 1\)'), ('regress', 5, np.nan, 'row 5: nan'), ('regress', None, None, r'y \(6, 1\)')])
def test_values_that_a_task_cannot_have(root, monkeypatch, letter, index, value, reason):
    """They are refused when they are written, and when they are read, in chunks."""
    monkeypatch.setattr(tasks, 'CHUNK', 7)
    kind, which = ('classify', 0) if letter == 'x' else (letter, 1)
    tokens = letter == 'x' and index is not None and len(index) == 2
    y = {'classify': np.arange(6) % 4, 'bits': np.eye(6, 4), 'regress': np.arange(6.0)}[kind]
    good = [np.ones((6, 2), np.int64) if tokens else np.ones((6, 2, 3)), y]
    wrong = good[which].astype(float if isinstance(value, float) else int)
    if index is None:
        wrong = wrong[..., None]
    else:
        wrong[index] = value
    bad = [wrong, y] if letter == 'x' else [good[0], wrong]
    rest = OUTPUTS[kind], {'name': 'the file'}, 't.py', 7 * tokens
    write_task('t', kind, dict.fromkeys(SPLITS, good), *rest)
    for split in SPLITS:
        assert re.search(f'the file: {split}_[xy]\\b.*{reason}', sentence(
            write_task, 't', kind, {**dict.fromkeys(SPLITS, good), split: bad}, *rest))
        path = root / 'data' / 't' / f'{split}_{"xy"[which]}.npy'
        np.save(path, wrong)
        assert re.search(f'{split}_[xy].npy.*{reason}', sentence(data.open_data, 't'))
        np.save(path, good[which])
    data.open_data('t')


@pytest.mark.parametrize('y, n, reason', [([0, 2, 2, 0], 4, 'the file: the class dog has no examples'),
                                          ([0, 1, 2, 0], 0, 'the file: the test split has no examples')])
def test_a_class_or_a_split_without_examples(root, y, n, reason):
    x, y = np.zeros((4, 2, 3), np.int8), np.array(y)
    splits = {'train': (x, y), 'val': (x, y), 'test': (x[:n], y[:n])}
    assert reason in sentence(lambda: write_task('t', 'classify', splits, 3, {'name': 'the file'}, 't.py',
                                                 labels=['cat', 'dog', 'ship']))
    assert not list((root / 'data').rglob('*.npy'))


def test_the_fingerprint_depends_on_the_examples_and_meta(root):
    found = set()
    for seed, more in ((0, {}), (1, {}), (1, {'guess': {'accuracy': 0.5}})):
        write_task('t', 'bits', task_splits('bits', seed), 4, {'name': 't'}, 't.py', **more)
        found.add(data.open_data('t').fingerprint)
    assert len(found) == 3


# training -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', KINDS)
def test_a_run_learns_and_evaluates_the_test_split(task_data, tmp_path, capsys, kind):
    content = go(task_data(kind), tmp_path, '--max_iters=60', '--eval_interval=20')
    rows = [r for r in log.read(tmp_path / 'metrics.csv') if 'val_loss' in r]
    assert rows[-1]['val_loss'] < rows[0]['val_loss']
    found, printed = json.loads((tmp_path / 'test.json').read_text()), capsys.readouterr().out
    best = checkpoint.load(tmp_path / 'best.pt')
    assert found['step'] == best['step'] and found['examples'] == 50
    model, task = checkpoint.load_model(tmp_path / 'best.pt')[0], data.open_data(task_data(kind).name)
    x, y = task.examples('test', range(50))
    assert found['test_loss'] == pytest.approx(model(x, y)[1].item(), rel=1e-5)
    assert f'({task.chance_answer()}: {tasks.format_metric(task.metric, task.chance("test")[task.metric])})' in printed
    assert f'a made-up {kind}' in printed and ' are trained' in printed
    assert content['data']['fingerprint'] == task.fingerprint


@pytest.mark.parametrize('more', [(), ('--mode=urt',), ('--trained=norms+output', '--stop_after=3')], ids=' '.join)
def test_resume_is_exact(task_data, tmp_path, more):
    folder, how = task_data('classify'), ['--schedule=constant', *more]
    whole = go(folder, tmp_path / 'whole', '--max_iters=20', *how)
    go(folder, tmp_path / 'parts', '--max_iters=10', *how)
    parts = go(folder, tmp_path / 'parts', '--max_iters=20', '--resume', *how)
    assert all(torch.equal(v, parts['model'][k]) for k, v in whole['model'].items())


def test_two_processes_agree_with_one(task_data, tmp_path, cli):
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
    """With a learning rate of 0, the run ends after stop_after evaluations."""
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


@pytest.mark.parametrize('words, reasons', [
    (['train.py', '--dataset=BITS'], ['model.py', 'BITS']), (['train.py', '--arch=fpt', '--dataset=TEXT'], ['fpt.py', 'TEXT']),
    (['train.py', *FPT, '--dataset=BITS', '--features=7'], ['features=7']),
    (['train.py', *FPT, '--dataset=BITS', '--leaking_split'], ['leaking_split', 'BITS']),
    (['train.py', *FPT, '--dataset=BITS', '--last_only'], ['last_only']),
    (['train.py', '--arch=bert', '--dataset=BITS'], ['bert.py', 'masked text', 'BITS']),
    (['train.py', '--arch=bert', '--dataset=TEXT', '--leaking_split'], ['leaking_split', 'masked text']),
    (['train.py', '--arch=bert', '--dataset=TEXT', '--last_only'], ['last_only', 'masked text']),
    (['train.py', '--arch=bert', '--dataset=TEXT', '--vocab_size=11'], ['vocab_size=11', '12', '[MASK]']),
    (['train.py', '--arch=bert', '--dataset=TEXT', '--mask_token=3'], ['mask_token=3', 'TEXT', '11']),
    (['compare.py', 'config/shakespeare_gpt.py', 'config/shakespeare_bert.py', '--set', 'dataset=TEXT'], ['masked text']),
    (['compare.py', 'config/shakespeare_gpt.py', 'config/shakespeare_automaton.py', '--set', 'dataset=TEXT'],
     ['shakespeare_automaton: ', 'both sides']),
    (['train.py', '--arch=baselines', '--network=nac', '--dataset=BITS'], ['network=nac']),
    (['train.py', '--arch=fpt', '--trunk=out/no_such_run', '--dataset=BITS'], ['out/no_such_run']),
])
def test_models_and_data_that_do_not_fit(task_data, dataset, refused, tmp_path, words, reasons):
    def filled(word):
        return word.replace('BITS', task_data('bits').name).replace('TEXT', dataset.name)
    out = '--out' if words[0] == 'compare.py' else '--out_dir'
    printed = refused(*map(filled, words), f'{out}={tmp_path / "run"}')
    assert all(filled(reason) in printed for reason in reasons) and not (tmp_path / 'run').exists()


def test_commands_for_text_refuse_a_task(task_data, refused, capsys, tmp_path):
    go(task_data('bits'), tmp_path, '--max_iters=2')
    assert 'task' in refused('sample.py', tmp_path) and '--prompt' in refused('look.py', tmp_path, '--prompt=abc')
    capsys.readouterr()
    script('train.py', f'--dataset={task_data("bits").name}', f'--out_dir={tmp_path / "new"}', *FPT, *QUICK, '--dry_run')
    printed = capsys.readouterr().out
    assert '8 examples of 3' in printed and ' frozen' in printed and not (tmp_path / 'new').exists()


# pictures -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('kind', 'own'), [('classify', 'confusion'), ('bits', 'bits'), ('regress', 'numbers')])
def test_pictures_of_a_run_on_a_task(task_data, tmp_path, kind, own):
    go(task_data(kind), tmp_path, '--max_iters=2')
    script('look.py', tmp_path)
    assert {p.name for p in (tmp_path / 'look').iterdir()} == {f'{n}.png' for n in ('trained', own, 'wrong', 'attention')}


def test_examples_are_drawn_as_what_they_are():
    """An image comes back from its patches; the others are drawn without an error."""
    import matplotlib.pyplot as plt

    from views import tasks as answers
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
