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

V = 17
NAMES = [chr(ord('a') + i) for i in range(V - 3)] + ['\n', ' ', '$\\frac$']


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings(action='error'):
        yield
    plt.close('all')


def build(**more):
    return complete(highorder.Model(replace(highorder.Config.tiny(), **more))).eval()


def panels(figure):
    """(axes, i, o) of each panel that shows the edge function from input i to output o, from 0."""
    for ax in figure.axes:
        if ax.get_visible():
            yield ax, *(int(s) - 1 for s in re.match(r'input (\d+) to output (\d+)', ax.get_title()).groups())


def alone(layer, i, x):
    """All outputs (len(x), O) of the layer for values x of input i, when the other inputs are absent."""
    C = layer.in_features // getattr(layer, 'kernel_size', 1)       # of a convolution: i is channel i % C of tap i // C
    inputs = torch.zeros(len(x), 1 + (layer.in_features // C - 1) * getattr(layer, 'dilation', 1), C)
    present, at = torch.zeros_like(inputs, dtype=torch.bool), (slice(None), i // C * getattr(layer, 'dilation', 1), i % C)
    inputs[at], present[at] = torch.as_tensor(x, dtype=torch.float32), True
    return layer(inputs, present)[:, -1]


def most_varied(layer, inputs):
    """[[i, o]]: for each input its edge function of the largest variance over those that are present, in descending order."""
    found = []
    for i in range(layer.in_features):
        seen = inputs[:, i % inputs.shape[1]]
        if (~seen.isnan()).sum() > 1:
            variance, o = alone(layer, i, seen[~seen.isnan()]).var(0).max(0)
            found.append((variance.item(), [i, o.item()]))
    return [place for _, place in sorted(found, reverse=True)]


@pytest.mark.parametrize('kind, n, segments, periodic, conv, finer', [
    ('continuous', 3, 20, False, False, (4, 40)), ('continuous', 4, 3, True, True, (5, 6)),
    ('discontinuous', 1, 5, False, True, (2, 10)), ('discontinuous', 3, 4, False, False, (4, 8)),
    ('polynomial', 5, 1, False, False, (6, 1)), ('fourier', 5, 1, False, True, (7, 1))])
def test_curves_are_what_the_layer_computes(kind, n, segments, periodic, conv, finer):
    """Those that vary most, with their jumps and nodes and the distribution of the inputs; the same after a refinement."""
    how = {'n': n, 'segments': segments, 'kind': kind, 'periodic': periodic}
    layer = PiecewisePolynomialConv1d(3, 6, 2, dilation=3, causal=True, **how) if conv else PiecewisePolynomial(6, 6, **how)
    inputs = torch.randn(500, 3 if conv else 6) * torch.linspace(0.8, 1.8, 3 if conv else 6)
    drawn = list(panels(links.draw_edges({'some': (layer, inputs)}, {})))
    assert [place for _, *place in drawn] == most_varied(layer, inputs)[:2 if segments > 16 else 4]
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
    figure = links.draw_refinement('x', layer, inputs)
    assert float(figure.get_suptitle().split()[-1]) < 1e-4
    assert list(finer) == [int(s) for s in re.findall(r'\d+', figure.legends[0].get_texts()[1].get_text())]
    for line, i, o in ((line, i, o) for ax, i, o in panels(figure) for line in ax.lines if line.get_linestyle() != 'None'):
        x, y = (v[~np.isnan(v)] for v in line.get_data())
        np.testing.assert_allclose(y, alone(layer, i, x)[:, o], atol=1e-4)


def test_absent_inputs_do_not_count():
    layer, inputs = PiecewisePolynomial(5, 7, 3, 2), torch.randn(400, 5) * torch.tensor([1, 0.1, 1, 3, 1])
    inputs[::2, 0] = inputs[1:, 4] = math.nan
    assert list(map(list, links.most_varied(layer, inputs, 5))) == most_varied(layer, inputs)[:4]
    row, = links.draw_edges({'a$_$b': (layer, torch.tensor([[0.5, 2.0, math.nan, -3.0, 0.1]]).expand(2, -1))}, {}).subfigs
    assert '50 % of the inputs are outside' in row.get_suptitle()       # of those that are present


class Wrong(PiecewisePolynomial):
    def refined(self, *args):
        new = super().refined(*args)
        new.weight[-new.P:, 0] += 0.25
        return new


def test_the_difference_after_a_refinement_is_of_all_edges():
    wrong = Wrong(9, 3)
    wrong.weight[-wrong.P:] = 0         # so the last input is not drawn
    assert links.draw_refinement('x', wrong, torch.rand(50, 9) * 2 - 1).get_suptitle().endswith(' 0.25')


@pytest.mark.parametrize('more', [{}, {'kind': 'discontinuous', 'input_n': 1, 'n': 3, 'segments': 5},
                                  {'periodic': True, 'segments': 3}])
def test_characters_and_segments_in_use(more):
    """Each character is marked in the middle of its segment; the segments in use are counted by hand."""
    model, x, read = build(features=3, **more), torch.randint(V, (3, 8)), []
    x[x == 5] = 6               # a character that does not occur
    hook = model.net.rest[1][1].register_forward_pre_hook(lambda layer, args: read.extend(args[0].flatten(0, -2).tolist()))
    model(x)
    hook.remove()
    figures = dict(links.links(model, x, NAMES))
    ax, i, o = next(panels(figures['links']))
    assert [t.get_text() for t in ax.get_xticklabels()] == [*NAMES[:-3], '⏎', '␣', '$\\frac$']
    seen = torch.full((V, 3), -1)       # windows of one character
    seen[:, i] = torch.arange(V)
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), model.net.first(seen)[:, o], atol=1e-5)
    np.testing.assert_allclose(ax.lines[-1].get_xdata(), ax.get_xticks())
    first, hidden = figures['segments'].axes[:2]
    edges, S = model.net.first.links, model.config.segments
    counts = np.zeros((3, edges.segments))
    for row in x.tolist():
        for t in range(8):
            for f in range(max(0, 2 - t), 3):
                counts[f, row[t - 2 + f]] += 1
    used = {(f, s * edges.spacing + k) for f, s in zip(*counts.nonzero(), strict=True) for k in range(edges.n)}
    assert f'{100 - 100 * len(used) / (3 * edges.P):.2g} % of the parameters' in first.get_title()
    inside = np.zeros((16, S))
    for c, value in (pair for row in read for pair in enumerate(row)):
        value = 1 - abs((value + 1) % 4 - 2) if model.config.periodic else value
        inside[c, min(max(math.floor((value + 1) / 2 * S), 0), S - 1)] += 1
    for ax, expected in ((first, counts / counts.sum(1, keepdims=True)), (hidden, inside / 24)):
        np.testing.assert_allclose(np.nan_to_num(np.ma.filled(ax.images[0].get_array(), 0)), expected, rtol=1e-5)


@pytest.mark.parametrize('length, more', [
    (1, {'network': 'tail_focus'}), (1, {'network': 'dual_convolution'}), (2, {'network': 'conv', 'n_layer': 3}),
    (16, {'network': 'high_order_input_transformer'}), (16, {'network': 'mamba'}), (16, {'n_layer': 0}), (16, {'n_layer': 7}),
    (16, {'kind': 'polynomial', 'n': 1, 'periodic': True}), (1, {'centered': True, 'features': 5, 'kind': 'fourier', 'n': 3})])
def test_all_networks_and_kinds_are_drawn(length, more):
    """Also where the text is too short to reach all layers."""
    model = build(**more)
    assert {'links', 'refinement'} <= dict(links.links(model, torch.randint(V, (2, length)), NAMES)).keys()
    assert not any(m._forward_pre_hooks for m in model.modules())
