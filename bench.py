"""
Speed, as ratios of medians taken in turn in one process, since machines are noisy:

    python bench.py train config/shakespeare_gpt.py config/shakespeare_pacing.py [--rounds=50] [--name=value ...]
    python bench.py scan [--rounds=3]
    python bench.py links [--rounds=5]
    python bench.py generate config/shakespeare_gpt_gpu.py ... [--tokens=250] [--name=value ...]

train: whole training steps (forward, backward, clipping, optimizer) of each config, against the first one's.  A config in
quotes may have settings of its own behind it; --out=FILE.json keeps the figures.
scan: Mamba's, forward and backward, against the plain loop that it stands for.
links: a layer of piecewise polynomials, forward and backward, against gathering the weights that are in use; and the memory.
generate: the time to the first token, tokens per second by step() and by reading the window anew, and whether a token
costs more as the text grows; with untrained weights (sample.py --benchmark does the same with those of a run).
"""

import datetime
import functools
import itertools
import json
import shlex
import statistics
import sys
import time

import torch
from tqdm import trange

import mamba
from harness import UserError, config, device, optim, report
from harness.files import atomic
from harness.generate import benchmark, describe
from piecewise import PiecewisePolynomial
from train import Loop


def take(flags, name, default):
    """Remove --name=value from flags.  Returns its value, of the type of the default."""
    for flag in [f for f in flags if f.startswith(f'--{name}=')]:
        flags.remove(flag)
        default = config.coerce(name, config.Raw(flag.split('=', 1)[1]), type(default))
    return default


def bench_train(words):
    files, flags = [w for w in words if not w.startswith('--')], [w for w in words if w.startswith('--')]
    rounds, out = take(flags, 'rounds', 50), take(flags, 'out', '')
    if not files:
        raise UserError('name at least one config: python bench.py train config/shakespeare_gpt.py config/...')
    runs = []
    for file in files:
        words = shlex.split(file)
        s = config.load([*words, *flags], Loop)
        machine = device.setup(s.loop.device, s.loop.dtype, compile=False)
        torch.manual_seed(s.loop.seed)
        model = s.arch.Model(config.build(s.arch, {'vocab_size': 65} | s.model)).to(machine.device)
        optimizers = optim.build(model, s.loop.optimizer, s.loop.learning_rate, (s.loop.beta1, s.loop.beta2),
                                 s.loop.weight_decay)
        rows, T, memory = s.loop.batch_size, model.config.block_size, getattr(model, 'memory', 0)
        x = torch.randint(model.config.vocab_size, (rows, memory + T + 1), device=machine.device)

        def step(model=model, x=x, T=T, optimizers=optimizers, machine=machine):
            with machine.autocast():
                loss = model(x[:, :-1], x[:, -T:])[1]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for o in optimizers:
                o.step()
                o.zero_grad()
            if x.is_cuda:
                torch.cuda.synchronize()
        runs.append(({'name': ' '.join([s.name, *(w.lstrip('-') for w in words[1:])]), 'windows': rows,
                      'parameters': sum(p.numel() for p in model.parameters()), 'block_size': T}, step))
    times = race([step for _, step in runs], rounds)
    record = {'command': shlex.join(['python', 'bench.py', 'train', *files, *flags, f'--rounds={rounds}']),
              'date': datetime.date.today().isoformat(), 'machine': machine.describe(),
              'speeds': [run | {'seconds': statistics.median(t)} for (run, _), t in zip(runs, times, strict=True)]}
    print(report.markdown(*report.speeds(record)))
    if out:
        with atomic(out, 'w') as f:
            json.dump(record, f, indent=1)


def bench_generate(words):
    files, flags = [w for w in words if not w.startswith('--')], [w for w in words if w.startswith('--')]
    tokens = take(flags, 'tokens', 250)
    if not files:
        raise UserError('name at least one config: python bench.py generate config/shakespeare_gpt.py ...')
    for file in files:
        s = config.load([*shlex.split(file), *flags], Loop)
        torch.manual_seed(s.loop.seed)
        model = s.arch.Model(config.build(s.arch, {'vocab_size': 65} | s.model)).eval()
        model.to(device.pick_device(s.loop.device, 0, 1))
        print(f'{s.name}: {describe(benchmark(model, torch.zeros(1, 1, dtype=torch.long), tokens))}', flush=True)


def bench_scan(flags):
    rounds = take(flags, 'rounds', 3)
    for B, T in ((8, 256), (4, 1024)):
        E, N = 128, 16
        made = torch.randn(B, T, E), torch.rand(B, T, E) / 10, -torch.rand(E, N) * 16, *torch.randn(2, B, T, N)
        inputs = [v.requires_grad_() for v in made]

        def both_ways(scan, inputs=inputs):
            torch.autograd.grad(scan(*inputs)[0].sum(), inputs)
        times = race([lambda f=f: both_ways(f) for f in (mamba.scan_plain, mamba.scan)], rounds)
        plain, fast = map(statistics.median, times)
        print(f'B {B}, T {T}, E {E}, N {N}: plain {plain * 1e3:,.0f} ms, fast {fast * 1e3:.1f} ms, x {plain / fast:.0f}')


def gathered(layer, weight, x):
    """What PiecewisePolynomial computes, plainly: for every sample and every link the n weights in use are gathered, and summed
    by the basis.  weight: (O, I, P)."""
    first, values = layer.basis(x)                                                  # (B, I), (B, I, n)
    where = first[..., None] + torch.arange(layer.n)                                # (B, I, n)
    inputs = torch.arange(layer.in_features)[:, None]
    return (weight[:, inputs, where] * values).sum((-1, -2)).T                      # (O, B, I, n) -> (B, O)


def bench_links(flags):
    rounds = take(flags, 'rounds', 5)
    for inputs, outputs, n, segments, behind in ((16, 250, 2, 128, False), (16, 250, 2, 128, True), (250, 250, 3, 2, True)):
        layer = PiecewisePolynomial(inputs, outputs, n, segments)
        weight = layer.weight.detach().view(inputs, layer.P, outputs).permute(2, 0, 1).contiguous().requires_grad_()
        x = (2 * torch.rand(1000, inputs) - 1).requires_grad_(behind)       # a first layer's input is data, without a gradient
        torch.testing.assert_close(layer(x), gathered(layer, weight, x), atol=1e-4, rtol=1e-4)

        def once(layer, weight, x=x, behind=behind):
            torch.autograd.grad(layer(x).sum(), [weight, x][:1 + behind])
        both = [functools.partial(once, functools.partial(gathered, layer, weight), weight),
                functools.partial(once, layer, layer.weight)]
        # ten calls one behind the other, as in a training, where that takes less than half a minute
        plain, fast = map(statistics.median, race(both, rounds, calls=10 if layer.looks_up else 1))
        memory = [peak(f) / 2 ** 20 for f in both]
        print(f'{inputs} -> {outputs}, n {n}, {segments} segments, batch 1000{", x has a gradient" * behind}: gathered '
              f'{plain * 1e3:,.0f} ms and {memory[0]:,.0f} MiB, here {fast * 1e3:.1f} ms and {memory[1]:.1f} MiB: '
              f'x {plain / fast:.0f} the speed, 1/{memory[0] / memory[1]:.0f} of the memory')


def peak(function):
    """The most bytes that torch held at once for a call, on a CPU, beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = sorted((e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]'), key=lambda e: e.start_ns())
    return max(itertools.accumulate(e.nbytes() for e in events))


def race(functions, rounds, calls=1):
    """Seconds a call of each, the mean of `calls`, `rounds` times in turn, after two rounds that are not counted."""
    times = [[] for _ in functions]
    for i in trange(rounds + 2, leave=False, disable=None):
        for f, t in zip(functions, times, strict=True):
            began = time.perf_counter()
            for _ in range(calls):
                f()
            if i > 1:
                t.append((time.perf_counter() - began) / calls)
    return times


if __name__ == '__main__':
    words = sys.argv[1:]
    kinds = {'train': bench_train, 'scan': bench_scan, 'links': bench_links, 'generate': bench_generate}
    if not words or words[0] not in kinds:
        print(__doc__)
        sys.exit(0 if words and words[0] == '--help' else 1)
    kinds[words[0]](words[1:])
