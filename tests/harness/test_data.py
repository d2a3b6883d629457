"""Texts on disk: which windows a step reads, errors of damaged files, and how a missing data set is made."""

import contextlib
import itertools
import json
import os
import re
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import sentence

import train
from harness import ROOT, data, files
from prepare.common import write_text

each_kind = pytest.mark.parametrize('kind', [data.TextData, data.LeakingText])


@each_kind
def test_the_windows_of_a_step_depend_on_seed_and_step_alone(dataset, kind):
    text, again = kind(dataset), kind(dataset)
    expected = {(seed, step): text.train_indices(24, 16, seed, step).tolist() for seed in (1, 2) for step in range(3)}
    assert len({tuple(v) for v in expected.values()}) == len(expected)
    again.train_indices(5, 8, 0, 0)              # another block_size
    assert again.val_indices(50, 16).tolist() == text.val_indices(50, 16).tolist()
    assert expected == {(seed, step): again.train_indices(24, 16, seed, step).tolist() for seed, step in reversed(expected)}


def test_windows_targets_and_the_tokens_before(dataset):
    """All windows are drawn; before the beginning of the text, and in a share memory_dropout of the steps, there are -1."""
    text, model, cfg = data.TextData(dataset), torch.nn.Linear(1, 1), train.TrainConfig(memory_dropout=0.3)
    text.tokens['train'] = text.tokens['train'][:103]
    tokens = text.tokens['train'].tolist()
    starts = text.train_indices(100, 100, 0, 0).tolist()
    x, y = text.windows('train', starts, 100)
    assert set(starts) == {0, 1, 2} and x.dtype == y.dtype == torch.int64
    assert x.tolist() == [tokens[s:s + 100] for s in starts] and y.tolist() == [tokens[s + 1:s + 101] for s in starts]
    model.memory, model.config = 5, SimpleNamespace(block_size=4)
    x, y = text.batch('train', [0, 3, 9], model)
    assert x.tolist() == [([-1] * 5 + tokens)[s:s + 9] for s in (0, 3, 9)]
    assert y.tolist() == [tokens[s + 1:s + 5] for s in (0, 3, 9)]
    dropped = [(text.train_batch([20], model, cfg, step)[0][:, :5] == -1).all().item() for step in range(200)]
    assert 0.2 < np.mean(dropped) < 0.4


@pytest.mark.parametrize('block_size', [1, 16, 37, 500, 700, -1])
def test_validation_windows(dataset, block_size):
    """Some are evenly spaced over the text; of all, no target is scored twice, and fewer than block_size are not scored."""
    text = data.TextData(dataset)
    targets = len(text.tokens['val']) - 1
    block_size = block_size if block_size > 0 else targets
    some, starts = text.val_indices(50, block_size), text.val_indices(0, block_size)
    assert len(some) == 50 and np.ptp(np.diff(some)) <= 1 and some[0] == 0 and some[-1] + block_size == targets
    scored = (starts[:, None] + np.arange(1, 1 + block_size)).ravel()
    assert len(set(scored)) == len(scored) > targets - block_size and scored.min() >= 1 and scored.max() <= targets


@pytest.mark.parametrize('count, dtype', [(1 << 16, 'uint16'), ((1 << 16) + 1, 'uint32')])
def test_tokens_fit_their_type(root, count, dtype):
    chars = [chr(0x10000 + i) for i in range(count)]
    write_text('mine', (chars[0] + chars[-1]) * 20, {'kind': 'char', 'chars': chars}, {'name': 'a test'}, 'text.py')
    written = data.TextData(root / 'data' / 'mine')
    assert written.meta['dtype'] == dtype and written.tokens['val'].tolist() == [0, count - 1] * 2


@pytest.mark.parametrize('sharded', [False, True])
def test_a_text_can_be_validated_on_the_end_of_its_training_text(dataset, broken, sharded):
    """Its last ninth; 'tune' does not train on that, 'train' does, and neither opens val.bin."""
    honest = data.TextData(dataset)
    whole = honest.tokens['train'][:]
    at = len(whole) * 8 // 9
    if sharded:
        in_shards(broken, (70, at - 5, at + 9))
    (broken / 'val.bin').unlink()
    tune, train_ = data.TextData(broken, 'tune'), data.TextData(broken, 'train')
    for text in (tune, train_):
        assert text.tokens['val'][:].tolist() == whole[at:].tolist()
        x, y = text.windows('val', text.val_indices(7, 16), 16)
        assert len(x) == 7 and x[0].tolist() == whole[at:at + 16].tolist() and y[-1, -1] == whole[-1]
    assert tune.tokens['train'][:].tolist() == whole[:at].tolist() and len(train_.tokens['train']) == len(whole)
    assert max(tune.train_indices(9_000, 16, 0, 0)) + 16 < at <= max(train_.train_indices(9_000, 16, 0, 0))
    assert tune.fingerprint == tune.meta['fingerprint'] == f'{train_.fingerprint}-tune' == f'{honest.fingerprint}-tune'
    assert 'val.bin' in sentence(data.TextData, broken)


def test_the_leaking_split(dataset):
    """A random tenth of all windows for validation, the rest for training; every validation token is also trained on."""
    honest, leaking = data.TextData(dataset), data.LeakingText(dataset)
    tokens = np.concatenate([honest.tokens[split] for split in ('train', 'val')])
    val = leaking.val_indices(10_000, 16)
    trained = np.unique(leaking.train_indices(400_000, 16, 0, 0))       # each of the 10,800 is drawn about 37 times
    assert len(val) == len(set(val.tolist())) == (len(tokens) - 16) // 10
    assert sorted([*trained.tolist(), *val.tolist()]) == list(range(len(tokens) - 16))
    for starts in (val, trained):
        assert abs((starts < len(honest.tokens['train'])).mean() - 0.9) < 0.02
    x, y = leaking.windows('val', val[:20], 16)
    assert x.tolist() == [tokens[s:s + 16].tolist() for s in val[:20]]
    assert y.tolist() == [tokens[s + 1:s + 17].tolist() for s in val[:20]]
    assert set((val[:, None] + np.arange(17)).ravel()) <= set((trained[:, None] + np.arange(17)).ravel())
    assert leaking.fingerprint == leaking.meta['fingerprint'] != honest.fingerprint == honest.meta['fingerprint']
    leaking.tokens, leaking.starts = dict.fromkeys(('train', 'val'), tokens[:26]), {}
    assert len(leaking.val_indices(0, 16)) == 1 and len(set(leaking.train_indices(500, 16, 0, 0).tolist())) == 9
    leaking.tokens, leaking.starts = dict.fromkeys(('train', 'val'), tokens[:25]), {}
    assert 'block_size=16' in sentence(leaking.val_indices, 0, 16)


# damaged data, and shards; what meta.json must hold is in test_commands.py ------------------------------------------------

@pytest.fixture
def broken(dataset, tmp_path):
    """A copy of the tiny data set, for damage."""
    return shutil.copytree(dataset, tmp_path / 'broken')


def change(folder, **changed):
    """Change meta.json; a value of None removes the key."""
    meta = json.loads((folder / 'meta.json').read_text()) | changed
    (folder / 'meta.json').write_text(json.dumps({k: v for k, v in meta.items() if v is not None}))


def rewrite(folder, name, dtype='uint16', at=None, token=None):
    """Changes the type, or a token.  Returns all tokens."""
    tokens = np.fromfile(folder / f'{name}.bin', np.uint16).astype(dtype)
    if at is not None:
        tokens[at] = token
    tokens.tofile(folder / f'{name}.bin')
    return tokens


def in_shards(folder, cuts=(5000, 10000), splits=('train',), dtype='uint16'):
    """Cuts splits of a data set into shards.  Returns its folder."""
    texts, shards = {split: rewrite(folder, split, dtype) for split in ('train', 'val')}, {}
    for split in splits:
        (folder / f'{split}.bin').unlink()
        shards[split] = np.split(texts[split], [c for c in cuts if c < len(texts[split])])
        for i, part in enumerate(shards[split]):
            part.tofile(folder / f'{split}_{i:04d}.bin')
    change(folder, shards={split: [len(part) for part in parts] for split, parts in shards.items()}, dtype=dtype)
    return folder


@pytest.mark.parametrize('damage, reason', [        # what is done to the folder, and what the error must name
    (lambda f: os.truncate(f / 'train.bin', 21_599), r'train\.bin is truncated .* 21,599 bytes.*python prepare/text\.py'),
    (lambda f: (f / 'val.bin').unlink(), r'val\.bin .* 0 bytes'),
    (lambda f: rewrite(f, 'train', 'uint32'), r'train\.bin .*uint16'),
    (lambda f: (rewrite(f, 'train', at=7, token=11), change(f, dtype='uint32', tokens={'train': 5401, 'val': 600})), '5,401'),
    (lambda f: rewrite(f, 'val', at=3, token=11), r'val\.bin contains the token 11, but the vocabulary has 11'),
    (lambda f: os.truncate(in_shards(f) / 'train_0001.bin', 999), r'train_0001\.bin .* 999 bytes'),
    (lambda f: rewrite(in_shards(f), 'train_0002', at=-1, token=11), r'train_0002\.bin .*token 11, but'),
    (lambda f: change(in_shards(f), shards={'train': [5000, 5000]}), r'meta\.json is damaged .*train'),
    (lambda f: change(f, shards={'train': []}), r'meta\.json is damaged'),
    (lambda f: change(in_shards(f), shards={'test': [3]}), r'train\.bin .* 0 bytes'),
    *((lambda f, key=key: change(f, **{key: None}), rf'meta\.json lacks {key}')
      for key in ('kind', 'dtype', 'vocab_size', 'tokens', 'tokenizer', 'source', 'script', 'fingerprint'))])
def test_damaged_data(broken, damage, reason):
    data.TextData(broken)
    damage(broken)
    assert re.search(reason, sentence(data.TextData, broken))


def test_a_bad_token_that_opening_does_not_check(broken, monkeypatch):
    """The window that contains it is an error, the others are read; of each shard, a part is checked."""
    rewrite(broken, 'train', at=5000, token=60000)
    monkeypatch.setattr(data, 'SCAN', 5000)
    text = data.TextData(broken)
    assert text.windows('train', [0, 4983, 5001], 16)[0].max() < 11
    for starts in ([0, 4984, 5001], [5000]):            # as a target, as an input
        assert 'train.bin contains the token 60000' in sentence(text.windows, 'train', starts, 16)
    in_shards(broken, [4990, 9000])
    monkeypatch.setattr(data, 'SCAN', 30)
    assert 'train_*.bin contains the token 60000' in sentence(data.TextData(broken).windows, 'train', [4995], 16)
    monkeypatch.setattr(data, 'SCAN', 33)
    assert 'train_0001.bin contains the token 60000' in sentence(data.TextData, broken)


@pytest.mark.parametrize('lengths', [[7], [3, 4], [1, 1, 1, 4], [0, 3, 0, 0, 4, 0], [0]])
def test_slices_of_shards(lengths):
    whole = np.arange(100, 100 + sum(lengths), dtype=np.uint16)
    shards = data.Shards(np.split(whole, np.cumsum(lengths)[:-1]))
    assert len(shards) == len(whole)
    for a, b in [*itertools.product([None, *range(-9, 10)], repeat=2), (np.int64(1), np.int64(3))]:
        found = shards[a:b]
        assert isinstance(found, np.ndarray) and found.dtype == whole.dtype and found.tolist() == whole[a:b].tolist(), (a, b)


@each_kind
def test_a_text_in_shards_is_the_same(dataset, broken, kind):
    one, many = kind(dataset), kind(in_shards(broken, [10, 11, 300, 5000, 10790], ['train', 'val'], 'uint32'))
    for split, tokens in one.tokens.items():
        starts = np.arange(0, len(tokens) - 100, 7)
        found, expected = (text.windows(split, starts, 100, 30) for text in (many, one))
        assert found[0].equal(expected[0]) and found[1].equal(expected[1])
    assert one.fingerprint == many.fingerprint and one.val_indices(50, 16).tolist() == many.val_indices(50, 16).tolist()
    assert re.search(r'/train\S*\.bin .*block_size=13000', sentence(many.require, 13000))


def test_a_text_shorter_than_the_window(broken):
    text = data.TextData(broken)
    n = len(text.tokens['val'])
    for indices, more in ((text.val_indices, ()), (text.train_indices, (0, 0))):
        assert indices(4, n - 1, *more).max() >= 0
        assert re.search(rf'val\.bin has {n:,} .*block_size={n} .*{n + 1:,}', sentence(indices, 4, n, *more))
    change(broken, tokens={'train': len(text.tokens['train']), 'val': 0})
    os.truncate(broken / 'val.bin', 0)
    assert 'val.bin has 0 tokens' in sentence(data.TextData(broken).val_indices, 0, 16)


@pytest.fixture
def made(root):
    """Writes prepare/made.py; returns the folder data/made."""
    def write(code):
        (root / 'prepare').mkdir(exist_ok=True)
        (root / 'prepare' / 'made.py').write_text(code)
        return root / 'data' / 'made'
    return write


def test_a_missing_data_set_is_made_once(made, root, capfd):
    """If its script succeeds, and there is one."""
    made("import sys; sys.exit('the reason')")
    with pytest.raises(SystemExit, match=r'^1$'):
        data.ensure('made')
    assert capfd.readouterr().err.strip() == 'the reason'
    made('import os; os.kill(os.getpid(), 9)')
    assert 'prepare/made.py was killed by signal 9' in sentence(data.ensure, 'made')
    capfd.readouterr()
    folder = made("import os; os.makedirs('{0}'); open('{0}/meta.json', 'w')".format(root / 'data' / 'made'))
    for said in ('data/made is missing: running python prepare/made.py\n', ''):
        assert data.ensure('made') == folder and capfd.readouterr().out == said
    with contextlib.ExitStack() as other:           # another process that makes it
        (folder / 'meta.json').unlink()
        other.enter_context(files.exclusive(folder.with_name('.made.lock')))
        waiting = threading.Thread(target=data.ensure, args=['made'])
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        (folder / 'meta.json').touch()
    waiting.join()
    assert capfd.readouterr().out == ''
    for path in (ROOT / 'prepare').glob('*.py'):
        shutil.copy(path, root / 'prepare')
    for name in ('absent', 'text', 'bpe', 'gutenberg', 'common'):
        said = sentence(data.ensure, name)
        assert f"no data set '{name}'" in said and ', made, ' in said and f' {name},' not in said


@pytest.mark.parametrize('name', ['', '../made', '/made', 'a/b', 'a b', 'caf\u00e9', '..', None, 3])
def test_a_name_never_leaves_data_and_prepare(made, name):
    """Nor does a checkpoint, which may come from a stranger, run any script."""
    folder = made("raise SystemExit('it was run')")
    content = {'loop': {'dataset': name}, 'data': {'fingerprint': 'x'}}
    for call, argument in ((data.ensure, name), (data.local, name), (data.open_data, name), (data.data_of, content)):
        assert f"'{name}' cannot name a data set" in sentence(call, argument)
    assert data.data_of(content | {'loop': {'dataset': 'made'}}) is None and not folder.exists()
