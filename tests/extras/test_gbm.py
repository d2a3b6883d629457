"""Boosted trees: the loss by hand, the examples, repeatable trees and texts, damaged files."""

import json
import math
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import contents, sentence

from harness import data
from prepare.common import write_text

lightgbm = pytest.importorskip('lightgbm', reason='extras/gbm.py needs it')
from extras import gbm

F, BLOCK, WINDOWS = 4, 16, 50


def command_line(folder, out, *more):
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
    return shutil.copytree(trained.out, tmp_path / 'copy')


def test_the_loss_by_hand(trained, dataset, tmp_path, capsys):
    """The loss of the token after each window, given the tokens just before it; and of the token frequencies."""
    tokens, starts = np.fromfile(dataset / 'val.bin', np.uint16).tolist(), trained.text.val_indices(WINDOWS, BLOCK)
    p = trained.booster.predict([tokens[s + BLOCK - F:s + BLOCK] for s in starts])
    own = [row[tokens[s + BLOCK]] for row, s in zip(p, starts, strict=True)]
    loss = np.mean([-math.log((q + 1e-6) / (1 + 1e-6 * p.shape[1])) for q in own])
    assert trained.meta['val_loss_full'] == pytest.approx(loss, rel=1e-9)
    assert trained.meta['accuracy_full'] == np.mean(own == p.max(1))
    gbm.main(command_line(dataset, tmp_path, '--examples=0'))
    assert contents(tmp_path) == contents(trained.out)
    counts = np.bincount(np.fromfile(dataset / 'train.bin', np.uint16)[F:])
    base = np.mean([-math.log(counts[tokens[s + BLOCK]] / counts.sum()) for s in starts])
    printed = float(re.search(r'alone: ([\d.]+), ', capsys.readouterr().out)[1])
    assert printed == pytest.approx(base, abs=2e-4) and loss < base - 0.2


def test_examples_are_windows_of_the_training_text(root, tmp_path, monkeypatch):
    """All over the text, and none twice: no window of this text occurs twice.  Tokens are categories, not sizes."""
    write_text('numbers', ''.join(f'{i:03d} ' for i in range(200)), {'kind': 'char', 'chars': list(' 0123456789')},
               {'name': 'n', 'sha256': ''}, 'text.py')
    examples, real, folder = [], lightgbm.Dataset, root / 'data' / 'numbers'
    monkeypatch.setattr(lightgbm, 'Dataset', lambda x, y, **more: examples.append((x, y)) or real(x, y, **more))
    tokens = np.fromfile(folder / 'train.bin', np.uint16).tolist()
    place = {tuple(tokens[i:i + F + 1]): i for i in range(len(tokens) - F)}
    for n, seed in ((0, 1), (600, 1), (600, 2)):
        gbm.main(command_line(folder, tmp_path / 'run', f'--examples={n}', f'--seed={seed}', '--overwrite'))
    every, some, other = ({place[*row, last] for row, last in zip(x.tolist(), y.tolist(), strict=True)} for x, y in examples)
    assert every == {*range(len(place))} and len(some) == 600 and some != other
    assert min(some) < len(place) / 10 and max(some) > len(place) * 0.9
    decisions = re.findall(r'^decision_type=(.*)$', (tmp_path / 'run' / 'model.txt').read_text(), re.M)
    assert {int(k) & 1 for line in decisions for k in line.split()} == {1}


@pytest.mark.parametrize('start', ['abcabc', 'ab', None], ids=['long', 'short', 'none'])
def test_each_token_is_the_most_likely_one(trained, capsys, start):
    def text(*more):
        gbm.main([str(trained.out), '--max_new_tokens=40', *more, *([f'--start={start}'] if start else [])])
        return capsys.readouterr().out[:-1]
    greedy = text('--temperature=0')
    ids = [-1] * F + trained.text.tokenizer.encode(greedy)
    assert greedy.startswith(start or '\n') and len(greedy) == len(start or '\n') + 40
    for i in range(F + len(start or '\n'), len(ids)):
        assert ids[i] == trained.booster.predict([ids[i - F:i]]).argmax()
    assert text('--top_k=1') == greedy and text('--seed=1') == text('--seed=1') != text('--seed=2')


@pytest.mark.parametrize('name, change, said', [
    ('model.txt', lambda b: b[:len(b) // 2], 'model.txt'), ('meta.json', lambda b: b[:len(b) // 2], 'JSONDecodeError'),
    ('meta.json', lambda b: b'[]', 'TypeError'), ('meta.json', lambda b: b.replace(b'"sha256"', b'"sha"'), 'sha256'),
    ('meta.json', lambda b: b.replace(b'"a",', b''), 'tokenizer')])
def test_a_damaged_model_is_refused(copied, name, change, said):
    (copied / name).write_bytes(change((copied / name).read_bytes()))
    text = sentence(gbm.main, [str(copied)])
    assert said in text and text.startswith(f'{copied} is damaged') and '--overwrite' in text
    (copied / name).unlink()
    assert f'{copied} ({name}: ' in sentence(gbm.main, [str(copied)])


def test_what_cannot_be_trained_or_written(root, tmp_path):
    for size in (513, 1, 9):        # tokens of the vocabulary
        chars = [chr(0x4e00 + i) for i in range(size)]
        write_text('signs', (''.join(chars) * 1000)[:2000], {'kind': 'char', 'chars': chars}, {'name': ''}, 'text.py')
        out, named = (tmp_path / 'run', f' {size} tokens') if size != 9 else (f'{__file__}/run', f'{__file__}/run')
        assert named in sentence(gbm.main, command_line(root / 'data' / 'signs', out)) and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('where, name', [(gbm.tqdm, 'update'), (gbm, 'digest')], ids=['training', 'writing'])
def test_a_model_is_replaced_only_with_overwrite_and_as_a_whole(dataset, copied, monkeypatch, where, name):
    before = contents(copied)
    assert '--overwrite' in sentence(gbm.main, command_line(dataset, copied))
    with monkeypatch.context() as patch:
        patch.setattr(where, name, lambda *_: signal.raise_signal(signal.SIGINT))
        assert sentence(gbm.main, command_line(dataset, copied, '--overwrite')).startswith('stopped')
    assert contents(copied) == before
    (copied / 'meta.json').unlink()
    assert '--overwrite' in sentence(gbm.main, command_line(dataset, copied))
    gbm.main(command_line(dataset, copied, '--overwrite'))
    assert set(contents(copied)) == set(before) and contents(copied)['model.txt'] != before['model.txt']
    gbm.load(copied)
