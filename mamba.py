"""
Mamba: a state space model whose dynamics depend on the input.      (Gu and Dao 2023, arXiv 2312.00752)

- no attention: each channel carries a state of N values from token to token, so the cost per token is constant
- selective: the step size Delta and the matrices B and C are computed from the token, so the token decides how much of the
  state is kept, what is written to it and what is read from it
- a block is one gated branch: convolution, then scan; there is no MLP and there are no positions
- the recurrence is defined in plain code (scan_plain); the fast forms with their own backward are at the end of the file
- from_pretrained() gives the published logits
- the projections are made by a factory, so that another layer can replace nn.Linear (see highorder.py)

Names of the paper in code: Delta is dt, A is -exp(A_log), B and C are b and c.

B batch   T tokens in the window   C channels (n_embd)   E inner channels (expand * C)   N state size per channel (d_state)
R rank of the map to Delta (dt_rank)   K kernel size of the convolution (d_conv)   V vocabulary
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:                   # mamba-130m: 1024, 50280, 24, 768
    block_size: int = 256       # tokens in the window; the model also runs on longer texts
    vocab_size: int = 65        # size of the vocabulary
    n_layer: int = 4            # blocks
    n_embd: int = 128           # channels
    d_state: int = 16           # size of the state of each inner channel
    d_conv: int = 4             # kernel size of the convolution
    expand: int = 2             # inner channels per channel
    dt_rank: int = 0            # rank of the map to the step sizes (0: n_embd / 16, rounded up)
    dt_min: float = 0.001       # smallest initial step size
    dt_max: float = 0.1         # largest initial step size
    eps: float = 1e-5           # epsilon of RMSNorm
    tied: bool = True           # the output layer is the token embedding

    @classmethod
    def tiny(cls):
        return cls(block_size=16, vocab_size=17, n_layer=2, n_embd=16, d_state=4)

    def __post_init__(self):
        self.dt_rank = self.dt_rank or math.ceil(self.n_embd / 16)
        if min(self.d_state, self.d_conv, self.expand, self.dt_rank) < 1 or not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f'd_state={self.d_state}, d_conv={self.d_conv}, expand={self.expand} and dt_rank={self.dt_rank} '
                             f'must be at least 1, and dt_min={self.dt_min} above 0 and at most dt_max={self.dt_max}')


# the selective scan, in plain code (sections 2 and 3.2, algorithm 2) --------------------------------------------------------
#
# A state space model is a linear differential equation per channel, from an input x(t) to an output y(t) by a state h(t) of N:
#
#     h'(t) = A h(t) + B x(t)          y(t) = C h(t)
#
# Zero-order hold: x is constant during a step of length Delta.  Then the equation has an exact solution (equation 4),
# h[t] = exp(Delta A) h[t-1] + (Delta A)^-1 (exp(Delta A) - 1) Delta B x[t].  Mamba's code keeps the first factor and takes the
# second to first order, Delta B x[t].  A is diagonal, so each of the E x N states is a scalar with its own decay:
#
#     h[t] = exp(Delta[t] A) h[t-1] + Delta[t] B[t] x[t]          y[t] = C[t] h[t]
#
# Since A < 0, Delta acts as a gate: a large Delta forgets the state and writes the token, a small one keeps the state and
# ignores the token.
#
# x, dt: (B, T, E).  A: (E, N).  b, c: (B, T, N).  h: (B, E, N).  All are at least float32: the decay over a text is a product
# of hundreds of factors near 1.

def scan_plain(x, dt, A, b, c, h=None):
    """The recurrence as written above; gradients by autograd.  h: the initial state, zeros by default.
    Returns y (B, T, E) and the last state (B, E, N)."""
    decay = torch.exp(dt[..., None] * A)                                            # (B, T, E, N)
    new = (dt * x)[..., None] * b[:, :, None]                                       # (B, T, E, N)
    h = torch.zeros_like(new[:, 0]) if h is None else h
    ys = []
    for t in range(x.shape[1]):
        h = decay[:, t] * h + new[:, t]
        ys.append((h * c[:, t, None]).sum(-1))                                      # (B, E)
    return torch.stack(ys, dim=1), h


def scan(x, dt, A, b, c, h=None):
    """scan_plain in one of its fast forms; no gradient flows through h or the last state."""
    if x.device.type == 'cpu' and torch.compiler.is_compiling():
        return compiled_scan(x, dt, A, b, c, x.new_zeros(len(x), *A.shape) if h is None else h)[:2]
    return Scan.apply(x, dt, A, b, c, h, x.device.type != 'cpu')


def inverse_softplus(y):
    """The x with log(1 + exp(x)) == y, for y > 0:  log(exp(y) - 1) = y + log(1 - exp(-y)), which does not overflow."""
    return y + torch.log(-torch.expm1(-y))


# the network ----------------------------------------------------------------------------------------------------------------

class Mixer(nn.Module):
    """(B, T, C) -> (B, T, C)   (section 3.4, figure 3)"""

    def __init__(self, config, linear=nn.Linear):
        super().__init__()
        E, N, self.rank, self.d_state = config.expand * config.n_embd, config.d_state, config.dt_rank, config.d_state
        self.in_proj = linear(config.n_embd, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, kernel_size=config.d_conv, groups=E)
        self.x_proj = linear(E, self.rank + 2 * N, bias=False)
        self.dt_proj = nn.Linear(self.rank, E)
        # S4D-real (section 3.6): A = -1, -2, ..., -N in every channel, time constants from 1 / Delta to 1 / (N Delta) tokens.
        # The logarithm keeps A negative in training, so that the state always decays.
        self.A_log = nn.Parameter(torch.arange(1.0, N + 1).log().repeat(E, 1))
        self.D = nn.Parameter(torch.ones(E))            # skip connection y + D x: the current token need not pass the state
        self.out_proj = linear(E, config.n_embd, bias=False)
        self.A_log.no_weight_decay = self.D.no_weight_decay = True
        # the initial step size, softplus(bias), is log-uniform between dt_min and dt_max
        dt = torch.exp(torch.empty(E).uniform_(math.log(config.dt_min), math.log(config.dt_max))).clamp(min=1e-4)
        self.dt_proj.bias.data = inverse_softplus(dt)
        nn.init.uniform_(self.dt_proj.weight, -self.rank ** -0.5, self.rank ** -0.5)

    def forward(self, x, state=None):
        """state: see Model.init_state; updated in place."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)                                  # each (B, T, E)
        T, K = x.shape[1], self.conv1d.kernel_size[0]
        before = x.new_zeros(len(x), K - 1, x.shape[2]) if state is None else state['inputs'].to(x.dtype)
        longer, x = torch.cat([before, x], dim=1), self.conv1d.bias                 # (B, K - 1 + T, E)
        for k in range(K):              # the convolution, in a fraction of the time that conv1d's backward takes on a CPU
            x = torch.addcmul(x, longer[:, k:k + T], self.conv1d.weight[:, 0, k])
        x = F.silu(x)                                                               # (B, T, E)
        dt, b, c = self.x_proj(x).split([self.rank, self.d_state, self.d_state], dim=-1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            x, dt, b, c, weight, bias = (v.to(dtype) for v in (x, dt, b, c, self.dt_proj.weight, self.dt_proj.bias))
            dt = F.softplus(F.linear(dt, weight, bias))                             # (B, T, E)
            y, h = scan(x, dt, -torch.exp(self.A_log.to(dtype)), b, c, state and state['h'])
            y = y + self.D * x
        if state is not None:
            state.update(inputs=longer[:, T:], h=h)
        return self.out_proj(y.to(gate.dtype) * F.silu(gate))


class Block(nn.Module):

    def __init__(self, config, linear=nn.Linear):
        super().__init__()
        self.norm = nn.RMSNorm(config.n_embd, eps=config.eps)
        self.mixer = Mixer(config, linear)

    def forward(self, x, state=None):
        return x + self.mixer(self.norm(x), state)


class Model(nn.Module):
    predicts = 'every'
    model_types = 'mamba',
    adjustable = ('block_size', 'dt_min', 'dt_max')     # the last two are of the initial weights

    def __init__(self, config: Config, linear=nn.Linear):
        """linear: makes in_proj, x_proj and out_proj of every block; called as nn.Linear is."""
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList([Block(config, linear) for _ in range(config.n_layer)])
        self.norm_f = nn.RMSNorm(config.n_embd, eps=config.eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        else:
            nn.init.normal_(self.lm_head.weight, std=0.02)
        nn.init.normal_(self.wte.weight, std=0.02)
        for block in self.layers:                       # n_layer branches add up in the residual stream
            for p in block.mixer.out_proj.parameters():
                if p.dim() > 1:
                    p.data /= math.sqrt(config.n_layer)

    def trunk(self, x, states=None):
        """x: (B, T) tokens -> (B, T, C)"""
        h = self.wte(x)                                                             # (B, T, C)
        for i, block in enumerate(self.layers):
            h = block(h, states and states[i])
        return self.norm_f(h)

    def forward(self, x, y=None):
        """x: (B, T) int64.  y: (B, T), the token after each; -1 is not scored.
        Returns logits (B, T, V) and the mean cross-entropy in nats (None without y)."""
        logits = self.lm_head(self.trunk(x))                                        # (B, T, V)
        if y is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)

    # published weights ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name, **settings):
        """A model with published weights: any Mamba on the hub in transformers' format, such as state-spaces/mamba-130m-hf,
        or a local folder or .safetensors file.  settings: fields of Config.  The tokenizer is GPT-NeoX's, not GPT-2's.
        Raises ValueError if the weights are not a Mamba's, or contradict a setting."""
        from harness import hub
        described, weights = hub.load(name)
        weights = {k.removeprefix('backbone.'): v for k, v in weights.items()}
        if not {'embeddings.weight', 'norm_f.weight', 'layers.0.mixer.A_log'} <= weights.keys():
            raise ValueError('these are not the weights of a Mamba in the format of transformers')
        (V, C), (E, N), K, R = (weights[k].shape for k in (
            'embeddings.weight', *(f'layers.0.mixer.{k}' for k in ('A_log', 'conv1d.weight', 'dt_proj.weight'))))
        L = len([k for k in weights if k.endswith('.A_log')])
        hub.check_config(
            'mamba.py', described, model_type=[*cls.model_types], vocab_size=[V], hidden_size=[C], num_hidden_layers=[L],
            state_size=[N], conv_kernel=[K[-1]], expand=[E // C], intermediate_size=[E], time_step_rank=['auto', R[1]],
            layer_norm_epsilon=float, hidden_act=['silu'], use_bias=[False], use_conv_bias=[True])
        published = {'vocab_size': V, 'n_embd': C, 'n_layer': L, 'd_state': N, 'd_conv': K[-1], 'expand': E // C,
                     'dt_rank': R[1], 'tied': hub.is_tied(described, weights, 'lm_head.weight', 'embeddings.weight')}
        if described:
            published['eps'] = described.get('layer_norm_epsilon', 1e-5)
        model = cls(Config(**{'block_size': 1024} | hub.merge(published, settings)))
        weights['wte.weight'] = weights.pop('embeddings.weight')
        if model.config.tied:
            weights['lm_head.weight'] = weights['wte.weight']
        return hub.fill(model, weights)

    # generation -------------------------------------------------------------------------------------------------------------

    def init_state(self, batch_size):
        """The state of step() before the first token.  Per block: the last inputs of the convolution, and h of the scan."""
        c, like = self.config, self.wte.weight
        E, dtype = c.expand * c.n_embd, torch.promote_types(like.dtype, torch.float32)
        return [{'inputs': like.new_zeros(batch_size, c.d_conv - 1, E),
                 'h': like.new_zeros(batch_size, E, c.d_state, dtype=dtype)} for _ in self.layers]

    def step(self, token, state, every=False):
        """token: (B, n), the next n tokens of each text.  Returns the logits of the token after them (B, V), or with `every` of
        the token after each (B, n, V), and the state.  The cost per token does not depend on the length of the
        text, and there is no limit to that length."""
        h = self.trunk(token, state)                                                # (B, n, C)
        return self.lm_head(h if every else h[:, -1]), state


# the fast forms: for a CPU, for a GPU, and for a compiled model on a CPU -----------------------------------------------------
#
# With u[t] = dt[t] x[t] and a[t] = exp(dt[t] A): h[t] = a[t] h[t-1] + u[t] b[t], and y[t] = sum over N of c[t] h[t].
# Let g[t] be the gradient of the loss with respect to h[t].  h[t] affects the loss through y[t] and h[t+1], so g obeys the same
# recurrence backwards in time, and the other gradients follow from it:
#
#     g[t]  = dy[t] c[t] + a[t+1] g[t+1]
#     dc[t] = sum over E of dy[t] h[t]        db[t] = sum over E of g[t] u[t]        du[t] = sum over N of g[t] b[t]
#     gradient of dt[t] A:  p[t] = g[t] a[t] h[t-1]  (da[t] = g[t] h[t-1], and the derivative of exp is a[t])
#     dA = sum over t of p[t] dt[t]           ddt[t] = sum over N of p[t] A + du[t] x[t]           dx[t] = du[t] dt[t]

class Scan(torch.autograd.Function):
    """scan_plain, in pieces of L tokens.  Only the state before each piece is kept; the backward pass computes the others
    again, so that no tensor of (B, T, N, E) waits for it.

    parallel: one piece, without a loop over tokens, in three tensors of (B, T, N, E).  Otherwise the tensors of a piece fit
    into the caches of a CPU, and each operation is one call per piece, except for the recurrence."""

    @staticmethod
    def forward(ctx, x, dt, A, b, c, h, parallel):
        (B, T, E), N = x.shape, A.shape[1]
        L = T if parallel else min(T, 1 << max(0, (PIECE // (B * N * E)).bit_length() - 1))
        A, h = A.T.contiguous(), x.new_zeros(B, N, E) if h is None else h.mT
        y, starts, room = torch.empty_like(x), [], x.new_empty(2, B, L, N, E)
        for dt_, u, b_, c_, y_ in pieces(L, dt, dt * x, b, c, y):
            starts.append(h)
            state = states(dt_, u, A, b_, h, room, parallel)[1]                     # (B, L, N, E)
            y_.copy_((c_[:, :, None] @ state)[:, :, 0])
            h = state[:, -1].clone()
        ctx.save_for_backward(x, dt, A, b, c, *starts)
        ctx.parallel, ctx.length, last = parallel, L, h.mT
        ctx.mark_non_differentiable(last)
        return y, last                                                              # (B, T, E), (B, E, N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, _):
        x, dt, A, b, c, *starts = ctx.saved_tensors
        u, du, ddt, db, dc, dA = dt * x, *map(torch.empty_like, (x, x, b, c)), torch.zeros_like(A)
        room = x.new_empty(3, len(x), ctx.length, *A.shape)
        later = torch.zeros_like(starts[0])                                         # a g of the token after this piece
        whole = zip(starts, *zip(*pieces(ctx.length, dt, u, b, c, dy, du, ddt, db, dc), strict=True), strict=True)
        for h, dt_, u_, b_, c_, dy_, du_, ddt_, db_, dc_ in reversed([*whole]):
            a, state = states(dt_, u_, A, b_, h, room, ctx.parallel)
            dc_.copy_((dy_[:, :, None] @ state.mT)[:, :, 0])
            g = torch.mul(dy_[:, :, None], c_[..., None], out=room[2, :, :a.shape[1]])
            g[:, -1] += later
            if ctx.parallel:
                tree(decays(F.pad(dt_[:, 1:], (0, 0, 0, 1)), A, a), g, backwards=True)
                a = decays(dt_, A, a).mul_(g)
            else:
                gs = g.unbind(1)
                for a_t, g_t, before in reversed([*zip(a.unbind(1)[1:], gs[1:], gs[:-1], strict=True)]):
                    before += a_t.mul_(g_t)
                a[:, 0] *= g[:, 0]
            du_.copy_((b_[:, :, None] @ g)[:, :, 0])                                # here a is a g
            db_.copy_((u_[:, :, None] @ g.mT)[:, :, 0])
            later = a[:, 0].clone()
            a[:, 1:] *= state[:, :-1]
            a[:, 0] *= h                                                            # and here p
            torch.sum(torch.mul(a, A, out=g), 2, out=ddt_)
            dA += a.mul_(dt_[:, :, None]).sum((0, 1))
        return du * dt, ddt.addcmul_(du, x), dA.T, db, dc, None, None


PIECE = 2 ** 19     # most numbers in a tensor of (B, L, N, E): 2 MB in float32


def pieces(L, *tensors):
    """The tensors (B, T, ...) in pieces of L tokens: an iterator of tuples."""
    return zip(*(v.split(L, dim=1) for v in tensors), strict=True)


def decays(dt, A, out):
    """exp(dt A).  dt: (B, L, E).  A: (N, E).  Returns (B, L, N, E).  exp2 is twice as fast as exp on a CPU."""
    return torch.mul(dt[:, :, None], A * math.log2(math.e), out=out).exp2_()


def states(dt, u, A, b, h, room, parallel):
    """(a, the states), each (B, L, N, E), in room.  h: (B, N, E), the state before.  parallel: a is overwritten."""
    a, state = room[:2, :, :dt.shape[1]]
    decays(dt, A, a)
    torch.mul(u[:, :, None], b[..., None], out=state)
    state[:, 0].addcmul_(a[:, 0], h)
    if parallel:
        tree(a, state)
    else:
        hs = state.unbind(1)
        for a_t, before, h in zip(a.unbind(1)[1:], hs[:-1], hs[1:], strict=True):
            h.addcmul_(a_t, before)
    return a, state


def tree(a, x, backwards=False):
    """In place, in 3 log2(T) operations: x[:, t] += a[:, t] * x[:, t - 1], or x[:, t + 1] backwards (Blelloch 1990).

    Every second token adds its neighbour, so that two steps are one: x[t] = (a[t] a[t - 1]) x[t - 2] + (a[t] x[t - 1] + x[t]).
    The same function solves this half, and each of the others then adds its neighbour.  Decays are at most 1, and so are their
    products: nothing overflows."""
    T = a.shape[1]
    if T == 1:
        return
    ends = slice(T % 2, T - 1, 2) if backwards else slice(1, T, 2)
    taken = slice(1 + T % 2, T, 2) if backwards else slice(0, T - 1, 2)
    rest = slice((T + 1) % 2, T - 2, 2) if backwards else slice(2, T, 2)
    (a_end, x_end), count = (v[:, ends] for v in (a, x)), (T - 1) // 2
    x_end.addcmul_(a_end, x[:, taken])
    a_end *= a[:, taken]
    tree(a_end, x_end, backwards)
    if count:
        x[:, rest].addcmul_(a[:, rest], x_end[:, -count:] if backwards else x_end[:, :count])


# torch.compile would unroll the loop over all tokens of a window.  Here it gets the code of 8 tokens, once for all pieces, and
# makes one loop over channels of it, with the state in registers.  The pieces follow one another inside of an operator, so that
# the forward pass of a model is still one graph.

UNROLLED = 8        # tokens.  After a change, empty torch's cache of compiled graphs, which hold the number of pieces


def piece(dt, u, A, b, c, h):
    """y of L tokens, and the state after them.  dt, u: (B, L, E).  A: (E, N), times log2(e).  b, c: (B, L, N).
    h: (B, E, N), the state before."""
    ys = []
    for t in range(dt.shape[1]):
        h = torch.exp2(dt[:, t, :, None] * A) * h + u[:, t, :, None] * b[:, t, None]            # (B, E, N)
        ys.append((h * c[:, t, None]).sum(-1))                                                  # (B, E)
    return torch.stack(ys, dim=1), h


def piece_backward(dt, u, A, b, c, h, dy, g, dA):
    """du, ddt without x, db and dc of L tokens; a g of the first, for the piece before; and dA (B, E, N), added up."""
    a, h = [], [h]
    for t in range(dt.shape[1]):
        a.append(torch.exp2(dt[:, t, :, None] * A))
        h.append(a[t] * h[t] + u[:, t, :, None] * b[:, t, None])                                # of token t: h[t + 1]
    gs, du, ddt = [], [], []
    for t in reversed(range(dt.shape[1])):
        gs.append(g + dy[:, t, :, None] * c[:, t, None])
        du.append((gs[-1] * b[:, t, None]).sum(-1))
        g = a[t] * gs[-1]
        p = g * h[t]
        ddt.append((p * A).sum(-1))
        dA = dA + p * dt[:, t, :, None]
    gs, h, du, ddt = (torch.stack(v, dim=1) for v in (gs[::-1], h[1:], du[::-1], ddt[::-1]))
    return du, ddt, (u[:, :, None] @ gs)[:, :, 0], (dy[:, :, None] @ h)[:, :, 0], g, dA


compiled = functools.cache(functools.partial(torch.compile, dynamic=False))       # of any sizes, it takes minutes
Tensor = torch.Tensor


def equal_pieces(*tensors):
    """Tensors (B, T, ...) in pieces (B, UNROLLED, ...): a list of tuples.  Zeros at the end leave the state as it is."""
    return [*zip(*(F.pad(v, (0, 0, 0, -v.shape[1] % UNROLLED)).unflatten(1, (-1, UNROLLED)).transpose(0, 1).contiguous()
                   for v in tensors), strict=True)]


@torch.library.custom_op('nanorivals::scan', mutates_args=())
def compiled_scan(x: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the state before each piece (pieces, B, E, N)."""
    ys, states, A = [], [h], A * math.log2(math.e)
    for dt_, u, b_, c_ in equal_pieces(dt, dt * x, b, c):
        y, h = compiled(piece)(dt_, u, A, b_, c_, states[-1])
        ys.append(y)
        states.append(h)
    return torch.cat(ys, dim=1)[:, :x.shape[1]].contiguous(), states.pop(), torch.stack(states)


@torch.library.custom_op('nanorivals::scan_backward', mutates_args=())
def compiled_backward(x: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, states: Tensor, dy: Tensor) -> tuple[
        Tensor, Tensor, Tensor, Tensor, Tensor]:
    found, g, dA = [], torch.zeros_like(states[0]), torch.zeros_like(states[0])
    for h, (dt_, u, b_, c_, dy_) in reversed([*zip(states, equal_pieces(dt, dt * x, b, c, dy), strict=True)]):
        *more, g, dA = compiled(piece_backward)(dt_, u, A * math.log2(math.e), b_, c_, h, dy_, g, dA)
        found.append(more)
    du, ddt, db, dc = (torch.cat(v[::-1], dim=1)[:, :x.shape[1]] for v in zip(*found, strict=True))
    return du * dt, ddt * math.log(2) + du * x, dA.sum(0), db.contiguous(), dc.contiguous()


@compiled_scan.register_fake
def _(x, dt, A, b, c, h):
    return torch.empty_like(x), torch.empty_like(h), h.new_empty(-(-x.shape[1] // UNROLLED), *h.shape)


@compiled_backward.register_fake
def _(x, dt, A, b, c, states, dy):
    return tuple(torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, dt, A, b, c))


compiled_scan.register_autograd(
    lambda ctx, dy, *_: (*compiled_backward(*ctx.saved_tensors, dy), None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:5], output[2]))
