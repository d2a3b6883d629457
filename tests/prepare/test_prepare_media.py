"""The prepare scripts of photographs, spoken words and molecules, from small files of the published formats."""

import csv
import io
import os
import pickle
import random
import re
import struct
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import sentence, task_of, write_tar
from scipy.io import wavfile

from harness import files
from prepare import cifar10, common, cyp3a4, shakespeare_char, speech_commands
from prepare.common import SPLITS
from tests.prepare.test_prepare import fill
from tests.prepare.test_prepare_tasks import pairs


def refuses(prepare, script, *words):
    """The error of a script, which makes nothing."""
    printed = sentence(prepare, script, *words)
    assert not [path for path in (common.ROOT / 'data').glob('*/*') if path.parent != files.DOWNLOADS]
    return printed


@pytest.mark.parametrize('script, url', [
    ('cifar10.py', cifar10.URL), ('speech_commands.py', speech_commands.URL), ('cyp3a4.py', cyp3a4.URL),
    ('shakespeare_char.py', shakespeare_char.URL)])
def test_a_failed_download_can_be_put_by_hand(prepare, offline, script, url):
    """The error names the file and its path; another file there is refused and stays."""
    found = re.search(r'put (\S+) by hand at (\S+)$', refuses(prepare, script))
    path = Path(found[2])
    assert found[1] == url and path.parent == files.DOWNLOADS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'something else, which is long enough\n')
    assert str(path) in refuses(prepare, script) and path.read_bytes() == b'something else, which is long enough\n'


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
    pickler(f, protocol).dump({key.decode(): v for key, v in value.items()} if keys is str else value)
    return f.getvalue().replace(b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n')


def batches(count=20):
    """{file: (images (count, 3, 32, 32), classes)}."""
    rng = np.random.default_rng(1)
    return {name: (rng.integers(256, size=(count, 3, 32, 32), dtype=np.uint8), rng.permutation(count) % 10)
            for name in cifar10.TRAIN + cifar10.TEST}


def cifar(path, content, how=(), layout='C', **more):
    """An archive of batches(), with the files of `more` {name: bytes} in place of its own.  how: arguments of pickled()."""
    raw = {name: pickled({b'batch_label': b'training batch 1 of 5', b'labels': y.tolist(), b'filenames': [b'a.png'] * len(y),
                          b'data': np.array(x.reshape(len(x), 3072), order=layout)}, *how) for name, (x, y) in content.items()}
    return write_tar(path, {f'cifar-10-batches-py/{k}': v for k, v in ({'batches.meta': b'names'} | raw | more).items()})


@pytest.mark.parametrize('layout', 'CF')
@pytest.mark.parametrize('how', [(), *((pickle.Pickler, n, keys) for n in range(6) for keys in (bytes, str))], ids=str)
def test_images_come_back_as_they_were_pickled(root, tmp_path, how, layout):
    content = batches()
    splits, source = cifar10.load(cifar(tmp_path / 'mine.tar.gz', content, how, layout), seed=3)
    assert [len(splits[split][0]) for split in SPLITS] == [90, 10, 20]
    assert source == {'name': 'mine.tar.gz, seed 3', 'sha256': files.digest(tmp_path / 'mine.tar.gz')}
    train, val = pairs(*splits['train']), pairs(*splits['val'])
    assert train | val == set().union(*(pairs(*content[name]) for name in cifar10.TRAIN)) and not train & val
    assert all((a == b).all() for a, b in zip(splits['test'], content['test_batch'], strict=True))
    other = cifar10.load(tmp_path / 'mine.tar.gz', seed=4)[0]
    assert (other['val'][0] != splits['val'][0]).any()


def test_cifar10_in_patches_and_in_gray(prepare, tmp_path):
    """A patch is channel by channel, row by row; gray is the luma of ITU-R BT.601 pixel by pixel, with the same splits."""
    images, classes = batches()['test_batch']
    path = cifar(tmp_path / 'mine.tar.gz', batches())
    (splits, meta), (gray, other) = (task_of(prepare(f'{name}.py', f'--input={path}')) for name in ('cifar10', 'cifar10_gray'))
    (x, y), (pixels, z) = splits['test'], gray['test']
    assert x.dtype == pixels.dtype == np.uint8 and x.shape == (20, 64, 48) and (y == classes).all() and (z == classes).all()
    for image, tokens, lumas in zip(images, x, pixels, strict=True):
        assert [image[c, 4 * down + i, 4 * right + j] for down in range(8) for right in range(8)
                for c in range(3) for i in range(4) for j in range(4)] == tokens.ravel().tolist()
        r, g, b = image.astype(int)
        assert ((299 * r + 587 * g + 114 * b + 500) // 1000).ravel().tolist() == lumas.tolist()
    assert (meta['kind'], meta['outputs'], meta['vocab_size'], other['vocab_size']) == ('classify', 10, 0, 256)
    assert meta['labels'] == ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
    assert meta['draw'] == {'as': 'image', 'height': 32, 'width': 32, 'channels': 3, 'patch': 4}
    assert other['draw'] == meta['draw'] | {'channels': 1, 'patch': 1} and (gray['val'][1] == splits['val'][1]).all()


@pytest.mark.parametrize('content, reason', [
    (b'no pickle', ''), (b'', ''), (pickled({b'labels': [1]}), ''),
    *((pickled({b'labels': [y], b'data': np.zeros(size, kind)}), '') for y, size, kind in (
        (1, 3071, 'u1'), (1, 6144, 'u1'), (1, 3072, '?'), (1, 3072, 'i1'), (-1, 3072, 'u1'), (10, 3072, 'u1'))),
    (b'c__builtin__\nexec\n(S\'import os; os.environ["EVIL"] = "1"\'\ntR.', '__builtin__.exec'),
    *((pickled({b'data': named, b'labels': []}, pickle.Pickler), name) for named, name in (
        (os.system, 'posix.system'), (np.random.default_rng, 'numpy'), (np.load, 'numpy')))], ids=range(13))
def test_bad_batches(prepare, tmp_path, content, reason):
    """Nothing that a pickle names is called, and of numpy, not even a dtype is built."""
    printed = refuses(prepare, 'cifar10.py', f'--input={cifar(tmp_path / "mine.tar.gz", batches(), data_batch_3=content)}')
    assert (reason or 'data_batch_3, ') in printed and 'EVIL' not in os.environ
    raw = pickled({'a': np.arange(6), 'b': np.dtype('u1')}, pickle.Pickler)
    assert {type(v) for v in cifar10.Unpickler(io.BytesIO(raw), encoding='bytes').load().values()} == {cifar10.Stub}


def test_bad_archives(prepare, tmp_path):
    """A truncated one, one with a bit that flipped, which only gzip's checksum shows, and one of another version."""
    path = cifar(tmp_path / 'mine.tar.gz', batches(4))
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.6, 0.95):
        path.write_bytes(whole[:int(share * len(whole))])
        assert f'{path} cannot be read as a tar archive' in refuses(prepare, 'cifar10.py', f'--input={path}')
    for place in random.Random(0).sample(range(10 + len('mine.tar') + 1, len(whole)), 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        assert str(path) in refuses(prepare, 'cifar10.py', f'--input={path}')
    path = write_tar(tmp_path / 'binary.tar.gz', {'cifar-10-batches-bin/data_batch_1.bin': b'x'})
    assert 'no data_batch_1' in refuses(prepare, 'cifar10.py', f'--input={path}')


# Speech Commands --------------------------------------------------------------------------------------------------------

def tone(hertz, rate, seconds=1.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def wav(sound, rate=16000, kind='i2', streamed=False):
    """The content of a WAV file of sound between -1 and 1: (N,), or (N, channels).  kind: of its samples, and their bytes."""
    f, integers = io.BytesIO(), (sound * (2.0 ** (8 * int(kind[1]) - 1) - 1)).round() + 128 * (kind == 'u1')
    wavfile.write(f, rate, (sound if kind[0] == 'f' else integers).astype(kind))
    raw, size = f.getvalue(), f.getvalue().index(b'data') + 4
    return raw[:4] + b'\xff' * 4 + raw[8:size] + b'\xff' * 4 + raw[size + 4:] if streamed else raw


def second(sound, rate, *kind):
    return speech_commands.second(wav(sound, rate, *kind), 'a.wav')


def spectrum(sound):
    """The amplitude at each whole frequency of a second of sound, 1 for the loudest tone that a WAV can hold."""
    return np.abs(np.fft.rfft(sound.astype(float))) * 2 / len(sound) / 32767


@pytest.mark.parametrize('rate', [8000, 16000, 44100, 22050, 11025, 6000])
@pytest.mark.parametrize('kind', ['u1', 'i2', 'i4', 'f4', 'f8'])
def test_a_tone_keeps_its_frequency_and_its_loudness(rate, kind):
    """Also in the file of a program that writes into a pipe, or that is wrong by 8 about the length of the whole."""
    raw = wav(tone(1000, rate), rate, kind)
    found, wrong = second(tone(1000, rate), rate, kind), raw[:4] + struct.pack('<I', len(raw)) + raw[8:]
    for other in (wav(tone(1000, rate), rate, kind, streamed=True), wrong):
        assert (found == speech_commands.second(other, 'a.wav')).all()
    heard, expected = spectrum(found), 32767 * tone(1000, 8000)
    assert heard.argmax() == 1000 and abs(heard[1000] - 0.5) < 0.005 and found.dtype == np.int16
    assert np.abs(found - expected)[200:-200].max() < (300 if kind == 'u1' else 120)        # its ends ring


def test_aliases_channels_and_lengths():
    """Without a filter, every second sample of 6 kHz at 16 kHz is a tone of 2 kHz of the same amplitude."""
    for rate in (16000, 44100):
        for hertz in (5000, 6000, 7500):
            heard = spectrum(second(tone(hertz, rate) + tone(1000, rate, amplitude=0.25), rate))
            assert abs(heard[1000] - 0.25) < 0.005 and np.delete(heard, 1000).max() < 0.005
    assert (second(tone(440, 8000, 0.5), 8000) == np.pad((32767 * tone(440, 8000, 0.5)).round(), (0, 4000))).all()
    assert (second(tone(441, 8000, 1.7), 8000) == (32767 * tone(441, 8000)).round()).all()
    both = np.stack([tone(1000, 8000), 0 * tone(1000, 8000)], axis=1)
    assert abs(spectrum(second(both, 8000))[1000] - 0.25) < 1e-3
    square = second(np.sign(tone(50, 44100) + 1e-9), 44100)     # overshoots
    assert square.max() == 32767 and square.min() == -32768


WORDS = 'bed', 'no', 'yes'
NAMES = '00000000_nohash_0.wav', '00000001_nohash_0.wav', '00000002.WAV', 'with a blank.wav', '00000004 (1).Wav'
VAL, TEST = speech_commands.LISTS


def spoken():
    """{path in the archive: content}: for each word 3 training files, one for validation and one for testing."""
    rng, rates = np.random.default_rng(2), iter(5 * [8000, 16000, 44100])
    content = {f'{word}/{name}': wav(rng.uniform(-0.5, 0.5, 4000 * (1 + i % 2)), next(rates), ('u1', 'i2', 'i4')[i % 3])
               for word in WORDS for i, name in enumerate(NAMES)}
    return content | {VAL: ''.join(f'./{word}/{NAMES[3]}\n' for word in WORDS).encode(), 'README.md': b'read me',
                      TEST: ''.join(f'{word}\\{NAMES[4]}\r\n\r\n' for word in WORDS).encode(), 'bed/._a.wav': b'x',
                      '_background_noise_/noise.wav': wav(tone(50, 16000, 3))}


@pytest.mark.parametrize('form', ['archive', 'lists first', 'folder'])
def test_speech_commands(root, tmp_path, monkeypatch, form):
    """Every file is in the split of the lists, with its word; the lists may be before or after the files."""
    monkeypatch.setattr(speech_commands, 'BLOCK', 4)
    content, path = spoken(), tmp_path / 'mine'
    order = sorted(content, key=lambda name: name.endswith('.txt') == (form == 'archive'))
    if form == 'folder':
        fill(path, content)
    else:
        write_tar(path, {f'./{name}': content[name] for name in order})
    speech_commands.main([f'--input={path}'])
    splits, meta = task_of('speech_commands')
    for split, numbers in (('train', (0, 1, 2)), ('val', (3,)), ('test', (4,))):
        x, y = splits[split]
        assert x.shape == (3 * len(numbers), 100, 80) and x.dtype == np.int16
        assert pairs(x, y) == {
            (speech_commands.second(content[f'{word}/{NAMES[i]}'], '').tobytes(), WORDS.index(word))
            for word in WORDS for i in numbers}
    assert meta['labels'] == list(WORDS) and meta['outputs'] == 3 and meta['draw'] == {'as': 'wave', 'rate': 8000}
    assert meta['source'] == {'name': 'mine'} | ({} if form == 'folder' else {'sha256': files.digest(path)})
    assert list(files.DOWNLOADS.iterdir()) == []        # temporary files


SOUND = wav(tone(50, 8000), 8000)


@pytest.mark.parametrize('without, more, reason', [     # files that are left out, others, and what the error must name
    *(('^$', {f'no/{NAMES[1]}': content}, f'mine.tar.gz, no/{NAMES[1]}, .*{reason}') for content, reason in (
        (b'', 'not understood'), (SOUND[:40], 'not a WAV'), (SOUND[:-101], 'truncated'), (wav(np.zeros(0)), 'no sound'),
        (wav(tone(50, 8000), streamed=True)[:-101], 'multiple'), (wav(np.full(9, np.inf), 8000, 'f4'), 'finite'),
        (SOUND.replace(struct.pack('<I', 8000), bytes(4), 1), 'not a WAV'))),
    (VAL, {}, f'no {VAL}'), ('(?i)[.]wav', {}, 'WORD/NAME.wav'), ('no/0000000[0-2]', {}, 'the class no has no examples'),
    ('no/with', {}, 'lacks 1 of the files in its lists, such as no/with a blank.wav'),
    (VAL, {VAL: f'bed/{NAMES[4]}'.encode()}, f'bed/{re.escape(NAMES[4])} is in both lists')], ids=range(12))
def test_bad_sounds_and_lists(prepare, tmp_path, without, more, reason):
    """Where they do not fit the lists, voices that are held out would be trained on."""
    content = {name: raw for name, raw in spoken().items() if not re.search(without, name)} | more
    assert re.search(reason, refuses(prepare, 'speech_commands.py', f'--input={write_tar(tmp_path / "mine.tar.gz", content)}'))
    assert list(files.DOWNLOADS.iterdir()) == []


# CYP3A4 -----------------------------------------------------------------------------------------------------------------

RINGS = ['c1ccccc1', 'C1CCCCC1', 'c1ccncc1', 'c1ccoc1', 'C1CCNC1', 'c1ccsc1', 'C1CC1', 'c1c[nH]cc1', 'c1ccc2ccccc2c1']
BEFORE = ['C', 'CC', 'OC', 'Cl', 'Br', 'NC(=O)', r'C/C=C\C', '[O-][N+](=O)', 'N#C']
BEHIND = ['C', 'CC', 'CCO', 'OC', 'Cl', 'Br', 'C(=O)O', r'C/C=C\C', 'C[C@@H](N)C', '[N+](=O)[O-]', 'S(=O)(=O)N', 'C#N']


def molecules(count=60):
    """[(SMILES, class)]: rings with side chains, the first ring more frequent than the last, both classes equally."""
    rng = random.Random(5)
    return [(rng.choice(BEFORE) + ring + rng.choice(BEHIND), i % 2)
            for i, ring in enumerate(rng.choices(RINGS, range(len(RINGS), 0, -1), k=count))]


def dataverse(path, rows):
    """A table as Dataverse has it: text in quotes, doubled backslashes."""
    with open(path, 'w', newline='', encoding='utf-8') as f:
        out = csv.writer(f, delimiter=',' if path.suffix == '.csv' else '\t', quoting=csv.QUOTE_NONNUMERIC)
        out.writerow(['Drug_ID', 'Drug', 'Y'])
        out.writerows([float(6602571 + i), smiles.replace('\\', '\\\\'), y] for i, (smiles, y) in enumerate(rows))
    return path


def spelled(x, meta):
    """The SMILES of examples, whose padding must be in front."""
    vocabulary, rows = np.array(meta['draw']['tokens']), [row[np.flatnonzero(row)[0]:] for row in x]
    assert len(vocabulary) == meta['vocab_size'] and [*vocabulary[:2]] == ['<padding>', '<unknown>'] and all(map(np.all, rows))
    return [''.join(vocabulary[row]) for row in rows]


@pytest.mark.parametrize('ending, words, cut', [('.tab', [], cyp3a4.TOKEN.findall), ('.csv', ['--characters'], list)])
def test_cyp3a4_split_at_random(prepare, monkeypatch, tmp_path, capsys, ending, words, cut):
    """Every molecule once, with its class; tokens that are not in the training split are unknown; --longest truncates."""
    monkeypatch.setitem(sys.modules, 'rdkit', None)
    assert cyp3a4.TOKEN.findall(r'N[C@@H]C/C=C\C%12(B)C12=Br.[Na+]ClC#[C-') == [
        *('N', '[C@@H]', *r'C/C=C\C', '%12', *'(B)C12=', 'Br', '.', '[Na+]', 'Cl', *'C#[C-')]
    rows = [*dict(molecules()).items(), *((f'[{230 + i}U]', i % 2) for i in range(10))]
    path, n = dataverse(tmp_path / f'mine{ending}', rows), len(rows)
    splits, meta = task_of(prepare('cyp3a4.py', f'--input={path}', '--seed=2', *words))
    assert [len(splits[split][0]) for split in SPLITS] == [8 * n // 10, n // 10, n - 8 * n // 10 - n // 10]
    found = [(smiles, int(y)) for x, ys in splits.values() for smiles, y in zip(spelled(x, meta), ys, strict=True)]
    known = set(meta['draw']['tokens'][2:])
    assert known == {token for smiles in spelled(splits['train'][0], meta) for token in cut(smiles)}
    assert sorted(found) == sorted((''.join(t if t in known else '<unknown>' for t in cut(smiles)), y) for smiles, y in rows)
    assert words or any('<unknown>' in smiles for smiles, _ in found)
    assert (meta['split'], meta['outputs'], meta['draw']['as']) == ('random', 2, 'text')
    assert meta['source'] == {'name': f'mine{ending}, {n} molecules, random split', 'sha256': files.digest(path)}
    assert 'pip install rdkit' in capsys.readouterr().out
    short, _ = task_of(prepare('cyp3a4.py', f'--input={path}', '--seed=2', '--longest=7', '--name=short', *words))
    assert all(x.shape[1] == 7 for x, _ in short.values()) and 'more than 7 tokens' in capsys.readouterr().out
    assert (short['train'][0].astype(bool).sum(1) == np.minimum(7, splits['train'][0].astype(bool).sum(1))).all()


def test_cyp3a4_split_by_scaffold(prepare, tmp_path):
    """No scaffold is in two splits, and the most frequent is for training; scaffolds by another function of RDKit."""
    chem = pytest.importorskip('rdkit.Chem')
    murcko = pytest.importorskip('rdkit.Chem.Scaffolds.MurckoScaffold')
    rows = molecules(100)
    splits, meta = task_of(prepare('cyp3a4.py', f'--input={dataverse(tmp_path / "mine.tab", rows)}', '--characters'))
    found = {smiles: split for split, (x, _) in splits.items() for smiles in spelled(x, meta)}
    classes = defaultdict(set)      # scaffold: its splits
    for smiles, _ in rows:
        written = ''.join(c if c in meta['draw']['tokens'] else '<unknown>' for c in smiles)
        core = murcko.GetScaffoldForMol(chem.MolFromSmiles(smiles))
        classes[chem.MolToSmiles(core, isomericSmiles=False)].add(found[written])
    assert len(classes) == len(RINGS) and all(len(where) == 1 for where in classes.values())
    assert classes['c1ccccc1'] == {'train'} and 70 < len(splits['train'][0]) <= 80 and meta['split'] == 'scaffold'
    assert sum(len(y) for _, y in splits.values()) == len(rows)
    for bad, reason in (([('CCO', 0), ('c1ccccc', 1), ('CCC', 1)], 'bad.tab, line 3: RDKit'),
                        ([('CCO', 0), ('CCC', 1)] * 20, '40 of 40 molecules .* or no ring .* the train split is empty'),
                        ([('CCO', 0)] * 15 + [('C1CC1', 1)] * 5, '15 of 20 molecules .* the val split is empty')):
        path = dataverse(tmp_path / 'bad.tab', bad)
        assert re.search(reason, sentence(prepare, 'cyp3a4.py', f'--input={path}', '--overwrite'))


@pytest.mark.parametrize('text, reason', [
    ('', 'no column Drug and Y'), ('Drug_ID\tSMILES\tY\n1\tCC\t0\n', 'no column Drug '), ('Drug,Y\n', 'no column Drug and'),
    ('Drug\tY\nCC\t0\n\t1\n', 'line 3, has no'), ('Drug\tY\nCC\t2\n', "line 2: Y='2'"), ('Drug\tY\nCC\n', "line 2: Y=''"),
    ('Drug\tY\n\n"CC\t0\nCO"\t1\nCN\t1\n', 'line 3: '), ('Drug\tY\n\xff\t0\n', 'cannot be read'),
    ('Drug\tY\n', 'the train split'), ('Drug\tY\n' + 'CC\t0\n' * 30, 'the class inhibitor has no examples')], ids=range(10))
def test_bad_tables(prepare, monkeypatch, tmp_path, text, reason):
    monkeypatch.setitem(sys.modules, 'rdkit', None)
    (tmp_path / 'mine.tab').write_text(text, encoding='latin-1')
    printed = refuses(prepare, 'cyp3a4.py', f'--input={tmp_path / "mine.tab"}')
    assert 'mine.tab' in printed and reason in printed
