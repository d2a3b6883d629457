"""
Layers of edge functions: where nn.Linear multiplies an input by a weight, these send it through a piecewise polynomial.

    nn.Linear               y_o = sum_i w_io * x_i
    PiecewisePolynomial     y_o = sum_i f_io(x_i)

f_io is called the edge function from input i to output o, as in Kolmogorov-Arnold networks (Liu et al. 2024, arXiv 2404.19756).
After "Natural Language Generation with Sparse High Order Layers": https://github.com/jloveric/language-interpolation, whose
layers are in https://github.com/jloveric/high-order-layers-torch.

- [-1, 1] is divided into S equal segments.  In each, f_io is the polynomial of degree n - 1 through its values at n nodes.
  These values are the parameters.
- Outside [-1, 1] it is a straight line, because polynomials grow too fast there.
- An input uses n parameters of each of its edge functions: 2 of 129 if n = 2 and S = 128.

sum_of_edges() below is the definition.  The two fast ways to compute it stand at the end of the file.

B batch   T tokens   I inputs   O outputs   S segments   n nodes per segment   P parameters per edge   K kernel   C channels
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

KINDS = ('continuous', 'discontinuous', 'polynomial', 'fourier')
INITIALIZATIONS = ('kaiming', 'linear')


# the definition -------------------------------------------------------------------------------------------------------------

def sum_of_edges(x, weight, n, segments=1, kind='continuous'):
    """y_o = sum_i f_io(x_i).  x: (N, I).  weight: (I, P, O), the values of f_io at its nodes.  Returns (N, O).

    Example: one edge function with n = 2 and two segments has its values at -1, 0 and 1.  x = -0.25 is in the first segment,
    [-1, 0], at t = 0.5 of that segment's own [-1, 1].  The values f(-1) = 3 and f(0) = 1 are used, with weights 0.25 and 0.75:

    >>> sum_of_edges(torch.tensor([[-0.25]]), torch.tensor([3.0, 1.0, 5.0]).view(1, 3, 1), n=2, segments=2)
    tensor([[1.5000]])
    """
    y = 0
    for i, x_i in enumerate(x.unbind(1)):                                           # (N,)
        if kind == 'fourier':
            first, shares = torch.zeros_like(x_i), fourier(x_i, n)
        else:
            segment = ((x_i + 1) * (segments / 2)).floor().clamp(0, segments - 1)
            t = (x_i + 1) * segments - 2 * segment - 1
            end = t.clamp(-1, 1)            # equal to t, except outside [-1, 1]: there, continue along the tangent
            at_end, slopes = torch.func.jvp(lambda t: lagrange(t, n), (end,), (torch.ones_like(end),))
            shares = [share + slope * (t - end) for share, slope in zip(at_end, slopes, strict=True)]
            first = segment * (n - 1 if kind == 'continuous' else n)        # continuous: neighbours share a node
        for k, share in enumerate(shares):
            y = y + share[:, None] * weight[i, first.long() + k]                    # (N, O)
    return y


def lagrange(t, n):
    """The n Lagrange polynomials at t: the k-th is 1 at node k of [-1, 1] and 0 at the other nodes."""
    nodes = chebyshev_nodes(n).tolist()
    return [math.prod(((t - b) / (a - b) for b in nodes if b != a), start=torch.ones_like(t)) for a in nodes]


def fourier(x, n):
    """1, cos(pi x), sin(pi x), cos(2 pi x), ..: n tensors."""
    return [torch.ones_like(x), *(wave(math.pi * k * x) for k in range(1, n // 2 + 1) for wave in (torch.cos, torch.sin))]


def chebyshev_nodes(n):
    """The Chebyshev-Lobatto points -cos(pi k / (n - 1)), from -1 to 1: (n,) float64.  n = 1: the middle."""
    k = torch.arange(n, dtype=torch.float64)
    return -torch.cos(math.pi * k / (n - 1)) if n > 1 else k


def edge_size(n, segments, kind):
    """P, the parameters of one edge function.  Raises ValueError for settings that do not define one."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind='{kind}': choose {', '.join(KINDS)}")
    if not 1 <= n <= 100 or segments < 1:
        raise ValueError(f'n={n} must be from 1 to 100, and segments={segments} at least 1')
    if kind == 'continuous' and n < 2:
        raise ValueError('n=1 must be at least 2 for kind=continuous, whose segments share their ends; or choose '
                         'kind=discontinuous')
    if kind in ('polynomial', 'fourier') and segments > 1:
        raise ValueError(f'segments={segments} must be 1 for kind={kind}')
    if kind == 'fourier' and n % 2 == 0:
        raise ValueError(f'n={n} must be odd for kind=fourier: a constant and pairs of cosine and sine')
    return (n - 1) * segments + 1 if kind == 'continuous' else n * segments


# the layers -----------------------------------------------------------------------------------------------------------------

class PiecewisePolynomial(nn.Module):
    """(..., I) -> (..., O): sum_of_edges(), whose edge functions are the parameters.

    kind            'continuous': neighbouring segments share a node, P = (n - 1) * S + 1.  'discontinuous': P = n * S.
                    'polynomial': one segment.  'fourier': a Fourier series of n terms with period 2.
    periodic        reflects x at -1 and 1, in place of the straight lines outside
    initialization  'kaiming': independent values.  'linear': every edge function is a random straight line.
    gain            the standard deviation of the outputs at initialization, if the inputs are uniform on [-1, 1]

    Raises ValueError for what edge_size() refuses and for an unknown initialization."""

    def __init__(self, in_features, out_features, n=2, segments=1, kind='continuous', periodic=False, initialization='kaiming',
                 gain=1.0):
        super().__init__()
        self.P = edge_size(n, segments, kind)
        if initialization not in INITIALIZATIONS:
            raise ValueError(f"unknown initialization='{initialization}': choose {' or '.join(INITIALIZATIONS)}")
        self.in_features, self.out_features, self.n, self.segments = in_features, out_features, n, segments
        self.kind, self.periodic = kind, periodic
        self.spacing = n - (kind == 'continuous')       # from the first parameter of a segment to that of the next
        self.sparse = 12 * n < self.P       # measured: a looked-up parameter costs as much as about 12 in a matrix product
        self.weight = nn.Parameter(torch.empty(in_features * self.P, out_features))
        self.weight.matrix = not self.sparse            # for the optimizer: a matrix, or else a table like an embedding
        self.register_buffer('coefficients', chebyshev_coefficients(n).to(self.weight), persistent=False)      # (n, n + 2)
        self.initialize(initialization, gain)

    @torch.no_grad()
    def initialize(self, initialization, gain):
        if self.weight.is_meta:
            return
        if initialization == 'kaiming':
            grid = torch.linspace(-1, 1, 1001)[:-1, None]
            energy = self.basis(grid)[1].square().sum(-1).mean()
            nn.init.normal_(self.weight, std=gain / math.sqrt(self.in_features * energy))
            return
        a, b = torch.randn(2, self.in_features, 1, self.out_features) * gain / math.sqrt(self.in_features * 4 / 3)
        if self.kind == 'fourier':                  # the series of x has only sines; b is the constant
            k = torch.arange(1, self.n // 2 + 1)
            x, one = torch.zeros(self.P), torch.eye(self.P)[0]
            x[2 * k] = 2 * (-1.0) ** (k + 1) / (math.pi * k)
        else:
            x, one = self.nodes(), torch.ones(self.P)
        self.weight.copy_((a * x[:, None] + b * one[:, None]).flatten(0, 1))

    def nodes(self):
        """The nodes of an edge function in [-1, 1]: (P,).  A Fourier series has none."""
        x = (torch.arange(self.segments)[:, None] + (chebyshev_nodes(self.n) + 1) / 2) * 2 / self.segments - 1      # (S, n)
        if self.kind == 'continuous':
            x = torch.cat([x[:, :-1].flatten(), x[-1, -1:]])
        return x.flatten().to(self.weight)

    def basis(self, x, present=None):
        """Which parameters x (..., I) uses: the index of the first (..., I) and the weights of n in a row (..., I, n).
        present: (..., I) bool, or None if all inputs are present; the edge functions of an absent input contribute 0."""
        with torch.autocast(x.device.type, enabled=False):      # at least float32: bfloat16 cannot tell 200 segments apart
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.periodic:
                x = 1 - ((x + 1) % 4 - 2).abs()
            if self.kind == 'fourier':
                segment, values = torch.zeros_like(x), torch.stack(fourier(x, self.n), dim=-1)
            else:
                position = (x + 1) * (self.segments / 2)
                segment = position.detach().floor().clamp(0, self.segments - 1)
                values = lagrange_fast(2 * (position - segment) - 1, self.coefficients.to(x.dtype))
            if present is not None:
                values = values * present[..., None]
            return segment.long() * self.spacing, values.to(self.weight.dtype)

    def forward(self, x, present=None):
        """x: (..., I).  present: see basis()."""
        first, values = self.basis(x, present)
        return self.look_up(first, values) if self.sparse else expand(first, values, self.P) @ self.weight

    def look_up(self, first, values):
        return look_up(first, values, self.weight, self.P, self.spacing)

    @torch.no_grad()
    def refined(self, n=None, segments=None):
        """A new layer with the same function up to rounding, of higher order n (p-refinement), more segments (h-refinement), or
        both.  Raises ValueError if they cannot represent the function."""
        n, segments = n or self.n, segments or self.segments
        if n < self.n or segments % self.segments:
            raise ValueError(f'n={n} and segments={segments} would change the function: n must be at least {self.n}, and '
                             f'segments a multiple of {self.segments}')
        new = self.like(n, segments).to(self.weight)
        if self.kind == 'fourier':
            change = torch.eye(new.P, self.P)
        else:
            change = torch.zeros(new.P, self.P, dtype=torch.float64)        # evaluates the old functions at the new nodes
            for segment in range(segments):
                old = segment * self.segments // segments                   # the segment that contains it
                t = 2 * ((segment + (chebyshev_nodes(n) + 1) / 2) * self.segments / segments - old) - 1
                row, column = segment * new.spacing, old * self.spacing
                change[row:row + n, column:column + self.n] = torch.stack(lagrange(t, self.n), dim=-1)
        weight = self.weight.view(-1, self.P, self.out_features)                    # (I, P, O)
        new.weight.copy_((change.to(weight) @ weight).flatten(0, 1))
        return new

    def like(self, n, segments):
        return PiecewisePolynomial(self.in_features, self.out_features, n, segments, self.kind, self.periodic)

    def extra_repr(self):
        return f'{self.in_features}, {self.out_features}, n={self.n}, segments={self.segments}, kind={self.kind}'


class PiecewisePolynomialConv1d(PiecewisePolynomial):
    """(B, T, C) -> (B, T', O): a convolution whose kernel consists of edge functions.  more: see PiecewisePolynomial.
    causal: the window is padded in front with absent inputs, so an output depends on its own token and earlier ones, and T' is
    T / stride, rounded up."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, dilation=1, causal=False, **more):
        super().__init__(in_channels * kernel_size, out_channels, **more)
        self.kernel_size, self.stride, self.dilation, self.causal = kernel_size, stride, dilation, causal

    def like(self, n, segments):
        return PiecewisePolynomialConv1d(self.in_features // self.kernel_size, self.out_features, self.kernel_size, self.stride,
                                         self.dilation, self.causal, n=n, segments=segments, kind=self.kind,
                                         periodic=self.periodic)

    def forward(self, x, present=None):
        """x: (B, T, C).  present: (B, T, C) bool, or None if all inputs are present."""
        first, values = self.basis(x, present)                                      # (B, T, C), (B, T, C, n)
        reach = (self.kernel_size - 1) * self.dilation
        if self.causal:
            first, values = F.pad(first, (0, 0, reach, 0)), F.pad(values, (0, 0, 0, 0, reach, 0))
        if self.sparse:
            first, values = (v.unfold(1, reach + 1, self.stride)[..., ::self.dilation] for v in (first, values))
            return self.look_up(first.mT.flatten(2), values.permute(0, 1, 4, 2, 3).flatten(2, 3))   # (B, T', K * C), (..., n)
        kernel = self.weight.view(self.kernel_size, -1, self.out_features).permute(2, 1, 0)         # (O, C * P, K)
        return F.conv1d(expand(first, values, self.P).mT, kernel, stride=self.stride, dilation=self.dilation).mT


# normalizations that keep the inputs of such a layer near [-1, 1] -----------------------------------------------------------

class MaxAbs(nn.Module):
    """Divides by the largest absolute value of the features."""

    def forward(self, x):
        return x / x.abs().amax(-1, keepdim=True).clamp(min=1e-6)


class MaxCenter(nn.Module):
    """Shifts and scales the features so that their minimum is -1 and their maximum 1."""

    def forward(self, x):
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        return (x - (low + high) / 2) / ((high - low) / 2).clamp(min=1e-6)


NORMALIZATIONS = {'layer': nn.LayerNorm, 'maxabs': lambda features: MaxAbs(), 'maxcenter': lambda features: MaxCenter(),
                  'none': lambda features: nn.Identity()}


# the same sum, computed fast ------------------------------------------------------------------------------------------------
#
# basis() gives for each input the first of the n parameters in use, and their weights v.  With W (I * P, O) there are two ways:
#
#   few segments    y = E W: expand() writes the weights v into rows E (N, I * P), which are 0 elsewhere
#   many segments   E is nearly all 0, so look_up() adds only the I * n rows of W in use, weighted by v: an embedding_bag
#
# Lagrange polynomials as products take O(n ** 2) operations per input.  lagrange_fast() computes T_0(t) .. T_(n-1)(t), the
# Chebyshev polynomials, by their recurrence, and multiplies with the coefficients of each Lagrange polynomial in them.  Powers
# of t would lose digits with every order.

def chebyshev(t, n):
    """T_0(t) .. T_(n-1)(t): n tensors."""
    values = [torch.ones_like(t), t][:n]
    while len(values) < n:
        values.append(2 * t * values[-1] - values[-2])
    return values


def chebyshev_coefficients(n):
    """(n, n + 2) float64.  Row k: the coefficients of Lagrange polynomial k in T_0 .. T_(n-1), and its slopes at -1 and 1."""
    coefficients = torch.linalg.inv(torch.stack(chebyshev(chebyshev_nodes(n), n), dim=-1))                  # (n, n): T_j, k
    j = torch.arange(n, dtype=torch.float64)
    slopes = torch.stack([(-1) ** (j + 1) * j * j, j * j])                          # of T_j at -1 and at 1
    return torch.cat([coefficients, slopes @ coefficients]).T


def lagrange_fast(t, coefficients):
    """lagrange(), continued as straight lines outside [-1, 1].  t: any shape.  Returns (*t.shape, n)."""
    n = len(coefficients)
    if n > 2:
        terms = [*chebyshev(t.clamp(-1, 1), n), (t + 1).clamp(max=0), (t - 1).clamp(min=0)]
    else:
        terms = chebyshev(t, n)             # a straight line already
    values = coefficients[:, :len(terms)] @ torch.stack(terms).flatten(1)           # (n, t.numel())
    return values.view(n, *t.shape).movedim(0, -1)


def expand(first, values, P):
    """first: (..., I).  values: (..., I, n).  Returns (..., I * P)."""
    index = first[..., None] + torch.arange(values.shape[-1], device=first.device)
    return values.new_zeros(*first.shape, P).scatter(-1, index, values).flatten(-2)


def look_up(first, values, weight, P, spacing):
    """first: (..., I).  values: (..., I, n).  weight: (I * P, O).  Returns (..., O)."""
    *shape, inputs, n = values.shape
    first, values = first.reshape(-1, inputs), values.reshape(-1, inputs * n)
    starts = first + P * torch.arange(inputs, device=first.device)                  # (N, I)
    rows = starts[..., None] + torch.arange(n, device=first.device)                  # (N, I, n)
    y = F.embedding_bag(rows.flatten(1), weight.detach(), mode='sum', per_sample_weights=values)
    return TableGradient.apply(y, weight, first, values.detach(), P, spacing).view(*shape, -1)


class TableGradient(torch.autograd.Function):
    """The identity of y = look_up(..) in forward; in backward also the gradient of the table, in half of embedding_bag's time.

    y_o = sum_(i, k) v_ik W[i, first_i + k, o], so the gradient of a row of W is the sum of v_ik dL/dy over all examples that
    used the row as their k-th.  embedding_bag's backward adds these to the rows one by one.  Sorted by the segment they fell
    into, the inputs of each segment are one bag, and their sum is an embedding_bag in turn, with dL/dy as its table."""

    @staticmethod
    def forward(ctx, y, table, first, values, P, spacing):
        """y: (N, O).  table: (I * P, O).  first: (N, I).  values: (N, I * n)."""
        ctx.save_for_backward(first, values)
        ctx.P, ctx.spacing = P, spacing
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (first, values), P, spacing = ctx.saved_tensors, ctx.P, ctx.spacing
        if not ctx.needs_input_grad[1]:
            return gradient, None, None, None, None, None
        inputs = first.shape[1]
        n = values.shape[1] // inputs
        S = (P - n) // spacing + 1
        segments, order = (first // spacing + torch.arange(inputs, device=first.device) * S).flatten().sort()
        examples = order // inputs
        bags = torch.searchsorted(segments, torch.arange(inputs * S, device=first.device))      # where each segment begins
        values, gradient = values.view(-1, n)[order], gradient.contiguous()         # embedding_bag is slow if not contiguous
        table = gradient.new_zeros(inputs, P, gradient.shape[1])
        for k in range(n):
            table[:, k:k + spacing * (S - 1) + 1:spacing] += F.embedding_bag(
                examples, gradient, bags, mode='sum', per_sample_weights=values[:, k].contiguous()).view(inputs, S, -1)
        return gradient, table.flatten(0, 1), None, None, None, None
