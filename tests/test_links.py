"""parts.py's pictures of links, read back from the figures, against the layers themselves; look.py on models made of them."""

import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import highorder
import look
import parts
from piecewise import PiecewisePolynomial, PiecewisePolynomialConv1d

plt = look.plt
V = 17
SHAPES = [('continuous', 2, 2, False), ('continuous', 3, 20, False), ('continuous', 4, 3, True), ('discontinuous', 1, 5, False),
          ('discontinuous', 3, 4, False), ('polynomial', 5, 1, False), ('polynomial', 1, 1, True), ('fourier', 5, 1, False)]
each_shape = pytest.mark.parametrize('kind, n, segments, periodic', SHAPES)
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
    return highorder.Model(replace(highorder.Config.tiny(), **more)).eval()


def drawn(model, x, write=False):
    """{name: figure}, without a warning, also when they are written, which is what takes the time."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        figures = dict(parts.links(model, x, NAMES))
        for figure in figures.values() if write else ():
            assert look.png(figure, dpi=40).startswith(b'\x89PNG')
    return figures


def panels(figure):
    return [ax for ax in figure.axes if ax.get_visible()]


def link_of(ax):
    """(i, o), as the title has them, from 0 on."""
    return tuple(int(s) - 1 for s in re.fullmatch(r'input (\d+) to output (\d+)', ax.get_title()).groups())


def alone(layer, i, x):
    """All outputs (len(x), O) of a layer whose input i alone is there, and is each of x in turn."""
    x = torch.as_tensor(x, dtype=torch.float32)
    if not isinstance(layer, PiecewisePolynomialConv1d):
        there = torch.arange(layer.in_features) == i
        return layer(there * x[:, None], there.expand(len(x), -1))
    k, c = divmod(i, layer.in_features // layer.kernel_size)        # the tap and the channel
    inputs = torch.zeros(len(x), 1 + (layer.kernel_size - 1) * layer.dilation, layer.in_features // layer.kernel_size)
    there = torch.zeros_like(inputs, dtype=torch.bool)
    inputs[:, k * layer.dilation, c], there[:, k * layer.dilation, c] = x, True
    return layer(inputs, there)[:, -1]


# what is drawn of a layer -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('conv', [False, True])
@each_shape
def test_the_curves_are_what_the_layer_makes_of_one_input(kind, n, segments, periodic, conv):
    how = {'n': n, 'segments': segments, 'kind': kind, 'periodic': periodic}
    layer = PiecewisePolynomialConv1d(3, 6, 2, dilation=3, causal=True, **how) if conv else PiecewisePolynomial(6, 6, **how)
    inputs = torch.randn(500, 3 if conv else 6) * 1.3
    axes = panels(parts.draw_links({'some': (layer, inputs)}, {}))
    assert len(axes) == (2 if segments > 16 else 4)
    for ax in axes:
        i, o = link_of(ax)
        x, y = ax.lines[-1].get_data()
        torn = np.isnan(x)
        assert torn.sum() == (segments - 1 if kind == 'discontinuous' else 0) and np.array_equal(torn, np.isnan(y))
        assert x[0] < -1 and x[-1] > 1 and len(x) > 300
        np.testing.assert_allclose(y[~torn], alone(layer, i, x[~torn])[:, o], atol=1e-5)
        borders = [float(s[0, 0]) for s in ax.collections[0].get_segments()] if ax.collections else []
        assert len(ax.lines) == 1 + (kind != 'fourier') and len(borders) == (segments + 1 if kind != 'fourier' else 0)
        np.testing.assert_allclose(borders, np.linspace(-1, 1, len(borders)), atol=1e-6)
        if kind == 'discontinuous':         # it is torn at the borders that it has
            np.testing.assert_allclose(x[np.flatnonzero(torn) + 1], borders[1:-1], atol=1e-5)
        if kind != 'fourier':
            at, values = ax.lines[0].get_data()
            assert len(at) == layer.P and at.min() >= -1 and at.max() <= 1
            if kind == 'discontinuous':     # on a border there are two values
                inside = np.abs(at[:, None] - np.array(borders)).min(1) > 1e-6
                at, values = at[inside], values[inside]
            np.testing.assert_allclose(values, alone(layer, i, at)[:, o], atol=1e-5)
        seen = inputs[:, i % inputs.shape[1]].numpy()
        heights, bins, _ = ax.patches[0].get_data()
        counts = np.histogram(seen, bins)[0]
        assert counts.sum() > 0.98 * len(seen)
        np.testing.assert_allclose(heights, 0.5 * counts / counts.max())


@pytest.mark.parametrize('kind, n, segments', [('continuous', 3, 2), ('discontinuous', 1, 4), ('fourier', 3, 1),
                                               ('fourier', 1, 1)])
def test_the_links_that_vary_most_are_drawn(kind, n, segments):
    """Over what is really read, by their values on it; the best of each input."""
    layer, inputs = PiecewisePolynomial(5, 7, n, segments, kind), torch.randn(400, 5) * torch.tensor([1, 0.1, 1, 3, 1])
    inputs[::2, 0] = math.nan
    inputs[:, 4] = math.nan         # never there
    best = []
    for i in range(4):
        seen = inputs[:, i][~inputs[:, i].isnan()]
        variances = alone(layer, i, seen).var(0)
        best.append((variances.max().item(), i, variances.argmax().item()))
    wanted = [(i, o) for _, i, o in sorted(best, reverse=True)]
    found = parts.liveliest(layer, inputs, 4)
    if n == 1 and kind == 'fourier':        # constants: any is as good
        assert sorted(i for i, _ in found) == [0, 1, 2, 3]
    else:
        assert found == wanted and parts.liveliest(layer, inputs, 2) == wanted[:2]


def test_how_many_inputs_are_outside():
    inputs = torch.tensor([[0.5, 2.0], [math.nan, -3.0], [0.1, 0.2]])
    figure = parts.draw_links({'a$_$b': (PiecewisePolynomial(2, 2), inputs)}, {})
    row, = figure.subfigs
    assert row.get_suptitle() == 'a$_$b: 2, 2, n=2, segments=1, kind=continuous; 40 % of the inputs are outside of [-1, 1]'
    assert look.png(figure) and len(panels(figure)) == 2
    for ax in panels(figure):       # few as they are, all are shown
        assert np.count_nonzero(ax.patches[0].get_data()[0]) == (2 if link_of(ax)[0] == 0 else 3)


# a model ----------------------------------------------------------------------------------------------------------------------

def test_the_first_layer_is_labelled_with_characters():
    """The middle of a segment is where its token is."""
    model = build(features=4)
    ax = panels(drawn(model, tokens(5, 16), write=True)['links'])[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == [*NAMES[:-3], '⏎', '␣', '$\\frac$']
    i, o = link_of(ax)
    x, y = ax.lines[-1].get_data()
    at = np.interp(ax.get_xticks(), x, y)
    seen = torch.full((V, 4), -1)       # windows whose other characters are not there
    seen[:, i] = torch.arange(V)
    np.testing.assert_allclose(at, model.net.first(seen)[:, o], atol=1e-4)


def test_there_may_be_more_segments_than_characters():
    figures = drawn(build(features=4, input_segments=40), tokens(5, 16))
    assert len(panels(figures['links'])[0].get_xticks()) == V
    share = re.search(r'([\d.]+) % are used by no token', figures['segments'].axes[0].get_title())[1]
    assert float(share) == pytest.approx(100 * (41 - 18) / 41, abs=0.6)     # of 41 points the first 18


@pytest.mark.parametrize('more', [{}, {'kind': 'discontinuous', 'n': 3, 'segments': 5}, {'periodic': True, 'segments': 3},
                                  {'normalization': 'maxabs', 'n': 4}])
def test_the_segments_in_use(more):
    """Counted by hand: the characters of each window, and the pieces that the numbers behind them lie in."""
    model, x = build(features=3, n_layer=2, **more), tokens(3, 8)
    x[x == 5] = 6               # a character that never comes
    read = {}

    def look_at(name):
        def hook(layer, args):
            read[name] = args[0].flatten(0, -2).tolist()
        return hook
    hooks = [model.get_submodule(name).register_forward_pre_hook(look_at(name)) for name in ('net.rest.0.1', 'net.rest.2.1')]
    model(x)
    for hook in hooks:
        hook.remove()
    figure = drawn(model, x)['segments']
    assert figure.get_suptitle() == 'which segments are in use, by 24 tokens'
    first, *hidden = figure.axes[:3]

    def image(ax):
        return np.nan_to_num(np.ma.filled(ax.images[0].get_array(), 0))
    counts = np.zeros((3, V))
    for row in x.tolist():
        for t in range(8):
            for f in range(3):
                if t - 2 + f >= 0:
                    counts[f, row[t - 2 + f]] += 1
    np.testing.assert_allclose(image(first), counts / counts.sum(1, keepdims=True), rtol=1e-5)
    n, shared = model.net.first.links.n, model.net.first.links.kind == 'continuous'
    unused = [not any(counts[f, s] for s in range(V) if p in range(s * (n - shared), s * (n - shared) + n))
              for f in range(3) for p in range(model.net.first.links.P)]
    lines = first.get_title().split('\n')
    assert lines[0] == 'net.first.links'
    assert lines[1] == f'one input uses {n} of {len(unused) // 3} parameters ({100 * n * 3 / len(unused):.2g} %);'
    assert lines[2] == f'{100 * np.mean(unused):.2g} % are used by no token' and 0 < np.mean(unused) < 0.5
    for ax, (name, rows) in zip(hidden, read.items(), strict=True):
        S = model.config.segments
        counts = np.zeros((16, S))
        for row in rows:
            for c, number in enumerate(row):
                if model.config.periodic:
                    number = 1 - abs((number + 1) % 4 - 2)
                counts[c, min(max(math.floor((number + 1) / 2 * S), 0), S - 1)] += 1
        assert ax.get_title().split('\n')[0] == name
        np.testing.assert_allclose(image(ax), counts / 24, rtol=1e-5)


def test_a_large_layer_is_drawn_in_part():
    figures = drawn(build(n_layer=4, n_embd=70, features=2), tokens(2, 8))
    assert len(figures['links'].subfigs) == 5
    first, second, *_ = figures['segments'].axes
    assert first.images[0].get_array().shape == (2, V) and second.images[0].get_array().shape == (64, 2)
    assert second.get_ylabel() == 'input (the first 64 of 70)'
    figures = drawn(build(n_layer=6, n_embd=4, features=2), tokens(2, 8))
    assert len(figures['links'].subfigs) == 6 and 'net.rest.6.1 before' in figures['refinement'].get_suptitle()


@pytest.mark.parametrize('kind, n, segments, after', [
    ('continuous', 2, 2, (3, 4)), ('discontinuous', 1, 4, (2, 8)), ('discontinuous', 3, 2, (4, 4)),
    ('polynomial', 4, 1, (5, 1)), ('fourier', 5, 1, (7, 1))])
def test_the_refinement(kind, n, segments, after):
    """Old and new nodes on one curve, and the difference is rounding."""
    model = build(kind=kind, n=n, segments=segments, features=4)
    figure = drawn(model, tokens(5, 16))['refinement']
    said = figure.get_suptitle()
    assert said.startswith('net.rest.1.1 before and after a refinement: nowhere are its functions more than ')
    assert float(re.search(r'than (\S+) apart', said)[1]) < 2e-6
    legend, = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [f'before: n={n}, segments={segments}',
                                                           'after: n={}, segments={}'.format(*after)]
    layer = model.net.rest[1][1]
    for ax in panels(figure):
        i, o = link_of(ax)
        old, new = (line for line in ax.lines if line.get_linestyle() != 'None')
        for line in (old, new):
            x, y = line.get_data()
            whole = ~np.isnan(x)
            np.testing.assert_allclose(y[whole], alone(layer, i, x[whole])[:, o], atol=2e-6)
        dots = [line for line in ax.lines if line.get_linestyle() == 'None']
        if kind != 'fourier':
            finer = layer.refined(*after)
            assert [len(line.get_xdata()) for line in dots] == [layer.P, finer.P] and finer.P > layer.P
            np.testing.assert_allclose(dots[1].get_ydata(), finer.weight.view(-1, finer.P, finer.out_features)[i, :, o])


def test_a_refinement_that_changes_a_function_would_be_told(monkeypatch):
    """Of all the links, also those that are not drawn."""
    refined = PiecewisePolynomial.refined

    def wrong(layer, *args):
        new = refined(layer, *args)
        new.weight.data[-new.P:, 0] += 0.25
        return new
    monkeypatch.setattr(PiecewisePolynomial, 'refined', wrong)
    layer = PiecewisePolynomial(9, 3)
    layer.weight.data[-layer.P:] = 0        # those of the last input are not drawn
    figure = parts.draw_refinement('x', layer, torch.rand(50, 9) * 1.8 - 0.9)
    assert 'more than 0.25 apart' in figure.get_suptitle() and 8 not in {link_of(ax)[0] for ax in panels(figure)}


ALL = [*({'network': n} for n in highorder.NETWORKS if n != 'low_order_mlp'), {'network': 'conv', 'n_layer': 3},
       {'network': 'tail_focus', 'features': 2}, {'network': 'high_order_input_transformer', 'features': 1},
       {'network': 'transformer', 'kind': 'fourier', 'n': 3}, {'network': 'mamba', 'kind': 'polynomial', 'n': 4},
       {'n_layer': 0}, {'centered': True, 'features': 5}, {'network': 'high_order_input', 'centered': True, 'features': 3},
       *({'kind': kind, 'n': n, 'segments': segments, 'periodic': p} for kind, n, segments, p in SHAPES)]


@pytest.mark.parametrize('more', ALL, ids=lambda more: '-'.join(map(str, more.values())))
def test_all_networks_and_kinds_are_drawn(more):
    model = build(**more)
    figures = drawn(model, tokens(4, 16), write='network' not in more)
    pieces = any(m.segments > 1 for m in model.modules() if isinstance(m, PiecewisePolynomial))
    assert list(figures) == ['links', *['segments'] * pieces, 'refinement']
    assert len(figures['links'].subfigs) == min(6, sum(isinstance(m, PiecewisePolynomial) for m in model.modules()))
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize('more', [{}, {'network': 'dual_convolution'}, {'centered': True, 'features': 5}])
@pytest.mark.parametrize('length', [1, 2])
def test_the_shortest_texts(more, length):
    """Of layers that nothing comes to there is nothing to draw."""
    drawn(build(**more), tokens(1, length), write=True)


def test_what_is_read_of_a_network():
    """Of a layer that is applied again and again, and of each character that is there."""
    model, x = build(network='dual_convolution', features=8), tokens(9, 8)
    layers = [m for m in model.modules() if isinstance(m, PiecewisePolynomial)]
    found = parts.inputs_of(model, layers, x)
    assert [found[layer].shape for layer in layers] == [(9 * (7 + 6 + 4), 32), (9 * (7 + 6 + 4), 16), (9 * 8, 16)]
    model = build(features=4)
    read = parts.inputs_of(model, [model.net.first.links], x)[model.net.first.links].view(9, 8, 4)
    for t in range(8):
        for f in range(4):
            if t - 3 + f < 0:
                assert read[:, t, f].isnan().all()
            else:
                torch.testing.assert_close(read[:, t, f], (x[:, t - 3 + f] + 0.5) / V * 2 - 1)


# a model that sees both sides -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('first', [1, 4])
def test_surprise_by_both_sides(first):
    """Each token by its neighbours, whatever it is itself; the last ones have fewer."""
    model, ids = build(centered=True, features=5), tokens(30)
    wanted = []
    for t in range(first, 30):
        other = ids.clone()
        other[t] = (other[t] + 3) % V
        wanted.append(-model.net(other[None])[0, t].log_softmax(-1)[ids[t]].item() / math.log(2))
    assert look.surprise(model, ids.tolist(), first) == pytest.approx(wanted, abs=1e-5)


def test_influence_of_an_automaton():
    matrix = look.influence(build(centered=True, features=7), tokens(3, 16))
    assert look.draw_influence(matrix, 'x', centered=True).axes[1].get_title() == \
        'sees 3 before and 3 after; nothing from the one between'
