"""
High-order networks: language models whose layers have functions in place of weights.

After "Natural Language Generation with Sparse High Order Layers": https://github.com/jloveric/language-interpolation

A linear layer multiplies each input by a weight for each output.  A high-order layer sends it through an edge function: a
polynomial in each of a few segments of [-1, 1], whose values at n nodes per segment are the parameters; outside [-1, 1] it is
a straight line.  That is all this file needs of piecewise.py.

A network starts from embeddings or from a high-order layer that reads characters as numbers: token c is the middle of segment
c of [-1, 1].  With kind='discontinuous' and input_n=1 such a layer is a plain table.  With kind='continuous', neighbouring
segments share a node: 65 characters share 66 nodes, each is read halfway between two, and so is similar to its neighbours.

    network             what it computes                                                                        class
    high_order          an MLP over the last F characters: a first layer and n_layer more                       MLP
    high_order_input    the same first layer, followed by ReLU and linear layers: the plain twin of high_order  MLP
    low_order_mlp       the mean of the characters' embeddings, followed by ReLU and linear layers              MLP
    conv                n_layer strided convolutions, which reduce F characters to one vector                   Conv
    dual_convolution    one layer that joins two vectors, repeated until F characters are one vector            DualConvolution
    tail_focus          F characters, F pairs before them, F fours before those, ..                             TailFocus
    transformer         GPT-2 whose attention has high-order queries, keys, values and outputs                  Transformer
    high_order_input_transformer    GPT-2 behind a high-order layer over the last F characters                  Transformer
    mamba               Mamba with high-order projections                                                       Mamba

- Every network predicts at every position, from earlier tokens.  The original ones read a window for one target, and its
  transformers were not causal.  Here that window slides: a stride becomes a dilation, with equal results
  (tests/models/test_highorder.py).
- kind='linear' makes transformer and mamba plain again, for comparison.
- centered: an MLP sees the neighbours of a character on both sides: a cellular automaton, and not a language model.

B batch   T tokens in the window   F characters an output sees (features)   C channels (n_embd)   V vocabulary
A token of -1 is absent: it is in front of the text or behind it.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import mamba
import model as gpt
from piecewise import INITIALIZATIONS, KINDS, NORMALIZATIONS, PiecewisePolynomial, PiecewisePolynomialConv1d, edge_size


@dataclass
class Config:
    block_size: int = 64                # tokens in the window
    vocab_size: int = 65                # tokens in the vocabulary
    network: str = 'high_order'         # which network (see the head of the file)
    features: int = 16                  # characters that an output sees
    centered: bool = False              # MLPs only: see the characters on both sides
    kind: str = 'continuous'            # continuous, discontinuous, polynomial or fourier edge functions; linear: none
    n: int = 2                          # nodes per segment: the degree of the polynomials plus 1
    segments: int = 2                   # segments of an edge function (polynomial, fourier: always 1)
    input_n: int = 2                    # nodes per segment in layers that read characters
    input_segments: int = 0             # segments in layers that read characters (0: vocab_size; the original code has 128)
    normalization: str = 'layer'        # before each layer except the first: layer, maxabs, maxcenter or none
    initialization: str = 'kaiming'     # of the edge functions: kaiming or linear
    periodic: bool = False              # edge functions are reflected at -1 and 1, in place of straight lines outside
    n_layer: int = 1                    # layers behind the first, or behind the sum of dual_convolution and tail_focus; conv:
                                        # strides; transformers, mamba: blocks
    n_embd: int = 128                   # channels
    n_head: int = 4                     # attention heads of the transformers
    d_state: int = 16                   # state size per channel of mamba
    dropout: float = 0.0                # before the last layer; in the transformers as in GPT-2

    @classmethod
    def tiny(cls):
        return cls(block_size=16, vocab_size=17, features=8, n_embd=16, n_head=2, d_state=4)

    def __post_init__(self):
        self.input_segments = self.input_segments or self.vocab_size
        for name, known in (('network', NETWORKS), ('kind', (*KINDS, 'linear')), ('normalization', NORMALIZATIONS),
                            ('initialization', INITIALIZATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name}='{getattr(self, name)}': choose {', '.join(known)}")
        if self.features < 1:
            raise ValueError(f'features={self.features} must be at least 1')
        if self.kind == 'linear' and self.network not in ('transformer', 'mamba'):
            raise ValueError(f"kind='linear' is for transformer and mamba, and leaves network={self.network} without a "
                             f"nonlinearity: choose network='high_order_input'")
        for edges in filter(None, (input_edges(self), hidden_edges(self))):
            edge_size(edges['n'], edges['segments'], edges['kind'])
        if self.vocab_size > self.input_segments:
            raise ValueError(f'input_segments={self.input_segments} must be at least vocab_size={self.vocab_size}: each token '
                             f'has a segment of its own')
        if self.centered and not (NETWORKS[self.network] is MLP and self.features % 2 and self.features > 1):
            raise ValueError(f'centered requires an MLP and an odd number of features, at least 3, not network={self.network} '
                             f'with features={self.features}')
        if self.network == 'conv' and not (self.n_layer and self.stride() ** self.n_layer == self.features):
            raise ValueError(f'features={self.features} must be an integer to the power of n_layer={self.n_layer} for '
                             f'network=conv, such as 16 = 4 ** 2')
        if self.network == 'tail_focus' and self.features >= self.block_size:
            raise ValueError(f'features={self.features} must be less than block_size={self.block_size} for network=tail_focus, '
                             f'or nothing is left for the levels of older text')
        if self.network == 'mamba' and self.dropout:
            raise ValueError(f'dropout={self.dropout} has no effect in network=mamba: leave it out')
        if self.network == 'dual_convolution' and self.features & (self.features - 1):
            raise ValueError(f'features={self.features} must be a power of 2 for network=dual_convolution')
        if 'transformer' in self.network:
            self.gpt()

    def stride(self):
        return round(self.features ** (1 / self.n_layer))

    def gpt(self):
        return gpt.Config(self.block_size, self.vocab_size, self.n_layer, self.n_head, self.n_embd, self.dropout, bias=False)


def input_edges(c):
    """The edge functions of a layer that reads characters: settings of PiecewisePolynomial."""
    return {'n': c.input_n, 'segments': c.input_segments, 'kind': c.kind if c.kind == 'discontinuous' else 'continuous',
            'initialization': c.initialization}


def hidden_edges(c):
    """The edge functions of all other layers, or None if they are linear."""
    return None if c.kind == 'linear' else {'n': c.n, 'segments': 1 if c.kind in ('polynomial', 'fourier') else c.segments,
                                            'kind': c.kind, 'periodic': c.periodic, 'initialization': c.initialization}


SMALL_GAIN = 0.2    # the standard deviation of attention's first output, and of the first logits: the loss is then near ln V


# layers ---------------------------------------------------------------------------------------------------------------------

class Characters(nn.Module):
    """(..., F) tokens -> (..., outputs): a high-order layer that reads characters."""

    def __init__(self, c, features, outputs, gain=1.0):
        super().__init__()
        self.links = PiecewisePolynomial(features, outputs, gain=gain, **input_edges(c))

    def forward(self, tokens):
        dtype = torch.promote_types(self.links.weight.dtype, torch.float32)         # see PiecewisePolynomial.basis
        return self.links((tokens.to(dtype) + 0.5) / self.links.segments * 2 - 1, tokens >= 0)


class Bag(nn.EmbeddingBag):
    """(..., F) tokens -> (..., outputs): the mean of the embeddings of those that are present."""

    def forward(self, tokens):
        return super().forward(tokens.flatten(0, -2) + 1).unflatten(0, tokens.shape[:-1])


def layer(c, inputs, outputs, gain=1.0):
    """(..., inputs) -> (..., outputs): a normalization and a high-order layer."""
    return nn.Sequential(NORMALIZATIONS[c.normalization](inputs),
                         PiecewisePolynomial(inputs, outputs, gain=gain, **hidden_edges(c)))


def convolution(c, kernel_size, dilation, gain=1.0):
    """(B, T, C) -> (B, T, C): a normalization and a causal high-order convolution."""
    return nn.Sequential(NORMALIZATIONS[c.normalization](c.n_embd),
                         PiecewisePolynomialConv1d(c.n_embd, c.n_embd, kernel_size, dilation=dilation, causal=True, gain=gain,
                                                   **hidden_edges(c)))


def dense(c, inputs, outputs, gain=1.0):
    """(..., inputs) -> (..., outputs): a normalization, ReLU and a linear layer."""
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=gain * math.sqrt(2 / inputs))        # He et al. 2015, section 2.2
    nn.init.zeros_(linear.bias)
    return nn.Sequential(NORMALIZATIONS[c.normalization](inputs), nn.ReLU(), linear)


class Hidden(nn.Sequential):
    """(B, T, C) -> (B, T, V): the n_layer layers behind the first."""

    def __init__(self, c, layer=layer):
        hidden = [layer(c, c.n_embd, c.n_embd) for _ in range(c.n_layer - 1)]
        super().__init__(*hidden, gpt.Dropout(c.dropout), layer(c, c.n_embd, c.vocab_size, gain=SMALL_GAIN))


def windows(tokens, before, after=0):
    """(B, T) -> (B, T, before + 1 + after): each token with its neighbours, -1 where there are none."""
    return F.pad(tokens, (before, after), value=-1).unfold(1, before + 1 + after, 1)


# networks: (B, T) tokens -> (B, T, V) logits; `reach`: the number of tokens that an output sees -----------------------------

class MLP(nn.Module):
    """high_order, high_order_input and low_order_mlp.  With n_layer=0, the first layer is also the last."""

    def __init__(self, c):
        super().__init__()
        self.features, self.reach, self.centered = c.features, c.features, c.centered
        width, gain = (c.n_embd, 1.0) if c.n_layer else (c.vocab_size, SMALL_GAIN)
        if c.network == 'low_order_mlp':
            self.first = Bag(c.vocab_size + 1, width, mode='mean', padding_idx=0)
            nn.init.normal_(self.first.weight, std=gain)
        else:
            self.first = Characters(c, c.features - c.centered, width, gain)
        self.rest = Hidden(c, layer if c.network == 'high_order' else dense) if c.n_layer else nn.Identity()

    def forward(self, tokens):
        if self.centered:
            side = self.features // 2
            both = windows(tokens, side, side)                                      # (B, T, F)
            seen = torch.cat([both[..., :side], both[..., side + 1:]], dim=-1)      # (B, T, F - 1)
        else:
            seen = windows(tokens, self.features - 1)                               # (B, T, F)
        return self.rest(self.first(seen))


class Conv(nn.Module):
    """n_layer strides, each of which reduces `stride` vectors to one."""

    def __init__(self, c):
        super().__init__()
        self.reach, self.stride = c.features, c.stride()
        self.first = Characters(c, self.stride, c.n_embd)
        self.rest = nn.Sequential(*(convolution(c, self.stride, self.stride ** i) for i in range(1, c.n_layer)),
                                  gpt.Dropout(c.dropout), layer(c, c.n_embd, c.vocab_size, gain=SMALL_GAIN))

    def forward(self, tokens):
        return self.rest(self.first(windows(tokens, self.stride - 1)))


class DualConvolution(nn.Module):
    r"""One network, join: (2C) -> (C), reduces F characters to one vector.  With F = 8, for the prediction after h:

        a   b   c   d   e   f   g   h       wte: 8 vectors (C)
         \ /     \ /     \ /     \ /
          ab      cd      ef      gh        join: 4 vectors (C)
            \    /          \    /
             abcd            efgh           the same join: 2 vectors (C)
                 \          /
                   abcdefgh                 the same join: (C), then last: (C) -> (V)

    All windows are computed at once: a level joins the vectors of positions t - back and t, for every t.  At the beginning of
    a text, where there is none at t - back, the vector at t is kept."""

    def __init__(self, c):
        super().__init__()
        self.reach = c.features
        self.wte = nn.Embedding(c.vocab_size, c.n_embd)
        widths = [2 * c.n_embd, *[c.n_embd] * (c.n_layer + 1)]
        self.join = nn.Sequential(*(layer(c, a, b) for a, b in itertools.pairwise(widths)))
        self.last = nn.Sequential(gpt.Dropout(c.dropout), layer(c, c.n_embd, c.vocab_size, gain=SMALL_GAIN))

    def forward(self, tokens):
        h, back = self.wte(tokens), 1                                               # (B, T, C)
        while back < min(self.reach, tokens.shape[1]):
            h = torch.cat([h[:, :back], self.join(torch.cat([h[:, :-back], h[:, back:]], dim=-1))], dim=1)
            back *= 2
        return self.last(h)


class TailFocus(nn.Module):
    """The older the text, the coarser: each level sees F parts, twice as long as those of the level after it, until block_size
    tokens are covered.  With F = 2 and three levels, for the prediction after n:

        a b c d   e f g h     i j   k l     m   n       14 tokens
        └──┬──┘   └──┬──┘     └┬┘   └┬┘     │   │
           pairs[0]             pair        │   │       2 parts (C) per level; pairs[0] joins two pairs
           └────┬────┘         └──┬──┘      └─┬─┘
             tail[1]           tail[0]      focus       2 parts -> (C), a layer per level
                └──────────────── + ──────────┘         (C), then rest: (C) -> (V)

    All windows are computed at once: summary[:, t] is the part that ends at t."""

    def __init__(self, c):
        super().__init__()
        F_, levels = c.features, 1
        while F_ * (2 ** levels - 1) < c.block_size:
            levels += 1
        self.reach, self.features, gain = F_ * (2 ** levels - 1), F_, 1 / math.sqrt(levels)
        self.focus = Characters(c, F_, c.n_embd, gain)
        self.pair = Characters(c, 2, c.n_embd)
        self.pairs = nn.ModuleList([convolution(c, 2, 2 ** i) for i in range(1, levels - 1)])
        self.tail = nn.ModuleList([convolution(c, F_, 2 ** i, gain) for i in range(1, levels)])
        self.rest = Hidden(c)

    def forward(self, tokens):
        h = self.focus(windows(tokens, self.features - 1))                          # (B, T, C)
        summary = self.pair(windows(tokens, 1))                                     # (B, T, C), of 2 characters
        for i, tail in enumerate(self.tail, 1):
            newer = self.features * (2 ** i - 1)            # characters that belong to the levels after this one
            if newer < h.shape[1]:
                h = h + F.pad(tail(summary[:, :-newer]), (0, 0, newer, 0))
            if i <= len(self.pairs):
                summary = self.pairs[i - 1](summary)                                # (B, T, C), of 2 ** (i + 1) characters
        return self.rest(h)


class Transformer(gpt.Model):
    """transformer and high_order_input_transformer."""

    def __init__(self, c):
        super().__init__(c.gpt())
        if c.network == 'transformer' and c.kind != 'linear':
            for block in self.h:
                block.ln_1, block.attn.c_attn = layer(c, c.n_embd, 3 * c.n_embd)
                block.attn.c_proj = layer(c, c.n_embd, c.n_embd, gain=SMALL_GAIN / math.sqrt(2 * c.n_layer))
        elif c.network == 'high_order_input_transformer':
            self.wte = Window(c)
            self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
            nn.init.normal_(self.lm_head.weight, std=0.02)
            if c.features > 1:      # GPT's cache holds keys and values, but not the last F characters
                self.init_state = self.step = None

    def forward(self, x):
        return super().forward(x)[0]


class Window(nn.Module):
    """(B, T) -> (B, T, C): a high-order layer over the last F tokens, in place of GPT's embedding of one."""

    def __init__(self, c):
        super().__init__()
        self.features, self.first = c.features, Characters(c, c.features, c.n_embd, gain=0.02)

    def forward(self, tokens):
        return self.first(windows(tokens, self.features - 1))


class Mamba(mamba.Model):

    def __init__(self, c):
        def linear(inputs, outputs, bias=False):
            return nn.Linear(inputs, outputs, bias=bias) if c.kind == 'linear' else layer(c, inputs, outputs)
        super().__init__(mamba.Config(c.block_size, c.vocab_size, c.n_layer, c.n_embd, c.d_state), linear)

    def forward(self, x):
        return super().forward(x)[0]


NETWORKS = {'high_order': MLP, 'high_order_input': MLP, 'low_order_mlp': MLP, 'conv': Conv, 'dual_convolution': DualConvolution,
            'tail_focus': TailFocus, 'transformer': Transformer, 'high_order_input_transformer': Transformer, 'mamba': Mamba}


class Model(nn.Module):
    predicts = 'every'
    adjustable = ('block_size', 'dropout', 'initialization')

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.bidirectional = config, config.centered
        self.net = NETWORKS[config.network](config)
        if config.centered:
            self.init_state = self.step = None
        elif not hasattr(self.net, 'reach'):
            self.init_state, self.step = self.net.init_state, self.net.step

    def forward(self, x, y=None):
        """x: (B, T) int64.  y: (B, T), the token after each, -1 where it is not scored.
        Returns logits (B, T, V) and the mean cross-entropy in nats (None without y)."""
        # centered: the prediction for the token after x[:, t] stands at t + 1; that for the last one has no right neighbours
        logits = self.infill(F.pad(x, (0, 1), value=-1))[:, 1:] if self.bidirectional else self.net(x)       # (B, T, V)
        if y is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)

    def infill(self, x):
        """x: (B, T) tokens, -1 where one is unknown.  Returns (B, T, V): each token, predicted from its neighbours (centered
        networks only)."""
        return self.net(x)

    def refined(self, config):
        """A new model with the same function, whose edge functions have more nodes (n, input_n) or a multiple of the segments.
        Raises ValueError if config differs in anything else, or the function cannot be kept."""
        names = ('n', 'segments', 'input_n')
        if dataclasses.replace(self.config, **{k: getattr(config, k) for k in names}) != config:
            raise ValueError(f'only {", ".join(names)} of a trained network can be changed')
        new, weights = Model(config).to(next(self.parameters())), self.state_dict()
        for name, module in self.named_modules():
            if isinstance(module, PiecewisePolynomial):
                finer = new.get_submodule(name)
                weights[f'{name}.weight'] = module.refined(finer.n, finer.segments).weight
        new.load_state_dict(weights)
        return new

    # generation -------------------------------------------------------------------------------------------------------

    def init_state(self, batch_size):
        """The state of an empty text for step(): the last tokens that a window can hold and the network can see."""
        return torch.empty(batch_size, 0, dtype=torch.long, device=next(self.parameters()).device)

    def step(self, token, state, every=False):
        """token: (B, n), the next n tokens of each text.  Returns the logits of the token after them (B, V), or with `every` of
        the token after each (B, n, V), and the state.  The cost per token is constant, and the text has no maximal
        length."""
        n, size = token.shape[1], min(self.net.reach, self.config.block_size)       # as far as it was trained
        text = torch.cat([state, token], dim=1)
        if not every:
            return self.net(text[:, -size:])[:, -1], text[:, -size:]
        if self.net.reach > size:               # each token has a window of its own
            ends = range(text.shape[1] - n + 1, text.shape[1] + 1)
            logits = torch.stack([self.net(text[:, :end][:, -size:])[:, -1] for end in ends], dim=1)
        else:
            logits = self.net(text[:, -(size + n - 1):])[:, -n:]                    # (B, n, V)
        return logits, text[:, -size:]
