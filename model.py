"""
GPT-2: the baseline that every rival is measured against.

- Radford et al. 2019, "Language Models are Unsupervised Multitask Learners": from_pretrained() gives the published logits,
  to_hub() writes the same format
- pre-norm, learned positions, output layer tied to the token embedding
- attention is defined in plain code (attention) and computed by the fastest way (fast_attention)
- step() keeps a key-value cache, and re-reads half a window when the cache is full
- with short_conv=4, a causal convolution over 4 tokens stands in front of attention: the control for rivals that have one

B batch   T tokens in the window   C channels (n_embd)   H heads   D channels per head (H * D == C)   V vocabulary
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:                   # GPT-2 small: 1024, 50257, 12, 12, 768
    block_size: int = 64        # tokens in the window
    vocab_size: int = 65        # size of the vocabulary
    n_layer: int = 4            # blocks
    n_head: int = 4             # attention heads per block
    n_embd: int = 128           # channels
    dropout: float = 0.0        # on embeddings, attention weights and residual branches
    bias: bool = True           # bias in every Linear and LayerNorm, as in GPT-2
    gelu: str = 'none'          # 'none' is exact; 'tanh' is GPT-2's approximation, slower on a CPU
    tied: bool = True           # the output layer is the token embedding, as in GPT-2
    eps: float = 1e-5           # epsilon of LayerNorm
    short_conv: int = 0         # tokens that a causal convolution in front of attention sees (0: none), see ShortConv
    predicts: str = 'every'     # predict after 'every' token, or after the 'last' one only, as in PACING's original comparison

    @classmethod
    def tiny(cls):
        return cls(block_size=16, vocab_size=17, n_layer=2, n_head=2, n_embd=16)

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} must be divisible by n_head={self.n_head}')
        if self.predicts not in ('every', 'last'):
            raise ValueError(f"unknown predicts='{self.predicts}': choose 'every' or 'last'")
        check_gelu(self.gelu)
        check_short_conv(self.short_conv)


def check_gelu(gelu):
    if gelu not in ('none', 'tanh'):
        raise ValueError(f"unknown gelu='{gelu}': choose 'none' (exact) or 'tanh' (GPT-2's)")


def check_short_conv(width):
    if width < 0 or width == 1:
        raise ValueError(f'short_conv={width} must be 0 (none) or at least 2 tokens')


def attention(q, k, v, causal=False, mask=None, dropout=0.0):
    """softmax(Q K^T / sqrt(D)) V   (Vaswani et al. 2017, equation 1)

    q: (B, H, T, D).  k, v: (B, H, S, D), S >= T: the queries are at the last T of the S positions.  Returns (B, H, T, D).
    causal: a query sees the keys up to its own position.  mask: True where it sees a key, of a shape that broadcasts to
    (B, H, T, S).  dropout: the fraction of the weights that become 0."""
    T, S = q.shape[-2], k.shape[-2]
    scores = q / math.sqrt(q.shape[-1]) @ k.mT                                              # (B, H, T, S)
    if causal:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    if mask is not None:
        scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf)      # a sum needs no copy
    return drop(scores.softmax(-1), dropout) @ v


def fast_attention(q, k, v, causal=False, mask=None, dropout=0.0):
    """The same result in less time, without storing the (T, S) weights of all examples: torch's fused kernel, of which k and v
    may have fewer heads than q.

    When a CPU trains with short windows, the fused kernel is slower than the formula: its backward pass in bfloat16 takes up
    to 3 times as long, and with dropout it is not fused (torch 2.13).  There the formula is applied to a few examples at a
    time."""
    (B, H, T, _), S = q.shape, k.shape[2]
    if q.device.type == 'cpu' and q.requires_grad and S <= 512 and (dropout or q.dtype == torch.bfloat16):
        k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
        rows = max(1, 2 ** 22 // (H * T * S))           # examples whose weights stay in the cache
        masks = mask.split(rows) if mask is not None and mask.dim() == 4 and len(mask) == B else [mask] * B
        parts = zip(q.split(rows), k.split(rows), v.split(rows), masks)     # noqa: B905  (masks may be longer)
        return torch.cat([attention(q, k, v, causal, mask, dropout) for q, k, v, mask in parts])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal,
                                          enable_gqa=k.shape[1] < H)


def drop(x, p):
    """F.dropout(x, p).  On a CPU torch draws its random numbers slowly; 16 random bits a value take a quarter of the time."""
    if x.device.type != 'cpu' or not 0 < p < 1 or torch.compiler.is_compiling():
        return F.dropout(x, p)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-2 ** 63, None)
    bits = words.view(torch.int16)[:x.numel()].view(x.shape)        # from -2 ** 15: int16 has a sign
    return x * (bits >= round(2 ** 16 * p) - 2 ** 15).to(x.dtype).mul_(1 / (1 - p))


class Dropout(nn.Dropout):

    def forward(self, x):
        return drop(x, self.p) if self.training else x


class SelfAttention(nn.Module):
    causal = True               # False in vit.py

    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = Dropout(config.dropout)

    def forward(self, x, cache=None, past=0):
        """x: (B, T, C).  cache: begins with keys and values, each (B, H, block_size, D), of which the first `past` are filled;
        those of x are written after them."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)     # each (B, H, T, D)
        mask = None
        if cache is not None:
            keys, values = cache[:2]
            keys[:, :, past:past + T], values[:, :, past:past + T] = k, v
            k, v = keys[:, :, :past + T], values[:, :, :past + T]                           # (B, H, past + T, D)
            if past and T > 1:      # is_causal assumes that queries and keys begin at the same position
                mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        y = fast_attention(q, k, v, bool(self.causal and past == 0 and T > 1), mask, self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, C)                                              # (B, H, T, D) -> (B, T, C)
        return self.resid_dropout(self.c_proj(y))


class ShortConv(nn.Module):
    """y[t] = x[t] + sum over k < K of w[k] * x[t - k], per channel: attention compares tokens with their neighbours in them.

    It is the layer Canon-A of Allen-Zhu 2025, "Physics of Language Models: Part 4.1" (SSRN 5240330): on the normalized input of
    attention, with a residual and K = 4.  Primer has one of K = 3 after the projections (So et al. 2021, arXiv 2109.08668)."""

    def __init__(self, channels, width):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size=width, groups=channels, bias=False)

    def forward(self, x, seen=None, past=0):
        """x: (B, T, C).  seen: the K - 1 inputs before x (B, K - 1, C), updated in place; if past is 0, the text begins with x,
        and there are none."""
        before = x.new_zeros(len(x), self.conv.kernel_size[0] - 1, x.shape[2])
        if seen is not None and past:
            before.copy_(seen)
        longer = torch.cat([before, x], dim=1)                                              # (B, K - 1 + T, C)
        if seen is not None:
            seen.copy_(longer[:, x.shape[1]:])
        return x + self.conv(longer.mT).mT


class MLP(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.gelu = config.gelu
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x):
        x = F.gelu(self.c_fc(x), approximate=self.gelu)                                     # (B, T, 4C)
        return self.dropout(self.c_proj(x))                                                 # (B, T, C)


class Block(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.eps, bias=config.bias)
        self.short_conv = None      # Model sets it: other files that use this block have no such setting
        self.attn = SelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.eps, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x, cache=None, past=0):
        h = self.ln_1(x)
        if self.short_conv is not None:
            h = self.short_conv(h, cache and cache[2], past)
        x = x + self.attn(h, cache, past)
        return x + self.mlp(self.ln_2(x))


class Model(nn.Module):
    model_types = 'gpt2',
    published_tokens = 'gpt2'   # the tokenizer of the published weights

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.predicts = config, config.predicts
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, config.eps, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight
        for name, p in self.named_parameters():
            if name.endswith('c_proj.weight'):      # 2 * n_layer branches add up in the residual stream
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)
        for block in self.h if config.short_conv else ():   # last, so that all other weights start as they do without it
            block.short_conv = ShortConv(config.n_embd, config.short_conv)

    def trunk(self, x, caches=None, past=0):
        """x: (B, T) tokens at positions past .. past + T - 1.  Returns (B, T, C)."""
        position = torch.arange(past, past + x.shape[1], device=x.device)
        h = self.drop(self.wte(x) + self.wpe(position))                                     # (B, T, C)
        for i, block in enumerate(self.h):
            h = block(h, caches and caches[i], past)
        return self.ln_f(h)

    def forward(self, x, y=None):
        """x: (B, T) int64, T <= block_size.  y: (B, T), the token after each; -1 is not scored.
        Returns logits (B, T, V), or (B, 1, V) if predicts = 'last', and the mean cross-entropy in nats (None without y)."""
        h = self.trunk(x) if self.predicts == 'every' else self.trunk(x)[:, -1:]            # (B, T or 1, C)
        logits = self.lm_head(h)                                                            # (B, T or 1, V)
        if y is None:
            return logits, None
        y = y[:, -logits.shape[1]:]
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)

    # published weights ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name, **settings):
        """A model with published weights: gpt2, -medium, -large, -xl, distilgpt2, the name of any GPT-2 on the hub, or a local
        folder or .safetensors file.  settings: fields of Config; a smaller block_size crops the positions.
        Raises ValueError if the weights are not a GPT-2's, or contradict a setting."""
        from harness import hub
        short = {n: f'openai-community/{n}' for n in ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')}
        described, weights = hub.load(name, short | {'distilgpt2': 'distilbert/distilgpt2'})
        weights = {k.removeprefix('transformer.'): v for k, v in weights.items()}
        if not {'wte.weight', 'wpe.weight', 'h.0.attn.c_attn.weight'} <= weights.keys():
            raise ValueError('these are not the weights of a GPT-2')
        (V, C), T = weights['wte.weight'].shape, len(weights['wpe.weight'])
        L = len([k for k in weights if k.endswith('.ln_1.weight')])
        hub.check_config(
            'model.py', described, model_type=[*cls.model_types], vocab_size=[V], n_positions=[T], n_embd=[C], n_layer=[L],
            n_head=int, n_inner=[None, 4 * C], activation_function=list(GELU), layer_norm_epsilon=float,
            scale_attn_weights=[True], scale_attn_by_inverse_layer_idx=[False], add_cross_attention=[False])
        published = {'vocab_size': V, 'n_embd': C, 'n_layer': L, 'n_head': described.get('n_head'), 'bias': True,
                     'tied': hub.is_tied(described, weights, 'lm_head.weight', 'wte.weight')}
        if described:
            published['gelu'] = GELU[described.get('activation_function', 'gelu_new')]
            published['eps'] = described.get('layer_norm_epsilon', 1e-5)
        model = cls(Config(**{'gelu': 'tanh', 'block_size': T} | hub.merge(published, settings)))
        if model.config.block_size > T:
            raise ValueError(f'block_size={model.config.block_size} is above the {T} positions of the published model')
        weights['wpe.weight'] = weights['wpe.weight'][:model.config.block_size]
        if model.config.tied:
            weights['lm_head.weight'] = weights['wte.weight']
        for key in conv1d_weights(weights):
            weights[key] = weights[key].T
        return hub.fill(model, weights, unused=['h.*.attn.bias', 'h.*.attn.masked_bias'])      # the causal masks

    def to_hub(self):
        """(config.json as a dict, {name: tensor}) for transformers' GPT2LMHeadModel.  Raises ValueError with short_conv."""
        c, own = self.config, self.state_dict()
        if c.short_conv:
            raise ValueError(f"a GPT-2 of transformers has no short_conv={c.short_conv}")
        weights = {f'transformer.{k}': (v.T if k in conv1d_weights(own) else v).contiguous() for k, v in own.items()
                   if not k.startswith('lm_head')}
        for key in list(weights):                       # transformers has a bias everywhere
            bias = key.removesuffix('weight') + 'bias'
            if not c.bias and not key.startswith(('transformer.wte', 'transformer.wpe')):
                weights[bias] = torch.zeros(weights[key].shape[-1])
        if not c.tied:
            weights['lm_head.weight'] = own['lm_head.weight']
        return {'architectures': ['GPT2LMHeadModel'], 'model_type': 'gpt2', 'vocab_size': c.vocab_size, 'n_ctx': c.block_size,
                'n_positions': c.block_size, 'n_embd': c.n_embd, 'n_layer': c.n_layer, 'n_head': c.n_head,
                'activation_function': 'gelu' if c.gelu == 'none' else 'gelu_new', 'layer_norm_epsilon': c.eps,
                'tie_word_embeddings': c.tied, 'attn_pdrop': c.dropout, 'embd_pdrop': c.dropout, 'resid_pdrop': c.dropout,
                'bos_token_id': None, 'eos_token_id': None}, weights

    def refined(self, config):
        """The same function in a shorter window.  Raises ValueError for any other change."""
        T = self.config.block_size
        if dataclasses.replace(self.config, block_size=min(config.block_size, T)) != config:
            raise ValueError(f'of a trained GPT only block_size can be changed, to at most {T}')
        new, weights = Model(config), self.state_dict()
        weights['wpe.weight'] = weights['wpe.weight'][:config.block_size]
        new.load_state_dict(weights)
        return new

    # generation -------------------------------------------------------------------------------------------------------------

    def init_state(self, batch_size):
        """The state of step() before the first token: no tokens, and per block an empty key-value cache and the last inputs of
        the convolution."""
        c, like = self.config, self.wpe.weight
        shape = (batch_size, c.n_head, c.block_size, c.n_embd // c.n_head)
        seen = (batch_size, max(0, c.short_conv - 1), c.n_embd)
        return {'tokens': torch.empty(batch_size, 0, dtype=torch.long, device=like.device),
                'caches': [tuple(map(like.new_empty, (shape, shape, seen))) for _ in range(c.n_layer)]}

    def step(self, token, state, every=False):
        """token: (B, n), the next n tokens of each text.  Returns the logits of the token after them (B, V), or with `every` of
        the token after each (B, n, V), and the state.

        Positions are learned and absolute, so shifting a full window by one token would change every key and value.  When the
        cache is full, the last half of the window is read again as if the text began there.  So the model sees between
        block_size / 2 and block_size tokens, and the cost per token does not depend on the length of the text."""
        seen, size, n = state['tokens'], self.config.block_size, token.shape[1]
        if every and n > (room := max(1, size - seen.shape[1])):        # what each token sees is as in steps of one token
            first, state = self.step(token[:, :room], state, every)
            rest, state = self.step(token[:, room:], state, every)
            return torch.cat([first, rest], dim=1), state
        if seen.shape[1] + token.shape[1] > size:
            token = torch.cat([seen, token], dim=1)[:, -min(size, max(size // 2, token.shape[1])):]
            seen = seen[:, :0]
        h = self.trunk(token, state['caches'], seen.shape[1])
        state = {'tokens': torch.cat([seen, token], dim=1), 'caches': state['caches']}
        return self.lm_head(h[:, -n:] if every else h[:, -1]), state       # few logits: this is the largest matrix

    def fork(self, state):
        """A copy of a state of step(), which steps from the other do not change."""
        return {'tokens': state['tokens'], 'caches': copy_caches(state['caches'], state['tokens'].shape[1])}


def copy_caches(caches, n):
    """A copy of the (keys, values, inputs of the convolution) of each block, without the empty part behind n positions."""
    new = [tuple(map(torch.empty_like, cache)) for cache in caches]
    for (keys, values, seen), (k, v, s) in zip(new, caches, strict=True):
        keys[:, :, :n], values[:, :, :n] = k[:, :, :n], v[:, :, :n]
        seen.copy_(s)
    return new


GELU = {'gelu': 'none', 'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh', 'gelu_fast': 'tanh'}     # their names on the hub


def conv1d_weights(names):
    """The weights that GPT-2 stores as (in, out), where nn.Linear has (out, in); for square ones the shape does not show it."""
    return {n for n in names if n.endswith(('c_attn.weight', 'c_proj.weight', 'c_fc.weight'))}
