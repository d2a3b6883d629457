"""Optimizers: the group of each parameter, Lion by its formula, Muon and the plateau by torch's own."""

import dataclasses
import math
import random
import re
from types import SimpleNamespace

import pytest
import torch

import train
from harness import optim
from harness.arch import load_arch


class Product(torch.nn.Module):
    """Multiplies by its kernel, but is no Linear: it marks its weight."""
    config = SimpleNamespace(vocab_size=7)

    def __init__(self, in_features, out_features, matrix=True):
        super().__init__()
        self.out_features = out_features
        self.kernel = torch.nn.Parameter(torch.randn(in_features, out_features))
        self.bias = torch.nn.Parameter(torch.randn(out_features))
        self.kernel.matrix = matrix


class Net(torch.nn.Module):
    """A module of each kind, by the name of the group its weights belong to."""
    config = Product.config

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.matrix = nn.ModuleList([nn.Linear(4, 4), nn.LSTM(4, 3, 2, proj_size=2), nn.GRUCell(4, 4), Product(4, 4),
                                     nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, kdim=3, vdim=3)])
        self.head = nn.ModuleList([nn.Linear(4, 7, bias=False), Product(4, 7)])
        self.other = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.Bilinear(2, 3, 4), nn.Linear(4, 1), Product(1, 4), nn.GRU(1, 4)])
        self.rest = nn.ModuleList([nn.Embedding(5, 4), nn.LayerNorm(4), Product(4, 4, matrix=False), nn.Linear(4, 4),
                                   Product(4, 4)])
        self.rest.free = nn.Parameter(torch.zeros(4, 4))
        self.rest[3].weight.no_weight_decay = self.rest[4].kernel.no_weight_decay = True
        self.tied = nn.Embedding(7, 4)
        self.tied.weight = self.head[0].weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


@pytest.mark.parametrize('name', optim.STATES)
def test_groups_follow_the_type_of_the_module_and_its_marks(name):
    """Only matrices and kernels are decayed, and Muon has those of two dimensions."""
    net = Net()
    table, names = {kind: {p for _, p in params} for kind, params in optim.groups(net).items()}, dict(net.named_parameters())
    for path, p in names.items():
        expected = 'rest' if 'bias' in path else path.split('.')[0]
        if path == 'other.4.weight_hh_l0':              # of a GRU whose input is a single number
            expected = 'matrix'
        assert [kind for kind, params in table.items() if p in params] == [expected] * p.requires_grad, path
    assert sum(map(len, table.values())) == sum(p.requires_grad for p in names.values())
    optimizers = optim.build(net, name, 1e-3, (0.9, 0.95), 0.1)
    decay = {p: g['weight_decay'] for o in optimizers for g in o.param_groups for p in g['params']}
    assert decay == {p: 0.0 if kind == 'rest' else 0.1 for kind, params in table.items() for p in params}
    if name == 'muon':
        assert set(optimizers[0].param_groups[0]['params']) == table['matrix']
    net.config = SimpleNamespace(vocab_size=None)
    assert not optim.groups(net)['head']


@pytest.mark.parametrize('name', ['model', 'llama', 'pacing', 'mamba', 'wavenet'])
def test_a_width_that_is_the_vocabulary_makes_no_heads(name):
    arch = load_arch(name)
    kinds = [{kind: [n for n, _ in params] for kind, params in optim.groups(arch.Model(dataclasses.replace(
        arch.Config.tiny(), vocab_size=size))).items()} for size in (16, 18)]
    assert arch.Config.tiny().n_embd == 16 and kinds[0] == kinds[1] and len(kinds[0]['head']) == 1


def test_dry_run_reports_unmarked_matrices():
    net = torch.nn.ModuleList([torch.nn.Embedding(7, 32), Product(32, 128)])
    net.config = Product.config
    del net[1].kernel.matrix
    assert re.search('note: 92% of the parameters.*matrix = True', optim.describe(net, 'muon', 1))
    net[1].kernel.no_weight_decay = True
    assert 'note' not in optim.describe(net, 'muon', 1)


@pytest.mark.parametrize('name', ['lion', 'sparse_lion'])
def test_lion_is_its_formula(name):
    """u = sign(b1 m + (1 - b1) g); w -= lr (u + wd w); m = b2 m + (1 - b2) g, number by number; sparse: not where g is 0."""
    torch.manual_seed(0)
    net = Product(3, 8).double()
    (lion,), w = optim.build(net, name, 0.1, (0.9, 0.99), 0.2), net.kernel
    own, m = w.flatten().tolist(), [0.0] * 24
    for _ in range(6):
        w.grad = torch.randn(3, 8, dtype=torch.double) * torch.randint(2, (3, 8))
        for i, g in enumerate(w.grad.flatten().tolist()):
            if name == 'sparse_lion' and g == 0:
                continue
            u = 0.9 * m[i] + 0.1 * g
            own[i] -= 0.1 * ((math.copysign(1, u) if u else 0) + 0.2 * own[i])
            m[i] = 0.99 * m[i] + 0.01 * g
        lion.step()
    torch.testing.assert_close(w.flatten().tolist(), own)
    torch.testing.assert_close(lion.state[w]['momentum'].flatten().tolist(), m)


@pytest.mark.parametrize('most', [optim.MOST, 100])
def test_muon_is_torchs(monkeypatch, most):
    """The same steps as torch.optim.Muon's, to the precision of its bfloat16, and a state that either can resume from."""
    monkeypatch.setattr(optim, 'MOST', most)
    torch.manual_seed(0)
    start = [torch.randn(8, 20), torch.randn(20, 8), torch.randn(8, 20)]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizers = [cls(params, lr=0.01, weight_decay=0.1, adjust_lr_fn='match_rms_adamw')
                  for cls, params in ((optim.Muon, ours), (torch.optim.Muon, theirs))]
    for step in range(6):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for o in optimizers:
            o.step()
        if step == 2:
            for o, state in zip(optimizers, [o.state_dict() for o in reversed(optimizers)], strict=True):
                o.load_state_dict(state)
    for p, q, was in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.02 * (q - was).norm()


@pytest.mark.parametrize('shape', [(3, 24, 24), (2, 16, 30), (2, 30, 16), (2, 16, 48), (2, 64, 8)])
def test_orthogonalize_is_the_iteration(shape, monkeypatch):
    """... in float64, one matrix at a time; the singular values are from 1 down to 1e-6, and one matrix is zero."""
    monkeypatch.setattr(optim.device, 'has_bfloat16', lambda: False)
    torch.manual_seed(0)
    a, b, c = coefficients = 3.4445, -4.7750, 2.0315
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    x = u * torch.logspace(0, -6, u.shape[2]) @ v
    x[-1] = 0
    for found, y in zip(optim.orthogonalize(x, coefficients, 5, 1e-7), x.double(), strict=True):
        y = y / y.norm().clamp(min=1e-7)
        for _ in range(5):
            y = a * y + b * y @ y.T @ y + c * y @ y.T @ y @ y.T @ y
        torch.testing.assert_close(found.double(), y, atol=1e-3, rtol=0)      # a quarter of bfloat16's


def test_schedules():
    def rate(step, progress, left=1.0, **more):
        cfg = train.TrainConfig(**{'learning_rate': 1.0, 'min_lr': 0.1, 'warmup_iters': 10} | more)
        return pytest.approx(optim.learning_rate(cfg, step, progress, left))
    assert [rate(0, 0), rate(50, 0.5), rate(99, 1)] == [0.1, 0.55, 0.1]
    assert [rate(50, p, schedule='trapezoid', cooldown=0.2) for p in (0.5, 0.8, 0.9, 1)] == [1, 1, 0.55, 0.1]
    assert [rate(50, 1, 0.3, schedule=s) for s in ('constant', 'plateau')] == [1, 0.3]
    assert rate(4, 0, 0.3, schedule='plateau') == 0.15
    auto = train.TrainConfig(schedule='constant', learning_rate=1.0, warmup_iters='auto')
    for budget, warm in ((20, 2), (100, 10), (5000, 99)):       # a tenth of the budget, at most 100 steps
        rates = [optim.learning_rate(auto, step, step / budget) for step in range(budget)]
        assert rates == sorted(rates) and rates[0] > 0 and rates[warm - 1] < 1 == rates[warm]


def test_the_plateau_is_torchs_and_its_state_is_exact():
    """The rates of ReduceLROnPlateau on the mean loss of each interval, also after a restart within each interval."""
    rng = random.Random(0)
    cfg = train.TrainConfig(schedule='plateau', learning_rate=0.3, min_lr=0.02, patience=2, factor=0.6)
    sgd, rates = torch.optim.SGD([torch.zeros(1)], lr=0.3), []
    expected = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, factor=0.6, patience=2, min_lr=0.02)
    whole, cut, constant = optim.Plateau(cfg), optim.Plateau(cfg), optim.Plateau(train.TrainConfig(patience=0))
    constant.judge()                            # before any step
    for i in range(60):
        losses = [1 + 3 * 0.8 ** i + rng.gauss(0, 0.05) for _ in range(rng.randint(1, 4))]
        expected.step(sum(losses) / len(losses))
        for plateau in (whole, cut, constant):
            plateau.watch(losses[:2])
        state, cut = cut.state_dict(), optim.Plateau(cfg)
        cut.load_state_dict(state)
        for plateau in (whole, cut, constant):
            plateau.watch(losses[2:])
            assert plateau.count == len(losses)
            plateau.judge()
        rates.append(0.3 * whole.left)
        assert rates[-1] == pytest.approx(sgd.param_groups[0]['lr'])
        assert cut.state_dict() == whole.state_dict() and constant.left == 1
    assert rates[-1] == pytest.approx(0.02) and len(set(rates)) == 7       # 0.3 * 0.6 ** 5 is above 0.02
