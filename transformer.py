"""
The Transformer of 2017: an encoder reads a source, a decoder writes a target, token by token.

- Vaswani et al. 2017, "Attention Is All You Need" (arXiv 1706.03762); model.py keeps its decoder, bert.py its encoder
- three kinds of attention: the source looks at itself in both directions, the target at what came before, and the target at the
  source (cross-attention)
- post-norm: each residual sum is normalised (GPT-2 normalises the input of each branch instead); sinusoidal positions
- the last token of the vocabulary is added to those of the tokenizer: it begins and ends every target
- decode() is greedy or a beam search; the keys and values of what is read are kept, so a token costs one step
- the source may also be vectors (features > 0), such as the patches of an image

B batch   S tokens of the source   T tokens of the target   C channels (n_embd)   H heads   D channels per head, or features per
token of the source   N beams of all sources   V vocabulary
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import Dropout, fast_attention


@dataclass
class Config:                   # base of the paper: 6, 8, 512, dropout 0.1, smoothing 0.1
    block_size: int = 16        # tokens of the longest target, with its end
    source_size: int = 32       # tokens of the longest source
    vocab_size: int = 66        # size of the vocabulary, with the token that begins and ends a target
    features: int = 0           # features per token of the source, or 0: its tokens are from the vocabulary
    n_layer: int = 2            # blocks of the encoder, and of the decoder
    n_head: int = 4             # attention heads per block
    n_embd: int = 64            # channels
    n_hidden: int = 0           # channels inside the feed-forward layers (0: 4 * n_embd)
    dropout: float = 0.0        # on embeddings, attention weights and residual branches
    shared: bool = True         # one matrix embeds source and target and is the output layer (section 3.4)
    smoothing: float = 0.0      # label smoothing of the training loss (section 5.4)

    @classmethod
    def tiny(cls):
        return cls(block_size=16, source_size=9, vocab_size=17, n_layer=2, n_head=2, n_embd=16)

    def __post_init__(self):
        self.n_hidden = self.n_hidden or 4 * self.n_embd
        if self.n_embd % self.n_head or self.n_embd % 2:
            raise ValueError(f'n_embd={self.n_embd} must be even and divisible by n_head={self.n_head}')
        if not 0 <= self.smoothing < 1:
            raise ValueError(f'smoothing={self.smoothing} must be at least 0 and below 1')
        if min(self.source_size, self.n_hidden) < 1 or self.features < 0:
            raise ValueError(f'source_size={self.source_size} and n_hidden={self.n_hidden} must be at least 1, and '
                             f'features={self.features} at least 0')


def sinusoids(size, channels):
    """Positions (size, C): sin and cos of t / 10000^(2i / C) in turn (section 3.5)."""
    angles = torch.outer(torch.arange(size), 10000.0 ** (-torch.arange(0, channels, 2) / channels))     # (size, C / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class Attention(nn.Module):
    """Multi-head attention (section 3.2): softmax(Q K^T / sqrt(D)) V, with queries from x, keys and values from `memory`."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.n_head, self.dropout = config.n_head, config.dropout
        self.query, self.key, self.value, self.proj = (nn.Linear(C, C) for _ in range(4))

    def heads(self, x):
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)                           # (B, T, C) -> (B, H, T, D)

    def keys_values(self, memory):
        """memory: (B, S, C).  Returns keys and values (B, H, S, D)."""
        return self.heads(self.key(memory)), self.heads(self.value(memory))

    def forward(self, x, keys_values, mask=None, is_causal=False):
        """x: (B, T, C).  mask: (B, 1, 1, S), True where a key may be seen.  Returns (B, T, C)."""
        y = fast_attention(self.heads(self.query(x)), *keys_values, is_causal, mask, self.dropout if self.training else 0.0)
        return self.proj(y.transpose(1, 2).flatten(2))

    def weights(self, x, memory, mask=None):
        """The attention weights (B, H, T, S), which the fused call of forward() does not give."""
        scores = self.heads(self.query(x)) @ self.keys_values(memory)[0].mT / math.sqrt(x.shape[-1] // self.n_head)
        return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1)


class FeedForward(nn.Sequential):
    """max(0, x W1 + b1) W2 + b2 (section 3.3)."""

    def __init__(self, config):
        super().__init__(nn.Linear(config.n_embd, config.n_hidden), nn.ReLU(), nn.Linear(config.n_hidden, config.n_embd))


class EncoderBlock(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.attn, self.ff = Attention(config), FeedForward(config)
        self.ln_1, self.ln_2 = (nn.LayerNorm(config.n_embd) for _ in range(2))
        self.drop = Dropout(config.dropout)

    def forward(self, x, mask):
        x = self.ln_1(x + self.drop(self.attn(x, self.attn.keys_values(x), mask)))
        return self.ln_2(x + self.drop(self.ff(x)))


class DecoderBlock(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.attn, self.cross, self.ff = Attention(config), Attention(config), FeedForward(config)
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(config.n_embd) for _ in range(3))
        self.drop = Dropout(config.dropout)

    def forward(self, x, source, mask, past=None):
        """x: (B, T, C).  source: the encoded source (B, S, C), or its keys and values.  past: keys and values of the target
        before x, or None.  Returns (B, T, C), and the keys and values up to x."""
        own = self.attn.keys_values(x)                                                      # (B, H, T, D) each
        if past is not None:
            own = tuple(torch.cat(pair, dim=2) for pair in zip(past, own, strict=True))
        x = self.ln_1(x + self.drop(self.attn(x, own, is_causal=past is None)))
        source = self.cross.keys_values(source) if isinstance(source, torch.Tensor) else source
        x = self.ln_2(x + self.drop(self.cross(x, source, mask)))
        return self.ln_3(x + self.drop(self.ff(x))), own


class Model(nn.Module):
    predicts = 'task'
    modality = 'pairs'

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        C, V = config.n_embd, config.vocab_size
        self.source = nn.Linear(config.features, C) if config.features else nn.Embedding(V, C)
        self.target = nn.Embedding(V, C)
        self.drop = Dropout(config.dropout)
        self.encoder = nn.ModuleList([EncoderBlock(config) for _ in range(config.n_layer)])
        self.decoder = nn.ModuleList([DecoderBlock(config) for _ in range(config.n_layer)])
        self.lm_head = nn.Linear(C, V, bias=False)
        self.register_buffer('positions', sinusoids(max(config.source_size, config.block_size), C), persistent=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.xavier_uniform_(p)
        if config.shared:
            self.lm_head.weight = self.target.weight
            if not config.features:
                self.source.weight = self.target.weight
        for layer in (self.lm_head, self.target, *([] if config.features else [self.source])):
            nn.init.normal_(layer.weight, std=0.5 * C ** -0.5)      # times sqrt(C), of about the size of the positions

    def embed(self, layer, x, first=0):
        """(B, T) tokens, or (B, T, D) features, at positions from `first`.  Returns (B, T, C)."""
        h = layer(x) * (math.sqrt(self.config.n_embd) if isinstance(layer, nn.Embedding) else 1)
        return self.drop(h + self.positions[first:first + x.shape[1]].to(h.dtype))

    def encode(self, source):
        """source: (B, S) int64, -1 after its end, or (B, S, D) features.  Returns (B, S, C), and the mask (B, 1, 1, S) of the
        tokens that exist."""
        mask = torch.ones_like(source[..., 0], dtype=torch.bool) if self.config.features else source >= 0
        mask = mask[:, None, None]                                                          # (B, 1, 1, S)
        h = self.embed(self.source, source if self.config.features else source.clamp(min=0))
        for block in self.encoder:
            h = block(h, mask)
        return h, mask

    def forward(self, source, y=None):
        """source: (B, S) int64, -1 after its end, or (B, S, D) features.  y: (B, T) int64, the target with its end; -1 is not
        scored, and read as an end.  The logits at t are those of y[:, t], given the source and y[:, :t].

        Returns logits (B, T, V) and the mean over the targets of the mean cross-entropy of their tokens, in nats.  (A mean over
        all tokens of a batch would depend on how pairs of different lengths are divided over processes.)  Without y: the logits
        (B, 1, V) of the first token, and None."""
        h, mask = self.encode(source)
        end = self.config.vocab_size - 1
        x = torch.full((len(source), 1), end, device=source.device)                         # what the decoder reads
        if y is not None:
            x = torch.cat([x, torch.where(y < 0, end, y)[:, :-1]], dim=1)                   # (B, T)
        t = self.embed(self.target, x)
        for block in self.decoder:
            t, _ = block(t, h, mask)                                                        # (B, T, C)
        logits = self.lm_head(t)                                                            # (B, T, V)
        if y is None:
            return logits, None
        losses = F.cross_entropy(logits.transpose(1, 2), y, ignore_index=-1, reduction='none',
                                 label_smoothing=self.config.smoothing if self.training else 0.0)
        scored = (y >= 0).sum(1)                                                            # (B,)
        return logits, (losses.sum(1) / scored.clamp(min=1)).sum() / (scored > 0).sum().clamp(min=1)

    # generation -------------------------------------------------------------------------------------------------------------

    def next_log_p(self, token, at, cache, sources, mask):
        """The log-probabilities (N, V) after a token (N, 1) at position `at`, and the cache with its keys and values."""
        h, kept = self.embed(self.target, token, at), []
        for block, past, source in zip(self.decoder, cache, sources, strict=True):
            h, own = block(h, source, mask, past)
            kept.append(own)
        return self.lm_head(h[:, -1]).float().log_softmax(-1), kept

    @torch.no_grad()
    def decode(self, source, beams=1):
        """source: as in forward().  Returns the likeliest targets that a beam search of this width finds (1: greedy), without
        their ends: (B, T) int64, -1 after the end of each.

        The score of a target is the sum of its log-probabilities, its end included, divided by its length: without that
        division, short targets win.  A target that has ended stays only while it is among the best beams.  One that has not
        ended after block_size tokens is cut there."""
        B, N, end = len(source), beams, self.config.vocab_size - 1
        h, mask = (v.repeat_interleave(N, 0) for v in self.encode(source))                  # (B * N, S, C), (B * N, 1, 1, S)
        sources = [block.cross.keys_values(h) for block in self.decoder]
        cache = [tuple(k[:, :, :0] for k in pair) for pair in sources]
        token = torch.full((B * N, 1), end, device=source.device)
        found = torch.full((B, N, 0), end, device=source.device)
        total = torch.full((B, N), -math.inf, device=source.device)
        total[:, 0] = 0                                     # the beams of a source begin equal: only one of them counts
        length, done = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.bool)
        for t in range(self.config.block_size):
            log_p, cache = self.next_log_p(token, t, cache, sources, mask)
            log_p = log_p.view(B, N, -1)                                                    # (B, N, V)
            stay = torch.full_like(log_p, -math.inf)
            stay[..., end] = 0                              # a target that has ended goes on with ends, at no cost
            sums = total[..., None] + torch.where(done[..., None], stay, log_p)
            lengths = (length + ~done)[..., None].expand_as(sums)
            _, best = (sums / lengths).flatten(1).topk(N)                                   # (B, N), of N * V
            row, new = best // log_p.shape[-1], best % log_p.shape[-1]
            total, length = (v.flatten(1).gather(1, best) for v in (sums, lengths))
            found = torch.cat([found.gather(1, row[..., None].expand_as(found)), new[..., None]], dim=2)
            done = new == end
            flat = (row + N * torch.arange(B, device=row.device)[:, None]).flatten()
            cache = [tuple(k[flat] for k in pair) for pair in cache]
            token = new.view(-1, 1)
            if done.all():
                break
        return torch.where(found[:, 0] == end, -1, found[:, 0])                             # the best are in front


def cross_attention(model, source, y):
    """The weights with which each token of the target y (1, T) looks at the source (1, S), as the mean over the heads of each
    layer: a list of (T, S)."""
    inputs = []
    hooks = [block.cross.register_forward_pre_hook(lambda layer, args: inputs.append(args[0])) for block in model.decoder]
    with torch.no_grad():
        h, mask = model.encode(source)
        model(source, y)
        maps = [block.cross.weights(own, h, mask)[0].mean(0).float().cpu()                  # (T, S)
                for own, block in zip(inputs, model.decoder, strict=True)]
    for hook in hooks:
        hook.remove()
    return maps


def pictures(model, source, y, texts, targets):
    """Cross-attention, for look.py.  source: (1, S), or (1, S, D).  y: (1, T), the target with its end.  texts: the text of
    each token of the source, or the image (H, W, C) uint8 that its patches are from.  targets: that of each token of y."""
    import matplotlib.pyplot as plt
    maps = cross_attention(model, source, y)
    if model.config.features:
        yield 'cross_attention', draw_words(maps, texts, targets)
        return
    fig, axes = plt.subplots(1, len(maps), figsize=(0.24 * len(texts) * len(maps) + 2.5, 0.24 * len(targets) + 1.8),
                             layout='constrained', squeeze=False)
    for i, (ax, weights) in enumerate(zip(axes[0], maps, strict=True), 1):
        image = ax.imshow(weights, vmin=0, vmax=1, cmap='magma', aspect='auto')
        ax.set_xticks(range(len(texts)), texts, family='DejaVu Sans Mono', parse_math=False)
        ax.set_yticks(range(len(targets)), targets, family='DejaVu Sans Mono', parse_math=False)
        ax.set(title=f'layer {i}', xlabel='token of the source')
    axes[0, 0].set_ylabel('token that is predicted')
    fig.colorbar(image, ax=axes, label='attention weight')
    fig.suptitle('cross-attention, mean over the heads')
    yield 'cross_attention', fig


def draw_words(maps, image, targets):
    """Where in the image (H, W, C) each word of a caption looks before it is written, a row for each layer: the mean over the
    tokens of the word (Xu et al. 2015, "Show, Attend and Tell", figure 3)."""
    import matplotlib.pyplot as plt
    starts = [i for i, text in enumerate(targets) if not i or text[:1].isspace() or targets[i - 1][-1:].isspace()]
    words = [range(i, j) for i, j in zip(starts, [*starts[1:], len(targets)], strict=True)]
    H, W, _ = image.shape
    side = round((H * W / maps[0].shape[1]) ** 0.5)                                         # of a patch
    image = image.repeat(3 // image.shape[2], 2)                                            # of grey: three channels
    fig, axes = plt.subplots(len(maps), len(words) + 1, figsize=(1.2 * (len(words) + 1), 1.35 * len(maps) + 0.5),
                             layout='constrained', squeeze=False)
    for i, (row, weights) in enumerate(zip(axes, maps, strict=True), 1):
        row[0].imshow(image)
        row[0].set_ylabel(f'layer {i}')
        for ax, word in zip(row[1:], words, strict=True):
            seen = weights[list(word)].mean(0).view(H // side, W // side, 1)
            fog = torch.cat([torch.full((H // side, W // side, 3), 0.55), 0.95 * (1 - seen / seen.max())], dim=2)
            ax.imshow(image)
            ax.imshow(fog, extent=(-0.5, W - 0.5, H - 0.5, -0.5))
            if i == 1:
                ax.set_title(''.join(targets[k] for k in word).strip(), fontsize=10, parse_math=False)
        for ax in row:
            ax.set(xticks=[], yticks=[])
    fig.suptitle('where each word looks (grey: not at all)')
    return fig
