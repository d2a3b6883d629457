"""
What waits for a machine with CUDA, in stages whose results are kept in a record; python bench.py gpu continues it.

contract    tests/models/test_contract.py with models and batches on the device
formats     short runs of train.py in each number format, float16 with its scaler, and with torch.compile
resume      a run that was stopped and resumed, against one that was not: the largest difference of a weight
ranks       one rank on the backend of the device, NCCL on CUDA: gradients by DDP and on shards, against those without
speed       training steps of every architecture: tokens/s, memory, and the share of the peak of the GPU that its matrix
compiled    products and convolutions use (model FLOPs utilisation), without torch.compile and with it
recipe      nanoGPT's recipe for one GPU, for three minutes; its published validation loss is 1.4697

No stage needs a network, but data/shakespeare_char must be there.
"""

import copy
import dataclasses
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import bench
from harness import ROOT, UserError, checkpoint, describe_exception, device, shard
from harness.arch import build, load_arch
from harness.files import atomic
from race import processes
from train import Trainer

# dense bfloat16 TFLOP/s of the data sheets; NVIDIA's of tensor cores without sparsity
PEAKS = {'H200': 989, 'H100': 989, 'A100': 312, 'L40S': 362, 'L4': 121, 'A10': 125, 'RTX 4090': 165, 'RTX 3090': 71}
SMALL = '--block_size=256 --batch_size=64 --tokens_per_step=0'
LARGE = '--vocab_size=50257 --batch_size=8 --tokens_per_step=0 --dropout=0'
ROWS = {        # of about the parameters of GPT at nanoGPT's recipe, and at 124 M
    'GPT, recipe': f'config/shakespeare_gpt_gpu.py {SMALL}',
    'Llama, recipe': f'config/shakespeare_llama.py {SMALL} --n_layer=6 --n_head=6 --n_kv_head=6 --n_embd=384 --n_hidden=1024',
    'PACING, recipe': f'config/shakespeare_pacing.py {SMALL} --n_layer=9 --n_embd=384 --columns=16',
    'WaveGPT, recipe': f'config/shakespeare_wavegpt_causal.py {SMALL} --n_layer=3 --n_head=6 --n_embd=384',
    'BERT, recipe': f'config/shakespeare_bert.py {SMALL} --n_layer=6 --n_head=6 --n_embd=384',
    'Mamba, recipe': f'config/shakespeare_mamba.py {SMALL} --n_layer=11 --n_embd=384',
    'high-order, recipe': f'config/shakespeare_high_order_transformer.py {SMALL} --n_layer=3 --n_head=6 --n_embd=384',
    'GPT, 124 M': f'config/gpt2_124M.py {LARGE}',
    'Llama, 124 M': f'config/shakespeare_llama.py {LARGE} --block_size=1024 --n_layer=12 --n_head=12 --n_kv_head=12 '
                     '--n_embd=768 --n_hidden=2048'.replace(' --dropout=0', ''),
    'PACING, 124 M': f'config/pacing_124M.py {LARGE}',
    'WaveGPT, 124 M': f'config/owt_wavegpt.py {LARGE}',
    'BERT, 124 M': f'config/shakespeare_bert.py {LARGE} --block_size=1024 --n_layer=12 --n_head=12 --n_embd=768',
    'Mamba, 129 M': f'config/owt_mamba_130M.py {LARGE}'.replace(' --dropout=0', ''),
    'high-order, 124 M': f'config/shakespeare_high_order_transformer.py {LARGE} --block_size=1024 --n_layer=6 --n_head=12 '
                         '--n_embd=768'}


@dataclass
class Plan:
    """The sizes of the stages; the tests run them all on a CPU with smaller ones."""
    device: str = 'cuda'
    words: tuple = ('config/shakespeare_gpt_gpu.py',)       # of the runs of train.py
    rows: dict = dataclasses.field(default_factory=lambda: ROWS)
    steps: int = 200
    rounds: int = 10
    seconds: float = 180.0
    contract: str = 'shapes or gradient or influence or formats or forward'     # the tests of pytest -k


def trained(plan, folder, *more):
    """The last row of the log of a run.  Raises UserError with the reason if it failed."""
    words = [*plan.words, f'--device={plan.device}', '--sample_tokens=0', *more]
    if reason := processes.train(words, Path(folder), lambda rows: None):
        raise UserError(reason)
    return processes.read_rows(Path(folder))


def losses(plan, *more):
    with tempfile.TemporaryDirectory() as folder:
        found = trained(plan, f'{folder}/run', *more)
    return {'val_loss': min(r['val_loss'] for r in found if 'val_loss' in r), 'steps': found[-1]['step'],
            'tokens_per_second': statistics.median(r['tokens_per_second'] for r in found if 'tokens_per_second' in r),
            'memory': max(r['memory'] for r in found if 'memory' in r)}


def contract(plan):
    def run():
        done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '--tb=line', '-p', 'no:cacheprovider', '-k', plan.contract,
                               'tests/models/test_contract.py'], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, 'CONTRACT_DEVICE': plan.device})
        if not (passed := re.search(r'(\d+) passed', done.stdout)):
            raise UserError(f'pytest ran no test: {(done.stdout + done.stderr).strip()[-200:]}')
        failed = re.findall(r'^FAILED \S+?::(\S+)', done.stdout, re.M)
        if failed:
            raise UserError(f'{len(failed)} tests failed, {passed[1]} passed: {", ".join(failed)[:400]}')
        return {'passed': int(passed[1]), 'failed': []}
    yield 'tests', run


def formats(plan):
    short = f'--max_iters={plan.steps}', f'--eval_interval={plan.steps}', '--warmup_iters=10', '--log_interval=1'
    for dtype, compiled in (('float32', False), ('bfloat16', False), ('float16', False), ('bfloat16', True)):
        yield dtype + ', compiled' * compiled, functools.partial(losses, plan, *short, f'--dtype={dtype}',
                                                                 f'--compile={compiled}')


def resume(plan):
    def run():
        words = '--schedule=constant', '--warmup_iters=0', '--compile=False', f'--eval_interval={plan.steps // 2}'
        with tempfile.TemporaryDirectory() as folder:
            for name, steps in (('whole', plan.steps), ('part', plan.steps // 2), ('part', plan.steps)):
                trained(plan, f'{folder}/{name}', *words, f'--max_iters={steps}')
            whole, part = (checkpoint.load(f'{folder}/{name}/ckpt.pt') for name in ('whole', 'part'))
        change = max((w - part['model'][k]).abs().max().item() for k, w in whole['model'].items())
        return {'steps': [whole['step'], part['step']], 'largest difference': change}
    yield 'weights', run


def ranks(plan):
    def gradients(model, net, x):
        net(x, x)[1].backward()
        return [shard.local(p.grad).cpu() for p in model.parameters()]

    def run():
        where, arch = device.pick_device(plan.device, 0, 1), load_arch('model')
        torch.manual_seed(0)
        models = [build(arch, dataclasses.asdict(arch.Config())).to(where)]
        models += [copy.deepcopy(models[0]) for _ in range(2)]
        x = torch.randint(65, (4, 64), device=where)
        backend = 'cpu:gloo,cuda:nccl' if where.type == 'cuda' else 'gloo'
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        try:
            expected = gradients(models[0], models[0], x)
            by_ddp = gradients(models[1], DistributedDataParallel(models[1]), x)
            shard.split(models[2], where, 1)
            by_shards = gradients(models[2], models[2], x)
        finally:
            dist.destroy_process_group()
        return {'backend': backend, **{name: max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True))
                                       for name, found in (('DDP', by_ddp), ('shards', by_shards))}}
    yield 'gradients', run


def measure(plan, text, compiled):
    torch._dynamo.reset()       # or a second size of an architecture is compiled for all sizes
    s, _ = bench.load(text, [f'--device={plan.device}'])
    machine = device.setup(s.train.device, s.train.dtype, compiled)
    torch.manual_seed(0)
    settings = {'vocab_size': 65} | s.model
    trainer = Trainer(s.train, build(s.arch, settings), bench.RandomText(), machine)
    cuda, times = machine.device.type == 'cuda', []
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(plan.rounds + 3):        # the first steps compile
        began = time.perf_counter()
        trainer.step(0, 0.0)
        machine.synchronize()
        times.append(time.perf_counter() - began)
    rate, flops = trainer.tokens / statistics.median(times[3:]), bench.flops_per_token(s)
    name = torch.cuda.get_device_name() if cuda else ''
    peak = next((p for key, p in PEAKS.items() if re.search(rf'\b{key}\b', name)), None)
    peak = peak if machine.dtype == torch.bfloat16 else None
    return {'parameters': sum(p.numel() for p in trainer.model.parameters()), 'tokens_per_second': rate,
            'windows': trainer.examples, 'block_size': trainer.model.config.block_size, 'memory': machine.memory(),
            'tflops': flops * rate / 1e12, 'mfu': flops * rate / 1e12 / peak if peak else None}


def speed(plan, compiled=False):
    for name, text in plan.rows.items():
        yield name, functools.partial(measure, plan, text, compiled)


def recipe(plan):
    yield 'nanoGPT', functools.partial(losses, plan, f'--max_seconds={plan.seconds}', '--max_iters=0')


STAGES = {'contract': contract, 'formats': formats, 'resume': resume, 'ranks': ranks, 'speed': speed,
          'compiled': functools.partial(speed, compiled=True), 'recipe': recipe}


def run(plan, stages, path, command):
    """Runs what the record in path does not hold yet, and writes each result there.  Raises UserError at the end if any
    failed, whose reasons the record holds."""
    machine, failed = device.setup(plan.device, 'auto', False), []
    try:
        record = json.loads(path.read_text()) if path.exists() else {'command': command, 'machine': machine.describe()}
        found = record.setdefault('gpu', {})
        kept = {(stage, name): 'error' in result for stage, rows in found.items() for name, result in rows.items()}
    except (ValueError, AttributeError, TypeError):
        raise UserError(f'{path} is no record of bench.py gpu: remove it, or choose another --out') from None
    for stage in stages:
        for name, measured in STAGES[stage](plan):
            if kept.get((stage, name), True):
                began = time.perf_counter()
                try:
                    result = measured()
                except (Exception, UserError) as e:         # the others are measured all the same
                    text = str(e) if isinstance(e, UserError) else describe_exception(e, __file__)
                    result = {'error': text.splitlines()[0][:300]}
                    failed.append(f'{stage}, {name}')
                found.setdefault(stage, {})[name] = {**result, 'took': time.perf_counter() - began}
                record['date'] = time.strftime('%Y-%m-%d')
                with atomic(path, 'w') as f:
                    json.dump(record, f, indent=1)
                print(f'{stage}, {name}: {result}', flush=True)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
    if failed:
        raise UserError(f'{path} holds the errors of {"; ".join(failed)}: the same command tries these again')
