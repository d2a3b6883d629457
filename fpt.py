"""
Frozen Pretrained Transformer: a language model, frozen, set to work on bits, digits, images, sound and molecules.

- Lu et al. 2021, "Pretrained Transformers as Universal Computation Engines" (arXiv 2103.05247): a new input layer, a new output
  layer, and between them the blocks of a trained GPT-2, of which only layer norms and positions learn on
- the trunk is any GPT-2 or ViT: a published one, one of our own runs, or random weights of the same shape
- and a control that the paper lacks: the trunk with its numbers shuffled, since trained weights are larger than random ones
- what is trained is a list of modules, never of names, so a checkpoint holds that and the trunk's hash, and no trunk
- frozen weights have no gradient and no optimizer memory; their outputs still carry gradients to the layers in front of them

B batch   T tokens   D numbers a token   V vocabulary   C channels of the trunk (n_embd)   O outputs
"""

import dataclasses
import hashlib
from dataclasses import dataclass

import torch
import torch.nn as nn

import model as gpt
import vit
from vit import check_kind, task_loss

PARTS = ('input', 'positions', 'norms', 'attention', 'feed_forward', 'output')
LIGHT = ('input', 'positions', 'norms', 'output')
MODES = {       # are the trunk's weights random, and what is trained
    'fpt': (False, LIGHT),      # frozen, pretrained
    'frt': (True, LIGHT),       # frozen, random
    'upt': (False, PARTS),      # unfrozen, pretrained
    'urt': (True, PARTS),       # unfrozen, random: a transformer trained from scratch
}
SHAPES = {      # of published trunks, so that random ones of their shape need no download: layers, heads, channels
    'gpt2': (12, 12, 768), 'gpt2-medium': (24, 16, 1024), 'gpt2-large': (36, 20, 1280), 'gpt2-xl': (48, 25, 1600),
    'distilgpt2': (6, 12, 768), 'vit': (12, 12, 768)}


@dataclass
class Config:
    block_size: int = 2         # tokens of an example
    vocab_size: int = 0         # tokens that exist, or 0: a token is made of numbers
    features: int = 5           # numbers a token, or 0: an example is made of tokens of the vocabulary
    outputs: int = 5            # classes, bits, or 1 for a number
    kind: str = 'bits'          # what is wanted: classify, bits or regress
    trunk: str = 'random'       # gpt2, distilgpt2, vit, ..., a model on the hub, the folder of a run of ours, or random
    mode: str = 'fpt'           # fpt: pretrained, frozen; frt: random, frozen; upt, urt: the same, all of it trained
    shuffled: bool = False      # the numbers in each of the trunk's matrices change places: its scale without what it learned
    trained: str = ''           # in place of the mode's, what is trained: input+positions+norms+attention+feed_forward+output
    readout: str = 'last'       # where the answer is read: the 'last' position, or a ViT's 'class' token
    dropout: float = 0.1        # on embeddings, attention weights and both residual branches, of frozen ones too
    # the shape of a random trunk; that of any other is found in it
    n_layer: int = 4            # blocks
    n_head: int = 4             # attention heads a block
    n_embd: int = 128           # channels
    positions: int = 64         # positions that the trunk knows
    bias: bool = True           # a bias in every Linear and LayerNorm
    gelu: str = 'none'          # 'none' is exact, 'tanh' GPT-2's approximation
    sees: str = 'back'          # 'back', as a GPT does, or 'both' sides, as a ViT
    # what tells the trunk of a run apart; filled in by the run
    trunk_seed: int = -1        # that its random weights are drawn from, or shuffled by
    trunk_hash: str = ''        # of its weights

    @classmethod
    def tiny(cls):
        return cls(n_layer=2, n_head=2, n_embd=16, positions=16, dropout=0.0)

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"mode='{self.mode}' is unknown: {', '.join(MODES)} are")
        if unknown := [p for p in self.parts() if p not in PARTS]:
            raise ValueError(f"trained='{self.trained}': there is no part '{unknown[0]}': {', '.join(PARTS)} are, with + "
                             f'between them')
        if not self.parts():
            raise ValueError(f"trained='{self.trained}' leaves nothing to train")
        if self.readout not in ('last', 'class'):
            raise ValueError(f"readout='{self.readout}' is unknown: last and class are")
        if self.sees not in ('back', 'both'):
            raise ValueError(f"sees='{self.sees}' is unknown: back and both are")
        if (self.vocab_size > 0) == (self.features > 0):
            raise ValueError(f'vocab_size={self.vocab_size} and features={self.features}: an example is made of tokens of a '
                             f'vocabulary or of numbers, so one of the two must be above 0')
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} is not divisible by n_head={self.n_head}: each head takes an equal share '
                             f'of the channels')
        check_kind(self.kind)

    def parts(self):
        """The parts that are trained."""
        return tuple(p.strip() for p in self.trained.split('+') if p.strip()) if self.trained else MODES[self.mode][1]

    @property
    def random(self):
        return self.trunk == 'random' or MODES[self.mode][0]


def needs(settings):
    """Folders of runs that a model is made from: the loop trains those that are missing.  settings: a dict, names of Config."""
    trunk = settings.get('trunk', Config.trunk)
    return [trunk] if trunk.startswith('out/') else []


def random_trunk(config):
    """A GPT or a ViT of random weights, those of config.trunk_seed."""
    shape = {k: getattr(config, k) for k in ('n_layer', 'n_head', 'n_embd', 'bias', 'gelu')}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.trunk_seed)
        if config.sees == 'both':
            return vit.Model(vit.Config(block_size=config.positions - 1, features=1, outputs=1, **shape))
        return gpt.Model(gpt.Config(block_size=config.positions, vocab_size=1, **shape))


def pretrained_trunk(name):
    """The GPT or ViT of a run of ours, on the hub, or in a local file.  Raises ValueError, or harness's UserError."""
    from harness import checkpoint
    with torch.device('cpu'):           # also where only the size of the whole is asked for
        if checkpoint.is_ours(name):
            trunk, content = checkpoint.load_model(name)
            if not isinstance(trunk, (gpt.Model, vit.Model)):
                raise ValueError(f"trunk={name} is of arch '{content['arch']}': a GPT (model) or a ViT (vit) is wanted")
            return trunk
        reasons = []
        for kind in (vit, gpt) if name == 'vit' else (gpt, vit):
            try:
                return kind.Model.from_pretrained(name)
            except ValueError as e:
                reasons.append(str(e))
    raise ValueError(f'trunk={name}: {"; ".join(reasons)}')


def resolved(config):
    """(config, trunk): the Config with all that its trunk tells, and the trunk itself, a gpt.Model or vit.Model."""
    rebuilt = config.trunk_hash != ''           # from a checkpoint, which knows all of that
    if config.trunk_seed < 0:
        config = dataclasses.replace(config, trunk_seed=torch.initial_seed() % (1 << 31))
    if config.random and config.trunk != 'random' and not rebuilt:
        if config.trunk in SHAPES:
            n_layer, n_head, n_embd = SHAPES[config.trunk]
            sight = {'sees': 'both', 'positions': 197} if config.trunk == 'vit' else {'positions': 1024, 'gelu': 'tanh'}
            config = dataclasses.replace(config, n_layer=n_layer, n_head=n_head, n_embd=n_embd, bias=True, **sight)
        elif config.trunk.startswith('out/'):
            config = shape_of(pretrained_trunk(config.trunk), config)
        else:
            raise ValueError(f"mode={config.mode} of trunk='{config.trunk}': its shape is not known here, and random weights "
                             f'are not worth a download: take trunk=random, n_layer, n_head and n_embd')
    if config.random or (rebuilt and not frozen(config)):       # a checkpoint has all of a trunk that was trained
        return config, random_trunk(config)
    trunk = pretrained_trunk(config.trunk)
    if config.shuffled:
        generator = torch.Generator().manual_seed(config.trunk_seed)
        for p in trunk.h.parameters():
            if p.dim() == 2:
                p.data = p.data.flatten()[torch.randperm(p.numel(), generator=generator)].view_as(p)
    return shape_of(trunk, config), trunk


def shape_of(trunk, config):
    c, both = trunk.config, isinstance(trunk, vit.Model)
    return dataclasses.replace(config, sees='both' if both else 'back', positions=len(trunk.wpe.weight),
                               **{k: getattr(c, k) for k in ('n_layer', 'n_head', 'n_embd', 'bias', 'gelu')})


def frozen(config):
    """Is anything of the trunk frozen, so that it is needed again?"""
    return not set(config.parts()) >= {'positions', 'norms', 'attention', 'feed_forward'}


class Model(nn.Module):
    predicts = 'task'

    def __init__(self, config: Config):
        super().__init__()
        config, trunk = resolved(config)
        C, T, front = config.n_embd, config.block_size, config.readout == 'class'
        if front and config.sees != 'both':
            raise ValueError('readout=class: a GPT has no class token, since nothing before it would see the example: take '
                             'readout=last')
        self.input = nn.Embedding(config.vocab_size, C) if config.vocab_size else nn.Linear(config.features, C)
        self.cls = trunk.cls if front else None
        self.drop, self.h, self.ln_f = trunk.drop, trunk.h, trunk.ln_f
        self.output = nn.Linear(C, config.outputs)
        known = trunk.wpe.weight.detach()
        known = known if front or config.sees == 'back' else known[1:]      # the first of a ViT's is its class token's
        if T + front > len(known) and 'positions' not in config.parts():
            raise ValueError(f'the trunk knows {len(known)} positions and an example has {T}: train positions, too, or take a '
                             f'trunk of more')
        self.wpe = nn.Embedding(T + front, C)
        if self.input.weight.is_meta:           # only its size is asked for
            weights = ''
        else:
            nn.init.normal_(self.wpe.weight, std=known.std().item())
            self.wpe.weight.data[:len(known)] = known[:T + front]
            nn.init.orthogonal_(self.input.weight, gain=1.41)
            nn.init.normal_(self.output.weight, std=0.02)
            for layer in (self.input, self.output):
                if getattr(layer, 'bias', None) is not None:
                    nn.init.zeros_(layer.bias)
            weights = self.hash(known)
        for module in self.h.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
            elif isinstance(module, gpt.SelfAttention):
                module.dropout = config.dropout
        self.drop.p = config.dropout
        if frozen(config) and weights and config.trunk_hash not in ('', weights):
            raise ValueError(f"trunk='{config.trunk}' is no longer what this run was trained with (its hash is {weights}, not "
                             f'{config.trunk_hash}): put the old one there')
        self.config = dataclasses.replace(config, trunk_hash=config.trunk_hash or weights)

        trained = [m for part in config.parts() for m in self.modules_of(part)]
        self.requires_grad_(False)
        for module in trained:
            module.requires_grad_(True)
        mine = {id(p) for part in ('input', 'output') for m in self.modules_of(part) for p in m.parameters()}
        self.left_out = [n for n, p in self.named_parameters() if not p.requires_grad and id(p) not in mine]

    def modules_of(self, part):
        """The modules, or parameters, of one of PARTS."""
        return {'input': [self.input], 'output': [self.output],
                'positions': [self.wpe, *([] if self.cls is None else [self.cls])],
                'norms': [*(n for block in self.h for n in (block.ln_1, block.ln_2)), self.ln_f],
                'attention': [block.attn for block in self.h], 'feed_forward': [block.mlp for block in self.h]}[part]

    def hash(self, positions):
        """Of the trunk's weights."""
        found = hashlib.sha256()
        for p in (positions, *([] if self.cls is None else [self.cls]), *self.h.parameters(), *self.ln_f.parameters()):
            found.update(p.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

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

    # what a checkpoint holds: all but the frozen trunk ---------------------------------------------------------------------

    def state_dict(self, *args, **more):
        state = super().state_dict(*args, **more)
        for name in self.left_out:
            del state[name]
        return state

    def load_state_dict(self, state, strict=True, assign=False):
        trunk = {k: v for k, v in super().state_dict().items() if k in self.left_out}
        return super().load_state_dict({**trunk, **state}, strict, assign)
