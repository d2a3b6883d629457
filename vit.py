"""
Vision Transformer: an image is cut into patches, which a transformer reads as a sequence; a classifier, and a trunk for fpt.py.

- Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words" (arXiv 2010.11929): from_pretrained() gives the published features,
  also those of DINOv2 (Oquab et al. 2023, arXiv 2304.07193), whose LayerScale is multiplied into the weights
- the blocks of GPT-2, with attention in both directions
- the convolution that embeds patches is a Linear layer: each patch arrives flattened, in the order (channel, row, column)
- the answer is read from a class token in front of the patches, or from the mean over the patches

B batch   T patches   D features per patch   C channels (n_embd)   O outputs
"""

import dataclasses
import itertools
import math
import re
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import model as gpt


@dataclass
class Config:                   # ViT-Base at 224 x 224: 196, 768, 12, 12, 768
    block_size: int = 64        # patches of an image
    features: int = 16          # features per patch: channels x height x width
    outputs: int = 10           # classes, bits, or 1 for regression
    kind: str = 'classify'      # type of task: classify, bits or regress (see task_loss)
    n_layer: int = 4            # blocks
    n_head: int = 4             # attention heads per block
    n_embd: int = 128           # channels
    dropout: float = 0.0        # on embeddings, attention weights and residual branches
    readout: str = 'class'      # read the answer from a 'class' token, or from the 'mean' over the patches
    bias: bool = True           # bias in every Linear and LayerNorm of the blocks
    gelu: str = 'none'          # 'none' is exact, 'tanh' an approximation
    eps: float = 1e-12          # epsilon of LayerNorm

    @classmethod
    def tiny(cls):
        return cls(block_size=9, features=4, outputs=5, n_layer=2, n_head=2, n_embd=16)

    def __post_init__(self):
        if self.features < 1:
            raise ValueError(f'features={self.features} must be at least 1: a ViT reads images, not tokens; use arch=fpt')
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} must be divisible by n_head={self.n_head}')
        if self.readout not in ('class', 'mean'):
            raise ValueError(f"unknown readout='{self.readout}': choose class or mean")
        gpt.check_gelu(self.gelu)
        check_kind(self.kind)


def check_kind(kind):
    if kind not in ('classify', 'bits', 'regress'):
        raise ValueError(f"unknown kind='{kind}': choose classify, bits or regress")


def task_loss(logits, y, kind):
    """The mean loss of logits (B, O).  kind = classify: cross-entropy with classes y (B,), -1 is not scored; bits: binary
    cross-entropy with y (B, O) in [0, 1]; regress: squared error of the first output, y (B,)."""
    if kind == 'classify':
        return F.cross_entropy(logits, y, ignore_index=-1)
    if kind == 'bits':
        return F.binary_cross_entropy_with_logits(logits, y)
    return F.mse_loss(logits[:, 0], y)


def resize(positions, count):
    """The position embeddings (T, C) of a square grid of patches, interpolated for one of `count` patches: (count, C).
    Raises ValueError if one of the grids is not square."""
    (T, C), side, new = positions.shape, math.isqrt(len(positions)), math.isqrt(count)
    if count == T:
        return positions
    if side ** 2 != T or new ** 2 != count:
        raise ValueError(f'block_size={count}: positions are interpolated from one square grid of patches to another, not from '
                         f'{T} patches to {count}')
    grid = positions.float().T.reshape(1, C, side, side)
    return F.interpolate(grid, size=(new, new), mode='bicubic').view(C, count).T.to(positions.dtype)


class SelfAttention(gpt.SelfAttention):
    causal = False


class Block(gpt.Block):

    def __init__(self, config):
        super().__init__(config)
        self.attn = SelfAttention(config)


class Model(nn.Module):
    predicts = 'task'
    model_types = 'vit', 'dinov2'

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        C, front = config.n_embd, config.readout == 'class'
        self.input = nn.Linear(config.features, C)
        self.cls = nn.Parameter(torch.zeros(1, 1, C)) if front else None
        self.wpe = nn.Embedding(config.block_size + front, C)
        self.drop = gpt.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(C, config.eps, bias=config.bias)
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

    # published weights ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name, **settings):
        """A model with published weights: the name of a ViT or DINOv2 on the hub, such as google/vit-base-patch16-224-in21k (in
        short 'vit'), vit-s (a DINOv2-small that was then tuned for saliency), or a local folder, .safetensors or .onnx file.
        settings: fields of Config; the output layer is initialised as usual; another block_size resizes the grid of positions.
        Raises ValueError if the weights are not a ViT's, or contradict a setting."""
        from harness import hub
        described, weights = hub.load(name, {'vit': 'google/vit-base-patch16-224-in21k'})
        described = described or (VIT_S if name == 'vit-s' else {})
        inside = next((k for k in weights if k.endswith('embeddings.cls_token')), '').removesuffix('embeddings.cls_token')
        weights = {k.removeprefix(inside): v for k, v in weights.items()}
        for newer, name in NEWER.items():
            weights = {k.replace(newer, name): v for k, v in weights.items()}
        if any(k.endswith('embeddings.distillation_token') for k in weights):
            raise ValueError('this is a distilled DeiT: vit.py has a class token, but no distillation_token beside it')
        kernel = weights.pop('embeddings.patch_embeddings.projection.weight', None)             # (C, channels, P, P)
        folded = [weights.pop(k) for k in [*weights] if re.fullmatch(r'embeddings\.(Concat|Reshape)(_\d+)?', k)]  # in ONNX
        parts = sorted(folded, key=lambda part: part.shape[1])          # positions of the class token, and of the patches
        positions = weights.pop('embeddings.position_embeddings', torch.cat(parts, dim=1) if parts else None)   # (1, 1 + T, C)
        if kernel is None or positions is None:
            raise ValueError('these are not the weights of a ViT')
        C, T = len(kernel), positions.shape[1] - 1
        L = len([k for k in weights if k.endswith(('layernorm_before.weight', 'norm1.weight'))])
        hub.check_config(
            'vit.py', described, model_type=[*cls.model_types], hidden_size=[C], num_hidden_layers=[L], num_attention_heads=int,
            intermediate_size=[4 * C], mlp_ratio=[4], hidden_act=list(gpt.GELU), layer_norm_eps=float, qkv_bias=[True],
            use_swiglu_ffn=[False])
        published = {'features': kernel[0].numel(), 'n_embd': C, 'n_layer': L, 'bias': True,
                     'n_head': described.get('num_attention_heads')}
        if described:
            published['gelu'] = gpt.GELU[described.get('hidden_act', 'gelu')]
            published['eps'] = described.get('layer_norm_eps', 1e-6 if described.get('model_type') == 'dinov2' else 1e-12)
        model = cls(Config(**{'block_size': T} | hub.merge(published, settings)))
        front = [] if model.cls is None else [positions[0, :1]]
        weights['wpe.weight'] = torch.cat([*front, resize(positions[0, 1:], model.config.block_size)])
        weights['embeddings.patch_embeddings.projection.weight'] = kernel.flatten(1)
        for i, kind in itertools.product(range(model.config.n_layer), ('weight', 'bias')):
            parts = [weights.pop(f'encoder.layer.{i}.attention.attention.{part}.{kind}', None)
                     for part in ('query', 'key', 'value')]
            if all(p is not None for p in parts):
                weights[f'h.{i}.attn.c_attn.{kind}'] = torch.cat(parts)
        for theirs, ours in HUB_NAMES.items():
            weights = {k.replace(theirs, ours): v for k, v in weights.items()}
        # LayerScale of DINOv2, x + gain * branch(x): the gain of each channel is multiplied into the last layer of the branch
        for key in [k for k in weights if k.endswith('.gain')]:
            gain = weights.pop(key)
            for k in (key.replace('gain', 'weight'), key.replace('gain', 'bias')):
                if k in weights and weights[k].shape[:1] == gain.shape:         # fill() refuses any other
                    weights[k] = torch.einsum('c...,c->c...', weights[k], gain)
        unused = ['pooler.*', 'classifier.*', 'decoder.*', 'embeddings.mask_token', *(['cls'] if model.cls is None else [])]
        return hub.fill(model, weights, new=['output.*'], unused=unused)

    def refined(self, config):
        """The same model for images of another size, with another block_size: positions are interpolated.  Raises ValueError
        for any other change."""
        if dataclasses.replace(self.config, block_size=config.block_size) != config:
            raise ValueError('only block_size of a trained ViT can be changed')
        new, weights, front = Model(config), self.state_dict(), int(self.cls is not None)
        wpe = weights['wpe.weight']
        weights['wpe.weight'] = torch.cat([wpe[:front], resize(wpe[front:], config.block_size)])
        new.load_state_dict(weights)
        return new


VIT_S = {'model_type': 'dinov2', 'num_attention_heads': 6, 'layer_norm_eps': 1e-6}      # its package has no config.json
NEWER = {'.q_proj.': '.attention.query.', '.k_proj.': '.attention.key.', '.v_proj.': '.attention.value.',
         '.o_proj.': '.output.dense.'}          # in files that transformers 5 exports to ONNX
HUB_NAMES = {'encoder.layer.': 'h.', 'layernorm_before': 'ln_1', 'layernorm_after': 'ln_2', 'layernorm.': 'ln_f.',
             'attention.output.dense': 'attn.c_proj', 'intermediate.dense': 'mlp.c_fc', 'output.dense': 'mlp.c_proj',
             'embeddings.patch_embeddings.projection': 'input', 'embeddings.cls_token': 'cls',
             'norm1.': 'ln_1.', 'norm2.': 'ln_2.', 'mlp.fc1': 'mlp.c_fc', 'mlp.fc2': 'mlp.c_proj',       # of DINOv2
             'layer_scale1.lambda1': 'attn.c_proj.gain', 'layer_scale2.lambda1': 'mlp.c_proj.gain'}
# in this order: 'output.dense' is also in 'attention.output.dense'
