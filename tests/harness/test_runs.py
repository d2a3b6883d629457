"""The folder of a run: one process writes it, a kill at any moment loses nothing, and --overwrite keeps the old run until the
new one has been evaluated after a step."""

import contextlib
import importlib.machinery
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from conftest import contents, killed, needs_fork, sentence, tiny_train
from tqdm import tqdm

import train
from harness import UserError, checkpoint, command, device, log, runs

WORDS = ['--n_layer=1', '--eval_interval=2', '--log_interval=1', '--max_iters=6', '--schedule=constant', '--sample_tokens=0']
MEASURED = ('seconds', 'tokens_per_second', 'memory')


def words_of(dataset, out_dir, *more):
    return tiny_train(dataset, out_dir, *WORDS, *more)[1:]


def run_of(folder):
    """What a folder says of its run: the weights, the optimizers and the metrics, without times and memory."""
    content, table = checkpoint.load(folder / 'ckpt.pt'), log.read(folder / 'metrics.csv')
    tensors = io.BytesIO()
    torch.save((content['model'], content['optimizers'], content['step'], content['best']), tensors)
    return tensors.getvalue(), [{k: v for k, v in r.items() if k not in MEASURED} for r in table]


@pytest.fixture(scope='module')
def finished(dataset, tmp_path_factory):
    """The folder of a run with seed 1, to read only: `old` is a copy."""
    out = tmp_path_factory.mktemp('finished') / 'run'
    train.main(words_of(dataset, out, '--seed=1'))
    return out


@pytest.fixture
def old(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / 'run')


# kills --------------------------------------------------------------------------------------------------------------------

def trained(words, moment=None):
    """train.main(words), in which this process is killed at a moment, counted in calls and returns of functions.  Returns their
    number."""
    count = 0

    def profile(*_):
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
    tqdm.set_lock(threading.RLock())        # its own lock is shared with the process that forked this one
    sys.setprofile(profile)
    train.main(words)
    sys.setprofile(None)
    return count


@needs_fork
@pytest.mark.parametrize('optimizer', ['muon', 'adamw', 'lion'])
def test_kills_at_random_moments(dataset, tmp_path, monkeypatch, optimizer):
    """Runs that are killed and resumed, 20 times in all, end as the one that was never killed."""
    monkeypatch.setattr(log.Log, 'plot', lambda *_: None)           # it takes most of the time
    words = [f'--optimizer={optimizer}', '--dropout=0.2']
    train.main(words_of(dataset, tmp_path / 'whole', *words))
    length = trained(words_of(dataset, tmp_path / 'again', *words))
    rng, kills, ended, step, out = random.Random(optimizer), 0, 0, -1, tmp_path / '0'
    while kills < 20 or ended < 2:
        resume = ['--resume'] if (out / 'ckpt.pt').exists() else ['--overwrite']
        if killed(0, (), trained, words_of(dataset, out, *words, *resume), rng.randrange(1, length)):
            kills += 1
            if (out / 'ckpt.pt').exists():
                now = checkpoint.load(out / 'ckpt.pt')['step']
                assert now >= step and log.read(out / 'metrics.csv')[-1]['step'] >= now     # a row precedes its checkpoint
                step = now
            continue
        assert run_of(out) == run_of(tmp_path / 'whole')
        ended, step, out = ended + 1, -1, tmp_path / str(ended + 1)


WRITES = ((os, 'replace'), (os, 'rename'), (os, 'fsync'), (os, 'rmdir'), (os, 'unlink'), (torch, 'save'), (Path, 'mkdir'))


@needs_fork
def test_an_overwrite_that_is_killed_at_any_write(dataset, finished, tmp_path, monkeypatch):
    """The next start finds the whole old run, or the whole new one from its first evaluation after a step on."""
    monkeypatch.setattr(log.Log, 'plot', lambda *_: None)
    words = ['--seed=2', '--overwrite', '--max_iters=3']
    before, ends, event = contents(finished), [], 'events.out.tfevents.1'
    for last in range(100):
        out = shutil.copytree(finished, tmp_path / str(last))
        (out / event).write_text('of the old run')
        if not killed(last, WRITES, train.main, words_of(dataset, out, *words)):
            break
        if (out / '.new').exists():                                 # the old run is as it was for whoever reads it now
            assert contents(out).items() >= before.items()
        cfg = train.TrainConfig(resume=True)
        with runs.Folder(out) as folder:
            folder.claim(cfg)
        content = checkpoint.load(out / 'ckpt.pt')
        ends.append(content['loop']['seed'])
        steps = [r['step'] for r in log.read(out / 'metrics.csv')]
        if ends[-1] == 1:
            assert contents(out).items() >= before.items() and (out / event).exists()
        else:
            assert content['step'] >= 2 and content['step'] in steps and not (out / event).exists()
            assert json.loads((out / 'config.json').read_text())['loop']['seed'] == 2
        assert not list(out.glob('.new')) and not list(out.glob('.done'))
    assert ends == sorted(ends) and set(ends) == {1, 2} and len(ends) > 20
    assert checkpoint.load(out / 'ckpt.pt')['step'] == 3


# overwrite ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('more, expected', [
    ('--optimizer=sgd --learning_rate=1e30 --grad_clip=0', 'became'), ('--n_head=3', 'n_head=3'), ('crash', 'a bug'),
    ('stop', 'stopped at step 2'), ('--tensorboard', 'pip install tensorboard')])
def test_the_old_run_stays_until_the_new_one_is_evaluated(dataset, old, monkeypatch, capsys, more, expected):
    before, real = contents(old), train.optim.learning_rate
    monkeypatch.setitem(sys.modules, 'tensorboard', None)

    def at_a_step(cfg, step, *rest):
        if step == 1 and more == 'crash':
            raise RuntimeError('a bug')
        if step == 1 and more == 'stop':
            os.kill(os.getpid(), signal.SIGTERM)
        return real(cfg, step, *rest)
    monkeypatch.setattr(train.optim, 'learning_rate', at_a_step)
    words = words_of(dataset, old, '--overwrite', '--eval_interval=3', *(more.split() if more.startswith('-') else ()))
    with contextlib.nullcontext() if more == 'stop' else pytest.raises((UserError, RuntimeError)) as e:
        train.main(words)
    said = str(e.value) if e else capsys.readouterr().out
    assert expected in said and ('became' not in said or f'the run in {old} is unchanged' in said)
    assert contents(old).items() >= before.items()
    monkeypatch.undo()
    train.main(words_of(dataset, old, '--resume'))
    assert contents(old) | {'config.json': before['config.json']} == before


def test_torchrun_restarts_what_it_began(old, monkeypatch):
    """A run is resumed from its own checkpoint only: not from that of the run that it replaces, or that it was refused for."""
    def claim(attempt, **settings):
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', str(attempt))
        cfg = train.TrainConfig(**settings)
        with runs.Folder(old) as folder:
            folder.claim(cfg)
            return cfg.resume, cfg.overwrite, folder.staged
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    for attempt in (0, 1):
        assert 'already holds a run' in sentence(claim, attempt)
    assert claim(0, resume=True) == claim(1, resume=True) == (True, False, False)
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'another')
    assert claim(0, overwrite=True) == claim(1, overwrite=True) == (False, True, True)      # it failed before it was evaluated
    shutil.rmtree(old / '.new')                                                             # as by promote()
    assert claim(2, overwrite=True) == (True, False, False)


# one process --------------------------------------------------------------------------------------------------------------

def test_two_processes_never_write_one_folder(dataset, old):
    before = contents(old)
    with runs.lock(old, '--out_dir') as f:
        for flag in ('--resume', '--overwrite', '--seed=3'):
            said = sentence(train.main, words_of(dataset, old, flag))
            assert f'{old} is in use' in said
        for flag in ('--dry_run', '--eval_only'):
            train.main(words_of(dataset, old, flag))
        assert contents(old) == before
    assert f.closed
    train.main(words_of(dataset, old, '--resume'))


@pytest.mark.parametrize('again', [False, True], ids=['gone', 'replaced'])
def test_a_folder_that_is_removed_during_the_run(dataset, old, tmp_path, monkeypatch, again):
    """Another run may be in its place; nothing is written there, and there is nothing to resume."""
    real, other = train.optim.learning_rate, tmp_path / 'other'
    shutil.copytree(old, other)

    def remove(cfg, step, *rest):
        if step == 7:
            shutil.rmtree(old)
            if again:
                other.rename(old)
        return real(cfg, step, *rest)
    monkeypatch.setattr(train.optim, 'learning_rate', remove)
    before = contents(old)
    said = sentence(train.main, words_of(dataset, old, '--resume', '--max_iters=20'))
    assert f'{old} was removed' in said and '--resume' not in said
    assert contents(old) == before if again else not old.exists()


@pytest.mark.parametrize('name', ['metrics.csv', 'ckpt.pt'])
def test_a_file_that_is_removed_during_the_run(dataset, old, monkeypatch, name):
    """No message names what is gone."""
    with log.atomic(old / 'metrics.csv', 'w') as f:
        f.write('step\n')
    kept = log.Log(old, None, (), train.TrainConfig(), {})
    (old / name).unlink()
    if name == 'metrics.csv':
        assert 'metrics.csv could not be written' in (said := sentence(lambda: kept.write(1))) and '--resume continues' in said
    else:
        (old / 'metrics.csv').unlink()
        assert '--resume' not in sentence(lambda: kept.write(1))
        with pytest.raises(checkpoint.NotFinite, match='not finite') as e:
            checkpoint.save(old / name, {'step': 1, 'model': {'w': torch.tensor(torch.nan)}})
        assert name not in str(e.value)


# what goes wrong in a run -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words', ['--optimizer=sgd --learning_rate=100', '--learning_rate=1e12',
                                   '--learning_rate=1e12 --eval_interval=1'])
def test_a_run_that_diverges_ends_with_its_loss(dataset, tmp_path, words):
    """Whatever the architecture does with a nan: this one takes it for an index."""
    said = sentence(train.main, [
        '--arch=highorder', f'--dataset={dataset.name}', f'--out_dir={tmp_path}', '--block_size=16', '--batch_size=4',
        '--device=cpu', '--eval_windows=8', '--eval_interval=100', '--max_iters=60', '--warmup_iters=2', *words.split()])
    assert 'loss became ' in said and f'{tmp_path}/ckpt.pt holds' in said and 'learning_rate' in said
    last = log.read(tmp_path / 'metrics.csv')[-1]
    assert checkpoint.load(tmp_path / 'ckpt.pt')['step'] < last['step']
    assert not all(math.isfinite(last.get(k, 0)) for k in ('train_loss', 'val_loss'))


def test_another_error_is_no_divergence(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(train.Trainer, 'batch', lambda *_: [][1])
    with pytest.raises(IndexError):
        train.main(words_of(dataset, tmp_path / 'run'))


def test_weights_that_are_not_finite_under_a_finite_loss(dataset, tmp_path, monkeypatch):
    """The log shows that the run has diverged, so that a race does not try it again."""
    real = train.Trainer.step

    def step(trainer, now, lr):
        found = real(trainer, now, lr)
        if now == 2:
            trainer.model.ln_f.weight.data[0] = torch.nan
            monkeypatch.setattr(train, 'evaluate', lambda *_: {'val_loss': 1.0, 'val_loss_full': 1.0})
        return found
    monkeypatch.setattr(train.Trainer, 'step', step)
    assert 'ln_f.weight' in sentence(train.main, words_of(dataset, tmp_path / 'run', '--max_iters=3'))
    assert math.isnan(log.read(tmp_path / 'run' / 'metrics.csv')[-1]['train_loss'])


def test_a_column_of_another_version_is_kept(dataset, old):
    lines = (old / 'metrics.csv').read_text().splitlines()
    (old / 'metrics.csv').write_text('\n'.join([f'{lines[0]},mine', *(f'{line},7' for line in lines[1:])]) + '\n')
    train.main(words_of(dataset, old, '--resume', '--max_iters=7'))
    found = log.read(old / 'metrics.csv')
    assert [r.get('mine') for r in found] == [7.0] * (len(found) - 1) + [None] and found[-1]['step'] == 7


@pytest.mark.parametrize('was, now, expected', [
    (False, True, 'its init_from is scratch, this run has'), (True, False, ''), (True, True, '')])
def test_resume_goes_with_the_init_from_of_the_run(dataset, finished, tmp_path, was, now, expected):
    words, source = words_of(dataset, tmp_path / 'run', '--max_iters=1'), [f'--init_from={finished}']
    train.main(words + source * was)
    again = [*words, '--resume', '--max_iters=2', *source * now]
    if expected:
        assert expected in sentence(train.main, again)
        return
    train.main(again)
    assert checkpoint.load(tmp_path / 'run' / 'ckpt.pt')['loop']['init_from'] == str(finished)


# TensorBoard and Weights & Biases -----------------------------------------------------------------------------------------

class Tracker:
    """In place of both packages: writes down what it is told."""

    def __init__(self, out_dir='', purge_step=None, **settings):
        self.told, self.settings = [], settings | {'out_dir': out_dir, 'purge_step': purge_step}
        if out_dir:
            (Path(out_dir) / f'events.out.tfevents.{len(list(Path(out_dir).glob("events*")))}').write_text('')

    def add_scalar(self, name, value, step):
        self.told.append((step, name))

    def log(self, values, step):
        self.told += [(step, name) for name in values]

    def close(self):
        self.told.append('closed')
    finish = close


@pytest.fixture
def trackers(monkeypatch):
    """The Trackers that were made, and modules that make them in place of the packages."""
    made = []

    def make(*args, **more):
        made.append(Tracker(*args, **more))
        return made[-1]
    for name, parts in (('tensorboard', {}), ('torch.utils.tensorboard', {'SummaryWriter': make}), ('wandb', {'init': make})):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    return made


def test_trackers(dataset, tmp_path, trackers):
    """In a folder of any name.  A resumed run has the same id, and only later events are purged; an overwritten one another."""
    out = tmp_path / 'a b: #1/%é?'
    words = words_of(dataset, out, '--tensorboard', '--wandb_log')
    train.main(words)
    train.main([*words, '--resume', '--max_iters=8'])
    train.main([*words, '--overwrite'])
    (b1, w1), (b2, w2), (b3, w3) = (trackers[i:i + 2] for i in (0, 2, 4))
    assert [b.settings['purge_step'] for b in (b1, b2, b3)] == [None, 7, None]
    ids = [w.settings['id'] for w in (w1, w2, w3)]
    assert ids[0] == ids[1] != ids[2] == (out / 'wandb_id').read_text() and all(i.isalnum() and len(i) < 64 for i in ids)
    assert all(t.told[-1] == 'closed' and t.settings.get('resume') in (None, 'allow') for t in trackers)
    for t, steps in ((b1, range(7)), (w1, range(7)), (b2, (7, 8)), (w2, (7, 8)), (b3, range(7)), (w3, range(7))):
        assert list(dict.fromkeys(step for step, name in t.told[:-1])) == list(steps)
        assert t.told.count((max(steps), 'val_loss')) == 1
    assert len(list(out.glob('events*'))) == 1


# the system ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('env, expected', [
    ({}, (1, 0, 0)), ({'WORLD_SIZE': '1'}, (1, 0, 0)), ({'WORLD_SIZE': ''}, (1, 0, 0)),
    ({'WORLD_SIZE': '4', 'RANK': '3', 'LOCAL_RANK': '1', 'MASTER_ADDR': 'a', 'MASTER_PORT': '1'}, (4, 3, 1)),
    ({'WORLD_SIZE': '2'}, 'WORLD_SIZE=2, RANK=(not set)'), ({'WORLD_SIZE': 'two'}, 'WORLD_SIZE=two'), ({'RANK': '1'}, 'RANK=1'),
    ({'LOCAL_RANK': '1'}, 'LOCAL_RANK=1'), ({'WORLD_SIZE': '2', 'RANK': '0'}, 'RANK=0'), ({'WORLD_SIZE': '0'}, 'WORLD_SIZE=0'),
    ({'WORLD_SIZE': '2', 'RANK': '2', 'MASTER_ADDR': 'a', 'MASTER_PORT': '1'}, 'RANK=2')], ids=str)
def test_the_environment_of_torchrun(monkeypatch, env, expected):
    for name in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, tuple):
        assert device.ranks() == expected
    else:
        assert expected in sentence(device.setup, 'cpu')


@pytest.mark.parametrize('encoding', ['cp1252', 'ascii'])
def test_a_terminal_that_cannot_show_a_text(monkeypatch, encoding):
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, 'stdout', shown)
    command(lambda argv: print('a → b \udce9'))
    assert shown.buffer.getvalue().decode().splitlines() == ['a ? b ?']


def fail(error):
    raise error


def whole(path):
    with log.atomic(path) as f:
        f.write(b'x')


@pytest.mark.parametrize('error, expected', [
    (PermissionError(13, 'Permission denied', 'race.json'), 'race.json .*denied'), (OSError(28, 'No space left'), 'No space'),
    (FileNotFoundError(2, 'No such file', 'a', None, 'b'), '^b .*No such file'), (OSError('odd'), 'odd')])
def test_files_that_cannot_be_written_are_a_sentence(error, expected, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=expected) as e:
        command(lambda argv: fail(error))
    assert '\n' not in str(e.value)
    monkeypatch.setattr(os, 'fsync', lambda _: fail(OSError(28, 'No space left')))
    with pytest.raises(UserError, match=r'x\.json .*No space'):
        command(lambda argv: whole(tmp_path / 'x.json'))
    assert not list(tmp_path.iterdir())
