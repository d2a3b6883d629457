"""The loop: exact resume, evaluation that changes nothing, one process and several, restarts, signals, budgets."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import tiny_train

import model
import train
from harness import CENTERED, ROOT, UserError, checkpoint, config, data, device, log, optim, runs

PACING = ['--arch=pacing', '--n_layer=2', '--n_embd=16', '--columns=4']


def go(dataset, out_dir, *more):
    """train.py in this process; returns the last checkpoint."""
    words = [w for w in tiny_train(dataset, out_dir, *more)[1:] if 'pacing' not in ''.join(more) or 'n_head' not in w]
    train.main(words)
    return checkpoint.load(out_dir / 'ckpt.pt')


def same(a, b):
    """Are two nested structures of tensors and numbers equal, to the bit?"""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def stop_at(monkeypatch):
    """Send this process SIGTERM in the middle of a step."""
    def arm(step):
        real = train.learning_rate

        def rate(loop, now, *more):
            if now == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(loop, now, *more)
        monkeypatch.setattr(train, 'learning_rate', rate)
    yield arm
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.mark.parametrize('optimizer', optim.STATES)
@pytest.mark.parametrize('arch', [[], PACING, [*PACING, '--predicts=last']], ids=['gpt', 'pacing', 'pacing-last'])
def test_resume_is_exact(dataset, tmp_path, stop_at, monkeypatch, capsys, arch, optimizer):
    """N steps == k steps, SIGTERM, resume, N - k steps: weights, optimizer and metrics to the bit, with dropout on."""
    words = [*arch, f'--optimizer={optimizer}', '--max_iters=12', '--dropout=0.2', '--log_interval=2', '--tokens_per_step=128']
    whole = go(dataset, tmp_path / 'whole', *words)
    stop_at(6)
    part = go(dataset, tmp_path / 'part', *words)
    assert part['step'] == 7
    assert 'stopped at step 7 and saved: to go on, run: python train.py' in capsys.readouterr().out
    monkeypatch.undo()
    resumed = go(dataset, tmp_path / 'part', *words, '--resume')
    for key in ('model', 'optimizers', 'scaler', 'plateau', 'best', 'step'):
        assert same(whole[key], resumed[key]), key
    rows = [{k: v for k, v in row.items() if k.startswith(('step', 'val', 'lr'))}
            for row in log.read(tmp_path / 'part' / 'metrics.csv')]
    expected = [{k: v for k, v in row.items() if k.startswith(('step', 'val', 'lr'))}
                for row in log.read(tmp_path / 'whole' / 'metrics.csv')]
    assert [r for r in rows if r['step'] != 7] == expected


PLATEAU = ['--schedule=plateau', '--patience=0', '--factor=0.5', '--optimizer=sgd', '--learning_rate=0.4', '--min_lr=0.06',
           '--eval_interval=3', '--log_interval=2', '--max_iters=23', '--batch_size=1']


@pytest.fixture(scope='module')
def on_a_plateau(dataset, tmp_path_factory):
    """(folder, last checkpoint) of a run whose rate falls, to the least of it."""
    out = tmp_path_factory.mktemp('plateau') / 'run'
    return out, go(dataset, out, *PLATEAU, '--log_interval=1')


def test_a_plateau_lowers_the_rate(on_a_plateau):
    """By the losses of metrics.csv, counted by hand: halved after 3 steps whose mean is no new lowest, never below 0.06."""
    rows = log.read(on_a_plateau[0] / 'metrics.csv')
    left, lowest, fell = 0.4, math.inf, 0
    for i, row in enumerate(rows[1:], start=1):
        assert row['lr'] == pytest.approx(left * min(1, i / 2)), i              # 2 steps of warm-up
        if i % 3 == 0:
            mean = sum(r['train_loss'] for r in rows[i - 2:i + 1]) / 3
            if mean < lowest * (1 - 1e-4):
                lowest = mean
            else:
                left, fell = max(0.06, left / 2), fell + 1
    assert fell > 2 and rows[-1]['lr'] == pytest.approx(0.06)


@pytest.mark.parametrize('stop', [4, 8, None], ids=['between evaluations', 'at an evaluation', 'by max_iters'])
def test_resume_on_a_plateau_is_exact(dataset, tmp_path, stop_at, monkeypatch, on_a_plateau, stop):
    """Wherever it is stopped, no loss is lost or counted twice: the rate falls where it does in one run."""
    out, (folder, whole) = tmp_path / 'run', on_a_plateau
    if stop:
        stop_at(stop)
    part = go(dataset, out, *PLATEAU, *([] if stop else ['--max_iters=7']))
    assert part['step'] == (stop + 1 if stop else 7) and part['plateau']['count'] == {4: 2, 8: 3, None: 1}[stop]
    monkeypatch.undo()
    resumed = go(dataset, out, *PLATEAU, '--resume')
    for key in ('model', 'optimizers', 'plateau', 'step', *(['best'] if stop else [])):     # the last step is evaluated, too
        assert same(whole[key], resumed[key]), key
    rates, expected = ({r['step']: r['lr'] for r in log.read(f / 'metrics.csv') if 'lr' in r} for f in (out, folder))
    assert all(expected[step] == rate for step, rate in rates.items()) and len(rates) > 12


def test_a_plateau_goes_on_with_other_settings(dataset, tmp_path, capsys):
    """The share that is left is kept; learning_rate, factor and patience are what is now asked for."""
    ckpt = go(dataset, tmp_path / 'run', *PLATEAU, '--max_iters=12')
    left, = ckpt['plateau']['_last_lr']
    assert left < 1
    go(dataset, tmp_path / 'run', *PLATEAU, '--max_iters=13', '--log_interval=1', '--learning_rate=0.8', '--resume')
    assert log.read(tmp_path / 'run' / 'metrics.csv')[-1]['lr'] == 0.8 * left
    assert "'learning_rate': 0.8" in capsys.readouterr().out
    loop = train.Loop(schedule='plateau', patience=3, factor=0.1)
    plateau = optim.Plateau(loop)
    plateau.load_state_dict(ckpt['plateau'])
    assert (plateau.patience, plateau.factor, plateau.left) == (3, 0.1, left)


@pytest.mark.parametrize('name, value, said', [
    ('factor', 1.0, 'factor=1.0 must be above 0 and below 1: the rate is multiplied by it'),
    ('factor', 0.0, 'factor=0.0 must be above 0 and below 1'), ('patience', -1, 'patience=-1 must not be negative'),
    ('schedule', 'plato', "schedule='plato' is unknown: cosine, trapezoid, constant and plateau are")])
def test_a_schedule_that_cannot_be(name, value, said):
    with pytest.raises(UserError, match=said):
        train.Loop(**{name: value})


def test_evaluating_changes_nothing(dataset, tmp_path):
    words = ['--max_iters=8', '--dropout=0.2']
    often, never = (go(dataset, tmp_path / n, *words, f'--eval_interval={n}', f'--log_interval={n}') for n in ('1', '100'))
    assert same(often['model'], never['model'])
    assert len(log.read(tmp_path / '1' / 'metrics.csv')) == 9


def test_another_seed_is_another_run(dataset, tmp_path):
    a, b = (go(dataset, tmp_path / s, '--max_iters=2', f'--seed={s}') for s in '12')
    assert not same(a['model'], b['model'])


def torchrun(dataset, out_dir, *more, processes=2, launcher=()):
    return ['-m', 'torch.distributed.run', f'--nproc_per_node={processes}', '--standalone', *launcher,
            *tiny_train(dataset, out_dir, *more)]


@pytest.mark.parametrize('micro, optimizer', [
    (['--batch_size=2'], ['sgd', '--learning_rate=0.5', '--schedule=plateau', '--patience=0', '--eval_interval=1']),
    ([], ['lion', '--learning_rate=1e-3', '--bias=False']),
    (['--batch_size=2'], ['sparse_lion', '--learning_rate=1e-3', '--bias=False'])], ids=['sgd', 'lion', 'sparse_lion'])
def test_two_processes_take_the_steps_of_one(dataset, tmp_path, cli, micro, optimizer):
    """The same windows, so the same gradients up to rounding: after plain SGD the weights agree.  Lion takes the sign alone, so
    rounding may turn a few (all those of the keys' biases, whose gradient is 0 but for rounding)."""
    words = [f'--optimizer={optimizer[0]}', *optimizer[1:], '--max_iters=6', '--log_interval=1', '--tokens_per_step=128']
    one = go(dataset, tmp_path / 'one', *words)
    done = cli(*torchrun(dataset, tmp_path / 'two', *words, *micro))
    assert done.returncode == 0, done.stderr
    two = checkpoint.load(tmp_path / 'two' / 'ckpt.pt')
    agree = torch.cat([torch.isclose(value, two['model'][key], atol=1e-5, rtol=1e-4).flatten()
                       for key, value in one['model'].items()])
    assert agree.all() if optimizer[0] == 'sgd' else agree.float().mean() > 0.995
    for a, b in zip(*(log.read(tmp_path / n / 'metrics.csv') for n in ('one', 'two')), strict=True):
        assert a['step'] == b['step'] and a['tokens'] == b['tokens']
        for key in ('train_loss', 'val_loss', 'val_loss_full', 'grad_norm', 'lr'):
            assert a.get(key, -1) == pytest.approx(b.get(key, -1), rel=1e-4), key


COUNTED = """
import os, sys
import model
import train
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
calls = []
def hook(state, bucket):
    calls.append(bucket)
    return allreduce_hook(state, bucket)
class Counted(train.DistributedDataParallel):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.register_comm_hook(None, hook)
train.DistributedDataParallel = Counted
train.main(sys.argv[1:])
print(f'rank {os.environ["RANK"]}: {len(calls)} exchanges', flush=True)
os._exit(0)
"""


def test_gradients_travel_once_a_step(dataset, tmp_path, cli):
    """6 steps of 4 micro-steps of a model that fits into one bucket: 6 exchanges, not 24."""
    (tmp_path / 'counted.py').write_text(COUNTED)
    words = torchrun(dataset, tmp_path / 'run', '--max_iters=6', '--batch_size=1', '--tokens_per_step=128')
    words[words.index('train.py')] = tmp_path / 'counted.py'
    done = cli(*words, env={'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert 'x 4 micro-steps x 1 windows' in done.stdout
    assert all(f'rank {rank}: 6 exchanges' in done.stdout for rank in (0, 1)), done.stdout


def workers(pid):
    """The processes that torchrun has started."""
    with open(f'/proc/{pid}/task/{pid}/children') as f:
        return [int(p) for p in f.read().split()]


def start_and_kill_a_rank(words, out_dir):
    """Start torchrun, wait for the second checkpoint, kill -9 one rank.  Returns (exit code, output)."""
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'}) as job:
        for _ in range(600):
            if (out_dir / 'ckpt.pt').exists() and checkpoint.load(out_dir / 'ckpt.pt')['step'] > 0:
                break
            assert job.poll() is None, job.stdout.read()
            time.sleep(0.1)
        os.kill(workers(job.pid)[1], signal.SIGKILL)
        output, _ = job.communicate(timeout=120)
    return job.returncode, output


needs_proc = pytest.mark.skipif(not os.path.exists('/proc/self/task'), reason='finds the ranks in /proc')


@needs_proc
def test_torchrun_restarts_from_the_last_checkpoint(dataset, tmp_path):
    words = torchrun(dataset, tmp_path / 'run', '--max_iters=150', '--eval_interval=20', launcher=['--max-restarts=1'])
    code, output = start_and_kill_a_rank(words, tmp_path / 'run')
    assert code == 0, output
    assert 'resumed at step' in output
    assert checkpoint.load(tmp_path / 'run' / 'ckpt.pt')['step'] == 150
    steps = [r['step'] for r in log.read(tmp_path / 'run' / 'metrics.csv')]
    assert steps == sorted(set(steps)) and steps[-1] == 150


@needs_proc
def test_a_lost_rank_ends_the_others(dataset, tmp_path):
    words = torchrun(dataset, tmp_path / 'run', '--max_iters=100000', '--eval_interval=20')
    code, _ = start_and_kill_a_rank(words, tmp_path / 'run')
    assert code != 0
    checkpoint.load(tmp_path / 'run' / 'ckpt.pt')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=['Ctrl-C', 'SIGTERM'])
def test_a_signal_saves_and_says_how_to_go_on(dataset, tmp_path, number):
    words = tiny_train(dataset, tmp_path / 'run', '--max_iters=1000000', '--eval_interval=1000000')
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as job:
        for line in job.stdout:
            if line.startswith('step '):
                break
        time.sleep(0.5)
        job.send_signal(number)
        rest = job.communicate(timeout=60)[0]
    assert job.returncode == 0, rest
    assert 'Traceback' not in rest and f'python train.py {" ".join(words[1:])} --resume' in rest
    assert checkpoint.load(tmp_path / 'run' / 'ckpt.pt')['step'] > 0


def test_a_time_budget(dataset, tmp_path):
    """Steps until the seconds are spent, and the learning rate has then come all the way down."""
    ckpt = go(dataset, tmp_path / 'run', '--max_iters=0', '--max_seconds=1', '--eval_interval=1000000', '--log_interval=1')
    assert ckpt['step'] > 5 and ckpt['seconds'] >= 1
    rates = [r['lr'] for r in log.read(tmp_path / 'run' / 'metrics.csv') if 'lr' in r]
    assert max(rates) > 3e-3 and rates[-1] < 6e-4


def test_what_a_run_leaves_behind(dataset, tmp_path, capsys):
    go(dataset, tmp_path / 'run', '--max_iters=5', '--log_interval=5')
    assert {p.name for p in (tmp_path / 'run').iterdir()} == {'ckpt.pt', 'best.pt', 'metrics.csv', 'loss.png', 'config.json'}
    assert (tmp_path / 'run' / 'loss.png').read_bytes().startswith(b'\x89PNG')
    first, last = log.read(tmp_path / 'run' / 'metrics.csv')
    assert first['step'] == 0 and last['step'] == 5 and last['tokens'] == 5 * 64
    assert last.keys() == set(log.COLUMNS)
    written = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert written['loop']['max_iters'] == 5 and written['config']['n_embd'] == 16
    out = capsys.readouterr().out
    assert 'numbers float32' in out and 'val ' in out and 'a made-up language' in out


def test_the_logged_loss_is_the_mean_over_micro_steps_and_steps(dataset, tmp_path):
    """At a learning rate of 0 the loss of each step can be had from the data alone."""
    out = tmp_path / 'run'
    ckpt = go(dataset, out, '--max_iters=3', '--learning_rate=0', '--min_lr=0', '--log_interval=3', '--batch_size=2',
              '--tokens_per_step=96')
    text = data.TextData(dataset)
    model, _ = checkpoint.load_model(out / 'ckpt.pt')
    losses = [model(*text.rows('train', text.batch_starts(6, 16, ckpt['loop']['seed'], step), 16))[1].item()
              for step in range(3)]
    assert log.read(out / 'metrics.csv')[-1]['train_loss'] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_validation_is_the_loss_of_fixed_windows(dataset, tmp_path):
    out = tmp_path / 'run'
    go(dataset, out, '--max_iters=3', '--eval_windows=7', '--batch_size=3', '--dropout=0.5')
    text = data.TextData(dataset)
    model, _ = checkpoint.load_model(out / 'ckpt.pt')
    x, y = text.rows('val', text.val_starts(7, 16), 16)
    with torch.no_grad():
        losses = -model(x)[0].log_softmax(-1).gather(-1, y[:, :, None])[:, :, 0]
    row = log.read(out / 'metrics.csv')[-1]
    assert row['val_loss'] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert row['val_loss_full'] == pytest.approx(losses[:, -1].mean().item(), rel=1e-5)


def test_init_from_a_checkpoint(dataset, tmp_path, capsys):
    go(dataset, tmp_path / 'a', '--max_iters=5')
    go(dataset, tmp_path / 'b', '--max_iters=1', '--learning_rate=0', '--min_lr=0', f'--init_from={tmp_path / "a"}')
    first = log.read(tmp_path / 'b' / 'metrics.csv')[0]
    best = min(r['val_loss'] for r in log.read(tmp_path / 'a' / 'metrics.csv') if 'val_loss' in r)
    assert first['val_loss'] == pytest.approx(best)
    capsys.readouterr()
    train.main(tiny_train(dataset, tmp_path / 'c', '--eval_only', f'--init_from={tmp_path / "a"}')[1:])
    assert f'val {first["val_loss"]:.4f}' in capsys.readouterr().out and not (tmp_path / 'c').exists()


def test_dry_run(dataset, tmp_path, capsys):
    train.main(tiny_train(dataset, tmp_path / 'run', '--dry_run')[1:])
    out = capsys.readouterr().out
    model = runs.new_model(config.load(tiny_train(dataset, 'x')[1:], train.Loop), data.TextData(dataset))
    total = sum(p.numel() for p in model.parameters())
    assert f'{total:,} trained parameters' in out and '64 tokens per step' in out and not (tmp_path / 'run').exists()
    optimizers = optim.build(model, 'muon', 1e-3, (0.9, 0.95), 0.1)
    model(torch.zeros(1, 16, dtype=torch.long), torch.zeros(1, 16, dtype=torch.long))[1].backward()
    for o in optimizers:
        o.step()
    held = sum(t.numel() for o in optimizers for s in o.state.values() for t in s.values()
               if isinstance(t, torch.Tensor) and t.dim())
    assert f'optimizer {held * 4 / 2**20:,.1f} MiB' in out


def test_share_out():
    loop = train.Loop(batch_size=12, tokens_per_step=12 * 64)
    assert [train.share_out(loop, 64, world) for world in (1, 2, 3, 4, 12)] == [(1, 12), (1, 6), (1, 4), (1, 3), (1, 1)]
    assert train.share_out(dataclasses.replace(loop, batch_size=3), 64, 2) == (2, 3)
    with pytest.raises(UserError, match=r'768 cannot be shared equally by 5 ranks .* 64 x 5 = 320, such as 640 or 960'):
        train.share_out(loop, 64, 5)
    with pytest.raises(UserError, match='cannot be shared'):
        train.share_out(dataclasses.replace(loop, tokens_per_step=100), 64, 1)
    with pytest.raises(UserError, match='batch_size=5 does not divide: take a batch_size that divides 12'):
        train.share_out(dataclasses.replace(loop, batch_size=5), 64, 1)


def test_schedules():
    cosine = train.Loop(learning_rate=1.0, min_lr=0.1, warmup_iters=10)
    assert train.learning_rate(cosine, 0, 0) == pytest.approx(0.1)
    assert train.learning_rate(cosine, 50, 0.5) == pytest.approx(0.55)
    assert train.learning_rate(cosine, 99, 1) == pytest.approx(0.1)
    trapezoid = dataclasses.replace(cosine, schedule='trapezoid', cooldown=0.2)
    assert [train.learning_rate(trapezoid, 50, p) for p in (0.5, 0.8, 0.9, 1)] == pytest.approx([1, 1, 0.55, 0.1])
    constant, plateau = (dataclasses.replace(cosine, schedule=s) for s in ('constant', 'plateau'))
    assert [train.learning_rate(loop, 50, 1, 0.3) for loop in (constant, plateau)] == [1, 0.3]
    assert train.learning_rate(plateau, 4, 0, 0.3) == pytest.approx(0.15)      # half of the warm-up


def test_number_formats(monkeypatch):
    """bf16 where the GPU has it, fp16 with a scaler where it does not, float32 on MPS, on a CPU what is asked."""
    cpu, cuda, mps = (torch.device(n) for n in ('cpu', 'cuda', 'mps'))
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda **k: True)
    assert device.number_format(cuda)[0] == torch.bfloat16
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda **k: False)
    assert device.number_format(cuda)[0] == torch.float16
    with pytest.raises(UserError, match='no bfloat16'):
        device.number_format(cuda, 'bfloat16')
    assert device.number_format(mps)[0] == device.number_format(cpu)[0] == torch.float32
    assert device.number_format(cpu, 'bfloat16')[0] == torch.bfloat16
    for where, asked in ((mps, 'bfloat16'), (cpu, 'float16'), (cpu, 'float8')):
        with pytest.raises(UserError, match='dtype='):
            device.number_format(where, asked)


@pytest.mark.parametrize('arch', [[], PACING, [*PACING, '--predicts=last']], ids=['gpt', 'pacing', 'pacing-last'])
def test_bfloat16_on_a_cpu_trains(dataset, tmp_path, arch):
    ckpt = go(dataset, tmp_path / 'run', *arch, '--dtype=bfloat16', '--max_iters=10', '--warmup_iters=0')
    rows = log.read(tmp_path / 'run' / 'metrics.csv')
    assert rows[-1]['val_loss'] < rows[0]['val_loss']
    assert all(t.dtype == torch.float32 for t in ckpt['model'].values())


def test_last_only_is_the_loss_of_the_last_position(dataset, tmp_path):
    """At a learning rate of 0: loss and gradient of each step, over 3 micro-steps, are those of the last token alone."""
    out = tmp_path / 'run'
    ckpt = go(dataset, out, '--last_only', '--max_iters=2', '--learning_rate=0', '--min_lr=0', '--log_interval=1',
              '--batch_size=2', '--tokens_per_step=96')
    text = data.TextData(dataset)
    model, _ = checkpoint.load_model(out / 'ckpt.pt')
    for step, row in enumerate(log.read(out / 'metrics.csv')[1:]):
        x, y = text.rows('train', text.batch_starts(6, 16, ckpt['loop']['seed'], step), 16)
        loss = -model(x)[0][:, -1].log_softmax(-1)[range(6), y[:, -1]].mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        assert row['train_loss'] == pytest.approx(loss.item(), rel=1e-5)
        assert row['grad_norm'] == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in grads)), rel=1e-4)
        assert abs(loss.item() - model(x, y)[1].item()) > 1e-3      # else the loss of all positions would pass


@pytest.mark.parametrize('arch', [[], PACING, [*PACING, '--predicts=last']], ids=['gpt', 'pacing', 'pacing-last'])
@torch.no_grad()
def test_accuracy_by_brute_force(dataset, arch):
    """The share of tokens that the model holds likeliest, one window at a time; batches of 4 do not divide the 27 windows."""
    words = [w for w in tiny_train(dataset, 'x', *arch)[1:] if not arch or 'n_head' not in w]
    text = data.TextData(dataset)
    torch.manual_seed(0)
    model = runs.new_model(config.load(words, train.Loop), text)
    for p in model.parameters():
        p += 0.1 * torch.randn_like(p)
    machine = device.Machine(torch.device('cpu'), torch.float32, False, 0, 0, 1)
    starts = text.val_starts(27, 16)
    scores = train.evaluate(model, text, starts, 16, 4, machine)
    right = []
    for start in starts:
        tokens = torch.tensor(text.tokens['val'][start:start + 17].tolist())
        likeliest = model.eval()(tokens[None, :-1])[0][0].argmax(-1)
        right.append((likeliest == tokens[-len(likeliest):]).tolist())
    every, last = [hit for row in right for hit in row], [row[-1] for row in right]
    assert len(last) == 27 and len(every) == (27 if '--predicts=last' in arch else 27 * 16) and 0 < sum(last) < 27
    assert scores['accuracy'] == pytest.approx(sum(every) / len(every), abs=1e-9)
    assert scores['accuracy_full'] == pytest.approx(sum(last) / 27, abs=1e-9)


@pytest.mark.parametrize('which, more', [('train_loss', ['--optimizer=sgd', '--learning_rate=1e30']),
                                         ('val_loss', ['--optimizer=lion', '--learning_rate=1e38', '--eval_interval=1'])],
                         ids=['training', 'validation'])
def test_a_run_that_diverges_leaves_a_row_and_can_go_on(dataset, tmp_path, which, more):
    """The row says what happened and when; a resume drops it, and ends where a run that never diverged does."""
    out, words = tmp_path / 'run', [more[0], '--log_interval=1', '--learning_rate=0.01', '--grad_clip=0', '--schedule=constant']
    go(dataset, out, *words, '--max_iters=6')
    before = log.read(out / 'metrics.csv')
    with pytest.raises(UserError, match='smaller learning_rate'):
        go(dataset, out, *words, '--max_iters=20', '--resume', *more[1:])
    rows = log.read(out / 'metrics.csv')
    assert rows[:7] == before and rows[-1]['step'] > 6 and rows[-1]['tokens'] == rows[-1]['step'] * 64
    assert [k for k in ('train_loss', 'val_loss') if not math.isfinite(rows[-1].get(k, 0))] == [which]
    assert checkpoint.load(out / 'ckpt.pt')['step'] == 6
    resumed = go(dataset, out, *words, '--max_iters=20', '--resume')
    whole = go(dataset, tmp_path / 'whole', *words, '--max_iters=20')
    assert same(resumed['model'], whole['model'])
    rows = log.read(out / 'metrics.csv')
    assert [r['step'] for r in rows] == list(range(21)) and rows[:7] == before
    assert all(math.isfinite(v) for row in rows for v in row.values())


def test_memory_is_logged_in_mib(dataset, tmp_path):
    """Python with torch alone takes more than 100 of them; in KiB it would be more than 100,000."""
    go(dataset, tmp_path / 'run', '--max_iters=10', '--log_interval=1')
    rows = log.read(tmp_path / 'run' / 'metrics.csv')
    memory = [r['memory'] for r in rows if 'val_loss' in r]
    assert len(memory) == 3 and memory == sorted(memory) and 100 < memory[0] < 1e5      # the highest so far never falls
    assert not any('memory' in r for r in rows if 'val_loss' not in r)


def test_the_leaking_split_is_told_and_kept_apart(dataset, tmp_path, capsys):
    """A run of it cannot be gone on with as an honest one, nor an honest one as a run of it."""
    leaks, honest = (go(dataset, tmp_path / n, '--max_iters=5', *more) for n, more in (('leaks', ['--leaking_split']),
                                                                                       ('honest', [])))
    assert capsys.readouterr().out.count('leaking_split: the validation windows overlap those of training') == 1
    assert leaks['data']['fingerprint'] != honest['data']['fingerprint'] == data.TextData(dataset).fingerprint
    assert not same(leaks['model'], honest['model'])
    for name, more in (('leaks', []), ('honest', ['--leaking_split'])):
        with pytest.raises(UserError, match='cannot be resumed: its data is'):
            go(dataset, tmp_path / name, '--max_iters=7', '--resume', *more)
    assert go(dataset, tmp_path / 'leaks', '--max_iters=7', '--resume', '--leaking_split')['step'] == 7


def test_a_model_that_sees_both_sides_says_so_and_writes_no_sample(dataset, tmp_path, capsys, monkeypatch):
    go(dataset, tmp_path / 'a', '--max_iters=1')
    out = capsys.readouterr().out
    assert CENTERED not in out and '-' * 80 in out
    monkeypatch.setattr(model.Model, 'centered', True, raising=False)
    go(dataset, tmp_path / 'b', '--max_iters=1')
    out = capsys.readouterr().out
    assert out.count(CENTERED) == 1 and '-' * 80 not in out


def deeper(self, config):
    """The same function with more layers, whose last matrices are 0."""
    if config.n_embd != self.config.n_embd:
        raise ValueError('a GPT becomes deeper, not wider')
    new = model.Model(config)
    with torch.no_grad():
        for block in new.h[self.config.n_layer:]:
            for p in (*block.attn.c_proj.parameters(), *block.mlp.c_proj.parameters()):
                p.zero_()
    new.load_state_dict(self.state_dict(), strict=False)
    return new


def test_init_from_a_checkpoint_of_another_shape(dataset, tmp_path, monkeypatch):
    """A model that can be refined computes at the start what the checkpoint did at its best; one that cannot is refused."""
    go(dataset, tmp_path / 'a', '--max_iters=5')
    more = ['--max_iters=1', f'--init_from={tmp_path / "a"}']
    with pytest.raises(UserError, match='holds another model'):
        go(dataset, tmp_path / 'b', *more, '--n_layer=3')
    monkeypatch.setattr(model.Model, 'refined', deeper, raising=False)
    refined = go(dataset, tmp_path / 'b', *more, '--n_layer=3')
    assert refined['config']['n_layer'] == 3
    best = min(r['val_loss'] for r in log.read(tmp_path / 'a' / 'metrics.csv') if 'val_loss' in r)
    assert log.read(tmp_path / 'b' / 'metrics.csv')[0]['val_loss'] == pytest.approx(best)
    with pytest.raises(UserError, match=r'init_from=.*a: a GPT becomes deeper, not wider'):
        go(dataset, tmp_path / 'c', *more, '--n_embd=32')
    monkeypatch.setattr(model.Model, 'refined', None, raising=False)        # of the shape that it has, nothing is refined
    go(dataset, tmp_path / 'd', *more)
