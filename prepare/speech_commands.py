"""
Speech Commands, a spoken word of 35: data/speech_commands, a second of sound as 100 tokens of 80 samples.

    python prepare/speech_commands.py [--input=FILE.tar.gz | --input=FOLDER]

- The archive is 2.3 GB, and what is made of it 1.7 GB; while it is made, twice as much more is needed on the disk.
- Sound of any rate is resampled to 8,000 samples a second, through a low-pass filter, which keeps what is too high for that
  from coming back as tones that nobody spoke. What is shorter than a second is silent at its end, what is longer is cut.
- validation_list.txt and testing_list.txt of the archive say what is to validate and to test on: no voice is in two splits.
- A folder is laid out as the archive is: WORD/NAME.wav, and the two lists. _background_noise_ is left out.
"""

import io
import math
import sys
import tempfile
import wave
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.signal import resample_poly
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, files
from harness.config import Arguments
from harness.tasks import write_task
from prepare.cifar10 import members

URL = 'http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz'
SHA256 = 'af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58'
LISTS = 'validation_list.txt', 'testing_list.txt'
RATE, TOKEN = 8000, 80      # samples a second, and in a token
BLOCK = 1024                # seconds of sound that are copied at once


def wanted(name):
    return name.name in LISTS or (name.suffix == '.wav' and name.parent.name not in ('', '_background_noise_')
                                  and not name.name.startswith('.'))


def inside(path):
    """(name, content) of the WAV files and lists in an archive or a folder."""
    if not Path(path).is_dir():
        yield from members(path, wanted)
        return
    for file in tqdm(sorted(Path(path).rglob('*')), unit=' files', leave=False, disable=None):
        name = PurePosixPath(file.relative_to(path).as_posix())
        if wanted(name) and file.is_file():
            yield name, file.read_bytes()


def second(content, name):
    """The first second of a WAV file, its channels averaged: (RATE,) int16.  Raises UserError."""
    try:
        with wave.open(io.BytesIO(content)) as f:
            channels, width, rate, count = f.getparams()[:4]
            raw = np.frombuffer(f.readframes(count), np.uint8)
        if not count or len(raw) < count * channels * width:
            raise ValueError('its sound is cut off')
        raw = raw.reshape(count, channels, width)
        wide = np.zeros((count, channels, 4), np.uint8)
        wide[..., 4 - width:] = raw ^ 128 if width == 1 else raw        # samples of 8 bits are from 0 on
        step = math.gcd(rate, RATE)
        sound = resample_poly(wide.view('<i4')[..., 0].mean(1) / 65536, RATE // step, rate // step)[:RATE]
    except (wave.Error, EOFError, RuntimeError, ValueError) as e:
        raise UserError(f'{name} is not a WAV file with 8, 16, 24 or 32 bits a sample ({str(e) or "it is cut off"}): convert '
                        f'it, or take it out') from None
    return np.pad(np.rint(sound).clip(-32768, 32767).astype(np.int16), (0, RATE - len(sound)))


def make(path, source, folder):
    """Write data/speech_commands; folder is an empty one.  No more than a block of the sound is in memory."""
    names, lists = [], {}
    with open(folder / 'all', 'wb') as f:
        for name, content in inside(path):
            if name.name in LISTS:
                lists[name.name] = set(content.decode(errors='replace').split())
            else:
                names.append((name.parent.name, name.name))
                f.write(second(content, f'{path}, {name},').tobytes())
    if not names:
        raise UserError(f'{path} holds no WORD/NAME.wav')
    if missing := [name for name in LISTS if name not in lists]:
        raise UserError(f'{path} holds no {missing[0]}, which says WORD/NAME.wav, a line each, of what is not to train on')
    which = np.array([[f'{word}/{file}' in lists[name] for name in LISTS] for word, file in names]) @ [1, 2]
    words = sorted({word for word, _ in names})
    y = np.array([words.index(word) for word, _ in names])

    # Where the lists stand in the archive is not said: only now can the splits be told apart
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


def main(argv=None):
    parser = Arguments(description=__doc__)
    parser.add_argument('--input', metavar='FILE_OR_FOLDER', help='what is at hand, instead of the download')
    path = parser.parse_args(argv).input
    try:
        if path is None:
            name = URL.rpartition('/')[2]
            try:
                path = files.download(URL, name, SHA256)
            except OSError as e:
                raise files.must_put_by_hand('Speech Commands', name, URL, [e]) from None
            source = {'name': 'Speech Commands v2', 'sha256': SHA256}
        else:
            source = {'name': Path(path).name} | ({'sha256': files.digest(path)} if Path(path).is_file() else {})
        files.DOWNLOADS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=files.DOWNLOADS) as folder:
            make(path, source, Path(folder))
    except OSError as e:
        raise UserError(f'the sound cannot be read, or not be written to {files.DOWNLOADS} ({e})') from None
    except KeyboardInterrupt:
        raise UserError('stopped: the same command begins again, with what has been downloaded') from None


if __name__ == '__main__':
    main()
