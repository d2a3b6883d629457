"""
Optimizers by name, the group of each parameter, the learning-rate schedule and the plateau.

The group of a parameter follows from the type of the module that owns it, or from a mark on it, never from its name:

    matrix   weights of matrix products: of nn.Linear,       decayed; Muon's
             nn.LSTM, nn.GRU, nn.RNN, their cells and
             nn.MultiheadAttention, and parameters marked
             parameter.matrix = True
    head     the same, where the output is the logits        decayed
             (tied to an embedding or not)
    other    convolution kernels, nn.Bilinear, and           decayed
             matrices with a single row or column
    rest     embeddings, norms, biases, unmarked             not decayed
             parameters, and those marked
             parameter.no_weight_decay = True
"""

import math

import torch
import torch.nn as nn
from torch.nn.modules.conv import _ConvNd

from harness import UserError, device, shard

# numbers that an optimizer stores per parameter: of the group matrix, of the other groups
STATES = {'adamw': (2, 2), 'muon': (1, 2), 'lion': (1, 1), 'sgd': (1, 1), 'sparse_lion': (1, 1)}
SCHEDULES = ('cosine', 'trapezoid', 'constant', 'plateau')


def is_matrix(module, name, p):
    """Whether the module multiplies by this parameter of its own."""
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return name.startswith('weight_')
    if isinstance(module, nn.MultiheadAttention):
        return name.endswith('proj_weight')
    return getattr(p, 'matrix', False) or (name == 'weight' and isinstance(module, (nn.Linear, nn.Bilinear)))


def groups(model):
    """{'matrix' | 'head' | 'other' | 'rest': [(name, parameter), ...]} of the trainable parameters, each listed once.

    A head's out_features is the vocab_size of the model's config, or its number of outputs in a task.  It is the last such
    module, or tied to an embedding: another one is a matrix of a model that is as wide as its vocabulary."""
    answers = getattr(model.config, 'outputs', None) or getattr(model.config, 'vocab_size', None)
    wide = [m for m in model.modules() if getattr(m, 'out_features', -1) == answers]
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    kinds = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            kind = 'rest'
            if getattr(p, 'no_weight_decay', False):
                pass
            elif is_matrix(module, name, p):
                head = module in wide and (module is wide[-1] or p in embeddings)
                kind = 'head' if head else 'matrix' if p.dim() == 2 and min(p.shape) > 1 else 'other'
            elif name == 'weight' and isinstance(module, _ConvNd):
                kind = 'other'
            if kinds.get(p, 'rest') == 'rest':          # a tied weight is an embedding and a head: it counts as the head
                kinds[p] = kind
    table = {kind: [] for kind in ('matrix', 'head', 'other', 'rest')}
    for name, p in model.named_parameters():
        if p.requires_grad:
            table[kinds[p]].append((name, p))
    return table


def build(model, name, lr, betas, weight_decay):
    """A list of optimizers (one, or Muon and AdamW) over the model's parameters.  name: one of STATES.

    The loop sets lr at each step.  Muon's update has the scale of AdamW's (match_rms_adamw), so one rate serves both."""
    table = {kind: [p for _, p in params] for kind, params in groups(model).items()}
    fused = next(model.parameters()).device.type in ('cuda', 'cpu', 'mps')
    muon = []
    if name == 'muon':          # Jordan et al. 2024: Muon for hidden matrices, AdamW for the other groups
        matrices = table.pop('matrix')
        muon = [Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn='match_rms_adamw')] if matrices else []
    decayed = [p for kind in ('matrix', 'head', 'other') for p in table.get(kind, [])]
    split = [{'params': ps, 'weight_decay': wd} for ps, wd in ((decayed, weight_decay), (table['rest'], 0.0)) if ps]
    if not split:
        return muon
    if name in ('lion', 'sparse_lion'):
        return [Lion(split, lr=lr, betas=betas, sparse=name == 'sparse_lion')]
    if name == 'sgd':
        return [torch.optim.SGD(split, lr=lr, momentum=betas[0], nesterov=betas[0] > 0)]
    return [*muon, torch.optim.AdamW(split, lr=lr, betas=betas, fused=fused)]


NAMES = {'AdamW': {'step', 'exp_avg', 'exp_avg_sq'}, 'Muon': {'momentum_buffer'}, 'Lion': {'momentum'}, 'SGD': set()}


def restore(optimizers, states, path, step=1):
    """Loads the states in the checkpoint `path`, of this step.  Hyperparameters keep their current values.  Raises UserError if
    the states are damaged, or belong to other groups of parameters, as those of an older version may."""
    try:
        for o, state in zip(optimizers, states, strict=True):
            own = [{k: v for k, v in group.items() if k != 'params'} for group in o.param_groups]
            params = [p for group in o.param_groups for p in group['params']]
            names = [i for group in state['param_groups'] for i in group['params']]
            parts = {i: {k: shard.part(t, p) for k, t in state['state'][i].items()}
                     for i, p in zip(names, params, strict=True) if i in state['state']}
            o.load_state_dict(state | {'state': parts})
            for group, values in zip(o.param_groups, own, strict=True):
                group.update(values)
            for p in (p for group in o.param_groups for p in group['params'] if step):
                tensors = {k: t for k, t in o.state[p].items() if t is not None}
                if any(isinstance(t, torch.Tensor) and t.dim() and t.shape != p.shape for t in tensors.values()):
                    raise ValueError                        # load_state_dict compares the sizes of the groups only
                missing = NAMES[type(o).__name__] - tensors.keys()
                wrong = [k for k, t in tensors.items() if not isinstance(t, torch.Tensor) or not t.isfinite().all()]
                if missing or wrong:
                    raise UserError(f'{path} is damaged: the state of its optimizer has no finite {min([*missing, *wrong])} '
                                    f'for a parameter: start a new run from its weights with --init_from={path}')
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        raise UserError(f'{path} cannot be resumed: its optimizer groups the parameters differently, as an older version did: '
                        f'start a new run from its weights with --init_from={path}') from None


MOST = 2 ** 27      # numbers in a batch of matrices: some copies of it are made in a step, also on every rank of a split model


class Muon(torch.optim.Muon):
    """torch.optim.Muon with adjust_lr_fn='match_rms_adamw', but faster: matrices of the same shape are orthogonalized in one
    batch, with fewer products where that is exact, and in bfloat16 only if the device supports it.  Emulated bfloat16 on a CPU
    takes 20 times as long as the model."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            shapes = {}
            for p in group['params']:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            batches = ((shape, params[i:i + n]) for shape, params in shapes.items() for n in [max(1, MOST // shape.numel())]
                       for i in range(0, len(params), n))
            for shape, params in batches:
                for p in params:
                    if not self.state[p]:
                        self.state[p]['momentum_buffer'] = torch.zeros_like(p)
                grads, buffers = [p.grad for p in params], [self.state[p]['momentum_buffer'] for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - group['momentum'])
                updates = torch._foreach_lerp(grads, buffers, group['momentum'])            # Nesterov's momentum
                matrices = torch.stack(updates)
                if shard.is_sharded(matrices):      # gathered once, and not for each product
                    matrices = matrices.full_tensor()
                matrices = orthogonalize(matrices, group['ns_coefficients'], group['ns_steps'], group['eps'])
                updates = [shard.part(x, p) for x, p in zip(matrices.to(params[0].dtype), params, strict=True)]
                torch._foreach_mul_(params, 1 - group['lr'] * group['weight_decay'])
                torch._foreach_add_(params, updates, alpha=-group['lr'] * 0.2 * max(shape) ** 0.5)
        return loss


def orthogonalize(x, coefficients, steps, eps):
    """Moves the singular values of matrices (N, A, B) to about 1, by the Newton-Schulz iteration of torch.optim.Muon (Jordan
    et al. 2024)."""
    a, b, c = coefficients
    if (x.device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)) or (
            x.device.type == 'cpu' and device.has_bfloat16()):
        x = x.bfloat16()
    wide = x.shape[1] <= x.shape[2]

    def product(p, q):          # of tall matrices the other way round, so that nothing is transposed in memory
        return p @ q if wide else q @ p

    short, long = sorted(x.shape[1:])
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps)
    gram, total = product(x, x.mT), None                                            # (N, S, S), S the shorter side
    for step in range(steps):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if 2 * short > long or x.dtype == torch.bfloat16:
            x = torch.baddbmm(x, *(p, x) if wide else (x, p), beta=a)
            gram = product(x, x.mT) if step + 1 < steps else None
        else:
            # The same iteration in fewer operations: with P = a + b G + c G G, the step x -> P x takes G = x x^T to P G P, so
            # only the first and the last product have the longer side.  It needs float32: P multiplies an error of G by up to
            # a * a per step.
            p.diagonal(dim1=1, dim2=2).add_(a)
            total = p if total is None else p @ total
            gram = p @ gram @ p if step + 1 < steps else None
    return x if total is None else product(total, x)


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, algorithm 2).

    sparse: where a gradient is exactly 0, neither the weight nor its momentum changes, so entries of a table that a batch does
    not use do not drift (https://github.com/jloveric/high-order-layers-torch)."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, sparse=False):
        super().__init__(params, {'lr': lr, 'betas': betas, 'weight_decay': weight_decay})
        self.sparse = sparse

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            lr, (b1, b2), wd = group['lr'], group['betas'], group['weight_decay']
            for p in (p for p in group['params'] if p.grad is not None):
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


WARMUP = 100            # steps of warmup_iters='auto'


def learning_rate(cfg, step, progress, left=1.0):
    """The learning rate of a step.  progress: the fraction of the budget spent, 0 to 1.  left: Plateau.left.

    warmup_iters='auto' warms up over WARMUP steps, or over a tenth of the budget if that is shorter."""
    rate = cfg.learning_rate
    if cfg.schedule == 'cosine':
        rate = cfg.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (rate - cfg.min_lr)
    elif cfg.schedule == 'trapezoid':
        rate = cfg.min_lr + min(1.0, (1 - progress) / cfg.cooldown) * (rate - cfg.min_lr)
    elif cfg.schedule == 'plateau':
        rate *= left
    if cfg.warmup_iters == 'auto':
        return rate * min(1.0, max((step + 1) / WARMUP, 10 * progress))
    return rate * min(1.0, (step + 1) / max(1, cfg.warmup_iters))


class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """The factor `left` on the learning rate, from 1 down to min_lr / learning_rate.

    It is multiplied by cfg.factor when the mean training loss between two evaluations has not reached a new minimum (by 0.01 %)
    for more than cfg.patience evaluations.  It follows the training loss so that the validation text selects nothing.  With
    another cfg.schedule it stays at 1."""

    def __init__(self, cfg):
        # the scheduler sets the rate of an optimizer: here of a dummy, because the loop sets that of the real ones
        super().__init__(torch.optim.SGD([torch.zeros(1)], lr=1.0), factor=cfg.factor, eps=0,
                         patience=cfg.patience if cfg.schedule == 'plateau' else math.inf,
                         min_lr=cfg.min_lr / (cfg.learning_rate or 1))
        self.total, self.count = 0.0, 0         # of the losses since the last evaluation

    @property
    def left(self):
        return self.optimizer.param_groups[0]['lr']

    def watch(self, losses):
        for loss in losses:                     # one by one, so that the sum does not depend on the grouping into calls
            self.total += loss
        self.count += len(losses)

    def judge(self):
        if self.count:
            self.step(self.total / self.count)
            self.total, self.count = 0.0, 0

    def state_dict(self):
        """The state without the settings, which may change when a run is resumed."""
        return {k: getattr(self, k) for k in ('best', 'num_bad_epochs', '_last_lr', 'total', 'count')}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.optimizer.param_groups[0]['lr'], = self.get_last_lr()


def memory(model, name):
    """The bytes of (all parameters, gradients, the state of the optimizer `name`); the last two are float32."""
    trained = {kind: sum(p.numel() for _, p in params) for kind, params in groups(model).items()}
    state = sum(n * STATES[name][kind != 'matrix'] for kind, n in trained.items())
    return sum(p.numel() * p.element_size() for p in model.parameters()), 4 * sum(trained.values()), 4 * state


def token_memory(model, checkpointing=False):
    """The bytes of an output of each matrix for one token, in float32; with checkpointing, of one block only, the largest."""
    def outputs(module):
        return 4 * sum(getattr(m, 'out_features', 0) for m in module.modules())
    each = [outputs(block) for block in shard.blocks(model)] if checkpointing else [0]
    return outputs(model) - sum(each) + max(each, default=0)


def step_memory(cfg, model, micro_steps, rows, world=1):
    """The bytes that a training step takes at least: weights, gradients and optimizer; the batch as int64, in four copies; and
    an output of each matrix for each token of a micro-step."""
    T = model.config.block_size
    return (sum(memory(model, cfg.optimizer)) / (world if cfg.shard else 1) + 32 * micro_steps * rows * (model.memory + T) +
            rows * T * token_memory(model, cfg.checkpointing))


def describe(model, name, tokens_per_step, parts=1):
    """The table that --dry_run prints.  parts: into which the memory is split."""
    table = groups(model)
    sizes = {kind: sum(p.numel() for _, p in params) for kind, params in table.items()}
    lines = [f'{"group":8}{"optimizer":>12}{"decayed":>9}{"tensors":>9}{"parameters":>14}']
    for kind, params in table.items():
        used = 'adamw' if name == 'muon' and kind != 'matrix' else name
        lines.append(f'{kind:8}{used:>12}{"no" if kind == "rest" else "yes":>9}{len(params):>9}{sizes[kind]:>14,}')
    total = sum(sizes.values())
    if (unmarked := unmarked_matrices(model)) > 0.1 * total:
        lines.append(f'note: {unmarked / total:.0%} of the parameters are matrices in the group rest, without weight decay and '
                     f'Muon: if they are weights of matrix products, set parameter.matrix = True on them')
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    lines += [f'{total:,} trained parameters' + (f', {frozen:,} frozen' if frozen else ''),
              'memory: parameters {:,.1f} MiB, gradients {:,.1f} MiB, optimizer {:,.1f} MiB'.format(
                  *(n / parts / 2 ** 20 for n in memory(model, name))) + f' on each of {parts} ranks' * (parts > 1),
              f'{tokens_per_step:,} tokens per step']
    return '\n'.join(lines)


def unmarked_matrices(model):
    """The number of parameters in matrices of the group rest that are in no embedding and carry no mark."""
    tables = {p for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for p in m.parameters()}
    return sum(p.numel() for _, p in groups(model)['rest']
               if p.dim() > 1 and p not in tables and not hasattr(p, 'matrix') and not hasattr(p, 'no_weight_decay'))
