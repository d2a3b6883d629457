"""
Speed, as ratios of medians taken in turn in one process, since machines are noisy:

    python bench.py train config/shakespeare_gpt.py config/shakespeare_pacing.py [--rounds=50] [--name=value ...]
    python bench.py generate [--n_layer=6 --n_head=6 --n_embd=384 --block_size=256 --tokens=250]

train: whole training steps (forward, backward, clipping, optimizer) of each config, against the first one's.  A config in
quotes may have settings of its own behind it; --out=FILE.json keeps the figures.
generate: GPT's key-value cache against reading the window anew for every token.
"""

import datetime
import json
import shlex
import statistics
import sys
import time

import torch
from tqdm import trange

import model as gpt
from harness import UserError, config, device, optim, report
from harness.files import atomic
from harness.generate import generate
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


def bench_generate(flags):
    shape = {k: take(flags, k, v) for k, v in (('n_layer', 6), ('n_head', 6), ('n_embd', 384), ('block_size', 256))}
    tokens = take(flags, 'tokens', 250)
    if flags:
        raise UserError(f"cannot read '{flags[0]}': python bench.py --help")
    torch.manual_seed(0)
    model = gpt.Model(gpt.Config(vocab_size=65, bias=False, **shape)).eval()

    class Anew(torch.nn.Module):            # the same weights, without step()
        def __init__(self):
            super().__init__()
            self.inner, self.config = model, model.config

        @torch.no_grad()
        def forward(self, x):
            return model.lm_head(model.trunk(x)[:, -1:]), None
    prompt, out = torch.zeros(1, 1, dtype=torch.long), {}

    def run(which):
        out[which] = [int(i) for i in generate(model if which == 'cache' else Anew(), prompt, tokens, temperature=0)]
    times = race([lambda: run('cache'), lambda: run('anew')], 5)
    cache, anew = (tokens / statistics.median(t) for t in times)
    print(f'{tokens} tokens, {shape}: cache {cache:,.0f} tokens/s, anew {anew:,.0f} tokens/s, x {cache / anew:.1f}; the same '
          f'text: {out["cache"] == out["anew"]}')


def race(functions, rounds):
    """Seconds a call of each, `rounds` times in turn, after two rounds that are not counted."""
    times = [[] for _ in functions]
    for i in trange(rounds + 2, leave=False, disable=None):
        for f, t in zip(functions, times, strict=True):
            began = time.perf_counter()
            f()
            if i > 1:
                t.append(time.perf_counter() - began)
    return times


if __name__ == '__main__':
    words = sys.argv[1:]
    if not words or words[0] not in ('train', 'generate'):
        print(__doc__)
        sys.exit(0 if words and words[0] == '--help' else 1)
    (bench_train if words[0] == 'train' else bench_generate)(words[1:])
