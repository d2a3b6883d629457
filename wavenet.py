"""
WaveGPT: a GPT on the window, mixed with a WaveNet that reads the tokens before the window.
Original: the repository "WaveGPT" (described by its README; no link is known)

    tokens before the window -> embeddings -> WaveNet (B, 1, C) -----------+
                                                                           |  alpha * decoder + (1 - alpha) * wavenet
    tokens of the window     -> embeddings -> decoder (B, T, C) -----------+            -> LayerNorm -> logits

alpha is trained.  `reads` sets the input of the WaveNet:

- 'memory' (default): the block_size tokens before the window, joined four by four until one summary vector is left, which is
  added at every position of the window.  This is what the README of the original describes.
- 'causal': the window itself, by the gated layers of a WaveNet: causal convolutions of growing dilation with residual and skip
  connections (van den Oord et al. 2016, arXiv 1609.03499, sections 2.1 to 2.4).  One output per position.
- 'leak': the window itself, joined four by four.  This is what the code of the original does: every position sees the tokens
  that it predicts.  Kept to show the effect; its loss is not that of a language model.

B batch   T tokens in the window   M tokens of memory before it (block_size)   C channels   V vocabulary   D dilation
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import Block, Dropout, check_gelu


@dataclass
class Config:
    block_size: int = 64        # tokens in the window, and in the memory
    vocab_size: int = 65        # size of the vocabulary
    n_layer: int = 4            # blocks of the decoder
    n_head: int = 4             # attention heads per block
    n_embd: int = 128           # channels
    dropout: float = 0.0        # on embeddings, attention weights and residual branches
    bias: bool = True           # bias in every Linear and LayerNorm of the decoder
    gelu: str = 'none'          # 'none' is exact; 'tanh' is GPT-2's approximation
    reads: str = 'memory'       # input of the WaveNet: 'memory', 'causal' or 'leak'
    join: int = 4               # memory, leak: neighbours that one layer of the WaveNet joins
    n_wave: int = 6             # causal: layers, with dilation 1, 2, 4, ...
    alpha: float = 0.5          # initial weight of the decoder in the mixture
    alpha_per_channel: bool = False     # train one alpha per channel
    eps: float = 1e-5           # epsilon of LayerNorm

    @classmethod
    def tiny(cls):
        return cls(block_size=16, vocab_size=17, n_layer=1, n_head=2, n_embd=16, n_wave=3)

    def __post_init__(self):
        check_gelu(self.gelu)
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} must be divisible by n_head={self.n_head}')
        if self.reads not in ('memory', 'causal', 'leak'):
            raise ValueError(f"unknown reads='{self.reads}': choose 'memory', 'causal' or 'leak'")
        if self.join < 2 or not 1 <= self.n_wave <= 16:
            raise ValueError(f'join={self.join} must be at least 2, and n_wave={self.n_wave} from 1 to 16 (dilation 32,768)')
        if self.reads != 'causal' and self.join ** round(math.log(self.block_size, self.join)) != self.block_size:
            raise ValueError(f'block_size={self.block_size} must be a power of join={self.join}')


class JoiningWaveNet(nn.Module):
    """The WaveNet of the original: each layer joins `join` neighbours into one, until one is left.  (B, M, C) -> (B, 1, C)"""

    def __init__(self, config):
        super().__init__()
        C, self.join = config.n_embd, config.join
        self.norms, self.linears = nn.ModuleList(), nn.ModuleList()
        for _ in range(round(math.log(config.block_size, self.join))):
            self.norms.append(nn.LayerNorm(self.join * C, config.eps))
            self.linears.append(nn.Linear(self.join * C, C))

    def forward(self, x):
        B, _, C = x.shape
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = F.relu(linear(norm(x.reshape(B, -1, self.join * C))))               # the length is divided by `join`
        return x


class CausalWaveNet(nn.Module):
    """Gated causal convolutions of kernel size 2, whose dilation doubles with each layer.  (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.dilations = [2 ** i for i in range(config.n_wave)]
        self.gated = nn.ModuleList([nn.Conv1d(C, 2 * C, kernel_size=2, dilation=d) for d in self.dilations])
        self.residual = nn.ModuleList([nn.Linear(C, C) for _ in self.dilations[1:]])    # the last layer has only a skip
        self.skip = nn.ModuleList([nn.Linear(C, C) for _ in self.dilations])
        self.out = nn.Linear(C, C)

    def forward(self, x, seen=None):
        """seen: for each layer its last D inputs (B, D, C), see Model.init_state; updated in place."""
        total = 0
        for i, d in enumerate(self.dilations):
            before = x.new_zeros(len(x), d, x.shape[2]) if seen is None else seen[i]
            longer = torch.cat([before, x], dim=1)                                  # (B, D + T, C)
            if seen is not None:
                seen[i] = longer[:, -d:]
            a, b = self.gated[i](longer.mT).mT.chunk(2, dim=-1)                     # each (B, T, C)
            z = a.tanh() * b.sigmoid()
            total = total + self.skip[i](z)
            if i + 1 < len(self.dilations):
                x = x + self.residual[i](z)
        return self.out(F.relu(total))


class Model(nn.Module):
    predicts = 'every'
    adjustable = ('dropout', 'alpha')       # alpha is its initial value

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.leaks = config, config.reads == 'leak'
        self.memory = config.block_size if config.reads == 'memory' else 0
        C = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, C)
        self.wpe = nn.Embedding(config.block_size, C)                       # of the window, and of the memory
        self.drop = Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.wavenet = (CausalWaveNet if config.reads == 'causal' else JoiningWaveNet)(config)
        self.ln_decoder = nn.LayerNorm(C, config.eps, bias=config.bias)     # GPT-2's last norm; the mixture has another one
        self.alpha = nn.Parameter(torch.full((C if config.alpha_per_channel else 1,), config.alpha))
        self.alpha.no_weight_decay = True
        self.ln_f = nn.LayerNorm(C, config.eps, bias=config.bias)
        self.lm_head = nn.Linear(C, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, p in self.named_parameters():
            if name.startswith('h.') and name.endswith('c_proj.weight'):            # as in model.py
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif p.dim() == 2 and not name.startswith('wavenet'):
                nn.init.normal_(p, std=0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)
        if self.leaks:
            self.init_state = self.step = None      # the next token would change the logits of the earlier ones

    def metrics(self):
        return {'alpha': self.alpha.mean().item()}

    def embed(self, x, past=0):
        """(B, T) tokens at positions past .. past + T - 1 -> (B, T, C)"""
        return self.wte(x) + self.wpe.weight[past:past + x.shape[1]]

    def decoder(self, h, caches=None, past=0):
        """(B, T, C) embeddings at positions past .. past + T - 1 -> (B, T, C)"""
        h = self.drop(h)
        for i, block in enumerate(self.h):
            h = block(h, caches and caches[i], past)
        return self.ln_decoder(h)

    def summary(self, memory):
        """(B, M) tokens -> (B, 1, C).  Zeros where a memory contains -1, which means that there is none.  The WaveNet reads it
        all the same, so that its weights have a gradient in every step, as DDP requires."""
        known = (memory >= 0).all(1)[:, None, None]                                 # (B, 1, 1)
        return self.wavenet(self.embed(memory.clamp(min=0))) * known

    def mix(self, decoder, wavenet):
        return self.lm_head(self.ln_f(self.alpha * decoder + (1 - self.alpha) * wavenet))

    def forward(self, x, y=None):
        """x: (B, T) int64, T <= block_size, or with a memory (B, M + T): M tokens before the window, -1 where there are none,
        and the window.  y: (B, T), the token after each of the window; -1 is not scored.
        Returns logits (B, T, V) and the mean cross-entropy in nats (None without y)."""
        M = self.memory if x.shape[1] > self.config.block_size else 0
        memory, x = x[:, :M], x[:, M:]
        h = self.embed(x)                                                           # (B, T, C)
        if self.config.reads == 'causal':
            wave = self.wavenet(h)                                                  # (B, T, C)
        elif self.leaks:
            wave = self.wavenet(F.pad(h, (0, 0, self.config.block_size - x.shape[1], 0)))           # (B, 1, C)
        else:
            wave = self.summary(memory if M else x.new_full((len(x), self.memory), -1))             # (B, 1, C)
        logits = self.mix(self.decoder(h), wave)                                     # (B, T, V)
        if y is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)

    # generation -------------------------------------------------------------------------------------------------------------

    def init_state(self, batch_size):
        """The state of step() before the first token: the keys and values of the window, and the summary of the window before
        it (reads = 'memory') or the last inputs of the WaveNet (reads = 'causal')."""
        c, like = self.config, self.wte.weight
        shape = (batch_size, c.n_head, c.block_size, c.n_embd // c.n_head)
        state = {'tokens': torch.empty(batch_size, 0, dtype=torch.long, device=like.device),
                 'caches': [(like.new_empty(shape), like.new_empty(shape)) for _ in range(c.n_layer)]}
        return state | self.wavenet_state(batch_size)

    def wavenet_state(self, batch_size):
        c, like = self.config, self.wte.weight
        if c.reads == 'memory':
            return {'summary': like.new_zeros(batch_size, 1, c.n_embd)}
        return {'seen': [like.new_zeros(batch_size, d, c.n_embd) for d in self.wavenet.dilations]}

    def step(self, token, state, every=False):
        """token: (B, n), the next n tokens of each text.  Returns the logits of the token after them (B, V), or with `every` of
        the token after each (B, n, V), and the state.

        With a memory, a full window becomes the memory of the next window, which begins empty, so every token is read once.
        Without one, the last half of a full window is read again, as in model.py."""
        seen, size, n = state['tokens'], self.config.block_size, token.shape[1]
        room = size - seen.shape[1] or (size if self.memory else 1)
        if every and n > room:              # what each token sees is as in steps of one token
            first, state = self.step(token[:, :room], state, every)
            rest, state = self.step(token[:, room:], state, every)
            return torch.cat([first, rest], dim=1), state
        while self.memory and (room := size - seen.shape[1]) < token.shape[1]:
            state = state | {'summary': self.summary(torch.cat([seen, token[:, :room]], dim=1))}
            seen, token = seen[:, :0], token[:, room:]
        if seen.shape[1] + token.shape[1] > size:
            token = torch.cat([seen, token], dim=1)[:, -min(size, max(size // 2, token.shape[1])):]
            seen, state = seen[:, :0], state | self.wavenet_state(len(token))
        h = self.embed(token, seen.shape[1])                                        # (B, n, C)
        wave = state['summary'] if self.memory else self.wavenet(h, state['seen'])
        h = self.decoder(h, state['caches'], seen.shape[1])
        last = n if every else 1
        logits = self.mix(h[:, -last:], wave[:, -last:])                            # (B, n or 1, V)
        return logits if every else logits[:, 0], state | {'tokens': torch.cat([seen, token], dim=1)}
