"""Text in shards, which are read as one sequence, and prepare/openwebtext.py, which makes them."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
from conftest import killed, needs_fork, sentence, until
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


# shards -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('lengths', [[7], [3, 4], [1, 1, 1, 4], [0, 3, 0, 0, 4, 0], [0]])
def test_slices_of_shards(lengths):
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
    """A copy of a data set with its splits cut into shards."""
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
def test_a_text_in_shards_is_the_same(dataset, tmp_path, kind, dtype, cuts, splits):
    one, many = kind(dataset), kind(in_shards(dataset, tmp_path / 'many', cuts, splits, dtype))
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


@pytest.fixture
def many(dataset, tmp_path):
    """The tiny data set in three shards, of 5000, 5000 and 800 tokens or so."""
    return in_shards(dataset, tmp_path / 'many', [5000, 10000])


def change(folder, **changed):
    meta = json.loads((folder / 'meta.json').read_text())
    (folder / 'meta.json').write_text(json.dumps(meta | changed))


def spoil(path, at, token):
    tokens = np.fromfile(path, np.uint16)
    tokens[at] = token
    tokens.tofile(path)


DAMAGES = {
    'short': (lambda f: os.truncate(f / 'train_0001.bin', 999), r'train_0001\.bin .* 999 bytes'),
    'absent': (lambda f: (f / 'train_0002.bin').unlink(), r'train_0002\.bin .* 0 bytes'),
    'dtype': (lambda f: change(f, dtype='uint32'), r'train_0000\.bin .*uint32'),
    'token': (lambda f: spoil(f / 'train_0001.bin', 4, 11), r'train_0001\.bin .*token 11, but the vocabulary has 11'),
    'last token': (lambda f: spoil(f / 'train_0002.bin', -1, 11), r'train_0002\.bin .*token 11'),
    'sum': (lambda f: change(f, shards={'train': [5000, 5000]}), r'meta\.json is damaged .*train'),
    'another split': (lambda f: change(f, shards={'test': [3]}), r'train\.bin .* 0 bytes'),
    **{str(v): (lambda f, v=v: change(f, shards=v), r'meta\.json is damaged')
       for v in ({'train': []}, {'train': ['many']}, ['train'], 3)},
}


@pytest.mark.parametrize('damage, reason', DAMAGES.values(), ids=DAMAGES)
def test_damaged_shards(many, damage, reason):
    data.TextData(many)
    damage(many)
    assert re.search(reason, sentence(data.TextData, many))


def test_a_bad_token_that_opening_does_not_check(many, monkeypatch):
    """A part of each shard is checked."""
    spoil(many / 'train_0001.bin', 600, 60000)
    monkeypatch.setattr(data, 'SCAN', 1800)
    text = data.TextData(many)
    assert text.windows('train', [0, 5583, 5601], 16)[0].max() < 11
    assert 'many/train_*.bin contains the token 60000' in sentence(text.windows, 'train', [5590], 16)
    spoil(many / 'train_0001.bin', 599, 60000)
    assert 'train_0001.bin contains the token 60000' in sentence(data.TextData, many)


# documents --------------------------------------------------------------------------------------------------------------


def some(count, seed=0, longest=20):
    """Documents of words, some with the text <|endoftext|>."""
    rng = random.Random(seed)
    words = ['the', 'cat', 'a', END, '\u6f22\u5b57', 'dog\n', '\r\n\t', '123', '  ', "isn't", '\N{WOMAN}\u200d\N{GIRL}', '\x00']
    return ['x ' + ' '.join(rng.choice(words) for _ in range(rng.randint(0, longest))) for _ in range(count)]


def plain(documents):
    """Their tokens, by a loop."""
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

    def run(*words, name='made'):
        openwebtext.main([*map(str, words), f'--name={name}'])
        assert sorted(p.name for p in (root / 'data').glob(f'{name}*')) == [name]
        assert not (root / 'data' / name / 'state.json').exists()
        return root / 'data' / name
    return run


def whole(folder):
    """All tokens in the order of the documents: the validation text is after the first shard."""
    text = data.TextData(folder)
    train, first = text.tokens['train'], text.meta['shards']['train'][0]
    return [*train[:first].tolist(), *text.tokens['val'].tolist(), *train[first:].tolist()]


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize('kind', ['jsonl', 'parquet', 'row groups', 'txt'])
def test_tokens_agree_with_a_plain_loop(make, tmp_path, kind):
    documents = some(100)
    if kind == 'txt':
        documents = [d.replace(END, '<|end|>').replace('\r\n', '\n') for d in documents]
        path = tmp_path / 'a.txt'
        text = END.join([*documents[:50], ' \n', *documents[50:], '\n'])
        path.write_text('\ufeff' + text, encoding='utf-8', newline='')
        # blocks end within END and within a character
        long = ['\u6f22' * 700_000, 'a' * ((1 << 20) - 700_006), '\u6f22' * 3_000_000, 'b']
        (tmp_path / 'long.txt').write_text(END.join(long), encoding='utf-8')
        assert list(openwebtext.read_documents(tmp_path / 'long.txt')) == long
    elif kind == 'jsonl':
        documents += ['', ' ', 'lone \ud800 surrogate']
        path = jsonl(tmp_path / 'a.jsonl', documents)
        path.write_text(path.read_text().replace('\n', '\n\n \n'))        # blank lines are ignored
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


@pytest.mark.parametrize('more', [{'row_group_size': 100}, {}], ids=['row groups', 'one row group'])
def test_a_parquet_file_is_not_read_into_memory(tmp_path, more):
    rng = random.Random(0)
    texts = [rng.randbytes(5000).hex() for _ in range(3000)]
    path = parquets(tmp_path / 'a.parquet', texts, use_dictionary=False, compression='none', **more)
    before, most = pyarrow.total_allocated_bytes(), 0
    for text, expected in zip(openwebtext.read_documents(path), texts, strict=True):
        assert text == expected
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert 0 < most < path.stat().st_size / 2


def test_several_files_and_the_first_documents(make, tmp_path, capsys):
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
        assert found['name'].endswith(f', {count} documents') and '--documents=0' in capsys.readouterr().out


# shards are made --------------------------------------------------------------------------------------------------------


def test_shards_and_the_validation_text(make, tmp_path):
    """Shards are full, except for the last one and the first, whose last documents are the validation text."""
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


def test_the_validation_text_has_a_maximum(make, tmp_path, monkeypatch):
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


def test_reading_waits_for_the_workers(monkeypatch):
    """Otherwise a fast disk and slow workers fill the memory."""
    read = []

    def batches():
        for i in range(60):
            read.append(i)
            yield ['x' * 10] * 3, [0, i, i]

    monkeypatch.setattr(openwebtext.os, 'cpu_count', lambda: 2)
    stream = openwebtext.encode_parallel(batches(), SPEC)
    for i in range(60):
        tokens, place = next(stream)
        assert tokens.tolist() == plain(['x' * 10] * 3) and place == [0, i, i]
        assert len(read) <= i + 5 + 1
    assert next(stream, None) is None


# stopped and resumed ----------------------------------------------------------------------------------------------------


@needs_fork
def test_killed_anywhere_it_resumes_to_the_same_files(make, root, tmp_path):
    """Killed at every write to the disk in turn, and several times in one run."""
    paths = jsonl(tmp_path / 'a.jsonl', some(40, 1)), parquets(tmp_path / 'b.parquet', some(45, 2))
    words, folder = ('--input', *paths, '--shard_tokens=1000'), root / 'data' / 'made'
    calls = (os, 'fsync'), (os, 'replace'), (openwebtext.Path, 'unlink'), (shutil, 'rmtree')
    expected = hashes(make(*words, name='expected'))
    assert len(expected) > 4
    for last in range(200):
        shutil.rmtree(folder, ignore_errors=True)
        if not killed(last, calls, make, *words):
            break
        if folder.exists():                             # only the state is left
            (folder / 'state.json').unlink()
        assert hashes(folder if folder.exists() else make(*words)) == expected
    assert 10 < last < 199
    shutil.rmtree(folder)
    kills = 0
    while not folder.exists():
        kills += killed(8, calls, make, *words)
        assert kills < 50
    assert kills >= 2 and expected.items() <= hashes(folder).items()


DRIVER = '''
import sys
from harness import command
from prepare import openwebtext
openwebtext.gpt2_spec = lambda: {spec!r}
openwebtext.BATCH = 4, 1000
if __name__ == '__main__':
    command(openwebtext.main, 'stopped')
'''


@pytest.mark.skipif(os.name != 'posix', reason='process groups')
def test_signals_stop_all_processes(tree, tmp_path, make):
    """SIGKILL of the group, SIGKILL of the main process, whose workers end too, and Ctrl-C; then it resumes."""
    (tree / 'driver.py').write_text(DRIVER.format(spec=SPEC))
    path = jsonl(tmp_path / 'a.jsonl', some(16_000, 3))
    words = '--input', str(path), '--name=made', '--shard_tokens=20000'

    def start(stop=None):
        """Run it, and call stop(process) once it has finished another shard.  Returns (exit code, stdout, stderr)."""
        process = subprocess.Popen([sys.executable, 'driver.py', *words], cwd=tree, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            if stop:
                state = tree / 'data' / 'made.unfinished' / 'state.json'
                before = state.read_bytes() if state.exists() else b''
                until(lambda: state.exists() and state.read_bytes() != before,
                      SimpleNamespace(is_alive=lambda: process.poll() is None, exitcode=process.stderr))
                stop(process)
            out, err = process.communicate(timeout=60)      # returns when the last process with this stdout has ended
            return process.returncode, out, err
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert start(lambda process: os.killpg(process.pid, signal.SIGKILL))[0] == -signal.SIGKILL
    code, out, err = start(lambda process: process.kill())
    assert code == -signal.SIGKILL and 'resuming after' in out and err == ''
    code, _, err = start(lambda process: os.killpg(process.pid, signal.SIGINT))
    assert code == 1 and err.strip() == 'stopped' and [p.name for p in (tree / 'data').iterdir()] == ['made.unfinished']
    code, out, err = start()
    assert code == 0 and err == '' and 'resuming after' in out
    assert hashes(tree / 'data' / 'made') == hashes(make(*words))


@needs_fork
def test_an_unfinished_run_is_resumed_only_as_it_was(make, root, tmp_path):
    """Not with other arguments, a changed input or a damaged shard; a finished data set is replaced only with --overwrite."""
    path, folder = jsonl(tmp_path / 'a.jsonl', some(60)), root / 'data' / 'made.unfinished'
    words = '--input', path, '--shard_tokens=700'
    assert killed(8, ((os, 'fsync'), (os, 'replace')), make, *words) and (folder / 'train_0001.bin').exists()
    before, content = hashes(folder), path.read_text()
    for more in (['--documents=7'], ['--shard_tokens=701'], ['--input', jsonl(tmp_path / 'b.jsonl', some(60, 1))]):
        assert f'{folder} is an unfinished run with other arguments' in sentence(make, *words, *more)
    path.write_text(content.replace('cat', 'cow'))
    assert 'a.jsonl has changed' in sentence(make, *words)
    path.write_text(content)
    assert hashes(folder).items() <= before.items()     # without what was written after the last complete shard
    shard = (folder / 'train_0000.bin').read_bytes()
    (folder / 'train_0000.bin').write_bytes(shard[:10])
    assert 'train_0000.bin has changed' in sentence(make, *words)
    (folder / 'train_0000.bin').write_bytes(shard)
    assert whole(make(*words)) == plain(some(60))
    assert 'data/made already exists' in sentence(make, *words)
    path.write_text(content.replace('cat', 'cow'))
    assert whole(make(*words, '--overwrite')) == plain([d.replace('cat', 'cow') for d in some(60)])


# bad input ----------------------------------------------------------------------------------------------------------------


def bad_parquet(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)


def damaged_parquet(path):
    raw = bytearray(parquets(path, some(500), compression='zstd').read_bytes())
    raw[2000:3000] = bytes(1000)
    path.write_bytes(raw)


BAD = {     # how the input file is written, and what the error must name beside it
    'a.csv': (lambda p: p.write_text('x'), '.parquet, .jsonl or .txt'), 'absent.jsonl': (lambda p: None, 'existing'),
    'folder.txt': (lambda p: p.mkdir(), 'existing'),
    'words.jsonl': (lambda p: p.write_text('{"text": "ok"}\n\nnot so\n'), 'after 1 documents'),
    'field.jsonl': (lambda p: p.write_text('{"text": "ok"}\n{"texts": "a"}\n'), 'after 1 documents'),
    'number.jsonl': (lambda p: p.write_text('{"text": 3}\n'), '3 is no text'),
    'list.jsonl': (lambda p: p.write_text('["text"]\n'), 'after 0'),
    'deep.jsonl': (lambda p: p.write_text('[' * 100_000), 'after 0'),
    'latin.jsonl': (lambda p: p.write_bytes(b'{"text": "caf\xe9"}\n'), 'utf-8'),
    'latin.txt': (lambda p: p.write_bytes(b'\xe9'), 'utf-8'),
    'columns.parquet': (lambda p: bad_parquet(p, a=[1], texts=['x']), 'text'),
    'numbers.parquet': (lambda p: bad_parquet(p, text=[1, 2]), '1 is no text'),
    'nulls.parquet': (lambda p: bad_parquet(p, text=['a', None]), 'None is no text'),
    'no.parquet': (lambda p: p.write_text('not so'), 'after 0'), 'damaged.parquet': (damaged_parquet, 'cannot be read'),
    'cut.parquet': (lambda p: (parquets(p, some(50)), p.write_bytes(p.read_bytes()[:-30])), 'after 0'),
    'none.jsonl': (lambda p: p.write_text('\n'), 'no documents'),
    'none.txt': (lambda p: p.write_text(f' {END}\n{END}'), 'no documents'),
    'none.parquet': (lambda p: bad_parquet(p, text=pyarrow.array([], 'string')), 'no documents'),
    'one.txt': (lambda p: p.write_text('a document ' * 30), 'no document begins'),
    'short.txt': (lambda p: p.write_text('a'), 'last 0 of the 2'),
}


@pytest.mark.parametrize('name, write, reason', [(name, *rest) for name, rest in BAD.items()], ids=BAD)
def test_bad_input(make, root, tmp_path, name, write, reason):
    write(tmp_path / name)
    printed = sentence(make, '--input', tmp_path / name)
    assert reason in printed and ('no document begins' in printed or name in printed or reason == 'last 0 of the 2')
    assert not (root / 'data' / 'made').exists()


@pytest.mark.parametrize('word, reason', [('--documents=-1', "--documents: '-1'"), ('--shard_tokens=0', "--shard_tokens: '0'"),
                                          ('--shard_tokens=30', 'no document begins'), ('--name=a/b', "'a/b'")])
def test_bad_arguments(make, tmp_path, word, reason):
    path = jsonl(tmp_path / 'a.jsonl', some(60))
    assert reason in sentence(lambda: openwebtext.main(['--input', str(path), '--name=made', word]))


def test_parquet_without_pyarrow(make, tmp_path, monkeypatch):
    path = parquets(tmp_path / 'a.parquet', some(50))
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    assert 'pip install pyarrow' in sentence(make, '--input', path)
    assert whole(make('--input', jsonl(tmp_path / 'a.jsonl', some(50)))) == plain(some(50))


class Panic(BaseException):
    """Like tiktoken's, which is no Exception."""


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
    printed = sentence(make, '--input', jsonl(tmp_path / 'a.jsonl', [*some(50), 'evil', *some(50)]))
    assert "'evil' ..., 4 characters (StackOverflow)" in printed


@needs_fork
def test_a_worker_that_is_killed(make, tmp_path, monkeypatch):
    class Dies(Tokenizer):
        bpe = property(lambda self: os.kill(os.getpid(), signal.SIGKILL), lambda self, value: None)
    path = jsonl(tmp_path / 'a.jsonl', some(50))
    with monkeypatch.context() as patch:
        patch.setattr(openwebtext, 'Tokenizer', Dies)
        assert 'a worker process was killed' in sentence(make, '--input', path)
    assert whole(make('--input', path)) == plain(some(50))


# the hub ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(root, serve, monkeypatch):
    """The Hugging Face hub: .files by their path, .branch, .answer (replaces the list of files), .sent (replaces a file)."""
    def do_GET(request):
        s = request.server
        start = f'/datasets/Skylion007/openwebtext/resolve/{s.branch}/'
        if request.path == f'/api/datasets/Skylion007/openwebtext/tree/{s.branch}?recursive=true':
            listed = [{'type': 'directory', 'oid': 'f00', 'size': 0, 'path': 'plain_text'}, *(
                {'type': 'file', 'oid': 'beef', 'size': len(raw), 'path': path, 'lfs': {
                    'oid': hashlib.sha256(raw).hexdigest(), 'size': len(raw), 'pointerSize': 134}}
                for path, raw in reversed(s.files.items())), {'type': 'file', 'oid': 'ab', 'size': 9, 'path': 'README.md'}]
            body = s.answer or json.dumps(listed).encode()
        elif request.path.startswith(start) and request.path[len(start):] in s.files:
            body = s.sent or s.files[request.path[len(start):]]
        elif '/tree/' in request.path and s.branch != 'main' and '/main' in request.path:
            body = b'[{"type": "file", "oid": "ab", "size": 9, "path": "openwebtext.py"}]'
        else:
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header('Content-Length', str(len(body)))
        request.end_headers()
        request.wfile.write(body)
    s = serve(do_GET)
    s.branch, s.answer, s.sent, s.files, s.documents = 'main', None, None, {}, [some(40, i) for i in range(3)]
    for i, documents in enumerate(s.documents):
        path = parquets(root / 'shard.parquet', documents)
        s.files[f'plain_text/train-0000{i}-of-00003.parquet'] = path.read_bytes()
        path.unlink()
    monkeypatch.setattr(openwebtext, 'HUB', s.url)
    return s


@pytest.mark.parametrize('branch', ['main', 'refs%2Fconvert%2Fparquet'])
def test_from_the_hub(make, hub, branch):
    """In order, and only the files that are needed."""
    hub.branch = branch
    folder = make('--documents=60')
    assert whole(folder) == plain([*hub.documents[0], *hub.documents[1][:20]])
    assert data.TextData(folder).meta['source'] == {'name': 'OpenWebText, 60 documents', 'files': [
        {'name': path.split('/')[1], 'sha256': hashlib.sha256(raw).hexdigest()} for path, raw in list(hub.files.items())[:2]]}
    assert sum('/resolve/' in path for path, _ in hub.log) == 2
    assert whole(make('--documents=0', name='all')) == plain([*chain(*hub.documents)])
    assert sum('/resolve/' in path for path, _ in hub.log) == 3


def test_from_the_hub_after_a_failed_download(make, hub, root, monkeypatch, capsys):
    """The finished shards are kept, and the next run needs no list of files."""
    name = 'plain_text/train-00002-of-00003.parquet'
    content = hub.files.pop(name)
    hub.answer = json.dumps([{'path': path} for path in (*hub.files, name)]).encode()
    printed = sentence(make, '--documents=0', '--shard_tokens=700')
    url, path = re.search(r'put (\S+) by hand at (\S+)$', printed).groups()
    assert url == f'{hub.url}/datasets/Skylion007/openwebtext/resolve/main/{name}'
    hub.answer = b'gone'
    hub.log.clear()
    files.Path(path).write_bytes(content)
    assert whole(make('--documents=0', '--shard_tokens=700')) == plain([*chain(*hub.documents)]) and hub.log == []
    assert 'resuming after' in capsys.readouterr().out


def test_a_hub_that_sends_another_file(make, hub, root):
    hub.sent = b'PAR1 something else'
    assert 'train-00000-of-00003.parquet could not be downloaded' in sentence(make)
    assert not list((root / 'data' / 'downloads' / 'Skylion007--openwebtext').iterdir())


@pytest.mark.parametrize('answer', [b'<html>', b'{"error": "gone"}', b'["a"]', b'[]', b'[{"path": 3}]', None])
def test_a_hub_without_a_list(make, hub, root, answer):
    hub.answer, hub.branch = answer, 'main' if answer else 'nowhere'
    printed = sentence(make)
    assert f'{hub.url}/datasets/Skylion007/openwebtext' in printed and '--input FILE' in printed
    assert not (root / 'data').exists()


def test_a_missing_openwebtext_is_made(hub, tree, tmp_path):
    """data.ensure runs the script, with GPT-2's BPE; skipped if that cannot be downloaded."""
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


