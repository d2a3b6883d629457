"""Boosted trees: the loss by hand, the examples, repeatable trees and texts, damaged files."""

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
from conftest import contents, sentence

from harness import ROOT, data, device
from prepare.common import write_text
from train import evaluate

lightgbm = pytest.importorskip('lightgbm', reason='extras/gbm.py needs it')
from extras import gbm

F, BLOCK, WINDOWS = 4, 16, 50


def command_line(folder, out, *more):
    """A training run of less than a second."""
    return [f'--dataset={folder.name}', f'--out={out}', f'--features={F}', f'--block_size={BLOCK}', f'--eval_windows={WINDOWS}',
            '--examples=600', '--rounds=3', *more]


@pytest.fixture(scope='module')
def trained(dataset, tmp_path_factory):
    """A model of all windows of the training text.  Not to be changed."""
    out = tmp_path_factory.mktemp('gbm') / 'run'
    gbm.main(command_line(dataset, out, '--examples=0'))
    return SimpleNamespace(out=out, text=data.TextData(dataset), meta=json.loads((out / 'meta.json').read_text()),
                           booster=lightgbm.Booster(model_file=out / 'model.txt'))


@pytest.fixture
def copied(trained, tmp_path):
    """A folder with a copy of the model."""
    for name in ('model.txt', 'meta.json'):
        (tmp_path / name).write_bytes((trained.out / name).read_bytes())
    return tmp_path


@pytest.fixture
def examples(monkeypatch):
    """[(x, y)] of the examples that LightGBM is given."""
    found, real = [], lightgbm.Dataset
    monkeypatch.setattr(lightgbm, 'Dataset', lambda x, y, **more: found.append((x, y)) or real(x, y, **more))
    return found


# training -----------------------------------------------------------------------------------------------------------------

def test_the_loss_by_hand(trained, dataset, tmp_path, capsys):
    """The loss of the token after each window, given the tokens just before it; and of the token frequencies."""
    tokens, starts = np.fromfile(dataset / 'val.bin', np.uint16).tolist(), trained.text.val_indices(WINDOWS, BLOCK)
    losses, hits = [], 0
    for s in starts:
        [p] = trained.booster.predict([tokens[s + BLOCK - F:s + BLOCK]]).tolist()
        losses.append(-math.log((p[tokens[s + BLOCK]] + 1e-6) / (1 + 1e-6 * len(p))))
        hits += p[tokens[s + BLOCK]] == max(p)
    loss, accuracy = sum(losses) / WINDOWS, hits / WINDOWS
    assert trained.meta['val_loss_full'] == pytest.approx(loss, rel=1e-9) and trained.meta['accuracy_full'] == accuracy
    gbm.main(command_line(dataset, tmp_path, '--examples=0'))
    printed = capsys.readouterr().out
    assert f'val_loss_full {loss:.4f}, accuracy {accuracy:.3f}, on {WINDOWS} windows of {BLOCK} tokens\n' in printed
    counts = np.bincount(np.fromfile(dataset / 'train.bin', np.uint16)[F:])
    base = np.mean([-math.log(counts[tokens[s + BLOCK]] / counts.sum()) for s in starts])
    assert float(re.search(r'alone: ([\d.]+), ', printed)[1]) == pytest.approx(base, abs=2e-4)
    assert loss < base - 0.2 and accuracy > np.mean([tokens[s + BLOCK] == counts.argmax() for s in starts])


def test_the_loss_is_that_of_train_py(trained):
    class Trees(nn.Module):
        config, memory = SimpleNamespace(block_size=BLOCK), 0

        def forward(self, x, y):
            return torch.from_numpy(trained.booster.predict(x[:, -F:].numpy())).log()[:, None], None
    losses = evaluate(Trees(), trained.text, trained.text.val_indices(WINDOWS, BLOCK), 7, device.setup('cpu', 'float32', False))
    assert trained.meta['val_loss_full'] == pytest.approx(losses['val_loss_full'], abs=1e-4)
    assert trained.meta['accuracy_full'] == pytest.approx(losses['accuracy_full'])


def test_an_unseen_token_has_a_finite_loss(root, tmp_path, capsys):
    text = 'ab abba b' * 100 + 'z' * 100        # all validation text is z
    write_text('rare', text, {'kind': 'char', 'chars': [' ', 'a', 'b', 'z']}, {'name': 'rare', 'sha256': ''}, 'text.py')
    gbm.main(command_line(root / 'data' / 'rare', tmp_path / 'run'))
    loss = json.loads((tmp_path / 'run' / 'meta.json').read_text())['val_loss_full']
    assert loss == pytest.approx(-math.log(1e-6), abs=1e-3)
    assert f'alone: {-math.log(1e-6):.4f}, 0.000' in capsys.readouterr().out


def test_examples_are_windows_of_the_training_text(root, tmp_path, examples):
    """All over the text, and none twice: no window of this text occurs twice."""
    write_text('numbers', ''.join(f'{i:03d} ' for i in range(200)), {'kind': 'char', 'chars': list(' 0123456789')},
                    {'name': 'n', 'sha256': ''}, 'text.py')
    tokens = np.fromfile(root / 'data' / 'numbers' / 'train.bin', np.uint16)
    every = np.stack([tokens[i:len(tokens) - F + i] for i in range(F + 1)], axis=1)
    for n in (0, 600, 10 ** 9):
        gbm.main(command_line(root / 'data' / 'numbers', tmp_path / 'run', f'--examples={n}', '--overwrite'))
    (x, y), (some_x, some_y), (all_x, _) = examples
    assert (x == every[:, :F]).all() and (y == every[:, F]).all() and (all_x == x).all()
    place = {tuple(row): i for i, row in enumerate(every.tolist())}
    found = {place[*row, target] for row, target in zip(some_x.tolist(), some_y.tolist(), strict=True)}
    assert len(found) == 600 and min(found) < len(every) / 10 and max(found) > len(every) * 0.9


def test_a_seed_repeats_the_trees(dataset, tmp_path):
    for name, seed in (('one', 1), ('again', 1), ('other', 2)):
        gbm.main(command_line(dataset, tmp_path / name, f'--seed={seed}'))
    one, again, other = (contents(tmp_path / name) for name in ('one', 'again', 'other'))
    assert one == again and set(one) == {'model.txt', 'meta.json'}
    assert one['model.txt'].split(b'parameters:')[0] != other['model.txt'].split(b'parameters:')[0]     # the trees


def test_tokens_are_categories(trained, dataset):
    """A split tests which token it is, not how large its id is."""
    model = (trained.out / 'model.txt').read_text()
    assert {int(k) & 1 for line in re.findall(r'^decision_type=(.*)$', model, re.M) for k in line.split()} == {1}
    assert trained.booster.num_trees() == 3 * trained.text.vocab_size
    assert trained.meta['fingerprint'] == trained.text.fingerprint and trained.meta['dataset'] == dataset.name


# generation ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('start', ['abcabc', 'ab', None], ids=['long', 'short', 'none'])
def test_each_token_is_the_most_likely_one(trained, capsys, start):
    gbm.main([str(trained.out), '--max_new_tokens=12', '--temperature=0', *([f'--start={start}'] if start else [])])
    start, text = start or '\n', capsys.readouterr().out[:-1]
    assert text.startswith(start) and len(text) == len(start) + 12
    ids = [-1] * F + trained.text.tokenizer.encode(text)
    for i in range(F + len(start), len(ids)):
        assert ids[i] == trained.booster.predict([ids[i - F:i]]).argmax()


def test_a_seed_repeats_a_text(trained, capsys):
    def text(*more):
        gbm.main([str(trained.out), '--start=abc', '--max_new_tokens=60', *more])
        return capsys.readouterr().out
    assert text('--seed=1') == text('--seed=1') != text('--seed=2')
    assert text('--temperature=0') == text('--temperature=0', '--seed=2') == text('--top_k=1')


# errors -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words, said', [
    (['--features=0'], '--features=0'), (['--features=17'], '--block_size=16'), (['--features=many'], "'many'"),
    (['--examples=-1'], '--examples=-1'), (['--rounds=0'], '--rounds=0'), (['--learning_rate=0'], '--learning_rate=0.0'),
    (['--learning_rate=nan'], '--learning_rate=nan'), (['--eval_windows=-1'], '--eval_windows'), (['--seed=-1'], '--seed=-1'),
    (['--seed=2147483648'], '2 ** 31'), (['--dataset=nosuch'], "'nosuch'"), (['--block_size=5000'], '5,001'),
    (['--start=abc'], '--start'), (['--feature=3'], '--feature=3'), (['--out', f'{__file__}/run'], 'could not be written')])
def test_bad_commands_of_training(dataset, tmp_path, words, said):
    assert said in sentence(gbm.main, command_line(dataset, tmp_path / 'run', *words))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('words, said', [
    (['--start='], '--start'), (['--start=abc!'], "'!'"), (['--start=FILE:no/such'], 'no/such'), (['--top_k=-1'], '--top_k=-1'),
    (['--max_new_tokens=0'], '--max_new_tokens=0'), (['--temperature=nan'], '--temperature=nan'), (['--rounds=5'], '--rounds')])
def test_bad_commands_of_generation(trained, words, said):
    assert said in sentence(gbm.main, [str(trained.out), *words])


def test_the_command_line(refused):
    assert 'no/such' in refused('-m', 'extras.gbm', 'no/such', cwd=ROOT)


@pytest.mark.parametrize('name, change, said', [
    ('model.txt', lambda b: b[:len(b) // 2], 'model.txt'), ('model.txt', lambda b: b'', 'model.txt'),
    ('model.txt', lambda b: b.replace(b'leaf_value=', b'leaf_value=1', 1), 'model.txt'),
    ('meta.json', lambda b: b[:len(b) // 2], 'JSONDecodeError'), ('meta.json', lambda b: b'[]', 'TypeError'),
    ('meta.json', lambda b: b'\xff', 'UnicodeDecodeError'), ('meta.json', lambda b: b.replace(b'"sha256"', b'"sha"'), 'sha256'),
    ('meta.json', lambda b: b.replace(b'"a",', b''), 'tokenizer')])
def test_a_damaged_model_is_refused(copied, name, change, said):
    path = copied / name
    path.write_bytes(change(path.read_bytes()))
    text = sentence(gbm.main, [str(copied)])
    assert said in text and text.startswith(f'{copied} is damaged') and '--overwrite' in text
    path.unlink()
    assert f'{copied} ({name}: ' in sentence(gbm.main, [str(copied)])


def test_without_lightgbm(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lightgbm', None)
    assert refused('extras/gbm.py', '--dataset=shakespeare_char').endswith('pip install lightgbm')


@pytest.mark.parametrize('size', [512, 513, 1])
def test_a_large_vocabulary_is_refused(root, tmp_path, size):
    chars = [chr(0x4e00 + i) for i in range(size)]
    write_text('signs', (''.join(chars) * 1000)[:2000], {'kind': 'char', 'chars': chars}, {'name': ''}, 'text.py')
    words = command_line(root / 'data' / 'signs', tmp_path / 'run', '--rounds=1')
    if size == 512:
        gbm.main(words)
    else:
        assert f' {size} tokens' in (said := sentence(gbm.main, words)) and '2 to 512' in said


def test_a_model_is_replaced_only_with_overwrite(dataset, copied):
    before = contents(copied)
    assert '--overwrite' in sentence(gbm.main, command_line(dataset, copied)) and contents(copied) == before
    (copied / 'meta.json').unlink()
    assert '--overwrite' in sentence(gbm.main, command_line(dataset, copied))
    gbm.main(command_line(dataset, copied, '--overwrite'))
    assert set(contents(copied)) == set(before) and contents(copied)['model.txt'] != before['model.txt']
    gbm.load(copied)


@pytest.mark.parametrize('where, name', [(gbm.tqdm, 'update'), (gbm, 'digest')], ids=['training', 'writing'])
def test_ctrl_c_keeps_the_old_model(dataset, copied, monkeypatch, where, name):
    before = contents(copied)
    monkeypatch.setattr(where, name, lambda *_: signal.raise_signal(signal.SIGINT))
    assert sentence(gbm.main, command_line(dataset, copied, '--overwrite')).startswith('stopped')
    assert contents(copied) == before
