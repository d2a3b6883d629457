"""
Llama: today's GPT.     (Touvron et al. 2023, arXiv 2302.13971 and 2307.09288; Dubey et al. 2024, arXiv 2407.21783)

- differs from model.py in five parts: RMSNorm (Zhang and Sennrich 2019), rotary positions (Su et al. 2021), SwiGLU (Shazeer
  2020), grouped queries (Ainslie et al. 2023), and no biases; QK-norm as in Qwen3 is optional
- a token attends to the last block_size tokens, itself included, so a text may be longer than the window
- step() keeps the keys and values of one window; positions are relative, so the oldest token is overwritten when the window is
  full, and nothing is read again
- short_conv is as in model.py
- from_pretrained() gives the published logits, from files of transformers or GGUF; the layers have the names of transformers

B batch   T tokens in x   C channels (n_embd)   H query heads (n_head)   G heads of keys and values (n_kv_head)
D channels per head (head_dim)   E channels inside the MLP (n_hidden)   V vocabulary
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import Dropout, ShortConv, check_short_conv, copy_caches, fast_attention


@dataclass
class Config:                       # SmolLM2 135M: 8192, 49152, 30, 9, 3, 576, 64, 1536, base 100,000
    block_size: int = 64            # tokens in the window
    vocab_size: int = 65            # size of the vocabulary
    n_layer: int = 4                # blocks
    n_head: int = 4                 # query heads per block
    n_kv_head: int = 0              # heads of keys and values, each shared by n_head / n_kv_head query heads (0: n_head)
    n_embd: int = 128               # channels
    head_dim: int = 0               # channels per head (0: n_embd / n_head)
    n_hidden: int = 0               # channels inside the MLP (0: 8/3 of n_embd, rounded up to a multiple of 64)
    rope_base: float = 10000.0      # rotary positions: pair i of D / 2 turns by rope_base ** (-2i / D) radians per token
    rope_layout: str = 'half'       # the pairs: 'half' (i, i + D/2) as in transformers, 'interleaved' (2i, 2i + 1) as in Meta's
    rope_scaling: tuple = ()        # Llama 3.1's: factor, low_freq_factor, high_freq_factor, original window
    qk_norm: bool = False           # RMSNorm of each query and key, as in Qwen3
    tied: bool = True               # the output layer is the token embedding
    eps: float = 1e-5               # epsilon of RMSNorm
    dropout: float = 0.0            # on embeddings and residual branches; the published models were trained without
    short_conv: int = 0             # tokens that a causal convolution in front of attention sees (0: none), see model.ShortConv

    @classmethod
    def tiny(cls):
        return cls(block_size=16, vocab_size=17, n_layer=2, n_head=4, n_kv_head=2, n_embd=16)

    def __post_init__(self):
        self.n_kv_head = self.n_kv_head or self.n_head
        self.n_hidden = self.n_hidden or math.ceil(self.n_embd * 8 / 3 / 64) * 64
        if not self.head_dim and self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} must be divisible by n_head={self.n_head}, or head_dim be set')
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        if self.n_kv_head < 1 or self.n_head % self.n_kv_head:
            raise ValueError(f'n_head={self.n_head} must be divisible by n_kv_head={self.n_kv_head}')
        if self.head_dim < 2 or self.head_dim % 2 or self.n_hidden < 1 or self.rope_base <= 0 or self.eps < 0:
            raise ValueError(f'head_dim={self.head_dim} must be even and above 0, n_hidden={self.n_hidden} and '
                             f'rope_base={self.rope_base} above 0, and eps={self.eps} at least 0')
        if self.rope_layout not in ('half', 'interleaved'):
            raise ValueError(f"unknown rope_layout='{self.rope_layout}': choose 'half' (transformers) or 'interleaved' (Meta)")
        if (s := self.rope_scaling) and not (len(s) == 4 and min(s) > 0 and s[1] < s[2]):
            raise ValueError(f'rope_scaling={self.rope_scaling} must be four numbers above 0, the second below the third')
        check_short_conv(self.short_conv)


# rotary positions -----------------------------------------------------------------------------------------------------------
#
# The D channels of a query or key are D/2 pairs, points in a plane.  At position t, pair i is rotated by the angle t f[i].  The
# product of a query at t and a key at s then depends on t - s only (Su et al. 2021, section 3.2.2, arXiv 2104.09864).

def frequencies(config, device=None, dtype=torch.float32):
    """f[i] = rope_base^(-2i / D), the angle per token of each pair: (D / 2,).

    With rope_scaling (Llama 3.1, in transformers 'llama3'), pairs that turn fewer than `low` times in the original window are
    slowed by `factor`, pairs that turn more than `high` times are not, and between the two it is interpolated."""
    f = config.rope_base ** (-torch.arange(0, config.head_dim, 2, device=device, dtype=dtype) / config.head_dim)
    if config.rope_scaling:
        factor, low, high, window = config.rope_scaling
        kept = ((window * f / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        f = f * (kept + (1 - kept) / factor)
    return f


def rotation(config, h, past=0):
    """(cos, sin), each (T, D / 2), of the angles at the positions past .. past + T - 1 of h: (B, T, C)."""
    dtype = torch.promote_types(h.dtype, torch.float32)         # angles of hundreds of radians need float32
    position = torch.arange(past, past + h.shape[1], device=h.device, dtype=dtype)
    angles = torch.outer(position, frequencies(config, h.device, dtype))
    return angles.cos(), angles.sin()


def rotate(x, cos, sin, layout):
    """x: (B, H, T, D).  cos, sin: (T, D / 2), of the angles.  Returns (B, H, T, D)."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1) if layout == 'half' else (x[..., ::2], x[..., 1::2])          # each (B, H, T, D / 2)
    turned = a * cos - b * sin, a * sin + b * cos
    return torch.cat(turned, dim=-1) if layout == 'half' else torch.stack(turned, dim=-1).flatten(-2)


# the network ----------------------------------------------------------------------------------------------------------------

class SelfAttention(nn.Module):

    def __init__(self, config):
        super().__init__()
        C, D = config.n_embd, config.head_dim
        self.config = config
        self.q_proj = nn.Linear(C, config.n_head * D, bias=False)
        self.k_proj = nn.Linear(C, config.n_kv_head * D, bias=False)
        self.v_proj = nn.Linear(C, config.n_kv_head * D, bias=False)
        self.o_proj = nn.Linear(config.n_head * D, C, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(D, config.eps) if config.qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x, rotation, cache=None, past=0):
        """x: (B, T, C), at positions past .. past + T - 1.  rotation: (cos, sin) of these.  cache: see Model.init_state."""
        B, T, _ = x.shape
        q, k, v = (layer(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)            # (B, H or G, T, D)
                   for layer in (self.q_proj, self.k_proj, self.v_proj))
        q = rotate(self.q_norm(q).to(v.dtype), *rotation, self.config.rope_layout)      # the norms may be of float32
        k = rotate(self.k_norm(k).to(v.dtype), *rotation, self.config.rope_layout)
        if cache is not None:
            k, v = remember(cache[0], k, past), remember(cache[1], v, past)
        S, mask = k.shape[2], None
        if T > 1 and min(T, self.config.block_size) < S:    # query i is at S - T + i and sees the block_size keys up to there
            mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T).triu(S - T - self.config.block_size + 1)
        y = fast_attention(q, k, v, bool(mask is None and T > 1), mask)
        return self.o_proj(y.transpose(1, 2).flatten(2))                                    # (B, H, T, D) -> (B, T, C)


def remember(ring, new, past):
    """Writes keys or values new (B, G, T, D) of positions past .. past + T - 1 to the ring (B, G, block_size, D), position t to
    slot t % block_size.  Returns those that the new tokens attend to, in order of position if T > 1."""
    size, T = ring.shape[2], new.shape[2]
    if T == 1 or past + T <= size:          # no new token needs what is overwritten
        ring[:, :, past % size:past % size + T] = new
        return ring[:, :, :past + T]        # a view: the whole ring once it is full
    seen = torch.cat([ring.roll(-past, 2) if past > size else ring[:, :, :past], new], dim=2)
    ring.copy_(seen[:, :, -size:].roll(past + T, 2))
    return seen


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): a GELU MLP with a gate; of the same size if E is 8/3 C instead of 4 C."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.down_proj = nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))                  # (B, T, E) -> (B, T, C)


class Block(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.n_embd, config.eps)
        self.short_conv = ShortConv(config.n_embd, config.short_conv) if config.short_conv else None
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.n_embd, config.eps)
        self.mlp = MLP(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x, rotation, cache=None, past=0):
        h = self.input_layernorm(x)
        if self.short_conv is not None:
            h = self.short_conv(h, cache and cache[2], past)
        x = x + self.dropout(self.self_attn(h, rotation, cache, past))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Model(nn.Module):
    predicts = 'every'
    model_types = 'llama', 'qwen3'

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm = nn.RMSNorm(config.n_embd, config.eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.embed_tokens.weight
        for name, p in self.named_parameters():
            if name.endswith(('o_proj.weight', 'down_proj.weight')):    # 2 * n_layer branches add up in the residual stream
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def trunk(self, h, caches=None, past=0):
        """h: (B, T, C), embedded tokens at positions past .. past + T - 1.  Returns (B, T, C)."""
        turn, h = rotation(self.config, h, past), self.dropout(h)
        for i, block in enumerate(self.layers):
            h = block(h, turn, caches and caches[i], past)
        return self.norm(h)

    def forward(self, x, y=None):
        """x: (B, T) int64, of any length; a token sees the last block_size tokens.  y: (B, T), the token after each; -1 is not
        scored.  Returns logits (B, T, V) and the mean cross-entropy in nats (None without y)."""
        logits = self.lm_head(self.trunk(self.embed_tokens(x)))                             # (B, T, V)
        if y is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)

    # generation -------------------------------------------------------------------------------------------------------------

    def init_state(self, batch_size):
        """The state of step() before the first token: the position of the next token, and per block a ring of the keys, as
        rotated, a ring of the values of the last block_size tokens, and the last inputs of the convolution."""
        c, like = self.config, self.embed_tokens.weight
        shape, seen = (batch_size, c.n_kv_head, c.block_size, c.head_dim), (batch_size, max(0, c.short_conv - 1), c.n_embd)
        return {'past': 0, 'caches': [tuple(map(like.new_empty, (shape, shape, seen))) for _ in range(c.n_layer)]}

    def step(self, token, state, every=False):
        """token: (B, n), the next n tokens of each text.  Returns the logits of the token after them (B, V), or with `every` of
        the token after each (B, n, V), and the state.

        These are the logits of forward() on the whole text, however long, read in pieces of any size.  They are not those of
        the last block_size tokens alone: the keys and values that the second block keeps of these depend on earlier tokens
        through the first block.  So at most the last n_layer * (block_size + short_conv) tokens have an influence."""
        size, past = self.config.block_size, state['past']
        reach = self.config.n_layer * (size + self.config.short_conv)
        if token.shape[1] > reach and not every:
            token, past = token[:, -reach:], 0
        h = []
        for piece in token.split(size, dim=1):                      # so that the mask is at most (size, 2 size)
            h.append(self.trunk(self.embed_tokens(piece), state['caches'], past))
            past += piece.shape[1]
        return self.lm_head(torch.cat(h, dim=1) if every else h[-1][:, -1]), {'past': past, 'caches': state['caches']}

    def fork(self, state):
        """A copy of a state of step(), which steps from the other do not change."""
        return {'past': state['past'], 'caches': copy_caches(state['caches'], state['past'])}

    # published weights ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name, **settings):
        """A model with published weights: smollm2, the name of any Llama or Qwen3 on the hub, a local folder, or a .safetensors
        or .gguf file.  settings: fields of Config.  Raises ValueError if the weights are others, or contradict a setting."""
        from harness import hub
        described, weights = hub.load(name)
        hub.check_config('llama.py', described, model_type=[*cls.model_types])
        weights = {k.removeprefix('model.'): v.float() for k, v in weights.items()}
        q, k, up = (f'layers.0.{name}.weight' for name in ('self_attn.q_proj', 'self_attn.k_proj', 'mlp.up_proj'))
        if not described or not {'embed_tokens.weight', q, k, up} <= weights.keys():
            raise ValueError('these are not the weights of a Llama with its config.json, which tells the heads and rotary base')
        n_head = described.get('num_attention_heads', 32)   # what config.json does not say has the default of transformers
        if type(n_head) is not int or not 0 < n_head <= len(weights[q]):
            raise ValueError(f'config.json has num_attention_heads={n_head!r} for queries of {len(weights[q])} channels')
        D, n_layer = len(weights[q]) // n_head, len([key for key in weights if key.endswith('.up_proj.weight')])
        table, (base, scaling) = weights['embed_tokens.weight'], rope_settings(described)
        # two different matrices are not tied, whatever config.json says: so does transformers
        tied = bool(described.get('tie_word_embeddings')) and torch.equal(weights.setdefault('lm_head.weight', table), table)
        published = {
            'vocab_size': len(table), 'n_layer': n_layer, 'n_head': n_head, 'n_kv_head': len(weights[k]) // D,
            'head_dim': D, 'n_embd': table.shape[1], 'n_hidden': len(weights[up]), 'rope_base': base, 'rope_scaling': scaling,
            'rope_layout': described.get('rope_layout', 'half'), 'qk_norm': 'layers.0.self_attn.q_norm.weight' in weights,
            'tied': tied, 'eps': described.get('rms_norm_eps', 1e-6)}
        described = described | {'num_key_value_heads': described.get('num_key_value_heads') or n_head}
        hub.check_config('llama.py', described, rms_norm_eps=float, max_position_embeddings=int, hidden_act=['silu'],
                         attention_bias=[False], mlp_bias=[False], attention_dropout=[0], use_sliding_window=[False],
                         layer_types=[None, ['full_attention'] * n_layer],
                         **{theirs: [None, published[ours]] for theirs, ours in NAMES.items()})
        model = cls(Config(**{'block_size': described.get('max_position_embeddings', 2048)} | hub.merge(published, settings)))
        return hub.fill(model, weights, unused=['layers.*.self_attn.rotary_emb.inv_freq'])  # in old files

    def to_hub(self):
        """(config.json as a dict, {name: tensor}) for transformers' LlamaForCausalLM, or Qwen3ForCausalLM with QK-norm.  Raises
        ValueError if it has no such model."""
        c, own = self.config, self.state_dict()
        if c.short_conv:
            raise ValueError(f'a Llama of transformers has no short_conv={c.short_conv}')
        for key, v in own.items():
            if c.rope_layout == 'interleaved' and key.endswith(('q_proj.weight', 'k_proj.weight', '_norm.weight')):
                v = v.view(-1, c.head_dim // 2, 2, *v.shape[1:]).transpose(1, 2).reshape(v.shape)
            own[key] = v.contiguous()
        kind = 'Qwen3' if c.qk_norm else 'Llama'
        scaling = {'rope_type': 'llama3', **dict(zip(LLAMA3, c.rope_scaling, strict=True))} if c.rope_scaling else None
        described = {theirs: getattr(c, ours) for theirs, ours in NAMES.items()} | {
            'architectures': [f'{kind}ForCausalLM'], 'model_type': kind.lower(), 'max_position_embeddings': c.block_size,
            'rms_norm_eps': c.eps, 'rope_theta': c.rope_base, 'rope_scaling': scaling, 'tie_word_embeddings': c.tied,
            'bos_token_id': None, 'eos_token_id': None}
        return described, {k if k == 'lm_head.weight' else f'model.{k}': v for k, v in own.items()
                           if k != 'lm_head.weight' or not c.tied}


NAMES = {'vocab_size': 'vocab_size', 'hidden_size': 'n_embd', 'intermediate_size': 'n_hidden', 'num_hidden_layers': 'n_layer',
         'num_attention_heads': 'n_head', 'num_key_value_heads': 'n_kv_head', 'head_dim': 'head_dim'}  # config.json: Config
LLAMA3 = 'factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'    # of Config.rope_scaling


def rope_settings(described):
    """(rope_base, rope_scaling) of a config.json, whose keys depend on the version of transformers.  Raises ValueError for any
    scaling but Llama 3.1's."""
    rope = described.get('rope_parameters') or described.get('rope_scaling') or {}
    kind = rope.get('rope_type', rope.get('type', 'default'))
    part = rope.get('partial_rotary_factor', described.get('partial_rotary_factor')) or 1
    if kind not in ('default', 'llama3') or part != 1 or (kind == 'llama3' and not rope.keys() >= {*LLAMA3}):
        raise ValueError(f"config.json has rope_type={kind!r} with {rope} and partial_rotary_factor={part}, but llama.py "
                         f"computes only 'default' or 'llama3' with {', '.join(LLAMA3)}, and 1")
    return rope.get('rope_theta', described.get('rope_theta', 1e4)), tuple(rope[key] for key in LLAMA3 if kind == 'llama3')
