"""One process or many, on CUDA, MPS or CPU: which device, which number format, and how the ranks agree."""

import contextlib
import datetime
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from harness import UserError


@dataclass
class Machine:
    device: torch.device
    dtype: torch.dtype          # what matrix products are computed in; parameters are float32 throughout
    compile: bool
    rank: int                   # of this process, of `world`
    local_rank: int             # of this process on its node
    world: int
    why: str = ''               # this number format

    def __str__(self):
        return (f'device {self.device}' + (f' x {self.world} ranks' if self.world > 1 else '') +
                f', numbers {str(self.dtype).removeprefix("torch.")} ({self.why}), torch.compile '
                f'{"on" if self.compile else "off"}')

    @property
    def first(self):
        """Is this the one process that writes files and prints?"""
        return self.rank == 0

    def describe(self):
        """What figures were measured on, in a line."""
        name = platform.processor() or platform.machine()
        with contextlib.suppress(OSError, StopIteration):
            lines = Path('/proc/cpuinfo').read_text().splitlines()
            name = next(s.split(':')[1].strip() for s in lines if s.startswith('model name'))
        gpu = torch.cuda.get_device_name(self.device) + ', ' if self.device.type == 'cuda' else ''
        threads = torch.get_num_threads()
        return (f'{gpu}{name}, {os.cpu_count()} cores, {threads} thread{"s" * (threads > 1)}, {platform.system()}; {self}; '
                f'Python {platform.python_version()}, torch {torch.__version__}')

    def autocast(self):
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self):
        """Float16 gradients underflow, so the loss is scaled up; with any other format this does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def memory(self):
        """The most memory in use so far, in MiB: tensors on a GPU, the whole process (torch itself is about 250) on a CPU."""
        if self.device.type == 'cuda':
            return torch.cuda.max_memory_allocated(self.device) / 2 ** 20
        if self.device.type == 'mps':       # keeps no record of its highest
            return torch.mps.driver_allocated_memory() / 2 ** 20
        with contextlib.suppress(OSError, StopIteration):   # getrusage would count what the parent held when it forked
            line = next(s for s in Path('/proc/self/status').read_text().splitlines() if s.startswith('VmHWM'))
            return int(line.split()[1]) / 2 ** 10
        with contextlib.suppress(ImportError):              # a Mac counts bytes; Windows has neither
            import resource
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
        return float('nan')

    def gather(self, parts):
        """A list of tensors on the CPU, and behind it those of the other ranks."""
        if self.world == 1:
            return parts
        everyone = [None] * self.world
        dist.all_gather_object(everyone, parts)
        return [part for rank in everyone for part in rank]

    def all_reduce(self, values, op='sum'):
        """A list of numbers, summed or maximised over the ranks.  On the CPU, so no GPU waits for it."""
        if self.world == 1:
            return list(values)
        t = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(t, op=dist.ReduceOp.SUM if op == 'sum' else dist.ReduceOp.MAX)
        return t.tolist()


def setup(device='auto', dtype='auto', compile='auto'):
    """The Machine that this process runs on; joins the process group when torchrun started it.

    device: auto, cpu, mps, cuda or cuda:N.  dtype: auto, float32, bfloat16, float16.  compile: True, False or auto."""
    world, rank, local_rank = (int(os.environ.get(k, d)) for k, d in (('WORLD_SIZE', 1), ('RANK', 0), ('LOCAL_RANK', 0)))
    device = pick_device(device, local_rank, world)
    dtype, why = number_format(device, dtype)
    if compile not in (True, False, 'auto'):
        raise UserError(f"compile={compile!r}: True, False or 'auto' is wanted")
    if compile == 'auto':       # triton compiles for CUDA; elsewhere torch.compile gains little, or breaks
        compile = device.type == 'cuda' and importlib.util.find_spec('triton') is not None
    if device.type == 'cuda':
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision('high')      # TF32
    if world > 1:
        # Ranks that torchrun restarts meet at the old store, where torch 2.13 leaves the addresses of the dead: hence a
        # prefix an attempt. Gradients travel by NCCL, the handful of numbers that ranks agree on by gloo on the CPU.
        store, rank, world = next(rendezvous('env://'))
        store = dist.PrefixStore(f'attempt {os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)
        dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo', store=store, rank=rank,
                                world_size=world, timeout=datetime.timedelta(hours=1))
    return Machine(device, dtype, compile, rank, local_rank, world, why)


def pick_device(name, local_rank, world):
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
        if name == 'mps' and world > 1:
            name = 'cpu'        # an Apple GPU is one device, and has no collectives
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device='{name}' is unknown: auto, cpu, mps, cuda and cuda:N are") from None
    if device.type == 'cuda':
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise UserError(f'device={name}: process {local_rank} of this node wants GPU {index}, but torch sees '
                            f'{count}: start fewer processes, or take --device=cpu')
        return torch.device('cuda', index)
    if device.type == 'mps' and not torch.backends.mps.is_available():
        raise UserError('device=mps: torch sees no Apple GPU here: take --device=cpu')
    if device.type not in ('cpu', 'mps'):
        raise UserError(f"device='{name}' is not supported: auto, cpu, mps, cuda and cuda:N are")
    return device


def number_format(device, asked='auto'):
    """The format of matrix products, and why: bfloat16 where a GPU has it, float16 where it doesn't, else float32."""
    formats = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
    if asked != 'auto' and asked not in formats:
        raise UserError(f"dtype='{asked}' is unknown: auto, float32, bfloat16 and float16 are")
    if device.type == 'cuda':
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        if asked == 'bfloat16' and not has:
            raise UserError('dtype=bfloat16: this GPU has no bfloat16: take float16 or float32')
        if asked == 'auto':
            return (torch.bfloat16, 'the GPU has it') if has else (torch.float16, 'the GPU has no bfloat16; scaled loss')
    elif asked == 'auto':
        return torch.float32, f'the default on {device.type}'
    elif device.type == 'mps' and asked != 'float32':
        raise UserError(f'dtype={asked}: on an Apple GPU only float32 is supported here')
    elif device.type == 'cpu' and asked == 'float16':
        raise UserError('dtype=float16: a CPU computes in float32 or bfloat16')
    return formats[asked], 'as asked'
