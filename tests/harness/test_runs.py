"""The folder of a run: one process writes it, a kill loses nothing, and --overwrite keeps the old run until there is a new."""

import contextlib
import functools
import importlib.machinery
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from unittest import mock

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
    train.main(words_of(dataset, out := tmp_path_factory.mktemp('finished'), '--seed=1'))
    return out


@pytest.fixture
def old(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / 'run')


# kills --------------------------------------------------------------------------------------------------------------------

def trained(words, moment=None):
    """train.main(words), killed at a moment, counted in calls and returns of functions.  Returns their number."""
    count = itertools.count(1)

    def profile(*_):
        if next(count) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
    tqdm.set_lock(threading.RLock())        # its own lock is shared with the process that forked this one
    sys.setprofile(profile)
    train.main(words)
    sys.setprofile(None)
    return next(count)


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


@needs_fork
def test_an_overwrite_that_is_killed_at_any_write(dataset, finished, tmp_path, monkeypatch):
    """The next start finds the whole old run, or the whole new one from its first evaluation after a step on."""
    monkeypatch.setattr(log.Log, 'plot', lambda *_: None)
    words = ['--seed=2', '--overwrite', '--max_iters=3']
    writes = *((os, name) for name in ('replace', 'rename', 'fsync', 'rmdir', 'unlink')), (torch, 'save'), (Path, 'mkdir')
    before, ends, event = contents(finished), [], 'events.out.tfevents.1'
    for last in range(100):
        out = shutil.copytree(finished, tmp_path / str(last))
        (out / event).write_text('of the old run')
        if not killed(last, writes, train.main, words_of(dataset, out, *words)):
            break
        if (out / '.new').exists():                                 # the old run is as it was for whoever reads it now
            assert contents(out).items() >= before.items()
        with runs.Folder(out) as folder:
            folder.claim(train.TrainConfig(resume=True))
        content = checkpoint.load(out / 'ckpt.pt')
        ends.append(content['loop']['seed'])
        steps = [r['step'] for r in log.read(out / 'metrics.csv')]
        assert (out / event).exists() == (ends[-1] == 1) and content['step'] in steps and content['step'] >= 2
        assert json.loads((out / 'config.json').read_text())['loop']['seed'] == ends[-1]
        assert ends[-1] == 2 or contents(out).items() >= before.items()
        assert not list(out.glob('.new')) and not list(out.glob('.done'))
    assert ends == sorted(ends) and set(ends) == {1, 2} and len(ends) > 20
    assert checkpoint.load(out / 'ckpt.pt')['step'] == 3


# overwrite ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('more, expected', [
    ('--optimizer=sgd --learning_rate=1e30 --grad_clip=0', 'the run in .* is unchanged'), ('--n_head=3', 'n_head=3'),
    ('crash', 'a bug'), ('stop', 'stopped at step 2'), ('--tensorboard', 'pip install tensorboard'),
    ('--wandb_log', 'pip install wandb')])
def test_the_old_run_stays_until_the_new_one_is_evaluated(dataset, old, before_step, monkeypatch, capsys, more, expected):
    before, words = contents(old), ['--overwrite', '--eval_interval=3', *(more.split() if more.startswith('-') else ())]
    for name in ('tensorboard', 'wandb'):
        monkeypatch.setitem(sys.modules, name, None)                # as if it were not installed
    stop = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
    before_step(1, {'crash': mock.Mock(side_effect=RuntimeError('a bug')), 'stop': stop}.get(more, mock.Mock()))
    with contextlib.nullcontext() if more == 'stop' else pytest.raises((UserError, RuntimeError)) as e:
        train.main(words_of(dataset, old, *words))
    assert re.search(expected, str(e.value) if e else capsys.readouterr().out)
    assert contents(old).items() >= before.items()
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
            assert f'{old} is in use' in sentence(train.main, words_of(dataset, old, flag))
        for flag in ('--dry_run', '--eval_only'):
            train.main(words_of(dataset, old, flag))
        assert contents(old) == before
    assert f.closed
    train.main(words_of(dataset, old, '--resume'))


@pytest.mark.parametrize('again', [False, True], ids=['gone', 'replaced'])
def test_a_folder_that_is_removed_during_the_run(dataset, old, tmp_path, before_step, again):
    """Another run may be in its place; nothing is written there, and there is nothing to resume."""
    other, before = shutil.copytree(old, tmp_path / 'other'), contents(old)
    before_step(7, lambda: (shutil.rmtree(old), other.rename(old) if again else None))
    said = sentence(train.main, words_of(dataset, old, '--resume', '--max_iters=20'))
    assert f'{old} was removed' in said and '--resume' not in said and contents(old) == (before if again else {})


@pytest.mark.parametrize('name', ['metrics.csv', 'ckpt.pt'])
def test_a_file_that_is_removed_during_the_run(dataset, old, before_step, name):
    """No message advises what would need it."""
    before_step(7, (old / name).unlink)
    words = words_of(dataset, old, '--resume', '--max_iters=9', *['--learning_rate=1e30'] * (name == 'ckpt.pt'))
    said = sentence(train.main, words)
    assert re.search('metrics.csv.*--resume', said) if name == 'metrics.csv' else ('became' in said and 'ckpt.pt' not in said)


# what goes wrong in a run -------------------------------------------------------------------------------------------------

def test_weights_that_are_not_finite_under_a_finite_loss(dataset, old, monkeypatch):
    """They are not saved, and the log shows that the run has diverged, so that a race does not try it again."""
    before, real = (old / 'ckpt.pt').read_bytes(), train.evaluate

    def evaluate(model, *more):
        model.ln_f.weight.data[0] = torch.inf
        return dict.fromkeys(real(model, *more), 1.0)
    monkeypatch.setattr(train, 'evaluate', evaluate)
    assert re.search(r'at step \d+ .*ln_f.weight', sentence(train.main, words_of(dataset, old, '--resume', '--max_iters=7')))
    assert math.isnan(log.read(old / 'metrics.csv')[-1]['train_loss']) and (old / 'ckpt.pt').read_bytes() == before
    monkeypatch.setattr(train.Trainer, 'step', lambda *_: [][1])
    with pytest.raises(IndexError):             # another error is no divergence
        train.main(words_of(dataset, old, '--resume', '--max_iters=8'))


def test_a_column_of_another_version_is_kept(dataset, old):
    text = (old / 'metrics.csv').read_text()
    (old / 'metrics.csv').write_text(text.replace('\n', ',7\n').replace(',7', ',mine', 1))
    train.main(words_of(dataset, old, '--resume', '--max_iters=7'))
    found = log.read(old / 'metrics.csv')
    assert [r.get('mine') for r in found] == [7.0] * (len(found) - 1) + [None] and found[-1]['step'] == 7


def test_resume_goes_with_the_init_from_of_the_run(dataset, finished, tmp_path):
    words, source = words_of(dataset, tmp_path / 'run', '--max_iters=1'), f'--init_from={finished}'
    train.main(words)
    assert 'its init_from is scratch, this run has' in sentence(train.main, [*words, '--resume', '--max_iters=2', source])
    train.main([*words, '--overwrite', source])
    for more in (['--max_iters=2'], ['--max_iters=3', source]):
        train.main([*words, '--resume', *more])
        assert checkpoint.load(tmp_path / 'run' / 'ckpt.pt')['loop']['init_from'] == str(finished)


@pytest.mark.parametrize('kilobytes, more, expected', [     # from the first block on, torch has an error of its own
    *((size, '--max_iters=8 --learning_rate=0 --min_lr=0', ['ckpt.pt could not be written', '--out_dir']) for size in (4, 40)),
    (4, '--max_iters=1000 --eval_interval=10000', ['metrics.csv could not be written', '--resume'])])
def test_a_full_disk_keeps_the_checkpoint(dataset, old, capfd, kilobytes, more, expected):
    """On a disk that accepts no longer file."""
    resource, before = pytest.importorskip('resource'), contents(old)
    assert len(before['ckpt.pt']) > 1024 * kilobytes > 2 * len(before['metrics.csv'])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, limits[1]))
    try:
        said = sentence(train.main, words_of(dataset, old, '--resume', *more.split()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert all(s in said for s in ['too large', *expected]) and capfd.readouterr().err == ''
    after = contents(old)
    assert after.keys() == before.keys() and all(after[name] == before[name] for name in ('ckpt.pt', 'best.pt'))
    train.main(words_of(dataset, old, '--resume', '--max_iters=12'))                    # there is space again
    steps = [r['step'] for r in log.read(old / 'metrics.csv')]
    assert steps[-1] == 12 and steps == sorted(set(steps))


# checkpoints --------------------------------------------------------------------------------------------------------------

class Code(type(Path())):
    """Pickled, it is a call that makes this file."""

    def __reduce__(self):
        return open, (str(self), 'w')


@pytest.mark.parametrize('old_format', [False, True])
def test_a_bad_checkpoint_is_refused_and_runs_nothing(refused, dataset, old, tmp_path, old_format):
    """In torch's format of today, and in that of before 1.6."""
    marker, content = tmp_path / 'marker', checkpoint.load(old / 'ckpt.pt')
    for path in (old / 'best.pt', old / 'ckpt.pt'):
        torch.save(content | {'step': Code(marker)}, path, _use_new_zipfile_serialization=not old_format)
    before = contents(old)
    for words in (['sample.py', old], tiny_train(dataset, old, '--resume'),
                  tiny_train(dataset, tmp_path / 'new', f'--init_from={old / "ckpt.pt"}')):
        assert re.search(f'{old}.*not a checkpoint', refused(*words))
    assert contents(old) == before and not marker.exists() and not (tmp_path / 'new').exists()
    torch.load(old / 'best.pt', weights_only=False)     # it is code indeed
    assert marker.exists()


def test_every_damaged_or_missing_byte_is_noticed(finished, tmp_path):
    """torch itself would load a file with a damaged weight."""
    path, content = tmp_path / 'best.pt', (finished / 'best.pt').read_bytes()
    weights = checkpoint.load(finished / 'best.pt')['model']['h.0.mlp.c_fc.weight'].numpy().tobytes()
    at = content.index(weights)
    for where in (at, at + len(weights) // 2, at + len(weights) - 1):
        path.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1:])
        torch.load(path)
        assert 'not a checkpoint' in sentence(checkpoint.load, path)
    for fraction in (0, 0.01, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[:int(fraction * len(content))])
        assert 'not a checkpoint' in sentence(checkpoint.load, path)


def test_trackers(dataset, tmp_path, monkeypatch):
    """In a folder of any name.  A resumed run has the same id, and only later events are purged; an overwritten one another."""
    packages, out = mock.Mock(), tmp_path / 'a b: #1/%é?'
    board, wandb = packages.board, packages.wandb
    for name, module in (('tensorboard', board), ('torch.utils.tensorboard', board), ('wandb', wandb)):
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    ids = []
    for more, purged, steps in (([], None, [*range(7)]), (['--resume', '--max_iters=8'], 7, [7, 8]),
                                (['--overwrite'], None, [*range(7)])):
        packages.reset_mock()
        train.main(words_of(dataset, out, '--tensorboard', '--wandb_log', *more))
        ids.append(wandb.init.call_args.kwargs['id'])
        assert board.SummaryWriter.call_args.args == (out,) and wandb.init.call_args.kwargs['resume'] == 'allow'
        assert board.SummaryWriter.call_args.kwargs['purge_step'] == purged
        scalars, rows = board.SummaryWriter().add_scalar.call_args_list, wandb.init().log.call_args_list
        assert list(dict.fromkeys(c.args[2] for c in scalars)) == [c.kwargs['step'] for c in rows] == steps
        assert [c.args[2] for c in scalars if c.args[0] == 'val_loss'].count(steps[-1]) == 1 and 'val_loss' in rows[-1].args[0]
        assert board.SummaryWriter().close.called and wandb.init().finish.called
    assert ids[0] == ids[1] != ids[2] == (out / 'wandb_id').read_text() and all(i.isalnum() and len(i) < 64 for i in ids)


# the system ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('env, expected', [
    ('', (1, 0, 0)), ('WORLD_SIZE=1', (1, 0, 0)), ('WORLD_SIZE=', (1, 0, 0)), ('WORLD_SIZE=2', 'WORLD_SIZE=2, RANK=(not set)'),
    ('WORLD_SIZE=4 RANK=3 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=1', (4, 3, 1)), ('WORLD_SIZE=two', 'WORLD_SIZE=two'),
    ('WORLD_SIZE=2 RANK=2 MASTER_ADDR=a MASTER_PORT=1', 'RANK=2'), ('RANK=1', 'RANK=1'), ('LOCAL_RANK=1', 'LOCAL_RANK=1'),
    ('WORLD_SIZE=2 RANK=0', 'RANK=0'), ('WORLD_SIZE=0', 'WORLD_SIZE=0')])
def test_the_environment_of_torchrun(env, expected):
    with mock.patch.dict(os.environ, dict(pair.split('=') for pair in env.split()), clear=True):
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


@pytest.mark.parametrize('error, expected', [
    (PermissionError(13, 'Permission denied', 'race.json'), 'race.json .*denied'), (OSError('odd\nlines'), 'odd lines'),
    (FileNotFoundError(2, 'No such file', 'a', None, 'b'), '^b .*No such file')])
def test_files_that_cannot_be_written_are_a_sentence(error, expected):
    assert re.search(expected, sentence(command, mock.Mock(side_effect=error)))
