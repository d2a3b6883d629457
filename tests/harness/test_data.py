"""Texts on disk: which windows a step reads, and errors of damaged files; and the tokenizers."""

import hashlib
import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest
import tiktoken
import torch
from conftest import sentence, tiny_train

import train
from harness import ROOT, UserError, config, data, device, files
from harness.tokenizer import GPT2_FILES, GPT2_URL, Tokenizer, bpe_spec, gpt2_spec
from prepare.common import split_text, write_text

SOURCE = {'name': 'a test', 'sha256': '0' * 64}
PATTERN = r'''\s+$|\s?[^\s]+|\s'''
MERGES = [b'th', b'the', b' the', b'an', b'and', b' and', b'\xf0\x9f', b'\x91\xa9', b'\xe2\x80']
BPE = bpe_spec('small', PATTERN, {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *MERGES])},
               {'<|endoftext|>': 256 + len(MERGES)})
TEXT = 'the cat and the dog \u2014 naïve\r\n\n\t漢字, e\u0301, \x00 \N{WOMAN}\u200d\N{WOMAN}\u200d\N{GIRL} \U0001f600!\n' * 7
SPECS = {'char': {'kind': 'char', 'chars': sorted(set(TEXT))}, 'bytes': {'kind': 'bytes'}, 'bpe': BPE}
each_tokenizer = pytest.mark.parametrize('spec', SPECS.values(), ids=SPECS)


# which windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', [data.TextData, data.LeakingText])
def test_the_windows_of_a_step_depend_on_seed_and_step_alone(dataset, kind):
    text, again = kind(dataset), kind(dataset)
    expected = {(seed, step): text.train_indices(24, 16, seed, step).tolist() for seed in (1, 2) for step in range(3)}
    assert len({tuple(v) for v in expected.values()}) == len(expected)
    np.random.seed(0)
    torch.manual_seed(5)
    again.train_indices(5, 8, 0, 0)              # another block_size
    assert again.val_indices(50, 16).tolist() == text.val_indices(50, 16).tolist()
    for (seed, step), starts in reversed(expected.items()):
        assert again.train_indices(24, 16, seed, step).tolist() == starts


def test_targets_are_the_next_tokens_up_to_the_end_of_the_text(dataset):
    text = data.TextData(dataset)
    text.tokens['train'] = tokens = text.tokens['train'][:103]
    starts = text.train_indices(100, 100, 0, 0)
    assert set(starts.tolist()) == {0, 1, 2}
    x, y = text.windows('train', starts, 100)
    assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (100, 100)
    for i, start in enumerate(starts):
        assert x[i].tolist() == tokens[start:start + 100].tolist() and y[i].tolist() == tokens[start + 1:start + 101].tolist()


def test_tokens_before_a_window_and_steps_without_them(dataset):
    """For a model with a memory: -1 before the beginning of the text, and in a share memory_dropout of the steps."""
    text, model = data.TextData(dataset), torch.nn.Linear(1, 1)
    model.memory, model.config = 5, train.TrainConfig()
    model.config.block_size = 4
    tokens = [-1] * 5 + text.tokens['train'][:20].tolist()
    x, y = text.batch('train', [0, 3, 9], model)
    assert x.tolist() == [tokens[s:s + 9] for s in (0, 3, 9)] and y.tolist() == [tokens[s + 6:s + 10] for s in (0, 3, 9)]
    cfg = train.TrainConfig(memory_dropout=0.3)
    dropped = [(text.train_batch([20], model, cfg, step)[0][:, :5] == -1).all().item() for step in range(200)]
    assert 0.2 < np.mean(dropped) < 0.4


def test_validation_windows_are_evenly_spaced(dataset):
    text = data.TextData(dataset)
    starts = text.val_indices(50, 16)
    steps = np.diff(starts)
    assert len(starts) == 50 and steps.max() - steps.min() <= 1
    assert starts[0] == 0 and starts[-1] + 16 == len(text.tokens['val']) - 1


@pytest.mark.parametrize('block_size', [1, 16, 37, 500, 700, -1])
def test_all_validation_windows_are_adjacent(dataset, block_size):
    """No target is scored twice, and fewer than block_size are not scored."""
    text = data.TextData(dataset)
    targets = len(text.tokens['val']) - 1
    block_size = block_size if block_size > 0 else targets
    starts = text.val_indices(0, block_size)
    scored = np.concatenate([np.arange(s + 1, s + 1 + block_size) for s in starts])
    assert len(set(scored.tolist())) == len(scored)
    assert scored.min() >= 1 and scored.max() <= targets
    assert targets - len(scored) < block_size


@each_tokenizer
def test_training_and_validation_text_do_not_overlap(root, spec):
    """Each is encoded separately, so no token contains text of both."""
    write_text('mine', TEXT, spec, SOURCE, 'text.py')
    text = data.TextData(root / 'data' / 'mine')
    parts = [text.tokenizer.decode(text.tokens[split].tolist()) for split in ('train', 'val')]
    assert tuple(parts) == split_text(TEXT) == (TEXT[:int(0.9 * len(TEXT))], TEXT[int(0.9 * len(TEXT)):])


def test_the_windows_of_a_step_do_not_depend_on_the_number_of_ranks(dataset, monkeypatch):
    monkeypatch.setattr(train, 'DistributedDataParallel', lambda module, **_: module)
    text = data.TextData(dataset)
    expected = text.windows('train', text.train_indices(8, 16, 7, 3), 16)[0].tolist()
    for world, batch_size in ((1, 8), (1, 2), (2, 2), (4, 2)):
        settings = config.load([*tiny_train(dataset, 'out')[1:], '--seed=7', '--tokens_per_step=128',
                                f'--batch_size={batch_size}'], train.TrainConfig)
        found = []
        for rank in range(world):
            machine = device.Machine(torch.device('cpu'), torch.float32, False, rank, rank, world)
            trainer = train.Trainer(settings.train, train.runs.new_model(settings, text), text, machine)
            found += trainer.batch(3)[0].flatten(0, 1).tolist()
        assert sorted(found) == sorted(expected)


@pytest.mark.parametrize('count, dtype', [(1 << 16, 'uint16'), ((1 << 16) + 1, 'uint32')])
def test_tokens_fit_their_type(root, count, dtype):
    chars = [chr(0x10000 + i) for i in range(count)]
    text = (chars[0] + chars[-1]) * 20
    write_text('mine', text, {'kind': 'char', 'chars': chars}, SOURCE, 'text.py')
    written = data.TextData(root / 'data' / 'mine')
    assert written.meta['dtype'] == dtype and written.tokens['val'].tolist() == [0, count - 1] * 2


# damaged data -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(dataset, tmp_path):
    """A copy of the tiny data set, for damage."""
    return shutil.copytree(dataset, tmp_path / 'broken')


def change(folder, **changed):
    """Change meta.json; a value of None removes the key."""
    meta = json.loads((folder / 'meta.json').read_text())
    meta = {k: v for k, v in (meta | changed).items() if v is not None}
    (folder / 'meta.json').write_text(json.dumps(meta))


def rewrite(folder, split, dtype=np.uint16, at=None, token=None):
    tokens = np.fromfile(folder / f'{split}.bin', dtype=np.uint16).astype(dtype)
    if at is not None:
        tokens[at] = token
    tokens.tofile(folder / f'{split}.bin')


def cut(folder, split, count):
    path = folder / f'{split}.bin'
    path.write_bytes(path.read_bytes()[:count])


def in_shards(folder, cuts=(5000, 10000), splits=('train',), dtype='uint16'):
    """Cuts splits of a data set into shards.  Returns its folder."""
    counts = {}
    for split in ('train', 'val'):
        rewrite(folder, split, dtype)
        if split in splits:
            tokens = np.fromfile(folder / f'{split}.bin', dtype)
            (folder / f'{split}.bin').unlink()
            parts = np.split(tokens, [c for c in cuts if c < len(tokens)])
            counts[split] = [len(p) for p in parts]
            for i, part in enumerate(parts):
                part.tofile(folder / f'{split}_{i:04d}.bin')
    change(folder, shards=counts, dtype=dtype)
    return folder


DAMAGES = {     # what is done to the folder, and what the error must name
    'one byte short': (lambda f: cut(f, 'train', -1), r'train\.bin is truncated .* python prepare/text\.py'),
    'half': (lambda f: cut(f, 'val', 1000), r'val\.bin .* 1,000 bytes'),
    'no file': (lambda f: (f / 'val.bin').unlink(), r'val\.bin .* 0 bytes'),
    'wrong dtype': (lambda f: change(f, dtype='uint32'), r'train\.bin .*uint32'),
    'unknown dtype': (lambda f: change(f, dtype='float16'), r"dtype is 'float16'"),
    'dtype a number': (lambda f: change(f, dtype=16), 'dtype is 16'),
    'uint32 as uint16': (lambda f: rewrite(f, 'train', np.uint32), r'train\.bin .*uint16'),
    'uint16 as uint32': (lambda f: (change(f, dtype='uint32', tokens={'train': 5000, 'val': 500}), cut(f, 'train', 20000),
                                    cut(f, 'val', 2000)), r'train\.bin contains the token \d+, but .*uint32'),
    'bad token': (lambda f: rewrite(f, 'val', at=3, token=11), r'val\.bin contains the token 11, but the vocabulary has 11'),
    'not JSON': (lambda f: (f / 'meta.json').write_text('{"kind": "text", '), r'meta\.json is not JSON'),
    'not text': (lambda f: (f / 'meta.json').write_bytes(b'\xff\xfe{}'), r'meta\.json is not JSON'),
    'a list': (lambda f: (f / 'meta.json').write_text('[]'), r'meta\.json lacks dtype, fingerprint, kind'),
    'a number': (lambda f: (f / 'meta.json').write_text('3'), r'meta\.json lacks dtype, fingerprint, kind'),
    'another kind': (lambda f: change(f, kind='sound'), r"kind is 'sound'"),
    'counts of one part': (lambda f: change(f, tokens={'train': 10801}), r'meta\.json lacks tokens\.val'),
    'counts in words': (lambda f: change(f, tokens={'train': 'many', 'val': 'few'}), r'meta\.json is damaged'),
    'vocabulary in words': (lambda f: change(f, vocab_size='all'), r'meta\.json is damaged'),
    'no kind of tokenizer': (lambda f: change(f, tokenizer={}), r'meta\.json is damaged .*kind'),
    'no characters': (lambda f: change(f, tokenizer={'kind': 'char'}), r'meta\.json is damaged .*chars'),
    'a BPE that is not base64': (lambda f: change(f, tokenizer=BPE | {'ranks': ['A']}), r'meta\.json is damaged'),
    'unknown tokenizer': (lambda f: change(f, tokenizer={'kind': 'words'}), "kind is 'words'"),
    'a short shard': (lambda f: os.truncate(in_shards(f) / 'train_0001.bin', 999), r'train_0001\.bin .* 999 bytes'),
    'no shard': (lambda f: (in_shards(f) / 'train_0002.bin').unlink(), r'train_0002\.bin .* 0 bytes'),
    'dtype of shards': (lambda f: change(in_shards(f), dtype='uint32'), r'train_0000\.bin .*uint32'),
    'bad token in a shard': (lambda f: rewrite(in_shards(f), 'train_0001', at=4, token=11), r'train_0001\.bin .*token 11, but'),
    'bad last token': (lambda f: rewrite(in_shards(f), 'train_0002', at=-1, token=11), r'train_0002\.bin .*token 11, but'),
    'another sum': (lambda f: change(in_shards(f), shards={'train': [5000, 5000]}), r'meta\.json is damaged .*train'),
    'another split': (lambda f: change(in_shards(f), shards={'test': [3]}), r'train\.bin .* 0 bytes'),
    **{f'shards {v}': (lambda f, v=v: change(f, shards=v), r'meta\.json is damaged')
       for v in ({'train': []}, {'train': ['many']}, ['train'], 3)},
    **{f'no {key}': (lambda f, key=key: change(f, **{key: None}), rf'meta\.json lacks {key}: ')
       for key in ('kind', 'dtype', 'vocab_size', 'tokens', 'tokenizer', 'source', 'script', 'fingerprint')},
}


@pytest.mark.parametrize('damage, reason', DAMAGES.values(), ids=DAMAGES)
def test_damaged_data(broken, damage, reason):
    data.TextData(broken)
    damage(broken)
    assert re.search(reason, sentence(data.TextData, broken))


def test_a_bad_token_that_opening_does_not_check(broken, monkeypatch):
    """The window that contains it is an error, the others are read."""
    rewrite(broken, 'train', at=5000, token=60000)
    assert 'train.bin contains the token 60000' in sentence(data.TextData, broken)
    monkeypatch.setattr(data, 'SCAN', 5000)
    text = data.TextData(broken)
    assert text.windows('train', [0, 4983, 5001], 16)[0].max() < 11
    for starts in ([0, 4984, 5001], [5000]):            # as a target, as an input
        assert 'train.bin contains the token 60000' in sentence(text.windows, 'train', starts, 16)
    in_shards(broken, [4990, 9000])     # of each shard, a part is checked
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


@pytest.mark.parametrize('kind', [data.TextData, data.LeakingText])
@pytest.mark.parametrize('dtype', ['uint16', 'uint32'])
@pytest.mark.parametrize('cuts, splits', [([5000], ['train']), ([10, 11, 300, 5000, 10790], ['train', 'val']), ([], ['train'])])
def test_a_text_in_shards_is_the_same(dataset, broken, kind, dtype, cuts, splits):
    one, many = kind(dataset), kind(in_shards(broken, cuts, splits, dtype))
    many.require(100)
    assert re.search(r'/train\S*\.bin .*block_size=13000', sentence(many.require, 13000))
    assert one.fingerprint == many.fingerprint
    for split in ('train', 'val'):
        assert len(one.tokens[split]) == len(many.tokens[split])
        starts = np.arange(0, len(one.tokens[split]) - 100, 7)
        for before in (0, 30):
            found, expected = (text.windows(split, starts, 100, before) for text in (many, one))
            assert found[0].equal(expected[0]) and found[1].equal(expected[1])
    assert one.train_indices(50, 16, 1, 2).tolist() == many.train_indices(50, 16, 1, 2).tolist()
    assert one.val_indices(50, 16).tolist() == many.val_indices(50, 16).tolist()


def test_a_text_shorter_than_the_window(broken):
    text = data.TextData(broken)
    length = len(text.tokens['val'])
    for starts in (lambda n: text.train_indices(4, n, 0, 0), lambda n: text.val_indices(4, n)):
        assert starts(length - 1).max() >= 0
        printed = sentence(starts, length)
        assert all(part in printed for part in (f'val.bin has {length:,} ', f'block_size={length}', f'{length + 1:,}'))
    change(broken, tokens={'train': len(text.tokens['train']), 'val': 0})
    cut(broken, 'val', 0)
    assert 'val.bin has 0 tokens' in sentence(data.TextData(broken).val_indices, 0, 16)


# data made on the way ---------------------------------------------------------------------------------------------------


@pytest.fixture
def script(root):
    """Write prepare/made.py."""
    def write(code):
        (root / 'prepare').mkdir(exist_ok=True)
        (root / 'prepare' / 'made.py').write_text(code)
        return root / 'data' / 'made'
    return write


def test_a_missing_data_set_is_made_once(script, capfd):
    folder = script("import os; os.makedirs('{0}'); open('{0}/meta.json', 'w')".format(data.ROOT / 'data' / 'made'))
    assert data.ensure('made') == folder and (folder / 'meta.json').exists()
    assert 'running python prepare/made.py' in capfd.readouterr().out
    assert data.ensure('made') == folder and capfd.readouterr().out == ''


def test_a_prepare_script_that_fails(script, capfd):
    script("import sys; sys.exit('the reason')")
    with pytest.raises(SystemExit) as e:
        data.ensure('made')
    assert e.value.code == 1 and capfd.readouterr().err.strip() == 'the reason'
    script('import os; os.kill(os.getpid(), 9)')
    assert 'prepare/made.py was killed by signal 9' in sentence(data.ensure, 'made')


@pytest.mark.parametrize('name', ['absent', 'text', 'bpe', 'gutenberg', 'common'])
def test_a_data_set_that_no_script_makes(script, name):
    folder = script('').parent
    for path in (ROOT / 'prepare').glob('*.py'):
        shutil.copy(path, folder.parent / 'prepare')
    (folder / 'mine').mkdir(parents=True)
    (folder / 'mine' / 'meta.json').touch()
    printed = sentence(data.ensure, name)
    assert f"no data set '{name}'" in printed and ', made, mine, ' in printed and f' {name},' not in printed


def of(name, fingerprint='x'):
    """What a checkpoint says of its data."""
    return {'loop': {'dataset': name}, 'data': {'fingerprint': fingerprint}}


@pytest.mark.parametrize('name', ['', '../made', '/made', 'a/b', 'a b', 'caf\u00e9', '..', None, 3])
def test_a_name_never_leaves_data_and_prepare(script, name):
    script("raise SystemExit('it was run')")
    for call in (data.ensure, data.local, data.open_data, lambda name: data.data_of(of(name))):
        assert f"'{name}' cannot name a data set" in sentence(call, name)


def test_a_checkpoint_runs_no_script(script):
    folder = script("raise SystemExit('it was run')")
    assert data.data_of(of('made')) is None and not folder.exists()


# tokenizers -------------------------------------------------------------------------------------------------------------


def token_bytes(tokenizer, ids):
    return b''.join(tokenizer.token_bytes(i) for i in ids)


@each_tokenizer
def test_decoding_inverts_encoding(spec):
    tokenizer = Tokenizer(json.loads(json.dumps(spec)))
    for text in (TEXT, TEXT[3:40], '\U0001f600', 'e\u0301', '\n', ''):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.n_vocab for i in ids)
        assert token_bytes(tokenizer, ids) == text.encode()


@each_tokenizer
def test_streaming_yields_complete_characters(spec):
    tokenizer = Tokenizer(spec)
    ids = tokenizer.encode(TEXT)
    stream, text = tokenizer.stream(ids), ''
    for k in range(1, len(ids) + 1):
        text += next(stream)
        assert text == token_bytes(tokenizer, ids[:k]).decode(errors='ignore')     # without an incomplete character
    assert ''.join(stream) == '' and text == tokenizer.decode(ids) == TEXT


@pytest.mark.parametrize('spec', [SPECS['bytes'], BPE], ids=['bytes', 'bpe'])
def test_invalid_utf8_becomes_the_replacement_character(spec):
    tokenizer = Tokenizer(spec)
    for raw in (b'a\xffb', b'\x91\xa9x', b'\xf0\x9f', b'ok\xe2\x80', b'\xe6\xbcx'):
        assert tokenizer.decode(list(raw)) == ''.join(tokenizer.stream(list(raw))) == raw.decode(errors='replace')
    assert 'the' in tokenizer.decode(tokenizer.encode('\udcff the'))      # an argument of the command line that is not UTF-8


def test_tokens_of_a_bpe():
    """A character may be split over several tokens; a special token is one token."""
    tokenizer = Tokenizer(BPE)
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode('\N{WOMAN}')] == [b'\xf0\x9f', b'\x91\xa9']
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode(' the theband')] == [b' the', b' the', b'b', b'and']
    ids = tokenizer.encode('the<|endoftext|>')
    assert ids[1:] == [tokenizer.n_vocab - 1] and tokenizer.decode(ids) == 'the<|endoftext|>'


def test_characters_of_a_vocabulary():
    """Unknown characters are named, the first five; a text begins with a line break or token 0."""
    tokenizer = Tokenizer({'kind': 'char', 'chars': ['a', 'b']})
    assert "no token for 'Z'" in sentence(tokenizer.encode, 'abZba') and tokenizer.begin() == [0]
    assert "no token for '\\n', '\U0001f600': " in sentence(tokenizer.encode, 'a\U0001f600\n')
    assert sentence(tokenizer.encode, 'abcdefghijk').count("'") == 10
    assert Tokenizer(SPECS['bytes']).begin() == [10] and Tokenizer({'kind': 'char', 'chars': ['a', '\n']}).begin() == [1]


@pytest.fixture(scope='module')
def gpt2(tmp_path_factory):
    """(the specification of GPT-2's BPE, the folder of its two files); skipped if they cannot be downloaded."""
    folder = tmp_path_factory.mktemp('downloads')
    for name in GPT2_FILES:
        if (files.DOWNLOADS / name).exists():
            shutil.copy(files.DOWNLOADS / name, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, 'DOWNLOADS', folder)
        patch.setenv('TIKTOKEN_CACHE_DIR', str(folder / 'cache'))
        try:
            return gpt2_spec(), folder
        except UserError as e:
            pytest.skip(str(e))


LONGER = TEXT + 'aaaaaaaaa'\
    "It's 12345 o'clock,   isn't it?  \n\n  def f(x):\n\treturn x**2 # \u00a0\u3000 \U0001f468\U0001f3fd\n"


def test_gpt2_agrees_with_tiktoken(gpt2, monkeypatch):
    spec, folder = gpt2
    cache = folder / 'theirs'
    cache.mkdir()
    for name in GPT2_FILES:         # tiktoken's cache
        shutil.copy(folder / name, cache / hashlib.sha1(f'{GPT2_URL}/{name}'.encode()).hexdigest())
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(cache))
    monkeypatch.setattr('tiktoken.load.read_file', lambda path: pytest.fail(f'tiktoken downloads {path}'))
    theirs, ours = tiktoken.get_encoding('gpt2'), Tokenizer(spec)
    assert ours.bpe._mergeable_ranks == theirs._mergeable_ranks and spec['pattern'] == theirs._pat_str
    assert ours.n_vocab == theirs.n_vocab == 50257
    assert ours.encode(LONGER + '<|endoftext|>') == theirs.encode(LONGER + '<|endoftext|>', allowed_special='all')


def test_gpt2_agrees_with_transformers(gpt2, tmp_path):
    from transformers import GPT2Tokenizer
    spec, folder = gpt2
    shutil.copy(folder / 'encoder.json', tmp_path / 'vocab.json')
    shutil.copy(folder / 'vocab.bpe', tmp_path / 'merges.txt')
    theirs, ours = GPT2Tokenizer.from_pretrained(tmp_path), Tokenizer(spec)
    ids = ours.encode(LONGER)
    assert len(ids) > 100 and ids == theirs.encode(LONGER)
    assert ours.decode(ids) == LONGER


# the leaking split --------------------------------------------------------------------------------------------------------


@pytest.fixture
def leaking(dataset):
    return data.LeakingText(dataset)


def test_the_leaking_split(dataset, leaking):
    """A random tenth of all windows for validation, the rest for training; every validation token is also trained on."""
    honest = data.TextData(dataset)
    tokens = np.concatenate([honest.tokens[split] for split in ('train', 'val')])
    val = leaking.val_indices(10_000, 16)
    trained = np.unique(leaking.train_indices(400_000, 16, 0, 0))       # each of the 10,800 is drawn about 37 times
    assert len(val) == len(set(val.tolist())) == (len(tokens) - 16) // 10
    assert sorted([*trained.tolist(), *val.tolist()]) == list(range(len(tokens) - 16))
    for starts in (val, trained):
        assert abs((starts < len(honest.tokens['train'])).mean() - 0.9) < 0.02
    for split in ('train', 'val'):
        for start, x, y in zip(val[:20], *leaking.windows(split, val[:20], 16), strict=True):
            assert x.tolist() == tokens[start:start + 16].tolist() and y.tolist() == tokens[start + 1:start + 17].tolist()
    seen = np.zeros(len(tokens), bool)
    seen[(trained[:, None] + np.arange(17)).ravel()] = True
    assert seen[(val[:, None] + np.arange(17)).ravel()].all()
    assert leaking.fingerprint == leaking.meta['fingerprint'] != honest.fingerprint == honest.meta['fingerprint']
    assert honest.train_indices(100, 16, 0, 0).tolist() != leaking.train_indices(100, 16, 0, 0).tolist()


@pytest.mark.parametrize('windows', [0, 1, 9, 10])
def test_a_leaking_split_needs_ten_windows(leaking, windows):
    leaking.tokens = {split: tokens[:16 + windows] for split, tokens in leaking.tokens.items()}
    if windows == 10:
        assert len(leaking.val_indices(0, 16)) == 1 and len(set(leaking.train_indices(500, 16, 0, 0).tolist())) == 9
    else:
        assert 'block_size=16' in sentence(leaking.val_indices, 0, 16)
