"""prepare/openwebtext.py: documents become shards of tokens."""

import hashlib
import json
import os
import random
import re
import shutil
import sys
from itertools import chain

import pyarrow
import pytest
from conftest import killed, needs_fork, sentence
from pyarrow import parquet
from tiktoken_ext.openai_public import r50k_pat_str

from harness import data, files
from harness.tokenizer import Tokenizer, bpe_spec
from prepare import openwebtext

END, EVIL = '<|endoftext|>', 'evil, very evil'
MERGES = [b'th', b'the', b' the', b' a', b'\xe6\xbc', b'\xe6\xbc\xa2']
SPEC = bpe_spec('small', r50k_pat_str, {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *MERGES])},
                {END: 256 + len(MERGES)})
EOT = SPEC['special'][END]


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

def test_shards_and_the_validation_text(make, tmp_path, monkeypatch):
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
    monkeypatch.setattr(openwebtext, 'VAL_TOKENS', 200)
    val = data.TextData(make('--input', path, name='short')).tokens['val'].tolist()
    assert 0 < len(val) <= 200 and tokens[-len(val):] == val and EOT not in tokens[-200 - 1:-len(val) - 1]


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
    'wide.txt': (lambda p: p.write_text('a document ' * 30, encoding='utf-16-le'), 'it is UTF-16'),
    'marked.txt': (lambda p: p.write_text('a document', encoding='utf-16'), 'utf-8'),
    'evil.jsonl': (lambda p: jsonl(p, [*some(50), EVIL, *some(50)]), 'evil, very evil'),
}


def panic():
    raise BaseException('as tiktoken does')


class Fragile(Tokenizer):

    def __init__(self, spec):
        super().__init__(spec)
        real, self.bpe = self.bpe, self
        self.encode_ordinary = lambda text: panic() if text == EVIL else real.encode_ordinary(text)


@pytest.mark.parametrize('name, write, reason', [(name, *rest) for name, rest in BAD.items()], ids=BAD)
def test_bad_input(make, root, tmp_path, monkeypatch, name, write, reason):
    monkeypatch.setattr(openwebtext, 'Tokenizer', Fragile)
    write(tmp_path / name)
    printed = sentence(make, '--input', tmp_path / name)
    assert reason in printed and (name in printed or re.search('no document begins|of the 2|evil', printed))
    assert not (root / 'data' / 'made').exists()


@pytest.mark.parametrize('words, reason', [
    (['--documents=-1'], "--documents: '-1'"), (['--shard_tokens=0'], "--shard_tokens: '0'"), (['--name=a/b'], "'a/b'"),
    (['--shard_tokens=30'], 'no document begins'), (['--input', 'A', 'C', 'A'], 'A and A are the same'),
    (['--input', 'A', 'C', 'B'], 'A and B are the same')])
def test_bad_arguments(make, tmp_path, words, reason):
    """Also a file twice: the validation text, in the first shard, would be trained on."""
    paths = {name: str(jsonl(tmp_path / f'{name}.jsonl', some(60, name == 'C'))) for name in 'ABC'}
    words = ['--input', paths['A'], '--name=made', *(paths.get(word, word) for word in words)]
    printed = sentence(openwebtext.main, words)
    for name, path in paths.items():
        printed = printed.replace(path, name)
    assert reason in printed


def test_parquet_without_pyarrow(make, tmp_path, monkeypatch):
    path = parquets(tmp_path / 'a.parquet', some(50))
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    assert 'pip install pyarrow' in sentence(make, '--input', path)
    assert whole(make('--input', jsonl(tmp_path / 'a.jsonl', some(50)))) == plain(some(50))


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


def test_a_hub_without_a_list(make, hub, root):
    for hub.answer in (b'<html>', b'{"error": "gone"}', b'["a"]', b'[]', b'[{"path": 3}]', None):
        hub.branch = 'main' if hub.answer else 'nowhere'
        assert re.search(rf'{hub.url}/datasets/Skylion007/openwebtext.*--input FILE', sentence(make))
    assert not (root / 'data').exists()


