"""highorder.py: windows that slide against one window at a time, and the networks it takes from elsewhere against those."""

import dataclasses

import pytest
import torch

import highorder
import mamba
import model as gpt
from highorder import Config, Model
from tests.test_contract import stir

SLIDING = [{'n_layer': 0}, {'n_layer': 3}, {'network': 'high_order_input', 'n_layer': 2}, {'network': 'low_order_mlp'},
           {'network': 'conv', 'n_layer': 3}, {'network': 'tail_focus', 'features': 4}, {'network': 'dual_convolution'},
           {'kind': 'discontinuous', 'input_n': 1}, {'kind': 'fourier', 'n': 3, 'normalization': 'maxabs'}]


def build(**more):
    torch.manual_seed(0)
    return stir(Model(dataclasses.replace(Config.tiny(), **more))).eval()


@pytest.fixture
def x():
    return torch.randint(17, (3, 30), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('more', SLIDING, ids=str)
def test_sliding_is_one_window_at_a_time(more, x):
    """What is trained at every position of a long window is, at each of them, the network on the last `reach` characters."""
    model = build(**more)
    reach = model.net.reach
    whole = model(x)[0]
    for t in range(x.shape[1]):
        torch.testing.assert_close(model(x[:, max(0, t + 1 - reach):t + 1])[0][:, -1], whole[:, t], atol=1e-4, rtol=1e-4)
    if reach < x.shape[1]:      # and it does not see further
        changed = x.clone()
        changed[:, -1 - reach] = (x[:, -1 - reach] + 1) % 17
        assert torch.equal(model(changed)[0][:, -1], whole[:, -1])


def test_conv_is_strided(x):
    """The seed's: strides over one window until one vector is left."""
    net = build(network='conv', n_layer=3).net
    h = net.first(x[:, -8:].view(3, 4, 2))                                          # the first stride is over characters
    for norm, conv in list(net.rest)[:2]:
        h = norm(h)
        h = torch.stack([plain(conv, h[:, i:i + 2].flatten(1)) for i in range(0, h.shape[1], 2)], dim=1)
    torch.testing.assert_close(net.rest[2:](h)[:, 0], net(x)[:, -1], atol=1e-4, rtol=1e-4)


def plain(conv, x):
    """The layer of a convolution's kernel, on the one window x (B, K * C)."""
    first, values = conv.basis(x)
    return conv.expand(first, values) @ conv.weight


def test_dual_convolution_halves(x):
    """The seed's: the same layers, again and again, until one vector is left."""
    net = build(network='dual_convolution').net
    h = net.wte(x[:, -8:])
    while h.shape[1] > 1:
        h = net.join(h.view(3, h.shape[1] // 2, -1))
    torch.testing.assert_close(net.last(h)[:, 0], net(x)[:, -1], atol=1e-4, rtol=1e-4)


def test_tail_focus_is_coarser_and_coarser(x):
    """4 characters, 4 pairs before them, 4 fours before those, each summary made of the two in it."""
    model = build(network='tail_focus', features=4)
    net = model.net
    assert net.reach == 4 + 8 + 16
    h = net.focus(x[:, -4:])
    for i, tail in enumerate(net.tail, 1):
        size, end = 2 ** i, x.shape[1] - 4 * (2 ** i - 1)
        parts = net.pair(x[:, end - 4 * size:end].view(3, -1, 2))                   # pairs, then pairs of them
        for norm, conv in net.pairs[:i - 1]:
            parts = torch.stack([plain(conv, norm(parts[:, j:j + 2]).flatten(1)) for j in range(0, parts.shape[1], 2)], dim=1)
        norm, conv = tail
        h = h + plain(conv, norm(parts).flatten(1))
    torch.testing.assert_close(net.rest(h), model(x)[0][:, -1], atol=1e-4, rtol=1e-4)


def test_the_mean_of_a_bag(x):
    model = build(network='low_order_mlp')
    bag = model.net.first.weight[x[:, -8:] + 1].mean(1)
    torch.testing.assert_close(model.net.rest(bag), model(x)[0][:, -1])
    start = model.net.first.weight[x[:, :2] + 1].mean(1)        # of what is there
    torch.testing.assert_close(model.net.rest(start), model(x)[0][:, 1])


def test_one_value_a_character_is_one_hot(x):
    """high_order_input with input_n 1 is the plain ReLU network on one-hot characters."""
    model = build(network='high_order_input', kind='discontinuous', input_n=1)
    one_hot = torch.nn.functional.one_hot(x[:, -8:], 17).float().flatten(1)
    torch.testing.assert_close(model.net.rest(one_hot @ model.net.first.links.weight), model(x)[0][:, -1])


def test_linear_twins_are_the_originals(x):
    x = x[:, :16]
    net = build(network='transformer', kind='linear').net
    c = gpt.Config(16, 17, 1, 2, 16, bias=False)
    plain = gpt.Model(c).eval()
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain(x)[0], net(x))
    net = build(network='mamba', kind='linear').net
    plain = mamba.Model(mamba.Config(16, 17, 1, 16, 4)).eval()
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain(x)[0], net(x))


@pytest.mark.parametrize('network', ['transformer', 'mamba'])
def test_what_is_high_order(network):
    model = build(network=network)
    names = {n.rsplit('.', 1)[0] for n, m in model.named_modules() if isinstance(m, highorder.PiecewisePolynomial)}
    wanted = {'transformer': {'net.h.0.attn.c_attn', 'net.h.0.attn.c_proj'},
              'mamba': {f'net.layers.0.mixer.{p}_proj' for p in ('in', 'x', 'out')}}[network]
    assert {n.removesuffix('.1') for n in names} == wanted if network == 'mamba' else \
        {n for n, m in model.named_modules() if isinstance(m, highorder.PiecewisePolynomial)} \
        == {'net.h.0.attn.c_attn', 'net.h.0.attn.c_proj.1'}


def test_the_input_transformer_of_one_character_is_a_gpt(x):
    """A high-order layer over one character is a table, as an embedding is."""
    model = build(network='high_order_input_transformer', features=1)
    plain = gpt.Model(dataclasses.replace(model.config.gpt())).eval()
    weights = model.net.state_dict()
    table = model.net.wte(torch.arange(17)[:, None])[:, 0].detach()
    plain.lm_head.weight = torch.nn.Parameter(torch.empty(17, 16))      # not tied
    plain.load_state_dict({k: v for k, v in weights.items() if not k.startswith('wte')} | {'wte.weight': table})
    torch.testing.assert_close(plain(x[:, :16])[0], model(x[:, :16])[0])


@pytest.mark.parametrize('network', ['high_order', 'high_order_input', 'low_order_mlp'])
def test_centered_sees_both_sides_but_not_itself(network, x):
    model = build(network=network, centered=True, features=5)
    before = model.both_sides(x)
    for k in (0, 7, 29):
        changed = x.clone()
        changed[:, k] = (x[:, k] + 1) % 17
        moved = (model.both_sides(changed) - before).abs().amax((0, 2)) > 0
        assert set(moved.nonzero().flatten().tolist()) == {i for i in (k - 2, k - 1, k + 1, k + 2) if 0 <= i < 30}
    # forward() says of the token after each what both_sides() says of it
    torch.testing.assert_close(model(x)[0][:, :-1], before[:, 1:])
    assert model.step is None


@pytest.mark.parametrize('more', [{'n_layer': 2}, {'network': 'conv', 'n_layer': 3}, {'network': 'mamba'},
                                  {'network': 'transformer', 'kind': 'discontinuous'}], ids=str)
def test_refined_networks_keep_their_function(more, x):
    model = build(**more)
    finer = model.refined(dataclasses.replace(model.config, n=4, segments=4, input_n=3)).eval()
    assert sum(p.numel() for p in finer.parameters()) > sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(finer(x[:, :16])[0], model(x[:, :16])[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('change, said', [({'n_embd': 32}, 'another n, segments, input_n, and nothing else'),
                                          ({'segments': 3}, 'a multiple of 2 segments')])
def test_refinements_that_are_none(change, said):
    model = build()
    with pytest.raises(ValueError, match=said):
        model.refined(dataclasses.replace(model.config, **change))


@pytest.mark.parametrize('wrong, said', [
    ({'network': 'hi_order'}, "network='hi_order' is unknown: high_order, high_order_input"),
    ({'kind': 'spline'}, "kind='spline' is unknown"), ({'segments': 0}, 'n=2 and segments=0 must be at least 1'),
    ({'n': 0}, 'n=0 and segments=2 must be at least 1'), ({'input_n': 1}, 'n=1 is a constant'),
    ({'input_segments': 16}, 'vocab_size=17 is above input_segments=16: each token needs a segment of its own'),
    ({'kind': 'fourier', 'n': 4}, 'n=4 must be odd'), ({'centered': True}, 'an odd number of features'),
    ({'centered': True, 'features': 9, 'network': 'conv', 'n_layer': 2}, 'centered takes an MLP'),
    ({'network': 'conv', 'n_layer': 2}, 'a number to the power of n_layer'), ({'features': 0}, 'features=0 must be at least 1'),
    ({'network': 'dual_convolution', 'features': 12}, 'takes a power of 2'),
    ({'centered': True, 'features': 1}, 'an odd number of features from 3 on'),
    ({'kind': 'linear'}, "take network='high_order_input'"),
    ({'normalization': 'batch'}, "normalization='batch' is unknown: layer, maxabs, maxcenter, none are"),
    ({'network': 'transformer', 'n_head': 3}, 'n_embd=16 is not divisible by n_head=3')])
def test_bad_settings(wrong, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(Config.tiny(), **wrong)
