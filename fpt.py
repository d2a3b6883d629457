"""
Frozen Pretrained Transformer (FPT): a frozen language model that classifies bits, digits, images, sound and molecules.

- Lu et al. 2021, "Pretrained Transformers as Universal Computation Engines" (arXiv 2103.05247,
  https://github.com/kzl/universal-computation); the dl-project repository reproduces it.
- The trunk is the blocks of a GPT-2 or a ViT: published weights, a run of train.py, or random weights of the same shape.  An
  input layer in front of it and an output layer behind it are new.
- Frozen weights have no gradient and no optimizer state, but gradients flow through them to the layers in front.
- A checkpoint holds the trained weights and the new layers, and the hash of the trunk in place of its frozen weights.

    mode                    trunk                   trained parts
    fpt                     pretrained              input, positions, norms, output
    frt                     random                  input, positions, norms, output
    upt                     pretrained              all
    urt                     random                  all: a transformer trained from scratch
    fpt, shuffled=True      pretrained, permuted    input, positions, norms, output

The last one is a control that the paper does not have.  Trained matrices have larger entries than random ones; with its
entries permuted, a matrix keeps their scale and loses what it has learned.

B batch   T tokens   D features per token   V vocabulary   C channels of the trunk (n_embd)   O outputs
"""

import dataclasses
import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

import model as gpt
import vit
from vit import check_kind, task_loss

PARTS = ('input', 'positions', 'norms', 'attention', 'feed_forward', 'output')
FPT_PARTS = ('input', 'positions', 'norms', 'output')
MODES = {                   # the weights of the trunk, the trained parts
    'fpt': ('pretrained', FPT_PARTS),
    'frt': ('random', FPT_PARTS),
    'upt': ('pretrained', PARTS),
    'urt': ('random', PARTS),
}


@dataclass
class Config:
    block_size: int = 2         # tokens of an example
    vocab_size: int = 0         # tokens in the vocabulary, or 0: a token is a vector of features
    features: int = 5           # features per token, or 0: the tokens are from a vocabulary
    outputs: int = 5            # classes, bits, or 1 for a number
    kind: str = 'bits'          # of the answer: classify, bits or regress
    trunk: str = 'random'       # gpt2, distilgpt2, vit, ..., a model on the hub, the folder of a run, or random
    mode: str = 'fpt'           # fpt: pretrained, frozen; frt: random, frozen; upt, urt: the same, all trained
    shuffled: bool = False      # permute the entries of each matrix of a pretrained trunk: a control
    trained: str = ''           # parts to train in place of the mode's: input+positions+norms+attention+feed_forward+output
    readout: str = 'last'       # the output layer reads the 'last' position, or a ViT's 'class' token
    dropout: float = 0.1        # on embeddings, attention weights and both residual branches, frozen or not
    # the shape of a random trunk; any other trunk has its own
    n_layer: int = 4            # blocks
    n_head: int = 4             # attention heads per block
    n_embd: int = 128           # channels
    positions: int = 64         # positions of the trunk
    bias: bool = True           # a bias in every Linear and LayerNorm
    gelu: str = 'none'          # 'none' is exact, 'tanh' GPT-2's approximation
    sees: str = 'back'          # attention: 'back' is causal, as in a GPT; 'both' sides, as in a ViT
    eps: float = 0.0            # epsilon of LayerNorm (0: 1e-5, or 1e-12 in a ViT)
    # identify the trunk of a run; set by the run
    trunk_seed: int = -1        # of its random weights or permutations
    trunk_hash: str = ''        # of its weights

    @classmethod
    def tiny(cls):
        return cls(n_layer=2, n_head=2, n_embd=16, positions=16, dropout=0.0)

    def __post_init__(self):
        for name, known in (('mode', tuple(MODES)), ('readout', ('last', 'class')), ('sees', ('back', 'both'))):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name}='{getattr(self, name)}': choose {' or '.join(known)}")
        if not self.parts() or set(self.parts()) - set(PARTS):
            raise ValueError(f"trained='{self.trained}' must be parts joined by +: choose among {', '.join(PARTS)}")
        if (self.vocab_size > 0) == (self.features > 0):
            raise ValueError(f'vocab_size={self.vocab_size} and features={self.features}: exactly one must be above 0, since '
                             f'tokens are either from a vocabulary or vectors of features')
        if self.positions < 2:
            raise ValueError(f'positions={self.positions} must be at least 2')
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} must be divisible by n_head={self.n_head}')
        if self.shuffled and self.random and not self.trunk_hash:       # runs of the first version may have had both
            raise ValueError(f'shuffled=True requires a pretrained trunk, not the random one of mode={self.mode} and '
                             f'trunk={self.trunk}: choose mode=fpt or upt and a trunk')
        check_kind(self.kind)

    def parts(self):
        """The parts that are trained."""
        return tuple(p.strip() for p in self.trained.split('+') if p.strip()) if self.trained else MODES[self.mode][1]

    @property
    def random(self):
        return self.trunk == 'random' or MODES[self.mode][0] == 'random'

    @property
    def frozen(self):
        """Whether any part of the trunk is frozen, and thus missing from a checkpoint."""
        return not set(self.parts()) >= {'positions', 'norms', 'attention', 'feed_forward'}


class Model(nn.Module):
    predicts = 'task'

    def __init__(self, config: Config):
        super().__init__()
        config, trunk = find_trunk(config)
        C, T, front = config.n_embd, config.block_size, config.readout == 'class'
        classed = getattr(trunk, 'cls', None) is not None
        if front and not classed:
            raise ValueError('readout=class requires a ViT with a class token: the token is in front, where a GPT does not see '
                             'the example; choose readout=last')
        self.input = nn.Embedding(config.vocab_size, C) if config.vocab_size else nn.Linear(config.features, C)
        self.cls = trunk.cls if front else None
        self.drop, self.h, self.ln_f = trunk.drop, trunk.h, trunk.ln_f
        self.output = nn.Linear(C, config.outputs)
        positions = trunk.wpe.weight.detach()[int(classed and not front):]      # the first of a ViT is its class token's
        hashed = positions
        if config.sees == 'both' and not config.random and is_square(T) and is_square(len(positions) - front):     # images
            positions = torch.cat([positions[:front], vit.resize(positions[front:], T)])
            hashed = hashed if 'positions' in config.parts() else positions
        if T + front > len(positions) and 'positions' not in config.parts():
            raise ValueError(f'the trunk has {len(positions)} positions and an example has {T} tokens: train the positions, or '
                             f'choose a trunk with more')
        self.wpe = nn.Embedding(T + front, C)
        self.set_dropout(config.dropout)
        self.config = config if self.input.weight.is_meta else self.initialize(config, positions, hashed)
        self.freeze()

    def forward(self, x, y=None):
        """x: (B, T) int64 or (B, T, D) float, T <= block_size.  y: classes (B,), bits (B, O) or numbers (B,), see
        vit.task_loss().  Returns logits (B, O) and the mean loss (None without y)."""
        h = self.input(x)                                                                   # (B, T, C)
        if self.cls is not None:
            h = torch.cat([self.cls.expand(len(x), -1, -1), h], dim=1)                      # (B, 1 + T, C)
        h = self.drop(h + self.wpe.weight[:h.shape[1]])
        for block in self.h:
            h = block(h)
        h = self.ln_f(h)
        logits = self.output(h[:, 0 if self.cls is not None else -1])                       # (B, O)
        return logits, None if y is None else task_loss(logits, y, self.config.kind)

    # parts ---------------------------------------------------------------------------------------------------------------

    def modules_of(self, part):
        """The modules, or parameters, of one of PARTS.  They are listed, since substrings of names would match too much."""
        return {'input': [self.input], 'output': [self.output],
                'positions': [self.wpe, *([] if self.cls is None else [self.cls])],
                'norms': [*(n for block in self.h for n in (block.ln_1, block.ln_2)), self.ln_f],
                'attention': [block.attn for block in self.h], 'feed_forward': [block.mlp for block in self.h]}[part]

    def freeze(self):
        """Only the trained parts require a gradient.  Sets frozen_names, the parameters that a checkpoint does not hold."""
        trained = [m for part in self.config.parts() for m in self.modules_of(part)]
        self.requires_grad_(False)
        for module in trained:
            module.requires_grad_(True)
        new = {id(p) for part in ('input', 'output') for m in self.modules_of(part) for p in m.parameters()}
        self.frozen_names = [n for n, p in self.named_parameters() if not p.requires_grad and id(p) not in new]

    def initialize(self, config, positions, hashed):
        """Initializes the new layers, and the positions from those of the trunk.  Returns the config with the trunk's hash, of
        which `hashed` are the positions.  Raises ValueError if the config is from a checkpoint with another trunk."""
        nn.init.normal_(self.wpe.weight, std=positions.std().item())
        self.wpe.weight.data[:len(positions)] = positions[:len(self.wpe.weight)]
        nn.init.orthogonal_(self.input.weight, gain=1.41)
        nn.init.normal_(self.output.weight, std=0.02)
        for layer in (self.input, self.output):
            if getattr(layer, 'bias', None) is not None:
                nn.init.zeros_(layer.bias)
        found = hashlib.sha256()
        for p in (hashed, *([] if self.cls is None else [self.cls]), *self.h.parameters(), *self.ln_f.parameters()):
            found.update(p.detach().cpu().contiguous().numpy().tobytes())
        new = found.hexdigest()[:16]
        if config.frozen and config.trunk_hash not in ('', new):
            raise ValueError(f"trunk='{config.trunk}' has changed: its hash is {new}, and this run was trained with "
                             f'{config.trunk_hash}; restore that trunk')
        return dataclasses.replace(config, trunk_hash=config.trunk_hash or new)

    def set_dropout(self, dropout):
        for module in (self.drop, *self.h.modules()):
            if isinstance(module, nn.Dropout):
                module.p = dropout
            elif isinstance(module, gpt.SelfAttention):
                module.dropout = dropout

    # checkpoints: everything except the frozen trunk ---------------------------------------------------------------------

    def state_dict(self, *args, **more):
        state = super().state_dict(*args, **more)
        for name in self.frozen_names:
            del state[name]
        return state

    def load_state_dict(self, state, strict=True, assign=False):
        frozen = {k: v for k, v in super().state_dict().items() if k in self.frozen_names}
        return super().load_state_dict({**frozen, **state}, strict, assign)


# where the trunk comes from -------------------------------------------------------------------------------------------------

SHAPE = ('n_layer', 'n_head', 'n_embd', 'bias', 'gelu', 'eps')       # fields that a trunk and this Config share
SHAPES = {      # of published trunks, so that random ones need no download: layers, heads, channels
    'gpt2': (12, 12, 768), 'gpt2-medium': (24, 16, 1024), 'gpt2-large': (36, 20, 1280), 'gpt2-xl': (48, 25, 1600),
    'distilgpt2': (6, 12, 768), 'vit': (12, 12, 768)}


def needs(settings):
    """The folders of runs that a model is built from; train.py trains those that are missing.  settings: of Config."""
    trunk = settings.get('trunk', Config.trunk)
    return [trunk] if re.fullmatch(r'out/(?!\.)[\w.=,-]+', trunk) else []      # it becomes a path


def find_trunk(config):
    """(config, trunk): a gpt.Model or a vit.Model, and the config with its shape and random seed."""
    restored = config.trunk_hash != ''              # a checkpoint's config is complete
    if config.trunk_seed < 0:
        config = dataclasses.replace(config, trunk_seed=torch.initial_seed() % (1 << 31))
    if config.random and not restored:
        config = named_shape(config)
    if config.random or (restored and not config.frozen):       # all of its weights are in the checkpoint
        return config, random_trunk(config)
    trunk = pretrained_trunk(config.trunk)
    if config.shuffled:
        shuffle(trunk, config.trunk_seed)
    return shape_of(trunk, config), trunk


def is_square(n):
    return math.isqrt(n) ** 2 == n


def random_trunk(config):
    """A GPT or a ViT with random weights, determined by config.trunk_seed."""
    shape = {k: getattr(config, k) for k in SHAPE if k != 'eps' or config.eps}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.trunk_seed)
        if config.sees == 'both':
            return vit.Model(vit.Config(block_size=config.positions - 1, features=1, outputs=1, **shape))
        return gpt.Model(gpt.Config(block_size=config.positions, vocab_size=1, **shape))


def pretrained_trunk(name):
    """The GPT or ViT of a run, on the hub, or in a local file.  Raises ValueError, or UserError of the harness."""
    from harness import checkpoint
    with torch.device('cpu'):           # the weights are read even while a model is built on meta, for its size
        if checkpoint.is_ours(name):
            trunk, content = checkpoint.load_model(name)
            if not isinstance(trunk, (gpt.Model, vit.Model)):
                raise ValueError(f"trunk={name} is a run of arch='{content['arch']}': choose one of arch=model or arch=vit")
            return trunk
        reasons = []
        for kind in (vit, gpt) if name == 'vit' else (gpt, vit):
            try:
                return kind.Model.from_pretrained(name)
            except ValueError as e:
                reasons.append(str(e))
    raise ValueError(f'trunk={name}: {"; ".join(reasons)}')


def shuffle(trunk, seed):
    """Permutes the entries of each matrix in the blocks, in place."""
    generator = torch.Generator().manual_seed(seed)
    for p in trunk.h.parameters():
        if p.dim() == 2:
            p.data = p.data.flatten()[torch.randperm(p.numel(), generator=generator)].view_as(p)


def shape_of(trunk, config):
    """The config with the shape of the trunk."""
    shape = {k: getattr(trunk.config, k) for k in SHAPE}
    return dataclasses.replace(config, sees='both' if isinstance(trunk, vit.Model) else 'back', positions=len(trunk.wpe.weight),
                               **shape)


def named_shape(config):
    """The config with the shape of the trunk that it names, for random weights.  Nothing is downloaded."""
    if config.trunk == 'random':
        return config
    if config.trunk in SHAPES:
        n_layer, n_head, n_embd = SHAPES[config.trunk]
        more = {'sees': 'both', 'positions': 197} if config.trunk == 'vit' else {'positions': 1024, 'gelu': 'tanh'}
        return dataclasses.replace(config, n_layer=n_layer, n_head=n_head, n_embd=n_embd, bias=True, **more)
    if Path(config.trunk).exists():
        return shape_of(pretrained_trunk(config.trunk), config)
    raise ValueError(f"trunk='{config.trunk}' has no known shape for the random weights of mode={config.mode}: choose "
                     f'trunk=random with n_layer, n_head and n_embd, a local folder, or one of {", ".join(SHAPES)}')


def label(settings):
    """The mode, for the rows of a table over several tasks: FPT, FRT, 'FPT, shuffled', V-FPT (a pretrained ViT)."""
    mode = settings.get('mode', Config.mode)
    front = 'V-' if settings.get('sees') == 'both' and MODES[mode][0] == 'pretrained' else ''
    return front + mode.upper() + (', shuffled' if settings.get('shuffled') else '')
