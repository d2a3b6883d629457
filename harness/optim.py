"""
Optimizers by name, and which parameter gets which treatment.

Decided by the type of the module that owns a parameter, never by its name:

    matrix   Linear weights inside the network              decayed; what Muon is for
    head     the Linear that gives the logits               decayed (tied to an embedding or not)
    conv     convolution kernels                            decayed
    rest     embeddings, norms, biases, all other, and      never decayed
             whatever is marked parameter.no_weight_decay
"""

import torch
import torch.nn as nn
from torch.nn.modules.conv import _ConvNd

STATES = {'adamw': (2, 2), 'muon': (1, 2), 'lion': (1, 1), 'sgd': (1, 1)}   # numbers a parameter: matrix, others


def groups(model):
    """{'matrix' | 'head' | 'conv' | 'rest': [(name, parameter), ...]} of the trainable parameters, each once."""
    vocab_size = getattr(model.config, 'vocab_size', None)
    kinds = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            kind = 'rest'
            if name == 'weight' and not getattr(p, 'no_weight_decay', False):
                if isinstance(module, nn.Linear):
                    kind = 'head' if module.out_features == vocab_size else 'matrix'
                elif isinstance(module, _ConvNd):
                    kind = 'conv'
            if kinds.get(p, 'rest') == 'rest':          # a tied weight is an embedding and a head: it is the head
                kinds[p] = kind
    table = {kind: [] for kind in ('matrix', 'head', 'conv', 'rest')}
    for name, p in model.named_parameters():
        if p.requires_grad:
            table[kinds[p]].append((name, p))
    return table


def build(model, name, lr, betas, weight_decay):
    """A list of optimizers (one, or Muon and AdamW) over the model's parameters; name: one of STATES.

    lr is set anew at every step by the loop. Muon's is on AdamW's scale (match_rms_adamw), so one rate serves both."""
    table = {kind: [p for _, p in params] for kind, params in groups(model).items()}
    fused = next(model.parameters()).device.type in ('cuda', 'cpu', 'mps')
    muon = []
    if name == 'muon':          # orthogonal updates for the hidden matrices (Jordan et al. 2024), AdamW for the rest
        muon = [torch.optim.Muon(table.pop('matrix'), lr=lr, weight_decay=weight_decay,
                                 adjust_lr_fn='match_rms_adamw')] if table['matrix'] else []
    decayed = [p for kind in ('matrix', 'head', 'conv') for p in table.get(kind, [])]
    split = [{'params': ps, 'weight_decay': wd} for ps, wd in ((decayed, weight_decay), (table['rest'], 0.0)) if ps]
    if not split:
        return muon
    if name == 'lion':
        return [Lion(split, lr=lr, betas=betas)]
    if name == 'sgd':
        return [torch.optim.SGD(split, lr=lr, momentum=betas[0], nesterov=betas[0] > 0)]
    return [*muon, torch.optim.AdamW(split, lr=lr, betas=betas, fused=fused)]


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, algorithm 2)."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {'lr': lr, 'betas': betas, 'weight_decay': weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            lr, (b1, b2), wd = group['lr'], group['betas'], group['weight_decay']
            for p in group['params']:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault('momentum', torch.zeros_like(p))
                p.mul_(1 - lr * wd).add_(torch.lerp(p.grad, m, b1).sign_(), alpha=-lr)
                m.lerp_(p.grad, 1 - b2)
        return loss


def describe(model, name, tokens_per_step):
    """The table that --dry_run prints."""
    lines, total, state = [f'{"group":8}{"optimizer":>10}{"decayed":>9}{"tensors":>9}{"parameters":>14}'], 0, 0
    for kind, params in groups(model).items():
        n = sum(p.numel() for _, p in params)
        opt = 'adamw' if name == 'muon' and kind != 'matrix' else name
        lines.append(f'{kind:8}{opt:>10}{"no" if kind == "rest" else "yes":>9}{len(params):>9}{n:>14,}')
        total += n
        state += n * STATES[name][kind != 'matrix']
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    lines += [f'{total:,} trained parameters' + (f', {frozen:,} frozen' if frozen else ''),
              f'memory: parameters {(total + frozen) * 4 / 2**20:,.1f} MiB, gradients {total * 4 / 2**20:,.1f} MiB, '
              f'optimizer {state * 4 / 2**20:,.1f} MiB',
              f'{tokens_per_step:,} tokens per step']
    return '\n'.join(lines)
