"""Models larger than one device: parameters that are split over the ranks, and blocks that are computed twice."""

import functools
import warnings

import torch.distributed as dist
import torch.nn as nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from harness import UserError


def blocks(module):
    """The parts that a model repeats: the elements of its nn.ModuleLists that have modules of their own.  A model uses their
    parameters only by calling them."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList) and any(child.children()):
            yield child
        else:
            yield from blocks(child)


def recompute(model):
    """Lets a training step keep only the input of each block; the backward pass computes the rest again."""
    for block in blocks(model):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def split(model, device, world):
    """Splits the parameters over the ranks, by torch's FSDP2: a block is gathered when it is computed.  They become DTensors,
    and so do their gradients and the state of an optimizer that is built after this."""
    from torch.distributed.device_mesh import init_device_mesh  # these modules take a second to import
    from torch.distributed.fsdp import fully_shard
    reasons = [f'{name} is a single number' for name, p in model.named_parameters() if not p.dim()]
    reasons += [f'{name} changes in forward passes' for name, p in model.named_parameters() if getattr(p, 'changes', False)]
    for reason in reasons + [f'{name} would differ between them' for name, _ in model.named_buffers() if 'running_' in name]:
        raise UserError(f'shard=True cannot split this model over processes, because {reason}: leave it out')
    # a warning about operations in place on an output, which is only a loss and logits here
    warnings.filterwarnings('ignore', 'FSDP2-wrapped module')
    marks, mesh = {name: vars(p) for name, p in model.named_parameters()}, init_device_mesh(device.type, (world,))
    for module in (*blocks(model), model):
        fully_shard(module, mesh=mesh)
    for name, p in model.named_parameters():
        vars(p).update(marks[name])         # for the optimizer: matrix, no_weight_decay


def is_sharded(t):
    return hasattr(t, 'to_local')           # a DTensor


def local(t):
    """The part of a DTensor that this rank holds, which shares its memory; any other tensor as it is."""
    return t.to_local() if is_sharded(t) else t


def whole(state):
    """A state_dict without DTensors, with the whole tensors on the CPU of rank 0.  Called on all ranks."""
    def gathered(t):
        if not is_sharded(t):
            return t
        t = t.full_tensor()
        return t.cpu() if dist.get_rank() == 0 else None
    return pytree.tree_map(gathered, state)


def part(t, like):
    """A tensor as a DTensor, of which this rank holds its part, if `like` is one of this shape."""
    if not is_sharded(like) or getattr(t, 'shape', None) != like.shape:
        return t
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(t.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
