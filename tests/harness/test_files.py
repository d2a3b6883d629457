"""Files that appear whole or not at all, downloads that resume, and data in Python packages."""

import contextlib
import gzip
import hashlib
import itertools
import os
import re
import zipfile

import numpy as np
import pytest
from conftest import names, sentence
from PIL import Image

from harness import files

BODY = bytes(range(256)) * 1200        # 307,200 bytes
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize('old', [None, b'old'])
@pytest.mark.parametrize('error', [None, ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_writes_the_new_file_or_leaves_the_old_one(tmp_path, error, old):
    path = tmp_path / 'file'
    if old:
        path.write_bytes(old)
    with pytest.raises(error) if error else contextlib.nullcontext(), files.atomic(path, 'w') as f:
        f.write('\u00e9\r\n')
        f.flush()
        assert (path.read_bytes() if path.exists() else None) == old
        if error:
            raise error
    expected = old if error else b'\xc3\xa9\r\n'
    assert names(tmp_path) == (['file'] if expected else []) and (not expected or path.read_bytes() == expected)


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
    files.DOWNLOADS.mkdir(parents=True)
    return s


def fetch(server, expected=SHA256):
    """The content of the downloaded file, beside which nothing may be left, and the ranges that were asked for."""
    path = files.download(f'{server.url}/file', 'file', expected)
    assert path == files.DOWNLOADS / 'file' and names(files.DOWNLOADS) == ['file']
    return path.read_bytes(), [asked for _, asked in server.log]


@pytest.mark.parametrize('expected', [SHA256, hashlib.md5(BODY).hexdigest(), None])
def test_an_interrupted_download_is_resumed(server, expected):
    server.stop_after = 200_000
    with pytest.raises(OSError):
        fetch(server, expected)
    assert names(files.DOWNLOADS) == ['file.partial']
    have = (files.DOWNLOADS / 'file.partial').read_bytes()
    assert 100_000 < len(have) <= 200_000 and have == BODY[:len(have)]
    server.stop_after, server.gzip = None, True         # Content-Length would count compressed bytes
    assert fetch(server, expected) == fetch(server, expected) == (BODY, [None, f'bytes={len(have)}-'])      # once


@pytest.mark.parametrize('content, expected, resumes, requests', [
    (b'x' * 500, SHA256, False, ['bytes=500-']), (BODY, SHA256, True, [f'bytes={len(BODY)}-']),
    (BODY, None, True, [f'bytes={len(BODY)}-', None]), (BODY[:-1] + b'x', SHA256, True, [f'bytes={len(BODY)}-', None]),
    (BODY + b'x', SHA256, True, [f'bytes={len(BODY) + 1}-', None])],
    ids=['no resume', 'complete', 'complete, unverified', 'wrong', 'too long'])
def test_a_partial_file(server, content, expected, resumes, requests):
    server.ranges = resumes
    (files.DOWNLOADS / 'file.partial').write_bytes(content)
    assert fetch(server, expected) == (BODY, requests)


def test_what_is_not_the_file(server):
    """Another file is deleted, unless it is the user's."""
    server.body = BODY[::-1]
    with pytest.raises(OSError, match='hash'):
        fetch(server)
    assert names(files.DOWNLOADS) == []
    for server.refuse, content in itertools.product((404, 416, 503), (b'', BODY[:300])):
        (files.DOWNLOADS / 'file.partial').write_bytes(content)
        with pytest.raises(OSError, match=f'^{server.refuse} '):
            fetch(server)
    (files.DOWNLOADS / 'file').write_bytes(BODY[1:])
    assert str(files.DOWNLOADS / 'file') in sentence(files.download, server.url, 'file', SHA256)
    assert (files.DOWNLOADS / 'file').read_bytes() == BODY[1:]


def test_a_package_is_downloaded_once(root, tmp_path, monkeypatch):
    """From a package registry with one package, nano-data 1.0, whose hash must be the expected one."""
    pytest.importorskip('pip')
    (tmp_path / 'registry').mkdir()
    wheel, info = tmp_path / 'registry' / 'nano_data-1.0-py3-none-any.whl', 'nano_data-1.0.dist-info/'
    with zipfile.ZipFile(wheel, 'w') as f:
        f.writestr(info + 'METADATA', 'Metadata-Version: 2.1\nName: nano-data\nVersion: 1.0\n')
        f.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    for name, value in {'PIP_CONFIG_FILE': os.devnull, 'PIP_NO_INDEX': '1', 'PIP_INDEX_URL': 'http://127.0.0.1:1',
                        'PIP_EXTRA_INDEX_URL': '', 'PIP_FIND_LINKS': str(wheel.parent)}.items():
        monkeypatch.setenv(name, value)
    expected = files.digest(wheel)
    for requirement, wrong in (('nano-data==1.0', SHA256), ('other-data==1.0', expected)):
        with pytest.raises(OSError, match=f'pip could not download {requirement}'):
            files.from_registry(requirement, wrong)
        assert names(files.DOWNLOADS) == []
    path = files.from_registry('nano-data==1.0', expected)
    assert path == files.DOWNLOADS / wheel.name and names(files.DOWNLOADS) == [wheel.name]
    path.with_name('nano_data-0.9.whl').write_bytes(b'another version')
    wheel.unlink()                      # so pip would fail
    assert files.from_registry('nano-data==1.0', expected) == path and files.digest(path) == expected


def test_images_are_read_as_they_look(tmp_path):
    """Turned as their EXIF says, also with 16 bits, whose transparent parts are white; 32 bits are refused."""
    path, pixels, turn = tmp_path / 'x.png', np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, Image.Exif()
    turn[0x112] = 6
    deep = pixels.astype(np.uint16) * 256 + 7
    for x, more, expected in ((pixels, {'exif': turn}, np.rot90(pixels, -1)), (deep, {'exif': turn}, np.rot90(pixels, -1)),
                              (pixels, {'exif': b'Exif\0\0damaged'}, pixels),
                              (deep, {'transparency': 80 * 256 + 7}, np.where(pixels == 80, 255, pixels))):
        Image.fromarray(x).save(path, **more)
        assert np.array_equal(files.read_image(path), expected[..., None].repeat(3, 2))
    for kind in (np.float32, np.int32):
        Image.fromarray((pixels / 255).astype(kind)).save(tmp_path / 'x.tif')
        assert 'x.tif has 32 bits' in sentence(files.read_image, tmp_path / 'x.tif')
