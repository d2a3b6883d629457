"""
High-order networks: language models made of links that are functions (the layers are in piecewise.py).

                                                seed: "Natural Language Generation with Sparse High Order Layers" (its README)
A character is a number in [-1, 1], the middle of a segment of its own, so a first layer is a table of them.  `network` says
what is built:

    high_order          an MLP over the last `features` characters, with 0 to 3 hidden layers (n_layer)
    high_order_input    the same, with ReLU and linear layers behind its first
    low_order_mlp       the mean of the characters' embeddings, ReLU and linear layers: a bag of letters
    conv                convolutions, each of whose strides takes the place of several characters
    tail_focus          `features` characters as they are, as many pairs of those before, then fours, eights: ever coarser
    dual_convolution    one convolution of two, applied again and again until one vector is left
    transformer         GPT-2 with high-order queries, keys, values and outputs of attention
    high_order_input_transformer        GPT-2 behind a high-order layer over the last `features` characters
    mamba               Mamba with high-order projections

- All predict at every position, from what is before it.  The seed's read a window for one target, and its transformers were
  not masked.  Here the window slides: a stride of the seed's is a dilation, and the two agree (tests/test_highorder.py).
- kind = 'linear' takes the functions out of transformer and mamba: the twin to be compared with.  That of high_order is
  high_order_input.
- centered: the MLPs see a character from both its sides, without itself.  No language model, but a cellular automaton.

B batch   T tokens in the window   F characters (features)   C channels (n_embd)   V vocabulary
A token of -1 is one that is not there.
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
from piecewise import INITIALIZATIONS, KINDS, NORMALIZATIONS, PiecewisePolynomial, PiecewisePolynomialConv1d, link_size


@dataclass
class Config:
    block_size: int = 64                # tokens in the window
    vocab_size: int = 65                # tokens that exist
    network: str = 'high_order'         # what is built (see the head of the file)
    features: int = 16                  # characters that an output sees
    centered: bool = False              # of an MLP: half of them on either side of what is predicted
    kind: str = 'continuous'            # of the links: continuous, discontinuous, polynomial, fourier; linear: no functions
    n: int = 2                          # points in a segment: the order and one
    segments: int = 2                   # pieces of a link (polynomial, fourier: one)
    input_n: int = 2                    # the same for links from characters, which are continuous or discontinuous
    input_segments: int = 0             # (0: one for each token that exists; the seed has 128)
    normalization: str = 'layer'        # in front of each layer but the first: layer, maxabs, maxcenter or none
    initialization: str = 'kaiming'     # of the links: kaiming, or linear
    periodic: bool = False              # links are mirrored at -1 and 1, and not continued as straight lines
    n_layer: int = 1                    # hidden layers of an MLP; strides; blocks of the transformers and of Mamba
    n_embd: int = 128                   # channels: the width of the hidden layers
    n_head: int = 4                     # attention heads of the transformers
    d_state: int = 16                   # numbers of state in a channel of Mamba
    dropout: float = 0.0                # of what the last layer reads; in the transformers GPT-2's

    @classmethod
    def tiny(cls):
        return cls(block_size=16, vocab_size=17, features=8, n_embd=16, n_head=2, d_state=4)

    def __post_init__(self):
        self.input_segments = self.input_segments or self.vocab_size
        for name, known in (('network', NETWORKS), ('kind', (*KINDS, 'linear')), ('normalization', NORMALIZATIONS),
                            ('initialization', INITIALIZATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}='{getattr(self, name)}' is unknown: {', '.join(known)} are")
        if self.features < 1:
            raise ValueError(f'features={self.features} must be at least 1')
        if self.kind == 'linear' and self.network not in ('transformer', 'mamba'):
            raise ValueError(f"kind='linear' is for transformer and mamba: it leaves {self.network} with neither functions "
                             f"nor ReLU: take network='high_order_input'")
        for links in filter(None, (from_characters(self), behind(self))):
            link_size(links['n'], links['segments'], links['kind'])
        if self.vocab_size > self.input_segments:
            raise ValueError(f'vocab_size={self.vocab_size} is above input_segments={self.input_segments}: each token needs '
                             f'a segment of its own')
        if self.centered and not (NETWORKS[self.network] is MLP and self.features % 2 and self.features > 1):
            raise ValueError(f'centered takes an MLP and an odd number of features from 3 on, as many on either side of the '
                             f'one that is predicted: network={self.network} with features={self.features} is not that')
        if self.network == 'conv' and not (self.n_layer and self.stride() ** self.n_layer == self.features):
            raise ValueError(f'network=conv with n_layer={self.n_layer} cannot see features={self.features}: they must be a '
                             f'number to the power of n_layer, such as 16 = 4 ** 2')
        if self.network == 'dual_convolution' and self.features & (self.features - 1):
            raise ValueError(f'features={self.features} cannot be halved until one is left: network=dual_convolution takes a '
                             f'power of 2')
        if 'transformer' in self.network:
            self.gpt()

    def stride(self):
        return round(self.features ** (1 / self.n_layer))

    def gpt(self):
        return gpt.Config(self.block_size, self.vocab_size, self.n_layer, self.n_head, self.n_embd, self.dropout, bias=False)


def from_characters(c):
    """The links of a first layer, as PiecewisePolynomial takes them."""
    return {'n': c.input_n, 'segments': c.input_segments, 'kind': c.kind if c.kind == 'discontinuous' else 'continuous',
            'initialization': c.initialization}


def behind(c):
    """The links of the layers behind it; None if they have none."""
    return None if c.kind == 'linear' else {'n': c.n, 'segments': 1 if c.kind in ('polynomial', 'fourier') else c.segments,
                                            'kind': c.kind, 'periodic': c.periodic, 'initialization': c.initialization}


HEAD = 0.2      # the standard deviation of the first logits: the first loss is near ln V


# parts ----------------------------------------------------------------------------------------------------------------------

class Characters(nn.Module):
    """The first layer: (..., F) tokens -> (..., outputs)."""

    def __init__(self, c, features, outputs, gain=1.0):
        super().__init__()
        self.links = PiecewisePolynomial(features, outputs, gain=gain, **from_characters(c))

    def forward(self, tokens):
        return self.links((tokens + 0.5) / self.links.segments * 2 - 1, tokens >= 0)


def windows(tokens, before, after=0):
    """(B, T) -> (B, T, before + 1 + after): each token among its neighbours."""
    return F.pad(tokens, (before, after), value=-1).unfold(1, before + 1 + after, 1)


def layer(c, inputs, outputs, gain=1.0):
    return nn.Sequential(NORMALIZATIONS[c.normalization](inputs), PiecewisePolynomial(inputs, outputs, gain=gain, **behind(c)))


def convolution(c, kernel_size, dilation, gain=1.0):
    return nn.Sequential(NORMALIZATIONS[c.normalization](c.n_embd),
                         PiecewisePolynomialConv1d(c.n_embd, c.n_embd, kernel_size, dilation=dilation, causal=True, gain=gain,
                                                   **behind(c)))


def dense(c, inputs, outputs, gain=1.0):
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=gain * math.sqrt(2 / inputs))        # He et al. 2015, section 2.2
    nn.init.zeros_(linear.bias)
    return nn.Sequential(NORMALIZATIONS[c.normalization](inputs), nn.ReLU(), linear)


class Hidden(nn.Sequential):
    """(B, T, C) -> (B, T, V): the hidden layers behind the first, and the last."""

    def __init__(self, c, layer=layer):
        behind = [layer(c, c.n_embd, c.n_embd) for _ in range(c.n_layer - 1)]
        super().__init__(*behind, nn.Dropout(c.dropout), layer(c, c.n_embd, c.vocab_size, gain=HEAD))


# networks: (B, T) tokens -> (B, T, V) logits; `reach`: how many tokens an output sees ---------------------------------------

class MLP(nn.Module):
    """high_order, high_order_input and low_order_mlp.  Without hidden layers the first is the last."""

    def __init__(self, c):
        super().__init__()
        self.c, self.reach = c, c.features
        width, gain = (c.n_embd, 1.0) if c.n_layer else (c.vocab_size, HEAD)
        if c.network == 'low_order_mlp':
            self.first = nn.EmbeddingBag(c.vocab_size + 1, width, mode='mean', padding_idx=0)
            nn.init.normal_(self.first.weight, std=gain)
        else:
            self.first = Characters(c, c.features - c.centered, width, gain)
        self.rest = Hidden(c, layer if c.network == 'high_order' else dense) if c.n_layer else nn.Identity()

    def forward(self, tokens):
        F_ = self.c.features
        if self.c.centered:
            seen = windows(tokens, F_ // 2, F_ // 2)
            seen = torch.cat([seen[..., :F_ // 2], seen[..., F_ // 2 + 1:]], dim=-1)        # (B, T, F - 1)
        else:
            seen = windows(tokens, F_ - 1)                                          # (B, T, F)
        if self.c.network == 'low_order_mlp':
            return self.rest(self.first(seen.flatten(0, 1) + 1).view(*tokens.shape, -1))
        return self.rest(self.first(seen))


class Conv(nn.Module):
    """n_layer strides, of which each makes one vector of `stride` of them."""

    def __init__(self, c):
        super().__init__()
        self.reach, self.stride = c.features, c.stride()
        self.first = Characters(c, self.stride, c.n_embd)
        self.rest = nn.Sequential(*(convolution(c, self.stride, self.stride ** i) for i in range(1, c.n_layer)),
                                  nn.Dropout(c.dropout), layer(c, c.n_embd, c.vocab_size, gain=HEAD))

    def forward(self, tokens):
        return self.rest(self.first(windows(tokens, self.stride - 1)))


class TailFocus(nn.Module):
    """Of the newest F characters each, of the 2 F before them each pair, of the 4 F before those each four: so that with each
    level twice as much is seen, until the window is full."""

    def __init__(self, c):
        super().__init__()
        F_, levels = c.features, 1
        while F_ * (2 ** levels - 1) < c.block_size:
            levels += 1
        self.reach, self.features, gain = F_ * (2 ** levels - 1), F_, 1 / math.sqrt(levels)
        self.focus = Characters(c, F_, c.n_embd, gain)
        self.pair = Characters(c, 2, c.n_embd)
        # a summary of 2 ** i characters ends at each, so the next one is 2 ** i further back
        self.pairs = nn.ModuleList([convolution(c, 2, 2 ** i) for i in range(1, levels - 1)])
        self.tail = nn.ModuleList([convolution(c, F_, 2 ** i, gain) for i in range(1, levels)])
        self.rest = Hidden(c)

    def forward(self, tokens):
        h = self.focus(windows(tokens, self.features - 1))                          # (B, T, C)
        summary = self.pair(windows(tokens, 1))                                     # (B, T, C), of 2 characters
        for i, tail in enumerate(self.tail, 1):
            finer = self.features * (2 ** i - 1)            # characters that the levels before this one have seen
            if finer < h.shape[1]:
                h = h + F.pad(tail(summary[:, :-finer]), (0, 0, finer, 0))
            if i <= len(self.pairs):
                summary = self.pairs[i - 1](summary)
        return self.rest(h)


class DualConvolution(nn.Module):
    """The same layers make one vector of two, until F characters are one; of fewer, as many as there are."""

    def __init__(self, c):
        super().__init__()
        self.reach = c.features
        self.wte = nn.Embedding(c.vocab_size, c.n_embd)
        widths = [2 * c.n_embd, *[c.n_embd] * (c.n_layer + 1)]
        self.join = nn.Sequential(*(layer(c, a, b) for a, b in itertools.pairwise(widths)))
        self.last = nn.Sequential(nn.Dropout(c.dropout), layer(c, c.n_embd, c.vocab_size, gain=HEAD))

    def forward(self, tokens):
        h, back = self.wte(tokens), 1                                               # (B, T, C)
        while back < min(self.reach, tokens.shape[1]):      # of the first there is none to join: they wait
            h = torch.cat([h[:, :back], self.join(torch.cat([h[:, :-back], h[:, back:]], dim=-1))], dim=1)
            back *= 2
        return self.last(h)


class Transformer(gpt.Model):
    """model.py's, with high-order maps in its attention, or in front of it."""

    def __init__(self, c):
        super().__init__(c.gpt())
        if c.network == 'transformer' and c.kind != 'linear':
            for block in self.h:
                block.ln_1, block.attn.c_attn = layer(c, c.n_embd, 3 * c.n_embd)
                block.attn.c_proj = layer(c, c.n_embd, c.n_embd, gain=HEAD / math.sqrt(2 * c.n_layer))
        elif c.network == 'high_order_input_transformer':
            self.wte = Window(c)
            self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
            nn.init.normal_(self.lm_head.weight, std=0.02)
            if c.features > 1:      # a cache holds keys and values, but not the characters before
                self.init_state = self.step = None

    def forward(self, x):
        return super().forward(x)[0]


class Window(nn.Module):
    """(B, T) -> (B, T, C): in place of an embedding of each token, a layer over the last F."""

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


NETWORKS = {'high_order': MLP, 'high_order_input': MLP, 'low_order_mlp': MLP, 'conv': Conv, 'tail_focus': TailFocus,
            'dual_convolution': DualConvolution, 'transformer': Transformer, 'high_order_input_transformer': Transformer,
            'mamba': Mamba}


class Model(nn.Module):
    predicts = 'every'

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.centered = config, config.centered
        self.net = NETWORKS[config.network](config)
        if config.centered:
            self.init_state = self.step = None
        elif not hasattr(self.net, 'reach'):
            self.init_state, self.step = self.net.init_state, self.net.step

    def forward(self, x, y=None):
        """x: (B, T) int64.  y: (B, T), the token after each, -1 where it is not scored.
        Returns logits (B, T, V) and the mean cross-entropy in nats (None without y)."""
        # centered: the token after the last is predicted, too, and all that is known of it is what is before it
        logits = self.both_sides(F.pad(x, (0, 1), value=-1))[:, 1:] if self.centered else self.net(x)       # (B, T, V)
        if y is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)

    def both_sides(self, x):
        """x: (B, T) tokens, -1 where one is unknown -> (B, T, V): what each of them is, by its neighbours (centered only)."""
        return self.net(x)

    def refined(self, config):
        """A new model of the same function, whose links have more points (n, input_n) or a multiple of the segments, as config
        says.  Raises ValueError if config differs in anything else, or the function cannot be kept."""
        order = {k: getattr(config, k) for k in ('n', 'segments', 'input_n')}
        if dataclasses.replace(self.config, **order) != config:
            raise ValueError(f'a trained network can be given another {", ".join(order)}, and nothing else')
        new, weights = Model(config), self.state_dict()
        for name, module in self.named_modules():
            if isinstance(module, PiecewisePolynomial):
                finer = new.get_submodule(name)
                weights[f'{name}.weight'] = module.refined(finer.n, finer.segments).weight
        new.load_state_dict(weights)
        return new

    # generation -------------------------------------------------------------------------------------------------------

    def init_state(self, batch_size):
        """What step() carries along for batch_size texts: the last tokens, as far as the network sees."""
        return torch.empty(batch_size, 0, dtype=torch.long, device=next(self.parameters()).device)

    def step(self, token, state):
        """token: (B, n), the next n tokens of each text.  Returns the logits (B, V) of the token after them, and state.
        Costs the same for every token, however long the text is: the window does not end."""
        seen = torch.cat([state, token], dim=1)[:, -self.net.reach:]
        return self.net(seen)[:, -1], seen
