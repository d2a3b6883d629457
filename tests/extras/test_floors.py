"""Floors: Kneser-Ney by its definition and against nltk's, the windows that are judged, tasks against scikit-learn, marks."""

import math
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import sentence

from extras import floors
from harness import data
from harness.tasks import TaskData
from prepare import common
from race import statistics, tables

TEXT = np.random.default_rng(0).integers(0, 4, 300) * np.random.default_rng(1).integers(0, 2, 300)


def by_definition(tokens, n, V, D, context, word):
    """p(word | context) from counts of tuples; D: {length: discount}, or None."""
    k = min(n, len(context) + 1)
    context, tokens = tuple(context[len(context) - k + 1:]), tuple(tokens)

    def grams(k):
        return [tokens[i:i + k] for i in range(len(tokens) - k + 1)]
    counts = Counter(grams(k)) if k == n else Counter(g[1:] for g in set(grams(k + 1)))
    once, twice = (sum(c == i for c in Counter(counts).values()) for i in (1, 2))
    d = D if D is not None else once / (once + 2 * twice) if once else 0.5
    after = {g: c for g, c in counts.items() if g[:-1] == context}
    lower, total = by_definition(tokens, n, V, D, context[1:], word) if k > 1 else 1 / V, sum(after.values())
    return (max(after.get((*context, word), 0) - d, 0) + d * len(after) * lower) / total if total else lower


@pytest.mark.parametrize('n', [1, 2, 3, 5])
@pytest.mark.parametrize('D', [None, 0.3])
def test_kneser_ney_by_its_definition(n, D):
    """With tokens that the text does not have, contexts that it does not have, and contexts shorter than n - 1."""
    model, rng = floors.KneserNey(TEXT, n, 6, D), np.random.default_rng(2)
    for length in (0, 1, n - 1, n + 2):
        context = rng.integers(0, 6 if length == n - 1 else 4, (5, length))
        p = np.stack([model.probabilities(context, np.full(5, w)) for w in range(6)], axis=1)
        expected = [[by_definition(TEXT.tolist(), n, 6, D, row, w) for w in range(6)] for row in context.tolist()]
        assert np.allclose(p.sum(1), 1) and (p > 0).all() and np.allclose(p, expected, rtol=1e-12, atol=0)


def test_kneser_ney_against_nltk():
    """nltk discounts all lengths but the single tokens, by one number."""
    lm = pytest.importorskip('nltk.lm', reason='the reference implementation')
    from nltk.util import everygrams
    text, n = [str(t) for t in TEXT], 3
    other = lm.KneserNeyInterpolated(n, discount=0.4)
    other.fit([list(everygrams(text, max_len=n))], sorted(set(text)))
    ours = floors.KneserNey(TEXT, n, 4, 0.4)
    ours.discounts[0] = 0.0
    for context in ([0, 1], [3, 0], [2, 2], [1]):
        p = ours.probabilities(np.tile(context, (4, 1)), np.arange(4))
        assert p == pytest.approx([other.score(str(w), map(str, context)) for w in range(4)], rel=1e-9)


def test_floors_of_a_text(dataset, tmp_path, monkeypatch):
    """Losses of the windows that the runs are judged on, each token given those of its window; trees are measured before."""
    gbm = pytest.importorskip('lightgbm') and pytest.importorskip('extras.gbm')
    gbm.main([f'--dataset={dataset.name}', '--block_size=16', '--eval_windows=20', '--rounds=2', '--examples=500',
              '--features=4', f'--out={tmp_path / "floor-trees"}'])
    text = data.TextData(dataset)
    gpt = SimpleNamespace(name='gpt', data=text, predicts='every', model=SimpleNamespace(block_size=16),
                          settings=SimpleNamespace(train=SimpleNamespace(dataset=dataset.name)))
    monkeypatch.setattr(floors, 'PIECE', 100)
    equal, unigram, ngram, part, trees = floors.measure(gpt, 20, tmp_path, ('tokens', 400))
    assert equal['val_loss'] == equal['val_loss_full'] == pytest.approx(math.log(text.vocab_size))
    n = int(ngram['name'].partition('-')[0])
    assert n > 2 and ngram['val_loss'] < unigram['val_loss'] - 0.3 < equal['val_loss']
    model = floors.KneserNey(text.tokens['train'], n, text.vocab_size)
    windows = [text.tokens['val'][s:s + 17].astype(int) for s in text.val_indices(20, 16)]
    losses = [[-math.log(model.probabilities(w[None, :t + 1], w[t + 1:t + 2])[0]) for t in range(16)] for w in windows]
    assert (ngram['val_loss'], ngram['val_loss_full']) == pytest.approx((np.mean(losses), np.mean(losses, 0)[-1]))
    assert trees['val_loss_full'] > 0 and trees.keys() == {'name', 'val_loss_full'}
    train = text.tokens['train']
    pieces = [train[i:i + 100] for i in (int(k * (len(train) - 100) / 3) for k in range(4))]
    few = floors.KneserNey(np.concatenate(pieces), n, text.vocab_size)
    losses = [[-math.log(few.probabilities(w[None, :t + 1], w[t + 1:t + 2])[0]) for t in range(16)] for w in windows]
    assert part['val_loss'] == pytest.approx(np.mean(losses)) and part['val_loss'] > ngram['val_loss']


@pytest.mark.parametrize('kind', ['classify', 'bits', 'regress'])
def test_floors_of_a_task(task_data, kind):
    """The nearest neighbour by hand; linear answers, which solve these tasks nearly."""
    pytest.importorskip('sklearn', reason='floors of tasks need it')
    task = data.open_data(task_data(kind).name)
    near, linear = floors.measure(SimpleNamespace(name='fpt', data=task, predicts='task'), 0, None)
    assert isinstance(task, TaskData) and near['name'] == 'nearest neighbour'
    (x, y), (xt, yt) = (tuple(np.asarray(a) for a in task.splits[split]) for split in ('train', 'test'))
    flat, test = x.reshape(len(x), -1).astype(float), xt.reshape(len(xt), -1).astype(float)
    answer = y[((test[:, None] - flat[None]) ** 2).sum(-1).argmin(1)]
    by_hand = np.abs(answer - yt).mean() if kind == 'regress' else (answer == yt).mean()
    assert near[task.metric] == pytest.approx(by_hand, rel=0.1)         # neighbours at the same distance
    assert linear[task.metric] < 0.01 * task.chance('test')[task.metric] if kind == 'regress' else linear[task.metric] > 0.9


def test_what_has_no_floors(task_data, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    task = SimpleNamespace(name='fpt', data=data.open_data(task_data('bits').name), predicts='task')
    assert 'pip install scikit-learn' in sentence(floors.measure, task, 0, None)
    text = SimpleNamespace(modality='masked text', unit='windows', meta={})
    masked = SimpleNamespace(name='bert', data=text, predicts='every')
    assert 'bert is trained on masked text data' in sentence(floors.measure, masked, 0, None)
    text.meta['answers'] = {}
    assert 'a text with answers' in sentence(floors.measure, masked, 0, None)


def test_a_floor_above_all_entrants_is_marked():
    from tests.race.test_report import record, task_record
    r = task_record('accuracy', {'fpt': [0.5, 0.52, 0.51], 'urt': [0.6, 0.61, 0.62]})
    r['floors'] = [{'name': 'nearest neighbour', 'accuracy': 0.7}, {'name': 'ridge regression', 'accuracy': 0.55}]
    for headers, rows in (tables.task_table(r), tables.tables(r)[0]):
        assert [row[0] for row in rows[-2:]] == ['floor: nearest neighbour (above all entrants!)', 'floor: ridge regression']
        assert [row[headers.index('test accuracy')] for row in rows[-2:]] == ['70.0%', '55.0%']
    assert any('without a network: nearest neighbour.' in s for s in statistics.notes(r))
    assert tables.across([r, task_record('accuracy', {'fpt': [0.5], 'urt': [0.6]})])[1][-1] == [
        'best floor', '70.0% (nearest neighbour)!', '']
    r = record(floors=[{'name': 'grams', 'val_loss': 1.2, 'val_loss_full': 1.3}, {'name': 'trees', 'val_loss_full': 1.9}])
    *_, grams, trees = tables.tables(r)[0][1]
    assert grams == ['floor: grams (above all entrants!)', '', '1.200', '', '1.300', '']
    assert trees[2:] == ['', '', '1.900', ''] and '| floor: trees' in tables.short(r)


def test_tokens_are_features_of_0_or_1(root):
    """The class is the first token: no linear function of its number, but one of which token it is."""
    pytest.importorskip('sklearn', reason='floors of tasks need it')
    rng, splits = np.random.default_rng(0), {}
    for split, n in (('train', 300), ('val', 50), ('test', 50)):
        x = rng.integers(0, 5, (n, 4)).astype(np.uint8)
        splits[split] = x, np.array([2, 0, 1, 0, 2], np.uint8)[x[:, 0]]
    common.write_task('first', 'classify', splits, 3, {'name': 'first'}, 'first.py', vocab_size=5, numbers=True)
    _, linear = floors.of_task(SimpleNamespace(data=data.open_data('first')))
    assert linear == {'name': 'logistic regression', 'accuracy': 1.0, 'error': 0.0}
