"""Text in many files: shards that are read as one sequence, and prepare/openwebtext.py, which makes them."""

import contextlib
import hashlib
import http.server
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from tiktoken_ext.openai_public import r50k_pat_str

from harness import ROOT, UserError, data, files
from harness.tokenizer import GPT2_FILES, Tokenizer, bpe_spec, gpt2_spec
from prepare import openwebtext

END = '<|endoftext|>'
MERGES = [b'th', b'the', b' the', b' a', b'\xe6\xbc', b'\xe6\xbc\xa2']
SPEC = bpe_spec('small', r50k_pat_str, {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *MERGES])},
                {END: 256 + len(MERGES)})
EOT = SPEC['special'][END]


def sentence(call, *args):
    """What the UserError of call(*args) says: one sentence, on one line."""
    with pytest.raises(UserError) as e:
        call(*args)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) > 20
    return str(e.value)


# ---------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize('lengths', [[7], [3, 4], [1, 1, 1, 4], [0, 3, 0, 0, 4, 0], [0]])
def test_every_slice_of_shards_is_that_of_the_whole(lengths):
    whole = np.arange(100, 100 + sum(lengths), dtype=np.uint16)
    shards = data.Shards(np.split(whole, np.cumsum(lengths)[:-1]))
    assert len(shards) == len(whole)
    borders = [None, *range(-9, 10)]
    for a in borders:
        for b in borders:
            found = shards[a:b]
            assert isinstance(found, np.ndarray) and found.dtype == whole.dtype
            assert found.tolist() == whole[a:b].tolist(), (a, b)
    assert shards[np.int64(1):np.int64(3)].tolist() == whole[1:3].tolist()


def in_shards(folder, to, cuts, splits=('train',), dtype='uint16'):
    """A copy of a data set with the splits in files cut at these places."""
    shutil.copytree(folder, to)
    meta = json.loads((to / 'meta.json').read_text())
    meta |= {'shards': {}, 'dtype': dtype}
    for split in ('train', 'val'):
        tokens = np.fromfile(to / f'{split}.bin', np.uint16).astype(dtype)
        (to / f'{split}.bin').unlink()
        if split not in splits:
            tokens.tofile(to / f'{split}.bin')
            continue
        parts = np.split(tokens, [c for c in cuts if c < len(tokens)])
        meta['shards'][split] = [len(p) for p in parts]
        for i, part in enumerate(parts):
            part.tofile(to / f'{split}_{i:04d}.bin')
    (to / 'meta.json').write_text(json.dumps(meta))
    return to


@pytest.mark.parametrize('kind', [data.TextData, data.LeakingText])
@pytest.mark.parametrize('dtype', ['uint16', 'uint32'])
@pytest.mark.parametrize('cuts, splits', [([5000], ['train']), ([10, 11, 300, 5000, 10790], ['train', 'val']), ([], ['train'])])
def test_in_shards_a_text_is_the_same(dataset, tmp_path, kind, dtype, cuts, splits):
    one, many = kind(dataset), kind(in_shards(dataset, tmp_path / 'many', cuts, splits, dtype))
    many.need(100)
    assert one.fingerprint == many.fingerprint
    for split in ('train', 'val'):
        assert len(one.tokens[split]) == len(many.tokens[split])
        starts = np.arange(0, len(one.tokens[split]) - 100, 7)
        for before in (0, 30):
            for mine, theirs in zip(one.rows(split, starts, 100, before), many.rows(split, starts, 100, before), strict=True):
                assert mine.equal(theirs)
    assert one.batch_starts(50, 16, 1, 2).tolist() == many.batch_starts(50, 16, 1, 2).tolist()
    assert one.val_starts(50, 16).tolist() == many.val_starts(50, 16).tolist()


@pytest.fixture
def many(dataset, tmp_path):
    """The tiny data set in three shards, of 5000, 5000 and 800 tokens or so."""
    return in_shards(dataset, tmp_path / 'many', [5000, 10000])


def tell(folder, **changed):
    meta = json.loads((folder / 'meta.json').read_text())
    (folder / 'meta.json').write_text(json.dumps(meta | changed))


def spoil(path, at, token):
    tokens = np.fromfile(path, np.uint16)
    tokens[at] = token
    tokens.tofile(path)


DAMAGES = {
    'short': (lambda f: os.truncate(f / 'train_0001.bin', 999), r'train_0001\.bin is truncated .* prepare/text\.py again'),
    'absent': (lambda f: (f / 'train_0002.bin').unlink(), r'train_0002\.bin is truncated .* 0 bytes'),
    'dtype': (lambda f: tell(f, dtype='uint32'), r'train_0000\.bin is truncated or of another dtype.*uint32'),
    'token': (lambda f: spoil(f / 'train_0001.bin', 4, 11), r'train_0001\.bin holds the token 11, but the vocabulary has 11'),
    'last token': (lambda f: spoil(f / 'train_0002.bin', -1, 11), r'train_0002\.bin holds the token 11'),
    'sum': (lambda f: tell(f, shards={'train': [5000, 5000]}), r'meta\.json is damaged .*shards of train do not add up'),
    'none': (lambda f: tell(f, shards={'train': []}), r'meta\.json is damaged'),
    'words': (lambda f: tell(f, shards={'train': ['many']}), r'meta\.json is damaged'),
    'a list': (lambda f: tell(f, shards=['train']), r'meta\.json is damaged'),
    'a number': (lambda f: tell(f, shards=3), r'meta\.json is damaged'),
    'another split': (lambda f: tell(f, shards={'test': [3]}), r'train\.bin is truncated .* 0 bytes'),
}


@pytest.mark.parametrize('damage, said', DAMAGES.values(), ids=DAMAGES)
def test_damaged_shards_are_told_in_a_sentence(many, damage, said):
    data.TextData(many)
    damage(many)
    assert re.search(said, sentence(data.TextData, many))


def test_a_token_too_high_that_opening_does_not_see(many, monkeypatch):
    """What is looked at is a part of each shard."""
    spoil(many / 'train_0001.bin', 600, 60000)
    assert 'train_0001.bin holds the token 60000' in sentence(data.TextData, many)
    monkeypatch.setattr(data, 'SCAN', 1800)
    text = data.TextData(many)
    assert text.rows('train', [0, 5583, 5601], 16)[0].max() < 11
    assert 'many/train_*.bin holds the token 60000' in sentence(text.rows, 'train', [5590], 16)
    spoil(many / 'train_0001.bin', 599, 60000)
    assert 'train_0001.bin holds the token 60000' in sentence(data.TextData, many)


def test_shards_shorter_than_the_window(many):
    text = data.TextData(many)
    count = len(text.tokens['train'])
    said = sentence(text.need, count)
    assert f'many/train_*.bin has {count:,} tokens' in said and f'block_size={count}' in said


# ---------------------------------------------------------------------------------------------------- documents


def some(count, seed=0, longest=20):
    """Documents of words, some with what looks like an <|endoftext|>."""
    rng = random.Random(seed)
    words = ['the', 'cat', 'a', END, '\u6f22\u5b57', 'dog\n', '\r\n\t', '123', '  ', "isn't", '\N{WOMAN}\u200d\N{GIRL}', '\x00']
    return ['x ' + ' '.join(rng.choice(words) for _ in range(rng.randint(0, longest))) for _ in range(count)]


def plain(documents):
    """Their tokens, by a loop over tiktoken."""
    bpe = Tokenizer(SPEC).bpe
    return [i for text in documents for i in [*bpe.encode_ordinary(text), EOT]]


def jsonl(path, documents):
    path.write_text(''.join(json.dumps({'id': 3, 'text': d}) + '\n' for d in documents))
    return path


def parquets(path, documents, **more):
    parquet.write_table(pyarrow.table({'id': range(len(documents)), 'text': documents}), path, **more)
    return path


@pytest.fixture
def make(root, monkeypatch):
    """Run prepare/openwebtext.py in this process with a small tokenizer and small batches; data/ is in an empty folder.
    Returns the folder that it made."""
    monkeypatch.setattr(openwebtext, 'gpt2_spec', lambda: SPEC)
    monkeypatch.setattr(openwebtext, 'BATCH', (4, 1000))
    monkeypatch.setattr(openwebtext, 'SAVE_EVERY', 3)

    def run(*words, name='made'):
        openwebtext.main([*map(str, words), f'--name={name}'])
        assert not (root / 'data' / f'{name}.unfinished').exists()
        return root / 'data' / name
    return run


def whole(folder):
    """All tokens in the order of the documents: the validation text back in its place, behind the first shard."""
    text = data.TextData(folder)
    train, first = text.tokens['train'], text.meta['shards']['train'][0]
    return [*train[:first].tolist(), *text.tokens['val'].tolist(), *train[first:].tolist()]


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize('kind', ['jsonl', 'parquet', 'row groups', 'txt'])
def test_the_tokens_are_those_of_a_plain_loop(make, tmp_path, kind):
    documents = some(100)
    if kind == 'txt':
        documents = [d.replace(END, '<|end|>').replace('\r\n', '\n') for d in documents]
        path = tmp_path / 'a.txt'
        text = END.join([*documents[:50], ' \n', *documents[50:], '\n'])
        path.write_text('\ufeff' + text, encoding='utf-8', newline='')
    elif kind == 'jsonl':
        documents += ['', ' ', 'lone \ud800 surrogate']
        path = jsonl(tmp_path / 'a.jsonl', documents)
        path.write_text(path.read_text().replace('\n', '\n\n \n'))        # blank lines are no documents
    else:
        documents += ['']
        path = parquets(tmp_path / 'a.parquet', documents, **({'row_group_size': 7} if kind == 'row groups' else {}))
    folder = make('--input', path)
    assert whole(folder) == plain(documents)
    meta = data.TextData(folder).meta
    assert meta['source'] == {'name': f'{path.name}, {len(documents)} documents',
                              'files': [{'name': path.name, 'sha256': files.digest(path)}]}
    assert meta['tokenizer'] == SPEC and meta['script'] == 'openwebtext.py' and meta['dtype'] == 'uint16'
    assert sorted(hashes(folder)) == ['meta.json', 'train_0000.bin', 'val.bin']


def test_a_long_text_is_read_in_blocks(tmp_path, monkeypatch):
    """Borders within <|endoftext|> and within a character; a document of several blocks."""
    documents = ['\u6f22' * 700_000, 'a' * ((1 << 20) - 700_006), '\u6f22' * 3_000_000, 'b']
    (tmp_path / 'a.txt').write_text(END.join(documents), encoding='utf-8')
    assert list(openwebtext.documents(tmp_path / 'a.txt')) == documents


@pytest.mark.parametrize('more', [{'row_group_size': 100}, {}], ids=['row groups', 'one row group'])
def test_a_parquet_file_is_never_in_memory_as_a_whole(tmp_path, more):
    rng = random.Random(0)
    texts = [rng.randbytes(5000).hex() for _ in range(3000)]
    path = parquets(tmp_path / 'a.parquet', texts, use_dictionary=False, compression='none', **more)
    before, most = pyarrow.total_allocated_bytes(), 0
    for text, expected in zip(openwebtext.documents(path), texts, strict=True):
        assert text == expected
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert 0 < most < path.stat().st_size / 2


def test_files_behind_one_another_and_the_first_documents(make, tmp_path, capsys):
    parts = [some(30, 1), [], some(50, 2), some(9, 3)]
    paths = [jsonl(tmp_path / 'z.jsonl', parts[0]), jsonl(tmp_path / 'none.jsonl', []),
             parquets(tmp_path / 'b.parquet', parts[2]), jsonl(tmp_path / 'a.jsonl', parts[3])]
    documents = [*chain(*parts)]
    assert whole(make('--input', *paths, name='all')) == whole(make('--input', *paths, '--documents=0', name='zero')) \
        == plain(documents)
    for count, read in ((89, 4), (80, 3), (79, 3), (33, 3), (30, 1), (29, 1)):
        capsys.readouterr()
        folder = make('--input', *paths, f'--documents={count}', name=f'first_{count}')
        assert whole(folder) == plain(documents[:count])
        found = data.TextData(folder).meta['source']
        assert [f['name'] for f in found['files']] == [p.name for p in paths[:read]]
        assert found['name'].endswith(f', {count} documents') and '--documents=0 takes all' in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- shards are made


def test_shards_and_the_validation_text(make, tmp_path):
    """Shards are full but for the last one; the first has whole documents, of which the last ones are for validation."""
    documents = some(200)
    path, tokens = jsonl(tmp_path / 'a.jsonl', documents), plain(documents)
    for size in (1000, 1001, 3000, len(tokens) - 1, len(tokens), len(tokens) + 1):
        text = data.TextData(make('--input', path, f'--shard_tokens={size}', name=f'made_{size}'))
        counts, val = text.meta['shards']['train'], text.tokens['val'].tolist()
        first = counts[0] + len(val)
        assert size - 400 < first <= size or first == len(tokens)
        assert counts[1:-1] == [size] * len(counts[1:-1]) and 0 < counts[-1] <= size
        assert whole(text.folder) == tokens and sum(counts) + len(val) == len(tokens)
        assert tokens[counts[0] - 1] == tokens[first - 1] == val[-1] == EOT
        limit = first - first // 10
        assert counts[0] == next(i for i in range(limit, first) if tokens[i - 1] == EOT)
        names = ['meta.json', *(f'train_{i:04d}.bin' for i in range(len(counts))), 'val.bin']
        assert sorted(p.name for p in text.folder.iterdir()) == names


def test_the_validation_text_has_an_upper_bound(make, tmp_path, monkeypatch):
    monkeypatch.setattr(openwebtext, 'VAL_TOKENS', 200)
    documents = some(200)
    val = data.TextData(make('--input', jsonl(tmp_path / 'a.jsonl', documents))).tokens['val']
    tokens = plain(documents)
    assert 0 < len(val) <= 200 and tokens[-len(val):] == val.tolist() and tokens[-len(val) - 1] == EOT
    assert EOT not in tokens[-200 - 1:-len(val) - 1]


def test_the_number_of_workers_changes_nothing(make, tmp_path, monkeypatch):
    path, made = jsonl(tmp_path / 'a.jsonl', some(150)), []
    for workers in (1, 3, None):
        monkeypatch.setattr(openwebtext.os, 'cpu_count', lambda n=workers: n)
        made.append(hashes(make('--input', path, '--shard_tokens=2000', name=f'made_{workers}')))
    assert made[0] == made[1] == made[2] and len(made[0]) > 4


def test_the_fingerprint_is_that_of_the_tokens(make, tmp_path):
    documents = some(100)
    paths = {'one': jsonl(tmp_path / 'a.jsonl', documents), 'two': parquets(tmp_path / 'b.parquet', documents),
             'train': jsonl(tmp_path / 'c.jsonl', ['y', *documents]), 'val': jsonl(tmp_path / 'd.jsonl', [*documents, 'y'])}
    prints = {name: data.TextData(make('--input', path, '--shard_tokens=2000', name=name)).fingerprint
              for name, path in paths.items()}
    assert prints['one'] == prints['two'] and len(set(prints.values())) == 3


def test_no_more_is_read_than_the_workers_can_take(monkeypatch):
    """Else a fast disk and slow workers fill the memory."""
    read = []

    def batches():
        for i in range(60):
            read.append(i)
            yield ['x' * 10] * 3, [0, i, i]

    monkeypatch.setattr(openwebtext.os, 'cpu_count', lambda: 2)
    stream = openwebtext.encoded(batches(), SPEC)
    for i in range(60):
        tokens, place = next(stream)
        assert tokens.tolist() == plain(['x' * 10] * 3) and place == [0, i, i]
        assert len(read) <= i + 5 + 1
    assert next(stream, None) is None


# ---------------------------------------------------------------------------------------------------- stopped and resumed


def deadly(real, calls):
    """The function, until the iterator `calls` is used up: then it kills this process."""
    def call(*args, **more):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    return call


needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='os.fork makes the process that is killed')


def killed(make, last, *words):
    """Run it in a process of its own that kills itself at its last-th write to the disk.  Returns whether that came."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            calls = iter(range(last))
            for where, name in ((os, 'fsync'), (os, 'replace'), (os, 'truncate'), (Path, 'unlink')):
                setattr(where, name, deadly(getattr(where, name), calls))
            make(*words)
            os._exit(0)
        os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status == 0 or os.WIFSIGNALED(status)
    return status != 0


@needs_fork
def test_killed_anywhere_it_goes_on_to_the_same_files(make, root, tmp_path):
    paths = jsonl(tmp_path / 'a.jsonl', some(20, 1)), parquets(tmp_path / 'b.parquet', some(25, 2))
    words = '--input', *paths, '--shard_tokens=1000'
    expected = hashes(make(*words, name='expected'))
    for last in range(200):
        shutil.rmtree(root / 'data' / 'made', ignore_errors=True)
        if not killed(make, last, *words):
            break
        named = (root / 'data' / 'made').exists()
        if named:                                       # all was done, only the state is left behind
            (root / 'data' / 'made' / 'state.json').unlink()
        assert hashes(root / 'data' / 'made' if named else make(*words)) == expected
    assert 20 < last < 199 and named


@needs_fork
def test_killed_again_and_again(make, root, tmp_path):
    words = '--input', jsonl(tmp_path / 'a.jsonl', some(80, 1)), '--shard_tokens=1000'
    expected, kills, folder = hashes(make(*words, name='expected')), 0, root / 'data' / 'made'
    while not folder.exists() and killed(make, 12, *words):
        kills += 1
        assert kills < 50
    assert kills >= 3 and expected.items() <= hashes(folder).items()


DRIVER = '''
import sys
from harness.tokenizer import Tokenizer
from prepare import openwebtext
openwebtext.gpt2_spec = lambda: {spec!r}
openwebtext.BATCH, openwebtext.SAVE_EVERY = (4, 1000), 20
if __name__ == '__main__':
    openwebtext.main(sys.argv[1:])
'''


@pytest.fixture
def started(tree, tmp_path):
    """Start the script in a process group of its own, and wait until it has saved something.  Returns the process."""
    (tree / 'driver.py').write_text(DRIVER.format(spec=SPEC))
    path = jsonl(tmp_path / 'a.jsonl', some(16_000, 3))

    def start():
        process = subprocess.Popen([sys.executable, 'driver.py', '--input', str(path), '--name=made', '--shard_tokens=20000'],
                                   cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                   env={**os.environ, 'OMP_NUM_THREADS': '1'})
        processes.append(process)
        return process

    def wait(process):
        state = tree / 'data' / 'made.unfinished' / 'state.json'
        before = state.stat().st_mtime_ns if state.exists() else 0
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        return process
    processes = []
    start.then_wait = lambda: wait(start())
    start.folder, start.path = tree / 'data', path
    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):       # workers, too, should any be left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.skipif(os.name != 'posix', reason='process groups')
def test_killed_as_a_group_alone_and_by_ctrl_c(started, make, monkeypatch):
    """SIGKILL for all its processes, then for the first one alone, whose workers do not stay behind; then Ctrl-C."""
    monkeypatch.setattr(openwebtext, 'BATCH', (256, 1_000_000))
    expected = hashes(make('--input', started.path, '--shard_tokens=20000'))
    assert len(expected) > 5
    process = started.then_wait()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    process = started.then_wait()
    process.kill()
    out, err = process.communicate(timeout=60)      # ends when the last process that holds its output has ended
    assert re.search(r'going on behind [\d,]+ documents', out) and process.returncode == -signal.SIGKILL and err == ''
    process = started.then_wait()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.strip() == 'stopped: the same command goes on from where it was saved last'
    assert [p.name for p in started.folder.iterdir()] == ['made.unfinished']
    process = started()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == '' and 'going on behind' in out
    assert hashes(started.folder / 'made') == expected


@pytest.fixture
def stopped(make, root, tmp_path, monkeypatch):
    """A run that was stopped.  Returns (its input, the folder of what it has done)."""
    path = jsonl(tmp_path / 'a.jsonl', some(60))
    calls = iter(range(4))

    def encoded(*args):
        for item in real(*args):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            yield item
    with monkeypatch.context() as patch:
        real = openwebtext.encoded
        patch.setattr(openwebtext, 'encoded', encoded)
        assert 'stopped: the same command' in sentence(make, '--input', path, '--shard_tokens=1000')
    return path, root / 'data' / 'made.unfinished'


@pytest.mark.parametrize('words, said', [
    (['--documents=7'], r'holds the beginning of a run with another documents \(\{"documents": 250000\}\)'),
    (['--shard_tokens=1001'], r'another shard_tokens \(\{"shard_tokens": 1000\}\): finish that one, or remove the folder'),
    (['--input', '{}/b.jsonl'], r'another input .*a\.jsonl'),
    (['--input', '{}/a.jsonl', '{}/b.jsonl', '--documents=1'], 'another documents and input')],
    ids=['documents', 'shard_tokens', 'input', 'both'])
def test_a_run_with_other_arguments_does_not_go_on(make, stopped, tmp_path, words, said):
    path, folder = stopped
    jsonl(tmp_path / 'b.jsonl', some(60, 1))
    before = hashes(folder)
    assert re.search(said, sentence(make, '--input', path, '--shard_tokens=1000', *(w.format(tmp_path) for w in words)))
    assert hashes(folder) == before
    assert whole(make('--input', path, '--shard_tokens=1000')) == plain(some(60))


def test_an_input_that_has_changed(make, stopped):
    path, folder = stopped
    path.write_text(path.read_text().replace('cat', 'cow'))
    assert re.search(r'a\.jsonl has changed since this run began', sentence(make, '--input', path, '--shard_tokens=1000'))
    path.write_text(path.read_text() + '\n')
    assert 'with another input' in sentence(make, '--input', path, '--shard_tokens=1000')
    shutil.rmtree(folder)
    assert whole(make('--input', path, '--shard_tokens=1000')) == plain([d.replace('cat', 'cow') for d in some(60)])


def test_a_shard_that_has_been_lost(make, stopped):
    path, folder = stopped
    os.truncate(folder / 'train_0000.bin', 10)
    assert 'train_0000.bin is shorter than it was' in sentence(make, '--input', path, '--shard_tokens=1000')
    (folder / 'train_0000.bin').unlink()
    assert 'train_0000.bin is shorter than it was' in sentence(make, '--input', path, '--shard_tokens=1000')


def test_a_data_set_that_is_there(make, tmp_path):
    path = jsonl(tmp_path / 'a.jsonl', some(60))
    before = hashes(make('--input', path))
    assert re.search(r'data/made is there already: remove it to make it anew', sentence(make, '--input', path))
    assert hashes(tmp_path / 'data' / 'made') == before


# ---------------------------------------------------------------------------------------------------- what will not do


def bad_parquet(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)


BAD = {     # what is written to the input file, and what the sentence must hold
    'a.csv': (lambda p: p.write_text('x'), r'a\.csv: documents are read from \.parquet, \.jsonl and \.txt'),
    'absent.jsonl': (lambda p: None, r'there is no file .*absent\.jsonl'),
    'folder.txt': (lambda p: p.mkdir(), r'there is no file .*folder\.txt'),
    'words.jsonl': (lambda p: p.write_text('{"text": "ok"}\n\nnot so\n'), r'words\.jsonl, line 3, is not JSON with a text in'),
    'field.jsonl': (lambda p: p.write_text('{"text": "ok"}\n{"texts": "a"}\n'), r'field\.jsonl, line 2, is not JSON with'),
    'number.jsonl': (lambda p: p.write_text('{"text": 3}\n'), r'number\.jsonl, line 1, is not JSON with a text'),
    'list.jsonl': (lambda p: p.write_text('["text"]\n'), r'list\.jsonl, line 1, is not JSON with a text'),
    'deep.jsonl': (lambda p: p.write_text('[' * 100_000), r'deep\.jsonl, line 1, is not JSON'),
    'latin.jsonl': (lambda p: p.write_bytes(b'{"text": "caf\xe9"}\n'), r'latin\.jsonl, line 1, is not JSON'),
    'latin.txt': (lambda p: p.write_bytes(b'caf\xe9'), r'latin\.txt is not UTF-8 text: convert it first'),
    'columns.parquet': (lambda p: bad_parquet(p, a=[1], texts=['x']), r'columns\.parquet has no column text: it has a, texts'),
    'numbers.parquet': (lambda p: bad_parquet(p, text=[1, 2]), r'numbers\.parquet: its column text holds something else'),
    'nulls.parquet': (lambda p: bad_parquet(p, text=['a', None]), r'nulls\.parquet: its column text holds something else'),
    'no.parquet': (lambda p: p.write_text('not so'), r'no\.parquet cannot be read as parquet \('),
    'cut.parquet': (lambda p: (parquets(p, some(50)), p.write_bytes(p.read_bytes()[:-30])), r'cut\.parquet cannot be read'),
    'none.jsonl': (lambda p: p.write_text('\n'), r'there are no documents in none\.jsonl'),
    'none.txt': (lambda p: p.write_text(f' {END}\n{END}'), r'there are no documents in none\.txt'),
    'none.parquet': (lambda p: bad_parquet(p, text=pyarrow.array([], 'string')), r'there are no documents in none\.parquet'),
    'one.txt': (lambda p: p.write_text('a document ' * 30), r'no document begins in the \d+ tokens at the end of the'),
    'short.txt': (lambda p: p.write_text('a'), r'no document begins in the 0 tokens at the end .*, of 2, .* more documents or'),
}


@pytest.mark.parametrize('name, write, said', [(name, *rest) for name, rest in BAD.items()], ids=BAD)
def test_input_that_will_not_do(make, root, tmp_path, name, write, said):
    write(tmp_path / name)
    assert re.search(said, sentence(make, '--input', tmp_path / name))
    assert not (root / 'data' / 'made').exists()


def test_damage_in_the_middle_of_a_parquet_file(make, tmp_path):
    path = parquets(tmp_path / 'a.parquet', some(500), compression='zstd')
    raw = bytearray(path.read_bytes())
    raw[2000:3000] = bytes(1000)
    path.write_bytes(raw)
    assert 'a.parquet cannot be read as parquet (' in sentence(make, '--input', path)


@pytest.mark.parametrize('words, said', [
    (['--documents=-1'], '--documents takes 0 or more'), (['--shard_tokens=0'], '--shard_tokens 1 or more'),
    (['--shard_tokens=30'], 'no document begins in the')], ids=['documents', 'shard_tokens', 'small shards'])
def test_arguments_that_will_not_do(make, tmp_path, words, said):
    assert said in sentence(make, '--input', jsonl(tmp_path / 'a.jsonl', some(60)), *words)


def test_a_name_that_will_not_do(make):
    with pytest.raises(UserError, match="'a/b' cannot name a data set"):
        make(name='a/b')


def test_parquet_without_pyarrow(make, tmp_path, monkeypatch):
    path = parquets(tmp_path / 'a.parquet', some(50))
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    assert sentence(make, '--input', path).endswith('a.parquet takes pyarrow, which is not installed: pip install pyarrow')
    assert whole(make('--input', jsonl(tmp_path / 'a.jsonl', some(50)))) == plain(some(50))     # which does without


class Panic(BaseException):
    """As tiktoken's, which is no Exception."""


@needs_fork
def test_a_document_that_tiktoken_cannot_encode(make, tmp_path, monkeypatch):
    class Fails(Tokenizer):
        def __init__(self, spec):
            super().__init__(spec)
            self.bpe = self

        def encode_ordinary(self, text):
            if text == 'evil':
                raise Panic('StackOverflow')
            return [0]
    monkeypatch.setattr(openwebtext, 'Tokenizer', Fails)
    said = sentence(make, '--input', jsonl(tmp_path / 'a.jsonl', [*some(50), 'evil', *some(50)]))
    assert said == "tiktoken cannot encode the document 'evil' ..., 4 characters (StackOverflow): take it out"


@needs_fork
def test_a_worker_that_is_killed(make, tmp_path, monkeypatch):
    class Dies(Tokenizer):
        bpe = property(lambda self: os.kill(os.getpid(), signal.SIGKILL), lambda self, value: None)
    path = jsonl(tmp_path / 'a.jsonl', some(50))
    with monkeypatch.context() as patch:
        patch.setattr(openwebtext, 'Tokenizer', Dies)
        assert 'a worker process was killed, for want of memory perhaps: run again to go on' in sentence(make, '--input', path)
    assert whole(make('--input', path)) == plain(some(50))


# ---------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(root, monkeypatch):
    """The Hugging Face hub, on this machine: .files by their path, .branch that they are in, .log of what was asked for."""
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.setenv(name, '*')

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            s = self.server
            s.log.append(self.path)
            start = f'/datasets/Skylion007/openwebtext/resolve/{s.branch}/'
            if self.path == f'/api/datasets/Skylion007/openwebtext/tree/{s.branch}?recursive=true':
                found = [{'type': 'directory', 'oid': 'f00', 'size': 0, 'path': 'plain_text'}, *(
                    {'type': 'file', 'oid': 'beef', 'size': len(raw), 'path': path, 'lfs': {
                        'oid': hashlib.sha256(raw).hexdigest(), 'size': len(raw), 'pointerSize': 134}}
                    for path, raw in reversed(s.files.items())), {'type': 'file', 'oid': 'ab', 'size': 9, 'path': 'README.md'}]
                body = s.answer or json.dumps(found).encode()
            elif self.path.startswith(start) and self.path[len(start):] in s.files:
                body = s.sent or s.files[self.path[len(start):]]
            elif '/tree/' in self.path and s.branch != 'main' and '/main' in self.path:
                body = b'[{"type": "file", "oid": "ab", "size": 9, "path": "openwebtext.py"}]'
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as s:
        s.log, s.branch, s.answer, s.sent, s.files, s.documents = [], 'main', None, None, {}, []
        for i in range(3):
            s.documents.append(some(40, i))
            path = parquets(root / 'shard.parquet', s.documents[-1])
            s.files[f'plain_text/train-0000{i}-of-00003.parquet'] = path.read_bytes()
            path.unlink()
        s.url = f'http://127.0.0.1:{s.server_port}'
        monkeypatch.setattr(openwebtext, 'HUB', s.url)
        threading.Thread(target=s.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
        yield s
        s.shutdown()


@pytest.mark.parametrize('branch', ['main', 'refs%2Fconvert%2Fparquet'])
def test_from_the_hub(make, hub, branch):
    """In order, only the files that are needed, each with the SHA-256 that the hub tells."""
    hub.branch = branch
    folder = make('--documents=60')
    assert whole(folder) == plain([*hub.documents[0], *hub.documents[1][:20]])
    assert data.TextData(folder).meta['source'] == {'name': 'OpenWebText, 60 documents', 'files': [
        {'name': path.split('/')[1], 'sha256': hashlib.sha256(raw).hexdigest()} for path, raw in list(hub.files.items())[:2]]}
    assert sum('/resolve/' in path for path in hub.log) == 2
    assert whole(make('--documents=0', name='all')) == plain([*chain(*hub.documents)])
    assert sum('/resolve/' in path for path in hub.log) == 3        # the first two were at hand


def test_from_the_hub_in_two_goes(make, hub, root, monkeypatch, capsys):
    """A download that fails: what is done is kept, and the next run needs no list of files."""
    name = 'plain_text/train-00002-of-00003.parquet'

    def broken(url, name, sha256=None):
        if '00002' in url:
            raise OSError('the line is cut')
        return real(url, name, sha256)
    real = files.download
    with monkeypatch.context() as patch:
        patch.setattr(files, 'download', broken)
        said = sentence(make, '--documents=0', '--shard_tokens=1000')
    path = root / 'data' / 'downloads' / 'Skylion007--openwebtext' / 'train-00002-of-00003.parquet'
    assert said == (f'{name} could not be downloaded (the line is cut): put {hub.url}/datasets/Skylion007/openwebtext/resolve/'
                    f'main/{name} by hand at {path}')
    hub.answer = b'gone'
    hub.log.clear()
    path.write_bytes(hub.files[name])               # as it says
    assert whole(make('--documents=0', '--shard_tokens=1000')) == plain([*chain(*hub.documents)]) and hub.log == []
    assert 'going on behind' in capsys.readouterr().out


def test_a_hub_that_sends_another_file(make, hub, root):
    hub.sent = b'PAR1 something else'
    assert re.search(r'train-00000-of-00003\.parquet could not be downloaded \(http.*\): put http', sentence(make))
    assert not list((root / 'data' / 'downloads' / 'Skylion007--openwebtext').iterdir())


@pytest.mark.parametrize('answer', [b'<html>', b'{"error": "gone"}', b'["a"]', b'[]', b'[{"path": 3}]', None])
def test_a_hub_that_does_not_tell(make, hub, root, answer):
    hub.answer, hub.branch = answer, 'main' if answer else 'nowhere'
    said = sentence(make)
    assert f'the files of {hub.url}/datasets/Skylion007/openwebtext cannot be found (' in said
    assert said.endswith('get its .parquet files elsewhere, and name them with --input FILE ...')
    assert not (root / 'data').exists()


def test_a_missing_openwebtext_is_made_on_the_way(hub, tree, tmp_path):
    """data.ensure runs the script itself, with GPT-2's BPE; skips where that cannot be had."""
    for path in (ROOT / 'data' / 'downloads' / name for name in GPT2_FILES):
        if path.exists():
            files.DOWNLOADS.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, files.DOWNLOADS)
    try:
        bpe = Tokenizer(gpt2_spec()).bpe
    except UserError as e:
        pytest.skip(str(e))
    shutil.copytree(files.DOWNLOADS, tree / 'data' / 'downloads')
    script = tree / 'prepare' / 'openwebtext.py'
    script.write_text(script.read_text(encoding='utf-8').replace('https://huggingface.co', hub.url), encoding='utf-8')
    done = subprocess.run([sys.executable, '-c', 'from harness import data; print(data.ensure("openwebtext"))'], cwd=tree,
                          capture_output=True, text=True, timeout=120, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0 and 'data/openwebtext is missing: running python prepare/openwebtext.py' in done.stdout, done
    assert done.stdout.splitlines()[-1] == str(tree / 'data' / 'openwebtext')
    text = data.TextData(tree / 'data' / 'openwebtext')
    assert text.vocab_size == 50257 and whole(text.folder) == [
        i for document in [*chain(*hub.documents)] for i in [*bpe.encode_ordinary(document), 50256]]


@pytest.mark.parametrize('name', ['bpe', 'text'])
def test_scripts_that_want_arguments_are_not_run(root, name):
    (root / 'prepare').mkdir()
    for script in (ROOT / 'prepare').glob('*.py'):
        (root / 'prepare' / script.name).touch()
    said = sentence(data.ensure, name)
    assert f"no data set '{name}': known are " in said and ' openwebtext, shakespeare_bpe, shakespeare_char, shakesp' in said
    assert f' {name},' not in said
