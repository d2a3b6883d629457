"""views/links.py: what the figures show, read back from them, against the layers themselves."""

import math
import re
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import highorder
from harness.arch import complete
from piecewise import PiecewisePolynomial, PiecewisePolynomialConv1d
from views import links
from views.behaviour import influence, png, surprise

V = 17
SHAPES = [('continuous', 2, 2, False), ('continuous', 3, 20, False), ('continuous', 4, 3, True), ('discontinuous', 1, 5, False),
          ('discontinuous', 3, 4, False), ('polynomial', 5, 1, False), ('polynomial', 1, 1, True), ('fourier', 5, 1, False)]
NAMES = [chr(ord('a') + i) for i in range(V - 3)] + ['\n', ' ', '$\\frac$']


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    plt.close('all')


def tokens(*shape):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(1))


def build(**more):
    return complete(highorder.Model(replace(highorder.Config.tiny(), **more))).eval()


def drawn(model, x, write=False):
    """{name: figure}, without a warning, even when they are written, which is what takes the time."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        figures = dict(links.links(model, x, NAMES))
        for figure in figures.values() if write else ():
            assert png(figure, dpi=40).startswith(b'\x89PNG')
    return figures


def panels(figure):
    return [ax for ax in figure.axes if ax.get_visible()]


def edge_of(ax):
    """(i, o), from 0, of a panel's title."""
    return tuple(int(s) - 1 for s in re.match(r'input (\d+) to output (\d+)', ax.get_title()).groups())


def curve(ax):
    """(x, y, and where they are interrupted) of the edge function."""
    line, = (line for line in ax.lines if line.get_linestyle() != 'None')
    x, y = line.get_data()
    return x, y, np.isnan(x)


def alone(layer, i, x):
    """All outputs (len(x), O) of the layer for values x of input i, when the other inputs are absent."""
    x = torch.as_tensor(x, dtype=torch.float32)
    if not isinstance(layer, PiecewisePolynomialConv1d):
        present = torch.arange(layer.in_features) == i
        return layer(present * x[:, None], present.expand(len(x), -1))
    k, c = divmod(i, layer.in_features // layer.kernel_size)        # the tap and the channel
    inputs = torch.zeros(len(x), 1 + (layer.kernel_size - 1) * layer.dilation, layer.in_features // layer.kernel_size)
    present = torch.zeros_like(inputs, dtype=torch.bool)
    inputs[:, k * layer.dilation, c], present[:, k * layer.dilation, c] = x, True
    return layer(inputs, present)[:, -1]


@pytest.mark.parametrize('conv', [False, True])
@pytest.mark.parametrize('kind, n, segments, periodic', SHAPES)
def test_curves_are_what_the_layer_computes(kind, n, segments, periodic, conv):
    how = {'n': n, 'segments': segments, 'kind': kind, 'periodic': periodic}
    layer = PiecewisePolynomialConv1d(3, 6, 2, dilation=3, causal=True, **how) if conv else PiecewisePolynomial(6, 6, **how)
    inputs = torch.randn(500, 3 if conv else 6) * 1.3
    axes = panels(links.draw_edges({'some': (layer, inputs)}, {}))
    assert len(axes) == (2 if segments > 16 else 4)
    for ax in axes:
        i, o = edge_of(ax)
        x, y, jumps = curve(ax)
        assert jumps.sum() == (segments - 1 if kind == 'discontinuous' else 0) and x[0] < -1 and x[-1] > 1
        np.testing.assert_allclose(y[~jumps], alone(layer, i, x[~jumps])[:, o], atol=1e-5)
        if kind != 'fourier':
            borders = [float(s[0, 0]) for s in ax.collections[0].get_segments()]
            np.testing.assert_allclose(borders, np.linspace(-1, 1, segments + 1), atol=1e-6)
            np.testing.assert_allclose(x[np.flatnonzero(jumps) + 1], borders[1:-1] if jumps.any() else [], atol=1e-5)
            at, values = ax.lines[0].get_data()
            assert len(at) == layer.P
            inside = (np.abs(at[:, None] - borders).min(1) > 1e-6) | (not jumps.any())       # a border has two values
            np.testing.assert_allclose(values[inside], alone(layer, i, at[inside])[:, o], atol=1e-5)
        seen = inputs[:, i % inputs.shape[1]].numpy()
        heights, bins, _ = ax.patches[0].get_data()
        counts = np.histogram(seen, bins)[0]
        assert counts.sum() > 0.98 * len(seen)
        np.testing.assert_allclose(heights, 0.5 * counts / counts.max())
        assert f'{100 * (np.abs(seen) > 1).mean():.0f} % outside' in ax.get_title()
        spans = [p.get_extents().transformed(ax.transData.inverted()) for p in ax.patches[1:]]
        np.testing.assert_allclose([(s.x0, s.x1) for s in spans], [(x[0], -1), (1, x[-1])], atol=1e-6)


@pytest.mark.parametrize('kind, n, segments', [('continuous', 3, 2), ('discontinuous', 1, 4), ('fourier', 3, 1)])
def test_the_edge_functions_that_vary_most_are_drawn(kind, n, segments):
    layer, inputs = PiecewisePolynomial(5, 7, n, segments, kind), torch.randn(400, 5) * torch.tensor([1, 0.1, 1, 3, 1])
    inputs[::2, 0] = inputs[:, 4] = math.nan
    variances = [alone(layer, i, inputs[::1 + (i == 0), i].nan_to_num() if i else inputs[1::2, 0]).var(0) for i in range(4)]
    best = sorted(((v.max().item(), i, v.argmax().item()) for i, v in enumerate(variances)), reverse=True)
    assert links.most_varied(layer, inputs, 4) == [(i, o) for _, i, o in best]
    assert links.most_varied(layer, inputs, 2) == [(i, o) for _, i, o in best[:2]]


def test_share_of_inputs_outside():
    inputs = torch.tensor([[0.5, 2.0], [math.nan, -3.0], [0.1, 0.2]])
    row, = links.draw_edges({'a$_$b': (PiecewisePolynomial(2, 2), inputs)}, {}).subfigs
    assert row.get_suptitle().startswith('a$_$b: ') and '40 % of the inputs are outside' in row.get_suptitle()


@pytest.mark.parametrize('more, nodes', [({}, '17 segments, 18 nodes'),
                                         ({'kind': 'discontinuous', 'input_n': 1}, 'of its own')])
def test_characters_are_marked_in_the_middle_of_their_segments(more, nodes):
    model = build(features=4, **more)
    figure = drawn(model, tokens(5, 16), write=True)['links']
    assert nodes in figure.subfigs[0].get_suptitle()
    ax = panels(figure)[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == [*NAMES[:-3], '⏎', '␣', '$\\frac$']
    i, o = edge_of(ax)
    seen = torch.full((V, 4), -1)       # windows of one character
    seen[:, i] = torch.arange(V)
    x, y = ax.lines[-1].get_data()
    np.testing.assert_allclose(x, ax.get_xticks())
    np.testing.assert_allclose(y, model.net.first(seen)[:, o], atol=1e-5)


def image(ax):
    return np.nan_to_num(np.ma.filled(ax.images[0].get_array(), 0))


@pytest.mark.parametrize('more', [{}, {'kind': 'discontinuous', 'n': 3, 'segments': 5}, {'periodic': True, 'segments': 3},
                                  {'input_segments': 40}])
def test_segments_in_use(more):
    """Counted by hand: the characters of each window, and the segments of a hidden layer's inputs."""
    model, x = build(features=3, **more), tokens(3, 8)
    x[x == 5] = 6               # a character that does not occur
    read = []
    hook = model.net.rest[1][1].register_forward_pre_hook(lambda layer, args: read.extend(args[0].flatten(0, -2).tolist()))
    model(x)
    hook.remove()
    first, hidden = drawn(model, x)['segments'].axes[:2]
    links_, S = model.net.first.links, model.config.segments
    counts = np.zeros((3, links_.segments))
    for row in x.tolist():
        for t in range(8):
            for f in range(max(0, 2 - t), 3):
                counts[f, row[t - 2 + f]] += 1
    np.testing.assert_allclose(image(first), counts / counts.sum(1, keepdims=True), rtol=1e-5)
    used = {(f, s * links_.spacing + k) for f, s in zip(*counts.nonzero(), strict=True) for k in range(links_.n)}
    assert f'{100 - 100 * len(used) / (3 * links_.P):.2g} % of the parameters' in first.get_title()
    assert f'{links_.n} of {links_.P} parameters' in first.get_title()
    counts = np.zeros((16, S))
    for row in read:
        for c, value in enumerate(row):
            value = 1 - abs((value + 1) % 4 - 2) if model.config.periodic else value
            counts[c, min(max(math.floor((value + 1) / 2 * S), 0), S - 1)] += 1
    np.testing.assert_allclose(image(hidden), counts / 24, rtol=1e-5)


def test_large_networks_are_drawn_in_part():
    figures = drawn(build(n_layer=7, n_embd=70, features=2), tokens(2, 8))
    assert len(figures['links'].subfigs) == 6 and figures['refinement'].get_suptitle().startswith('net.rest.7.1 ')
    assert figures['segments'].axes[1].images[0].get_array().shape == (64, 2)
    assert figures['segments'].axes[1].get_ylabel() == 'input (the first 64 of 70)'


@pytest.mark.parametrize('kind, n, segments, after', [
    ('continuous', 2, 2, (3, 4)), ('discontinuous', 1, 4, (2, 8)), ('polynomial', 4, 1, (5, 1)), ('fourier', 5, 1, (7, 1))])
def test_refinement(kind, n, segments, after):
    """The functions before and after are equal up to rounding; the nodes after are those of the finer layer."""
    model = build(kind=kind, n=n, segments=segments, features=4)
    figure, layer = drawn(model, tokens(5, 16))['refinement'], model.net.rest[1][1]
    assert float(figure.get_suptitle().split()[-1]) < 2e-6
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [f'before: n={n}, segments={segments}',
                                                                     'after: n={}, segments={}'.format(*after)]
    for ax in panels(figure):
        i, o = edge_of(ax)
        for line in ax.lines:
            x, y = (v[~np.isnan(v)] for v in line.get_data())
            if line.get_linestyle() != 'None':
                np.testing.assert_allclose(y, alone(layer, i, x)[:, o], atol=2e-6)
        if kind != 'fourier':
            finer = layer.refined(*after)
            np.testing.assert_allclose(ax.lines[2].get_ydata(), links.edge_parameters(finer)[i, :, o])


def test_refinement_reports_the_largest_difference(monkeypatch):
    """Over all edge functions, including those that are not drawn."""
    refined = PiecewisePolynomial.refined

    def wrong(layer, *args):
        new = refined(layer, *args)
        new.weight.data[-new.P:, 0] += 0.25
        return new
    monkeypatch.setattr(PiecewisePolynomial, 'refined', wrong)
    layer = PiecewisePolynomial(9, 3)
    layer.weight.data[-layer.P:] = 0        # so the last input is not drawn
    assert links.draw_refinement('x', layer, torch.rand(50, 9) * 1.8 - 0.9).get_suptitle().endswith(' 0.25')


@pytest.mark.parametrize('more', [
    *({'network': n} for n in highorder.NETWORKS if n not in ('low_order_mlp', 'conv')), {'network': 'conv', 'n_layer': 3},
    {'n_layer': 0}, {'centered': True, 'features': 5}, {'kind': 'discontinuous', 'input_n': 1},
    {'kind': 'polynomial', 'n': 1, 'periodic': True}, {'kind': 'fourier', 'n': 3}], ids=str)
def test_all_networks_and_kinds_are_drawn(more):
    model = build(**more)
    layers = [m for m in model.modules() if isinstance(m, PiecewisePolynomial)]
    figures = drawn(model, tokens(4, 16), write='kind' in more)
    assert list(figures) == ['links', *['segments'] * any(m.segments > 1 for m in layers), 'refinement']
    assert len(figures['links'].subfigs) == min(6, len(layers)) and not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize('more', [{}, {'network': 'dual_convolution'}, {'centered': True, 'features': 5}], ids=str)
def test_the_shortest_texts(more):
    """Layers that the text does not reach are left out."""
    for length in (1, 2):
        drawn(build(**more), tokens(1, length))


def test_layer_inputs():
    """Of a layer that is applied several times, and of characters, where an absent one is nan."""
    model, x = build(network='dual_convolution', features=8), tokens(9, 8)
    layers = [m for m in model.modules() if isinstance(m, PiecewisePolynomial)]
    found = links.layer_inputs(model, layers, x)
    assert [found[layer].shape for layer in layers] == [(9 * (7 + 6 + 4), 32), (9 * (7 + 6 + 4), 16), (9 * 8, 16)]
    model = build(features=4)
    read = links.layer_inputs(model, [model.net.first.links], x)[model.net.first.links].view(9, 8, 4)
    torch.testing.assert_close(read, (torch.cat([torch.full((9, 3), math.nan), x], 1).unfold(1, 4, 1) + 0.5) / V * 2 - 1,
                               equal_nan=True)


# the pictures of views/behaviour.py for a model that sees both sides ----------------------------------------------------------

@pytest.mark.parametrize('first', [1, 4])
def test_surprise_of_an_automaton(first):
    """Each token from its neighbours on both sides, whatever it is itself."""
    model, ids = build(centered=True, features=5), tokens(30)
    expected = []
    for t in range(first, 30):
        other = ids.clone()
        other[t] = (other[t] + 3) % V
        expected.append(-model.net(other[None])[0, t].log_softmax(-1)[ids[t]].item() / math.log(2))
    assert surprise(model, ids.tolist(), first) == pytest.approx(expected, abs=1e-5)


def test_influence_of_an_automaton():
    """The prediction of token t depends on three tokens on either side of it, and not on it."""
    moved = influence(build(centered=True, features=7), tokens(3, 16)) > 1e-6
    assert moved.tolist() == [[1 <= abs(s - t) <= 3 for s in range(16)] for t in range(16)]
