"""Files that appear whole or not at all, downloads that resume, and data in Python packages."""

import gzip
import hashlib
import os
import re
import subprocess
import zipfile

import pytest
from conftest import names, sentence

from harness import files

BODY = bytes(range(256)) * 1200        # 307,200 bytes
SHA256 = hashlib.sha256(BODY).hexdigest()


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
    server.stop_after, server.gzip = None, True         # Content-Length would count compressed bytes
    assert fetch(server, expected) == fetch(server, expected) == BODY       # the second time it exists
    assert ranges(server) == [None, f'bytes={len(have)}-']


@pytest.mark.parametrize('content, expected, resumes, requests', [
    (b'x' * 500, SHA256, False, ['bytes=500-']), (BODY, SHA256, True, [f'bytes={len(BODY)}-']),
    (BODY, None, True, [f'bytes={len(BODY)}-', None]), (BODY[:-1] + b'x', SHA256, True, [f'bytes={len(BODY)}-', None]),
    (BODY + b'x', SHA256, True, [f'bytes={len(BODY) + 1}-', None])],
    ids=['no resume', 'complete', 'complete, unverified', 'wrong', 'too long'])
def test_a_partial_file(server, content, expected, resumes, requests):
    server.ranges = resumes
    partial(content)
    assert fetch(server, expected) == BODY and ranges(server) == requests


@pytest.mark.parametrize('status', [404, 416, 503])
def test_a_server_that_refuses(server, status):
    """Or that sends something else, which is deleted."""
    server.body = BODY[::-1]
    with pytest.raises(OSError, match='hash'):
        files.download(f'{server.url}/file', 'file', SHA256)
    assert names(files.DOWNLOADS) == []
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
    for name, value in {'PIP_CONFIG_FILE': os.devnull, 'PIP_NO_INDEX': '1', 'PIP_INDEX_URL': 'http://127.0.0.1:1',
                        'PIP_EXTRA_INDEX_URL': '', 'PIP_FIND_LINKS': str(folder)}.items():
        monkeypatch.setenv(name, value)
    return files.digest(wheel)


def test_a_package_is_downloaded_once(root, registry, monkeypatch):
    for requirement, wrong in (('nano-data==1.0', SHA256), ('other-data==1.0', registry)):
        with pytest.raises(OSError, match=f'pip could not download {requirement}'):
            files.from_registry(requirement, wrong)
        assert names(files.DOWNLOADS) == []
    path = files.from_registry('nano-data==1.0', registry)
    assert path.parent == files.DOWNLOADS and files.digest(path) == registry
    assert names(files.DOWNLOADS) == ['nano_data-1.0-py3-none-any.whl']
    path.with_name('nano_data-0.9.whl').write_bytes(b'another version')
    monkeypatch.setattr(subprocess, 'run', lambda *_, **__: pytest.fail('pip was run again'))
    assert files.from_registry('nano-data==1.0', registry) == path
