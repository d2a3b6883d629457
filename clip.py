"""
CLIP: a picture and its caption become vectors of one space, so that those of a pair point in the same direction.

- Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020):
  from_pretrained() gives the published similarities
- two towers of GPT-2's blocks: a ViT reads the patches of a picture, with a LayerNorm behind its embeddings, and answers at
  its class token; a causal transformer reads a caption, and answers at its last token
- or a ResNet of convnet.py reads the picture, and answers by the mean over all places; the published ResNets have another stem,
  pooling before each stride, and attention in place of the mean (section 2.4)
- the loss: of all pictures and captions of a batch, which belong together?  A cross-entropy over each row and each column of
  their similarities (figure 3); under DDP the batch is that of all processes
- the classes of a classifier are then captions, such as "a photo of a cat", also of classes that no training named

B batch   S patches   D features per patch   T tokens of a caption   C channels of a tower   E dimensions of the space
"""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

import convnet
import model as gpt

MOST = math.log(100)            # of the logarithm of the scale


@dataclass
class Config:                   # CLIP ViT-B/32: 77, 49408, 49, 3072, 12, 12, 768, 12, 8, 512, 512
    block_size: int = 24        # tokens of the longest caption, with its end
    vocab_size: int = 66        # size of the vocabulary, with the token that ends a caption
    source_size: int = 64       # patches of a picture
    rows: int = 0               # of patches of a picture (0: as many as columns); a ResNet puts them together again
    features: int = 48          # features per patch: channels x height x width
    tower: str = 'vit'          # of pictures: vit, or resnet18, resnet34, resnet50, resnet101 or resnet152
    n_layer: int = 4            # vit: blocks of the tower of pictures
    n_head: int = 4             # vit: its attention heads per block
    n_embd: int = 128           # its channels; of a ResNet, those of the first stage
    text_layer: int = 0         # blocks of the tower of captions (0: n_layer)
    text_head: int = 0          # its attention heads per block (0: n_head)
    text_embd: int = 0          # its channels (0: n_embd)
    n_space: int = 64           # dimensions of the space that both share
    dropout: float = 0.0        # on embeddings, attention weights and residual branches
    gelu: str = 'quick'         # 'quick' is x * sigmoid(1.702 x), as published; 'none' is exact, 'tanh' an approximation
    eps: float = 1e-5           # epsilon of LayerNorm

    @classmethod
    def tiny(cls):
        return cls(block_size=16, vocab_size=17, source_size=9, features=4, n_layer=2, n_head=2, n_embd=16, n_space=8)

    def __post_init__(self):
        self.text_layer, self.text_head = self.text_layer or self.n_layer, self.text_head or self.n_head
        self.text_embd = self.text_embd or self.n_embd
        for name, least in (('source_size', 1), ('features', 1), ('text_layer', 0), ('text_head', 1), ('text_embd', 1),
                            ('n_space', 1)):
            if getattr(self, name) < least:
                raise ValueError(f'{name}={getattr(self, name)} must be at least {least}')
        if self.rows < 0 or (self.rows and self.source_size % self.rows):
            raise ValueError(f'rows={self.rows} must be 0, or divide the source_size={self.source_size} patches of a picture')
        if self.tower not in ('vit', *convnet.RESNETS):
            raise ValueError(f"unknown tower='{self.tower}': choose vit, {', '.join(convnet.RESNETS)}")
        if self.tower != 'vit':
            image_shape(self)
        for channels, heads in (('n_embd', 'n_head'),) * (self.tower == 'vit') + (('text_embd', 'text_head'),):
            if getattr(self, channels) % getattr(self, heads):
                raise ValueError(f'{channels}={getattr(self, channels)} must be divisible by {heads}={getattr(self, heads)}')
        if self.gelu not in ('quick', 'none', 'tanh'):
            raise ValueError(f"unknown gelu='{self.gelu}': choose quick, none or tanh")


def image_shape(config):
    """(rows of patches, channels, side of a patch) of the pictures of 1 or 3 channels that were cut into patches.  Raises
    ValueError for any others."""
    S, D = config.source_size, config.features
    rows, channels = config.rows or math.isqrt(S), 1 if math.isqrt(D) ** 2 == D else 3
    P = math.isqrt(D // channels)
    if S % rows or (not config.rows and rows ** 2 != S) or channels * P ** 2 != D:
        raise ValueError(f'tower={config.tower} reads pictures of 1 or 3 channels, and not source_size={S} patches of '
                         f'features={D} values in rows={config.rows} (0: as many as columns): choose tower=vit')
    return rows, channels, P


class MLP(gpt.MLP):

    def forward(self, x):
        h = self.c_fc(x)                                                                    # (B, T, 4C)
        h = h * (1.702 * h).sigmoid() if self.gelu == 'quick' else F.gelu(h, approximate=self.gelu)
        return self.dropout(self.c_proj(h))


class Tower(nn.Module):
    """Blocks of GPT-2 over (B, T, C) embeddings, and a projection of one position into the space."""

    def __init__(self, config, size, n_layer, n_head, n_embd, causal):
        super().__init__()
        shape = gpt.Config(n_head=n_head, n_embd=n_embd, dropout=config.dropout, eps=config.eps)
        shape.gelu = config.gelu
        self.wpe = nn.Embedding(size, n_embd)
        self.ln_pre = nn.Identity() if causal else nn.LayerNorm(n_embd, config.eps)
        self.drop = gpt.Dropout(config.dropout)
        self.h = nn.ModuleList([gpt.Block(shape) for _ in range(n_layer)])
        for block in self.h:
            block.attn.causal, block.mlp = causal, MLP(shape)
        self.ln_f = nn.LayerNorm(n_embd, config.eps)
        self.proj = nn.Linear(n_embd, config.n_space, bias=False)
        for name, p in self.named_parameters():     # 2 * n_layer branches add up in the residual stream
            if p.dim() == 2:
                shrink = 2 * n_layer if name.endswith('c_proj.weight') else 2 if name.endswith('c_fc.weight') else 1
                nn.init.normal_(p, std=0.01 if name == 'wpe.weight' else (n_embd * shrink) ** -0.5)
            elif name.endswith('bias'):
                nn.init.zeros_(p)

    def forward(self, h, at):
        """h: (B, T, C).  at: the position to read, or (B,) those of each example.  Returns (B, E) of length 1."""
        h = self.drop(self.ln_pre(h + self.wpe.weight[:h.shape[1]]))
        for block in self.h:
            h = block(h)                                                                    # (B, T, C)
        h = h[torch.arange(len(h), device=h.device), at]                                    # (B, C)
        return F.normalize(self.proj(self.ln_f(h)), dim=-1)


def gather(features):
    """The features (B, ...) of all processes, those of the first process first.

    Each process computes the loss of the whole batch, but only its own features have a gradient; DDP then averages over the W
    processes what has to be added up, so that gradient is taken W times."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return features
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features.detach().contiguous())
    parts[dist.get_rank()] = features.detach() + len(parts) * (features - features.detach())
    return torch.cat(parts)


class Model(nn.Module):
    predicts = 'task'
    modality = 'captions'
    model_types = 'clip',
    published_pixels = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, config: Config):
        super().__init__()
        self.config = c = config
        if c.tower == 'vit':
            self.patch = nn.Linear(c.features, c.n_embd, bias=False)
            nn.init.normal_(self.patch.weight, std=c.features ** -0.5)
            self.cls = nn.Parameter(torch.randn(c.n_embd) * c.n_embd ** -0.5)
            self.image = Tower(c, 1 + c.source_size, c.n_layer, c.n_head, c.n_embd, causal=False)
        else:
            rows, channels, P = image_shape(c)
            large = max(rows, c.source_size // rows) * P > 64
            self.image = convnet.ResNet(convnet.Config(c.tower, 'imagenet' if large else 'cifar', c.n_embd, channels,
                                                       outputs=c.n_space))
        self.wte = nn.Embedding(c.vocab_size, c.text_embd)
        self.text = Tower(c, c.block_size, c.text_layer, c.text_head, c.text_embd, causal=True)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.wte.weight, std=0.02)

    def embed_images(self, x):
        """x: (B, S, D) patches.  Returns (B, E), of length 1."""
        if self.config.tower != 'vit':
            rows, channels, P = image_shape(self.config)
            x = x.unflatten(1, (rows, -1)).unflatten(3, (channels, P, P)).permute(0, 3, 1, 4, 2, 5)     # (B, ., h, P, w, P)
            return F.normalize(self.image(x.flatten(4, 5).flatten(2, 3)), dim=-1)           # of (B, channels, h P, w P)
        cls = self.cls.to(x.dtype).expand(len(x), 1, -1)
        return self.image(torch.cat([cls, self.patch(x)], dim=1), 0)                        # of (B, 1 + S, C)

    def embed_texts(self, y):
        """y: (B, T) int64 captions with their ends, -1 after them.  Returns (B, E), of length 1.  What comes after the last
        token of a caption is never read, because this tower is causal."""
        return self.text(self.wte(y.clamp(min=0)), (y >= 0).sum(1) - 1)

    def forward(self, x, y=None):
        """x: (B, S, D) patches.  y: (B, T) int64 captions with their ends, -1 after them.

        Returns output (B, 2, E) and the loss.  The product of output[i, 0] and output[j, 1] is the logit of picture i with
        caption j: their cosine times the scale.  The loss, in nats, is the mean of two cross-entropies: of the caption of each
        picture, and of the picture of each caption, among all of the batch; when training, among those of all processes.
        Without y: (B, 1, E) and None."""
        self.log_scale.data.clamp_(max=MOST)
        images = self.log_scale.exp() * self.embed_images(x)
        if y is None:
            return images[:, None], None
        output = torch.stack([images, self.embed_texts(y)], dim=1)                          # (B, 2, E)
        return output, contrastive(gather(output) if self.training else output)

    def metrics(self):
        return {'scale': self.log_scale.exp().item()}

    # published weights ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name, **settings):
        """A model with published weights: the name of a CLIP with a ViT on the hub, such as openai/clip-vit-base-patch32, or a
        local folder or .safetensors file.  settings: fields of Config; a smaller block_size crops the positions of captions.
        Raises ValueError if the weights are not a CLIP's, or contradict a setting."""
        from harness import hub
        described, weights = hub.load(name)
        hub.check_config('clip.py', described, model_type=[*cls.model_types])
        weights = {rename(k): v for k, v in weights.items()}
        needed = {f'{tower}.{part}.weight' for tower in TOWERS for part in ('wpe', 'proj')}
        if not {'patch.weight', 'wte.weight', *needed} <= weights.keys():
            raise ValueError('these are not the weights of a CLIP with a ViT, the only published ones that clip.py loads')
        kernel = weights['patch.weight']                                                    # (C, channels, P, P)
        weights['patch.weight'] = kernel.flatten(1)
        positions = {tower: len(weights[f'{tower}.wpe.weight']) for tower in TOWERS}
        published = {'tower': 'vit', 'block_size': min(positions['text'], settings.get('block_size', math.inf)),
                     'vocab_size': len(weights['wte.weight']), 'source_size': positions['image'] - 1,
                     'features': kernel[0].numel(), 'n_space': len(weights['text.proj.weight'])}
        hub.check_config('clip.py', described, projection_dim=[published['n_space']])
        # a second name of the same settings, in old files, takes precedence
        image, text = (described.get(f'{key}_dict') or described.get(key) or {} for key in ('vision_config', 'text_config'))
        hub.check_config('clip.py', image, model_type=['clip_vision_model'], num_channels=[kernel.shape[1]],
                         patch_size=[kernel.shape[2]], hidden_act=[*GELU], layer_norm_eps=float)
        gelu, eps = image.get('hidden_act', 'quick_gelu'), image.get('layer_norm_eps', 1e-5)
        hub.check_config('clip.py', text, model_type=['clip_text_model'], max_position_embeddings=[positions['text']],
                         vocab_size=[published['vocab_size']], hidden_act=[gelu], layer_norm_eps=[eps])
        for tower, found, prefix, heads in (('image', image, 'n', 12), ('text', text, 'text', 8)):
            C = weights[f'{tower}.proj.weight'].shape[1]
            L = len([k for k in weights if k.startswith(f'{tower}.h.') and k.endswith('ln_1.weight')])
            hub.check_config('clip.py', found, hidden_size=[C], num_hidden_layers=[L], num_attention_heads=int,
                             intermediate_size=[4 * C])
            published |= {f'{prefix}_embd': C, f'{prefix}_layer': L,
                          f'{prefix}_head': found.get('num_attention_heads', heads) if described else None}
            for i, kind in itertools.product(range(L), ('weight', 'bias')):
                parts = [weights.pop(f'{tower}.h.{i}.attn.{part}_proj.{kind}', None) for part in 'qkv']
                if all(p is not None for p in parts):
                    weights[f'{tower}.h.{i}.attn.c_attn.{kind}'] = torch.cat(parts)
        model = cls(Config(**hub.merge(published | {'gelu': GELU[gelu], 'eps': eps}, settings)))
        weights['text.wpe.weight'] = weights['text.wpe.weight'][:model.config.block_size]
        return hub.fill(model, weights, unused=['*.position_ids'])


def contrastive(output):
    """The loss of output (B, 2, E), see Model.forward(): the mean of the cross-entropies over the rows and over the columns of
    the logits (B, B), whose diagonal is right."""
    with torch.autocast(output.device.type, enabled=False):         # logits reach 100: bfloat16 would round them by up to 0.25
        logits = output[:, 0] @ output[:, 1].mT
    right = torch.arange(len(output), device=output.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.mT, right)) / 2


TOWERS = 'image', 'text'
GELU = {'quick_gelu': 'quick', **gpt.GELU}
HUB_NAMES = {'vision_model.embeddings.class_embedding': 'cls', 'vision_model.embeddings.patch_embedding': 'patch',
             'text_model.embeddings.token_embedding': 'wte', 'vision_model.': 'image.', 'text_model.': 'text.',
             'embeddings.position_embedding': 'wpe', 'encoder.layers.': 'h.', 'self_attn.out_proj': 'attn.c_proj',
             'self_attn.': 'attn.', 'pre_layrnorm': 'ln_pre', 'post_layernorm': 'ln_f', 'final_layer_norm': 'ln_f',
             'layer_norm': 'ln_', 'mlp.fc1': 'mlp.c_fc', 'mlp.fc2': 'mlp.c_proj', 'visual_projection': 'image.proj',
             'text_projection': 'text.proj', 'logit_scale': 'log_scale'}     # in this order


def rename(name):
    """The name of a published weight in this file."""
    for theirs, ours in HUB_NAMES.items():
        name = name.replace(theirs, ours)
    return name
