"""piecewise.py: the definition against scipy's interpolation, and the fast layers against the definition."""

import doctest
import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BarycentricInterpolator

import piecewise
from piecewise import NORMALIZATIONS, PiecewisePolynomial, PiecewisePolynomialConv1d, sum_of_edges

SHAPES = [('continuous', 2, 1), ('continuous', 2, 128), ('continuous', 9, 2), ('discontinuous', 1, 5), ('discontinuous', 4, 3),
          ('polynomial', 1, 1), ('polynomial', 6, 1), ('fourier', 7, 1)]
each_shape = pytest.mark.parametrize('kind, n, segments', SHAPES)
X = torch.tensor([[-1.0, 1.0, 0.0], [0.3, -0.77, 0.99], [-1.7, 2.5, 1.01], [0.123, -0.5, 0.5]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def edges(layer):
    return layer.weight.view(-1, layer.P, layer.out_features)


def interpolated(values, x, kind, n, segments):
    """f(x) of one edge function: a number, by scipy."""
    if kind == 'fourier':
        return values[0] + sum(values[2 * k - 1] * math.cos(math.pi * k * x) + values[2 * k] * math.sin(math.pi * k * x)
                               for k in range(1, n // 2 + 1))
    width = 2 / segments
    segment = min(max(math.floor((x + 1) / width), 0), segments - 1)
    start, left = segment * (n - 1 if kind == 'continuous' else n), -1 + segment * width
    if n == 1:
        return values[start]
    nodes = [left + width * (1 - math.cos(math.pi * k / (n - 1))) / 2 for k in range(n)]
    curve, end = BarycentricInterpolator(nodes, values[start:start + n]), min(max(x, -1), 1)
    return float(curve(end) + (x - end) * curve.derivative(end))


def test_worked_example():
    torch.set_default_dtype(torch.float32)
    assert doctest.testmod(piecewise) == (0, 1)


@each_shape
def test_definition_is_the_sum_of_interpolations(kind, n, segments):
    weight = torch.randn(3, piecewise.edge_size(n, segments, kind), 2)
    expected = [[sum(interpolated(weight[i, :, o].tolist(), x[i].item(), kind, n, segments) for i in range(3))
                 for o in range(2)] for x in X]
    np.testing.assert_allclose(sum_of_edges(X, weight, n, segments, kind), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('sparse', [True, False])
@each_shape
def test_both_fast_ways_agree_with_the_definition(kind, n, segments, sparse):
    """The values, and the gradients of the inputs and of the parameters."""
    layer = PiecewisePolynomial(3, 2, n, segments, kind)
    assert layer.weight.matrix != layer.sparse == (segments == 128)
    layer.sparse = sparse
    inputs = torch.cat([X[1:] + 1e-3, torch.randn(50, 3)]).requires_grad_()     # not at a node, where the slope jumps
    found, expected = layer(inputs), sum_of_edges(inputs, edges(layer), n, segments, kind)
    torch.testing.assert_close(found, expected)
    towards = torch.randn(found.shape)
    torch.testing.assert_close(*(torch.autograd.grad((y * towards).sum(), (inputs, layer.weight), allow_unused=True,
                                                     materialize_grads=True) for y in (found, expected)))


def test_reflected_and_absent_inputs():
    layer, x = PiecewisePolynomial(1, 5, 3, 4, periodic=True), torch.linspace(-1, 1, 21)[:, None]
    for same in (x, 2 - x, -2 - x, x + 4):
        torch.testing.assert_close(layer(same), sum_of_edges(x, edges(layer), 3, 4))
    layer, x = PiecewisePolynomial(3, 2, 2, 128), torch.rand(5, 3)
    present = torch.tensor([True, False, True]).expand(5, 3)
    torch.testing.assert_close(layer(x, present), layer(x) - sum_of_edges(x[:, 1:2], edges(layer)[1:2], 2, 128))


@each_shape
@pytest.mark.parametrize('initialization', ['kaiming', 'linear'])
def test_initialization(kind, n, segments, initialization):
    """Outputs have the standard deviation `gain`, and inputs a gradient, except through constants (n = 1)."""
    layer = PiecewisePolynomial(64, 100, n, segments, kind, initialization=initialization, gain=0.5)
    x = (2 * torch.rand(500, 64) - 1).requires_grad_()
    y = layer(x)
    assert 0.3 < y.std() < 0.7
    assert n == 1 or torch.autograd.grad(y.square().sum(), x)[0].abs().mean() > 0.01
    if initialization == 'linear' and n > 1 and kind != 'fourier':
        low, middle, high = layer(torch.tensor([[-0.9], [0.1], [1.1]]).expand(3, 64))
        torch.testing.assert_close(middle, (low + high) / 2, rtol=1e-4, atol=1e-4)


@each_shape
def test_refinement_keeps_the_function(kind, n, segments):
    layer = PiecewisePolynomial(3, 4, n, segments, kind)
    x = torch.cat([torch.randn(500, 3), torch.linspace(-1, 1, 41)[:, None].expand(-1, 3) + 1e-9])
    for more, times in ((2, 1), (0, 3), (4, 2)):
        finer = layer.refined(n + more, segments * (1 if kind in ('polynomial', 'fourier') else times))
        assert finer.n == n + more
        torch.testing.assert_close(finer(x), layer(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize('sparse', [True, False])
@pytest.mark.parametrize('stride, dilation, causal', [(1, 3, True), (3, 2, True), (2, 1, False)])
@pytest.mark.parametrize('kind, n, segments', [('continuous', 3, 2), ('discontinuous', 2, 4), ('fourier', 3, 1)])
def test_convolution(kind, n, segments, stride, dilation, causal, sparse):
    """Each tap of the kernel is a layer, and their outputs add up."""
    conv = PiecewisePolynomialConv1d(3, 4, 2, stride, dilation, causal, n=n, segments=segments, kind=kind)
    conv.sparse, x = sparse, torch.randn(2, 9, 3)
    y, taps = conv(x), edges(conv).unflatten(0, (2, 3))
    assert y.shape == (2, -(-9 // stride) if causal else (9 - dilation - 1) // stride + 1, 4)
    for t in range(y.shape[1]):
        at = [t * stride + k * dilation - dilation * causal for k in range(2)]
        expected = sum(sum_of_edges(x[:, i], tap, n, segments, kind) for tap, i in zip(taps, at, strict=True) if i >= 0)
        torch.testing.assert_close(y[:, t], expected)
    torch.testing.assert_close(conv.refined(n + 2)(x), y)


def test_normalizations_and_autocast():
    """Segments are found in float32: bfloat16 cannot tell 200 of them apart."""
    x = torch.randn(4, 5, 8) * 3 + 1
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    torch.testing.assert_close(NORMALIZATIONS['maxabs'](8)(x) * x.abs().amax(-1, keepdim=True), x)
    torch.testing.assert_close((NORMALIZATIONS['maxcenter'](8)(x) + 1) / 2 * (high - low) + low, x)
    assert all(normalization(8)(torch.zeros(2, 8)).isfinite().all() for normalization in NORMALIZATIONS.values())
    layer = PiecewisePolynomial(1, 8, 2, 200).float()
    x = (2 * torch.arange(200.0)[:, None] + 1) / 200 - 1
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x.float())
    torch.testing.assert_close(y.float(), layer(x.float()), atol=0.02, rtol=0.02)


@pytest.mark.parametrize('settings, message', [
    ({'kind': 'polynomial', 'segments': 2}, 'segments=2.*1'), ({'initialization': 'zero'}, "initialization='zero'")])
def test_bad_settings(settings, message):
    """Those that highorder.Config does not refuse itself, see test_contract.py."""
    with pytest.raises(ValueError, match=message):
        PiecewisePolynomial(2, 2, **settings)
    for change in ({'n': 2}, {'segments': 6}, {'segments': 2}):     # a refinement that would change the function
        with pytest.raises(ValueError, match=r'at least 3, .* multiple of 4'):
            PiecewisePolynomial(2, 2, 3, 4).refined(**change)
