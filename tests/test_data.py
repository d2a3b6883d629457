"""Data sets on disk: which windows a step reads, and what is said of a damaged file; and the tokenizers."""

import contextlib
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import tiktoken
import torch
from conftest import tiny_train

import train
from harness import ROOT, UserError, data, device, files
from harness.tokenizer import GPT2_FILES, GPT2_URL, Tokenizer, bpe_spec, gpt2_spec

SOURCE = {'name': 'a test', 'sha256': '0' * 64}
PATTERN = r'''\s+$|\s?[^\s]+|\s'''
MERGES = [b'th', b'the', b' the', b'an', b'and', b' and', b'\xf0\x9f', b'\x91\xa9', b'\xe2\x80']     # parts of characters, too
BPE = bpe_spec('small', PATTERN, {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *MERGES])},
               {'<|endoftext|>': 256 + len(MERGES)})
TEXT = 'the cat and the dog \u2014 naïve\r\n\n\t漢字, e\u0301, \x00 \N{WOMAN}\u200d\N{WOMAN}\u200d\N{GIRL} \U0001f600!\n' * 7
SPECS = {'char': {'kind': 'char', 'chars': sorted(set(TEXT))}, 'bytes': {'kind': 'bytes'}, 'bpe': BPE}
each_tokenizer = pytest.mark.parametrize('spec', SPECS.values(), ids=SPECS)


def sentence(call, *args):
    """What the UserError of call(*args) says: one sentence, on one line."""
    with pytest.raises(UserError) as e:
        call(*args)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) > 20
    return str(e.value)


# ---------------------------------------------------------------------------------------------------- which windows


def test_the_windows_of_a_step_depend_on_seed_and_step_alone(dataset):
    text, again = data.TextData(dataset), data.TextData(dataset)
    expected = {(seed, step): text.batch_starts(24, 16, seed, step).tolist() for seed in (1, 2) for step in range(3)}
    assert len({tuple(v) for v in expected.values()}) == len(expected)
    np.random.seed(0)
    torch.manual_seed(5)
    again.val_starts(7, 16)
    for (seed, step), starts in reversed(expected.items()):
        assert again.batch_starts(24, 16, seed, step).tolist() == starts


def test_windows_may_begin_wherever_their_last_target_is_in_the_text(dataset):
    text = data.TextData(dataset)
    text.tokens['train'] = text.tokens['train'][:103]
    assert set(text.batch_starts(100, 100, 0, 0).tolist()) == {0, 1, 2}
    x, y = text.rows('train', [2], 100)
    assert x.shape == y.shape == (1, 100) and y[0, -1] == text.tokens['train'][-1]


def test_targets_are_the_tokens_after(dataset):
    text = data.TextData(dataset)
    starts = text.batch_starts(9, 16, 0, 0)
    x, y = text.rows('train', starts, 16)
    assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (9, 16)
    for i, start in enumerate(starts):
        assert x[i].tolist() == text.tokens['train'][start:start + 16].tolist()
        assert y[i].tolist() == text.tokens['train'][start + 1:start + 17].tolist()


def test_validation_windows_are_evenly_spaced_and_always_the_same(dataset):
    starts = data.TextData(dataset).val_starts(50, 16)
    text = data.TextData(dataset)
    text.batch_starts(5, 16, 0, 0)
    assert text.val_starts(50, 16).tolist() == starts.tolist()
    steps = np.diff(starts)
    assert len(starts) == 50 and steps.max() - steps.min() <= 1
    assert starts[0] == 0 and starts[-1] + 16 == len(text.tokens['val']) - 1


@pytest.mark.parametrize('block_size', [1, 16, 37, 500, 700, -1])
def test_all_validation_windows_lie_side_by_side(dataset, block_size):
    """No target is scored twice, and fewer than a window of them are left out."""
    text = data.TextData(dataset)
    targets = len(text.tokens['val']) - 1
    block_size = block_size if block_size > 0 else targets
    starts = text.val_starts(0, block_size)
    scored = np.concatenate([np.arange(s + 1, s + 1 + block_size) for s in starts])
    assert len(set(scored.tolist())) == len(scored)
    assert scored.min() >= 1 and scored.max() <= targets
    assert targets - len(scored) < block_size


@each_tokenizer
def test_training_and_validation_text_do_not_overlap(root, spec):
    """Each is encoded by itself, so that one behind the other they are the text, and no token holds text of both."""
    data.write_text('mine', TEXT, spec, SOURCE, 'text.py')
    text = data.TextData(root / 'data' / 'mine')
    parts = [text.tokenizer.decode(text.tokens[split].tolist()) for split in ('train', 'val')]
    assert parts == [TEXT[:int(0.9 * len(TEXT))], TEXT[int(0.9 * len(TEXT)):]]


def test_the_windows_of_a_step_do_not_depend_on_the_number_of_ranks(dataset, tmp_path, monkeypatch):
    """train.py itself, a rank after the other, each with a gradient of its own: only what they read is of interest."""
    class Machine(device.Machine):
        def all_reduce(self, values, op='sum'):
            return list(values)

        def gather(self, parts):
            return parts

    def alone(module, **_):
        module.no_sync = contextlib.nullcontext
        return module

    read, rows = [], data.TextData.rows

    def spy(self, split, starts, block_size, *more):
        if split == 'train':
            read.append(np.array(starts).tolist())
        return rows(self, split, starts, block_size, *more)

    monkeypatch.setattr(data.TextData, 'rows', spy)
    monkeypatch.setattr(train, 'DistributedDataParallel', alone)
    monkeypatch.setattr(train.dist, 'destroy_process_group', lambda: None)
    monkeypatch.setattr(train.signal, 'signal', lambda *_: None)
    steps = {}
    for world, batch_size in ((1, 8), (1, 2), (2, 2), (4, 2)):
        taken = []
        for rank in range(world):
            machine = Machine(torch.device('cpu'), torch.float32, False, rank, rank, world)
            monkeypatch.setattr(train.device, 'setup', lambda *_, machine=machine: machine)
            read.clear()
            train.main([*tiny_train(dataset, tmp_path / f'{world}-{batch_size}-{rank}')[1:], '--max_iters=3', '--seed=7',
                        '--tokens_per_step=128', f'--batch_size={batch_size}', '--sample_tokens=0'])
            assert [len(r) for r in read] == [8 // world] * 3
            taken.append(list(read))
        steps[world, batch_size] = [sorted(start for part in parts for start in part) for parts in zip(*taken, strict=True)]
    text = data.TextData(dataset)
    expected = [sorted(text.batch_starts(8, 16, 7, step).tolist()) for step in range(3)]
    assert all(windows == expected for windows in steps.values()), steps


@pytest.mark.parametrize('count, dtype', [(1 << 16, 'uint16'), ((1 << 16) + 1, 'uint32')])
def test_tokens_fit_their_type(root, count, dtype):
    chars = [chr(0x10000 + i) for i in range(count)]
    text = (chars[0] + chars[-1]) * 20
    data.write_text('mine', text, {'kind': 'char', 'chars': chars}, SOURCE, 'text.py')
    written = data.TextData(root / 'data' / 'mine')
    assert written.meta['dtype'] == dtype and written.tokens['val'].tolist() == [0, count - 1] * 2


# ---------------------------------------------------------------------------------------------------- damaged data


@pytest.fixture
def broken(dataset, tmp_path):
    """A copy of the tiny data set, to be damaged."""
    return shutil.copytree(dataset, tmp_path / 'broken')


def tell(folder, **changed):
    """Change meta.json; a value of None takes the name away."""
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


DAMAGES = {     # what is done to the folder, and what the sentence must hold
    'one byte short': (lambda f: cut(f, 'train', -1), r'train\.bin is truncated .* python prepare/text\.py again'),
    'half': (lambda f: cut(f, 'val', 1000), r'val\.bin is truncated .* 1,000 bytes'),
    'no file': (lambda f: (f / 'val.bin').unlink(), r'val\.bin is truncated .* 0 bytes'),
    'wrong dtype': (lambda f: tell(f, dtype='uint32'), r'train\.bin is truncated or of another dtype.*uint32'),
    'unknown dtype': (lambda f: tell(f, dtype='float16'), r"meta\.json: dtype 'float16' is unknown"),
    'dtype a number': (lambda f: tell(f, dtype=16), r"meta\.json: dtype '16' is unknown"),
    'uint32 as uint16': (lambda f: rewrite(f, 'train', np.uint32), r'train\.bin is truncated or of another dtype.*uint16'),
    'uint16 as uint32': (lambda f: (tell(f, dtype='uint32', tokens={'train': 5000, 'val': 500}), cut(f, 'train', 20000),
                                    cut(f, 'val', 2000)), r'train\.bin holds the token \d+, but .* another dtype than uint32'),
    'token too high': (lambda f: rewrite(f, 'val', at=3, token=11), r'val\.bin holds the token 11, but the vocabulary has 11'),
    'not JSON': (lambda f: (f / 'meta.json').write_text('{"kind": "text", '), r'meta\.json is not JSON'),
    'not text': (lambda f: (f / 'meta.json').write_bytes(b'\xff\xfe{}'), r'meta\.json is not JSON'),
    'a list': (lambda f: (f / 'meta.json').write_text('[]'), r'meta\.json lacks dtype, fingerprint, kind'),
    'a number': (lambda f: (f / 'meta.json').write_text('3'), r'meta\.json lacks dtype, fingerprint, kind'),
    'another kind': (lambda f: tell(f, kind='sound'), "a task .kind 'sound'., and text is wanted"),
    'counts of one half': (lambda f: tell(f, tokens={'train': 10801}), r'meta\.json is damaged .*val'),
    'counts in words': (lambda f: tell(f, tokens={'train': 'many', 'val': 'few'}), r'meta\.json is damaged'),
    'vocabulary in words': (lambda f: tell(f, vocab_size='all'), r'meta\.json is damaged'),
    'no kind of tokenizer': (lambda f: tell(f, tokenizer={}), r'meta\.json is damaged .*kind'),
    'no characters': (lambda f: tell(f, tokenizer={'kind': 'char'}), r'meta\.json is damaged .*chars'),
    'a BPE that is not base64': (lambda f: tell(f, tokenizer=BPE | {'ranks': ['A']}), r'meta\.json is damaged'),
    'unknown tokenizer': (lambda f: tell(f, tokenizer={'kind': 'words'}), "unknown kind of tokenizer 'words'"),
}


@pytest.mark.parametrize('damage, said', DAMAGES.values(), ids=DAMAGES)
def test_damaged_data_is_told_in_a_sentence(broken, damage, said):
    data.TextData(broken)               # whole until now
    damage(broken)
    assert re.search(said, sentence(data.TextData, broken))


@pytest.mark.parametrize('name', ['kind', 'dtype', 'vocab_size', 'tokens', 'tokenizer', 'source', 'script', 'fingerprint'])
def test_whatever_meta_lacks_is_named(broken, name):
    tell(broken, **{name: None})
    assert f'meta.json lacks {name}: ' in sentence(data.TextData, broken)


def test_a_token_too_high_that_opening_does_not_see(broken, monkeypatch):
    """A file longer than what is scanned: the window that holds the token is refused, the others are read."""
    rewrite(broken, 'train', at=5000, token=60000)
    assert 'train.bin holds the token 60000' in sentence(data.TextData, broken)
    monkeypatch.setattr(data, 'SCAN', 5000)
    text = data.TextData(broken)
    assert text.rows('train', [0, 4983, 5001], 16)[0].max() < 11
    assert 'train.bin holds the token 60000' in sentence(text.rows, 'train', [0, 4984, 5001], 16)     # as a target
    assert 'train.bin holds the token 60000' in sentence(text.rows, 'train', [5000], 16)


def test_a_text_shorter_than_the_window(broken):
    text = data.TextData(broken)
    length = len(text.tokens['val'])
    for starts in (lambda n: text.batch_starts(4, n, 0, 0), lambda n: text.val_starts(4, n)):
        assert starts(length - 1).max() >= 0
        said = sentence(starts, length)
        assert f'val.bin has {length:,} tokens' in said and f'block_size={length}' in said and f'{length + 1:,}' in said
    tell(broken, tokens={'train': len(text.tokens['train']), 'val': 0})
    cut(broken, 'val', 0)
    assert 'val.bin has 0 tokens' in sentence(data.TextData(broken).val_starts, 0, 16)


@pytest.mark.parametrize('damage, said', [
    (lambda f: cut(f, 'train', -1), r'data/mine/train\.bin is truncated'),
    (lambda f: rewrite(f, 'train', at=0, token=999), r'data/mine/train\.bin holds the token 999'),
    (lambda f: (f / 'meta.json').unlink(), r"no data set 'mine': known are .*shakespeare_char, shakespeare_gpt2.*, and python "
                                           r'prepare/text\.py NAME FILE'),
], ids=['truncated', 'token too high', 'absent'])
def test_train_ends_with_a_sentence(dataset, tree, refused, damage, said):
    damage(shutil.copytree(dataset, tree / 'data' / 'mine'))
    assert re.search(said, refused(*tiny_train('mine', tree / 'run'), cwd=tree))
    assert not (tree / 'run').exists()


# ---------------------------------------------------------------------------------------------------- data made on the way


@pytest.fixture
def script(root):
    """Write prepare/made.py."""
    def write(*lines):
        (root / 'prepare').mkdir()
        (root / 'prepare' / 'made.py').write_text('\n'.join(['import os, pathlib, sys', *lines]))
        return root / 'data' / 'made'
    return write


def test_a_missing_data_set_is_made_once(script, capfd):
    folder = script("made = pathlib.Path(__file__).parent.parent / 'data' / 'made'", 'made.mkdir(parents=True)',
                    "(made / 'meta.json').write_text('{}')")
    assert data.ensure('made') == folder and (folder / 'meta.json').exists()
    assert 'data/made is missing: running python prepare/made.py' in capfd.readouterr().out
    assert data.ensure('made') == folder
    assert capfd.readouterr().out == ''


def test_a_prepare_script_that_fails_has_said_why_itself(script, capfd):
    script("sys.exit('the reason')")
    with pytest.raises(SystemExit) as e:
        data.ensure('made')
    assert e.value.code == 1 and capfd.readouterr().err.strip() == 'the reason'


def test_a_prepare_script_that_is_killed(script):
    script('os.kill(os.getpid(), 9)')
    assert 'prepare/made.py was killed by signal 9' in sentence(data.ensure, 'made')


@pytest.mark.parametrize('name', ['absent', 'text', '', '../made', '/made'])
def test_a_data_set_that_no_script_makes(script, name):
    """prepare/text.py wants arguments, so it is not one that can be run for data/text."""
    folder = script('').parent
    shutil.copy(ROOT / 'prepare' / 'text.py', folder.parent / 'prepare')
    (folder / 'mine').mkdir(parents=True)
    (folder / 'mine' / 'meta.json').touch()
    said = sentence(data.ensure, name)
    assert f"no data set '{name}': known are made, mine, and python prepare/text.py NAME FILE" in said


# ---------------------------------------------------------------------------------------------------- tokenizers


def token_bytes(tokenizer, ids):
    return b''.join(tokenizer.token_bytes(i) for i in ids)


@each_tokenizer
def test_encoded_and_decoded_a_text_is_the_same(spec):
    tokenizer = Tokenizer(json.loads(json.dumps(spec)))
    for text in (TEXT, TEXT[3:40], '\U0001f600', 'e\u0301', '\n', ''):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.n_vocab for i in ids)
        assert token_bytes(tokenizer, ids) == text.encode()


@each_tokenizer
def test_streamed_text_is_whole_characters_as_soon_as_they_are_whole(spec):
    tokenizer = Tokenizer(spec)
    ids = tokenizer.encode(TEXT)
    stream, said = tokenizer.stream(ids), ''
    for k in range(1, len(ids) + 1):
        said += next(stream)
        assert said == token_bytes(tokenizer, ids[:k]).decode(errors='ignore')     # without the part of a character at its end
    assert ''.join(stream) == '' and said == tokenizer.decode(ids) == TEXT


@pytest.mark.parametrize('spec', [SPECS['bytes'], BPE], ids=['bytes', 'bpe'])
def test_what_is_not_utf8_becomes_the_replacement_character(spec):
    tokenizer = Tokenizer(spec)
    for raw in (b'a\xffb', b'\x91\xa9x', b'\xf0\x9f', b'ok\xe2\x80', b'\xe6\xbcx'):
        assert tokenizer.decode(list(raw)) == ''.join(tokenizer.stream(list(raw))) == raw.decode(errors='replace')
    assert 'the' in tokenizer.decode(tokenizer.encode('\udcff the'))      # an argument of the command line that is not UTF-8


def test_tokens_hold_parts_of_characters():
    """Else the tests above show nothing about them."""
    tokenizer = Tokenizer(BPE)
    ids = tokenizer.encode('\N{WOMAN}')
    assert [tokenizer.token_bytes(i) for i in ids] == [b'\xf0\x9f', b'\x91\xa9']
    assert list(tokenizer.stream(ids)) == ['', '\N{WOMAN}', '']
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode(' the theband')] == [b' the', b' the', b'b', b'and']


def test_special_tokens_are_one_token():
    tokenizer = Tokenizer(BPE)
    assert tokenizer.encode('<|endoftext|>')[0] == tokenizer.n_vocab - 1
    assert tokenizer.decode(tokenizer.encode('the<|endoftext|>')) == 'the<|endoftext|>'


def test_an_unknown_character_is_named():
    tokenizer = Tokenizer({'kind': 'char', 'chars': ['a', 'b']})
    assert "no token for 'Z': it knows the 2 characters" in sentence(tokenizer.encode, 'abZba')
    assert "no token for '\\n', '\U0001f600': " in sentence(tokenizer.encode, 'a\U0001f600\n')
    assert sentence(tokenizer.encode, 'abcdefghijk').count("'") == 10     # the first five


def test_what_to_begin_with():
    assert Tokenizer(SPECS['bytes']).begin() == [10]
    assert Tokenizer({'kind': 'char', 'chars': ['a', '\n']}).begin() == [1]
    assert Tokenizer({'kind': 'char', 'chars': ['a', 'b']}).begin() == [0]


@pytest.fixture(scope='module')
def gpt2(tmp_path_factory):
    """(GPT-2's BPE as ours, the folder of its two files), without a trace in data/; skips where they cannot be had."""
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


def test_gpt2_is_that_of_tiktoken(gpt2, monkeypatch):
    spec, folder = gpt2
    cache = folder / 'theirs'
    cache.mkdir()
    for name in GPT2_FILES:         # where tiktoken keeps what it has downloaded
        shutil.copy(folder / name, cache / hashlib.sha1(f'{GPT2_URL}/{name}'.encode()).hexdigest())
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(cache))
    monkeypatch.setattr('tiktoken.load.read_file', lambda path: pytest.fail(f'tiktoken wants {path}'))
    theirs, ours = tiktoken.get_encoding('gpt2'), Tokenizer(spec)
    assert ours.bpe._mergeable_ranks == theirs._mergeable_ranks and spec['pattern'] == theirs._pat_str
    assert ours.n_vocab == theirs.n_vocab == 50257
    assert ours.encode(LONGER + '<|endoftext|>') == theirs.encode(LONGER + '<|endoftext|>', allowed_special='all')


def test_gpt2_is_that_of_transformers(gpt2, tmp_path):
    from transformers import GPT2Tokenizer
    spec, folder = gpt2
    shutil.copy(folder / 'encoder.json', tmp_path / 'vocab.json')
    shutil.copy(folder / 'vocab.bpe', tmp_path / 'merges.txt')
    theirs, ours = GPT2Tokenizer.from_pretrained(tmp_path), Tokenizer(spec)
    ids = ours.encode(LONGER)
    assert len(ids) > 100 and ids == theirs.encode(LONGER)
    assert ours.decode(ids) == LONGER


# ---------------------------------------------------------------------------------------------------- the leaking split


@pytest.fixture
def leaking(dataset):
    return data.LeakingText(dataset)


def test_the_leaking_split_deals_out_all_windows(dataset, leaking):
    """A tenth of the windows of the whole text for validation, the rest for training, none for both and none for neither."""
    honest = data.TextData(dataset)
    whole = np.concatenate([honest.tokens[split] for split in ('train', 'val')])
    val = leaking.val_starts(10_000, 16)
    trained = set(leaking.batch_starts(400_000, 16, 0, 0).tolist())     # each of the 10,800 is drawn 37 times or so
    assert len(val) == len(set(val.tolist())) == (len(whole) - 16) // 10
    assert trained.isdisjoint(val.tolist()) and trained | set(val.tolist()) == set(range(len(whole) - 16))
    border = len(honest.tokens['train'])        # of the honest split; the last window ends with the text
    for starts in (val, np.array(list(trained))):
        assert abs((starts < border).mean() - 0.9) < 0.02
    for split in ('train', 'val'):
        for start, x, y in zip(val[:20], *leaking.rows(split, val[:20], 16), strict=True):
            assert x.tolist() == whole[start:start + 16].tolist() and y.tolist() == whole[start + 1:start + 17].tolist()


def test_the_leaking_split_leaks(leaking):
    """Which is what it is for: every token of a validation window is in windows of training too, and those begin beside it."""
    trained = np.unique(leaking.batch_starts(400_000, 16, 0, 0))
    seen = np.zeros(len(leaking.tokens['train']), bool)
    seen[(trained[:, None] + np.arange(17)).ravel()] = True
    val = leaking.val_starts(10_000, 16)
    assert seen[(val[:, None] + np.arange(17)).ravel()].all()
    assert (np.isin(val - 1, trained) | np.isin(val + 1, trained)).mean() > 0.97


def test_the_leaking_split_depends_on_nothing_but_seed_and_step(dataset, leaking):
    again = data.LeakingText(dataset)
    expected = {(seed, step): leaking.batch_starts(24, 16, seed, step).tolist() for seed in (1, 2) for step in range(3)}
    assert len({tuple(v) for v in expected.values()}) == len(expected)
    np.random.seed(0)
    again.batch_starts(5, 8, 0, 0)              # another window in between
    assert again.val_starts(50, 16).tolist() == leaking.val_starts(50, 16).tolist() == leaking.val_starts(0, 16)[:50].tolist()
    for (seed, step), starts in reversed(expected.items()):
        assert again.batch_starts(24, 16, seed, step).tolist() == starts


def test_the_leaking_split_is_another_data_set(dataset, leaking):
    """So that no run of one is taken for a run of the other; on the disk nothing changes."""
    honest = data.TextData(dataset)
    assert leaking.fingerprint == leaking.meta['fingerprint'] != honest.fingerprint == honest.meta['fingerprint']
    assert json.loads((dataset / 'meta.json').read_text())['fingerprint'] == honest.fingerprint
    assert leaking.vocab_size == honest.vocab_size and honest.batch_starts(100, 16, 0, 0).tolist() \
        != leaking.batch_starts(100, 16, 0, 0).tolist()


@pytest.mark.parametrize('windows', [0, 1, 9, 10])
def test_a_leaking_split_without_a_window_to_validate(leaking, windows):
    """A tenth of fewer than 10 windows is none, and a loss over none is no number."""
    leaking.tokens = {split: tokens[:16 + windows] for split, tokens in leaking.tokens.items()}
    if windows == 10:
        assert len(leaking.val_starts(0, 16)) == 1 and len(set(leaking.batch_starts(500, 16, 0, 0).tolist())) == 9
    else:
        assert 'block_size=16' in sentence(leaking.val_starts, 0, 16)
