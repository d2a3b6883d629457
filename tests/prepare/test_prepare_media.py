"""The prepare scripts of photographs, spoken words and molecules, from small files of the published formats."""

import csv
import io
import os
import pickle
import random
import re
import struct
import sys
import tarfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from conftest import sentence, task_of

from harness import files
from prepare import cifar10, common, cyp3a4, speech_commands
from prepare.cifar10_gray import gray as luma
from prepare.common import SPLITS


def archive(path, content):
    """A tar.gz of {name: bytes}."""
    with tarfile.open(path, 'w:gz') as tar:
        for name, raw in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def refuses(prepare, script, *words):
    """The error of a script, which makes nothing."""
    printed = sentence(prepare, script, *words)
    assert not list((common.ROOT / 'data').glob('c*/*')) and not list((common.ROOT / 'data').glob('s*/*'))
    return printed


@pytest.mark.parametrize('script, url', [('cifar10.py', cifar10.URL), ('cifar10_gray.py', cifar10.URL),
                                         ('speech_commands.py', speech_commands.URL), ('cyp3a4.py', cyp3a4.URL)])
def test_a_failed_download_can_be_put_by_hand(prepare, offline, script, url):
    """The error names the file and its path; another file there is refused and stays."""
    found = re.search(r'put (\S+) by hand at (\S+)$', refuses(prepare, script))
    assert found[1] == url and Path(found[2]).parent == files.DOWNLOADS
    Path(found[2]).parent.mkdir(parents=True, exist_ok=True)
    Path(found[2]).write_bytes(b'something else\n')
    assert found[2] in refuses(prepare, script) and Path(found[2]).read_bytes() == b'something else\n'
    assert 'absent.file' in refuses(prepare, script, '--input=absent.file')


# CIFAR-10 ---------------------------------------------------------------------------------------------------------------

class Python2(pickle._Pickler):
    """Pickles as Python 2 did: text and bytes are the same."""

    def string(self, value):
        raw = value.encode('latin-1') if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack('<i', len(raw)) + raw)
        self.memoize(value)
    dispatch = {**pickle._Pickler.dispatch, bytes: string, str: string}     # noqa: RUF012


def pickled(value, pickler=Python2, protocol=2, keys=bytes):
    f = io.BytesIO()
    if keys is str and isinstance(value, dict):
        value = {key.decode(): v for key, v in value.items()}
    pickler(f, protocol).dump(value)
    return f.getvalue().replace(b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n')


def batches(count=20):
    """{file in the archive: (images (count, 3, 32, 32), classes)}."""
    rng, folder = np.random.default_rng(1), 'cifar-10-batches-py'
    return {f'{folder}/{name}': (rng.integers(256, size=(count, 3, 32, 32), dtype=np.uint8), rng.permutation(count) % 10)
            for name in cifar10.TRAIN + cifar10.TEST}


def cifar(path, content, how=(), layout='C', **more):
    """An archive of batches(), with the files of `more` {name: bytes} in place of its own.  how: arguments of pickled()."""
    raw = {name: pickled({b'batch_label': b'training batch 1 of 5', b'labels': y.tolist(), b'filenames': [b'a.png'] * len(y),
                          b'data': np.array(x.reshape(len(x), 3072), order=layout)}, *how)
           for name, (x, y) in content.items()}
    own = {f'cifar-10-batches-py/{name}': value for name, value in more.items()}
    return archive(path, {'cifar-10-batches-py/batches.meta': b'names', 'cifar-10-batches-py/readme.html': b'', **raw, **own})


@pytest.mark.parametrize('layout', 'CF')
@pytest.mark.parametrize('how', [(), *((pickle.Pickler, n, keys) for n in range(6) for keys in (bytes, str))], ids=str)
def test_images_come_back_as_they_were_pickled(root, tmp_path, how, layout):
    content = batches()
    splits, source = cifar10.load(cifar(tmp_path / 'mine.tar.gz', content, how, layout), seed=3)
    assert [len(splits[split][0]) for split in SPLITS] == [90, 10, 20]
    assert source == {'name': 'mine.tar.gz, seed 3', 'sha256': files.digest(tmp_path / 'mine.tar.gz')}
    for group, names in ((('train', 'val'), cifar10.TRAIN), (('test',), cifar10.TEST)):
        parts = [content[f'cifar-10-batches-py/{name}'] for name in names]
        expected = {(x.tobytes(), int(y)) for part in parts for x, y in zip(*part, strict=True)}
        found = [(x.tobytes(), int(y)) for split in group for x, y in zip(*splits[split], strict=True)]
        assert set(found) == expected and len(found) == len(expected)
    assert (splits['test'][0] == content['cifar-10-batches-py/test_batch'][0]).all()
    if not how:
        again, other = (cifar10.load(tmp_path / 'mine.tar.gz', seed)[0] for seed in (3, 4))
        assert (again['val'][0] == splits['val'][0]).all() and (other['val'][0] != splits['val'][0]).any()


def test_cifar10_in_patches(prepare, tmp_path):
    """Against the definition: a patch is channel by channel, row by row."""
    content = batches()
    prepare('cifar10.py', f'--input={cifar(tmp_path / "mine.tar.gz", content)}')
    splits, meta = task_of('cifar10')
    images, classes = content['cifar-10-batches-py/test_batch']
    x, y = splits['test']
    assert x.dtype == np.uint8 and x.shape == (20, 64, 48) and (y == classes).all()
    for image, tokens in zip(images, x, strict=True):
        assert [image[c, 4 * down + i, 4 * right + j] for down in range(8) for right in range(8)
                for c in range(3) for i in range(4) for j in range(4)] == tokens.ravel().tolist()
    assert meta['kind'] == 'classify' and meta['outputs'] == 10 and meta['vocab_size'] == 0
    assert meta['labels'] == ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
    assert meta['draw'] == {'as': 'image', 'height': 32, 'width': 32, 'channels': 3, 'patch': 4}


def test_cifar10_in_gray(prepare, tmp_path):
    """The luma of ITU-R BT.601 pixel by pixel, and the splits of cifar10.py."""
    path = cifar(tmp_path / 'mine.tar.gz', batches())
    prepare('cifar10_gray.py', f'--input={path}')
    prepare('cifar10.py', f'--input={path}')
    gray, meta = task_of('cifar10_gray')
    colour, _ = task_of('cifar10')
    assert meta['vocab_size'] == 256 and gray['train'][0].shape == (90, 1024) and gray['train'][0].dtype == np.uint8
    assert meta['draw'] == {'as': 'image', 'height': 32, 'width': 32, 'channels': 1, 'patch': 1}
    for split in SPLITS:
        assert (gray[split][1] == colour[split][1]).all()
        patches = colour[split][0].reshape(-1, 8, 8, 3, 4, 4)
        for n, row, column in np.random.default_rng(0).integers((10, 32, 32), size=(200, 3)):
            r, g, b = map(int, patches[n, row // 4, column // 4, :, row % 4, column % 4])
            assert gray[split][0][n, 32 * row + column] == (299 * r + 587 * g + 114 * b + 500) // 1000
    assert luma(np.full((1, 3, 32, 32), 255, np.uint8)).min() == 255 and luma(np.zeros((1, 3, 32, 32), np.uint8)).max() == 0


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('named, name', [
    (Evil('{}'), 'posix.system'), (eval, '__builtin__.eval'), (np.random.default_rng, 'numpy.random'), (np.load, 'numpy'),
], ids=['os.system', 'eval', 'default_rng', 'load'])
def test_a_pickle_that_names_a_function_is_refused(prepare, tmp_path, named, name):
    """Nothing that it names is called, and of numpy, not even a dtype is built."""
    if isinstance(named, Evil):
        named = Evil(tmp_path / 'touched')
    path = cifar(tmp_path / 'mine.tar.gz', batches(), data_batch_3=pickled({b'data': named, b'labels': []}, pickle._Pickler))
    assert re.search(rf'uses {name}\S*, ', refuses(prepare, 'cifar10.py', f'--input={path}'))
    assert not (tmp_path / 'touched').exists()
    raw = pickled({'a': np.arange(6), 'b': np.dtype('u1')}, pickle.Pickler)
    assert {type(v) for v in cifar10.Unpickler(io.BytesIO(raw), encoding='bytes').load().values()} == {cifar10.Stub}


@pytest.mark.parametrize('content', [
    b'no pickle', b'', pickled([1, 2]), pickled({b'labels': [1]}),
    pickled({b'labels': [1], b'data': np.zeros((1, 3071), np.uint8)}),
    pickled({b'labels': [1, 2], b'data': np.zeros((1, 3072), np.uint8)}),
    *(pickled({b'labels': [1], b'data': np.zeros((1, 3072), kind)}) for kind in (np.int64, bool, np.int8)),
    *(pickled({b'labels': [y], b'data': np.zeros((1, 3072), np.uint8)}) for y in (-1, 10, 266))])
def test_bad_batches(prepare, tmp_path, content):
    path = cifar(tmp_path / 'mine.tar.gz', batches(), data_batch_2=content)
    assert 'data_batch_2, ' in refuses(prepare, 'cifar10.py', f'--input={path}')


def test_bad_archives(prepare, offline, tmp_path, monkeypatch):
    """A truncated one, one of another version, and one put by hand that has not the published hash."""
    path = cifar(tmp_path / 'mine.tar.gz', batches(4))
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.6, 0.95):
        path.write_bytes(whole[:int(share * len(whole))])
        for script in ('cifar10.py', 'speech_commands.py'):
            assert f'{path} cannot be read as a tar archive' in refuses(prepare, script, f'--input={path}')
    for place in random.Random(0).sample(range(10 + len('mine.tar') + 1, len(whole)), 20):     # gzip's checksum detects it
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        assert str(path) in refuses(prepare, 'cifar10.py', f'--input={path}')
    path = archive(tmp_path / 'cifar-10-binary.tar.gz', {'cifar-10-batches-bin/data_batch_1.bin': b'x'})
    assert f'no data_batch_1: use the version of CIFAR-10 for Python, {cifar10.URL}' in \
        refuses(prepare, 'cifar10.py', f'--input={path}')
    files.DOWNLOADS.mkdir(parents=True, exist_ok=True)
    path = cifar(files.DOWNLOADS / 'cifar-10-python.tar.gz', batches())
    assert f'{path} is not the file at {cifar10.URL}' in refuses(prepare, 'cifar10.py')
    real = files.digest
    monkeypatch.setattr(files, 'digest', lambda path, kind='sha256': cifar10.MD5 if kind == 'md5' else real(path))
    prepare('cifar10.py', '--seed=2', '--name=other')
    assert task_of('other')[1]['source'] == {'name': 'CIFAR-10, seed 2', 'sha256': real(path)}


# Speech Commands --------------------------------------------------------------------------------------------------------

def tone(hertz, rate, seconds=1.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def wav(sound, rate=16000, width=2, form='', streamed=False):
    """The content of a WAV file of sound between -1 and 1: (N,), or (N, channels).  form: extensible, float, or both."""
    channels, top, tag = sound.shape[1] if sound.ndim > 1 else 1, 2 ** (8 * width - 1), 3 if 'float' in form else 1
    if tag == 3:
        raw = sound.astype(f'<f{width}').tobytes()
    else:
        numbers = (sound.ravel() * (top - 1)).round() + (top if width == 1 else 0)
        raw = numbers.astype('<i4').view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    head = struct.pack('<HIIHH', channels, rate, rate * channels * width, channels * width, 8 * width)
    if 'extensible' in form:
        head = b'\xfe\xff' + head + struct.pack('<HHIH', 22, 8 * width, 0, tag) + b'\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71'
    else:
        head = struct.pack('<H', tag) + head
    body = b'WAVEfmt ' + struct.pack('<I', len(head)) + head + b'data'
    sizes = (0xFFFFFFFF,) * 2 if streamed else (len(body) + 4 + len(raw), len(raw))
    return b'RIFF' + struct.pack('<I', sizes[0]) + body + struct.pack('<I', sizes[1]) + raw


def spectrum(sound):
    """The amplitude at each whole frequency of a second of sound, 1 for the loudest tone that a WAV can hold."""
    return np.abs(np.fft.rfft(sound.astype(float))) * 2 / len(sound) / 32767


@pytest.mark.parametrize('rate', [8000, 16000, 44100, 22050, 11025, 6000])
@pytest.mark.parametrize('width, form', [(1, ''), (2, ''), (3, ''), (4, ''), (4, 'float'), (8, 'float'), (2, 'extensible'),
                                         (3, 'extensible'), (4, 'extensible float')])
def test_a_tone_keeps_its_frequency_and_its_loudness(rate, width, form):
    """Also in the file of a program that writes into a pipe, or that is wrong by 8 about the length of the whole."""
    found = speech_commands.second(wav(tone(1000, rate), rate, width, form), 'a.wav')
    raw = wav(tone(1000, rate), rate, width, form)
    for other in (wav(tone(1000, rate), rate, width, form, streamed=True), raw[:4] + struct.pack('<I', len(raw)) + raw[8:]):
        assert (found == speech_commands.second(other, 'a.wav')).all()
    assert found.shape == (8000,) and found.dtype == np.int16
    heard = spectrum(found)
    assert heard.argmax() == 1000 and abs(heard[1000] - 0.5) < 0.005
    expected = 0.5 * 32767 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    assert np.abs(found - expected)[200:-200].max() < (300 if width == 1 else 120)        # its ends ring


@pytest.mark.parametrize('rate', [16000, 44100])
@pytest.mark.parametrize('hertz', [5000, 6000, 7500])
def test_high_tones_are_not_aliased(rate, hertz):
    """Without a filter, every second sample of 6 kHz at 16 kHz is a tone of 2 kHz of the same amplitude."""
    sound = tone(hertz, rate) + tone(1000, rate, amplitude=0.25)
    heard = spectrum(speech_commands.second(wav(sound, rate), 'a.wav'))
    assert abs(heard[1000] - 0.25) < 0.005
    heard[1000] = 0
    assert heard.max() < 0.005
    if rate == 16000:
        assert spectrum(np.rint(32767 * sound[::2]))[8000 - hertz] > 0.49      # without a filter


def test_short_and_long_sounds_and_several_channels():
    half = speech_commands.second(wav(tone(440, 8000, 0.5), 8000), 'a.wav')
    assert (half[4000:] == 0).all() and (half[:4000] == (32767 * tone(440, 8000, 0.5)).round()).all()
    long = speech_commands.second(wav(tone(440, 8000, 1.7), 8000), 'a.wav')
    assert (long == (32767 * tone(440, 8000)).round()).all()
    both = np.stack([tone(1000, 8000), 0 * tone(1000, 8000)], axis=1)
    assert abs(spectrum(speech_commands.second(wav(both, 8000), 'a.wav'))[1000] - 0.25) < 1e-3
    square = speech_commands.second(wav(np.sign(tone(50, 44100) + 1e-9), 44100), 'a.wav')     # overshoots
    assert square.max() == 32767 and square.min() == -32768


WORDS = 'bed', 'no', 'yes'
NAMES = '00000000_nohash_0.wav', '00000001_nohash_0.wav', '00000002.WAV', 'with a blank.wav', '00000004 (1).Wav'


def spoken():
    """{path in the archive: content}: for each word 3 training files, one for validation and one for testing."""
    rng, content, lists = np.random.default_rng(2), {}, {'validation_list.txt': '', 'testing_list.txt': ''}
    rates = iter(5 * [8000, 16000, 44100])
    for word in WORDS:
        for i in range(5):
            rate = next(rates)
            content[f'{word}/{NAMES[i]}'] = wav(rng.uniform(-0.5, 0.5, rate // (1 + i % 2)), rate, 1 + i % 4)
        lists['validation_list.txt'] += f'./{word}/{NAMES[3]}\n'
        lists['testing_list.txt'] += f'{word}\\{NAMES[4]}\r\n\r\n'
    return {**content, **{name: text.encode() for name, text in lists.items()},
            '_background_noise_/noise.wav': wav(tone(50, 16000, 3)), 'bed/._a.wav': b'x', 'README.md': b'read me'}


@pytest.mark.parametrize('form', ['archive', 'lists first', 'folder'])
def test_speech_commands(root, tmp_path, monkeypatch, form):
    """Every file is in the split of the lists, with its word; the lists may be before or after the files."""
    monkeypatch.setattr(speech_commands, 'BLOCK', 4)
    content, path = spoken(), tmp_path / 'mine'
    if form == 'folder':
        for name, raw in content.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(raw)
    else:
        order = sorted(content, key=lambda name: name.endswith('.txt') == (form == 'archive'))
        path = archive(path, {f'./{name}': content[name] for name in order})
    speech_commands.main([f'--input={path}'])
    splits, meta = task_of('speech_commands')
    for split, numbers in (('train', (0, 1, 2)), ('val', (3,)), ('test', (4,))):
        x, y = splits[split]
        assert x.shape == (3 * len(numbers), 100, 80) and x.dtype == np.int16
        expected = {(speech_commands.second(content[f'{word}/{NAMES[i]}'], '').tobytes(), WORDS.index(word))
                  for word in WORDS for i in numbers}
        assert {(a.tobytes(), int(b)) for a, b in zip(x, y, strict=True)} == expected
    assert meta['labels'] == list(WORDS) and meta['outputs'] == 3 and meta['draw'] == {'as': 'wave', 'rate': 8000}
    assert meta['source'] == {'name': 'mine'} | ({} if form == 'folder' else {'sha256': files.digest(path)})
    assert list(files.DOWNLOADS.iterdir()) == []        # temporary files


@pytest.mark.parametrize('content, reason', [
    (b'', 'not understood'), (b'something else', 'not understood'), (wav(tone(50, 8000))[:40], 'not a WAV'),
    (wav(tone(50, 8000))[:-101], 'truncated'), (wav(tone(50, 8000), streamed=True)[:-101], 'multiple'),
    (wav(np.zeros(0)), 'no sound'), (wav(tone(50, 8000)).replace(b'\1\0\1\0', b'\6\0\1\0', 1), 'ALAW'),
    (wav(np.full(9, np.inf), 8000, 4, 'float'), 'finite'),
    (wav(tone(50, 8000), 8000).replace(struct.pack('<I', 8000), bytes(4), 1), 'not a WAV'),
], ids=['empty', 'text', 'header', 'sound', 'half a sample', 'silent', 'A-law', 'infinite', 'no rate'])
def test_bad_sounds(prepare, tmp_path, content, reason):
    path = archive(tmp_path / 'mine.tar.gz', spoken() | {'no/00000001_nohash_0.wav': content})
    printed = refuses(prepare, 'speech_commands.py', f'--input={path}')
    assert 'mine.tar.gz, no/00000001_nohash_0.wav, is not a WAV file' in printed and reason in printed
    assert list(files.DOWNLOADS.iterdir()) == []


VAL, TEST = speech_commands.LISTS


@pytest.mark.parametrize('without, more, reason', [
    (VAL, {}, f'no {VAL}'), (TEST, {}, f'no {TEST}'), ('(?i)[.]wav', {}, 'WORD/NAME.wav'),
    ('no/0000000[0-2]', {}, 'the class no has no examples'), (TEST, {TEST: b' \n'}, 'the test split has no examples'),
    ('no/with', {}, 'lacks 1 of the files in its lists, such as no/with a blank.wav'),
    (VAL, {VAL: b'bed/00000001\nno/x.wav'}, 'lacks 2 of the files in its lists, such as bed/00000001:'),
    (VAL, {VAL: f'bed/{NAMES[4]}'.encode()}, f'bed/{NAMES[4]} is in both lists'),
])
def test_sounds_that_do_not_fit_the_lists(prepare, tmp_path, without, more, reason):
    """Otherwise voices that are held out would be trained on."""
    content = {name: raw for name, raw in spoken().items() if not re.search(without, name)} | more
    path = archive(tmp_path / 'mine.tar.gz', content)
    assert reason in refuses(prepare, 'speech_commands.py', f'--input={path}')


# CYP3A4 -----------------------------------------------------------------------------------------------------------------

RINGS = ['c1ccccc1', 'C1CCCCC1', 'c1ccncc1', 'c1ccoc1', 'C1CCNC1', 'c1ccsc1', 'C1CC1', 'c1c[nH]cc1', 'C1COCCN1',
         'c1ccc2ccccc2c1']
BEFORE = ['C', 'CC', 'OC', 'Cl', 'Br', 'NC(=O)', r'C/C=C\C', '[O-][N+](=O)', 'N#C']
BEHIND = ['C', 'CC', 'CCO', 'OC', 'Cl', 'Br', 'C(=O)O', r'C/C=C\C', 'C[C@@H](N)C', '[N+](=O)[O-]', 'S(=O)(=O)N', 'C#N']


def molecules(count=60):
    """[(SMILES, class)]: rings with side chains, the first ring more frequent than the last, both classes equally."""
    rng = random.Random(5)
    return [(rng.choice(BEFORE) + ring + rng.choice(BEHIND), i % 2)
            for i, ring in enumerate(rng.choices(RINGS, range(len(RINGS), 0, -1), k=count))]


def dataverse(path, rows, delimiter='\t'):
    """A table as Dataverse has it: text in quotes, doubled backslashes."""
    with open(path, 'w', newline='', encoding='utf-8') as f:
        out = csv.writer(f, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC)
        out.writerow(['Drug_ID', 'Drug', 'Y'])
        for i, (smiles, y) in enumerate(rows):
            out.writerow([float(6602571 + i), smiles.replace('\\', '\\\\'), y])
    return path


@pytest.fixture
def no_rdkit(monkeypatch):
    monkeypatch.setitem(sys.modules, 'rdkit', None)


def spelled(x, meta):
    """The SMILES of examples, whose padding must be in front."""
    vocabulary, rows = meta['draw']['tokens'], []
    assert len(vocabulary) == meta['vocab_size'] and vocabulary[:2] == ['<padding>', '<unknown>']
    for row in x.tolist():
        first = next(i for i, token in enumerate(row) if token)
        assert 0 not in row[first:]
        rows.append(''.join(vocabulary[token] for token in row[first:]))
    return rows


@pytest.mark.parametrize('smiles, tokens', [
    ('CCO', 'C C O'), ('BrCCl', 'Br C Cl'), ('c1cc[nH]c1', 'c 1 c c [nH] c 1'),
    (r'C/C=C\C(=O)O', 'C / C = C \\ C ( = O ) O'), ('N[C@@H](C)C(=O)[O-].[Na+]', 'N [C@@H] ( C ) C ( = O ) [O-] . [Na+]'),
    ('C%12CC%12', 'C %12 C C %12'), ('C12=CC', 'C 1 2 = C C'), ('[13CH4]', '[13CH4]'), ('CB(O)O', 'C B ( O ) O'),
    ('C#[C-', 'C # [ C -'),
])
def test_tokens_of_a_molecule(smiles, tokens):
    assert cyp3a4.TOKEN.findall(smiles) == tokens.split()


@pytest.mark.parametrize('characters', [False, True])
@pytest.mark.parametrize('ending', ['.tab', '.csv'])
def test_cyp3a4_split_at_random(prepare, no_rdkit, tmp_path, capsys, characters, ending):
    """Every molecule once, with its class; tokens that are not in the training split are unknown; --longest truncates."""
    rows = [*dict(molecules()).items(), *((f'[{230 + i}U]', i % 2) for i in range(10))]
    path = dataverse(tmp_path / f'mine{ending}', rows, ',' if ending == '.csv' else '\t')
    prepare('cyp3a4.py', f'--input={path}', '--seed=2', *(['--characters'] if characters else []))
    splits, meta = task_of('cyp3a4')
    n = len(rows)
    assert [len(splits[split][0]) for split in SPLITS] == [8 * n // 10, n // 10, n - 8 * n // 10 - n // 10]
    found = [(smiles, int(y)) for x, ys in splits.values() for smiles, y in zip(spelled(x, meta), ys, strict=True)]
    known = set(meta['draw']['tokens'][2:])
    assert known == {token for s in spelled(splits['train'][0], meta)
                     for token in (s if characters else cyp3a4.TOKEN.findall(s))}
    assert meta['split'] == 'random' and meta['labels'] == ['no inhibitor', 'inhibitor'] and meta['outputs'] == 2
    cut = list if characters else cyp3a4.TOKEN.findall
    assert sorted(found) == sorted((''.join(t if t in known else '<unknown>' for t in cut(smiles)), y) for smiles, y in rows)
    assert meta['draw']['as'] == 'text' and (characters or '[N+]' in known)
    assert characters or any('<unknown>' in smiles for smiles, _ in found)
    assert meta['source'] == {'name': f'mine{ending}, {n} molecules, random split', 'sha256': files.digest(path)}
    assert 'pip install rdkit' in capsys.readouterr().out
    prepare('cyp3a4.py', f'--input={path}', '--seed=2', '--longest=7', '--name=short', *['--characters'] * characters)
    short, _ = task_of('short')
    assert all(x.shape[1] == 7 for x, _ in short.values()) and 'more than 7 tokens' in capsys.readouterr().out
    assert (short['train'][0].astype(bool).sum(1) == np.minimum(7, splits['train'][0].astype(bool).sum(1))).all()


def test_cyp3a4_split_by_scaffold(prepare, tmp_path):
    """No scaffold is in two splits, and the most frequent is for training; scaffolds by another function of RDKit."""
    chem = pytest.importorskip('rdkit.Chem')
    murcko = pytest.importorskip('rdkit.Chem.Scaffolds.MurckoScaffold')
    rows = molecules(100)
    prepare('cyp3a4.py', f'--input={dataverse(tmp_path / "mine.tab", rows)}', '--characters')
    splits, meta = task_of('cyp3a4')
    assert meta['split'] == 'scaffold' and sum(len(y) for _, y in splits.values()) == len(rows)
    found, classes = {split: spelled(x, meta) for split, (x, _) in splits.items()}, {}
    for smiles, _ in rows:
        core = chem.MolToSmiles(murcko.GetScaffoldForMol(chem.MolFromSmiles(smiles)), isomericSmiles=False)
        written = ''.join(c if c in meta['draw']['tokens'] else '<unknown>' for c in smiles)
        classes.setdefault(core, []).append(written)
    assert sorted(chain(*found.values())) == sorted(chain(*classes.values())) and len(classes) == len(RINGS)
    for members in classes.values():
        assert len({split for split in SPLITS if set(found[split]) & set(members)}) == 1
    assert set(max(classes.values(), key=len)) <= set(found['train'])
    assert 0.7 < len(found['train']) / len(rows) <= 0.8
    for bad, reason in (([('CCO', 0), ('c1ccccc', 1), ('CCC', 1)], 'bad.tab, line 3: RDKit'),
                        ([('CCO', 0), ('CCC', 1)] * 20, '40 of 40 molecules .* or no ring .* the train split is empty'),
                        ([('CCO', 0)] * 15 + [('C1CC1', 1)] * 5, '15 of 20 molecules .* the val split is empty')):
        path = dataverse(tmp_path / 'bad.tab', bad)
        assert re.search(reason, sentence(prepare, 'cyp3a4.py', f'--input={path}', '--overwrite'))


@pytest.mark.parametrize('text, reason', [
    ('', 'no column Drug and Y'), ('Drug_ID\tSMILES\tY\n1\tCC\t0\n', 'no column Drug '),
    ('Drug_ID,Drug,Y\n1,CC,0\n', 'no column Drug and Y'), ('<html>Too many requests</html>\n', 'no column Drug and Y'),
    ('Drug_ID\tDrug\tY\n1\tCC\t0\n2\t\t1\n', 'line 3, has no'), ('Drug_ID\tDrug\tY\n\n2\t" "\t1\n', 'line 3, has no'),
    ('Drug_ID\tDrug\tY\n1\tCC\t0\n2\n', 'line 3, has no SMILES'), ('Drug_ID\tDrug\tY\n1\tCC\t2\n', "line 2: Y='2'"),
    ('Drug_ID\tDrug\tY\n1\tCC\n', "line 2: Y=''"), ('Drug\tY\nCC\tyes\n', "line 2: Y='yes'"),
    ('Drug_ID\tDrug\tY\n1\t"CC\t0\n' + '2\tCC\t1\n' * 9, 'line 2: '), ('Drug\tY\n\n"CC\t0\nCO"\t1\nCN\t1\n', 'line 3: '),
    (b'Drug\tY\n\xff\xfe\t0\n', 'cannot be read'),
    ('Drug_ID\tDrug\tY\n', 'the train split has no examples'),
    ('Drug\tY\n' + 'CC\t0\nCO\t0\nCN\t0\n' * 10, 'the class inhibitor has no examples'),
])
def test_bad_tables(prepare, no_rdkit, tmp_path, text, reason):
    path = tmp_path / 'mine.tab'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    printed = refuses(prepare, 'cyp3a4.py', f'--input={path}')
    assert 'mine.tab' in printed and reason in printed
