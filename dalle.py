"""
DALL-E: a transformer writes an image token by token, after the tokens of its caption.

- the second stage of Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation" (arXiv 2102.12092, sections 2.2 and 2.3); dvae.py
  is the first: it makes tokens of the images, and images of the tokens, and is frozen here
- one sequence: a token that begins it, the caption, the image in reading order; the loss of the caption counts an eighth
- each position behind the end of a caption has a token of its own
- attention = 'full', or any of row, column and conv for the layers in turn: what a token of the image sees of those before it;
  it always sees the whole caption
- a checkpoint holds the hash of the VAE in place of its weights, as that of fpt.py does for a frozen trunk

B batch   T tokens of a caption   S tokens of an image, h x w of them   V vocabulary   K codes   C channels (n_embd)   H heads
"""

import dataclasses
import hashlib
import math
import re
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import dvae
from llama import rotate
from model import Dropout, ShortConv, fast_attention

ATTENTION = ('full', 'row', 'column', 'conv')


@dataclass
class Config:                       # DALL-E: 256, 16384, 1024, 192, 64 layers, 62 heads, 3968 channels
    block_size: int = 16            # tokens of the longest caption, with its end
    vocab_size: int = 66            # tokens of captions, with the one that ends them
    source_size: int = 64           # patches of an image: its tokens
    features: int = 48              # values of a patch
    vae: str = 'random'             # the folder of a run of dvae.py, or random
    codes: int = 128                # size of the codebook of a random VAE; any other has its own
    n_layer: int = 4                # blocks
    n_head: int = 4                 # attention heads per block
    n_embd: int = 128               # channels
    dropout: float = 0.0            # on embeddings, attention weights and residual branches
    attention: str = 'full'         # of the blocks in turn, joined by +: full, row, column, conv
    kernel: int = 3                 # conv: an odd number of rows and columns around a token
    neighbours: bool = False        # a block mixes a token with those around the next one, see Neighbours
    rotary: bool = False            # attention turns queries and keys by the row and the column of a token, see turns()
    codebook: bool = False          # tokens of images are read and scored as vectors of the VAE's codebook
    caption_dropout: float = 0.0    # fraction of the captions that are left out in training, for guidance
    guidance: float = 1.0           # of generation: the weight of the caption, see step(); 1: none
    text_weight: float = 0.125      # of the loss of the captions; that of the images has the rest
    vae_hash: str = ''              # of the weights of the VAE; set by the run

    @classmethod
    def tiny(cls):
        return cls(block_size=5, vocab_size=17, source_size=9, features=4, codes=11, n_layer=2, n_head=2, n_embd=16)

    def __post_init__(self):
        for name in ('source_size', 'features', 'codes'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be at least 1')
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} must be divisible by n_head={self.n_head}')
        if self.rotary and self.n_embd % (4 * self.n_head):
            raise ValueError(f'rotary=True turns pairs of channels by rows and by columns: n_embd={self.n_embd} must be '
                             f'divisible by 4 times n_head={self.n_head}')
        if set(self.kinds()) - set(ATTENTION):
            raise ValueError(f"attention='{self.attention}' must be kinds joined by +: choose among {', '.join(ATTENTION)}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f'kernel={self.kernel} must be an odd number')
        if not 0 <= self.caption_dropout < 1 or not 0 <= self.guidance < math.inf:
            raise ValueError(f'caption_dropout={self.caption_dropout} must be at least 0 and below 1, and guidance='
                             f'{self.guidance} at least 0 and finite')
        if not 0 <= self.text_weight < 1:
            raise ValueError(f'text_weight={self.text_weight} must be at least 0 and below 1')

    def kinds(self):
        """The kinds of attention of the blocks in turn."""
        return [kind.strip() for kind in self.attention.split('+')]


def attention_mask(kind, T, S, kernel):
    """(T + S, T + S), True where the token of a row sees that of a column.  The tokens: the one that begins a sequence, T of
    the caption, and all of the image but the last, which no token comes after.

    A token sees those before it and itself; of the image, 'row': those of its row; 'column': of its column; 'conv': of the
    square of kernel x kernel around it."""
    position, side = torch.arange(T + S), math.isqrt(S)
    causal, image = position[:, None] >= position, position - T - 1         # image: which of its tokens, below 0 before it
    row, column = image // side, image % side
    down, right = abs(row[:, None] - row), abs(column[:, None] - column)
    near = {'full': down >= 0, 'row': down == 0, 'column': right == 0,
            'conv': torch.maximum(down, right) <= kernel // 2}[kind]
    return causal & ((image < 0) | near)


def turns(T, S, D):
    """(cos, sin), each (T + S, D / 2), of the angles by which attention rotates the pairs of channels of a query and a key at
    each position of attention_mask(): half of the pairs by the row of a token, half by its column; none in a caption.

    The product of two tokens of the image then depends on how they lie to each other (axial rotary positions, Heo et al. 2024,
    arXiv 2403.13298; of Su et al. 2021), so a shape is learned once for all places.  A pair turns by 1 to 1/20 radian."""
    f, image = 20.0 ** (-torch.arange(D // 4) / (D // 4)), torch.arange(S - 1)              # (D / 4,), (S - 1,)
    row, column = (F.pad(at.float(), (T + 1, 0)) for at in (image // math.isqrt(S), image % math.isqrt(S)))
    angles = torch.cat([torch.outer(row, f), torch.outer(column, f)], dim=1)                # (T + S, D / 2)
    return angles.cos(), angles.sin()


class Neighbours(nn.Module):
    """y[i] = x[i] + sum over k of w[k] * x[i - k], per channel, over the tokens of an image: those to the left of token i, and
    those above it and above the next one.  Attention then compares surroundings.  At the edge of an image a neighbour is at the
    other edge; the embedding of the column tells.

    It is model.py's ShortConv on a grid; DALLE-pytorch shifts channels from the token above and the one to the left."""

    def __init__(self, channels, side):
        super().__init__()
        self.offsets = sorted({k for k in (1, 2, side - 2, side - 1, side, side + 1) if k > 0})
        self.weight = nn.Parameter(torch.zeros(len(self.offsets), channels))

    def forward(self, x, past=0):
        """x: (B, n, C), the tokens of an image from its first.  Returns those from `past`, (B, n - past, C)."""
        longest = self.offsets[-1]
        before, n = F.pad(x, (0, 0, longest, 0)), x.shape[1]                                # (B, longest + n, C)
        return x[:, past:] + sum(w * before[:, longest - k + past:longest - k + n]
                                 for k, w in zip(self.offsets, self.weight, strict=True))


class Block(nn.Module):
    """A block of GPT-2 whose attention has a mask."""

    def __init__(self, config, kind):
        super().__init__()
        C, self.text = config.n_embd, 1 + config.block_size
        self.n_head, self.dropout = config.n_head, config.dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.c_attn, self.attn_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.c_fc, self.mlp_proj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.drop = Dropout(config.dropout)
        mask = attention_mask(kind, config.block_size, config.source_size, config.kernel)
        self.register_buffer('mask', mask, persistent=False)                                # (L, L), L = T + S
        cos, sin = turns(config.block_size, config.source_size, C // config.n_head) if config.rotary else (None, None)
        self.register_buffer('cos', cos, persistent=False)                                  # (L, D / 2)
        self.register_buffer('sin', sin, persistent=False)
        self.neighbours = Neighbours(C, math.isqrt(config.source_size)) if config.neighbours else None
        self.words = ShortConv(C, 4) if config.neighbours else None

    def mix(self, h, seen, past):
        """The convolutions in front of attention: over the tokens in h (B, n, C) of a caption, and those of an image.  seen:
        (B, L, C), the inputs from the first position."""
        end, T = past + h.shape[1], self.text
        if seen is not None:
            seen[:, past:end] = h
        if self.neighbours is None:
            return h
        parts = [self.words(h[:, :T])] if past == 0 else []
        if end > T:
            image = h[:, T:] if past == 0 else seen[:, T:end]
            parts.append(self.neighbours(image, max(0, past - T)))
        return torch.cat(parts, dim=1)

    def forward(self, x, cache=None, past=0):
        """x: (B, n, C), at the positions from `past`.  cache: keys and values, each (B, H, L, D), of those before it."""
        h, end = self.mix(self.ln_1(x), cache and cache[2], past), past + x.shape[1]
        q, k, v = self.c_attn(h).unflatten(2, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)   # each (B, H, n, D)
        if self.cos is not None:
            q, k = (rotate(part, self.cos[past:end], self.sin[past:end], 'half') for part in (q, k))
        if cache is not None:
            keys, values = cache[:2]
            keys[:, :, past:end], values[:, :, past:end] = k, v
            k, v = keys[:, :, :end], values[:, :, :end]
        y = fast_attention(q, k, v, mask=self.mask[past:end, :end], dropout=self.dropout if self.training else 0.0)
        x = x + self.drop(self.attn_proj(y.transpose(1, 2).flatten(2)))
        return x + self.drop(self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)))))


class Model(nn.Module):
    predicts = 'task'
    modality = 'drawings'

    def __init__(self, config: Config):
        super().__init__()
        self.vae = find_vae(config)
        self.known_pixels = getattr(self.vae, 'standard', None)
        self.config = c = dataclasses.replace(config, codes=self.vae.config.codes)
        side, C = self.vae.side, c.n_embd
        self.wte = nn.Embedding(c.vocab_size, C)                # of captions
        self.padding = nn.Embedding(c.block_size, C)            # what stands behind the end of a caption, at each position
        E = self.vae.codebook.weight.detach().clone()           # (K, E)
        # an unseen token, such as a blue triangle's edge, has a vector that blue and triangles have in part
        self.register_buffer('code_vectors', (E - E.mean(0)) / E.std(), persistent=False)
        self.image = nn.Linear(E.shape[1], C, bias=False) if c.codebook else nn.Embedding(c.codes, C)       # of images
        self.position = nn.Embedding(1 + c.block_size, C)       # of the token that begins, and of captions
        self.row, self.column = nn.Embedding(side, C), nn.Embedding(side, C)
        self.drop = Dropout(c.dropout)
        self.h = nn.ModuleList([Block(c, c.kinds()[i % len(c.kinds())]) for i in range(c.n_layer)])
        self.ln_f = nn.LayerNorm(C)
        self.text_head = nn.Linear(C, c.vocab_size, bias=False)
        self.image_head = nn.Linear(C, E.shape[1] if c.codebook else c.codes, bias=False)
        self.image_head.weight.no_weight_decay = True           # keeps Muon off a head; it loses weight decay, too
        for name, p in self.named_parameters():
            if name.startswith('vae.'):
                p.requires_grad_(False)
            elif name.endswith('proj.weight'):                  # 2 * n_layer branches add up in the residual stream
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * c.n_layer))
            elif p.dim() == 2 and 'neighbours' not in name:     # these start at zero
                nn.init.normal_(p, std=0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)
        if not self.wte.weight.is_meta:
            self.config.vae_hash = self.check_vae()

    def check_vae(self):
        """The hash of the VAE.  Raises ValueError if the config is from a checkpoint with another."""
        found = hashlib.sha256()
        for p in self.vae.parameters():
            found.update(p.detach().cpu().float().contiguous().numpy().tobytes())
        new, old = found.hexdigest()[:16], self.config.vae_hash
        if old not in ('', new):
            raise ValueError(f"vae='{self.config.vae}' has changed: its hash is {new}, and this run was trained with {old}; "
                             f'restore that VAE')
        return new

    def embed(self, y, codes):
        """The embeddings (B, 1 + T + n, C) of a sequence: what begins it, a caption y (B, T), the codes (B, n) of an image."""
        y = F.pad(y, (0, self.config.block_size - y.shape[1]), value=-1)
        words = torch.where((y < 0)[..., None], self.padding.weight, self.wte(y.clamp(min=0)))
        begin = self.wte.weight[-1].expand(len(y), 1, -1)                                   # the end of a caption
        at = torch.arange(codes.shape[1], device=codes.device)
        return torch.cat([torch.cat([begin, words], 1) + self.position.weight, self.place(codes, at)], dim=1)

    def place(self, codes, at):
        """The embeddings (B, n, C) of codes (B, n) at the places `at` (n,) of an image."""
        image = self.image(self.code_vectors[codes] if self.config.codebook else codes)
        return image + self.row(at // self.vae.side) + self.column(at % self.vae.side)

    def scores(self, h):
        """The logits (..., K) of the codes after h (..., C)."""
        h = self.image_head(h)
        return h @ self.code_vectors.T if self.config.codebook else h

    def losses(self, y, codes):
        """The loss of each token in nats, (B, T + S), given those before it; 0 for -1 in y.  y: (B, T).  codes: (B, S)."""
        h = self.drop(self.embed(y, codes[:, :-1]))
        for block in self.h:
            h = block(h)
        h, T = self.ln_f(h), self.config.block_size
        y = F.pad(y, (0, T - y.shape[1]), value=-1)
        words, image = self.text_head(h[:, :T]), self.scores(h[:, T:])                      # (B, T, V), (B, S, K)
        return torch.cat([F.cross_entropy(words.mT, y, ignore_index=-1, reduction='none'),
                          F.cross_entropy(image.mT, codes, reduction='none')], dim=1)

    def forward(self, x, y=None):
        """x: (B, S, D) patches.  y: (B, T) int64, their captions, -1 after the end of each; None: no captions.

        Returns the loss of each token (B, T + S) in nats, see losses(), and the weighted sum of the mean over the captions of
        the mean over their tokens and of the mean over the tokens of images (None without y)."""
        with torch.no_grad():
            codes = self.vae.tokens(x)
        if self.training and y is not None and self.config.caption_dropout:
            y = y.masked_fill(torch.rand(len(y), 1, device=y.device) < self.config.caption_dropout, -1)
        given = torch.full_like(codes[:, :1], -1) if y is None else y
        losses, T, weight = self.losses(given, codes), self.config.block_size, self.config.text_weight
        if y is None:
            return losses, None
        words = (losses[:, :T].sum(1) / (y >= 0).sum(1).clamp(min=1)).mean()
        return losses, weight * words + (1 - weight) * losses[:, T:].mean()

    # generation -------------------------------------------------------------------------------------------------------------

    def init_state(self, batch_size):
        """The state of step() before a caption: empty caches of keys, values and inputs.  With guidance there are two sequences
        for a caption: one has no caption."""
        c, like = self.config, self.wte.weight
        N, L = batch_size * (1 if c.guidance == 1 else 2), c.block_size + c.source_size
        shape = N, c.n_head, L, c.n_embd // c.n_head
        return {'past': 0, 'caches': [(like.new_empty(shape), like.new_empty(shape), like.new_empty(N, L, c.n_embd))
                                      for _ in self.h]}

    def step(self, token, state):
        """token: first a whole caption (B, T), -1 after its end, then codes (B, n).  Returns the logits (B, K) of the next
        code, and the state.

        Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): the logits are those without a caption, plus
        `guidance` times what the caption adds to them."""
        past, guidance = state['past'], self.config.guidance
        if guidance != 1:
            token = torch.cat([token, torch.full_like(token, -1) if past == 0 else token])
        if past == 0:
            h = self.embed(token, token[:, :0])
        else:
            first = past - self.config.block_size - 1
            h = self.place(token, torch.arange(first, first + token.shape[1], device=token.device))
        for block, cache in zip(self.h, state['caches'], strict=True):
            h = block(h, cache, past)
        logits = self.scores(self.ln_f(h[:, -1]))
        if guidance != 1:
            with_caption, without = logits.chunk(2)
            logits = without + guidance * (with_caption - without)                          # (2B, K) -> (B, K)
        return logits, {**state, 'past': past + h.shape[1]}

    def render(self, codes):
        """The patches (B, S, D) of the image that the codes (B, S) stand for."""
        return self.vae.render(codes)

    # checkpoints: everything except the VAE ---------------------------------------------------------------------------------

    def state_dict(self, *args, **more):
        return {k: v for k, v in super().state_dict(*args, **more).items() if not k.startswith('vae.')}

    def load_state_dict(self, state, strict=True, assign=False):
        frozen = {k: v for k, v in super().state_dict().items() if k.startswith('vae.')}
        return super().load_state_dict({**frozen, **state}, strict, assign)


def needs(settings):
    """The folder of the run of the VAE; train.py trains it if it is missing.  settings: of Config."""
    vae = settings.get('vae', Config.vae)
    return [vae] if re.fullmatch(r'out/(?!\.)[\w.=,-]+', vae) else []          # it becomes a path


def find_vae(config):
    """A dvae.Model in eval mode.  Raises ValueError, or UserError of the harness."""
    if config.vae == 'random':
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return dvae.Model(dvae.Config(block_size=config.source_size, features=config.features, codes=config.codes,
                                          n_layer=1, n_embd=16)).eval()
    from harness import UserError, checkpoint
    try:
        with torch.device('cpu'):       # the weights are read even while a model is built on meta, for its size
            vae, content = checkpoint.load_model(config.vae)
    except UserError as e:
        raise UserError(f"the VAE of this model, vae='{config.vae}', cannot be loaded: {e}") from None
    if not isinstance(vae, dvae.Model):
        raise ValueError(f"vae={config.vae} is a run of arch='{content['arch']}': choose one of arch=dvae")
    for name, own in (('block_size', config.source_size), ('features', config.features)):
        if (theirs := getattr(vae.config, name)) != own:
            raise ValueError(f'vae={config.vae} has {name}={theirs}, and the images of this run {own}: choose a VAE that was '
                             f'trained on images of this size, with the same patch')
    vae.standard = content['data'].get('standard')
    return vae
