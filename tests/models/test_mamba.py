"""mamba.py: the plain scan against its formula, the fast scan against the plain one, and its initial values."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import bench
import mamba
from harness import optim
from mamba import Scan, scan_plain


def inputs(B=2, T=9, E=3, N=4, dtype=torch.float64):
    """x, dt, A, b, c of a scan."""
    torch.manual_seed(0)
    made = torch.randn(B, T, E), torch.randn(B, T, E).exp(), -4 * torch.rand(E, N), torch.randn(B, T, N), torch.randn(B, T, N)
    return [v.to(dtype).requires_grad_() for v in made]


@torch.no_grad()
def test_plain_scan_is_the_formula():
    """One number at a time, from a state that is not zero."""
    x, dt, A, b, c = inputs()
    start = torch.randn(2, 3, 4, dtype=torch.float64)
    y, last = scan_plain(x, dt, A, b, c, start)
    for i, e in itertools.product(range(2), range(3)):
        h = start[i, e].tolist()
        for t in range(9):
            u = (dt[i, t, e] * x[i, t, e]).item()
            h = [math.exp(dt[i, t, e] * A[e, n]) * h[n] + u * b[i, t, n].item() for n in range(4)]
            assert y[i, t, e].item() == pytest.approx(sum(h[n] * c[i, t, n].item() for n in range(4)), rel=1e-9)
        assert last[i, e].tolist() == pytest.approx(h)


WAYS = {'whole': (2 ** 19, False), 'pieces': (200, False), 'GPU': (200, True), 'compiled': (200, None)}     # PIECE, parallel


def scan(ins, start, way):
    """A fast form; the pieces of the compiled one are not compiled here, which would take half a minute for each shape."""
    if way != 'compiled':
        return Scan.apply(*ins, start, WAYS[way][1])
    x, _, A, *_ = ins
    return mamba.compiled_scan(*ins, x.new_zeros(len(x), *A.shape) if start is None else start)[:2]


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('shape', [(2, 37, 5, 4), (3, 1, 8, 16), (1, 100, 16, 1), (2, 2, 3, 2), (1, 64, 3, 2), (1, 7, 2, 3)])
def test_fast_scan_is_the_plain_one(shape, way, monkeypatch):
    """Values, last state and gradients, from a state that is zero or not; the decays of a window multiply to 0 in float32."""
    monkeypatch.setattr(mamba, 'PIECE', WAYS[way][0])
    monkeypatch.setattr(mamba, 'compiled', lambda f: f)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ins, close = inputs(*shape, dtype=dtype), functools.partial(torch.testing.assert_close, atol=tolerance, rtol=tolerance)
        for start in (None, torch.randn(shape[0], *shape[2:], dtype=dtype)):
            plain, fast = scan_plain(*ins, start), scan(ins, start, way)
            close(fast, plain)
            weight = torch.randn_like(plain[0])
            expected = torch.autograd.grad((plain[0] * weight).mean(), ins, materialize_grads=True)
            close(torch.autograd.grad((fast[0] * weight).mean(), ins), expected)


class Calls(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        self.count += 1
        return f(*args, **(kwargs or {}))


@pytest.mark.parametrize('way, most', [('pieces', 1.5), ('GPU', 3.5)])
def test_memory_and_operations_of_the_scan(way, most, monkeypatch):
    """In pieces: the states and little more.  On a GPU: three tensors of (B, T, E, N), and no loop over tokens."""
    monkeypatch.setattr(mamba, 'PIECE', 512)
    calls = []
    for T in (64, 512):
        ins = inputs(2, T, 32, 32, torch.float32)

        def both_ways(ins=ins):
            scan(ins, None, way)[0].sum().backward()
        with Calls() as counter:
            both_ways()
        calls.append(counter.count)
        assert 1 <= bench.peak(both_ways) / (4 * 2 * T * 32 * 32) <= most
    assert way == 'pieces' or calls[1] < calls[0] + 100


def test_torch_knows_the_shapes_and_gradients_of_the_compiled_scan(monkeypatch):
    monkeypatch.setattr(mamba, 'compiled', lambda f: f)
    torch.library.opcheck(mamba.compiled_scan, (*inputs(), torch.zeros(2, 3, 4, dtype=torch.float64)))


@pytest.mark.parametrize('way', ['compiled', 'GPU'])
def test_a_compiled_mamba_is_the_same(way, monkeypatch):
    """On a CPU, and as on a GPU, where views are written in place."""
    monkeypatch.setattr(mamba, 'compiled', lambda f: f)
    if way == 'GPU':
        monkeypatch.setattr(mamba, 'scan', lambda *ins: Scan.apply(*ins, True))
    torch.manual_seed(0)
    model, (x, y) = mamba.Model(mamba.Config.tiny()), torch.randint(17, (2, 3, 16))
    losses, slopes = [], []
    for net in (model, torch.compile(model, backend='aot_eager', fullgraph=True)):
        model.zero_grad()
        loss = net(x, y)[1]
        loss.backward()
        losses.append(loss)
        slopes.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*slopes, atol=1e-5, rtol=1e-4)


def test_initial_values_are_the_papers():
    """Step sizes between dt_min and dt_max, A the negative integers, D one; only matrices and kernels are decayed."""
    model = mamba.Model(mamba.Config(n_layer=2, n_embd=64))
    undecayed = {name.removeprefix('layers.0.mixer.') for name, _ in optim.groups(model)['rest'] if '.0.mixer' in name}
    assert undecayed == {'A_log', 'D', 'dt_proj.bias', 'conv1d.bias'}
    for block in model.layers:
        dt = F.softplus(block.mixer.dt_proj.bias)
        assert 0.001 <= dt.min() < 0.005 and 0.03 < dt.max() <= 0.1
        torch.testing.assert_close(-block.mixer.A_log.exp()[3], -torch.arange(1.0, 17))
        assert (block.mixer.D == 1).all() and block.mixer.dt_proj.weight.abs().max() <= 4 ** -0.5
    y = torch.tensor([1e-4, 0.1, 1, 30], dtype=torch.float64)
    torch.testing.assert_close(F.softplus(mamba.inverse_softplus(y), threshold=100), y)
