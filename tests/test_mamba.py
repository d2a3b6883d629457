"""Mamba: the scan against its formula and finite differences, the network against transformers'."""

import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import mamba
from harness import optim
from mamba import Scan, scan_plain


def inputs(B=2, T=9, E=3, N=4, dtype=torch.float64):
    """x, dt, A, b, c of a scan."""
    torch.manual_seed(0)
    made = [torch.randn(B, T, E), F.softplus(torch.randn(B, T, E)), -4 * torch.rand(E, N), torch.randn(B, T, N),
            torch.randn(B, T, N)]
    return [v.to(dtype).requires_grad_() for v in made]


@pytest.mark.parametrize('scan', [scan_plain, Scan.apply], ids=['plain', 'fast'])
@torch.no_grad()
def test_scan_is_its_formula(scan):
    """One number at a time, from a state that is not zero."""
    x, dt, A, b, c = inputs()
    begin = torch.randn(2, 3, 4, dtype=torch.float64)
    y, last = scan(x, dt, A, b, c, begin)
    for i in range(2):
        for e in range(3):
            h = begin[i, e].tolist()
            for t in range(9):
                h = [math.exp(dt[i, t, e] * A[e, n]) * h[n] + dt[i, t, e].item() * x[i, t, e].item() * b[i, t, n].item()
                     for n in range(4)]
                assert y[i, t, e].item() == pytest.approx(sum(h[n] * c[i, t, n].item() for n in range(4)), rel=1e-9)
            assert last[i, e].tolist() == pytest.approx(h)


@pytest.mark.parametrize('shape', [(2, 37, 5, 4), (3, 1, 8, 16), (1, 100, 16, 1)])
def test_the_fast_scan_is_the_plain_one(shape):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ins = inputs(*shape, dtype=dtype)
        (plain, h1), (fast, h2) = scan_plain(*ins), Scan.apply(*ins)
        torch.testing.assert_close(plain, fast, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(h1, h2, atol=tolerance, rtol=tolerance)
        weight = torch.randn_like(plain)
        for a, b in zip(torch.autograd.grad((plain * weight).mean(), ins, allow_unused=True),
                        torch.autograd.grad((fast * weight).mean(), ins), strict=True):
            torch.testing.assert_close(a if a is not None else torch.zeros_like(b), b, atol=tolerance, rtol=tolerance)


def test_finite_differences():
    assert torch.autograd.gradcheck(lambda *ins: Scan.apply(*ins)[0], inputs(B=2, T=4, E=2, N=3))


def test_memory_of_the_scan():
    """At most three slabs of (B, T, E, N) are ever made, forward and backward together."""
    ins = inputs(2, 64, 8, 4, torch.float32)
    slab, made = 2 * 64 * 8 * 4, []

    class Slabs(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() >= slab and not any(
                    isinstance(a, torch.Tensor) and a.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
                    for a in args):
                made.append(out.numel() / slab)
            return out
    with Slabs():
        Scan.apply(*ins)[0].sum().backward()
    assert 1 <= sum(made) <= 3


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
    """A random Mamba of transformers', and the folder that it is saved in."""
    from transformers import MambaConfig, MambaForCausalLM
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, state_size=8, num_hidden_layers=3)).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    model.tie_weights()
    folder = tmp_path_factory.mktemp('mamba')
    model.save_pretrained(folder)
    return model, folder


@torch.no_grad()
def test_published_weights_give_the_published_logits(theirs):
    model, folder = theirs
    ours = mamba.Model.from_pretrained(str(folder)).eval()
    x = torch.randint(50, (2, 40))
    torch.testing.assert_close(ours(x)[0], model(x).logits, atol=1e-4, rtol=1e-4)
    assert ours.config.n_layer == 3 and ours.config.d_state == 8 and ours.config.eps == 1e-5


def test_weights_that_do_not_fit_are_refused(theirs, tmp_path):
    weights = load_file(theirs[1] / 'model.safetensors')
    with pytest.raises(ValueError, match='cannot be set to'):
        mamba.Model.from_pretrained(str(theirs[1]), n_layer=5)
    del weights['backbone.layers.1.mixer.D']
    save_file(weights, tmp_path / 'lacking.safetensors')
    with pytest.raises(ValueError, match=r'lack layers\.1\.mixer\.D'):
        mamba.Model.from_pretrained(str(tmp_path / 'lacking.safetensors'))
    save_file({'x': torch.zeros(1)}, tmp_path / 'other.safetensors')
    with pytest.raises(ValueError, match='not the weights of a Mamba'):
        mamba.Model.from_pretrained(str(tmp_path / 'other.safetensors'))


def test_the_start_is_the_papers():
    """Step sizes between dt_min and dt_max, A the negative integers, D one; and nothing else has been zeroed."""
    model = mamba.Model(mamba.Config(n_layer=2, n_embd=64))
    for block in model.layers:
        dt = F.softplus(block.mixer.dt_proj.bias)
        assert 0.001 <= dt.min() < 0.005 and 0.03 < dt.max() <= 0.1
        torch.testing.assert_close(-block.mixer.A_log.exp()[3], -torch.arange(1.0, 17))
        assert (block.mixer.D == 1).all()
        assert block.mixer.dt_proj.weight.abs().max() <= 4 ** -0.5


def test_what_is_decayed():
    groups = {name: kind for kind, members in optim.groups(mamba.Model(mamba.Config.tiny())).items() for name, _ in members}
    mixer = 'layers.0.mixer.'
    assert {groups[mixer + n] for n in ('A_log', 'D', 'dt_proj.bias', 'conv1d.bias')} == {'rest'}
    assert {groups[mixer + n] for n in ('in_proj.weight', 'x_proj.weight', 'dt_proj.weight', 'out_proj.weight')} == {'matrix'}
    assert groups[mixer + 'conv1d.weight'] == 'conv'


def test_other_projections():
    """Every in_proj, x_proj and out_proj is made by the factory, and is what the network computes with."""
    made = []

    class Doubled(nn.Linear):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            made.append(self)

        def forward(self, x):
            return super().forward(2 * x)
    config = mamba.Config.tiny()
    model = mamba.Model(config, linear=Doubled)
    assert len(made) == 3 * config.n_layer and all(m in set(model.modules()) for m in made)
    plain = mamba.Model(config)
    plain.load_state_dict(model.state_dict())
    for block in plain.layers:
        for linear in (block.mixer.in_proj, block.mixer.x_proj, block.mixer.out_proj):
            linear.weight.data *= 2
    x = torch.randint(17, (2, 16))
    torch.testing.assert_close(plain(x)[0], model(x)[0])


@torch.no_grad()
def test_the_window_does_not_end():
    """A text far longer than block_size, in one piece and in steps."""
    model = mamba.Model(mamba.Config.tiny()).eval()
    x = torch.randint(17, (2, 100))
    whole, state = model(x)[0], model.init_state(2)
    for begin, end in ((0, 1), (1, 60), (60, 99), (99, 100)):
        logits, state = model.step(x[:, begin:end], state)
        torch.testing.assert_close(logits, whole[:, end - 1], atol=1e-5, rtol=1e-5)
