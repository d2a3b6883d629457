"""wavenet.py: its WaveNets by brute force, the mixture, and the leak."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_train

import sample
import train
from harness import LEAKS, checkpoint, log, optim
from wavenet import CausalWaveNet, Config, JoiningWaveNet, Model


def test_joining_by_brute_force():
    """16 tokens become 4, and 4 become 1, each from its own four neighbours."""
    net, x = JoiningWaveNet(Config.tiny()), torch.randn(2, 16, 16)
    h = x
    for norm, linear in zip(net.norms, net.linears, strict=True):
        norm.weight.data, norm.bias.data = torch.rand(64), torch.randn(64)
        h = torch.stack([F.relu(linear(norm(torch.cat([h[:, 4 * i + k] for k in range(4)], dim=-1))))
                         for i in range(h.shape[1] // 4)], dim=1)
    assert h.shape == (2, 1, 16)
    torch.testing.assert_close(net(x), h)


def test_causal_wavenet_by_brute_force():
    """Gated unit, residual and skip as in figure 4 of the paper."""
    net, x = CausalWaveNet(replace(Config.tiny(), reads='causal')), torch.randn(2, 11, 16)
    expected, h = torch.zeros(2, 11, 16), x
    for i, d in enumerate((1, 2, 4)):
        w, old = net.gated[i].weight, torch.cat([torch.zeros(2, d, 16), h[:, :-d]], dim=1)       # (2C, C, 2)
        a, b = (old @ w[:, :, 0].T + h @ w[:, :, 1].T + net.gated[i].bias).chunk(2, dim=-1)
        z = torch.tanh(a) * torch.sigmoid(b)
        expected += net.skip[i](z)
        h = h + net.residual[i](z) if i < 2 else None
    torch.testing.assert_close(net(x), net.out(F.relu(expected)))


@torch.no_grad()
def test_alpha_mixes():
    """At 1 the memory has no influence, at 0 the window has none."""
    model = Model(replace(Config.tiny(), n_layer=1)).eval()
    x = torch.randint(17, (2, 32))
    other = torch.cat([(x[:, :16] + 1) % 17, x[:, 16:]], dim=1)
    model.alpha.fill_(1.0)
    assert torch.equal(model(x)[0], model(other)[0]) and torch.equal(model(x)[0], model(x[:, 16:])[0])
    model.alpha.fill_(0.0)
    assert not torch.equal(model(x)[0], model(other)[0])
    assert torch.equal(model(x)[0], model(torch.cat([x[:, :16], other[:, :16]], dim=1))[0])


@pytest.mark.parametrize('reads, per_channel', [('memory', False), ('leak', True)])
def test_a_run_logs_alpha_and_announces_a_leak(dataset, tmp_path, capsys, reads, per_channel):
    train.main(tiny_train(dataset, tmp_path, '--arch=wavenet', '--max_iters=6', f'--reads={reads}', '--alpha=0.25',
                          f'--alpha_per_channel={per_channel}')[1:])
    assert (LEAKS in capsys.readouterr().out) == (reads == 'leak')
    sample.main([str(tmp_path), '--max_new_tokens=3'])
    assert (LEAKS in capsys.readouterr().err) == (reads == 'leak')
    logged = [r['alpha'] for r in log.read(tmp_path / 'metrics.csv') if 'alpha' in r]
    model, _ = checkpoint.load_model(tmp_path / 'ckpt.pt')
    assert model.alpha.shape == (16 if per_channel else 1,)
    assert logged[0] == 0.25 != logged[-1] == pytest.approx(model.alpha.mean().item())
    assert 'alpha' in [name for name, _ in optim.groups(model)['rest']]         # never decayed
