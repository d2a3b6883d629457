"""
Speed, as ratios of medians that are measured in turn in one process, because machines are noisy:

    python bench.py train config/shakespeare_gpt.py config/shakespeare_pacing.py [--rounds=50] [--name=value ...]
    python bench.py scan [--rounds=3]
    python bench.py links [--rounds=5]
    python bench.py generate config/shakespeare_gpt_gpu.py ... [--tokens=250] [--name=value ...]
    python bench.py draft out/speedrun_1 out/shakespeare_gpt ... [--tokens=300]
    python bench.py windows config/shakespeare_gpt.py ... [--seconds=5] [--name=value ...]
    python bench.py memory config/gpt2_124M.py ... [--ranks=8] [--name=value ...]
    python bench.py gpu [--only=speed,recipe]

A config in quotes may have its own settings.  --out=FILE.json writes a record, which python -m race.tables puts into docs/.

train: whole training steps (forward, backward, clipping, optimizer) of each config, compared with the first one, on random
tokens, or on the data set of a config that reads no text.
scan: Mamba's scan, forward and backward, against the plain loop.
links: a layer of piecewise polynomials, forward and backward, against a plain gather of the weights in use; and the memory.
generate: the time to the first token, tokens per second with step() and without, and whether a token costs more as the text
grows; with untrained weights (sample.py --benchmark does the same with a trained run).  Then tokens per second in the number
formats of sample.py, in turn, for one text and for eight.
draft: tokens per second of the first run with each of the others as its draft (sample.py --draft), and without, in turn.
windows: what a token costs, in time and memory, by window: one window forward, one forward and backward, and one more token
after a full window.  A window that would take more than --seconds, or half of the memory, as the shorter ones grow, is left
out.  python -m race.page draws the record.
memory: what a training step of each config takes, counted on tensors without numbers: weights, gradients and AdamW's state, and
each window of a micro-step in bfloat16, with and without checkpointing; and on each of --ranks GPUs with --shard.
gpu: all that waits for a machine with CUDA (extras/gpu.py), in under 20 minutes; repeated, it measures what its record lacks.
"""

import contextlib
import copy
import datetime
import functools
import itertools
import json
import os
import re
import shlex
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import trange

from harness import Arguments, UserError, command, config, device, formats, machine_memory, runs, shard, speculate
from harness.arch import build
from harness.data import open_data
from harness.generate import benchmark, describe
from race import page, tables
from race.entrants import count_flops, split_words
from race.processes import commit
from sample import load_runs
from train import TrainConfig, Trainer


def arguments(argv):
    """The options of one of the commands; .settings: --name=value of all configs."""
    parser = Arguments(description=__doc__)
    parts = 'train | scan | links | generate | draft | windows | memory | gpu'
    commands = parser.add_subparsers(dest='command', required=True, metavar=parts)
    options = {'train': ('rounds', 50), 'scan': ('rounds', 3), 'links': ('rounds', 5), 'generate': ('tokens', 250),
               'draft': ('tokens', 300), 'windows': ('seconds', 5), 'memory': ('ranks', 8)}
    for name, (option, default) in options.items():
        sub = commands.add_parser(name)
        sub.add_argument(f'--{option}', type=int, default=default, help=f'default {default}')
        if name in ('train', 'generate', 'windows', 'memory'):
            sub.add_argument('configs', nargs='*', help='config files; in quotes, with settings of their own behind them')
        if name == 'draft':
            sub.add_argument('run', help='the run that writes')
            sub.add_argument('drafts', nargs='+', help='smaller runs that draft for it')
        sub.add_argument('--out', help='a record of the result, such as results/speed.json')
    sub = commands.add_parser('gpu')
    sub.add_argument('--only', help='stages of extras/gpu.py, with commas between them')
    sub.add_argument('--out', help='the record (default: results/gpu_NAME.json, by the name of the GPU)')
    args, rest = parser.parse_known_args(argv)
    if rest and args.command in ('scan', 'links', 'draft', 'gpu'):
        raise UserError(f'bench.py {args.command} has no option {rest[0]}: see --help')
    args.settings = [w for w in rest if w.startswith('--')]
    if late := [w for w in rest if not w.startswith('--')]:         # configs behind a setting
        args.configs += late
    if getattr(args, 'configs', None) == []:
        raise UserError(f'name at least one config: python bench.py {args.command} config/shakespeare_gpt.py')
    option = options.get(args.command, [''])[0]
    if option and getattr(args, option) < 1:
        raise UserError(f'--{option}={getattr(args, option)} must be at least 1')
    if getattr(args, 'out', None) and (Path(args.out).is_dir() or not Path(args.out).absolute().parent.is_dir()):
        raise UserError(f'--out={args.out} cannot be written: name a file in a folder that exists')
    return args


def load(text, settings):
    """(Settings, words) of a config with its own settings; those of all configs come last."""
    words = split_words(text)
    return config.load([*words, *settings], TrainConfig), words


class RandomText:
    """Random tokens in the place of a data set, the same at every step, for Trainer.step."""
    uneven = False

    def train_indices(self, count, block_size, seed, step):
        return np.arange(count)

    def train_batch(self, indices, model, cfg, step):
        c, generator = model.config, torch.Generator().manual_seed(0)
        x = torch.randint(c.vocab_size, (len(indices), model.memory + c.block_size + 1), generator=generator)
        return x[:, :-1], x[:, -c.block_size:]


def bench_train(args):
    rows, steps = [], []
    for text in args.configs:
        s, words = load(text, args.settings)
        machine = device.setup(s.train.device, s.train.dtype, s.train.compile)
        torch.manual_seed(s.train.seed)
        if s.arch.Model.modality in ('text', 'masked text'):
            data, model = RandomText(), build(s.arch, {'vocab_size': 65} | s.model)
        else:       # what an example is depends on the data set
            runs.prepare(s)
            data = open_data(s.train.dataset, modality=s.arch.Model.modality, patch=s.train.patch)
            model = runs.new_model(s, data)
        trainer = Trainer(s.train, model, data, machine)
        machine.choose_format(s.train.dtype, 'auto', model, lambda trainer=trainer: [t[0] for t in trainer.batch(0)])

        def step(trainer=trainer, machine=machine):
            trainer.step(0, 0.0)        # at a learning rate of 0 nothing diverges
            machine.synchronize()
        rows.append({'name': ' '.join([s.name, *(w.lstrip('-') for w in words[1:])]), 'windows': trainer.examples,
                     'parameters': sum(p.numel() for p in model.parameters()), 'block_size': model.config.block_size})
        steps.append(step)
    times = in_turn(steps, args.rounds)
    return machine.describe(), {'speeds': [row | {'seconds': statistics.median(t), 'times': t}
                                           for row, t in zip(rows, times, strict=True)]}


def bench_generate(args):
    rows = []
    for text in args.configs:
        s, words = load(text, args.settings)
        if s.arch.Model.modality != 'text':
            raise UserError(f'{s.name}: {s.arch.name}.py does not continue a text: choose a language model')
        torch.manual_seed(s.train.seed)
        model = build(s.arch, {'vocab_size': 65} | s.model).eval()
        machine = device.setup(s.train.device, 'float32', compile=False)
        model.to(machine.device)
        found = benchmark(model, torch.zeros(1, 1, dtype=torch.long), args.tokens)
        name = ' '.join([s.name, *(w.lstrip('-') for w in words[1:])])
        print(f'{name}: {describe(found)}', flush=True)
        row = {'config': name, 'texts': 1, 'without step()': found['recompute'] or found['rate']}
        one, eight = compare_formats(model, args.tokens) if model.step else ({}, {})
        rows += [row | one, *([{'config': name} | eight] if eight else [])]
    return machine.describe(), {'rows': rows}


@torch.no_grad()
def compare_formats(model, rounds):
    """The speed of step() of a model in the formats of sample.py, in turn: a dict for one text and one for eight, of tokens per
    second by format.  Each format is one of formats.cast(); 'as trained' is float32 as the layers of torch keep it."""
    where, steps = next(model.parameters()).device, {}

    def step(model, token, state):
        state[0] = model.step(token, state[0])[1]
        if where.type == 'cuda':
            torch.cuda.synchronize()
    names = ['as trained', 'float32', *['bfloat16'] * (where.type == 'cuda' or device.has_bfloat16()),
             *['int8'] * formats.has_int8(where)]
    for name in names:
        made = copy.deepcopy(model)
        if name != 'as trained':
            formats.cast([made], name, where)
        for B in (1, 8):
            token = torch.zeros(B, 1, dtype=torch.long, device=where)
            steps[B, name] = functools.partial(step, made, token, [made.init_state(B)])
    rates = {key: key[0] / statistics.median(t) for key, t in zip(steps, in_turn([*steps.values()], rounds), strict=True)}
    return [{'texts': B} | {name: rates[B, name] for name in names} for B in (1, 8)]


def bench_draft(args):
    rows, machine = [], device.setup('cpu', 'float32', compile=False)
    for dtype in ['float32', *['bfloat16'] * device.has_bfloat16()]:
        for name in args.drafts:
            models, tokenizer, _ = load_runs([args.run, name])
            speculate.require_text(models, [args.run, name])
            formats.cast(models, dtype, machine.device)
            prompt = torch.tensor([tokenizer.begin()])
            found = speculate.benchmark_draft(*models, prompt, args.tokens, 0.8, 50, n_vocab=tokenizer.n_vocab)
            print(f'{name}, {dtype}: {speculate.describe_draft(found)}', flush=True)
            rows.append({'draft': Path(name).name, 'numbers': dtype, 'tokens a step': found['tokens a step'],
                         'without, tokens/s': found['without'], 'with, tokens/s': found['with'],
                         'ratio': found['with'] / found['without']})
    return machine.describe(), {'rows': rows}


MANY = 64       # windows


def bench_memory(args):
    from torch.distributed._tools.mem_tracker import MemTracker

    def peak_of(s, rows, checkpointing):
        """(model, the most bytes of a forward and a backward pass)."""
        with FakeTensorMode():
            model = s.arch.Model(s.arch.Config(**{'vocab_size': 65} | s.model))
            if checkpointing:
                shard.recompute(model)
            x, tracker = torch.zeros(rows, model.memory + model.config.block_size, dtype=torch.long), MemTracker()
            tracker.track_external(model)
            with tracker:
                with torch.autocast('cpu', torch.bfloat16):
                    loss = model(x, x[:, -model.config.block_size:])[1]
                loss.backward()
            return model, sum(v['Total'] for v in tracker.get_tracker_snapshot('peak').values())
    rows = []
    for text in args.configs:
        s, words = load(text, args.settings)
        if s.arch.Model.modality not in ('text', 'masked text'):
            raise UserError(f'{s.name}: {s.arch.name}.py reads no text: choose a language model')
        for checkpointing in (False, True):
            # of so many windows that the most is needed while they are read, and not when all gradients are there
            (model, few), (_, many) = (peak_of(s, n, checkpointing) for n in (MANY, 2 * MANY))
            N, window = sum(p.numel() for p in model.parameters()), (many - few) / MANY
            copies = max(0, 2 * few - many - 4 * N)     # but for the weights: their copies in bfloat16, kept by autograd
            inside = [sum(p.numel() for p in block.parameters()) for block in shard.blocks(model)]
            # a rank holds its part of weights, gradients and two averages, and gathers two blocks and what is outside of them
            held, gathered = 16 * N / args.ranks, 8 * (N - sum(inside) + 2 * max(inside, default=0))
            sizes = {'states': 16 * N, 'copies': copies, 'a window': window, 'one GPU': 16 * N + copies + window,
                     f'each of {args.ranks}': held + gathered + copies + window}
            rows.append({'config': ' '.join([s.name, *(w.lstrip('-') for w in words[1:])]),
                         'checkpointing': 'yes' if checkpointing else 'no', 'parameters': N,
                         **{f'{name}, GiB': v / 2 ** 30 for name, v in sizes.items()},
                         'GFLOPs a token': flops_per_token(s) / 1e9})
    return f'counted, not measured; torch {torch.__version__}', {'rows': rows}


def flops_per_token(s):
    """The FLOPs of forward and backward of a text model, without those of computing a block twice."""
    with FakeTensorMode():
        model = s.arch.Model(s.arch.Config(**{'vocab_size': 65} | s.model))
        x = torch.zeros(1, model.memory + model.config.block_size, dtype=torch.long)
        return count_flops(lambda: model(x, x[:, -model.config.block_size:])[1].backward()) / model.config.block_size


def bench_gpu(args):
    from extras import gpu
    stages = args.only.split(',') if args.only else list(gpu.STAGES)
    if wrong := [name for name in stages if name not in gpu.STAGES]:
        raise UserError(f"--only={args.only}: unknown stage '{wrong[0]}': choose from {', '.join(gpu.STAGES)}")
    if not torch.cuda.is_available():
        raise UserError('bench.py gpu measures on a GPU, but torch finds none with CUDA here: run it on a machine that has one')
    name = re.sub(r'\W+', '_', torch.cuda.get_device_name().lower())
    path = Path(args.out or f'results/gpu_{name}.json')
    try:
        gpu.run(gpu.Plan(), stages, path, f'python bench.py gpu --out={path}')
    finally:
        if path.exists():
            print(tables.gpu(json.loads(path.read_text())))


WINDOWS = 64, 256, 1024, 4096, 16384


def passes(model, T):
    """Yields (name, function, tokens per call, bytes that are kept between calls) for windows of T tokens of a text model."""
    x = torch.randint(model.config.vocab_size, (1, model.memory + T), generator=torch.Generator().manual_seed(0))

    def training():
        model(x, x[:, -T:])[1].backward()
        model.zero_grad()
    model.eval()
    yield 'forward', torch.no_grad()(lambda: model(x)), T, 0
    model.train()
    yield 'training', training, T, 0
    model.eval()
    if model.bidirectional:
        return
    state = None
    if model.step:
        with torch.no_grad():
            state = model.step(x[:, -T:][:, 16:], model.init_state(1))[1]

    @torch.no_grad()
    def generation():
        nonlocal state
        if state is None:
            model(x)
        else:
            state = model.step(x[:, :1], state)[1]
    yield 'generation', generation, 1, size(state)


def size(state):
    """The bytes of the tensors in a state of step()."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    inside = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(size, inside))


def affordable(row, T, seconds):
    """Whether a call at window T will take at most `seconds` and half of the memory, if the cost grows on as it did."""
    calls = [w if row['kind'] != 'generation' else 1 for w in row['windows']]
    for limit, costs in ((seconds, [s * n for s, n in zip(row['seconds'], calls, strict=True)]),
                         (machine_memory() / 2, [b * w for b, w in zip(row['bytes'], row['windows'], strict=True)])):
        if costs and costs[-1] * (costs[-1] / costs[-2] if len(costs) > 1 else 1) > limit:
            return False
    return WINDOWS[len(row['windows'])] == T        # no shorter one was left out


def bench_windows(args):
    costs, machine = {}, device.setup('cpu', 'float32', compile=False)
    for text in args.configs:
        s, words = load(text, args.settings)
        if s.arch.Model.modality not in ('text', 'masked text'):
            raise UserError(f'{s.name}: {s.arch.name}.py reads no text: choose a language model')
        name = ' '.join([s.name, *(w.lstrip('-') for w in words[1:])])
        for T in WINDOWS:
            torch.manual_seed(s.train.seed)
            model = build(s.arch, {'vocab_size': 65} | s.model | {'block_size': T})
            for kind, function, tokens, kept in passes(model, T):
                row = costs.setdefault((name, kind), {'name': name, 'arch': s.arch.name, 'kind': kind, 'windows': [],
                                                      'seconds': [], 'bytes': []})
                if not affordable(row, T, args.seconds):
                    print(f'{name}, window {T}: {kind} is left out: it would take more than {args.seconds} s, or half of the '
                          f'memory', flush=True)
                    if kind == 'forward':           # which a state for generation needs
                        break
                    continue
                used, times = peak(function), []
                while len(times) < 12 and sum(times) < 0.5:
                    began = time.perf_counter()
                    function()
                    times.append(time.perf_counter() - began)
                row['windows'].append(T)
                row['seconds'].append(statistics.median(times) / tokens)
                row['bytes'].append((kept + used) / T)
    return machine.describe(), {'costs': list(costs.values())}


SCANS = (8, 256, 128, 16), (4, 1024, 128, 16)       # windows, tokens, channels, states


def bench_scan(args):
    import mamba
    rows, machine = [], device.setup('cpu', 'float32', compile=False)
    for B, T, E, N in SCANS:
        tensors = torch.randn(B, T, E), torch.rand(B, T, E) / 10, -torch.rand(E, N) * 16, *torch.randn(2, B, T, N)
        inputs = [v.requires_grad_() for v in tensors]

        def both_ways(scan, inputs=inputs):
            torch.autograd.grad(scan(*inputs)[0].sum(), inputs)
        times = in_turn([lambda f=f: both_ways(f) for f in (mamba.scan_plain, mamba.scan)], args.rounds)
        plain, fast = map(statistics.median, times)
        rows.append({'windows': B, 'tokens': T, 'channels': E, 'states': N, 'plain, ms': plain * 1e3, 'ours, ms': fast * 1e3,
                     'ratio': plain / fast})
    return machine.describe(), {'rows': rows}


def gathered(layer, weight, x):
    """PiecewisePolynomial in its plain form: for every sample and every edge, the n weights in use times the basis, summed.

    x: (B, I).  weight: (O, I, P).  Returns (B, O)."""
    first, values = layer.basis(x)                                                  # (B, I), (B, I, n)
    where = first[..., None] + torch.arange(layer.n)                                # (B, I, n)
    inputs = torch.arange(layer.in_features)[:, None]
    return (weight[:, inputs, where] * values).sum((-1, -2)).T                      # (O, B, I, n) -> (B, O)


# inputs, outputs, n, segments, whether the input has a gradient: that of a first layer has none
LAYERS = (16, 250, 2, 128, False), (16, 250, 2, 128, True), (250, 250, 3, 2, True)


def bench_links(args):
    from piecewise import PiecewisePolynomial
    rows, machine = [], device.setup('cpu', 'float32', compile=False)
    for inputs, outputs, n, segments, hidden in LAYERS:
        layer = PiecewisePolynomial(inputs, outputs, n, segments)
        weight = layer.weight.detach().view(inputs, layer.P, outputs).permute(2, 0, 1).contiguous().requires_grad_()
        x = (2 * torch.rand(1000, inputs) - 1).requires_grad_(hidden)
        torch.testing.assert_close(layer(x), gathered(layer, weight, x), atol=1e-4, rtol=1e-4)

        def once(layer, weight, x=x, hidden=hidden):
            torch.autograd.grad(layer(x).sum(), [weight, x][:1 + hidden])
        both = [functools.partial(once, functools.partial(gathered, layer, weight), weight),
                functools.partial(once, layer, layer.weight)]
        # ten calls in a row, as in training, where that takes less than half a minute
        plain, fast = map(statistics.median, in_turn(both, args.rounds, calls=10 if layer.sparse else 1))
        memory = [peak(f) / 2 ** 20 for f in both]
        rows.append({'inputs': inputs, 'outputs': outputs, 'n': n, 'segments': segments,
                     'gradient of the input': 'yes' if hidden else 'no', 'gathered, ms': plain * 1e3, 'ours, ms': fast * 1e3,
                     'ratio': plain / fast, 'gathered, MiB': memory[0], 'ours, MiB': memory[1]})
    return machine.describe(), {'rows': rows}


@contextlib.contextmanager
def silenced():
    """No output from C++ on stdout and stderr: the profiler prints lines of its own."""
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, 'w') as null:
        for number in (1, 2):
            os.dup2(null.fileno(), number)
        try:
            yield
        finally:
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)


def peak(function):
    """The most bytes that torch allocated during a call on a CPU, above what it held before."""
    with silenced(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = sorted((e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]'), key=lambda e: e.start_ns())
    return max(itertools.accumulate(e.nbytes() for e in events))


def in_turn(functions, rounds, calls=1):
    """Seconds per call of each function, the mean of `calls`, `rounds` times in turn, after two rounds of warm-up."""
    times = [[] for _ in functions]
    for i in trange(rounds + 2, leave=False, disable=None):
        for f, t in zip(functions, times, strict=True):
            began = time.perf_counter()
            for _ in range(calls):
                f()
            if i > 1:
                t.append((time.perf_counter() - began) / calls)
    return times


def main(argv):
    args = arguments(argv)
    if args.command == 'gpu':
        return bench_gpu(args)
    machine, found = {'train': bench_train, 'scan': bench_scan, 'links': bench_links, 'generate': bench_generate,
                      'draft': bench_draft, 'windows': bench_windows, 'memory': bench_memory}[args.command](args)
    print(tables.measured(found))
    if args.out:
        words = ['python', 'bench.py', *(w for w in argv if w not in ('--out', args.out, f'--out={args.out}'))]
        page.write_record({'command': shlex.join(words), 'date': datetime.date.today().isoformat(), 'machine': machine,
                           'commit': commit()} | found, args.out)


if __name__ == '__main__':
    command(main)
