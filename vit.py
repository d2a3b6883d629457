"""
Vision Transformer: an image, cut into patches, read as a sentence; a classifier, and a trunk for fpt.py.

- Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words" (arXiv 2010.11929), weight for weight: from_pretrained() gives the
  published features.
- the blocks are GPT-2's, but attention sees both sides
- the convolution that embeds patches is a Linear over their numbers: patches arrive flattened, (channel, row, column)
- the answer is read from a class token in front of the patches, or from the mean over them

B batch   T patches   D numbers a patch   C channels (n_embd)   O outputs
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import model as gpt


@dataclass
class Config:                   # ViT-Base at 224 x 224: 196, 768, 12, 12, 768
    block_size: int = 64        # patches of an image
    features: int = 16          # numbers a patch: channels x height x width
    outputs: int = 10           # classes, bits, or 1 for a number
    kind: str = 'classify'      # what is wanted: classify, bits or regress (see task_loss)
    n_layer: int = 4            # blocks
    n_head: int = 4             # attention heads a block
    n_embd: int = 128           # channels
    dropout: float = 0.0        # on embeddings, attention weights and both residual branches
    readout: str = 'class'      # where the answer is read: a 'class' token, or the 'mean' over the patches
    bias: bool = True           # a bias in every Linear and LayerNorm, or in none
    gelu: str = 'none'          # 'none' is exact, 'tanh' an approximation

    @classmethod
    def tiny(cls):
        return cls(block_size=9, features=4, outputs=5, n_layer=2, n_head=2, n_embd=16)

    def __post_init__(self):
        if self.features < 1:
            raise ValueError('features=0: a Vision Transformer reads patches of numbers, and this task is made of tokens: take '
                             'arch=fpt')
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} is not divisible by n_head={self.n_head}: each head takes an equal share '
                             f'of the channels')
        if self.readout not in ('class', 'mean'):
            raise ValueError(f"readout='{self.readout}' is unknown: class and mean are")
        check_kind(self.kind)


def check_kind(kind):
    if kind not in ('classify', 'bits', 'regress'):
        raise ValueError(f"kind='{kind}' is unknown: classify, bits and regress are")


def task_loss(logits, y, kind):
    """The mean loss of answers, logits (B, O).  y: classes (B,), -1 where it is not scored; bits (B, O); or numbers (B,)."""
    if kind == 'classify':
        return F.cross_entropy(logits, y, ignore_index=-1)
    if kind == 'bits':
        return F.binary_cross_entropy_with_logits(logits, y)
    return F.mse_loss(logits[:, 0], y)


class SelfAttention(gpt.SelfAttention):
    causal = False


class Block(gpt.Block):

    def __init__(self, config):
        super().__init__(config)
        self.attn = SelfAttention(config)
        self.ln_1.eps = self.ln_2.eps = 1e-12


class Model(nn.Module):
    predicts = 'task'

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        C, front = config.n_embd, config.readout == 'class'
        self.input = nn.Linear(config.features, C)
        self.cls = nn.Parameter(torch.zeros(1, 1, C)) if front else None
        self.wpe = nn.Embedding(config.block_size + front, C)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(C, eps=1e-12, bias=config.bias)
        self.output = nn.Linear(C, config.outputs)
        for name, p in self.named_parameters():
            if name.endswith('c_proj.weight'):      # 2 * n_layer branches add up in the residual stream
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif name == 'input.weight':
                nn.init.normal_(p, std=config.features ** -0.5)
            elif p.dim() >= 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)

    def trunk(self, x):
        """x: (B, T, D) patches.  Returns (B, T, C), or (B, 1 + T, C) behind a class token."""
        h = self.input(x)                                                                   # (B, T, C)
        if self.cls is not None:
            h = torch.cat([self.cls.expand(len(x), -1, -1), h], dim=1)                      # (B, 1 + T, C)
        h = self.drop(h + self.wpe.weight[:h.shape[1]])
        for block in self.h:
            h = block(h)
        return self.ln_f(h)

    def forward(self, x, y=None):
        """x: (B, T, D) float.  y: see task_loss().  Returns logits (B, O) and the mean loss (None without y)."""
        h = self.trunk(x)
        logits = self.output(h[:, 0] if self.cls is not None else h.mean(1))                # (B, O)
        return logits, None if y is None else task_loss(logits, y, self.config.kind)

    # published weights -----------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name, **settings):
        """A model with published weights: a ViT on the hub by its name, such as google/vit-base-patch16-224-in21k ('vit' for
        short), or a local .safetensors file or folder.  settings: names of Config; the output layer is new.
        Raises ValueError if the weights are not a ViT's, or a setting contradicts them."""
        from harness import hub
        described, weights = hub.load('google/vit-base-patch16-224-in21k' if name == 'vit' else name)
        weights = {k.removeprefix('vit.'): v.float() for k, v in weights.items()}
        if 'embeddings.patch_embeddings.projection.weight' not in weights:
            raise ValueError('these are not the weights of a ViT')
        kernel = weights['embeddings.patch_embeddings.projection.weight']                   # (C, channels, P, P)
        n_embd, positions = len(kernel), weights['embeddings.position_embeddings'][0]       # (1 + T, C)
        shape = {'block_size': len(positions) - 1, 'features': kernel[0].numel(), 'n_embd': n_embd, 'bias': True,
                 'n_layer': len([k for k in weights if k.endswith('layernorm_before.weight')]),
                 'n_head': described.get('num_attention_heads', n_embd // 64), 'gelu': 'none'}
        if wrong := {k: v for k, v in settings.items() if shape.get(k, v) != v}:
            raise ValueError(f'the published model has {({k: shape[k] for k in wrong})}, which cannot be set to {wrong}')
        model = cls(Config(**shape, **{k: v for k, v in settings.items() if k not in shape}))
        ours = {'input.weight': kernel.flatten(1), 'input.bias': weights['embeddings.patch_embeddings.projection.bias'],
                'wpe.weight': positions if model.cls is not None else positions[1:],
                'ln_f.weight': weights.get('layernorm.weight'), 'ln_f.bias': weights.get('layernorm.bias'),
                **({'cls': weights['embeddings.cls_token']} if model.cls is not None else {})}
        names = {'ln_1': 'layernorm_before', 'ln_2': 'layernorm_after', 'attn.c_proj': 'attention.output.dense',
                 'mlp.c_fc': 'intermediate.dense', 'mlp.c_proj': 'output.dense'}
        for i in range(model.config.n_layer):
            theirs = f'encoder.layer.{i}.'
            for kind in ('weight', 'bias'):
                ours |= {f'h.{i}.{a}.{kind}': weights.get(f'{theirs}{b}.{kind}') for a, b in names.items()}
                parts = [weights.get(f'{theirs}attention.attention.{part}.{kind}') for part in ('query', 'key', 'value')]
                ours[f'h.{i}.attn.c_attn.{kind}'] = None if any(p is None for p in parts) else torch.cat(parts)
        own = model.state_dict()
        for key, new in ours.items():
            if new is None:
                raise ValueError(f'these weights lack what gives {key}')
            if new.shape != own[key].shape:
                raise ValueError(f'{key} is {tuple(new.shape)}, and not {tuple(own[key].shape)}')
            own[key].copy_(new)
        return model
