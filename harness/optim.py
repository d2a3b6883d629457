"""
Optimizers by name, which parameter gets which treatment, and the plateau that lowers the rate.

The treatment is decided by the type of the module that owns a parameter, or a mark on it, never by its name:

    matrix   Linear weights inside the network, and what    decayed; what Muon is for
             else is marked parameter.matrix (2-D)
    head     the same where they give the logits            decayed (tied to an embedding or not)
    conv     convolution kernels                            decayed
    rest     embeddings, norms, biases, all other, and      never decayed
             whatever is marked parameter.no_weight_decay
"""

import math

import torch
import torch.nn as nn
from torch.nn.modules.conv import _ConvNd

# numbers a parameter: of matrix, of the others
STATES = {'adamw': (2, 2), 'muon': (1, 2), 'lion': (1, 1), 'sgd': (1, 1), 'sparse_lion': (1, 1)}


def groups(model):
    """{'matrix' | 'head' | 'conv' | 'rest': [(name, parameter), ...]} of the trainable parameters, each once.

    A module that holds the weight of a matrix product and is no Linear marks it with weight.matrix = True; where it gives the
    logits, its out_features is the vocab_size, or the outputs of a task, as a Linear's is."""
    answers = getattr(model.config, 'outputs', None) or getattr(model.config, 'vocab_size', None)
    kinds = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            kind = 'rest'
            if getattr(p, 'no_weight_decay', False):
                pass
            elif getattr(p, 'matrix', False) or (name == 'weight' and isinstance(module, nn.Linear)):
                kind = 'head' if getattr(module, 'out_features', -1) == answers else 'matrix'
            elif name == 'weight' and isinstance(module, _ConvNd):
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
    if name in ('lion', 'sparse_lion'):
        return [Lion(split, lr=lr, betas=betas, sparse=name == 'sparse_lion')]
    if name == 'sgd':
        return [torch.optim.SGD(split, lr=lr, momentum=betas[0], nesterov=betas[0] > 0)]
    return [*muon, torch.optim.AdamW(split, lr=lr, betas=betas, fused=fused)]


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, algorithm 2).

    sparse: an entry whose gradient is exactly 0 is left alone: its weight, its momentum and its decay.  So what a batch does
    not use of a table of links or an embedding does not drift on by old momentum (the seed of high-order layers)."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, sparse=False):
        super().__init__(params, {'lr': lr, 'betas': betas, 'weight_decay': weight_decay})
        self.sparse = sparse

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            lr, (b1, b2), wd = group['lr'], group['betas'], group['weight_decay']
            for p in group['params']:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]['momentum'] = torch.zeros_like(p)
                m, g = self.state[p]['momentum'], p.grad
                update = torch.lerp(g, m, b1).sign_().add_(p, alpha=wd)
                if self.sparse:
                    used = g.sign().abs_()          # 1, or 0 where the gradient is exactly 0
                    p.addcmul_(update, used, value=-lr)
                    m.lerp_(g, used.mul_(1 - b2))
                else:
                    p.add_(update, alpha=-lr)
                    m.lerp_(g, 1 - b2)
        return loss


class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """The share of the learning rate that is left, 1 to min_lr / learning_rate: it falls by loop.factor when the mean training
    loss between two evaluations was no new lowest (by 0.01 %) for more than loop.patience of them.  Training loss, so that
    nothing is chosen on the validation text.  With any other loop.schedule it watches, and nothing falls."""

    def __init__(self, loop):
        # torch's scheduler sets the rate of an optimizer: of a stand-in, since the loop sets those of the real ones itself
        super().__init__(torch.optim.SGD([torch.zeros(1)], lr=1.0), factor=loop.factor, eps=0,
                         patience=loop.patience if loop.schedule == 'plateau' else math.inf,
                         min_lr=loop.min_lr / (loop.learning_rate or 1))
        self.total, self.count = 0.0, 0         # of the losses since the last evaluation

    @property
    def left(self):
        return self.optimizer.param_groups[0]['lr']

    def watch(self, losses):
        for loss in losses:                     # one at a time: the sum does not depend on how the steps are cut into calls
            self.total += loss
        self.count += len(losses)

    def judge(self):
        if self.count:
            self.step(self.total / self.count)
            self.total, self.count = 0.0, 0

    def state_dict(self):
        """What the run has done so far, and no settings: a run may go on with others."""
        return {k: getattr(self, k) for k in ('best', 'num_bad_epochs', '_last_lr', 'total', 'count')}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.optimizer.param_groups[0]['lr'], = self.get_last_lr()


def describe(model, name, tokens_per_step):
    """The table that --dry_run prints."""
    lines, total, state = [f'{"group":8}{"optimizer":>12}{"decayed":>9}{"tensors":>9}{"parameters":>14}'], 0, 0
    for kind, params in groups(model).items():
        n = sum(p.numel() for _, p in params)
        opt = 'adamw' if name == 'muon' and kind != 'matrix' else name
        lines.append(f'{kind:8}{opt:>12}{"no" if kind == "rest" else "yes":>9}{len(params):>9}{n:>14,}')
        total += n
        state += n * STATES[name][kind != 'matrix']
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    lines += [f'{total:,} trained parameters' + (f', {frozen:,} frozen' if frozen else ''),
              f'memory: parameters {(total + frozen) * 4 / 2**20:,.1f} MiB, gradients {total * 4 / 2**20:,.1f} MiB, '
              f'optimizer {state * 4 / 2**20:,.1f} MiB',
              f'{tokens_per_step:,} tokens per step']
    return '\n'.join(lines)
