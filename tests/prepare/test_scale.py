"""prepare/openwebtext.py: documents become shards of tokens."""

import hashlib
import json
import os
import random
import re
import shutil
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
from conftest import contents, killed, names, needs_fork, send, sentence
from pyarrow import parquet
from tiktoken_ext.openai_public import r50k_pat_str

from harness import data, files
from harness.tokenizer import Tokenizer, bpe_spec
from prepare import openwebtext
from tests.prepare.test_prepare import fill

END, REPOSITORY = '<|endoftext|>', 'Skylion007/openwebtext'
MERGES = [b'th', b'the', b' the', b' a', b'\xe6\xbc', b'\xe6\xbc\xa2']
SPEC = bpe_spec('small', r50k_pat_str, {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *MERGES])},
                {END: 256 + len(MERGES)})
EOT = SPEC['special'][END]


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
        folder, = (root / 'data').glob(f'{name}*')
        assert folder.name == name and not (folder / 'state.json').exists()
        return folder
    return run


def whole(folder):
    """All tokens in the order of the documents: the validation text is after the first shard."""
    text = data.TextData(folder)
    train, first = text.tokens['train'], text.meta['shards']['train'][0]
    return [*train[:first].tolist(), *text.tokens['val'].tolist(), *train[first:].tolist()]


@pytest.mark.parametrize('kind', ['jsonl', 'parquet', 'parquet in groups', 'txt'])
def test_tokens_agree_with_a_plain_loop(make, tmp_path, kind):
    documents, path = some(100), tmp_path / f'a.{kind.split()[0]}'
    if kind == 'txt':
        documents = [d.replace(END, '<|end|>').replace('\r\n', '\n') for d in documents]
        path.write_text('\ufeff' + END.join([*documents[:50], ' \n', *documents[50:], '\n']), encoding='utf-8', newline='')
        # blocks end within END and within a character
        long = ['\u6f22' * 700_000, 'a' * ((1 << 20) - 700_006), '\u6f22' * 3_000_000, 'b']
        (tmp_path / 'long.txt').write_text(END.join(long), encoding='utf-8')
        assert list(openwebtext.read_documents(tmp_path / 'long.txt')) == long
    elif kind == 'jsonl':
        documents += ['', ' ', 'lone \ud800 surrogate']
        path.write_text(jsonl(path, documents).read_text().replace('\n', '\n\n \n'))        # blank lines are ignored
    else:
        documents += ['']
        parquets(path, documents, row_group_size=7 if 'groups' in kind else None)
    folder = make('--input', path)
    meta = data.TextData(folder).meta
    assert whole(folder) == plain(documents) and sorted(contents(folder)) == ['meta.json', 'train_0000.bin', 'val.bin']
    assert meta['source'] == {'name': f'{path.name}, {len(documents)} documents',
                              'files': [{'name': path.name, 'sha256': files.digest(path)}]}
    assert (meta['tokenizer'], meta['script'], meta['dtype']) == (SPEC, 'openwebtext.py', 'uint16')


@pytest.mark.parametrize('size', [100, None])
def test_a_parquet_file_is_not_read_into_memory(tmp_path, size):
    texts = [random.Random(i).randbytes(5000).hex() for i in range(3000)]
    path = parquets(tmp_path / 'a.parquet', texts, use_dictionary=False, compression='none', row_group_size=size)
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
    for count, read in ((0, 4), (90, 4), (89, 4), (80, 3), (79, 3), (33, 3), (30, 1), (29, 1)):
        folder = make('--input', *paths, f'--documents={count}', name=f'first_{count}')
        assert whole(folder) == plain(documents[:count or 89])
        found = data.TextData(folder).meta['source']
        assert [f['name'] for f in found['files']] == [p.name for p in paths[:read]]
        assert found['name'].endswith(f', {min(count or 89, 89)} documents')
        assert ('--documents=0' in capsys.readouterr().out) == (0 < count < 90)


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
        assert whole(text.folder) == tokens and tokens[counts[0] - 1] == tokens[first - 1] == val[-1] == EOT
        assert counts[0] == next(i for i in range(first - first // 10, first) if tokens[i - 1] == EOT)
        assert names(text.folder) == ['meta.json', *(f'train_{i:04d}.bin' for i in range(len(counts))), 'val.bin']
    monkeypatch.setattr(openwebtext, 'VAL_TOKENS', 200)
    val = data.TextData(make('--input', path, name='short')).tokens['val'].tolist()
    assert 0 < len(val) <= 200 and tokens[-len(val):] == val and EOT not in tokens[-200 - 1:-len(val) - 1]


@needs_fork
def test_killed_anywhere_it_resumes_to_the_same_files(make, root, tmp_path):
    """Killed at every write to the disk in turn, and several times in one run."""
    paths = jsonl(tmp_path / 'a.jsonl', some(40, 1)), parquets(tmp_path / 'b.parquet', some(45, 2))
    words, folder = ('--input', *paths, '--shard_tokens=1000'), root / 'data' / 'made'
    calls = (os, 'fsync'), (os, 'replace'), (openwebtext.Path, 'unlink'), (shutil, 'rmtree')
    expected = contents(make(*words, name='expected'))
    assert len(expected) > 4
    for last in range(200):
        shutil.rmtree(folder, ignore_errors=True)
        if not killed(last, calls, make, *words):
            break
        if folder.exists():                             # only the state is left
            (folder / 'state.json').unlink()
        assert contents(folder if folder.exists() else make(*words)) == expected
    assert 10 < last < 199
    shutil.rmtree(folder)
    kills = [killed(8, calls, make, *words) for _ in range(50) if not folder.exists()]
    assert sum(kills) >= 2 and expected.items() <= contents(folder).items()


@needs_fork
def test_an_unfinished_run_is_resumed_only_as_it_was(make, root, tmp_path):
    """Not with other arguments, a changed input or a damaged shard; a finished data set is replaced only with --overwrite."""
    path, folder = jsonl(tmp_path / 'a.jsonl', some(60)), root / 'data' / 'made.unfinished'
    words = '--input', path, '--shard_tokens=700'
    assert killed(8, ((os, 'fsync'), (os, 'replace')), make, *words) and (folder / 'train_0001.bin').exists()
    before, content = contents(folder), path.read_text()
    for more in (['--documents=7'], ['--shard_tokens=701'], ['--input', jsonl(tmp_path / 'b.jsonl', some(60, 1))]):
        assert f'{folder} is an unfinished run with other arguments' in sentence(make, *words, *more)
    path.write_text(content.replace('cat', 'cow'))
    assert 'a.jsonl has changed' in sentence(make, *words)
    path.write_text(content)
    assert contents(folder).items() <= before.items()     # without what was written after the last complete shard
    shard = (folder / 'train_0000.bin').read_bytes()
    (folder / 'train_0000.bin').write_bytes(shard[:10])
    assert 'train_0000.bin has changed' in sentence(make, *words)
    (folder / 'train_0000.bin').write_bytes(shard)
    assert whole(make(*words)) == plain(some(60)) and 'data/made already exists' in sentence(make, *words)
    path.write_text(content.replace('cat', 'cow'))
    assert whole(make(*words, '--overwrite')) == plain([d.replace('cat', 'cow') for d in some(60)])


def damaged_parquet(path):
    raw = bytearray(parquets(path, some(500), compression='zstd').read_bytes())
    raw[2000:3000] = bytes(1000)
    path.write_bytes(raw)


@pytest.mark.parametrize('name, write, reason', [       # its content, and what the error must name beside it
    ('a.csv', 'x', '.parquet, .jsonl or .txt'), ('folder.txt', Path.mkdir, 'existing'),
    ('words.jsonl', '{"text": "ok"}\n\nnot so\n', 'after 1 documents'), ('list.jsonl', '["text"]\n', 'after 0'),
    ('field.jsonl', '{"text": "ok"}\n{"texts": "a"}\n', 'after 1 documents'), ('number.jsonl', '{"text": 3}\n', '3 is no text'),
    ('latin.jsonl', b'{"text": "caf\xe9"}\n', 'utf-8'), ('latin.txt', b'\xe9', 'utf-8'),
    ('columns.parquet', {'a': [1], 'texts': ['x']}, 'text'), ('numbers.parquet', {'text': [1, 2]}, '1 is no text'),
    ('nulls.parquet', {'text': ['a', None]}, 'None is no text'), ('no.parquet', 'not so', 'after 0'),
    ('damaged.parquet', damaged_parquet, 'cannot be read'), ('none.jsonl', '\n', 'no documents'),
    ('none.txt', f' {END}\n{END}', 'no documents'), ('one.txt', 'a document ' * 30, 'no document begins'),
    ('short.txt', 'a', 'last 0 of the 2'), ('wide.txt', ('a document ' * 30).encode('utf-16-le'), 'UTF-16')], ids=range(18))
def test_bad_input(make, root, tmp_path, name, write, reason):
    path = tmp_path / name
    if callable(write):
        write(path)
    elif isinstance(write, dict):
        parquet.write_table(pyarrow.table(write), path)
    else:
        fill(tmp_path, {name: write})
    printed = sentence(make, '--input', path)
    assert reason in printed and (name in printed or re.search('no document begins|of the 2', printed))
    assert not (root / 'data' / 'made').exists()


def test_bad_arguments_and_no_pyarrow(make, tmp_path, monkeypatch):
    """A file may not be given twice: the validation text, in the first shard, would be trained on."""
    a, b, c = (jsonl(tmp_path / f'{name}.jsonl', some(60, name == 'c')) for name in 'abc')
    for words, reason in (([a, c, a], f'{a} and {a} are the same'), ([a, c, b], f'{a} and {b} are the same'),
                          ([a, '--shard_tokens=30'], 'no document begins')):
        assert reason in sentence(openwebtext.main, ['--input', *map(str, words)])
    failing = SimpleNamespace(bpe=SimpleNamespace(encode_ordinary=lambda text: sys.exit('a panic of tiktoken')))
    assert 'evil' in sentence(openwebtext.encode, failing, 'evil')
    path = parquets(tmp_path / 'a.parquet', some(50))
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    assert 'pip install pyarrow' in sentence(make, '--input', path) and whole(make('--input', a)) == plain(some(60))


@pytest.fixture
def hub(root, serve, monkeypatch):
    """The Hugging Face hub: .files by their path, .branch, .answer (replaces the list of files), .sent (replaces a file)."""
    def do_GET(request):
        tree = f'/api/datasets/{REPOSITORY}/tree/'
        path = request.path.removeprefix(f'/datasets/{REPOSITORY}/resolve/{s.branch}/')
        if path == f'{tree}{s.branch}?recursive=true':
            listed = [{'path': name, 'lfs': {'oid': hashlib.sha256(raw).hexdigest()}} for name, raw in s.files.items()]
            send(request, s.answer or json.dumps([{'path': 'README.md'}, *listed[::-1]]).encode())
        elif path == f'{tree}main?recursive=true':
            send(request, b'[{"path": "openwebtext.py"}]')
        else:
            send(request, s.sent if s.sent and path in s.files else s.files.get(path))
    s = serve(do_GET)
    s.branch, s.answer, s.sent, s.files, s.documents = 'main', None, None, {}, [some(40, i) for i in range(3)]
    for i, documents in enumerate(s.documents):
        path = parquets(root / 'shard.parquet', documents)
        s.files[f'plain_text/train-0000{i}-of-00003.parquet'] = path.read_bytes()
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


def test_from_a_hub_that_fails(make, hub, root, capsys):
    """Finished shards are kept, and the next run needs no list of files; another file, or no list, is refused."""
    hub.sent = b'PAR1 something else'
    assert 'train-00000-of-00003.parquet could not be downloaded' in sentence(make)
    assert not list((root / 'data' / 'downloads' / 'Skylion007--openwebtext').iterdir())
    for hub.answer in (b'<html>', b'{"error": "gone"}', b'["a"]', b'[]', b'[{"path": 3}]'):
        assert re.search(rf'{hub.url}/datasets/{REPOSITORY}.*--input FILE', sentence(make))
    name = 'plain_text/train-00002-of-00003.parquet'
    hub.answer, hub.sent = json.dumps([{'path': path} for path in hub.files]).encode(), None
    content = hub.files.pop(name)
    url, path = re.search(r'put (\S+) by hand at (\S+)$', sentence(make, '--documents=0', '--shard_tokens=700')).groups()
    assert url == f'{hub.url}/datasets/{REPOSITORY}/resolve/main/{name}'
    hub.answer = b'gone'
    hub.log.clear()
    Path(path).write_bytes(content)
    assert whole(make('--documents=0', '--shard_tokens=700')) == plain([*chain(*hub.documents)]) and hub.log == []
    assert 'resuming after' in capsys.readouterr().out
