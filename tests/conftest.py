"""What the tests share: a tiny data set, and the command line in a real subprocess."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness import ROOT, data, files

torch.set_num_threads(1)


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
    """data/tests_tiny: 12,000 characters of a made-up language with words and lines.  Yields its folder."""
    rng = random.Random(0)
    words = [''.join(rng.choice('abcdefgh') for _ in range(rng.randint(1, 6))) for _ in range(60)]
    text = ''
    while len(text) < 12_000:
        text += rng.choice(words) + rng.choice('  .\n')
    spec = {'kind': 'char', 'chars': sorted(set(text))}
    name = f'tests_tiny_{os.getpid()}'
    data.write_text(name, text, spec, {'name': 'a made-up language', 'sha256': '0' * 64}, 'text.py')
    yield ROOT / 'data' / name
    for path in (ROOT / 'data' / name).iterdir():
        path.unlink()
    (ROOT / 'data' / name).rmdir()


TINY = ['--n_layer=2', '--n_embd=16', '--block_size=16', '--batch_size=4', '--eval_windows=8', '--eval_interval=5',
        '--warmup_iters=2', '--sample_tokens=5', '--device=cpu']


@pytest.fixture
def cli():
    """Run a script of ours in a process of its own: cli('train.py', ...) -> CompletedProcess, output as text."""
    def run(*words, env=None, timeout=120, launcher=(), cwd=ROOT):
        return subprocess.run([sys.executable, *launcher, *map(str, words)], cwd=cwd, capture_output=True, text=True,
                              timeout=timeout, env={**os.environ, 'OMP_NUM_THREADS': '1', **(env or {})})
    return run


@pytest.fixture
def refused(cli):
    """Run a script that must fail as a user's error does: exit code 1, one sentence, no traceback.  Returns the sentence."""
    def run(*words, **more):
        done = cli(*words, **more)
        assert done.returncode not in (0, None), done.stdout
        assert 'Traceback' not in done.stderr, done.stderr
        lines = [s for s in done.stderr.strip().splitlines() if s]
        assert len(lines) == 1, done.stderr
        return lines[0]
    return run


def tiny_train(dataset, out_dir, *more):
    """The words of a training run of seconds: GPT with 2 layers of 16 channels."""
    return ['train.py', f'--dataset={Path(dataset).name}', f'--out_dir={out_dir}', '--n_head=2', *TINY, *more]


@pytest.fixture
def tree(tmp_path):
    """A copy of the code without data/, for what would otherwise write there."""
    tree = tmp_path / 'tree'
    tree.mkdir()
    for path in ROOT.glob('*.py'):
        shutil.copy(path, tree)
    for name in ('harness', 'prepare'):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns('__pycache__'))
    return tree


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder in which this process looks for data/ and prepare/."""
    monkeypatch.setattr(data, 'ROOT', tmp_path)
    monkeypatch.setattr(files, 'DOWNLOADS', tmp_path / 'data' / 'downloads')
    return tmp_path
