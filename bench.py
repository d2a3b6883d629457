"""
Speed, as ratios of medians taken in turn in one process, since machines are noisy:

    python bench.py train config/shakespeare_gpt.py config/shakespeare_pacing.py [--rounds=20] [--name=value ...]
    python bench.py generate [--n_layer=6 --n_head=6 --n_embd=384 --block_size=256 --tokens=250]

train: tokens per second of whole training steps (forward, backward, clipping, optimizer), against the first config.
generate: GPT's key-value cache against reading the window anew for every token.
"""

import statistics
import sys
import time

import torch

import model as gpt
from harness import UserError, config, device, optim
from harness.generate import generate
from train import Loop


def take(flags, name, default):
    """Remove --name=value from flags.  Returns its value as an int."""
    for flag in [f for f in flags if f.startswith(f'--{name}=')]:
        flags.remove(flag)
        default = config.coerce(name, config.Raw(flag.split('=', 1)[1]), int)
    return default


def bench_train(words):
    files, flags = [w for w in words if not w.startswith('--')], [w for w in words if w.startswith('--')]
    rounds = take(flags, 'rounds', 20)
    if not files:
        raise UserError('name at least one config: python bench.py train config/shakespeare_gpt.py config/...')
    runs = []
    for file in files:
        s = config.load([file, *flags], Loop)
        torch.manual_seed(s.loop.seed)
        where = device.pick_device(s.loop.device, 0, 1)
        model = s.arch.Model(config.build(s.arch, {'vocab_size': 65} | s.model)).to(where)
        optimizers = optim.build(model, s.loop.optimizer, s.loop.learning_rate, (s.loop.beta1, s.loop.beta2),
                                 s.loop.weight_decay)
        x = torch.randint(model.config.vocab_size, (s.loop.batch_size, model.config.block_size + 1), device=where)

        def step(model=model, x=x, optimizers=optimizers):
            model(x[:, :-1], x[:, 1:])[1].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for o in optimizers:
                o.step()
                o.zero_grad()
            if x.is_cuda:
                torch.cuda.synchronize()
        runs.append((s.name, sum(p.numel() for p in model.parameters()), x[:, 1:].numel(), step))
    times = race([step for *_, step in runs], rounds, inner=5)
    rates = [tokens / statistics.median(t) for (_, _, tokens, _), t in zip(runs, times, strict=True)]
    for (name, parameters, tokens, _), rate in zip(runs, rates, strict=True):
        print(f'{name:28} {parameters:>12,} parameters  {tokens:>7,} tokens a step  {rate:>10,.0f} tokens/s  '
              f'x {rate / rates[0]:.2f}')


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
    times = race([lambda: run('cache'), lambda: run('anew')], 5, inner=1)
    cache, anew = (tokens / statistics.median(t) for t in times)
    print(f'{tokens} tokens, {shape}: cache {cache:,.0f} tokens/s, anew {anew:,.0f} tokens/s, x {cache / anew:.1f}; the same '
          f'text: {out["cache"] == out["anew"]}')


def race(functions, rounds, inner):
    """Seconds a call of each, `rounds` times in turn, after one round that is not counted."""
    times = [[] for _ in functions]
    for i in range(rounds + 1):
        for f, t in zip(functions, times, strict=True):
            began = time.perf_counter()
            for _ in range(inner):
                f()
            if i:
                t.append((time.perf_counter() - began) / inner)
    return times


if __name__ == '__main__':
    words = sys.argv[1:]
    if not words or words[0] not in ('train', 'generate'):
        print(__doc__)
        sys.exit(0 if words and words[0] == '--help' else 1)
    (bench_train if words[0] == 'train' else bench_generate)(words[1:])
