"""
Speech Commands, spoken words of 35 classes: data/speech_commands, one second of sound as 100 tokens of 80 samples.

    python prepare/speech_commands.py [--input=FILE.tar.gz | --input=FOLDER]

- The archive has 2.3 GB and the data set 1.7 GB; while it is made, another 3.4 GB of disk space are needed.
- Sound of any rate is resampled to 8,000 samples per second, with a low-pass filter against aliasing. Shorter sounds are padded
  with silence at their end, longer ones are truncated.
- The splits are those of the archive's validation_list.txt and testing_list.txt: no speaker is in two splits.
- A folder has the layout of the archive: WORD/NAME.wav and the two lists. _background_noise_ is not used.
"""

import io
import math
import sys
import tempfile
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command, files
from prepare.common import Parser, fetch, members, walk, write_task

URL = 'http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz'
SHA256 = 'af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58'
LISTS = 'validation_list.txt', 'testing_list.txt'
RATE, TOKEN = 8000, 80      # samples per second and per token
BLOCK = 1024                # seconds of sound in memory


def accept(name):
    return name.name in LISTS or (name.suffix.lower() == '.wav' and name.parent.name not in ('', '_background_noise_')
                                  and not name.name.startswith('.'))


def contents(path):
    """Yields (name, content) of the WAV files and lists in an archive or a folder."""
    if not Path(path).is_dir():
        yield from members(path, accept)
        return
    for file in tqdm(walk(path), unit=' files', leave=False, disable=None):
        name = PurePosixPath(file.relative_to(path).as_posix())
        if accept(name):
            yield name, file.read_bytes()


class Whole(io.BytesIO):
    """Raises ValueError for a truncated chunk.  A program that writes into a pipe does not know the size of its last one."""

    def read(self, size=-1):
        found = super().read(size)
        if len(found) < size != 0xFFFFFFFF and (found or size != 4):        # the file may end where a chunk may begin
            raise ValueError('it is truncated')
        return found


def second(content, name):
    """The first second of a WAV file, its channels averaged: (RATE,) int16.  Raises UserError."""
    from scipy.io import wavfile  # here, because they are slow to import
    from scipy.signal import resample_poly
    try:
        with warnings.catch_warnings(action='ignore', category=wavfile.WavFileWarning):
            rate, sound = wavfile.read(Whole(content))
        if not len(sound) or not np.isfinite(sound).all():
            raise ValueError('it has no sound, or a sample that is not finite')
        bits = 8 * sound.dtype.itemsize
        wide = sound.reshape(len(sound), -1).astype(np.float64) - 128 * (bits == 8)                 # 8-bit samples are unsigned
        step = math.gcd(rate, RATE)
        sound = wide.mean(1) * 2.0 ** (15 if sound.dtype.kind == 'f' else 16 - bits)
        sound = resample_poly(sound, RATE // step, rate // step)[:RATE]
    except Exception as e:      # a damaged file may fail in any way
        raise UserError(f'{name} is not a WAV file that can be read ({" ".join(str(e).split())[:80] or type(e).__name__}): '
                        f'convert or remove it') from None
    return np.pad(np.rint(sound).clip(-32768, 32767).astype(np.int16), (0, RATE - len(sound)))


def entries(content):
    """The files WORD/NAME.wav of a list, which may be written as by Windows or by find."""
    lines = content.decode('utf-8-sig', errors='replace').replace('\\', '/').splitlines()
    return {'/'.join(PurePosixPath(line.strip()).parts[-2:]) for line in lines if line.strip()}


def make(path, source, folder):
    """Write data/speech_commands with at most BLOCK seconds of sound in memory; folder: an empty one, for temporary files."""
    names, lists = [], {}
    with open(folder / 'all', 'wb') as f:
        for name, content in contents(path):
            if name.name in LISTS:
                lists[name.name] = entries(content)
            else:
                names.append((name.parent.name, name.name))
                f.write(second(content, f'{path}, {name},').tobytes())
    if not names:
        raise UserError(f'{path} contains no WORD/NAME.wav')
    if missing := [name for name in LISTS if name not in lists]:
        raise UserError(f'{path} contains no {missing[0]}, which lists the files WORD/NAME.wav of a split, one per line')
    val, test, known = *(lists[name] for name in LISTS), {f'{word}/{file}' for word, file in names}
    if absent := sorted((val | test) - known):
        raise UserError(f'{path} lacks {len(absent)} of the files in its lists, such as {absent[0]}: add them, or remove these '
                        f'lines')
    if both := sorted(val & test):
        raise UserError(f'{path}: {both[0]} is in both lists: remove it from one of them')
    which = np.array([[f'{word}/{file}' in lists[name] for name in LISTS] for word, file in names]) @ [1, 2]
    words = sorted({word for word, _ in names})
    y = np.array([words.index(word) for word, _ in names])

    # The lists may be anywhere in the archive, so the sounds are sorted by split only now
    order = np.argsort(which, kind='stable')
    shape = len(names), RATE // TOKEN, TOKEN
    x = np.memmap(folder / 'all', np.int16, 'r', shape=shape)
    with open(folder / 'sorted', 'wb') as f:
        for i in range(0, len(order), BLOCK):
            f.write(x[order[i:i + BLOCK]].tobytes())
    x, y = np.memmap(folder / 'sorted', np.int16, 'r', shape=shape), y[order]
    ends = np.cumsum(np.bincount(which, minlength=3))[:2]
    parts = zip(np.split(x, ends), np.split(y, ends), strict=True)
    write_task('speech_commands', 'classify', dict(zip(('train', 'val', 'test'), parts, strict=True)), len(words), source,
               Path(__file__).name, labels=words, draw={'as': 'wave', 'rate': RATE})


def main(argv):
    parser = Parser(__doc__, name='speech_commands')
    parser.add_argument('--input', metavar='FILE_OR_FOLDER', help='a local archive or folder, instead of the download')
    path = parser.parse_args(argv).input
    try:
        if path is None:
            path = fetch('Speech Commands', URL, URL.rpartition('/')[2], SHA256)
            source = {'name': 'Speech Commands v2', 'sha256': SHA256}
        else:
            source = {'name': Path(path).name} | ({'sha256': files.digest(path)} if Path(path).is_file() else {})
        files.DOWNLOADS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=files.DOWNLOADS) as folder:
            make(path, source, Path(folder))
    except OSError as e:
        raise UserError(f'the sound cannot be read, or not be written to {files.DOWNLOADS} ({e})') from None


if __name__ == '__main__':
    command(main, 'stopped: run the same command to start again; a download is resumed')
