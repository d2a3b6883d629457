"""Boosted trees: a loss that can be worked out by hand, trees and texts that are the same twice, and errors by their words."""

import json
import math
import re
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import contents, script

from harness import ROOT, data, device
from train import evaluate

lightgbm = pytest.importorskip('lightgbm', reason='gbm.py grows its trees by it')
import gbm

F, BLOCK, WINDOWS = 4, 16, 50


def words_of(folder, out, *more):
    """The words of a training run of a blink."""
    return [f'--dataset={folder.name}', f'--out={out}', f'--features={F}', f'--block_size={BLOCK}', f'--eval_windows={WINDOWS}',
            '--examples=600', '--rounds=3', *more]


@pytest.fixture(scope='module')
def trained(dataset, tmp_path_factory):
    """A model of all windows of the training text.  Look, do not touch."""
    out = tmp_path_factory.mktemp('gbm') / 'run'
    gbm.main(words_of(dataset, out, '--examples=0'))
    return SimpleNamespace(out=out, text=data.TextData(dataset), meta=json.loads((out / 'meta.json').read_text()),
                           booster=lightgbm.Booster(model_file=out / 'model.txt'))


@pytest.fixture
def copied(trained, tmp_path):
    """A folder with a copy of the model, to be damaged."""
    for name in ('model.txt', 'meta.json'):
        (tmp_path / name).write_bytes((trained.out / name).read_bytes())
    return tmp_path


@pytest.fixture
def seen(monkeypatch):
    """[(x, y)] of the examples that LightGBM is given."""
    found = []
    real = lightgbm.Dataset
    monkeypatch.setattr(lightgbm, 'Dataset', lambda x, y, **more: found.append((x, y)) or real(x, y, **more))
    return found


# the loss -----------------------------------------------------------------------------------------------------------------

def test_the_loss_by_hand(trained, dataset, tmp_path, capsys):
    """That of the token after each window, of the trees' probabilities for the tokens just before it."""
    tokens = np.fromfile(dataset / 'val.bin', np.uint16).tolist()
    costs, hits = [], 0
    for s in trained.text.val_starts(WINDOWS, BLOCK):
        context, target = tokens[s + BLOCK - F:s + BLOCK], tokens[s + BLOCK]
        [p] = trained.booster.predict([context]).tolist()
        costs.append(-math.log((p[target] + 1e-6) / (1 + 1e-6 * len(p))))
        hits += p[target] == max(p)
    loss, accuracy = sum(costs) / WINDOWS, hits / WINDOWS
    assert trained.meta['val_loss_full'] == pytest.approx(loss, rel=1e-9)
    assert trained.meta['accuracy_full'] == accuracy
    gbm.main(words_of(dataset, tmp_path, '--examples=0'))
    shown = capsys.readouterr().out
    assert f'val_loss_full {loss:.4f}, accuracy {accuracy:.3f}, of {WINDOWS} windows of {BLOCK}\n' in shown
    counts = np.bincount(np.fromfile(dataset / 'train.bin', np.uint16)[F:])
    base = np.mean([-math.log(counts[tokens[s + BLOCK]] / counts.sum()) for s in trained.text.val_starts(WINDOWS, BLOCK)])
    guess = np.mean([tokens[s + BLOCK] == counts.argmax() for s in trained.text.val_starts(WINDOWS, BLOCK)])
    assert float(re.search(r'alone: ([\d.]+), ', shown)[1]) == pytest.approx(base, abs=2e-4)
    assert f'{guess:.3f}); ' in shown
    assert loss < base - 0.2 and accuracy > guess          # it has learned something


def test_it_is_the_figure_of_train_py(trained):
    """A neural model that would say what the trees say gets the same val_loss_full and accuracy_full."""
    class Trees(nn.Module):
        def forward(self, x):
            return torch.from_numpy(trained.booster.predict(x[:, -F:].numpy())).log()[:, None], None
    losses = evaluate(Trees(), trained.text, trained.text.val_starts(WINDOWS, BLOCK), BLOCK, 7,
                      device.setup('cpu', 'float32', False))
    assert trained.meta['val_loss_full'] == pytest.approx(losses['val_loss_full'], abs=1e-4)
    assert trained.meta['accuracy_full'] == pytest.approx(losses['accuracy_full'])


def test_a_token_that_was_never_seen_does_not_cost_the_world(root, tmp_path, capsys):
    text = 'ab abba b' * 100 + 'z' * 100
    data.write_text('rare', text, {'kind': 'char', 'chars': [' ', 'a', 'b', 'z']}, {'name': 'rare', 'sha256': ''}, 'text.py')
    gbm.main(words_of(root / 'data' / 'rare', tmp_path / 'run'))
    loss = json.loads((tmp_path / 'run' / 'meta.json').read_text())['val_loss_full']
    assert loss == pytest.approx(-math.log(1e-6), abs=1e-3)        # all validation text is z, which no example has
    assert f'alone: {-math.log(1e-6):.4f}, 0.000' in capsys.readouterr().out


# the examples -------------------------------------------------------------------------------------------------------------

def test_examples_are_windows_of_the_training_text(dataset, tmp_path, seen):
    tokens = np.fromfile(dataset / 'train.bin', np.uint16)
    every = np.stack([tokens[i:len(tokens) - F + i] for i in range(F + 1)], axis=1)
    for examples in (0, 600, 10 ** 9):
        gbm.main(words_of(dataset, tmp_path, f'--examples={examples}', '--overwrite'))
    (x, y), (some_x, some_y), (all_x, _) = seen
    assert (x == every[:, :F]).all() and (y == every[:, F]).all() and (all_x == x).all()
    assert some_x.shape == (600, F)
    at = {}
    for i, row in enumerate(every.tolist()):
        at.setdefault(tuple(row), []).append(i)
    found = [at[(*row, target)] for row, target in zip(some_x.tolist(), some_y.tolist(), strict=True)]
    # somewhere in the text each, and all over it
    assert min(f[0] for f in found) < len(every) / 10 and max(f[-1] for f in found) > len(every) * 0.9


def test_no_example_is_drawn_twice(root, tmp_path, seen):
    """Of a text in which no window comes twice, all but one."""
    text = ''.join(f'{i:03d} ' for i in range(200))
    data.write_text('numbers', text, {'kind': 'char', 'chars': sorted(set(text))}, {'name': 'n', 'sha256': ''}, 'text.py')
    gbm.main(words_of(root / 'data' / 'numbers', tmp_path / 'run', f'--examples={720 - F - 1}'))
    assert len({(*x, y) for x, y in zip(seen[0][0].tolist(), seen[0][1].tolist(), strict=True)}) == 720 - F - 1


def test_a_seed_means_the_same_trees(dataset, tmp_path):
    for name, seed in (('one', 1), ('again', 1), ('other', 2)):
        gbm.main(words_of(dataset, tmp_path / name, f'--seed={seed}'))
    one, again, other = (contents(tmp_path / name) for name in ('one', 'again', 'other'))
    assert one == again and set(one) == {'model.txt', 'meta.json'}
    assert one['model.txt'].split(b'parameters:')[0] != other['model.txt'].split(b'parameters:')[0]     # behind it are words


def test_tokens_are_categories(trained, dataset):
    """A tree asks which token it is, and not how large its number is."""
    model = (trained.out / 'model.txt').read_text()
    kinds = {int(k) & 1 for line in re.findall(r'^decision_type=(.*)$', model, re.M) for k in line.split()}
    assert kinds == {1}                # LightGBM's mark of a categorical split
    assert trained.booster.num_trees() == 3 * trained.text.vocab_size
    assert trained.meta['fingerprint'] == trained.text.fingerprint and trained.meta['dataset'] == dataset.name


# a text -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('start', ['abcabc', 'ab', None], ids=['long', 'short', 'none'])
def test_each_step_is_drawn_from_what_the_trees_say(trained, monkeypatch, capsys, start):
    drawn = []
    real = gbm.draw
    monkeypatch.setattr(gbm, 'draw', lambda logits, *how, **more: drawn.append((logits, how)) or real(logits, *how, **more))
    words = [str(trained.out), '--max_new_tokens=12', '--top_k=5', '--temperature=0.7']
    gbm.main([*words, f'--start={start}'] if start else words)
    text = capsys.readouterr().out
    assert text.endswith('\n') and len(text) == len(start or '\n') + 12 + 1 and text.startswith(start or '\n')
    ids = [-1] * F + trained.text.tokenizer.encode(text[:-1])
    for i, (logits, how) in enumerate(drawn):
        before = ids[:F + len(start or '\n') + i][-F:]
        np.testing.assert_allclose(logits.exp(), trained.booster.predict([before]), rtol=1e-9)
        assert how[:2] == (0.7, 5)
    assert len(drawn) == 12


def test_a_text_is_the_same_twice(trained, capsys):
    def text(*more):
        script('gbm.py', trained.out, '--start', 'abc', '--max_new_tokens', 60, *more)
        return capsys.readouterr().out
    one = text('--seed', 1)
    assert one == text('--seed', 1) != text('--seed', 2)
    greedy = text('--temperature=0')
    assert greedy == text('--temperature=0', '--seed=2') == text('--top_k=1')
    ids = trained.text.tokenizer.encode(greedy[:-1])
    assert ids[5] == trained.booster.predict([ids[5 - F:5]]).argmax()


def test_characters_come_as_they_are_drawn(trained, monkeypatch):
    ids, drawn = gbm.continuation(trained.booster, [1, 2], 5, 1.0, 0, torch.Generator().manual_seed(0)), []
    monkeypatch.setattr(gbm, 'draw', lambda *_, **__: drawn.append(1) or torch.tensor([3]))
    pieces = trained.text.tokenizer.stream(ids)
    assert next(pieces) == trained.text.tokenizer.decode([3]) and len(drawn) == 1


# what goes wrong ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words, said', [
    (['--features=0'], '--features=0: at least 1 and at most --block_size=16'),
    (['--features=17'], '--features=17: at least 1 and at most --block_size=16'),
    (['--features=many'], "invalid int value: 'many'"),
    (['--examples=-1'], '--examples=-1: 0 or more'),
    (['--rounds=0'], '--rounds=0: at least 1'),
    (['--learning_rate=0'], '--learning_rate=0.0: above 0 and at most 1'),
    (['--learning_rate=nan'], '--learning_rate=nan: above 0 and at most 1'),
    (['--eval_windows=-1'], '--eval_windows=-1: 0 or more'),
    (['--seed=-1'], '--seed=-1: 0 or more and less than 2 ** 31'),
    (['--seed=2147483648'], '--seed=2147483648: 0 or more and less than 2 ** 31'),
    (['--dataset=nosuch'], "there is no data set 'nosuch': known are"),
    (['--block_size=5000'], 'but one window of block_size=5000 and its target take 5,001'),
    (['--start=abc'], '--start is for a text: name the model that continues it'),
    (['--feature=3'], 'unrecognized arguments: --feature=3; '),
])
def test_training_is_refused(dataset, tmp_path, refused, words, said):
    assert said in refused('gbm.py', *words_of(dataset, tmp_path / 'run', *words))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('words, said', [
    (['--start='], '--start is empty: there is nothing to continue'),
    (['--start=abc!'], "no token for '!'"),
    (['--start=FILE:no/such'], '--start: no/such cannot be read as text'),
    (['--max_new_tokens=0'], '--max_new_tokens=0: at least 1'),
    (['--temperature=-1'], '--temperature=-1.0: 0 or more'),
    (['--temperature=nan'], '--temperature=nan: 0 or more'),
    (['--top_k=-1'], '--top_k=-1: 0 or more'),
    (['--rounds=5'], '--rounds is for training, and'),
])
def test_a_text_is_refused(trained, refused, words, said):
    assert said in refused('gbm.py', trained.out, *words)


def test_the_command_line(refused):
    """Exit code 1 and one line on stderr, as the system sees it."""
    said = refused('gbm.py', 'no/such', cwd=ROOT)
    assert said == 'there is no model of gbm.py in no/such (meta.json: No such file or directory): python gbm.py ' \
                   '--dataset=... trains one'


@pytest.mark.parametrize('name, change, said', [
    ('model.txt', lambda b: b[:len(b) // 2], 'ValueError: model.txt is not the model that meta.json tells of'),
    ('model.txt', lambda b: b.replace(b'leaf_value=', b'leaf_value=1', 1), 'ValueError: model.txt is not the model that'),
    ('model.txt', lambda b: b'', 'ValueError: model.txt is not the model that'),
    ('meta.json', lambda b: b[:len(b) // 2], 'JSONDecodeError'),
    ('meta.json', lambda b: b'[]', 'TypeError'),
    ('meta.json', lambda b: b'\xff', 'UnicodeDecodeError'),
    ('meta.json', lambda b: b.replace(b'"sha256"', b'"sha"'), "KeyError: 'sha256'"),
    ('meta.json', lambda b: b.replace(b'"a",', b''), 'the tokenizer is not that of model.txt'),
])
def test_a_damaged_model_is_told(copied, refused, name, change, said):
    path = copied / name
    path.write_bytes(change(path.read_bytes()))
    sentence = refused('gbm.py', copied)
    assert said in sentence and sentence.startswith(f'{copied} is damaged') and sentence.endswith('with --overwrite')


def test_a_missing_half_is_told(copied, refused):
    (copied / 'model.txt').unlink()
    assert f'there is no model of gbm.py in {copied} (model.txt: ' in refused('gbm.py', copied)


def test_without_lightgbm(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lightgbm', None)         # as if it were not installed
    said = refused('gbm.py', '--dataset=shakespeare_char')
    assert said.startswith('gbm.py grows its trees by lightgbm, which cannot be imported (')
    assert said.endswith('): pip install lightgbm')


def test_a_large_vocabulary_is_refused(root, tmp_path, refused):
    for size in (512, 513, 1):
        chars = [chr(0x4e00 + i) for i in range(size)]
        data.write_text(f'of_{size}', (''.join(chars) * 1000)[:2000], {'kind': 'char', 'chars': chars},
                        {'name': 'signs', 'sha256': ''}, 'text.py')
    gbm.main(words_of(root / 'data' / 'of_512', tmp_path / 'run', '--rounds=1'))
    for size in (513, 1):
        said = refused('gbm.py', *words_of(root / 'data' / f'of_{size}', tmp_path / 'other'))
        assert f'data/of_{size} has {size} tokens, and a round grows a tree for each: 2 to 512 are wanted' in said
        assert 'python prepare/text.py NAME FILE --tokens=char' in said


def test_nothing_is_overwritten_unless_told(dataset, copied, refused):
    before = contents(copied)
    said = refused('gbm.py', *words_of(dataset, copied))
    assert said == f'{copied} already holds a model: --overwrite replaces it, --out=... leaves it alone'
    (copied / 'meta.json').unlink()
    assert 'already holds a model' in refused('gbm.py', *words_of(dataset, copied))
    gbm.main(words_of(dataset, copied, '--overwrite'))
    assert set(contents(copied)) == set(before) and contents(copied)['model.txt'] != before['model.txt']
    gbm.load(copied)


def test_where_nothing_can_be_written(dataset, tmp_path, refused):
    (tmp_path / 'file').write_text('mine')
    said = refused('gbm.py', *words_of(dataset, tmp_path / 'file' / 'run'))
    assert 'could not be written' in said and said.endswith('choose another --out')


@pytest.mark.parametrize('when', ['training', 'writing'])
def test_ctrl_c_leaves_what_was_there(dataset, copied, monkeypatch, when):
    before = contents(copied)

    def stop(*_):
        signal.raise_signal(signal.SIGINT)
    if when == 'training':
        monkeypatch.setattr(gbm.tqdm, 'update', stop)
    else:
        monkeypatch.setattr(gbm, 'digest', stop)
    with pytest.raises(SystemExit) as e:
        gbm.main(words_of(dataset, copied, '--overwrite'))
    assert str(e.value).startswith('the training was stopped, and nothing was written: ')
    assert contents(copied) == before
