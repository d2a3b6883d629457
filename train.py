"""
Train any architecture, on one device or many:

    python train.py                                                 # a small GPT on Shakespeare, by character
    python train.py config/shakespeare_pacing.py --max_iters=500
    torchrun --nproc_per_node=4 train.py config/gpt2_124M.py
    python train.py config/shakespeare_pacing.py --resume

- A step is the same on one process and on many: its examples are a function of (seed, step), and the ranks split them.
- A run that is stopped and resumed ends with the same weights as one that is not; on a CPU, bit for bit.
- Validation uses fixed windows, the same for every architecture.
"""

import contextlib
import dataclasses
import json
import math
import shlex
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from harness import (
    BIDIRECTIONAL,
    LEAKS,
    UserError,
    catch_signals,
    checkpoint,
    command,
    config,
    device,
    optim,
    require_memory,
    runs,
    shard,
)
from harness.data import open_data
from harness.files import atomic
from harness.images import AUGMENT
from harness.log import Heartbeat, Log


@dataclass
class TrainConfig:
    arch: str = 'model'                     # the model file: model, pacing, or one of your own
    dataset: str = 'shakespeare_char'       # data/<dataset>; if it is missing, prepare/<dataset>.py makes it
    out_dir: str = ''                       # the run folder (empty: out/<name of the config file>)
    init_from: str = 'scratch'              # scratch, a checkpoint or run folder, or a published model such as gpt2
    new_vocabulary: bool = False            # init_from weights of another tokenizer: their embeddings and output layer are new
    last_only: bool = False                 # train only on the token after each window, as the original code of PACING does
    leaking_split: bool = False             # PACING's original split: windows at random, so training reads validation text
    validate: str = 'val'                   # text: val (val.bin), tune (last ninth of train.bin, not trained on), train (it is)
    resume: bool = False                    # continue from out_dir/ckpt.pt
    overwrite: bool = False                 # replace the run in out_dir
    dry_run: bool = False                   # print parameters, optimizer groups and memory, and exit
    eval_only: bool = False                 # print the validation loss, and exit
    patch: int = 4                          # images, of a model that reads tokens: the side of the patches they are cut into
    augment: str = 'none'                   # images, in training: none, flip, crop (shifted by up to an eighth), or flip+crop
    memory_dropout: float = 0.1             # fraction of steps in which a model with a memory trains without it
    # the budget: the first limit that is reached ends the run
    max_iters: int = 2000                   # steps (0: no limit)
    max_seconds: float = 0.0                # seconds of training, without evaluation (0: no limit)
    batch_size: int = 12                    # most windows in a forward pass of one device
    tokens_per_step: int = 0                # tokens per step, over all devices and micro-steps (0: batch_size windows)
    # the optimizer
    optimizer: str = 'muon'                 # muon, adamw, lion, sgd, or sparse_lion (entries without a gradient do not change)
    learning_rate: float = 4e-3             # maximum of the schedule
    min_lr: float = 4e-4                    # end of cosine and trapezoid; minimum of plateau
    schedule: str = 'cosine'                # cosine, trapezoid, constant or plateau, after the warm-up
    warmup_iters: int | str = 'auto'        # steps of linear warm-up (auto: 100, but at most a tenth of the budget)
    cooldown: float = 0.3                   # trapezoid: fraction of the run in which the rate decreases
    patience: int = 10                      # plateau: evaluations without a lower training loss before the rate decreases
    factor: float = 0.5                     # plateau: factor by which the rate decreases
    weight_decay: float = 0.1               # of the weights of matrix products and convolutions only
    beta1: float = 0.9                      # adamw, sgd: momentum; lion: of the update.  Muon's own is 0.95
    beta2: float = 0.95                     # adamw: decay of the mean of squares; lion: of the momentum
    grad_clip: float = 1.0                  # maximum norm of the gradient (0: no clipping)
    # evaluation and logging
    eval_interval: int = 250                # steps between evaluations, each of which writes a checkpoint
    eval_windows: int = 1024                # validation windows, or examples of a task (0: all that do not overlap)
    stop_after: int = 0                     # stop after this many evaluations without a new minimum of val_loss (0: never)
    log_interval: int = 10                  # steps between rows of metrics.csv
    sample_interval: int = 0                # steps between samples during training (0: only at the end)
    sample_tokens: int = 300                # tokens in a sample
    tensorboard: bool = False               # also log to TensorBoard
    wandb_log: bool = False                 # also log to Weights & Biases
    wandb_project: str = 'nanorivals'       # project on Weights & Biases
    # the machine
    device: str = 'auto'                    # auto, cpu, mps, cuda or cuda:N
    dtype: str = 'auto'                     # of matrix products: auto, float32, bfloat16 or float16
    compile: bool | str = 'auto'            # torch.compile: True, False, or auto (on CUDA only)
    shard: bool = False                     # split weights, gradients and optimizer over the ranks (FSDP2), instead of copies
    checkpointing: bool = False             # keep only the inputs of the blocks, and compute the rest again: less memory
    seed: int = 1337                        # of the weights, the batches and dropout

    def __post_init__(self):
        at_least = dict.fromkeys(('batch_size', 'eval_interval', 'log_interval', 'patch'), 1) | dict.fromkeys(
            ('max_iters', 'max_seconds', 'tokens_per_step', 'learning_rate', 'min_lr', 'weight_decay', 'grad_clip',
             'eval_windows', 'stop_after', 'sample_interval', 'sample_tokens', 'patience'), 0)
        warmup = self.warmup_iters
        for name, ok, expected in [
            *((name, getattr(self, name) >= least, f'at least {least}') for name, least in at_least.items()),
            ('schedule', self.schedule in optim.SCHEDULES, f'one of {", ".join(optim.SCHEDULES)}'),
            ('optimizer', self.optimizer in optim.STATES, f'one of {", ".join(optim.STATES)}'),
            ('validate', self.validate in ('val', 'tune', 'train'), 'val, tune or train'),
            ('augment', self.augment in AUGMENT, f'one of {", ".join(AUGMENT)}'),
            ('warmup_iters', warmup == 'auto' or (isinstance(warmup, int) and warmup >= 0), "'auto' or a number of steps"),
            ('beta1', 0 <= self.beta1 < 1, 'at least 0 and below 1'),
            ('beta2', 0 <= self.beta2 < 1, 'at least 0 and below 1'),
            ('seed', 0 <= self.seed < 2 ** 32, 'at least 0 and below 2 ** 32'),
            ('memory_dropout', 0 <= self.memory_dropout <= 1, 'a fraction of the steps, from 0 to 1'),
            ('cooldown', 0 < self.cooldown <= 1, 'a fraction of the run, above 0 and at most 1'),
            ('factor', 0 < self.factor < 1, 'above 0 and below 1'),
            ('sample_interval', not (self.shard and self.sample_interval), '0 with shard: a sample needs the whole model'),
        ]:
            if not ok:
                raise UserError(f'{name}={getattr(self, name)!r} must be {expected}')
        if not (self.max_iters or self.max_seconds):
            raise UserError('there is no budget: set max_iters or max_seconds above 0')


def split_batch(cfg, block_size, world):
    """(micro-steps, windows in each) on every rank, so that a step over all ranks processes tokens_per_step tokens."""
    total = cfg.tokens_per_step or cfg.batch_size * block_size
    unit = block_size * world
    mine, left = divmod(total, unit)
    if left or not mine:
        nearest = ' or '.join(str(n * unit) for n in (mine, mine + 1) if n)
        raise UserError(f'tokens_per_step={total} cannot be split equally over {world} rank{"s" * (world > 1)} of windows of '
                        f'{block_size} tokens: choose a multiple of {block_size} x {world} = {unit}, such as {nearest}')
    if mine > cfg.batch_size and mine % cfg.batch_size:
        raise UserError(f'tokens_per_step={total} gives each of {world} ranks {mine} windows of {block_size} tokens, '
                        f'which batch_size={cfg.batch_size} does not divide: choose a batch_size that divides {mine}')
    micro_steps = max(1, mine // cfg.batch_size)
    return micro_steps, mine // micro_steps


class Trainer:
    """One optimizer step of a model on its data.  compare.py and bench.py time and count this very step."""

    def __init__(self, cfg, model, data, machine):
        T = model.config.block_size
        self.micro_steps, self.rows = split_batch(cfg, T, machine.world)
        needed = optim.step_memory(cfg, model, self.micro_steps, self.rows, machine.world)
        require_memory(needed, f'a step with batch_size={cfg.batch_size}, tokens_per_step={cfg.tokens_per_step} and '
                       f'block_size={T}', machine.capacity())
        if cfg.checkpointing:
            shard.recompute(model)
        if cfg.shard and machine.world == 1:
            raise UserError('shard=True splits a model over several processes, and this is the only one: start them with '
                            'torchrun --nproc_per_node=N, or leave it out')
        if cfg.shard:           # moves one block after the other to the device; to() would lose the marks on parameters
            shard.split(model, machine.device, machine.world)
        else:
            model.to(machine.device)
        self.cfg, self.model, self.data, self.machine = cfg, model, data, machine
        self.copies = machine.world > 1 and not cfg.shard
        self.examples = self.micro_steps * self.rows * machine.world
        self.tokens = self.examples * T
        # `model` holds the weights and is saved; `fast` is compiled; `net` also averages gradients over the ranks
        self.fast = torch.compile(model) if machine.compile else model
        self.net = DistributedDataParallel(self.fast, device_ids=[machine.device] if machine.device.type == 'cuda' else None
                                           ) if self.copies else self.fast
        self.optimizers = optim.build(model, cfg.optimizer, cfg.learning_rate, (cfg.beta1, cfg.beta2), cfg.weight_decay)
        self.scaler = machine.scaler()

    def batch(self, step):
        """This rank's examples of a step, on the device: tensors (micro_steps, rows, ...)."""
        indices = self.data.train_indices(self.examples, self.model.config.block_size, self.cfg.seed, step)
        mine = indices.reshape(self.micro_steps, self.machine.world, self.rows)[:, self.machine.rank].ravel()
        tensors = self.data.train_batch(mine, self.model, self.cfg, step)
        if self.machine.device.type == 'cuda':
            tensors = [t.pin_memory() for t in tensors]
        return [t.to(self.machine.device, non_blocking=True).unflatten(0, (self.micro_steps, self.rows)) for t in tensors]

    def shares(self, y):
        """By how much the mean loss of each micro-step counts, so that the mean over the ranks is that over the whole step."""
        if not self.data.uneven or self.model.predicts == 'last' or self.cfg.last_only:
            return [1 / self.micro_steps] * self.micro_steps
        counts = (y >= 0).flatten(1).sum(1).tolist()
        total, = self.machine.all_reduce([sum(counts)])
        return [n * self.machine.world / total for n in counts]

    def step(self, step, lr):
        """One optimizer step at learning rate lr.  Returns (a loss whose mean over the ranks is the step's, gradient norm),
        still on the device."""
        batch, mean_loss = self.batch(step), 0.0
        shares = self.shares(batch[-1])
        torch.manual_seed((self.cfg.seed << 31) + (step << 10) + self.machine.rank)      # for dropout
        for i in range(self.micro_steps):
            last = i == self.micro_steps - 1    # copies average their gradients once per step; shards have no room to wait
            with contextlib.nullcontext() if last or not self.copies else self.net.no_sync():
                with self.machine.autocast():
                    loss = self.net(*(t[i] for t in batch))[1] * shares[i]
                self.scaler.scale(loss).backward()
            mean_loss += loss.detach()
        for o in self.optimizers:
            self.scaler.unscale_(o)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.grad_clip or math.inf)
        norm = norm.full_tensor() if self.cfg.shard else norm
        skip = self.scaler.is_enabled() and not norm.isfinite()     # the scaler would skip one optimizer, and step the other
        for o in self.optimizers:
            for group in o.param_groups:
                group['lr'] = lr
            if not skip:
                self.scaler.step(o)
            o.zero_grad(set_to_none=True)
        self.scaler.update()
        return mean_loss, norm

    def state_dict(self):
        return {'optimizers': [shard.whole(o.state_dict()) for o in self.optimizers], 'scaler': self.scaler.state_dict()}

    def load_state_dict(self, state, path):
        optim.restore(self.optimizers, state['optimizers'], path, state['step'])
        if self.scaler.is_enabled() and state.get('scaler'):        # empty in a run that began in another format
            self.scaler.load_state_dict(state['scaler'])


@torch.no_grad()
def evaluate(model, data, indices, batch_size, machine, split='val'):
    """The metrics of a model on examples of a split, {'val_loss': ..., ...}, over all ranks."""
    model.eval()
    parts, mine = [], indices[machine.rank::machine.world]
    beat = Heartbeat(machine.is_main)
    for i in range(0, -(-len(indices) // machine.world), batch_size):   # as often on every rank: sharded weights are gathered
        part = mine[i:i + batch_size]
        batch = [t.to(machine.device) for t in data.batch(split, part if len(part) else indices[:1], model)]
        with machine.autocast():
            output, _ = model(*batch)
        parts += [data.score(output, *batch)] * (len(part) > 0)
        beat(f'evaluated {min(i + batch_size, len(mine)):,} of {len(mine):,} {data.unit}')
    model.train()
    return data.total(machine.gather(parts))


@dataclass
class Run:
    """A training run in one process: what fit() works on."""
    trainer: Trainer
    folder: runs.Folder
    indices: object                     # the validation examples
    about: dict                         # architecture, settings and data, for config.json and the checkpoints
    log: Log | None                     # on the main process only
    progress: runs.Progress
    plateau: optim.Plateau

    def __post_init__(self):
        self.cfg, self.data, self.machine = self.trainer.cfg, self.trainer.data, self.trainer.machine
        self.pending = []               # (loss, gradient norm) of the steps since the last row of metrics.csv, on the device
        self.since = self.progress.tokens, self.progress.seconds        # at that row
        self.lr = 0.0

    def resume(self, content):
        """Continues from a checkpoint.  With other validation examples, best.pt is evaluated again on them."""
        t, ckpt, best = self.trainer, self.folder.path / 'ckpt.pt', self.folder.path / 'best.pt'
        p = self.progress = runs.Progress.load(content)
        self.since = p.tokens, p.seconds
        t.load_state_dict(content, ckpt)
        self.plateau.load_state_dict(content.get('plateau', {}))
        changed, was = runs.changed(content['loop'], self.cfg), content['loop'].get('eval_windows', self.cfg.eval_windows)
        if self.machine.is_main:
            print(f'resumed at step {p.step}' + (f'; changed: {changed}' if changed else ''))
        if list(self.data.val_indices(was, t.model.config.block_size)) == list(self.indices):
            return
        p.best = math.inf
        with contextlib.suppress(UserError):            # best.pt is missing or damaged
            checkpoint.load_weights(t.model, checkpoint.load(best), best)
            p.best = evaluate(t.fast, self.data, self.indices, self.cfg.batch_size, self.machine)['val_loss']
        checkpoint.load_weights(t.model, content, ckpt)
        if self.machine.is_main:
            print(f'eval_windows was {was}: the best val_loss, {content.get("best", math.nan):.4f}, is {p.best:.4f} on the '
                  f'windows of this run')

    def spent(self):
        """The fraction of the budget that is spent, 0 to 1."""
        limits = (self.progress.step, self.cfg.max_iters), (self.progress.seconds, self.cfg.max_seconds)
        return max(spent / limit for spent, limit in limits if limit)

    def save(self, name, **more):
        weights = shard.whole(self.trainer.model.state_dict())
        if self.machine.is_main:
            self.folder.check()
            try:
                checkpoint.save(self.folder.path / name, {**self.about, 'model': weights, **more,
                                                          **dataclasses.asdict(self.progress)})
            except checkpoint.NotFinite:        # although the loss was
                self.diverged('train_loss', math.nan, self.progress.step)
                raise

    def diverged(self, name, loss, step, reason=''):
        """The error that ends a run whose loss is not finite; the last row of metrics.csv shows that loss."""
        p, folder = self.progress, self.folder
        if self.machine.is_main:
            # a row of this step may be there already, and a run that is resumed keeps it
            self.log.write(p.step + (self.log.rows[-1:] != [] and self.log.rows[-1]['step'] == p.step), tokens=p.tokens,
                           seconds=p.seconds, **{name: loss})
            self.log.close()
        kept = f'the run in {folder.out_dir} is unchanged; ' * folder.staged or (
            f'{folder.path}/ckpt.pt holds the last good weights; ' * (folder.path / 'ckpt.pt').exists()) * self.machine.is_main
        return UserError(f'{name} became {loss} at step {step}{reason}: {kept}try a smaller learning_rate')

    def explain(self, e):
        """Raises the error of a run that has diverged if that is why an architecture failed with e, as when nan is an index:
        there is a loss, a weight, or a tensor in the functions that were running, which is not finite."""
        tensors = *(loss for loss, _ in self.pending), *self.trainer.model.parameters()
        if not isinstance(e, torch.OutOfMemoryError) and runs.not_finite(e, tensors):
            lines = str(e).splitlines() or ['']
            reason = f' ({type(e).__name__}: {lines[0][:100]})'
            raise self.diverged('train_loss', math.nan, self.progress.step, reason) from None

    def flush(self):
        """The row of metrics.csv for the steps since the last row, averaged over the ranks; empty without steps."""
        if not self.pending:
            return {}
        p = self.progress
        losses, norms = torch.stack([torch.stack(pair) for pair in self.pending]).T.tolist()
        losses = [v / self.machine.world for v in self.machine.all_reduce(losses)]
        for i, value in enumerate(losses):
            if not math.isfinite(value):
                raise self.diverged('train_loss', value, p.step - len(losses) + i)
        self.plateau.watch(losses)
        (tokens, seconds), self.since = self.since, (p.tokens, p.seconds)
        self.pending.clear()
        return {'tokens': p.tokens, 'seconds': p.seconds, 'lr': self.lr, 'grad_norm': norms[-1],
                'tokens_per_second': (p.tokens - tokens) / max(p.seconds - seconds, 1e-9),
                'train_loss': sum(losses) / len(losses)}

    def evaluate(self, row):
        """Adds the validation metrics to the row, prints it, and saves the best weights."""
        p, t = self.progress, self.trainer
        row.update({'tokens': p.tokens, 'seconds': p.seconds} | row)
        row.update(evaluate(t.fast, self.data, self.indices, self.cfg.batch_size, self.machine), memory=self.machine.memory(),
                   **t.model.metrics())
        if not math.isfinite(row['val_loss']):
            raise self.diverged('val_loss', row['val_loss'], p.step)
        p.stale = 0 if row['val_loss'] < p.best else p.stale + (p.step != p.evaluated)
        p.evaluated = p.step
        if row['val_loss'] < p.best:
            p.best = row['val_loss']
            self.save('best.pt')
        if self.machine.is_main:
            trained = [f'train {row["train_loss"]:.4f}'] if 'train_loss' in row else []
            speed = [f'{row["tokens_per_second"]:,.0f} tokens/s'] if trained else []
            tqdm.write('  '.join([f'step {p.step:6}', *trained, self.data.format_metrics(row), *speed]))


def fit(run, signals):
    """Trains until the budget is spent or a signal arrives.  Returns whether a signal arrived."""
    cfg, p, machine = run.cfg, run.progress, run.machine
    bar = tqdm(total=cfg.max_iters or None, initial=p.step, unit='step', disable=None if machine.is_main else True,
               dynamic_ncols=True, leave=False)
    beat, start, latest = Heartbeat(machine.is_main), (run.spent(), p.seconds), 'no loss yet'
    while True:
        stop, p.seconds = machine.all_reduce([len(signals), p.seconds], 'max')      # so that all ranks stop at the same step
        spent, row = run.spent(), {}
        done = spent >= 1 or 0 < cfg.stop_after <= p.stale
        new = p.step != p.evaluated             # a resumed run has evaluated its step
        due = new and p.step % cfg.eval_interval == 0
        if p.step % cfg.log_interval == 0 or p.step % cfg.eval_interval == 0 or done or stop:
            row = run.flush()
            if row:
                latest = f'loss {row["train_loss"]:.3f}, {row["tokens_per_second"]:,.0f} tokens/s'
                bar.set_postfix_str(latest)
        if (due or (done and new)) and not stop:
            run.evaluate(row)
            if due:
                run.plateau.judge()
            done = done or 0 < cfg.stop_after <= p.stale
        if row and machine.is_main:
            run.folder.check()
            run.log.write(p.step, **row)
        if 'val_loss' in row or stop:
            run.save('ckpt.pt', **run.trainer.state_dict(), plateau=run.plateau.state_dict())
            if p.step and not stop and run.folder.staged and machine.is_main:
                run.folder.promote()
                run.log.track(run.folder.out_dir)
        if done or stop:
            bar.close()
            return bool(stop)
        if machine.is_main and cfg.sample_interval and p.step and p.step % cfg.sample_interval == 0:
            run.data.show(run.trainer.model, cfg, run.folder.path)
        began = time.perf_counter()
        run.lr = optim.learning_rate(cfg, p.step, spent, run.plateau.left)
        run.pending.append(run.trainer.step(p.step, run.lr))
        p.step += 1
        if p.step % cfg.log_interval == 0 or p.step % cfg.eval_interval == 0:
            machine.synchronize()           # the steps of the next row are over when its time is read
        p.tokens += run.trainer.tokens
        p.seconds += time.perf_counter() - began
        bar.update()
        left = max(0, 1 - run.spent()) * (p.seconds - start[1]) / max(run.spent() - start[0], 1e-9)
        beat(f'step {p.step}, {latest}, about {left / 60:.1f} minutes left')


def finish(run, stopped, title, argv):
    """After the last step, on the main process: the plot, then how to resume, or the test metrics and a sample."""
    p, model, data = run.progress, run.trainer.model, run.data
    run.log.plot(title)
    run.log.close()
    if stopped and run.folder.staged:
        print(f'stopped at step {p.step}, before its first evaluation after a step: the old run in {run.folder.out_dir} stays')
        return
    if stopped:
        launcher = 'python' if run.machine.world == 1 else 'torchrun ...'
        again = shlex.join(['train.py', *(a for a in argv if a not in ('--resume', '--overwrite'))])
        print(f'stopped at step {p.step} and saved; to resume: {launcher} {again} --resume')
        return
    print(f'{p.step} steps, {p.tokens:,} tokens, {p.seconds:.0f} s; best val {p.best:.4f}; written to {run.folder.path}/')
    alone = dataclasses.replace(run.machine, world=1)       # the other ranks are done
    if run.cfg.shard:                                       # the whole model may not fit into the device
        model, _ = checkpoint.load_model(run.folder.path / 'ckpt.pt')
        alone = dataclasses.replace(alone, device=torch.device('cpu'), dtype=torch.float32)
    if (indices := data.test_indices()) is not None:
        content = checkpoint.load(run.folder.path / 'best.pt')
        checkpoint.load_weights(model, content, run.folder.path / 'best.pt')

        def judge(part):
            found = evaluate(model, data, part, run.cfg.batch_size, alone, 'test')
            return {'test_loss' if k == 'val_loss' else k: v for k, v in found.items()}
        metrics, parts = judge(indices), {name: judge(part) for name, part in data.parts.items()}
        with atomic(run.folder.path / 'test.json', 'w') as f:
            json.dump({'step': content['step'], 'examples': len(indices), **metrics, 'chance': data.chance('test')} |
                      ({'parts': parts} if parts else {}), f, indent=1)
        for name, part in {'': metrics, **parts}.items():
            print(name + ': ' * bool(name) + data.format_metrics(part, 'test'))
    data.show(model, run.cfg, run.folder.path)


def describe(arch, model, trainer, data, cfg):
    """Prints the size of the model and of a step, and the warnings about the loss."""
    total, parts = sum(p.numel() for p in model.parameters()), Counter()
    for name, p in model.named_parameters():
        parts[name.split('.')[0]] += p.numel() * p.requires_grad
    trained, shares = sum(parts.values()), ', '.join(f'{part} {count:,}' for part, count in parts.items() if count)
    world, T, images = trainer.machine.world, model.config.block_size, data.unit == 'images'
    print(f'{arch}: {total:,} parameters' + f', of which {trained:,} are trained ({shares})' * (trained < total) +
          f'; {trainer.tokens // (T if images else 1):,} {"images" if images else "tokens"} per step '
          f'({world} rank{"s" * (world > 1)} x {trainer.micro_steps} micro-step{"s" * (trainer.micro_steps > 1)} x '
          f'{trainer.rows} {data.unit}{"" if images else f" of {T}"}); {data.noun}: {data.meta["source"]["name"]}')
    for applies, warning in ((model.leaks, LEAKS), (model.bidirectional, BIDIRECTIONAL), (cfg.leaking_split, runs.OVERLAP),
                             (cfg.validate == 'train', runs.TRAINED_ON),
                             (cfg.new_vocabulary and not cfg.resume, runs.NEW_VOCABULARY)):
        if applies:
            print(warning)
    if cfg.dry_run:
        print(optim.describe(model, cfg.optimizer, trainer.tokens, world if cfg.shard else 1))


def train(settings, machine, folder, argv):
    """One run, from its settings to its last checkpoint."""
    cfg = settings.train
    if machine.is_main and not (cfg.dry_run or cfg.eval_only):
        folder.claim(cfg)
    # one process of each node prepares the data and the trunk, those of other nodes after the main one: they may share a disk
    for turn in (machine.is_main, machine.local_rank == 0 and not machine.is_main):
        if turn:
            runs.prepare(settings)
        machine.all_reduce([0])
    # the other ranks resume if the main one does
    cfg.resume = any(machine.all_reduce([cfg.resume and machine.is_main]))
    data = open_data(cfg.dataset, cfg.leaking_split, modality=settings.arch.Model.modality, patch=cfg.patch,
                     validate=cfg.validate)
    torch.manual_seed(cfg.seed)
    model, content = runs.resumed(settings, data, folder.out_dir) if cfg.resume else (runs.new_model(settings, data), {})
    indices = data.val_indices(cfg.eval_windows, model.config.block_size)
    trainer = Trainer(cfg, model, data, machine)
    if machine.is_main:
        describe(settings.arch.name, model, trainer, data, cfg)
    if cfg.dry_run:
        return
    cfg.dtype = machine.choose_format(cfg.dtype, content.get('loop', {}).get('dtype', 'auto'), model,
                                      lambda: [t[0] for t in trainer.batch(0)])
    if cfg.eval_only:
        metrics = evaluate(trainer.fast, data, indices, cfg.batch_size, machine)
        if machine.is_main:
            print(data.format_metrics(metrics))
        return
    # checkpoints store TrainConfig under 'loop', its name in the first version
    about = {'arch': settings.arch.name, 'config': dataclasses.asdict(model.config), 'loop': dataclasses.asdict(cfg),
             'data': {k: data.meta.get(k) for k in ('fingerprint', 'source', 'tokenizer')} |
             {k: data.meta[k] for k in ('standard', 'shape') if k in data.meta}}        # shape: of images
    run = Run(trainer, folder, indices, about, None, runs.Progress(), optim.Plateau(cfg))
    columns = [*data.columns, *model.metrics()]         # on all ranks, which may hold parts of a weight
    if cfg.resume:
        run.resume(content)
    if machine.is_main:
        run.log = folder.open(cfg, about, content.get('step'), columns)
    del content                                         # frees a second copy of the weights
    signals = catch_signals()
    try:
        stopped = fit(run, signals)
    except Exception as e:
        run.explain(e)
        raise
    if machine.is_main:
        finish(run, stopped, f'{settings.name}: {settings.arch.name} on {data.meta["source"]["name"]}', argv)


def main(argv):
    settings = config.load(argv, TrainConfig)
    runs.follow_parent()
    machine = device.setup(settings.train.device, settings.train.dtype, settings.train.compile)
    if machine.is_main:
        print(machine)
    with runs.Folder(Path(settings.train.out_dir or f'out/{settings.name}')) as folder, machine.process_group():
        train(settings, machine, folder, argv)


if __name__ == '__main__':
    command(main)
    device.leave()
