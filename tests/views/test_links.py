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
from views.behaviour import png

V = 17
NAMES = [chr(ord('a') + i) for i in range(V - 3)] + ['\n', ' ', '$\\frac$']


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings(action='error'):
        yield
    plt.close('all')


def tokens(*shape):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(1))


def build(**more):
    return complete(highorder.Model(replace(highorder.Config.tiny(), **more))).eval()


def panels(figure):
    """(axes, i, o) of each panel that shows the edge function from input i to output o, from 0."""
    for ax in figure.axes:
        if ax.get_visible():
            yield ax, *(int(s) - 1 for s in re.match(r'input (\d+) to output (\d+)', ax.get_title()).groups())


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


@pytest.mark.parametrize('kind, n, segments, periodic, conv', [
    ('continuous', 3, 20, False, False), ('continuous', 4, 3, True, True), ('discontinuous', 1, 5, False, True),
    ('discontinuous', 3, 4, False, False), ('polynomial', 5, 1, False, False), ('fourier', 5, 1, False, True)])
def test_curves_are_what_the_layer_computes(kind, n, segments, periodic, conv):
    """With their jumps and nodes, and the distribution of the inputs."""
    how = {'n': n, 'segments': segments, 'kind': kind, 'periodic': periodic}
    layer = PiecewisePolynomialConv1d(3, 6, 2, dilation=3, causal=True, **how) if conv else PiecewisePolynomial(6, 6, **how)
    inputs = torch.randn(500, 3 if conv else 6) * torch.linspace(0.8, 1.8, 3 if conv else 6)
    drawn = list(panels(links.draw_edges({'some': (layer, inputs)}, {})))
    assert len(drawn) == (2 if segments > 16 else 4)
    for ax, i, o in drawn:
        line, = (line for line in ax.lines if line.get_linestyle() != 'None')
        x, y = line.get_data()
        jumps = np.isnan(x)
        assert jumps.sum() == (segments - 1 if kind == 'discontinuous' else 0) and x[0] < -1 and x[-1] > 1
        np.testing.assert_allclose(y[~jumps], alone(layer, i, x[~jumps])[:, o], atol=1e-5)
        if kind != 'fourier':
            borders = np.linspace(-1, 1, segments + 1)
            np.testing.assert_allclose(x[np.flatnonzero(jumps) + 1], borders[1:-1] if jumps.any() else [], atol=1e-5)
            at, values = ax.lines[0].get_data()
            inside = (np.abs(at[:, None] - borders).min(1) > 1e-6) | (not jumps.any())       # a border has two values
            assert len(at) == layer.P
            np.testing.assert_allclose(values[inside], alone(layer, i, at[inside])[:, o], atol=1e-5)
        seen = inputs[:, i % inputs.shape[1]].numpy()
        heights, bins, _ = ax.patches[0].get_data()
        counts = np.histogram(seen, bins)[0]
        assert counts.sum() > 0.98 * len(seen) and f'{100 * (np.abs(seen) > 1).mean():.0f} % outside' in ax.get_title()
        np.testing.assert_allclose(heights, 0.5 * counts / counts.max())


def test_the_edge_functions_that_vary_most_are_drawn():
    layer, inputs = PiecewisePolynomial(5, 7, 3, 2), torch.randn(400, 5) * torch.tensor([1, 0.1, 1, 3, 1])
    inputs[::2, 0] = inputs[:, 4] = math.nan
    variances = [alone(layer, i, inputs[1::2, i] if i == 0 else inputs[:, i]).var(0) for i in range(4)]
    best = sorted(((v.max().item(), i, v.argmax().item()) for i, v in enumerate(variances)), reverse=True)
    assert links.most_varied(layer, inputs, 3) == [(i, o) for _, i, o in best[:3]]
    row, = links.draw_edges({'a$_$b': (layer, torch.tensor([[0.5, 2.0, math.nan, -3.0, 0.1]]).expand(2, -1))}, {}).subfigs
    assert '50 % of the inputs are outside' in row.get_suptitle()       # of those that are present


@pytest.mark.parametrize('more', [{}, {'kind': 'discontinuous', 'input_n': 1}])
def test_characters_are_marked_in_the_middle_of_their_segments(more):
    model = build(features=4, **more)
    figures = dict(links.links(model, tokens(5, 16), NAMES))
    ax, i, o = next(panels(figures['links']))
    assert [t.get_text() for t in ax.get_xticklabels()] == [*NAMES[:-3], '⏎', '␣', '$\\frac$']
    seen = torch.full((V, 4), -1)       # windows of one character
    seen[:, i] = torch.arange(V)
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), model.net.first(seen)[:, o], atol=1e-5)
    np.testing.assert_allclose(ax.lines[-1].get_xdata(), ax.get_xticks())
    assert png(figures['links'], dpi=40).startswith(b'\x89PNG')        # without a warning


def image(ax):
    return np.nan_to_num(np.ma.filled(ax.images[0].get_array(), 0))


@pytest.mark.parametrize('more', [{}, {'kind': 'discontinuous', 'n': 3, 'segments': 5}, {'periodic': True, 'segments': 3}])
def test_segments_in_use(more):
    """Counted by hand: the characters of each window, and the segments of a hidden layer's inputs."""
    model, x, read = build(features=3, **more), tokens(3, 8), []
    x[x == 5] = 6               # a character that does not occur
    hook = model.net.rest[1][1].register_forward_pre_hook(lambda layer, args: read.extend(args[0].flatten(0, -2).tolist()))
    model(x)
    hook.remove()
    first, hidden = dict(links.links(model, x, NAMES))['segments'].axes[:2]
    edges, S = model.net.first.links, model.config.segments
    counts = np.zeros((3, edges.segments))
    for row in x.tolist():
        for t in range(8):
            for f in range(max(0, 2 - t), 3):
                counts[f, row[t - 2 + f]] += 1
    np.testing.assert_allclose(image(first), counts / counts.sum(1, keepdims=True), rtol=1e-5)
    used = {(f, s * edges.spacing + k) for f, s in zip(*counts.nonzero(), strict=True) for k in range(edges.n)}
    assert f'{100 - 100 * len(used) / (3 * edges.P):.2g} % of the parameters' in first.get_title()
    counts = np.zeros((16, S))
    for row in read:
        for c, value in enumerate(row):
            value = 1 - abs((value + 1) % 4 - 2) if model.config.periodic else value
            counts[c, min(max(math.floor((value + 1) / 2 * S), 0), S - 1)] += 1
    np.testing.assert_allclose(image(hidden), counts / 24, rtol=1e-5)


class Wrong(PiecewisePolynomial):
    def refined(self, *args):
        new = super().refined(*args)
        new.weight[-new.P:, 0] += 0.25
        return new


@pytest.mark.parametrize('kind, n, segments, after', [
    ('continuous', 2, 2, (3, 4)), ('discontinuous', 1, 4, (2, 8)), ('polynomial', 4, 1, (5, 1)), ('fourier', 5, 1, (7, 1))])
def test_refinement(kind, n, segments, after):
    """The functions before and after are equal up to rounding; the largest difference is over all edges, drawn or not."""
    layer, inputs = PiecewisePolynomial(9, 3, n, segments, kind), torch.rand(50, 9) * 3 - 1.5
    figure = links.draw_refinement('x', layer, inputs)
    assert float(figure.get_suptitle().split()[-1]) < 2e-6
    assert list(after) == [int(s) for s in re.findall(r'\d+', figure.legends[0].get_texts()[1].get_text())]
    for ax, i, o in panels(figure):
        for line in (line for line in ax.lines if line.get_linestyle() != 'None'):
            x, y = (v[~np.isnan(v)] for v in line.get_data())
            np.testing.assert_allclose(y, alone(layer, i, x)[:, o], atol=2e-6)
        if kind != 'fourier':
            np.testing.assert_allclose(ax.lines[2].get_ydata(), links.edge_parameters(layer.refined(*after))[i, :, o])
    wrong = Wrong(9, 3)
    wrong.weight[-wrong.P:] = 0         # so the last input is not drawn
    assert links.draw_refinement('x', wrong, inputs.clamp(-1, 1)).get_suptitle().endswith(' 0.25')


@pytest.mark.parametrize('length, more', [
    (1, {'network': 'tail_focus'}), (1, {'network': 'dual_convolution'}), (2, {'network': 'conv', 'n_layer': 3}),
    (16, {'network': 'high_order_input_transformer'}), (16, {'network': 'mamba'}), (16, {'n_layer': 0}), (16, {'n_layer': 7}),
    (16, {'kind': 'polynomial', 'n': 1, 'periodic': True}), (1, {'centered': True, 'features': 5, 'kind': 'fourier', 'n': 3})])
def test_all_networks_and_kinds_are_drawn(length, more):
    """Also where the text is too short to reach all layers."""
    model = build(**more)
    assert {'links', 'refinement'} <= dict(links.links(model, tokens(2, length), NAMES)).keys()
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_an_absent_input_is_nan():
    model, x = build(features=4), tokens(9, 8)
    read = links.layer_inputs(model, [model.net.first.links], x)[model.net.first.links].view(9, 8, 4)
    expected = (torch.cat([torch.full((9, 3), math.nan), x], 1).unfold(1, 4, 1) + 0.5) / V * 2 - 1
    torch.testing.assert_close(read, expected, equal_nan=True)
