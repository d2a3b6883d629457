"""wavenet.py: its WaveNets by brute force, the mixture, and the memory in training."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_train

import train
import wavenet
from harness import LEAKS, checkpoint, log, optim
from wavenet import CausalWaveNet, Config, JoiningWaveNet, Model


def config(**changes):
    return dataclasses.replace(Config.tiny(), **changes)


def words(dataset, out_dir, *more):
    return tiny_train(dataset, out_dir, '--arch=wavenet', *more)


@torch.no_grad()
def test_joining_by_brute_force():
    """16 tokens become 4, and 4 become 1, each from its own four neighbours."""
    net, x = JoiningWaveNet(config()), torch.randn(2, 16, 16)
    for norm, linear in zip(net.norms, net.linears, strict=True):
        norm.weight.data, norm.bias.data = torch.rand(64), torch.randn(64)
        x_next = [F.relu(linear(norm(torch.cat([x[:, 4 * i + k] for k in range(4)], dim=-1)))) for i in range(x.shape[1] // 4)]
        x, before = torch.stack(x_next, dim=1), x
        if before.shape[1] == 16:
            first = before
    torch.testing.assert_close(net(first), x)
    assert x.shape == (2, 1, 16)


@torch.no_grad()
def test_causal_wavenet_by_brute_force():
    """Gated unit, residual and skip as in figure 4 of the paper, one position at a time."""
    net, x = CausalWaveNet(config(reads='causal')), torch.randn(2, 11, 16)
    expected, h = torch.zeros(2, 11, 16), x
    for i, d in enumerate((1, 2, 4)):
        w, bias = net.gated[i].weight, net.gated[i].bias                    # (2C, C, 2)
        after = h.clone()
        for t in range(11):
            old = h[:, t - d] if t >= d else torch.zeros(2, 16)
            a, b = (old @ w[:, :, 0].T + h[:, t] @ w[:, :, 1].T + bias).chunk(2, dim=-1)
            z = torch.tanh(a) * torch.sigmoid(b)
            expected[:, t] += net.skip[i](z)
            if i < 2:
                after[:, t] = h[:, t] + net.residual[i](z)
        h = after
    torch.testing.assert_close(net(x), net.out(F.relu(expected)))


@torch.no_grad()
def test_receptive_field_of_the_causal_wavenet():
    """Dilations 1, 2, 4: the token itself and the seven before it."""
    net, x = CausalWaveNet(config(reads='causal')), torch.randn(1, 16, 16)
    for k in range(16):
        changed = x.clone()
        changed[:, k] += 1
        moved = (net(changed) != net(x)).any(-1)[0].nonzero().flatten().tolist()
        assert moved == list(range(k, min(k + 8, 16)))


@torch.no_grad()
def test_alpha_mixes():
    """At 1 the memory has no influence, at 0 the window has none."""
    model = Model(config(n_layer=1)).eval()
    x = torch.randint(17, (2, 32))
    other = torch.cat([(x[:, :16] + 1) % 17, x[:, 16:]], dim=1)
    model.alpha.fill_(1.0)
    assert torch.equal(model(x)[0], model(other)[0]) and torch.equal(model(x)[0], model(x[:, 16:])[0])
    model.alpha.fill_(0.0)
    assert not torch.equal(model(x)[0], model(other)[0])
    assert torch.equal(model(x)[0], model(torch.cat([x[:, :16], other[:, :16]], dim=1))[0])


@pytest.mark.parametrize('per_channel', [False, True])
def test_alpha_is_trained_and_logged_and_never_decayed(dataset, tmp_path, per_channel):
    model = Model(config(alpha=0.25, alpha_per_channel=per_channel))
    assert model.alpha.shape == (16 if per_channel else 1,) and model.metrics() == {'alpha': 0.25}
    groups = optim.groups(model)
    assert 'alpha' in [name for name, _ in groups['rest']]
    train.main(words(dataset, tmp_path / 'run', '--max_iters=10', '--alpha=0.25', f'--alpha_per_channel={per_channel}')[1:])
    logged = [r['alpha'] for r in log.read(tmp_path / 'run' / 'metrics.csv') if 'alpha' in r]
    saved = checkpoint.load(tmp_path / 'run' / 'ckpt.pt')['model']['alpha']
    assert logged[0] == 0.25 and logged[-1] == pytest.approx(saved.mean().item()) and logged[-1] != 0.25


def test_memory_dropout_is_the_same_on_two_processes(dataset, tmp_path, cli):
    more = ['--optimizer=sgd', '--learning_rate=0.5', '--max_iters=6', '--log_interval=1', '--tokens_per_step=128',
            '--memory_dropout=0.5']
    train.main(words(dataset, tmp_path / 'one', *more)[1:])
    done = cli('-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone', *words(dataset, tmp_path / 'two', *more))
    assert done.returncode == 0, done.stderr
    one, two = (checkpoint.load(tmp_path / n / 'ckpt.pt')['model'] for n in ('one', 'two'))
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=1e-5, rtol=1e-4)
    train.main(words(dataset, tmp_path / 'never', *more, '--memory_dropout=0')[1:])
    never = checkpoint.load(tmp_path / 'never' / 'ckpt.pt')['model']
    assert not torch.allclose(one['alpha'], never['alpha'], atol=1e-6)


def test_a_leak_is_announced(dataset, tmp_path, cli, capsys):
    train.main(words(dataset, tmp_path / 'run', '--max_iters=2', '--reads=leak')[1:])
    assert LEAKS in capsys.readouterr().out
    done = cli('sample.py', tmp_path / 'run', '--max_new_tokens=3')
    assert LEAKS in done.stderr and done.returncode == 0
    train.main(words(dataset, tmp_path / 'honest', '--max_iters=2')[1:])
    assert LEAKS not in capsys.readouterr().out


@pytest.mark.parametrize(('change', 'message'), [
    ({'reads': 'future'}, "reads='future'"), ({'block_size': 24}, 'block_size=24'), ({'n_embd': 15}, 'n_embd=15'),
    ({'join': 1}, 'join=1')])
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        config(**change)
    assert wavenet.Config(block_size=24, reads='causal')        # nothing is joined
