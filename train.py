"""
Train any of the architectures, on one device or many:

    python train.py                                                 # a small GPT on Shakespeare, by character
    python train.py config/shakespeare_pacing.py --max_iters=500
    torchrun --nproc_per_node=4 train.py config/gpt2_124M.py
    python train.py config/shakespeare_pacing.py --resume

- A step is the same step on one process and on many: tokens_per_step is shared out, the windows depend on (seed, step).
- A run that was stopped and resumed ends with the same weights, to the bit on a CPU, as one that was not.
- Validation reads fixed windows, the same for every architecture.
"""

import contextlib
import dataclasses
import json
import math
import os
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from harness import CENTERED, LEAKS, UserError, checkpoint, config, data, device, optim, runs
from harness.files import atomic
from harness.generate import generate


@dataclass
class Loop:
    arch: str = 'model'                     # the model file: model, pacing, or one of your own
    dataset: str = 'shakespeare_char'       # data/<dataset>, made by prepare/<dataset>.py when missing
    out_dir: str = ''                       # where the run is written (empty: out/<name of the config file>)
    init_from: str = 'scratch'              # scratch, a checkpoint or run folder, or a published model such as gpt2
    last_only: bool = False                 # train on the token after each window alone, as PACING's seed did with its GPT
    leaking_split: bool = False             # split windows, not text, at random, as it did: trains on the validation text
    resume: bool = False                    # go on from out_dir/ckpt.pt
    overwrite: bool = False                 # replace the run that out_dir holds
    dry_run: bool = False                   # print parameters, groups and memory, and stop
    eval_only: bool = False                 # print the validation loss, and stop
    forget: float = 0.1                     # the share of steps in which a model with a memory does without it
    # the budget: whichever ends first
    max_iters: int = 2000                   # steps (0: no limit)
    max_seconds: float = 0.0                # seconds of training, evaluation not counted (0: no limit)
    batch_size: int = 12                    # windows that one device takes at once, at most
    tokens_per_step: int = 0                # tokens in a step, over all devices and micro-steps (0: batch_size windows)
    # the optimizer
    optimizer: str = 'muon'                 # muon, adamw, lion, sgd, or sparse_lion: no gradient, no change
    learning_rate: float = 4e-3             # at its highest
    min_lr: float = 4e-4                    # at the end of the schedule; the least of plateau
    schedule: str = 'cosine'                # cosine, trapezoid, constant or plateau, after the warm-up
    warmup_iters: int = 100                 # steps of linear warm-up
    cooldown: float = 0.3                   # trapezoid: the share of the run in which the rate falls
    patience: int = 10                      # plateau: evaluations without a lower training loss before the rate falls
    factor: float = 0.5                     # plateau: what it is then multiplied by
    weight_decay: float = 0.1               # of the weights of matrix products and convolutions only
    beta1: float = 0.9                      # momentum
    beta2: float = 0.95                     # adamw, lion: decay of the second average
    grad_clip: float = 1.0                  # largest norm of the gradient (0: no clipping)
    # what is measured and logged
    eval_interval: int = 250                # steps between evaluations, each of which writes a checkpoint
    eval_windows: int = 1024                # windows of validation text, or examples of a task (0: all that fit side by side)
    stop_after: int = 0                     # evaluations without a new lowest val_loss, after which a run ends (0: never)
    log_interval: int = 10                  # steps between rows of metrics.csv
    sample_tokens: int = 300                # tokens to write when the run is over
    tensorboard: bool = False               # log to TensorBoard too
    wandb_log: bool = False                 # log to Weights & Biases too
    wandb_project: str = 'nanorivals'       # its project
    # the machine
    device: str = 'auto'                    # auto, cpu, mps, cuda or cuda:N
    dtype: str = 'auto'                     # auto, float32, bfloat16 or float16: of matrix products
    compile: bool | str = 'auto'            # torch.compile: True, False, or auto (on CUDA only)
    seed: int = 1337                        # of the weights, the batches and dropout

    def __post_init__(self):
        if self.schedule not in ('cosine', 'trapezoid', 'constant', 'plateau'):
            raise UserError(f"schedule='{self.schedule}' is unknown: cosine, trapezoid, constant and plateau are")
        if not (self.max_iters > 0 or self.max_seconds > 0):
            raise UserError('there is no budget: set max_iters or max_seconds above 0')
        if self.optimizer not in optim.STATES:
            raise UserError(f"optimizer='{self.optimizer}' is unknown: {', '.join(optim.STATES)} are")
        for name in ('batch_size', 'eval_interval', 'log_interval'):
            if getattr(self, name) < 1:
                raise UserError(f'{name}={getattr(self, name)} must be at least 1')
        for name in ('max_iters', 'max_seconds', 'tokens_per_step', 'learning_rate', 'min_lr', 'warmup_iters', 'seed',
                     'weight_decay', 'grad_clip', 'eval_windows', 'stop_after', 'sample_tokens', 'beta1', 'beta2', 'patience'):
            if getattr(self, name) < 0:
                raise UserError(f'{name}={getattr(self, name)} must not be negative')
        for name, limit in (('beta1', 1), ('beta2', 1), ('seed', 2 ** 32)):
            if getattr(self, name) >= limit:
                raise UserError(f'{name}={getattr(self, name)} must be below {"2 ** 32" if limit > 1 else 1}')
        if not 0 <= self.forget <= 1:
            raise UserError(f'forget={self.forget} must be a share of the steps, from 0 to 1')
        if not 0 < self.cooldown <= 1:
            raise UserError(f'cooldown={self.cooldown} must be a share of the run, above 0 and at most 1')
        if not 0 < self.factor < 1:
            raise UserError(f'factor={self.factor} must be above 0 and below 1: the rate is multiplied by it')


def learning_rate(loop, step, progress, left=1.0):
    """The rate of a step; progress: how much of the budget is spent, 0 to 1; left: the share that a plateau leaves of it."""
    rate = loop.learning_rate
    if loop.schedule == 'cosine':
        rate = loop.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (rate - loop.min_lr)
    elif loop.schedule == 'trapezoid':
        rate = loop.min_lr + min(1.0, (1 - progress) / loop.cooldown) * (rate - loop.min_lr)
    elif loop.schedule == 'plateau':
        rate *= left
    return rate * min(1.0, (step + 1) / max(1, loop.warmup_iters))


def share_out(loop, block_size, world):
    """(micro-steps, windows in each) for every rank, so that a step takes tokens_per_step tokens over all of them."""
    total = loop.tokens_per_step or loop.batch_size * block_size
    windows, left = divmod(total, block_size)
    mine, uneven = divmod(windows, world)
    if left or uneven or not mine:
        unit = block_size * world
        near = [n for n in (total // unit * unit, (total // unit + 1) * unit) if n]
        raise UserError(f'tokens_per_step={total} cannot be shared equally by {world} rank{"s" * (world > 1)} of windows '
                        f'of {block_size} tokens: take a multiple of {block_size} x {world} = {unit}, such as '
                        f'{" or ".join(map(str, near))}')
    if mine > loop.batch_size and mine % loop.batch_size:
        raise UserError(f'tokens_per_step={total} gives each of {world} ranks {mine} windows of {block_size} tokens, '
                        f'which batch_size={loop.batch_size} does not divide: take a batch_size that divides {mine}')
    micro_steps = max(1, mine // loop.batch_size)
    return micro_steps, mine // micro_steps


@torch.no_grad()
def evaluate(model, text, starts, block_size, batch_size, machine, split='val'):
    """What the model's answers are worth: {'val_loss', ...}, see score() and total() of the data, TextData or TaskData.  Each
    rank takes its share of the windows, or examples, `starts`."""
    model.eval()
    parts = []
    mine = starts[machine.rank::machine.world]
    for i in range(0, len(mine), batch_size):
        rows = text.rows(split, mine[i:i + batch_size], block_size, getattr(model, 'memory', 0))
        x, y = (t.to(machine.device) for t in rows)
        with machine.autocast():
            logits, _ = model(x)                                        # (B, T or 1, V), or (B, O) of a task
        parts.append(text.score(logits, y))
    model.train()
    return text.total(machine.gather(parts))


def look_at_test(model, text, loop, out_dir, machine):
    """The best weights of a run that is over, judged on the test split: once, into test.json.  Returns what to say."""
    content = checkpoint.load(out_dir / 'best.pt')
    checkpoint.load_weights(model, content, out_dir / 'best.pt')
    alone = dataclasses.replace(machine, rank=0, world=1)
    examples = np.arange(len(text.splits['test'][0]))
    found = evaluate(model, text, examples, model.config.block_size, loop.batch_size, alone, 'test')
    found = {'test_loss' if k == 'val_loss' else k: v for k, v in found.items()}
    with atomic(out_dir / 'test.json', 'w') as f:
        json.dump({'step': content['step'], 'examples': len(examples), **found, 'guessing': text.guess('test')}, f, indent=1)
    return text.told(found, 'test')


def run(settings, machine, argv):
    loop = settings.loop
    out_dir = Path(loop.out_dir or f'out/{settings.name}')
    if machine.local_rank == 0:
        runs.prepare(settings)
    machine.all_reduce([0])                             # the other ranks wait for the data
    text = data.open_data(loop.dataset, loop.leaking_split)         # or the examples of a task
    if not (loop.dry_run or loop.eval_only):
        runs.claim(loop, out_dir)
    torch.manual_seed(loop.seed)
    content = {}
    if loop.resume:
        model, content = runs.resumed(settings, text, out_dir)
    else:
        model = runs.new_model(settings, text)
    model.to(machine.device)
    block_size = model.config.block_size
    memory = getattr(model, 'memory', 0)                # tokens before the window that the model reads, too
    logged = getattr(model, 'logged', dict)             # what it has to say beside its loss
    starts = text.val_starts(loop.eval_windows, block_size)
    micro_steps, rows = share_out(loop, block_size, machine.world)
    tokens_per_step = micro_steps * rows * machine.world * block_size
    if machine.first:
        every, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad or frozen) for frozen in (True, False))
        print(f'{loop.arch}: {every:,} parameters' + f', of which {trained:,} are trained' * (trained < every) +
              f'; {tokens_per_step:,} tokens a step'
              f' ({machine.world} rank{"s" * (machine.world > 1)} x {micro_steps} micro-step{"s" * (micro_steps > 1)} x '
              f'{rows} {text.unit} of {block_size}); {text.what}: {text.meta["source"]["name"]}')
        for mark, said in (('leaks', LEAKS), ('centered', CENTERED)):
            if getattr(model, mark, False):
                print(said)
        if loop.leaking_split:
            print('leaking_split: the validation windows overlap those of training, so no loss of this run is evidence')
    if loop.dry_run:
        if machine.first:
            print(optim.describe(model, loop.optimizer, tokens_per_step))
        return
    # `model` holds the weights and is what is saved; `fast` computes; `net` computes and shares gradients out
    fast = torch.compile(model) if machine.compile else model
    if loop.eval_only:
        losses = evaluate(fast, text, starts, block_size, loop.batch_size, machine)
        if machine.first:
            print(text.told(losses))
        return
    net = fast
    if machine.world > 1:
        net = DistributedDataParallel(fast, device_ids=[machine.device] if machine.device.type == 'cuda' else None)
    optimizers = optim.build(model, loop.optimizer, loop.learning_rate, (loop.beta1, loop.beta2), loop.weight_decay)
    scaler, plateau = machine.scaler(), optim.Plateau(loop)
    begun = (('step', 0), ('seconds', 0.0), ('best', math.inf), ('stale', 0))       # stale: evaluations since the best
    step, seconds, best, stale = (content.get(k, d) for k, d in begun)
    if loop.resume:
        for o, state in zip(optimizers, content['optimizers'], strict=True):
            o.load_state_dict(state)
        scaler.load_state_dict(content['scaler'])
        plateau.load_state_dict(content.get('plateau', {}))
        changed = {k: v for k, v in dataclasses.asdict(loop).items()
                   if content['loop'].get(k, v) != v and k not in ('resume', 'overwrite')}
        if machine.first:
            print(f'resumed at step {step}' + (f'; changed: {changed}' if changed else ''))
    resumed_at = content.get('step')
    evaluated, content = content.get('evaluated', resumed_at), None         # the step of the last evaluation
    described = {'arch': loop.arch, 'config': dataclasses.asdict(model.config), 'loop': dataclasses.asdict(loop),
                 'data': {k: text.meta.get(k) for k in ('fingerprint', 'source', 'tokenizer')}}
    log = runs.open_run(loop, out_dir, described, resumed_at, [*text.columns, *logged()]) if machine.first else None

    def save(name, **more):
        if machine.first:
            checkpoint.save(out_dir / name, {**described, 'model': model.state_dict(), 'step': step, 'best': best, **more})

    # one signal finishes the step and saves; a second one kills
    told = []

    def on_signal(number, frame):
        told.append(number)
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)

    def diverged(which, loss, at):
        if machine.first:
            log.write(step, tokens=step * tokens_per_step, seconds=seconds, **{f'{which}_loss': loss})
            log.close()
        which = {'val': 'validation', 'train': 'training'}[which]
        return UserError(f'the {which} loss became {loss} at step {at}: {out_dir}/ckpt.pt holds the last good weights; try a '
                         f'smaller learning_rate')

    pending = []                # (loss, gradient norm) of the steps since the last row, still on the device
    since = (step, seconds)

    def flush():
        """The row of the steps since the last one.  Raises UserError at a loss that is not finite."""
        nonlocal since
        if not pending:
            return {}
        losses, norms = torch.stack([torch.stack(p) for p in pending]).T.tolist()
        losses = [v / machine.world for v in machine.all_reduce(losses)]
        for i, value in enumerate(losses):
            if not math.isfinite(value):
                raise diverged('train', value, step - len(losses) + i)
        plateau.watch(losses)
        row = {'tokens': step * tokens_per_step, 'seconds': seconds, 'lr': lr, 'grad_norm': norms[-1],
               'tokens_per_second': (step - since[0]) * tokens_per_step / max(seconds - since[1], 1e-9),
               'train_loss': sum(losses) / len(losses)}
        pending.clear()
        since = (step, seconds)
        return row

    bar = tqdm(total=loop.max_iters or None, initial=step, unit='step', disable=None if machine.first else True,
               dynamic_ncols=True, leave=False)
    lr, row = 0.0, {}
    while True:
        stop, seconds = machine.all_reduce([len(told), seconds], 'max')     # the ranks end on the same step
        progress = max(step / loop.max_iters if loop.max_iters else 0, seconds / loop.max_seconds if loop.max_seconds else 0)
        done = progress >= 1 or 0 < loop.stop_after <= stale
        if step % loop.log_interval == 0 or step % loop.eval_interval == 0 or done or stop:
            row = flush()
        due = step % loop.eval_interval == 0 and step != evaluated      # a run that goes on was evaluated before it was saved
        if (due or done) and not stop:
            row = {'tokens': step * tokens_per_step, 'seconds': seconds} | row
            row |= evaluate(fast, text, starts, block_size, loop.batch_size, machine) | {'memory': machine.memory()} | logged()
            if not math.isfinite(row['val_loss']):
                raise diverged('val', row['val_loss'], step)
            stale = 0 if row['val_loss'] < best else stale + (step != evaluated)
            evaluated = step
            if row['val_loss'] < best:
                best = row['val_loss']
                save('best.pt')
            if due:
                plateau.judge()
            done = done or 0 < loop.stop_after <= stale
            if machine.first:
                tqdm.write(f'step {step:6}  ' + (f'train {row["train_loss"]:.4f}  ' if 'train_loss' in row else '') +
                           text.told(row) + (f'  {row["tokens_per_second"]:,.0f} tokens/s' if 'train_loss' in row else ''))
        if row and machine.first:
            log.write(step, **row)
            bar.set_postfix_str(f'loss {row["train_loss"]:.3f}' if 'train_loss' in row else '')
        if 'val_loss' in row or stop:
            save('ckpt.pt', optimizers=[o.state_dict() for o in optimizers], scaler=scaler.state_dict(),
                 plateau=plateau.state_dict(), seconds=seconds, evaluated=evaluated, stale=stale)
        row = {}
        if done or stop:
            break

        # ---- one step ------------------------------------------------------------------------------------------------
        began = time.perf_counter()
        lr = learning_rate(loop, step, progress, plateau.left)
        for o in optimizers:
            for group in o.param_groups:
                group['lr'] = lr
        where = text.batch_starts(micro_steps * machine.world * rows, block_size, loop.seed, step)
        where = where.reshape(micro_steps, machine.world, rows)[:, machine.rank].ravel()
        x, y = text.rows('train', where, block_size, memory)
        if memory and np.random.default_rng((loop.seed, step, 1)).random() < loop.forget:
            x[:, :memory] = -1              # on all ranks alike
        if loop.last_only:
            y[:, :-1] = -1
        if machine.device.type == 'cuda':
            x, y = x.pin_memory(), y.pin_memory()
        x, y = (t.to(machine.device, non_blocking=True).unflatten(0, (micro_steps, rows)) for t in (x, y))
        torch.manual_seed((loop.seed << 31) + (step << 10) + machine.rank)    # so does dropout
        mean_loss = 0.0
        for i in range(micro_steps):
            last = i == micro_steps - 1     # gradients travel between the ranks once a step
            with contextlib.nullcontext() if last or machine.world == 1 else net.no_sync():
                with machine.autocast():
                    _, loss = net(x[i], y[i])
                scaler.scale(loss / micro_steps).backward()
            mean_loss += loss.detach() / micro_steps
        for o in optimizers:
            scaler.unscale_(o)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), loop.grad_clip or math.inf)
        for o in optimizers:
            scaler.step(o)
            o.zero_grad(set_to_none=True)
        scaler.update()
        pending.append((mean_loss, norm))
        step += 1
        seconds += time.perf_counter() - began
        bar.update()
    bar.close()
    if not machine.first:
        return
    log.plot(f'{settings.name}: {loop.arch} on {text.meta["source"]["name"]}')
    log.close()
    if stop:
        launcher = 'python' if machine.world == 1 else 'torchrun ...'
        again = shlex.join(['train.py', *(a for a in argv if a not in ('--resume', '--overwrite'))])
        print(f'stopped at step {step} and saved: to go on, run: {launcher} {again} --resume')
        return
    print(f'{step} steps, {step * tokens_per_step:,} tokens, {seconds:.0f} s; best val {best:.4f}; written to {out_dir}/')
    if text.kind != 'text':
        print(look_at_test(model, text, loop, out_dir, machine))
    elif loop.sample_tokens and not getattr(model, 'centered', False):
        model.eval()
        ids = generate(model, torch.tensor([text.tokenizer.begin()]), loop.sample_tokens, temperature=0.8, top_k=50,
                       n_vocab=text.tokenizer.n_vocab, generator=torch.Generator().manual_seed(loop.seed))
        print('-' * 80)
        for piece in text.tokenizer.stream(int(i[0]) for i in ids):
            print(piece, end='', flush=True)
        print()


def main(argv):
    settings = config.load(argv, Loop)
    machine = device.setup(settings.loop.device, settings.loop.dtype, settings.loop.compile)
    if machine.first:
        print(machine)
    try:
        run(settings, machine, argv)
    except RuntimeError as e:
        # a collective that fails has lost another rank, whose own message says why
        if machine.world == 1 or not any(s in str(e) for s in ('gloo', 'NCCL', 'Connection')):
            raise
        raise UserError(f'rank {machine.rank} stops, since another rank is gone ({str(e).splitlines()[0][:120]})') from None
    if machine.world > 1:
        machine.all_reduce([0])         # the first rank may still be writing
        dist.destroy_process_group()


if __name__ == '__main__':
    main(sys.argv[1:])
    if dist.is_torchelastic_launched():
        # all is written and closed; Python's own way out aborts now and then in a thread of gloo's (seen with torch 2.13)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
