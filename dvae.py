"""
A discrete variational autoencoder: an image becomes a grid of tokens of a codebook, and the tokens become the image again.

- the first stage of DALL-E (Ramesh et al. 2021, arXiv 2102.12092, section 2.1 and appendix A); dalle.py is the second
- an image arrives as patches, and each becomes one token: convolutions of 3 x 3 over the grid of patches, on both sides
- quantizer = 'gumbel': a softmax over the codes with Gumbel noise, whose temperature falls while training (Jang et al. 2016);
  the KL divergence from the uniform distribution keeps codes in use
- quantizer = 'vq': the nearest code, and the gradient passes straight through (van den Oord et al. 2017, VQ-VAE); a code that
  nothing is near to moves to where patches are far from all codes (Dhariwal et al. 2020, Jukebox, "random restarts")
- local = True: the encoder sees a patch alone, so equal patches have one token, which is easier to predict
- the values of a patch have a normal distribution of a constant width: the squared error (the paper has a logit-Laplace
  distribution, which in our trials spent the codes on flat backgrounds)
- `anneal` and `restart` count forward passes in training: an optimizer step has one for each micro-step

B batch   S patches of an image, h x w of them   D values of a patch   C channels (n_embd)   K codes
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

NOISE = 0.3     # standard deviation of the normal distribution of a value, as a fraction of that of the data
SCALE = 8       # of the logits: Gumbel noise, which has a deviation of 1.3, hides smaller ones


@dataclass
class Config:                       # DALL-E: 1024, 192, 8192
    block_size: int = 64            # patches of an image, a square number: its tokens
    features: int = 48              # values of a patch: channels x height x width
    codes: int = 128                # size of the codebook
    n_layer: int = 2                # residual blocks of the encoder, and of the decoder
    n_embd: int = 64                # channels
    quantizer: str = 'gumbel'       # 'gumbel' is a softmax with noise, 'vq' the nearest code
    kl: float = 2.0                 # gumbel: weight of the KL divergence from the uniform distribution, after `anneal` passes
    temperature: float = 0.0625     # gumbel: of the softmax, after `anneal` passes; 1 at the start
    anneal: int = 1000              # gumbel: training passes in which the temperature falls and the weight of KL rises from 0
    commitment: float = 0.25        # vq: weight of the distance of the encoder's output from its code
    restart: int = 0                # vq: training passes without use after which a code moves (0: never)
    local: bool = False             # the encoder has no convolutions

    @classmethod
    def tiny(cls):
        return cls(block_size=9, features=4, codes=11, n_layer=1, n_embd=16)

    def __post_init__(self):
        if math.isqrt(self.block_size) ** 2 != self.block_size:
            raise ValueError(f'block_size={self.block_size} must be a square number: the patches of a square image')
        if self.quantizer not in ('gumbel', 'vq'):
            raise ValueError(f"unknown quantizer='{self.quantizer}': choose gumbel or vq")
        if min(self.features, self.anneal) < 1 or self.codes < 2 or self.restart < 0:
            raise ValueError(f'features={self.features} and anneal={self.anneal} must be at least 1, codes={self.codes} at '
                             f'least 2, and restart={self.restart} at least 0')
        if not 0 < self.temperature <= 1 or min(self.kl, self.commitment) < 0:
            raise ValueError(f'temperature={self.temperature} must be above 0 and at most 1, and kl={self.kl} and '
                             f'commitment={self.commitment} at least 0')


def kl_to_uniform(logits):
    """The mean KL divergence, in nats, of softmax(logits) (..., K) from the uniform distribution over the K codes."""
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q + math.log(logits.shape[-1]))).sum(-1).mean()


def perplexity(counts):
    """The exponential of the entropy of counts (K,) of the codes: 1 if one code is used, K if all are equally often."""
    p = counts.cpu().double() / counts.sum().cpu().clamp(min=1)
    return torch.special.entr(p).sum().exp().item()


def straight_through(h, codebook):
    """h: (..., C).  Returns the nearest of the codes (K, C) for each, with the gradient of h, and its number (...)."""
    codes = torch.cdist(h.flatten(0, -2).float(), codebook.float()).argmin(-1).view(h.shape[:-1])
    return h + (F.embedding(codes, codebook) - h).detach(), codes


class Block(nn.Module):
    """x + f(x), f: ReLU, a convolution of 3 x 3, ReLU, one of 1 x 1.  x: (B, C, h, w)."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.proj = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.proj(F.relu(self.conv(F.relu(x))))


class Model(nn.Module):
    predicts = 'task'
    modality = 'patches'

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        D, C, K = config.features, config.n_embd, config.codes
        self.side = math.isqrt(config.block_size)
        self.patch = nn.Linear(D, C)
        self.encoder = nn.Sequential(*(Block(C) for _ in range(0 if config.local else config.n_layer)))
        self.to_codes = nn.Linear(C, K if config.quantizer == 'gumbel' else C)
        self.codebook = nn.Embedding(K, C)
        self.codebook.weight.changes = config.restart > 0       # in forward passes: FSDP would lose it
        self.decoder = nn.Sequential(*(Block(C) for _ in range(config.n_layer)))
        self.pixels = nn.Linear(C, D)
        self.register_buffer('steps', torch.zeros((), dtype=torch.int64))                          # passes, see anneal
        self.register_buffer('unused', torch.zeros(K, dtype=torch.int64), persistent=config.restart > 0)    # see restart
        self.register_buffer('counts', torch.zeros(K, dtype=torch.int64), persistent=False)        # of an evaluation

    def grid(self, blocks, h):
        """Blocks over (B, S, C), as an image (B, C, h, w)."""
        return blocks(h.mT.unflatten(2, (self.side, self.side))).flatten(2).mT

    def encode(self, x):
        """x: (B, S, D).  Returns the logits of the codes (B, S, K), or for 'vq' a vector (B, S, C) near one."""
        h = self.to_codes(F.relu(self.grid(self.encoder, self.patch(x))))
        return h * SCALE if self.config.quantizer == 'gumbel' else h

    def tokens(self, x):
        """x: (B, S, D).  Returns the codes of an image, (B, S) int64."""
        h = self.encode(x)
        return h.argmax(-1) if self.config.quantizer == 'gumbel' else straight_through(h, self.codebook.weight)[1]

    def decode(self, z):
        """z: (B, S, C) codes.  Returns the patches (B, S, D)."""
        return self.pixels(F.relu(self.grid(self.decoder, z)))

    def render(self, codes):
        """The patches (B, S, D) that the codes (B, S) stand for."""
        return self.decode(self.codebook(codes))

    @torch.no_grad()
    def move_unused(self, h):
        """Moves the codes that were not used for `restart` passes to outputs of the encoder h (B, S, C), which are drawn in
        proportion to their squared distance from the nearest code.  All ranks get the codes of the first."""
        h, E = h.flatten(0, 1), self.codebook.weight
        moved = (self.unused >= self.config.restart).nonzero()[:len(h), 0]                          # (M,) of the K codes
        if len(moved):
            distances = torch.cdist(h.float(), E.float()).amin(1).square()
            new = h[torch.multinomial(distances + 1e-9, len(moved))].to(E.dtype)                    # (M, C)
            if dist.is_initialized():
                dist.broadcast(new, 0)
            E[moved], self.unused[moved] = new, 0

    def count_unused(self, codes):
        """Counts for each code the training passes since a rank used it."""
        used = codes.flatten().bincount(minlength=len(self.unused))
        if dist.is_initialized():
            dist.all_reduce(used)
        self.unused.add_(1).masked_fill_(used > 0, 0)

    def quantize(self, h):
        """h: what encode() returns.  Returns z (B, S, C), what is added to the loss of the pixels, and the codes (B, S).

        In eval mode a code is the likeliest one, without noise.  The loss of the pixels is a mean over all values, and the KL
        divergence is a sum over tokens in the paper: so that it counts as much, the mean over tokens is divided by D."""
        c, E = self.config, self.codebook.weight
        if c.quantizer == 'vq':
            restarts = self.training and c.restart > 0      # under torch.compile they break the graph
            if restarts:
                self.move_unused(h)
            z, codes = straight_through(h, E)
            if restarts:
                self.count_unused(codes)
            e = self.codebook(codes)
            return z, F.mse_loss(e, h.detach()) + c.commitment * F.mse_loss(h, e.detach()), codes
        done = (self.steps / c.anneal).clamp(max=1).to(h.dtype)
        codes = h.argmax(-1)
        z = self.codebook(codes)
        if self.training:
            z = F.gumbel_softmax(h, c.temperature ** done) @ E
        return z, done * c.kl * kl_to_uniform(h) / c.features, codes

    def forward(self, x, y=None):
        """x: (B, S, D) patches.  y: the patches to rebuild, x itself.
        Returns the rebuilt patches (B, S, D), and the loss in nats per value (None without y)."""
        z, extra, codes = self.quantize(self.encode(x))
        output = self.decode(z)
        if self.training:
            self.steps += 1
        else:
            self.counts.index_add_(0, codes.flatten(), torch.ones_like(codes.flatten()))
        return output, None if y is None else F.mse_loss(output, y) / (2 * NOISE ** 2) + extra

    def metrics(self):
        """The perplexity of the codebook on the images that were seen in eval mode since the last call."""
        found = perplexity(self.counts)
        self.counts.zero_()
        return {'perplexity': found}
