"""train.py: exact resume, one process and two, lost ranks, signals, budgets, and the numbers that it logs."""

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import begin, contents, script, sentence, tiny_train
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import compare
import model
import train
from harness import BIDIRECTIONAL, ROOT, checkpoint, config, data, device, log, optim, runs

PACING = ['--arch=pacing', '--n_layer=2', '--n_embd=16', '--columns=4']
LAST = [*PACING, '--predicts=last']
INDEX = '--arch=highorder'       # takes a nan for an index
TASK = ['--arch=fpt', '--positions=16', '--tokens_per_step=24']
SGD = ['--optimizer=sgd', '--log_interval=1', '--learning_rate=0.01', '--grad_clip=0', '--schedule=constant']


def words_of(dataset, out_dir, *more):
    without = '--n_head' if {'--arch=pacing', INDEX} & {*more} else '--block_size' if '--arch=fpt' in more else ' '
    return [w for w in tiny_train(dataset, out_dir, *more)[1:] if not w.startswith(without)]


def go(dataset, out_dir, *more):
    """train.py in this process; returns the last checkpoint."""
    train.main(words_of(dataset, out_dir, *more))
    return checkpoint.load(out_dir / 'ckpt.pt')


def rows(out_dir, *names):
    """The rows of metrics.csv, or of these columns the values, by step."""
    found = log.read(out_dir / 'metrics.csv')
    return {r['step']: [r[n] for n in names] for r in found if names[0] in r} if names else found


def same(a, b):
    """Whether two nested structures of tensors and numbers are equal, to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


PLATEAU = ['--schedule=plateau', '--patience=0', '--factor=0.5', '--learning_rate=0.4', '--min_lr=0.06', '--eval_interval=3',
           '--max_iters=23', '--batch_size=1', '--tokens_per_step=0']


@pytest.mark.parametrize('optimizer, more, stop', [
    *((o, [], 6) for o in optim.STATES), ('muon', PACING, 6), ('adamw', LAST, 6), ('muon', ['--arch=bert'], 6),
    ('sgd', PLATEAU, 4), ('sgd', PLATEAU, 8), ('adamw', [*TASK, '--mode=urt'], 6),
    ('muon', [*TASK, '--trained=norms+output', '--stop_after=3'], 6)])
def test_resume_is_exact(dataset, task_data, tmp_path, before_step, capsys, optimizer, more, stop):
    """N steps == k steps, a signal, resume, N - k steps, with dropout; --resume of the run that has ended changes nothing."""
    words = [f'--optimizer={optimizer}', '--max_iters=12', '--dropout=0.2', '--log_interval=2', '--tokens_per_step=128', *more]
    dataset = task_data('classify') if '--arch=fpt' in more else dataset
    part, whole = tmp_path / 'part', go(dataset, tmp_path / 'whole', *words)
    before_step(stop, lambda: os.kill(os.getpid(), signal.SIGINT if more else signal.SIGTERM))
    assert go(dataset, part, *words)['step'] == stop + 1
    command = ' '.join(['python train.py', *words_of(dataset, part, *words), '--resume'])
    assert f'stopped at step {stop + 1} and saved; to resume: {command}\n' in capsys.readouterr().out
    before_step(None, None)
    resumed = go(dataset, part, *words, '--resume')
    for key in whole.keys() - {'seconds', 'loop'}:
        assert same(whole[key], resumed[key]), key
    for columns in (['val_loss', 'accuracy'], ['lr']):
        one, two = ({k: v for k, v in rows(tmp_path / run, *columns).items() if k != stop + 1} for run in ('whole', 'part'))
        assert one == two
    assert more != PLATEAU or rows(part, 'lr')[23] == [pytest.approx(0.06)]         # it has reached min_lr, in halves
    before = contents(part)
    go(dataset, part, *words, '--resume')
    assert contents(part) == before


def test_a_run_is_resumed_with_new_settings(dataset, tmp_path, capsys):
    """They apply from then on, and tokens are counted on: also from a checkpoint of the first version, without a count."""
    out, words = tmp_path / 'run', ['--optimizer=sgd', *PLATEAU]
    old = go(dataset, out, *words, '--max_iters=12', '--memory_dropout=0.3')
    left, = old['plateau']['_last_lr']
    assert left < 1 and old['tokens'] == 12 * 16
    old = {k: v for k, v in old.items() if k not in ('tokens', 'evaluated', 'format')}
    old['loop']['forget'] = old['loop'].pop('memory_dropout')
    checkpoint.save(out / 'ckpt.pt', old)
    capsys.readouterr()
    new = go(dataset, out, *words, '--resume', '--max_iters=14', '--log_interval=1', '--learning_rate=0.8', '--beta1=0.5',
             '--tokens_per_step=32', '--memory_dropout=0.3', '--factor=0.1')
    assert "'learning_rate': 0.8" in (shown := capsys.readouterr().out) and 'memory_dropout' not in shown
    assert rows(out, 'lr')[14] == [0.8 * left] and new['tokens'] == 12 * 16 + 2 * 32
    assert new['optimizers'][0]['param_groups'][0]['momentum'] == 0.5


def test_tokens_and_seconds_are_counted(dataset, tmp_path, monkeypatch):
    """100 steps of 768 tokens, then 100 of 3,072, of 0.05 s each: in the log, the checkpoint and what a race reports."""
    words = ['--n_layer=1', '--n_embd=8', '--eval_interval=100', '--batch_size=192', '--optimizer=sgd']
    monkeypatch.setattr(train.time, 'perf_counter', itertools.count(0, 0.05).__next__)
    go(dataset, tmp_path, *words, '--tokens_per_step=768', '--max_iters=100')
    ckpt = go(dataset, tmp_path, *words, '--tokens_per_step=3072', '--max_iters=200', '--resume')
    row, (e,) = rows(tmp_path)[-1], compare.enter([f'config/shakespeare_gpt.py --dataset={dataset.name}'], [])[0]
    for found in (ckpt, row, compare.judge(e, 1, tmp_path, 1, 8, device.setup('cpu', 'float32', False))):
        assert found['tokens'] == 76_800 + 100 * 3_072 == 384_000 and found['seconds'] == pytest.approx(200 * 0.05)
    assert row['tokens_per_second'] == pytest.approx(3072 / 0.05)


def test_best_is_never_compared_across_validation_windows(dataset, tmp_path, capsys):
    """Resumed with another eval_windows, best.pt is evaluated on them, or forgotten if it is gone."""
    text, out = data.TextData(dataset), tmp_path / 'run'
    words = ['--max_iters=6', '--learning_rate=0', '--min_lr=0', '--eval_interval=3', '--resume']
    old = go(dataset, out, *words[:-1])['best']
    net = checkpoint.load_model(out / 'best.pt')[0]
    new = train.evaluate(net, text, text.val_indices(3, 16), 4, device.setup('cpu', 'float32', False))['val_loss']
    assert old != pytest.approx(new, rel=1e-4)
    assert go(dataset, out, *words, '--eval_windows=3', '--max_iters=7')['best'] == pytest.approx(new, rel=1e-6)
    assert f'eval_windows was 8: the best val_loss, {old:.4f}, is {new:.4f}' in capsys.readouterr().out
    (out / 'best.pt').unlink()
    assert go(dataset, out, *words, '--max_iters=8')['best'] == pytest.approx(old, rel=1e-6) and (out / 'best.pt').exists()
    assert 'is inf on the windows' in capsys.readouterr().out


def test_evaluation_changes_nothing_and_the_seed_everything(dataset, tmp_path):
    words = ['--max_iters=8', '--dropout=0.2']
    often, never, other = (go(dataset, tmp_path / n, *words, f'--eval_interval={n}', f'--log_interval={n}', f'--seed={seed}')
                           for n, seed in (('1', 1), ('100', 1), ('50', 2)))
    assert same(often['model'], never['model']) and not same(often['model'], other['model'])
    assert len(rows(tmp_path / '1')) == 9


# several processes --------------------------------------------------------------------------------------------------------

def lose_rank_1(at):
    """Kill this process before a step, if it is rank 1."""
    step = train.Trainer.step

    def fatal(trainer, now, lr):
        if os.environ['RANK'] == '1' and now == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer, now, lr)
    train.Trainer.step = fatal


def be_rank(number, port, folder, words, lost_at):
    """One process of two: counts the exchanges of gradients."""
    os.environ.update(WORLD_SIZE='2', RANK=str(number), LOCAL_RANK=str(number), MASTER_ADDR='localhost', MASTER_PORT=str(port))
    exchanges = []

    class Counted(train.DistributedDataParallel):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.register_comm_hook(None, lambda _, bucket: (exchanges.append(1), allreduce_hook(None, bucket))[1])
    train.DistributedDataParallel = Counted
    lose_rank_1(lost_at)
    device.has_bfloat16 = lambda: False     # in which Muon's products would round a sum in another order to another value
    sys.stdout = sys.stderr = open(folder / f'rank{number}.txt', 'w')     # noqa: SIM115 (it is closed at exit)
    train.main(words)
    print(len(exchanges), 'exchanges')


def two_ranks(dataset, out_dir, *words, lost_at=None):
    """Exit codes and output of both."""
    with socket.create_server(('localhost', 0)) as s:
        port = s.getsockname()[1]
    words = words_of(dataset, out_dir, *words)
    processes = [begin(be_rank, n, port, out_dir.parent, words, lost_at) for n in (0, 1)]
    for process in processes:
        process.join(120)
    return [p.exitcode for p in processes], [(out_dir.parent / f'rank{n}.txt').read_text() for n in (0, 1)]


@pytest.fixture(scope='module')
def copying():
    """Texts of 1 to 8 letters, repeated: the examples have different numbers of targets.  Yields the folder."""
    folder = ROOT / 'data' / f'tests_copying_{os.getpid()}'
    script('prepare/copying.py', '--length=8', '--examples=200', f'--name={folder.name}', '--overwrite')
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize('optimizer', [
    ['sgd', '--learning_rate=0.5', '--schedule=plateau', '--patience=0', '--eval_interval=1'],
    ['sgd', '--learning_rate=0.1', '--arch=bert'], ['sgd', '--learning_rate=0.1', *TASK, '--dropout=0'],
    ['sgd', '--learning_rate=0.1', '--tokens_per_step=256', '--block_size=32'],         # on examples
    ['lion', '--learning_rate=1e-3', '--bias=False'], ['sparse_lion', '--learning_rate=1e-3', '--bias=False'],
], ids=lambda v: v[0] + v[-1])
def test_two_processes_take_the_steps_of_one(dataset, task_data, copying, tmp_path, optimizer):
    """The same gradients up to rounding, exchanged once per step.  Rounding flips a few of the signs that Lion uses."""
    words = [f'--optimizer={optimizer[0]}', '--max_iters=6', '--log_interval=1', '--tokens_per_step=128', *optimizer[1:]]
    dataset = task_data('classify') if '--arch=fpt' in words else copying if '--block_size=32' in words else dataset
    one = go(dataset, tmp_path / 'one', *words)
    codes, output = two_ranks(dataset, tmp_path / 'two', *words, '--batch_size=2')
    assert codes == [0, 0], output
    assert 'x 2 micro-steps x 2 ' in output[0] and all('\n6 exchanges' in '\n' + text for text in output)
    two = checkpoint.load(tmp_path / 'two' / 'ckpt.pt')
    agree = torch.cat([w.isclose(two['model'][key], atol=1e-5, rtol=1e-4).flatten() for key, w in one['model'].items()])
    assert agree.all() if optimizer[0] == 'sgd' else agree.float().mean() > 0.995
    alike(tmp_path / 'one', tmp_path / 'two', 1e-4)


def alike(one, two, rel):
    """Two runs have logged the same."""
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a['step'] == b['step'] and a['tokens'] == b['tokens']
        for key in ('train_loss', 'val_loss', 'val_loss_full', 'accuracy', 'grad_norm', 'lr'):
            assert a.get(key, -1) == pytest.approx(b.get(key, -1), rel=rel), key


@pytest.mark.parametrize('optimizer, more', [
    ('sparse_lion', ['--bias=False', '--dropout=0.2']), ('muon', ['--arch=llama']), ('sgd', TASK),
    ('muon', ['--arch=highorder', '--network=transformer'])], ids=lambda v: v[-1])      # which has marks on its parameters
def test_shards_take_the_steps_of_copies(dataset, task_data, tmp_path, monkeypatch, optimizer, more):
    """With checkpointing, on validation windows of which one rank has fewer; then on one process, and before, with muon."""
    words = [f'--optimizer={optimizer}', '--log_interval=1', '--tokens_per_step=128', '--learning_rate=1e-3', '--batch_size=2',
             '--schedule=constant', '--eval_windows=5', '--max_iters=6', '--dtype=float32', *more]
    dataset = task_data('classify') if '--arch=fpt' in words else dataset
    monkeypatch.setattr(device, 'has_bfloat16', lambda: False)      # as in be_rank
    runs = tmp_path / 'copies', tmp_path / 'shards'
    if began := ['--resume'] * (optimizer == 'muon'):
        for run in runs:
            go(dataset, run, *words, '--max_iters=2')
    for run, more in zip(runs, ([], ['--shard', '--checkpointing']), strict=True):
        codes, output = two_ranks(dataset, run, *words, *began, *more)
        assert codes == [0, 0], output
    for _ in range(2):
        one, two = (checkpoint.load(run / 'ckpt.pt') for run in runs)
        values = ([c['model'], *(o['state'] for o in c['optimizers'])] for c in (one, two))
        torch.testing.assert_close(*values, atol=1e-6, rtol=1e-6)
        alike(*runs, 1e-6)
        for run in runs:
            go(dataset, run, *words, '--resume', '--max_iters=8')


def test_a_lost_rank_ends_the_other(dataset, tmp_path):
    codes, output = two_ranks(dataset, tmp_path / 'run', '--max_iters=1000', lost_at=7)
    assert codes == [1, -signal.SIGKILL] and 'rank 0 stops because another rank is gone' in output[0], output
    assert checkpoint.load(tmp_path / 'run' / 'ckpt.pt')['step'] == 5


def test_torchrun_restarts_from_the_last_checkpoint(dataset, tmp_path, cli):
    """A rank is lost at step 17; the run ends with the weights of one process that lost nothing."""
    (tmp_path / 'restarted.py').write_text("""
import os, sys, train
from tests.harness.test_train import lose_rank_1
lose_rank_1(17 if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' else None)
train.main(sys.argv[1:])
train.device.leave()
""")
    words = [*SGD, '--max_iters=22', '--eval_interval=10', '--tokens_per_step=128']
    torchrun = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone', '--max-restarts=1']
    done = cli(*torchrun, tmp_path / 'restarted.py', *words_of(dataset, tmp_path / 'run', *words),
               env={'PYTHONPATH': f'{ROOT}:{ROOT}/tests'})
    assert done.returncode == 0 and 'resumed at step 10' in done.stdout, done
    whole, restarted = go(dataset, tmp_path / 'whole', *words), checkpoint.load(tmp_path / 'run' / 'ckpt.pt')
    torch.testing.assert_close(whole['model'], restarted['model'], atol=1e-5, rtol=1e-4)
    assert [(r['step'], r['tokens']) for r in rows(tmp_path / 'run')] == [(i, 128 * i) for i in range(23)]


# the command line ---------------------------------------------------------------------------------------------------------

def test_ctrl_c_before_training_is_a_sentence(refused, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, 'prepare', lambda settings: signal.raise_signal(signal.SIGINT))
    assert refused(*tiny_train(dataset, tmp_path / 'run')) == 'stopped'


def test_output_without_a_terminal(dataset, tmp_path, capsys, monkeypatch):
    """A line at most every 20 s, by a clock of 7 s per step and batch of validation; samples when they are due."""
    monkeypatch.setattr(log.time, 'monotonic', itertools.count(0, 7).__next__)
    go(dataset, tmp_path / 'run', '--max_iters=9', '--eval_interval=100', '--log_interval=1', '--sample_interval=4')
    shown = capsys.readouterr().out
    found = re.findall(r'^step (\d+), loss [\d.]+, [\d,]+ tokens/s, about [\d.]+ minutes left$', shown, re.M)
    assert len(found) >= 2 and shown.count('-' * 80) == 3       # at 4, 8 and the end
    beat = log.Heartbeat()
    monkeypatch.setattr(log.time, 'monotonic', lambda: clock)
    beat.last = 0
    for clock in (10, 19.9, 20, 39.9, 41):
        beat(f'at {clock}')
    assert capsys.readouterr().out.split('\n') == ['at 20', 'at 41', '']


def test_a_time_budget(dataset, tmp_path, monkeypatch):
    """Steps of 0.05 s until the seconds are spent; the learning rate has then reached the end of its schedule."""
    monkeypatch.setattr(train.time, 'perf_counter', itertools.count(0, 0.05).__next__)
    ckpt = go(dataset, tmp_path / 'run', '--max_iters=0', '--max_seconds=1', '--eval_interval=1000000', '--log_interval=1')
    assert ckpt['step'] in (20, 21) and ckpt['seconds'] == pytest.approx(1, abs=0.06)
    rates = [lr for lr, in rows(tmp_path / 'run', 'lr').values()]
    assert max(rates) > 3e-3 and rates[-1] < 6e-4


def test_the_files_of_a_run(dataset, tmp_path, capsys):
    """And what --dry_run, which writes none, says of its memory."""
    words = words_of(dataset, tmp_path / 'run', '--max_iters=10', '--log_interval=5')
    train.main([*words, '--dry_run'])
    shown, net = capsys.readouterr().out, runs.new_model(config.load(words, train.TrainConfig), data.TextData(dataset))
    parameters = sum(p.numel() for p in net.parameters())
    assert f'{parameters:,} trained parameters' in shown and '64 tokens per step' in shown and not (tmp_path / 'run').exists()
    train.main(words)
    out, ckpt = tmp_path / 'run', checkpoint.load(tmp_path / 'run' / 'ckpt.pt')
    stored = [t for o in ckpt['optimizers'] for state in o['state'].values() for t in state.values() if t.dim()]
    assert f'optimizer {sum(t.numel() for t in stored) * 4 / 2**20:,.1f} MiB' in shown
    assert {p.name for p in out.iterdir()} == {'ckpt.pt', 'best.pt', 'metrics.csv', 'loss.png', 'config.json', '.lock'}
    assert (out / 'loss.png').read_bytes().startswith(b'\x89PNG')
    first, middle, last = rows(out)
    assert (first['step'], last['step'], last['tokens']) == (0, 10, 10 * 64) and last.keys() == set(log.COLUMNS)
    assert 100 < first['memory'] <= middle['memory'] <= last['memory'] < 1e5       # MiB, a peak
    written, shown = json.loads((out / 'config.json').read_text()), capsys.readouterr().out
    assert written['loop']['max_iters'] == 10 and written['config']['n_embd'] == 16
    assert 'float32' in shown and 'val ' in shown and 'a made-up language' in shown


def test_only_runs_in_out_are_trained_for_a_model(dataset, monkeypatch, tmp_path):
    """A name that leaves out/ or config/ starts no process."""
    monkeypatch.chdir(tmp_path)
    started, settings, real = [], config.load([f'--dataset={dataset.name}'], train.TrainConfig), subprocess.Popen
    monkeypatch.setattr(runs, 'start', lambda words: started.append(words) or real([sys.executable, '-c', 'exit(3)']))

    def prepare(folder):
        runs.prepare(dataclasses.replace(settings, arch=dataclasses.replace(settings.arch, needs=lambda _: [folder])))
    for folder in ('out/../lstm', 'out/x/lstm', '/tmp/lstm', 'out/lstm ', '../out/lstm', 'out/lstm\n', 'out/none'):
        prepare(folder)
    assert not started and re.search(r'out/lstm .*exit code 3', sentence(prepare, 'out/lstm'))
    assert str(ROOT / 'config' / 'lstm.py') in started[0]


# what is computed ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('last', [False, True], ids=['all', 'last_only'])
def test_the_logged_loss_is_the_mean_over_micro_steps(dataset, tmp_path, last):
    """At a learning rate of 0, the loss and gradient norm of each step follow from the data alone."""
    out = tmp_path / 'run'
    ckpt = go(dataset, out, '--max_iters=2', '--learning_rate=0', '--min_lr=0', '--log_interval=1', '--batch_size=2',
              '--tokens_per_step=96', f'--last_only={last}')
    text, (net, _) = data.TextData(dataset), checkpoint.load_model(out / 'ckpt.pt')
    for step, (loss, norm) in enumerate(rows(out, 'train_loss', 'grad_norm').values()):
        x, y = text.windows('train', text.train_indices(6, 16, ckpt['loop']['seed'], step), 16)
        losses = -net(x)[0].log_softmax(-1).gather(-1, y[:, :, None])[:, :, 0]
        expected = losses[:, -1].mean() if last else losses.mean()
        grads = torch.autograd.grad(expected, list(net.parameters()))
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert norm == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in grads)), rel=1e-4)


@pytest.mark.parametrize('arch', [[], PACING, LAST], ids=['gpt', 'pacing', 'pacing-last'])
@torch.no_grad()
def test_evaluation_by_brute_force(dataset, arch):
    """Loss and accuracy, one window at a time; batches of 4 do not divide the 27 windows."""
    text = data.TextData(dataset)
    torch.manual_seed(0)
    net = runs.new_model(config.load(words_of(dataset, 'x', *arch), train.TrainConfig), text)
    for p in net.parameters():
        p += 0.1 * torch.randn_like(p)
    starts = text.val_indices(27, 16)
    found = train.evaluate(net, text, starts, 4, device.setup('cpu', 'float32', False))
    values = []
    for start in starts:
        tokens = torch.tensor(text.tokens['val'][start:start + 17].tolist())
        logits = net.eval()(tokens[None, :-1])[0][0]
        target = tokens[-len(logits):]
        values.append(torch.stack([logits.argmax(-1) == target, -logits.log_softmax(-1)[range(len(target)), target]]))
    (accuracy, loss), last = torch.stack(values).mean((0, 2)).tolist(), torch.stack(values)[..., -1].mean(0).tolist()
    assert len(target) == (1 if arch == LAST else 16) and 0 < last[0] < 1
    expected = {'accuracy': accuracy, 'val_loss': loss, 'accuracy_full': last[0], 'val_loss_full': last[1]}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_split_batch():
    cfg = train.TrainConfig(batch_size=12, tokens_per_step=12 * 64)
    assert [train.split_batch(cfg, 64, world) for world in (1, 2, 3, 4, 12)] == [(1, 12), (1, 6), (1, 4), (1, 3), (1, 1)]
    assert train.split_batch(dataclasses.replace(cfg, batch_size=3), 64, 2) == (2, 3)
    for changes, world, expected in (({}, 5, '768 .* 5 ranks .*320.* 640 or 960'),
                                     ({'tokens_per_step': 100}, 1, '100 .* 64 or 128'),
                                     ({'tokens_per_step': 60}, 1, 'such as 64$'), ({'batch_size': 5}, 1, 'batch_size=5 .* 12')):
        assert re.search(expected, sentence(train.split_batch, dataclasses.replace(cfg, **changes), 64, world))


def test_compile_without_a_compiler(monkeypatch):
    monkeypatch.setenv('CXX', 'no-compiler')
    assert not device.setup('cpu', 'float32').compile
    assert "'no-compiler' is not found" in sentence(device.setup, 'cpu', 'float32', True)


def test_number_formats(monkeypatch):
    cpu, cuda, mps = (torch.device(n) for n in ('cpu', 'cuda', 'mps'))
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda **k: True)
    assert device.number_format(cuda)[0] == torch.bfloat16
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda **k: False)
    assert device.number_format(cuda)[0] == torch.float16
    assert device.number_format(mps)[0] == device.number_format(cpu)[0] == torch.float32
    assert device.number_format(cpu, 'bfloat16')[0] == torch.bfloat16
    assert ['TF32' in device.number_format(where, 'float32')[1] for where in (cuda, mps, cpu)] == [True, False, False]
    for where, name in ((cuda, 'bfloat16'), (mps, 'bfloat16'), (cpu, 'float16'), (cpu, 'float8')):
        assert re.search(f'dtype=.?{name}', sentence(device.number_format, where, name))


@pytest.mark.parametrize('found, speed, seconds, chosen, reason', [
    ({'avx2': True}, 3, 1, 'float32', 'this CPU has no instructions for bfloat16'),
    ({'amx_bf16': True}, 1.8, 1, 'bfloat16', 'bfloat16 has 1.80 x the speed of float32'),
    ({'avx512_bf16': True}, 1.05, 1, 'float32', 'bfloat16 has 1.05 x the speed of float32'),
    ({'amx_bf16': True}, 2.9, 1e-3, 'float32', 'a pass of 1.0 ms is too short')])
def test_dtype_auto_on_a_cpu_is_measured_and_kept(dataset, tmp_path, monkeypatch, capsys, found, speed, seconds, chosen,
                                                  reason):
    """... also when it is resumed on a CPU, or at a load, where the other format is faster."""
    def measured(model, batch, machine):
        assert len(batch[0]) == 4 and model.training
        return seconds / speed if machine.dtype == torch.bfloat16 else seconds
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: found)
    monkeypatch.setattr(device, 'pass_seconds', measured)
    formats, autocast = set(), device.Machine.autocast
    monkeypatch.setattr(device.Machine, 'autocast', lambda self: formats.add(self.dtype) or autocast(self))
    ckpt = go(dataset, tmp_path, '--dtype=auto', '--max_iters=2')
    assert f'numbers {chosen} (' in (shown := capsys.readouterr().out) and reason in shown
    speed = 3 - speed
    ckpt = go(dataset, tmp_path, '--dtype=auto', '--max_iters=4', '--resume')
    assert formats == {getattr(torch, chosen)} and ckpt['loop']['dtype'] == ('auto' if 'avx2' in found else chosen)
    assert rows(tmp_path)[-1]['val_loss'] < rows(tmp_path)[0]['val_loss']
    assert all(t.dtype == torch.float32 for t in ckpt['model'].values())


@pytest.mark.parametrize('sharded', [False, True])
def test_the_time_of_a_pass_leaves_no_trace(monkeypatch, sharded):
    """... also of a sharded model, which FSDP2 does not let be copied."""
    net = model.Model(model.Config.tiny())
    if sharded:
        monkeypatch.setattr(device.shard, 'is_sharded', lambda t: True)
        monkeypatch.setattr(model.Model, '__deepcopy__', lambda *_: pytest.fail('a copy'), raising=False)
    before, batch = {k: v.clone() for k, v in net.state_dict().items()}, torch.randint(17, (2, 3, 16))
    assert device.pass_seconds(net, batch, device.setup('cpu', 'bfloat16', False)) > 0
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize('grad_clip', ['1', '0'])
def test_an_overflow_in_float16_skips_the_step_of_all_optimizers(dataset, tmp_path, grad_clip, monkeypatch):
    """Muon's alone would leave AdamW's weights with the decay of a step, or with nan."""
    settings = config.load(words_of(dataset, tmp_path, f'--grad_clip={grad_clip}', '--dropout=0'), train.TrainConfig)
    source = data.open_data(settings.train.dataset)
    monkeypatch.setattr(device.Machine, 'scaler', lambda self: torch.amp.GradScaler('cpu', init_scale=4.0))
    trainer = train.Trainer(settings.train, runs.new_model(settings, source), source, device.setup('cpu', 'float32', False))
    assert len(trainer.optimizers) == 2
    before = [p.clone() for p in trainer.model.parameters()]
    hook = trainer.model.h[0].mlp.c_fc.weight.register_hook(lambda g: g * math.inf)
    trainer.step(0, 0.1)
    assert all(torch.equal(p, q) for p, q in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.scaler.get_scale() == 2
    hook.remove()
    trainer.step(1, 0.1)
    assert not any(torch.equal(p, q) for p, q in zip(before, trainer.model.parameters(), strict=True))
    state = trainer.state_dict() | {'step': 2}
    trainer.load_state_dict(state | {'scaler': {}}, 'ckpt.pt')      # of a run that began in float32
    assert trainer.scaler.get_scale() == 2


def test_the_time_of_training_includes_what_a_gpu_has_queued(dataset, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(device.Machine, 'synchronize', lambda self: waited.append(time.sleep(0.05)))
    found = go(dataset, tmp_path, '--max_iters=6', '--log_interval=3', '--eval_interval=6')
    assert len(waited) == 2 and found['seconds'] > 0.1


@pytest.mark.parametrize('name, words, more', [
    ('train_loss', [], ['--learning_rate=1e30']),
    ('val_loss', ['--optimizer=lion'], ['--learning_rate=1e38', '--eval_interval=1']),
    ('train_loss', [INDEX], ['--learning_rate=100', '--log_interval=100', '--eval_interval=100']),
    ('train_loss', [INDEX, '--optimizer=muon'], ['--learning_rate=1e12', '--log_interval=100', '--eval_interval=1'])])
def test_a_run_that_diverges_keeps_its_checkpoint(dataset, tmp_path, name, words, more):
    """A row shows the loss; resume drops it and ends where a run that never diverged does."""
    out, words = tmp_path / 'run', [*SGD, *words]
    go(dataset, out, *words, '--max_iters=6')
    before, kept = rows(out), (out / 'best.pt').read_bytes()
    said = sentence(go, dataset, out, *words, '--max_iters=60', '--resume', *more)
    assert re.search(rf'{name} became (nan|inf) at step \d+.*{out}/ckpt.pt holds .*learning_rate', said)
    found = rows(out)
    assert found[:7] == before and found[-1]['step'] > 6 and found[-1]['tokens'] == found[-1]['step'] * 64
    assert [k for k in ('train_loss', 'val_loss') if not math.isfinite(found[-1].get(k, 0))] == [name]
    assert checkpoint.load(out / 'ckpt.pt')['step'] == 6 and (out / 'best.pt').read_bytes() == kept
    resumed, whole = go(dataset, out, *words, '--max_iters=9', '--resume'), go(dataset, tmp_path / 'w', *words, '--max_iters=9')
    assert same(resumed['model'], whole['model']) and [r['step'] for r in rows(out)] == list(range(10))


def test_warnings_about_the_loss(dataset, tmp_path, capsys, monkeypatch):
    """A bidirectional model writes no sample, and a run with leaking_split is resumed only as such."""
    honest = go(dataset, tmp_path / 'honest', '--max_iters=5')
    assert BIDIRECTIONAL not in (shown := capsys.readouterr().out) and runs.OVERLAP not in shown and '-' * 80 in shown
    monkeypatch.setattr(model.Model, 'bidirectional', True, raising=False)
    leaks = go(dataset, tmp_path / 'leaks', '--max_iters=5', '--leaking_split')
    assert (shown := capsys.readouterr().out).count(BIDIRECTIONAL) == shown.count(runs.OVERLAP) == 1 and '-' * 80 not in shown
    assert leaks['data']['fingerprint'] != honest['data']['fingerprint'] and not same(leaks['model'], honest['model'])
    for name, more in (('leaks', []), ('honest', ['--leaking_split'])):
        assert 'its data is' in sentence(go, dataset, tmp_path / name, '--max_iters=7', '--resume', *more)
    assert go(dataset, tmp_path / 'leaks', '--max_iters=7', '--resume', '--leaking_split')['step'] == 7


def test_init_from_a_checkpoint(dataset, tmp_path, capsys):
    """The first loss is the best of that run."""
    best = go(dataset, tmp_path / 'a', '--max_iters=5')['best']
    more = ['--max_iters=1', f'--init_from={tmp_path / "a"}']
    go(dataset, tmp_path / 'b', *more)
    assert rows(tmp_path / 'b')[0]['val_loss'] == pytest.approx(best)
    assert re.search(r'n_layer is 2, .* 3', sentence(go, dataset, tmp_path / 'c', *more, '--n_layer=3'))
    capsys.readouterr()
    train.main(words_of(dataset, tmp_path / 'c', *more, '--eval_only'))
    assert f'val {best:.4f}' in capsys.readouterr().out and not (tmp_path / 'c').exists()
