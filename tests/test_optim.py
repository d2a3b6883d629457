"""Optimizers: which parameter is treated how, Lion by its formula, the plateau by torch's own scheduler."""

import dataclasses
import math
import random

import pytest
import torch
import torch.nn.functional as F

import train
from harness import optim


class Net(torch.nn.Module):
    """A module of every kind; nothing of it is computed."""

    def __init__(self):
        super().__init__()
        self.config = dataclasses.make_dataclass('C', ['vocab_size'])(7)
        self.embed, self.other = torch.nn.Embedding(7, 4), torch.nn.Embedding(5, 4)
        self.hidden, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.conv, self.norm = torch.nn.Conv2d(4, 4, 3), torch.nn.LayerNorm(4)
        self.marked, self.frozen = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
        self.marked.weight.no_weight_decay = True
        self.frozen.weight.requires_grad = False
        self.free = torch.nn.Parameter(torch.zeros(4, 4))


class Product(torch.nn.Module):
    """x @ kernel, or rows of it where x are indices: what is no Linear, and marks its weight as a matrix."""

    def __init__(self, in_features, out_features, matrix=True):
        super().__init__()
        self.out_features = out_features
        self.kernel, self.bias = (torch.nn.Parameter(torch.randn(*shape, out_features)) for shape in ((in_features,), ()))
        self.kernel.matrix = matrix

    def forward(self, x):
        return (F.embedding(x, self.kernel) if x.dtype == torch.long else x @ self.kernel) + self.bias


def decays(model, name):
    """{id of a parameter: its weight decay}"""
    return {id(p): g['weight_decay'] for o in optim.build(model, name, 1e-3, (0.9, 0.95), 0.1)
            for g in o.param_groups for p in g['params']}


def test_parameters_are_grouped_by_the_type_of_their_module():
    net = Net()
    names = {kind: {n for n, _ in params} for kind, params in optim.groups(net).items()}
    assert names == {'matrix': {'hidden.weight'}, 'head': {'embed.weight'}, 'conv': {'conv.weight'},
                     'rest': {'other.weight', 'hidden.bias', 'conv.bias', 'norm.weight', 'norm.bias', 'marked.weight', 'free'}}
    for name in optim.STATES:
        decay = decays(net, name)
        assert len(decay) == 10
        for n, p in net.named_parameters():
            if p.requires_grad:
                assert decay[id(p)] == (0.1 if n in ('hidden.weight', 'embed.weight', 'conv.weight') else 0.0), n


def test_a_matrix_of_ones_own_is_marked():
    """As a Linear's is it grouped, decayed, and given to Muon; no_weight_decay comes first, and a matrix = False is none."""
    net = Net()
    net.product, net.table, net.out = Product(4, 4), Product(4, 4, matrix=False), Product(4, 7)
    net.both = Product(4, 4)
    net.both.kernel.no_weight_decay = True
    found = {n: kind for kind, params in optim.groups(net).items() for n, _ in params}
    assert {n: k for n, k in found.items() if 'kernel' in n} == {
        'product.kernel': 'matrix', 'table.kernel': 'rest', 'out.kernel': 'head', 'both.kernel': 'rest'}
    assert found['product.bias'] == 'rest' and found['hidden.weight'] == 'matrix'
    for name in optim.STATES:
        decay = decays(net, name)
        assert [decay[id(m.kernel)] for m in (net.product, net.table, net.out, net.both)] == [0.1, 0.0, 0.1, 0.0], name
    muon, _ = optim.build(net, 'muon', 1e-3, (0.9, 0.95), 0.1)
    assert {id(p) for g in muon.param_groups for p in g['params']} == {id(net.product.kernel), id(net.hidden.weight)}
    net.config.vocab_size = None            # of a task: no head
    assert {n for n, _ in optim.groups(net)['head']} == set()


@pytest.mark.parametrize('sparse', [False, True], ids=['lion', 'sparse_lion'])
def test_lion_is_its_formula(sparse):
    """u = sign(b1 m + (1 - b1) g); w -= lr (u + wd w); m = b2 m + (1 - b2) g, one number at a time; the sparse one does none of
    it where g is 0."""
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(3, 8, dtype=torch.double))
    lion = optim.Lion([w], lr=0.1, betas=(0.9, 0.99), weight_decay=0.2, sparse=sparse)
    own, m = w.flatten().tolist(), [0.0] * 24
    for _ in range(6):
        w.grad = torch.randn(3, 8, dtype=torch.double) * torch.randint(2, (3, 8))
        for i, g in enumerate(w.grad.flatten().tolist()):
            if sparse and g == 0:
                continue
            u = 0.9 * m[i] + 0.1 * g
            u = math.copysign(1, u) if u else 0
            own[i] -= 0.1 * (u + 0.2 * own[i])
            m[i] = 0.99 * m[i] + 0.01 * g
        lion.step()
    torch.testing.assert_close(w.flatten().tolist(), own)
    torch.testing.assert_close(lion.state[w]['momentum'].flatten().tolist(), m)


def test_what_has_no_gradient_does_not_move():
    """Of a table of 500 rows each batch reads a few. Through build() and clipping, with decay: the others keep weight and
    momentum to the bit, also those that were read before, and all that are read move; plain Lion moves every row."""
    moved = {}
    for name in ('lion', 'sparse_lion'):
        torch.manual_seed(0)
        net = torch.nn.Sequential(Product(500, 6), Product(6, 7))
        net.config = dataclasses.make_dataclass('C', ['vocab_size'])(7)
        optimizer, = optim.build(net, name, 1e-2, (0.9, 0.95), 0.1)
        table, seen = net[0].kernel, torch.zeros(500, dtype=torch.bool)
        for step in range(5):
            x = torch.randint(500, (20,))
            optimizer.zero_grad()
            F.cross_entropy(net(x), x % 7).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)
            weight, momentum = table.detach().clone(), optimizer.state[table].get('momentum', torch.zeros_like(table)).clone()
            optimizer.step()
            moved[name] = (table != weight).any(1)
            read = torch.zeros_like(seen).index_fill(0, x, True)
            if name == 'sparse_lion':
                assert torch.equal(moved[name], read) and torch.equal(table[~read], weight[~read])
                assert torch.equal(optimizer.state[table]['momentum'][~read], momentum[~read])
                assert not torch.equal(optimizer.state[table]['momentum'][read], momentum[read])
            assert not step or (seen & ~read).any()
            seen |= read
    assert moved['lion'].all() and not moved['sparse_lion'].all()


def test_where_every_gradient_counts_sparse_lion_is_lion():
    torch.manual_seed(0)
    dense, sparse = (torch.nn.Parameter(torch.linspace(-1, 1, 1000)) for _ in range(2))
    optimizers = [optim.Lion([p], 0.01, weight_decay=0.1, sparse=p is sparse) for p in (dense, sparse)]
    for _ in range(20):
        dense.grad = sparse.grad = torch.randn(1000)
        for o in optimizers:
            o.step()
    torch.testing.assert_close(dense, sparse)


def losses_of(intervals):
    """A loss that falls and comes to rest, in intervals of a few steps."""
    rng = random.Random(0)
    return [[1 + 3 * 0.8 ** i + rng.gauss(0, 0.05) for _ in range(rng.randint(1, 4))] for i in range(intervals)]


def test_a_plateau_is_torchs_own():
    """The rate is that which ReduceLROnPlateau gives a real optimizer for the mean of each interval; as good after a restart
    anywhere, and however the losses are handed over."""
    loop = train.Loop(schedule='plateau', learning_rate=0.3, min_lr=0.02, patience=2, factor=0.6)
    sgd = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    expected = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, factor=0.6, patience=2, min_lr=0.02)
    whole, cut = optim.Plateau(loop), optim.Plateau(loop)
    rates = []
    for losses in losses_of(60):
        expected.step(sum(losses) / len(losses))
        whole.watch(losses)
        cut.watch(losses[:2])
        state, cut = cut.state_dict(), optim.Plateau(loop)
        cut.load_state_dict(state)
        cut.watch(losses[2:])
        assert cut.state_dict() == whole.state_dict() and whole.count == len(losses)
        for plateau in (whole, cut):
            plateau.judge()
        rates.append(train.learning_rate(loop, 1000, 0.5, whole.left))
        assert rates[-1] == pytest.approx(sgd.param_groups[0]['lr'])
        assert cut.left == whole.left and whole.count == 0
    assert rates[0] == 0.3 and rates[-1] == pytest.approx(0.02) and len(set(rates)) == 7       # 0.3 * 0.6 ** 5 is above 0.02


def test_no_plateau_is_seen_where_none_is_asked_for():
    plateau = optim.Plateau(train.Loop(schedule='constant', patience=0))
    for losses in losses_of(60):
        plateau.watch(losses)
        plateau.judge()
    assert plateau.left == 1
    plateau.judge()                     # an evaluation before any step
    assert plateau.left == 1
