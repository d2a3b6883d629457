"""The device, the number format and the communication of ranks: one process or many, on CUDA, MPS or CPU."""

import contextlib
import copy
import ctypes
import datetime
import importlib.util
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from harness import UserError, shard

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4       # of glibc's malloc.h
LEAST_SECONDS = 0.01        # of a forward and backward pass in float32, below which bfloat16 is not worth a choice by chance


@dataclass
class Machine:
    device: torch.device
    dtype: torch.dtype          # of matrix products; parameters are always float32
    compile: bool
    rank: int                   # of this process
    local_rank: int             # of this process on its node
    world: int                  # number of processes
    why: str = ''               # the reason for dtype

    def __str__(self):
        return (f'device {self.device}' + (f' x {self.world} ranks' if self.world > 1 else '') +
                f', numbers {str(self.dtype).removeprefix("torch.")} ({self.why}), torch.compile '
                f'{"on" if self.compile else "off"}')

    @property
    def is_main(self):
        """True in the process that prints and writes files."""
        return self.rank == 0

    def describe(self):
        """The hardware and software of a measurement, in one line."""
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

    def choose_format(self, name, was, model, batch):
        """Sets dtype for a run, and returns its name.  auto, on a CPU with instructions for bfloat16, is the faster of the two
        formats, as measured for this model and batch; float32, if a pass is so short that the measurement is noise.

        name: the setting.  was: the format of the run that is resumed, which keeps it.  batch: a function that draws one."""
        if name != 'auto' or self.device.type != 'cpu' or not has_bfloat16():
            return name
        self.why = 'of the run that is resumed'
        if was not in ('float32', 'bfloat16'):
            seconds = []
            for self.dtype in (torch.float32, torch.bfloat16):
                seconds.append(pass_seconds(model, batch(), self))
            float32, bfloat16 = self.all_reduce(seconds, 'max')
            was = 'bfloat16' if float32 > max(1.1 * bfloat16, LEAST_SECONDS) else 'float32'
            self.why = f'measured: bfloat16 has {float32 / bfloat16:.2f} x the speed of float32 for this model and batch'
            if float32 <= LEAST_SECONDS:
                self.why = f'a pass of {1000 * float32:.1f} ms is too short to compare bfloat16'
        self.dtype = getattr(torch, was)
        if self.is_main:
            print(self)
        return was

    def scaler(self):
        """Scales the loss so that float16 gradients do not underflow; disabled for other formats."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def capacity(self):
        """The bytes of memory of a GPU; None on a CPU, for require_memory()."""
        return torch.cuda.mem_get_info(self.device)[1] if self.device.type == 'cuda' else None

    def memory(self):
        """Peak memory in MiB: of tensors on a GPU, of the whole process on a CPU (about 250 of it are torch)."""
        if self.device.type == 'cuda':
            return torch.cuda.max_memory_allocated(self.device) / 2 ** 20
        if self.device.type == 'mps':       # it does not record a peak
            return torch.mps.driver_allocated_memory() / 2 ** 20
        with contextlib.suppress(OSError, StopIteration):   # getrusage includes the memory of the parent at the fork
            line = next(s for s in Path('/proc/self/status').read_text().splitlines() if s.startswith('VmHWM'))
            return int(line.split()[1]) / 2 ** 10
        with contextlib.suppress(ImportError):              # macOS counts in bytes; Windows has neither
            import resource
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
        return float('nan')

    def synchronize(self):
        """Waits until a GPU has done what it was given: before a time is read."""
        if self.device.type in ('cuda', 'mps'):
            getattr(torch, self.device.type).synchronize()

    def gather(self, parts):
        """The CPU tensors of all ranks, in one list."""
        if self.world == 1:
            return parts
        everyone = [None] * self.world
        dist.all_gather_object(everyone, parts)
        return [part for rank in everyone for part in rank]

    def all_reduce(self, values, op='sum'):
        """A list of numbers, reduced over the ranks by sum or max.  On the CPU, so that no GPU is synchronised."""
        if self.world == 1:
            return list(values)
        t = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(t, op=dist.ReduceOp.SUM if op == 'sum' else dist.ReduceOp.MAX)
        return t.tolist()

    @contextlib.contextmanager
    def process_group(self):
        """Leaves the process group at the end.  A lost rank ends this one with a UserError."""
        try:
            yield
        except RuntimeError as e:       # a collective failed; the message of the lost rank gives the reason
            if self.world == 1 or not any(s in str(e) for s in ('gloo', 'NCCL', 'Connection')):
                raise
            raise UserError(f'rank {self.rank} stops because another rank is gone ({str(e).splitlines()[0][:120]})') from None
        if self.world > 1:
            self.all_reduce([0])        # the main process may still be writing
            dist.destroy_process_group()


def setup(device='auto', dtype='auto', compile='auto'):
    """The Machine of this process, which joins the process group if torchrun started it.

    device: auto, cpu, mps, cuda or cuda:N.  dtype: auto, float32, bfloat16, float16.  compile: True, False or auto."""
    world, rank, local_rank = ranks()
    device = pick_device(device, local_rank, world)
    dtype, why = number_format(device, dtype)
    if compile not in (True, False, 'auto'):
        raise UserError(f"compile={compile!r} must be True, False or 'auto'")
    if compile == 'auto':       # elsewhere torch.compile gains little, or fails
        compile = device.type == 'cuda' and importlib.util.find_spec('triton') is not None
    if device.type == 'cpu':
        keep_memory()
        compiler = os.environ.get('CXX', 'clang++' if sys.platform == 'darwin' else 'cl' if sys.platform == 'win32' else 'g++')
        if compile and not shutil.which(compiler):
            raise UserError(f"compile=True needs a C++ compiler on a CPU, and '{compiler}' is not found: install it, or leave "
                            f"compile out")
    if device.type == 'cuda':
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision('high')      # TF32
    if world > 1:
        # After a restart by torchrun the store still holds the addresses of the previous ranks (torch 2.13), so each attempt
        # has its own prefix.  NCCL averages gradients; gloo reduces the few numbers of all_reduce() on the CPU.
        store, rank, world = next(rendezvous('env://'))
        store = dist.PrefixStore(f'attempt {os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)
        dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo', store=store, rank=rank,
                                world_size=world, timeout=datetime.timedelta(hours=1))
    return Machine(device, dtype, compile, rank, local_rank, world, why)


def keep_memory():
    """Keeps the memory of tensors that are freed for the next ones.  By default glibc returns that of large tensors to the
    system, and much of a training step is spent on clearing its pages again."""
    if sys.platform == 'linux':
        with contextlib.suppress(OSError, AttributeError):      # of another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)                              # large tensors from the heap
            mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)              # whose free end stays


def ranks():
    """(number of processes, rank, rank on this node), as torchrun sets them in the environment.  Raises UserError if only some
    of them are set, as by a shell that exports WORLD_SIZE."""
    found = {k: os.environ.get(k, '') for k in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK')}
    world, rank, local_rank = (int(v or d) if (v or d).isdecimal() else -1 for v, d in zip(found.values(), '100', strict=True))
    given = found['RANK'] and all(k in os.environ for k in ('MASTER_ADDR', 'MASTER_PORT'))
    if not 0 <= rank < world or local_rank < 0 or ((local_rank or world > 1) and not given):
        shown = ', '.join(f'{k}={v or "(not set)"}' for k, v in found.items())
        raise UserError(f'{shown} in the environment are not all that torchrun sets: start with torchrun, or unset them')
    return world, rank, local_rank


def leave():
    """Ends a process of torchrun when all is written: Python's own exit sometimes aborts in a thread of gloo (torch 2.13)."""
    if dist.is_torchelastic_launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def pick_device(name, local_rank, world):
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
        if name == 'mps' and world > 1:
            name = 'cpu'        # an Apple GPU is a single device without collectives
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device='{name}': choose auto, cpu, mps, cuda or cuda:N") from None
    if device.type == 'cuda':
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise UserError(f'device={name}: process {local_rank} of this node needs GPU {index}, but torch finds {count}: '
                            f'start fewer processes, or use --device=cpu')
        return torch.device('cuda', index)
    if device.type == 'mps' and not torch.backends.mps.is_available():
        raise UserError('device=mps: torch finds no Apple GPU: use --device=cpu')
    if device.type not in ('cpu', 'mps') or device.index is not None:
        raise UserError(f"unsupported device='{name}': choose auto, cpu, mps, cuda or cuda:N")
    return device


def pass_seconds(model, batch, machine):
    """The least time of a forward and backward pass, of three, in machine.dtype.  The model stays as it is: the passes are
    those of a copy, but for a sharded model, which cannot be copied and has no buffers that a pass changes."""
    model, times = model if any(map(shard.is_sharded, model.parameters())) else copy.deepcopy(model), []
    for _ in range(3):
        began = time.perf_counter()
        with machine.autocast():
            loss = model(*batch)[1]
        loss.backward()
        times.append(time.perf_counter() - began)
        model.zero_grad()
    return min(times)


def has_bfloat16():
    """Whether this CPU has instructions for products of bfloat16; torch emulates them on the others, which is slower."""
    found = torch.cpu.get_capabilities()
    return bool(found.get('amx_bf16') or found.get('avx512_bf16'))


def number_format(device, name='auto'):
    """(dtype of matrix products, the reason).  auto: bfloat16 or else float16 on CUDA, float32 elsewhere; on a CPU with
    instructions for bfloat16, Machine.choose_format() decides later."""
    formats = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
    if name != 'auto' and name not in formats:
        raise UserError(f"unknown dtype='{name}': choose auto, float32, bfloat16 or float16")
    if device.type == 'cuda':
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if name == 'bfloat16' and not supported:
            raise UserError('dtype=bfloat16: this GPU does not support it: use float16 or float32')
        if name == 'auto':
            return (torch.bfloat16, 'supported by the GPU') if supported else (torch.float16, 'no bfloat16 on this GPU')
    elif name == 'auto':
        if device.type == 'cpu':
            return torch.float32, ('until a run measures bfloat16' if has_bfloat16() else
                                   'this CPU has no instructions for bfloat16')
        return torch.float32, f'the default on {device.type}'
    elif device.type == 'mps' and name != 'float32':
        raise UserError(f'dtype={name}: on an Apple GPU only float32 is supported')
    elif device.type == 'cpu' and name == 'float16':
        raise UserError('dtype=float16: on a CPU only float32 and bfloat16 are supported')
    return formats[name], 'set by dtype; products in TF32' if (device.type, name) == ('cuda', 'float32') else 'set by dtype'
