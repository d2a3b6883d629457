"""mamba.py: the plain scan against its formula, the fast scan against the plain one, the network against transformers."""

import functools
import json
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import mamba
from harness import optim
from mamba import Scan, scan, scan_plain


def inputs(B=2, T=9, E=3, N=4, dtype=torch.float64):
    """x, dt, A, b, c of a scan."""
    torch.manual_seed(0)
    made = [torch.randn(B, T, E), F.softplus(torch.randn(B, T, E)), -4 * torch.rand(E, N), torch.randn(B, T, N),
            torch.randn(B, T, N)]
    return [v.to(dtype).requires_grad_() for v in made]


@torch.no_grad()
def test_plain_scan_is_the_formula():
    """One number at a time, from a state that is not zero."""
    x, dt, A, b, c = inputs()
    start = torch.randn(2, 3, 4, dtype=torch.float64)
    y, last = scan_plain(x, dt, A, b, c, start)
    for i in range(2):
        for e in range(3):
            h = start[i, e].tolist()
            for t in range(9):
                h = [math.exp(dt[i, t, e] * A[e, n]) * h[n] + dt[i, t, e].item() * x[i, t, e].item() * b[i, t, n].item()
                     for n in range(4)]
                assert y[i, t, e].item() == pytest.approx(sum(h[n] * c[i, t, n].item() for n in range(4)), rel=1e-9)
            assert last[i, e].tolist() == pytest.approx(h)


@pytest.mark.parametrize('shape', [(2, 37, 5, 4), (3, 1, 8, 16), (1, 100, 16, 1)])
def test_fast_scan_is_the_plain_one(shape):
    """Values, last state and gradients, and values from a state that is not zero."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ins, close = inputs(*shape, dtype=dtype), functools.partial(torch.testing.assert_close, atol=tolerance, rtol=tolerance)
        plain, fast = scan_plain(*ins), scan(*ins)
        close(fast, plain)
        weight = torch.randn_like(plain[0])
        expected = torch.autograd.grad((plain[0] * weight).mean(), ins, materialize_grads=True)
        close(torch.autograd.grad((fast[0] * weight).mean(), ins), expected)
        start = torch.randn(shape[0], *shape[2:], dtype=dtype)
        close(scan(*ins, start), scan_plain(*ins, start))


def test_memory_of_the_scan():
    """At most three tensors of (B, T, E, N) are created, forward and backward together."""
    ins, size, created = inputs(2, 64, 8, 4, torch.float32), 2 * 64 * 8 * 4, []

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() >= size and not any(
                    isinstance(a, torch.Tensor) and a.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
                    for a in args):
                created.append(out.numel() / size)
            return out
    with Allocations():
        Scan.apply(*ins)[0].sum().backward()
    assert 1 <= sum(created) <= 3


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
    """(a random Mamba of transformers, the folder that it is saved in)."""
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


@pytest.mark.parametrize(('change', 'settings', 'message'), [
    (lambda w, c: None, {'n_layer': 5}, r"'n_layer': 3.*'n_layer': 5"),
    (lambda w, c: w.pop('backbone.layers.1.mixer.D'), {}, r'layers\.1\.mixer\.D is missing'),
    (lambda w, c: w.update({'backbone.layers.0.mixer.in_proj.bias': torch.zeros(1)}), {}, r'in_proj\.bias has no place'),
    (lambda w, c: w.clear(), {}, 'not the weights of a Mamba'),
    (lambda w, c: c.update(model_type='falcon_mamba'), {}, "model_type='falcon_mamba'")])
def test_weights_that_do_not_fit_are_refused(theirs, tmp_path, change, settings, message):
    weights, described = load_file(theirs[1] / 'model.safetensors'), json.loads((theirs[1] / 'config.json').read_text())
    change(weights, described)
    save_file(weights, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(described))
    with pytest.raises(ValueError, match=message):
        mamba.Model.from_pretrained(str(tmp_path), **settings)


def test_initial_values_are_the_papers():
    """Step sizes between dt_min and dt_max, A the negative integers, D one."""
    model = mamba.Model(mamba.Config(n_layer=2, n_embd=64))
    for block in model.layers:
        dt = F.softplus(block.mixer.dt_proj.bias)
        assert 0.001 <= dt.min() < 0.005 and 0.03 < dt.max() <= 0.1
        torch.testing.assert_close(-block.mixer.A_log.exp()[3], -torch.arange(1.0, 17))
        assert (block.mixer.D == 1).all()
        assert block.mixer.dt_proj.weight.abs().max() <= 4 ** -0.5
    y = torch.tensor([1e-4, 0.1, 1, 30], dtype=torch.float64)
    torch.testing.assert_close(F.softplus(mamba.inverse_softplus(y), threshold=100), y)


def test_only_matrices_and_kernels_are_decayed():
    undecayed = [name for name, _ in optim.groups(mamba.Model(mamba.Config.tiny()))['rest']]
    mixer = 'layers.0.mixer.'
    assert {n.removeprefix(mixer) for n in undecayed if n.startswith(mixer)} == {'A_log', 'D', 'dt_proj.bias', 'conv1d.bias'}


def test_other_projections():
    """Every in_proj, x_proj and out_proj is made by the factory and used."""
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
def test_text_longer_than_the_window():
    model = mamba.Model(mamba.Config.tiny()).eval()
    x = torch.randint(17, (2, 100))
    whole, state = model(x)[0], model.init_state(2)
    for begin, end in ((0, 1), (1, 60), (60, 99), (99, 100)):
        logits, state = model.step(x[:, begin:end], state)
        torch.testing.assert_close(logits, whole[:, end - 1], atol=1e-5, rtol=1e-5)
