"""
Layers whose links are functions: where nn.Linear multiplies an input by a weight, these send it through a piecewise polynomial.

                                                seed: "Natural Language Generation with Sparse High Order Layers" (its README)
- a link is given by its values at n Chebyshev-Lobatto points in each of `segments` pieces of [-1, 1], Lagrange between them
- for one input a single piece of a link is in use: of a layer with n 2 and 128 segments, 2 of 129 parameters a link
- outside [-1, 1] it goes on as a straight line, since polynomials explode there
- two ways of computing the same: few segments, expand each input into its basis and multiply; many, look the pieces up

B batch   T tokens   I inputs   O outputs   S segments   n points a segment   P parameters a link   K kernel   C channels
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

KINDS = ('continuous', 'discontinuous', 'polynomial', 'fourier')
INITIALIZATIONS = ('kaiming', 'linear')


def link_size(n, segments, kind):
    """P, the parameters of a link.  Raises ValueError, in a sentence, for what is no link."""
    if kind not in KINDS:
        raise ValueError(f"kind='{kind}' is unknown: {', '.join(KINDS)} are")
    if n < 1 or segments < 1:
        raise ValueError(f'n={n} and segments={segments} must be at least 1: points in a segment, and pieces of a link')
    if kind == 'continuous' and n < 2:
        raise ValueError('n=1 is a constant: pieces that meet at their ends have n of at least 2; or take kind=discontinuous')
    if kind in ('polynomial', 'fourier') and segments > 1:
        raise ValueError(f'a link of kind={kind} is one piece: segments={segments} must be 1')
    if kind == 'fourier' and n % 2 == 0:
        raise ValueError(f'n={n} must be odd for kind=fourier: a constant, and pairs of cosine and sine')
    return (n - 1) * segments + 1 if kind == 'continuous' else n * segments


def points(n):
    """The Chebyshev-Lobatto points -cos(pi k / (n - 1)), from -1 to 1: (n,) float64; the middle alone if n is 1."""
    k = torch.arange(n, dtype=torch.float64)
    return -torch.cos(math.pi * k / (n - 1)) if n > 1 else k


def chebyshev(t, n):
    """T_0(t) .. T_(n - 1)(t), n tensors of the shape of t.  Powers of t would lose digits with every order."""
    values = [torch.ones_like(t), t][:n]
    while len(values) < n:
        values.append(2 * t * values[-1] - values[-2])
    return values


def lagrange(n):
    """(n, n) float64; column k: how much of each T_j is in the polynomial that is 1 at the k-th point and 0 at the others."""
    return torch.linalg.inv(torch.stack(chebyshev(points(n), n), dim=-1))


class PiecewisePolynomial(nn.Module):
    """(..., I) -> (..., O): y_o is the sum over i of f_io(x_i), and each f_io a piecewise polynomial on [-1, 1].

    kind: 'continuous' pieces share their ends, P = (n - 1) * segments + 1; 'discontinuous' ones do not, P = n * segments;
    'polynomial' is one piece; 'fourier' a series of n terms and of period 2.  periodic: mirrored at -1 and 1 again and again,
    in place of the straight lines.  initialization: 'kaiming', all values of a link independent, or 'linear', every link a
    random straight line; with either the outputs have variance gain ** 2 if the inputs are spread over [-1, 1].
    Raises ValueError for what link_size() refuses."""

    def __init__(self, in_features, out_features, n=2, segments=1, kind='continuous', periodic=False, initialization='kaiming',
                 gain=1.0):
        super().__init__()
        self.P = link_size(n, segments, kind)
        if initialization not in INITIALIZATIONS:
            raise ValueError(f"initialization='{initialization}' is unknown: {', '.join(INITIALIZATIONS)} are")
        self.in_features, self.out_features, self.n, self.segments = in_features, out_features, n, segments
        self.kind, self.periodic = kind, periodic
        self.looks_up = 12 * n < self.P     # measured: a number looked up takes as long as some 12 in a matrix product
        self.weight = nn.Parameter(torch.empty(in_features * self.P, out_features))
        self.weight.matrix = not self.looks_up      # for optimizers: a matrix, else a table, as an embedding is
        j = torch.arange(n, dtype=torch.float64)
        slopes = torch.stack([(-1) ** (j + 1) * j * j, j * j]) @ lagrange(n)        # (2, n): at -1 and at 1; T_j has j * j
        self.register_buffer('lagrange', torch.cat([lagrange(n), slopes]).T.to(self.weight), persistent=False)  # (n, n + 2)
        self.initialize(initialization, gain)

    @torch.no_grad()
    def initialize(self, initialization, gain):
        if self.weight.is_meta:         # only its size is asked for
            return
        if initialization == 'kaiming':
            grid = torch.linspace(-1, 1, 1001)[:-1, None]
            energy = self.basis(grid)[1].square().sum(-1).mean()
            nn.init.normal_(self.weight, std=gain / math.sqrt(self.in_features * energy))
            return
        a, b = torch.randn(2, self.in_features, 1, self.out_features) * gain / math.sqrt(self.in_features * 4 / 3)
        if self.kind == 'fourier':                  # of a x only the sines are there; b is the constant
            k = torch.arange(1, self.n // 2 + 1)
            x, one = torch.zeros(self.P), torch.eye(self.P)[0]
            x[2 * k] = 2 * (-1.0) ** (k + 1) / (math.pi * k)
        else:
            x, one = self.nodes(), torch.ones(self.P)
        self.weight.copy_((a * x[:, None] + b * one[:, None]).flatten(0, 1))

    def nodes(self):
        """Where the values of a link are given, in [-1, 1]: (P,).  Not for a Fourier series."""
        at = (torch.arange(self.segments)[:, None] + (points(self.n) + 1) / 2) * 2 / self.segments - 1      # (S, n)
        if self.kind == 'continuous':
            at = torch.cat([at[:, :-1].flatten(), at[-1, -1:]])
        return at.flatten().to(self.weight)

    def basis(self, x, present=None):
        """What of a link is in use at x (..., I): the first of n parameters in a row (..., I), and what each of the n counts
        (..., I, n).  present: (..., I) bool, or None for all; the links of an input that is not there give nothing."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.periodic:
                x = 1 - ((x + 1) % 4 - 2).abs()
            if self.kind == 'fourier':
                angles = x[..., None] * (math.pi * torch.arange(1, self.n // 2 + 1, device=x.device))
                waves = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(-2)       # (..., I, n - 1)
                piece, values = torch.zeros_like(x), torch.cat([torch.ones_like(x)[..., None], waves], dim=-1)
            else:
                at = (x + 1) * (self.segments / 2)
                piece = at.detach().floor().clamp(0, self.segments - 1)
                t = 2 * (at - piece) - 1            # in [-1, 1], but for what lies beyond the first or the last piece
                inside = t.clamp(-1, 1) if self.n > 2 else t        # two points are a straight line by themselves
                powers = chebyshev(inside, self.n)
                if self.n > 2:
                    powers += [(t + 1).clamp(max=0), (t - 1).clamp(min=0)]
                values = self.lagrange[:, :len(powers)].to(x.dtype) @ torch.stack(powers).flatten(1)    # (n, ... * I)
                values = values.view(self.n, *x.shape).movedim(0, -1)                                   # (..., I, n)
            if present is not None:
                values = values * present[..., None]
            return piece.long() * (self.n - (self.kind == 'continuous')), values

    def forward(self, x, present=None):
        """x: (..., I).  present: see basis()."""
        first, values = self.basis(x, present)
        return self.look_up(first, values) if self.looks_up else self.expand(first, values) @ self.weight

    def expand(self, first, values):
        """(..., I), (..., I, n) -> (..., I * P), the basis of every link, of which most is 0."""
        where = first[..., None] + torch.arange(self.n, device=first.device)
        return values.new_zeros(*first.shape, self.P).scatter(-1, where, values).flatten(-2)

    def look_up(self, first, values):
        """(..., I), (..., I, n) -> (..., O)"""
        *shape, inputs = first.shape
        first, values = first.reshape(-1, inputs), values.reshape(-1, inputs * self.n)
        offsets = torch.arange(inputs, device=first.device) * self.P
        where = (first + offsets)[..., None] + torch.arange(self.n, device=first.device)            # (N, I, n)
        y = F.embedding_bag(where.flatten(1), self.weight.detach(), mode='sum', per_sample_weights=values)
        return TableGradient.apply(y, self.weight, first, values.detach(), self).view(*shape, -1)

    @torch.no_grad()
    def refined(self, n=None, segments=None):
        """A new layer of the same function, to rounding, with n points in each of `segments` pieces: of higher order
        (p-refinement), of more pieces (h-refinement), or both.  Raises ValueError where the function cannot be kept."""
        n, segments = n or self.n, segments or self.segments
        if n < self.n or segments % self.segments:
            raise ValueError(f'links of n={self.n} and segments={self.segments} keep their function with n of at least '
                             f'{self.n} and a multiple of {self.segments} segments, not with n={n} and segments={segments}')
        new = self.like(n, segments).to(self.weight)
        if self.kind == 'fourier':
            change = torch.eye(new.P, self.P)
        else:
            change = torch.zeros(new.P, self.P, dtype=torch.float64)        # the old values, read at the new nodes
            shared = self.kind == 'continuous'
            for piece in range(segments):
                old = piece * self.segments // segments                     # the piece that the new one lies in
                t = 2 * ((piece + (points(n) + 1) / 2) * self.segments / segments - old) - 1
                rows, columns = piece * (n - shared), old * (self.n - shared)
                change[rows:rows + n, columns:columns + self.n] = torch.stack(chebyshev(t, self.n), dim=-1) @ lagrange(self.n)
        weight = self.weight.view(-1, self.P, self.out_features)                    # (I, P, O)
        new.weight.copy_((change.to(weight) @ weight).flatten(0, 1))
        return new

    def like(self, n, segments):
        return PiecewisePolynomial(self.in_features, self.out_features, n, segments, self.kind, self.periodic)

    def extra_repr(self):
        return f'{self.in_features}, {self.out_features}, n={self.n}, segments={self.segments}, kind={self.kind}'


class TableGradient(torch.autograd.Function):
    """Hands y on as it is, and its gradient to the table that y was looked up in.

    embedding_bag would do that by itself, row by row.  Here the inputs are sorted by the piece they fell into, and the
    gradient of a row is looked up in turn, as the sum of the gradients of those outputs that used it: half the time."""

    @staticmethod
    def forward(ctx, y, table, first, values, layer):
        """y: (N, O).  table: (I * P, O).  first: (N, I) and values: (N, I * n), see basis()."""
        ctx.save_for_backward(first, values)
        ctx.layer = layer
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (first, values), layer = ctx.saved_tensors, ctx.layer
        if not ctx.needs_input_grad[1]:
            return gradient, None, None, None, None
        inputs, S, n = first.shape[1], layer.segments, layer.n
        step = n - (layer.kind == 'continuous')
        pieces, order = (first // step + torch.arange(inputs, device=first.device) * S).flatten().sort()
        examples = order // inputs
        bags = torch.searchsorted(pieces, torch.arange(inputs * S, device=first.device))    # where each piece begins
        values, gradient = values.view(-1, n)[order], gradient.contiguous()         # not contiguous: embedding_bag's slow loop
        table = gradient.new_zeros(inputs, layer.P, layer.out_features)
        for k in range(n):
            table[:, k:k + step * (S - 1) + 1:step] += F.embedding_bag(
                examples, gradient, bags, mode='sum', per_sample_weights=values[:, k].contiguous()).view(inputs, S, -1)
        return gradient, table.flatten(0, 1), None, None, None


class PiecewisePolynomialConv1d(PiecewisePolynomial):
    """(B, T, C) -> (B, T', O): a convolution whose kernel is made of functions.  causal: padded in front, with inputs that are
    not there, so that an output sees its own token and earlier ones, and T' is T / stride, rounded up.
    more: see PiecewisePolynomial."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, dilation=1, causal=False, **more):
        super().__init__(in_channels * kernel_size, out_channels, **more)
        self.kernel_size, self.stride, self.dilation, self.causal = kernel_size, stride, dilation, causal

    def like(self, n, segments):
        return PiecewisePolynomialConv1d(self.in_features // self.kernel_size, self.out_features, self.kernel_size, self.stride,
                                         self.dilation, self.causal, n=n, segments=segments, kind=self.kind,
                                         periodic=self.periodic)

    def forward(self, x, present=None):
        """x: (B, T, C).  present: (B, T, C) bool, or None for all."""
        first, values = self.basis(x, present)                                      # (B, T, C), (B, T, C, n)
        reach = (self.kernel_size - 1) * self.dilation
        if self.causal:
            first, values = F.pad(first, (0, 0, reach, 0)), F.pad(values, (0, 0, 0, 0, reach, 0))
        if self.looks_up:
            first, values = (v.unfold(1, reach + 1, self.stride)[..., ::self.dilation] for v in (first, values))
            return self.look_up(first.mT.flatten(2), values.permute(0, 1, 4, 2, 3).flatten(2, 3))   # (B, T', K * C), (..., n)
        kernel = self.weight.view(self.kernel_size, -1, self.out_features).permute(2, 1, 0)         # (O, C * P, K)
        return F.conv1d(self.expand(first, values).mT, kernel, stride=self.stride, dilation=self.dilation).mT


# what keeps the inputs of such a layer near [-1, 1] -------------------------------------------------------------------------

class MaxAbs(nn.Module):
    """Divided by the largest absolute value of the features: in [-1, 1], without parameters."""

    def forward(self, x):
        return x / x.abs().amax(-1, keepdim=True).clamp(min=1e-6)


class MaxCenter(nn.Module):
    """Shifted and scaled so that the features reach from -1 to 1, without parameters."""

    def forward(self, x):
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        return (x - (low + high) / 2) / ((high - low) / 2).clamp(min=1e-6)


NORMALIZATIONS = {'layer': nn.LayerNorm, 'maxabs': lambda features: MaxAbs(), 'maxcenter': lambda features: MaxCenter(),
                  'none': lambda features: nn.Identity()}
