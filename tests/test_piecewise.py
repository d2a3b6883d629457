"""piecewise.py against a plain evaluation, link by link, and against scipy's interpolation."""

import math

import numpy as np
import pytest
import torch
import torch.nn as nn
from scipy.interpolate import BarycentricInterpolator

from piecewise import NORMALIZATIONS, PiecewisePolynomial, PiecewisePolynomialConv1d, points

SHAPES = [('continuous', 2, 1), ('continuous', 2, 128), ('continuous', 3, 4), ('continuous', 9, 2), ('discontinuous', 1, 5),
          ('discontinuous', 2, 128), ('discontinuous', 4, 3), ('polynomial', 1, 1), ('polynomial', 6, 1), ('fourier', 1, 1),
          ('fourier', 7, 1)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def link(values, x, kind, n, segments):
    """f(x) of one link, from its parameters: a number.  As the words have it: find the piece, interpolate its values, go on
    straight outside of [-1, 1]."""
    if kind == 'fourier':
        return values[0] + sum(values[2 * k - 1] * math.cos(math.pi * k * x) + values[2 * k] * math.sin(math.pi * k * x)
                               for k in range(1, n // 2 + 1))
    width = 2 / segments
    piece = min(max(math.floor((x + 1) / width), 0), segments - 1)
    start = piece * (n - 1 if kind == 'continuous' else n)
    mine, left = values[start:start + n], -1 + piece * width
    if n == 1:
        return mine[0]
    nodes = [left + width * (1 - math.cos(math.pi * k / (n - 1))) / 2 for k in range(n)]
    curve = BarycentricInterpolator(nodes, mine)
    if -1 <= x <= 1:
        return float(curve(x))
    edge = math.copysign(1, x)
    return float(curve(edge) + (x - edge) * curve.derivative(edge))


@pytest.mark.parametrize('kind, n, segments', SHAPES)
def test_both_ways_are_the_sum_over_links(kind, n, segments):
    layer = PiecewisePolynomial(3, 2, n, segments, kind)
    x = torch.tensor([[-1.0, 1.0, 0.0], [0.3, -0.77, 0.99], [-1.7, 2.5, 1.01], [0.123, -0.5, 0.5]])
    weight = layer.weight.detach().double().view(3, layer.P, 2).numpy()
    wanted = [[sum(link(weight[i, :, o], float(row[i]), kind, n, segments) for i in range(3)) for o in range(2)] for row in x]
    first, values = layer.basis(x)
    for y in (layer(x), layer.look_up(first, values), layer.expand(first, values) @ layer.weight):
        np.testing.assert_allclose(y.detach().numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind, n, segments', SHAPES)
@pytest.mark.parametrize('looks_up', [True, False])
def test_gradients(kind, n, segments, looks_up):
    layer = PiecewisePolynomial(2, 3, n, segments, kind).double()
    layer.looks_up = looks_up
    x = (torch.tensor([[-0.93, 0.11], [0.41, 1.6], [-1.3, 0.77]], dtype=torch.float64)).requires_grad_()

    def by(x, weight):
        return torch.func.functional_call(layer, {'weight': weight}, (x,))
    assert torch.autograd.gradcheck(by, (x, layer.weight))


def test_the_faster_way_is_chosen_by_shape():
    assert PiecewisePolynomial(16, 4, 2, 128).looks_up and not PiecewisePolynomial(250, 4, 3, 2).looks_up
    # and with it, how the weight is to be optimized
    assert not PiecewisePolynomial(16, 4, 2, 128).weight.matrix and PiecewisePolynomial(250, 4, 3, 2).weight.matrix


def test_a_high_order_stays_small_outside():
    """A polynomial of order 8 with values up to 1 reaches 2e5 at 1.5; a straight line does not."""
    layer = PiecewisePolynomial(1, 1000, 9, 2)
    layer.weight.data.uniform_(-1, 1)
    assert layer(torch.tensor([[1.5], [-1.5]])).abs().max() < 100
    x = torch.tensor([[1.0], [2.0], [3.0], [-1.0], [-2.0], [-3.0]], dtype=torch.float64)
    y = layer.double()(x)
    torch.testing.assert_close(y[2] - y[1], y[1] - y[0])
    torch.testing.assert_close(y[5] - y[4], y[4] - y[3])


def test_periodic_is_mirrored():
    layer = PiecewisePolynomial(1, 5, 3, 4, periodic=True)
    x = torch.linspace(-1, 1, 21)[:, None]
    torch.testing.assert_close(layer(2 - x), layer(x))
    torch.testing.assert_close(layer(-2 - x), layer(x))
    torch.testing.assert_close(layer(x + 4), layer(x), atol=1e-5, rtol=1e-5)


def test_a_fourier_series_has_period_2():
    layer = PiecewisePolynomial(1, 5, 5, kind='fourier')
    x = torch.linspace(-1, 1, 21)[:, None]
    torch.testing.assert_close(layer(x + 2), layer(x), atol=1e-5, rtol=1e-5)


def test_what_is_not_there_gives_nothing():
    layer = PiecewisePolynomial(3, 2, 2, 128)
    x = torch.rand(5, 3)
    present = torch.tensor([True, False, True]).expand(5, 3)
    one = PiecewisePolynomial(1, 2, 2, 128)
    one.weight.data = layer.weight[layer.P:2 * layer.P]
    torch.testing.assert_close(layer(x, present), layer(x) - one(x[:, 1:2]))


@pytest.mark.parametrize('kind, n, segments', SHAPES)
@pytest.mark.parametrize('initialization', ['kaiming', 'linear'])
def test_initialization(kind, n, segments, initialization):
    """Outputs of variance gain ** 2, and links that are functions: an input gets a gradient (but for n 1, of constants)."""
    layer = PiecewisePolynomial(64, 512, n, segments, kind, initialization=initialization, gain=0.5)
    x = (2 * torch.rand(1000, 64) - 1).requires_grad_()
    y = layer(x)
    assert 0.3 < y.std() < 0.7
    if n > 1:
        gradient, = torch.autograd.grad(y.square().sum(), x)
        assert gradient.abs().mean() > 0.01


def test_linear_initialization_is_linear():
    layer = PiecewisePolynomial(1, 7, 4, 5, 'discontinuous', initialization='linear')
    low, middle, high = layer(torch.tensor([[-0.9], [0.1], [1.1]]))
    torch.testing.assert_close(middle, (low + high) / 2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('kind, n, segments', SHAPES)
@pytest.mark.parametrize('more, times', [(2, 1), (0, 3), (4, 2)])
def test_refinement_keeps_the_function(kind, n, segments, more, times, float64):
    one = kind in ('polynomial', 'fourier')
    layer = PiecewisePolynomial(3, 4, n, segments, kind)
    finer = layer.refined(n + more, segments * (1 if one else times))
    assert (finer.n, finer.kind) == (n + more, kind) and finer.weight.dtype == torch.float64
    x = torch.cat([torch.randn(500, 3), torch.linspace(-1, 1, 41)[:, None].expand(-1, 3) + 1e-9])
    torch.testing.assert_close(finer(x), layer(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize('wanted', [{'n': 2}, {'segments': 6}, {'segments': 2}])
def test_a_refinement_that_would_change_the_function_is_refused(wanted):
    with pytest.raises(ValueError, match='keep their function with n of at least 3 and a multiple of 4 segments'):
        PiecewisePolynomial(2, 2, 3, 4).refined(**wanted)


@pytest.mark.parametrize('looks_up', [True, False])
@pytest.mark.parametrize('stride, dilation, causal', [(1, 1, True), (2, 1, False), (1, 3, True), (3, 2, True), (3, 1, False)])
@pytest.mark.parametrize('kind, n, segments', [('continuous', 3, 2), ('discontinuous', 2, 4), ('polynomial', 3, 1),
                                               ('fourier', 3, 1)])
def test_convolution(kind, n, segments, stride, dilation, causal, looks_up):
    """Each output is the sum, over the taps, of a layer of their own."""
    conv = PiecewisePolynomialConv1d(3, 4, 2, stride, dilation, causal, n=n, segments=segments, kind=kind)
    conv.looks_up = looks_up
    x = torch.randn(2, 9, 3)
    y = conv(x)
    taps = [PiecewisePolynomial(3, 4, n, segments, kind) for _ in range(2)]
    for tap, weight in zip(taps, conv.weight.view(2, -1, 4), strict=True):
        tap.weight.data = weight
    assert y.shape == (2, -(-9 // stride) if causal else (9 - dilation - 1) // stride + 1, 4)
    for t in range(y.shape[1]):
        at = [t * stride + k * dilation - dilation * causal for k in range(2)]
        torch.testing.assert_close(y[:, t], sum(tap(x[:, i]) for tap, i in zip(taps, at, strict=True) if i >= 0))
    finer = conv.refined(n + 2)
    torch.testing.assert_close(finer(x), y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', NORMALIZATIONS)
def test_normalizations(name):
    x = torch.randn(4, 5, 8) * 3 + 1
    y = NORMALIZATIONS[name](8)(x)
    if name == 'layer':
        torch.testing.assert_close(y, nn.functional.layer_norm(x, (8,)))
    if name == 'maxabs':
        torch.testing.assert_close(y.abs().amax(-1), torch.ones(4, 5))
        torch.testing.assert_close(y * x.abs().amax(-1, keepdim=True), x)
    if name == 'maxcenter':
        torch.testing.assert_close(torch.stack([y.amin(-1), y.amax(-1)]), torch.ones(2, 4, 5) * torch.tensor([[[-1.]], [[1.]]]))
    if name == 'none':
        assert torch.equal(y, x)
    assert NORMALIZATIONS[name](8)(torch.zeros(2, 8)).isfinite().all()


def test_low_precision_keeps_the_pieces():
    """Under autocast the pieces are still found in float32: bfloat16 cannot tell 200 segments apart."""
    layer = PiecewisePolynomial(1, 8, 2, 200)
    x = (2 * torch.arange(200)[:, None] + 1) / 200 - 1
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y.float(), layer(x), atol=0.02, rtol=0.02)


def test_points():
    np.testing.assert_allclose(points(3), [-1, 0, 1], atol=1e-15)
    np.testing.assert_allclose(points(4), [-1, -0.5, 0.5, 1])


@pytest.mark.parametrize('wrong, said', [
    ({'kind': 'spline'}, "kind='spline' is unknown: continuous, discontinuous, polynomial, fourier are"),
    ({'segments': 0}, 'n=2 and segments=0 must be at least 1'), ({'n': 0}, 'n=0 and segments=1 must be at least 1'),
    ({'n': 1}, 'n=1 is a constant'), ({'kind': 'polynomial', 'segments': 2}, 'segments=2 must be 1'),
    ({'kind': 'fourier', 'n': 4}, 'n=4 must be odd'), ({'initialization': 'zero'}, "initialization='zero' is unknown")])
def test_bad_links(wrong, said):
    with pytest.raises(ValueError, match=said):
        PiecewisePolynomial(2, 2, **wrong)
