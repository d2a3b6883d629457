"""
Frozen Pretrained Transformer (FPT): a frozen transformer that classifies bits, digits, images, sound and molecules.

- Lu et al. 2021, "Pretrained Transformers as Universal Computation Engines" (arXiv 2103.05247,
  https://github.com/kzl/universal-computation); the dl-project repository reproduces it.
- The trunk is the blocks of a GPT-2, ViT, Llama or BERT: published weights, a run of train.py, or random weights of the same
  shape.  An input layer in front of it and an output layer behind it are new.
- Frozen weights have no gradient and no optimizer state.  Gradients flow through them to the layers in front, if these are
  trained: no backward pass goes below the first trained part.
- A checkpoint holds the trained weights and the new layers, and the hash of the trunk in place of its frozen weights.

    mode                    trunk                   trained parts
    fpt                     pretrained              input, positions, norms, output
    frt                     random                  input, positions, norms, output
    upt                     pretrained              all
    urt                     random                  all: a transformer trained from scratch

Three settings of `fpt` and `upt` are controls that the paper does not have.  They replace a part of a pretrained trunk, to show
what its use is due to: shuffled=True permutes the entries of each matrix, which keeps their values and loses what they do;
matrices=scaled takes untrained ones and gives each the size of the trained one, matrices=initial leaves their size; fresh=True
takes untrained positions, norms and biases, from which these are then trained.

B batch   T tokens   D features per token   V vocabulary   C channels of the trunk (n_embd)   O outputs
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn as nn

import bert
import llama
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


@dataclass(frozen=True)
class Trunk:
    """What is taken from a model file, by the names that it has there."""
    file: object                                    # the model file
    sees: str                                       # attention: 'back' is causal, 'both' sides
    blocks: str = 'h'                               # of its Model: the blocks,
    embedding_norm: str = ''                        # the norm in front of them,
    norm: str = 'ln_f'                              # the norm behind them
    attention: str = 'attn'                         # of a block
    grid: bool = False                              # positions are those of a grid of patches
    options: dict = field(default_factory=dict)     # arguments of Model() and from_pretrained()
    positions: Callable = lambda model: model.wpe.weight            # (T, C), added to the embeddings, or None
    inputs: Callable = lambda config, h: ()         # arguments of a block, after h


TRUNKS = {
    'model': Trunk(gpt, 'back'),
    'vit': Trunk(vit, 'both', grid=True),
    # positions are in its attention, so none are added; it has no dropout on attention weights
    'llama': Trunk(llama, 'back', 'layers', norm='norm', attention='self_attn', positions=lambda model: None,
                   inputs=lambda config, h: (llama.rotation(config, h),)),
    # post-norm: the embeddings are normalised, and the last block ends with a norm; all tokens have the type 0
    'bert': Trunk(bert, 'both', embedding_norm='ln', norm='', options={'head': False},
                  positions=lambda model: model.wpe.weight + model.types.weight[0]),
}


@dataclass
class Config:
    block_size: int = 2         # tokens of an example
    vocab_size: int = 0         # tokens in the vocabulary, or 0: a token is a vector of features
    features: int = 5           # features per token, or 0: the tokens are from a vocabulary
    outputs: int = 5            # classes, bits, or 1 for a number
    kind: str = 'bits'          # of the answer: classify, bits or regress
    trunk: str = 'random'       # gpt2, distilgpt2, vit, vit-s, smollm2, minilm, a model on the hub, a run, or random
    mode: str = 'fpt'           # fpt: pretrained, frozen; frt: random, frozen; upt, urt: the same, all trained
    shuffled: bool = False      # permute the entries of each matrix of a pretrained trunk: a control
    matrices: str = 'pretrained'    # of a pretrained trunk; controls: 'initial', untrained; 'scaled', these at the trained size
    fresh: bool = False         # untrained positions, norms and biases in a pretrained trunk: a control
    trained: str = ''           # parts to train in place of the mode's: input+positions+norms+attention+feed_forward+output
    keep_embedding: bool = False    # the input layer begins as the token embedding of the trunk: of a run on the same tokens
    readout: str = 'last'       # the output layer reads the 'last' position, or a ViT's 'class' token
    trunk_dtype: str = 'float32'    # of the frozen matrices: float32, or bfloat16 in half the memory
    dropout: float = 0.1        # on embeddings, attention weights and both residual branches, frozen or not
    # the shape of a random trunk; any other trunk has its own
    n_layer: int = 4            # blocks
    n_head: int = 4             # attention heads per block
    n_embd: int = 128           # channels
    positions: int = 64         # positions of the trunk
    bias: bool = True           # a bias in every Linear and LayerNorm
    gelu: str = 'none'          # 'none' is exact, 'tanh' GPT-2's approximation
    sees: str = 'back'          # attention: 'back' is causal, as in a GPT; 'both' sides, as in a ViT
    eps: float = 0.0            # epsilon of the norms (0: the default of the trunk's model file)
    trunk_arch: str = ''        # its model file: model, vit, llama or bert (empty: model, or vit if sees=both)
    shape: dict = field(default_factory=dict)   # other settings of that file, such as {'n_kv_head': 2}
    # identify the trunk of a run; set by the run
    trunk_seed: int = -1        # of its random weights or permutations
    trunk_hash: str = ''        # of its weights

    @classmethod
    def tiny(cls):
        return cls(n_layer=2, n_head=2, n_embd=16, positions=16, dropout=0.0)

    def __post_init__(self):
        for name, known in (('mode', tuple(MODES)), ('readout', ('last', 'class')), ('sees', ('back', 'both')),
                            ('trunk_dtype', ('float32', 'bfloat16')), ('trunk_arch', ('', *TRUNKS)),
                            ('matrices', ('pretrained', 'initial', 'scaled'))):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name}='{getattr(self, name)}': choose {' or '.join(known)}")
        if not self.parts() or set(self.parts()) - set(PARTS):
            raise ValueError(f"trained='{self.trained}' must be parts joined by +: choose among {', '.join(PARTS)}")
        if (self.vocab_size > 0) == (self.features > 0):
            raise ValueError(f'vocab_size={self.vocab_size} and features={self.features}: exactly one must be above 0, since '
                             f'tokens are either from a vocabulary or vectors of features')
        if self.positions < 2:
            raise ValueError(f'positions={self.positions} must be at least 2')
        if self.trunk_dtype != 'float32' and {'attention', 'feed_forward'} <= set(self.parts()):
            raise ValueError(f'trunk_dtype={self.trunk_dtype} is of frozen matrices, and mode={self.mode} with '
                             f"trained='{self.trained}' trains all: leave it out, or train other parts")
        control = [f'{k}={getattr(self, k)}' for k in ('shuffled', 'matrices', 'fresh') if getattr(self, k) not in
                   (False, 'pretrained')]
        if control and self.random and not self.trunk_hash:         # runs of the first version may have had both
            raise ValueError(f'{control[0]} requires a pretrained trunk, not the random one of mode={self.mode} and '
                             f'trunk={self.trunk}: choose mode=fpt or upt and a trunk')
        if self.shuffled and self.matrices != 'pretrained':
            raise ValueError(f'shuffled=True permutes pretrained matrices: leave out matrices={self.matrices}')
        gpt.check_gelu(self.gelu)
        check_kind(self.kind)

    def parts(self):
        """The parts that are trained."""
        return tuple(p.strip() for p in self.trained.split('+') if p.strip()) if self.trained else MODES[self.mode][1]

    @property
    def layout(self):
        """The Trunk of its architecture."""
        return TRUNKS[self.trunk_arch or ('vit' if self.sees == 'both' else 'model')]

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
        layout, C, T, front = config.layout, config.n_embd, config.block_size, config.readout == 'class'
        classed = getattr(trunk, 'cls', None) is not None
        if front and not classed:
            raise ValueError('readout=class requires a ViT with a class token: the token is in front, where a GPT does not see '
                             'the example; choose readout=last')
        self.input = nn.Embedding(config.vocab_size, C) if config.vocab_size else nn.Linear(config.features, C)
        self.cls = trunk.cls if front else None
        self.drop, self.h = gpt.Dropout(), getattr(trunk, layout.blocks)
        self.ln, self.ln_f = (getattr(trunk, name) if name else nn.Identity() for name in (layout.embedding_norm, layout.norm))
        self.output = nn.Linear(C, config.outputs)
        self.trunk_config = trunk.config
        positions = hashed = layout.positions(trunk)
        if positions is not None:
            positions = hashed = positions.detach()[int(classed and not front):]    # the first of a ViT is its class token's
            if layout.grid and not config.random and is_square(T) and is_square(len(positions) - front):        # images
                positions = torch.cat([positions[:front], vit.resize(positions[front:], T)])
                hashed = hashed if 'positions' in config.parts() else positions
            if T + front > len(positions) and 'positions' not in config.parts():
                raise ValueError(f'the trunk has {len(positions)} positions and an example has {T} tokens: train the '
                                 f'positions, or choose a trunk with more')
        self.wpe = None if positions is None else nn.Embedding(T + front, C)
        self.set_dropout(config.dropout)
        restored = config.trunk_hash != ''              # the input layer is then in the checkpoint
        self.config = config if self.input.weight.is_meta else self.initialize(config, positions, hashed)
        if config.keep_embedding and not restored and not self.input.weight.is_meta:
            self.copy_embedding(trunk)
        self.freeze()

    def forward(self, x, y=None):
        """x: (B, T) int64 or (B, T, D) float, T <= block_size.  y: classes (B,), bits (B, O) or numbers (B,), see
        vit.task_loss().  Returns logits (B, O) and the mean loss (None without y)."""
        h = self.input(x)                                                                   # (B, T, C)
        if self.cls is not None:
            h = torch.cat([self.cls.expand(len(x), -1, -1), h], dim=1)                      # (B, 1 + T, C)
        if self.wpe is not None:
            h = h + self.wpe.weight[:h.shape[1]]
        h = self.drop(self.ln(h))
        more = self.config.layout.inputs(self.trunk_config, h)
        for block in self.h:
            h = block(h, *more)
        h = self.ln_f(h)
        logits = self.output(h[:, 0 if self.cls is not None else -1])                       # (B, O)
        return logits, None if y is None else task_loss(logits, y, self.config.kind)

    # parts ---------------------------------------------------------------------------------------------------------------

    def modules_of(self, part):
        """The modules, or parameters, of one of PARTS.  They are listed, since substrings of names would match too much."""
        def of(kinds, modules):
            return [m for module in modules for m in module.modules() if isinstance(m, kinds)]
        return {'input': [self.input], 'output': [self.output],
                'positions': [m for m in (self.wpe, self.cls) if m is not None],
                'norms': of((nn.LayerNorm, nn.RMSNorm), (self.ln, self.h, self.ln_f)),
                'attention': [*of(nn.Linear, (getattr(block, self.config.layout.attention) for block in self.h)),
                              *of(nn.Conv1d, self.h)],
                'feed_forward': of(nn.Linear, (block.mlp for block in self.h))}[part]

    def freeze(self):
        """Only the trained parts require a gradient; frozen matrices get their number format.  Sets frozen_names, the
        parameters that a checkpoint does not hold."""
        parts = self.config.parts()
        self.requires_grad_(False)
        for module in (m for part in parts for m in self.modules_of(part)):
            module.requires_grad_(True)
        if not any(p.requires_grad for p in self.parameters()):
            raise ValueError(f"trained='{self.config.trained}' trains nothing: the trunk has no such part; add input or output")
        new = {id(p) for part in ('input', 'output') for m in self.modules_of(part) for p in m.parameters()}
        self.frozen_names = [n for n, p in self.named_parameters() if not p.requires_grad and id(p) not in new]
        if self.config.trunk_dtype == 'float32':
            return
        for part, name in (('attention', self.config.layout.attention), ('feed_forward', 'mlp')):
            if part not in parts:
                for layer in self.modules_of(part):
                    if isinstance(layer, nn.Linear):    # not the short convolution before attention
                        layer.to(torch.bfloat16)
                for block in self.h:        # its sum with the residual stream is of float32 again
                    getattr(block, name).register_forward_pre_hook(cast)

    def initialize(self, config, positions, hashed):
        """Initializes the new layers, and the positions from those of the trunk.  Returns the config with the trunk's hash, of
        which `hashed` are the positions.  Raises ValueError if the config is from a checkpoint with another trunk."""
        if self.wpe is not None:
            nn.init.normal_(self.wpe.weight, std=positions.std().item())
            self.wpe.weight.data[:len(positions)] = positions[:len(self.wpe.weight)]
        nn.init.orthogonal_(self.input.weight, gain=1.41)
        nn.init.normal_(self.output.weight, std=0.02)
        for layer in (self.input, self.output):
            if getattr(layer, 'bias', None) is not None:
                nn.init.zeros_(layer.bias)
        found = hashlib.sha256()
        for p in (hashed, self.cls, *self.h.parameters(), *self.ln_f.parameters(), *self.ln.parameters()):
            if p is not None:
                found.update(p.detach().cpu().contiguous().numpy().tobytes())
        new = found.hexdigest()[:16]
        if config.frozen and config.trunk_hash not in ('', new):
            raise ValueError(f"trunk='{config.trunk}' has changed: its hash is {new}, and this run was trained with "
                             f'{config.trunk_hash}; restore that trunk')
        return dataclasses.replace(config, trunk_hash=config.trunk_hash or new)

    def copy_embedding(self, trunk):
        """The input layer becomes the token embedding of the trunk.  Raises ValueError if it is of other tokens."""
        c, table = self.config, getattr(trunk, 'wte', getattr(trunk, 'embed_tokens', None))     # the latter of a Llama
        found = len(table.weight) - getattr(trunk, 'bidirectional', False) if table else 0       # without BERT's [MASK]
        if c.random or not c.vocab_size:
            raise ValueError(f'keep_embedding=True requires tokens and a pretrained trunk, not vocab_size={c.vocab_size}, '
                             f'mode={c.mode} and trunk={c.trunk}: leave it out')
        if found != c.vocab_size:
            raise ValueError(f'keep_embedding=True: the trunk has {found} tokens, and the data vocab_size={c.vocab_size}: '
                             f'choose a trunk that was trained on the same tokens')
        self.input.weight.data.copy_(table.weight.detach()[:found])
        self.known_tokens = getattr(trunk, 'tokenizer', None)

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


def cast(module, args):
    """Before a part of a block is called: its input in the number format of its matrices."""
    matrix = next(m.weight for m in module.modules() if isinstance(m, nn.Linear))
    return args[0].to(matrix.dtype), *args[1:]


# where the trunk comes from -------------------------------------------------------------------------------------------------

SHAPE = ('n_layer', 'n_head', 'n_embd', 'bias', 'gelu', 'eps')       # fields that a trunk and this Config share
NOT_SHAPE = ('block_size', 'vocab_size', 'tied', 'mask_token', 'features', 'outputs', 'kind', 'readout', 'dropout')


def published(arch, positions, n_layer, n_head, n_embd, eps, gelu='none', **shape):
    return {'trunk_arch': arch, 'positions': positions, 'n_layer': n_layer, 'n_head': n_head, 'n_embd': n_embd, 'eps': eps,
            'bias': True, 'gelu': gelu, 'sees': TRUNKS[arch].sees, 'shape': shape}


EPS = 9.999999747378752e-06                     # 1e-5 in float32, as a GGUF has it
PUBLISHED = {       # the shapes of published trunks, so that random ones need no download
    'gpt2': published('model', 1024, 12, 12, 768, 1e-5, 'tanh'),
    'gpt2-medium': published('model', 1024, 24, 16, 1024, 1e-5, 'tanh'),
    'gpt2-large': published('model', 1024, 36, 20, 1280, 1e-5, 'tanh'),
    'gpt2-xl': published('model', 1024, 48, 25, 1600, 1e-5, 'tanh'),
    'distilgpt2': published('model', 1024, 6, 12, 768, 1e-5, 'tanh'),
    'vit': published('vit', 197, 12, 12, 768, 1e-12),
    'vit-s': published('vit', 1370, 12, 6, 384, 1e-6),
    'smollm2': published('llama', 8192, 30, 9, 576, EPS, n_kv_head=3, head_dim=64, n_hidden=1536, rope_base=1e5,
                         rope_layout='interleaved', rope_scaling=(), qk_norm=False),
    'minilm': published('bert', 512, 6, 12, 384, 1e-12, n_hidden=1536, n_types=2),
}


def needs(settings):
    """The folders of runs that a model is built from; train.py trains those that are missing.  settings: of Config."""
    trunk = settings.get('trunk', Config.trunk)
    return [trunk] if re.fullmatch(r'out/(?!\.)[\w.=,-]+', trunk) else []      # it becomes a path


def find_trunk(config):
    """(config, trunk): the Model of one of TRUNKS, and the config with its shape and random seed."""
    restored = config.trunk_hash != ''              # a checkpoint's config is complete
    sizes_only = torch.empty(0).is_meta and config.trunk in PUBLISHED
    if config.trunk_seed < 0:
        config = dataclasses.replace(config, trunk_seed=torch.initial_seed() % (1 << 31))
    if not restored and (config.random or sizes_only):
        config = named_shape(config)
    if config.random or sizes_only or (restored and not config.frozen):     # all of its weights are in the checkpoint
        return config, random_trunk(config)
    trunk = pretrained_trunk(config.trunk)
    config = shape_of(trunk, config)
    if config.shuffled:
        shuffle(getattr(trunk, config.layout.blocks), config.trunk_seed)
    if config.matrices != 'pretrained' or config.fresh:
        untrain(trunk, config)
    return config, trunk


def is_square(n):
    return math.isqrt(n) ** 2 == n


def random_trunk(config):
    """A trunk with random weights, determined by config.trunk_seed."""
    layout, Trunk = config.layout, config.layout.file.Config
    known = {f.name for f in dataclasses.fields(Trunk)}
    shape = {k: getattr(config, k) for k in SHAPE if k in known and (k != 'eps' or config.eps)} | config.shape
    if unknown := shape.keys() - known:
        raise ValueError(f"shape={config.shape} has '{min(unknown)}', which is no setting of arch={layout.file.__name__}")
    sizes = {'block_size': config.positions - layout.grid, 'vocab_size': 1, 'features': 1, 'outputs': 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.trunk_seed)
        return layout.file.Model(Trunk(**{k: v for k, v in sizes.items() if k in known}, **shape), **layout.options)


def pretrained_trunk(name):
    """A trunk of a run, on the hub, in a Python package or in a local file.  Raises ValueError, or UserError of the harness."""
    from harness import checkpoint, hub
    with torch.device('cpu'):           # the weights are read even while a model is built on meta, for its size
        if checkpoint.is_ours(name):
            trunk, content = checkpoint.load_model(name)
            if content['arch'] not in TRUNKS:
                raise ValueError(f"trunk={name} is a run of arch='{content['arch']}': choose one of arch={', '.join(TRUNKS)}")
            trunk.tokenizer = content['data'].get('tokenizer')
            return trunk.train()        # as a new module is: otherwise a resumed run has no dropout until its first evaluation
        types = {arch: layout.file.Model.model_types for arch, layout in TRUNKS.items()}
        found = None if name in PUBLISHED else hub.model_type(name)         # None: the weights must show what they are
        archs = [PUBLISHED[name]['trunk_arch']] if name in PUBLISHED else [a for a in types if found in (None, *types[a])]
        reasons = [] if archs else [f"its model_type is '{found}': choose one of {', '.join(sum(types.values(), ()))}"]
        for layout in map(TRUNKS.get, archs):
            try:
                return layout.file.Model.from_pretrained(name, **layout.options)
            except ValueError as e:
                reasons.append(str(e))
    raise ValueError(f'trunk={name}: {"; ".join(reasons)}')


def shuffle(blocks, seed):
    """Permutes the entries of each matrix in the blocks, in place."""
    generator = torch.Generator().manual_seed(seed)
    for p in blocks.parameters():
        if p.dim() > 1:
            p.data = p.data.flatten()[torch.randperm(p.numel(), generator=generator)].view_as(p)


def untrain(trunk, config):
    """Replaces the matrices in the blocks of a trunk, or all of its other parameters, by untrained ones."""
    with torch.device('cpu'):           # as in pretrained_trunk()
        untrained = dict(random_trunk(config).named_parameters())
    for name, p in trunk.named_parameters():
        if p.dim() > 1 and name.startswith(f'{config.layout.blocks}.'):
            if config.matrices != 'pretrained':
                new = untrained[name].data
                p.data = new * (p.data.std() / new.std()) if config.matrices == 'scaled' else new
        elif config.fresh and name in untrained and untrained[name].shape == p.shape:       # not the embedding of tokens
            p.data = untrained[name].data


def shape_of(trunk, config):
    """The config with the shape of the trunk."""
    arch = next(name for name, layout in TRUNKS.items() if isinstance(trunk, layout.file.Model))
    own, positions = dataclasses.asdict(trunk.config), TRUNKS[arch].positions(trunk)
    return dataclasses.replace(
        config, trunk_arch=arch, sees=TRUNKS[arch].sees, positions=own['block_size'] if positions is None else len(positions),
        **{k: own[k] for k in SHAPE if k in own}, shape={
            k: v for k, v in own.items() if k not in (*SHAPE, *NOT_SHAPE) and (k != 'short_conv' or v)})


def named_shape(config):
    """The config with the shape of the trunk that it names, for random weights.  Nothing is downloaded."""
    if config.trunk == 'random':
        return config
    if config.trunk in PUBLISHED:
        return dataclasses.replace(config, **PUBLISHED[config.trunk])
    if Path(config.trunk).exists():
        return shape_of(pretrained_trunk(config.trunk), config)
    raise ValueError(f"trunk='{config.trunk}' has no known shape for the random weights of mode={config.mode}: choose "
                     f'trunk=random with n_layer, n_head and n_embd, a local folder, or one of {", ".join(PUBLISHED)}')


def label(settings):
    """The mode, for the rows of a table over several tasks: FPT, FRT, V-FPT (a pretrained ViT), 'FPT, llama, shuffled'."""
    mode, arch = settings.get('mode', Config.mode), settings.get('trunk_arch') or ''
    vision = arch == 'vit' or (not arch and settings.get('sees') == 'both')
    front = 'V-' if vision and MODES[mode][0] == 'pretrained' else ''
    more = [name for name in ('llama', 'bert') if name == arch] + ['shuffled'] * bool(settings.get('shuffled')) + [
        m for m in [settings.get('matrices')] if m not in (None, 'pretrained')] + ['fresh'] * bool(settings.get('fresh'))
    return ', '.join([front + mode.upper(), *more])
