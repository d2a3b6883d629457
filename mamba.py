"""
Mamba: a state space model whose steps depend on what it reads.       (Gu and Dao 2023, arXiv 2312.00752; weight for weight)

- no attention: each channel carries a state of N numbers from token to token, so a token costs the same however long the text
- selective: how much of the state is kept, and what is written to and read from it, is computed from the token
- per block one branch (convolution of 4, scan) gated by another; no MLP, no positions
- the scan in two forms that agree: scan_plain, to be read, and Scan, to be used; step() is the scan of few tokens
- every projection is made by a factory, so that other layers than nn.Linear can take its place

B batch   T tokens in the window   C channels (n_embd)   E inner channels (expand * C)   N numbers of state a channel (d_state)
R rank of the step size (dt_rank)   K kernel of the convolution (d_conv)   V vocabulary
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:                   # mamba-130m: 1024, 50280, 24, 768
    block_size: int = 256       # tokens in the window; what is trained on one length reads on beyond it
    vocab_size: int = 65        # tokens that exist
    n_layer: int = 4            # blocks
    n_embd: int = 128           # channels
    d_state: int = 16           # numbers of state in each inner channel
    d_conv: int = 4             # kernel of the convolution
    expand: int = 2             # inner channels for each channel
    dt_rank: int = 0            # rank of the map to the step sizes (0: n_embd / 16, rounded up)
    dt_min: float = 0.001       # the step sizes begin between here ...
    dt_max: float = 0.1         # ... and here
    eps: float = 1e-5           # of RMSNorm

    @classmethod
    def tiny(cls):
        return cls(block_size=16, vocab_size=17, n_layer=2, n_embd=16, d_state=4)

    def __post_init__(self):
        self.dt_rank = self.dt_rank or math.ceil(self.n_embd / 16)
        if min(self.d_state, self.d_conv, self.expand, self.dt_rank) < 1 or not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f'd_state={self.d_state}, d_conv={self.d_conv}, expand={self.expand} and dt_rank={self.dt_rank} '
                             f'must be at least 1, and dt_min={self.dt_min} above 0 and at most dt_max={self.dt_max}')


# the selective scan (section 3.2, algorithm 2) -------------------------------------------------------------------------------
#
#     h[t] = exp(dt[t] A) h[t - 1] + dt[t] x[t] b[t]          y[t] = h[t] c[t]
#
# x, dt: (B, T, E).  A: (E, N).  b, c: (B, T, N).  h: (B, E, N).  All in float32: products of hundreds of factors near 1.

def scan_plain(x, dt, A, b, c, h=None):
    """The recurrence as it is written.  Returns y (B, T, E) and the last h; gradients by autograd, slowly."""
    decay = torch.exp(dt[..., None] * A)                                            # (B, T, E, N)
    new = (dt * x)[..., None] * b[:, :, None]                                       # (B, T, E, N)
    h = torch.zeros_like(new[:, 0]) if h is None else h
    ys = []
    for t in range(x.shape[1]):
        h = decay[:, t] * h + new[:, t]
        ys.append((h * c[:, t, None]).sum(-1))                                      # (B, E)
    return torch.stack(ys, dim=1), h


class Scan(torch.autograd.Function):
    """The same recurrence, a token at a time on what fits into a processor's cache, (B, N, E).  Of the states, which are a slab
    of (T, B, N, E), one copy is kept for the way back, which is the same recurrence from the other end; autograd would keep
    several, and touch all of a slab for every token."""

    @staticmethod
    def forward(ctx, x, dt, A, b, c, h=None):
        x, dt, b, c = (v.transpose(0, 1).contiguous() for v in (x, dt, b, c))       # (T, B, ...)
        A, h = A.T.contiguous(), h if h is None else h.mT                           # (N, E), (B, N, E)
        (T, B, E), N = x.shape, len(A)
        states, y, decay = x.new_empty(T, B, N, E), torch.empty_like(x), x.new_empty(B, N, E)
        tokens = (states, y[:, :, None], dt[:, :, None], (dt * x)[:, :, None], b[..., None], c[:, :, None])
        for state, y_t, dt_t, u, b_t, c_t in zip(*(v.unbind() for v in tokens), strict=True):
            torch.mul(u, b_t, out=state)
            if h is not None:
                state.addcmul_(torch.mul(dt_t, A, out=decay).exp_(), h)
            h = state
            torch.bmm(c_t, h, out=y_t)                                              # (B, 1, E)
        ctx.save_for_backward(x, dt, A, b, c, states)
        last = h.mT.clone()
        ctx.mark_non_differentiable(last)
        return y.transpose(0, 1), last                                              # (B, T, E), (B, E, N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, _):
        x, dt, A, b, c, states = ctx.saved_tensors
        dy, u = dy.transpose(0, 1).contiguous(), dt * x                             # (T, B, E)
        du, ddt, db, dc = torch.empty_like(x), torch.zeros_like(x), torch.empty_like(b), torch.empty_like(c)
        g, decay, product, dA = x.new_zeros(4, *states.shape[1:])                   # (B, N, E); g: of the state
        for t in reversed(range(len(x))):
            g.addcmul_(dy[t][:, None], c[t][..., None])
            torch.bmm(b[t][:, None], g, out=du[t][:, None])
            torch.bmm(g, u[t][..., None], out=db[t][..., None])
            torch.bmm(states[t], dy[t][..., None], out=dc[t][..., None])
            if t:
                g *= torch.mul(dt[t][:, None], A, out=decay).exp_()
                torch.mul(g, states[t - 1], out=product)                            # the gradient of dt A
                dA.addcmul_(product, dt[t][:, None])
                torch.sum(product.mul_(A), 1, out=ddt[t])
        return *(v.transpose(0, 1) for v in (du * dt, ddt + du * x)), dA.sum(0).T, db.transpose(0, 1), dc.transpose(0, 1), None


@torch.compiler.disable         # a graph of T steps takes longer to compile than it saves
def scan(x, dt, A, b, c, h=None):
    """y (B, T, E) and the last state (B, E, N), through which no gradient flows; h: the state to begin with."""
    return Scan.apply(x, dt, A, b, c, h)


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
        self.A_log = nn.Parameter(torch.arange(1.0, N + 1).log().repeat(E, 1))      # S4D-real
        self.D = nn.Parameter(torch.ones(E))
        self.out_proj = linear(E, config.n_embd, bias=False)
        self.A_log.no_weight_decay = self.D.no_weight_decay = True
        # softplus(bias) is the step size, log-uniform between dt_min and dt_max at the start
        dt = torch.exp(torch.empty(E).uniform_(math.log(config.dt_min), math.log(config.dt_max))).clamp(min=1e-4)
        self.dt_proj.bias.data = dt + torch.log(-torch.expm1(-dt))
        nn.init.uniform_(self.dt_proj.weight, -self.rank ** -0.5, self.rank ** -0.5)

    def forward(self, x, state=None):
        """state: what step() carries along (see Model.init_state); it is brought up to date."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)                                  # each (B, T, E)
        K = self.conv1d.kernel_size[0]
        before = x.new_zeros(len(x), K - 1, x.shape[2]) if state is None else state['inputs'].to(x.dtype)
        longer = torch.cat([before, x], dim=1)                                      # (B, K - 1 + T, E)
        x = F.silu(self.conv1d(longer.mT).mT)                                       # (B, T, E)
        dt, b, c = self.x_proj(x).split([self.rank, self.d_state, self.d_state], dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            x, dt, b, c = x.float(), dt.float(), b.float(), c.float()
            dt = F.softplus(self.dt_proj(dt))                                       # (B, T, E)
            y, h = scan(x, dt, -torch.exp(self.A_log), b, c, state and state['h'])
            y = y + self.D * x
        if state is not None:
            state.update(inputs=longer[:, longer.shape[1] - K + 1:], h=h)
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

    def __init__(self, config: Config, linear=nn.Linear):
        """linear: a class that is called as nn.Linear is, and makes in_proj, x_proj and out_proj of every block."""
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList([Block(config, linear) for _ in range(config.n_layer)])
        self.norm_f = nn.RMSNorm(config.n_embd, eps=config.eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        nn.init.normal_(self.wte.weight, std=0.02)
        for block in self.layers:                       # as many branches add up in the residual stream
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
        """x: (B, T) int64.  y: (B, T), the token after each, -1 where it is not scored.
        Returns logits (B, T, V) and the mean cross-entropy in nats (None without y)."""
        logits = self.lm_head(self.trunk(x))                                        # (B, T, V)
        if y is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)

    # published weights -----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name, **settings):
        """A model with published weights: any Mamba on the hub in transformers' format, such as state-spaces/mamba-130m-hf,
        or a local .safetensors file or folder.  settings: names of Config.  Their tokens are GPT-NeoX's, not GPT-2's.
        Raises ValueError if the weights are not a Mamba's, or a setting contradicts them."""
        from harness import hub
        described, weights = hub.load(name)
        weights = {k.removeprefix('backbone.'): v.float() for k, v in weights.items()}
        if not {'embeddings.weight', 'norm_f.weight', 'layers.0.mixer.A_log'} <= weights.keys():
            raise ValueError('these are not the weights of a Mamba in the format of transformers')
        if 'layers.0.mixer.in_proj.bias' in weights:
            raise ValueError('this Mamba has biases in its projections, which mamba.py has not')
        vocab_size, n_embd = weights['embeddings.weight'].shape
        E, d_state = weights['layers.0.mixer.A_log'].shape
        shape = {'vocab_size': vocab_size, 'n_embd': n_embd, 'd_state': d_state, 'expand': E // n_embd,
                 'n_layer': len([k for k in weights if k.endswith('.A_log')]),
                 'd_conv': weights['layers.0.mixer.conv1d.weight'].shape[-1],
                 'dt_rank': weights['layers.0.mixer.dt_proj.weight'].shape[1],
                 'eps': described.get('layer_norm_epsilon', 1e-5)}
        if wrong := {k: v for k, v in settings.items() if shape.get(k, v) != v}:
            raise ValueError(f'the published model has {({k: shape[k] for k in wrong})}, which cannot be set to {wrong}')
        model = cls(Config(**{'block_size': 1024, **settings, **shape}))
        weights['wte.weight'] = weights['lm_head.weight'] = weights.pop('embeddings.weight')
        for key, value in model.state_dict().items():
            if key not in weights:
                raise ValueError(f'these weights lack {key}')
            if weights[key].shape != value.shape:
                raise ValueError(f'{key} is {tuple(weights[key].shape)}, and not {tuple(value.shape)}')
            value.copy_(weights[key])
        return model

    # generation -------------------------------------------------------------------------------------------------------

    def init_state(self, batch_size):
        """What step() carries along for batch_size texts: per block the convolution's last inputs, and the state."""
        c, like = self.config, self.wte.weight
        E = c.expand * c.n_embd
        return [{'inputs': like.new_zeros(batch_size, c.d_conv - 1, E), 'h': like.new_zeros(batch_size, E, c.d_state)}
                for _ in self.layers]

    def step(self, token, state):
        """token: (B, n), the next n tokens of each text.  Returns the logits (B, V) of the token after them, and state.
        Costs the same for every token, however long the text is: the window does not end."""
        return self.lm_head(self.trunk(token, state)[:, -1]), state
