"""highorder.py: the networks against independent implementations that read one window, and refinement."""

import dataclasses

import pytest
import torch

import highorder
import mamba
import model as gpt
from piecewise import sum_of_edges
from tests.models.test_contract import influence, perturb, tiny_model


def build(**more):
    return perturb(tiny_model('highorder', more))


X = torch.randint(17, (3, 30), generator=torch.Generator().manual_seed(1))


def strided(block, x):
    """A causal convolution of kernel size 2, as the strided one of the original code: (B, 2N, C) -> (B, N, C)."""
    norm, conv = block
    pairs = norm(x).unflatten(1, (-1, 2)).flatten(2)                                # (B, N, 2C)
    weight = conv.weight.view(-1, conv.P, conv.out_features)
    return sum_of_edges(pairs.flatten(0, 1), weight, conv.n, conv.segments, conv.kind).view(*pairs.shape[:2], -1)


def conv(net, text):
    h = net.first(text[:, -8:].view(3, 4, 2))
    return net.rest[2:](strided(net.rest[1], strided(net.rest[0], h)))[:, 0]


def dual_convolution(net, text):
    h = net.wte(text[:, -8:])
    while h.shape[1] > 1:
        h = net.join(h.view(3, h.shape[1] // 2, -1))
    return net.last(h)[:, 0]


def tail_focus(net, text):
    """By its sketch: two characters, two pairs before them, two fours before those."""
    text = text[:, -14:]
    fours = strided(net.pairs[0], net.pair(text[:, :8].view(3, 4, 2)))              # abcd, efgh
    twos = net.pair(text[:, 8:12].view(3, 2, 2))                                    # ij, kl
    return net.rest(net.focus(text[:, 12:]) + strided(net.tail[0], twos)[:, 0] + strided(net.tail[1], fours)[:, 0])


def low_order_mlp(net, text):
    return net.rest(net.first.weight[text[:, -8:] + 1].mean(1))


def high_order_input(net, text):
    """With one value per character: a matrix product of one-hot vectors, ReLU and a linear layer."""
    norm, _, linear = net.rest[1]
    one_hot = torch.nn.functional.one_hot(text[:, -8:], 17).float().flatten(1)
    return linear(norm(one_hot @ net.first.links.weight).clamp(min=0))


@pytest.mark.parametrize('network, more', [
    (conv, {'n_layer': 3}), (dual_convolution, {}), (tail_focus, {'features': 2, 'block_size': 14}),
    (low_order_mlp, {'normalization': 'none'}), (high_order_input, {'kind': 'discontinuous', 'input_n': 1})],
                         ids=lambda v: getattr(v, '__name__', ''))
def test_networks_by_their_sketches(network, more):
    net = build(network=network.__name__, **more).net
    torch.testing.assert_close(network(net, X), net(X)[:, -1], atol=1e-4, rtol=1e-4)


def test_continuous_characters_share_nodes():
    """17 characters, 18 nodes: each is the mean of two, of which its neighbours use one."""
    first = build(features=1).net.first
    weight = first.links.weight
    assert len(weight) == 18
    torch.testing.assert_close(first(torch.arange(17)[:, None]), (weight[:-1] + weight[1:]) / 2)


def test_plain_twins():
    """kind='linear' is GPT-2 and Mamba; behind a high-order layer over one character is a GPT-2, too."""
    x, plain = X[:, :16], gpt.Model(gpt.Config(16, 17, 1, 2, 16, bias=False)).eval()
    for network, twin, layers in (
            ('transformer', plain, {'h.0.attn.c_attn', 'h.0.attn.c_proj.1'}),
            ('mamba', mamba.Model(mamba.Config(16, 17, 1, 16, 4)).eval(),
             {f'layers.0.mixer.{p}_proj.1' for p in ('in', 'x', 'out')})):
        net = build(network=network, kind='linear').net
        twin.load_state_dict(net.state_dict())
        assert torch.equal(twin(x)[0], net(x))
        high_order = [n for n, m in build(network=network).net.named_modules() if isinstance(m, highorder.PiecewisePolynomial)]
        assert {*high_order} == layers
    net = build(network='high_order_input_transformer', features=1).net
    plain.lm_head.weight = torch.nn.Parameter(torch.empty(17, 16))                  # not tied
    plain.load_state_dict({**{k: v for k, v in net.state_dict().items() if not k.startswith('wte')},
                           'wte.weight': net.wte(torch.arange(17)[:, None])[:, 0].detach()})
    torch.testing.assert_close(plain(x)[0], net(x))


@pytest.mark.parametrize('network', ['high_order', 'high_order_input', 'low_order_mlp'])
def test_centered_sees_both_sides_but_not_itself(network):
    model = build(network=network, centered=True, features=5)
    moved, t = influence(model.infill, X, 17) > 0, torch.arange(30)
    distance = (t[:, None] - t).abs()
    assert torch.equal(moved, (distance <= 2) & (distance > 0)) and model.step is None
    torch.testing.assert_close(model(X)[0][:, :-1], model.infill(X)[:, 1:])


def test_generation_reads_no_further_back_than_training():
    """The levels of tail_focus may see more characters than a window has, by weights that were never trained."""
    model = build(network='tail_focus', features=4, block_size=16)
    assert model.net.reach == 28
    logits, state = model.step(X[:, :30], model.init_state(len(X)))
    torch.testing.assert_close(logits, model(X[:, 14:30])[0][:, -1])
    assert state.shape[1] == 16


@pytest.mark.parametrize('more', [{'n_layer': 2}, {'network': 'conv', 'n_layer': 3}, {'network': 'mamba'},
                                  {'network': 'transformer', 'kind': 'discontinuous'}], ids=str)
def test_refined_networks_keep_their_function(more):
    model = build(**more)
    finer = model.refined(dataclasses.replace(model.config, n=4, segments=4, input_n=3)).eval()
    assert sum(p.numel() for p in finer.parameters()) > sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(finer(X[:, :16])[0], model(X[:, :16])[0], atol=1e-4, rtol=1e-4)
    for change, message in (({'n_embd': 32}, 'n, segments, input_n'), ({'segments': 3}, 'segments=3.*multiple of 2')):
        with pytest.raises(ValueError, match=message):
            model.refined(dataclasses.replace(model.config, **change))
