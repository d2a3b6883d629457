"""What the tests share: a tiny data set, scripts run here or in a process of their own, and what a folder holds."""

import contextlib
import dataclasses
import http.server
import io
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'     # of this process and of all that it starts

import numpy as np
import pytest
import torch

import train
from harness import ROOT, SPLITS, UserError, checkpoint, data, files, optim
from prepare import common

torch.set_num_threads(1)

HANDLERS = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM))}


@pytest.fixture(autouse=True)
def handlers():
    """train.py and compare.py handle signals: what is run in this process must not go on doing so."""
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


def pytest_make_parametrize_id(val):
    """The content of a file in the name of a test is its length: names must be the same in all processes of pytest-xdist."""
    return f'{len(val)} bytes' if isinstance(val, bytes) else None


# data sets ----------------------------------------------------------------------------------------------------------------

def write_data(name, text, source):
    """data/<name>, by character.  Returns its folder."""
    common.write_text(name, text, common.char_tokenizer(text), source, 'text.py')
    return ROOT / 'data' / name


@pytest.fixture(scope='session')
def dataset():
    """data/tests_tiny: 12,000 characters of a made-up language with words and lines.  Yields its folder."""
    rng = random.Random(0)
    words = [''.join(rng.choice('abcdefgh') for _ in range(rng.randint(1, 6))) for _ in range(60)]
    text = ''
    while len(text) < 12_000:
        text += rng.choice(words) + rng.choice('  .\n')
    folder = write_data(f'tests_tiny_{os.getpid()}', text, {'name': 'a made-up language', 'sha256': '0' * 64})
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope='session')
def other_data(dataset):
    """The name of a data set with the same characters in another order."""
    folder = write_data(f'{dataset.name}_other', 'abcdefgh .\n' * 300, {'name': 'another', 'sha256': '1' * 64})
    yield folder.name
    shutil.rmtree(folder)


def task_splits(kind, seed=0, counts=(200, 60, 50)):
    """Examples of a task that can be learned: 3 tokens of 4 numbers, and 4 classes, 4 bits or a number made of them."""
    rng, splits = np.random.default_rng(seed), {}
    for split, n in zip(('train', 'val', 'test'), counts, strict=True):
        x = rng.integers(-3, 4, (n, 3, 4)).astype(np.int8)
        y = {'classify': x.sum(1).argmax(1).astype(np.uint8), 'bits': (x.sum(1) > 0).astype(np.uint8),
             'regress': x.sum((1, 2)).astype(np.float32)}[kind]
        splits[split] = x, y
    return splits


OUTPUTS = {'classify': 4, 'bits': 4, 'regress': 1}


@pytest.fixture(scope='session')
def task_data():
    """The folder of a small task: task_data(kind)."""
    folders = {}

    def folder(kind):
        if kind not in folders:
            name = f'tests_{kind}_{os.getpid()}'
            common.write_task(name, kind, task_splits(kind), OUTPUTS[kind], {'name': f'a made-up {kind}'}, 'task.py',
                             draw={'as': 'bits'})
            folders[kind] = ROOT / 'data' / name
        return folders[kind]
    yield folder
    for path in folders.values():
        shutil.rmtree(path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder in which this process looks for data/ and prepare/."""
    monkeypatch.setattr(data, 'ROOT', tmp_path)
    monkeypatch.setattr(common, 'ROOT', tmp_path)
    monkeypatch.setattr(files, 'DOWNLOADS', tmp_path / 'data' / 'downloads')
    return tmp_path


@pytest.fixture
def offline(root, monkeypatch):
    """Nothing can be downloaded; what is in data/downloads is used."""
    def download(url, name, expected=None):
        if not (files.DOWNLOADS / name).exists():
            raise OSError(f'no route to {url}')
        return real(url, name, expected)

    def from_registry(requirement, *args, **more):
        raise OSError(f'pip could not download {requirement}')
    real = files.download
    monkeypatch.setattr(files, 'download', download)
    monkeypatch.setattr(files, 'from_registry', from_registry)


@pytest.fixture
def serve(monkeypatch):
    """Start a web server on this machine: serve(do_GET) -> server, with .url and .log, the (path, Range) of each request."""
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.setenv(name, '*')
    servers = []

    def start(do_GET):
        def handle(request):
            request.server.log.append((request.path, request.headers['Range']))
            do_GET(request)
        handler = type('Handler', (http.server.BaseHTTPRequestHandler,), {'do_GET': handle, 'log_message': lambda *_: None})
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        server.url, server.log = f'http://127.0.0.1:{server.server_port}', []
        threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
        servers.append(server)
        return server
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(request, body):
    """Answer a request to such a server; body=None: 404."""
    if body is None:
        request.send_error(404)
        return
    request.send_response(200)
    request.send_header('Content-Length', str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def write_tar(path, content, mode='w:gz'):
    """An archive of {name: bytes}.  Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, raw in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


@pytest.fixture
def tree(tmp_path):
    """A copy of the code without data/, for what would otherwise write there."""
    tree = tmp_path / 'tree'
    tree.mkdir()
    for path in ROOT.glob('*.py'):
        shutil.copy(path, tree)
    for name in ('harness', 'prepare', 'race', 'views', 'extras'):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns('__pycache__'))
    return tree


# what train.py adds to a model in a checkpoint
ABOUT = {'loop': {'dataset': 'none', 'optimizer': 'muon', 'batch_size': 1, 'tokens_per_step': 0}, 'data': {'fingerprint': ''}}


def save(model, folder):
    """A run folder with a checkpoint of the model."""
    folder.mkdir(exist_ok=True)
    checkpoint.save(folder / 'ckpt.pt', {'arch': type(model).__module__, 'config': dataclasses.asdict(model.config), 'step': 1,
                                         'model': model.state_dict(), **ABOUT})


# the command line ---------------------------------------------------------------------------------------------------------

TINY = ['--n_layer=2', '--n_embd=16', '--block_size=16', '--batch_size=4', '--eval_windows=8', '--eval_interval=5',
        '--warmup_iters=2', '--sample_tokens=5', '--device=cpu']


def tiny_train(dataset, out_dir, *more):
    """The words of a training run of seconds: GPT with 2 layers of 16 channels."""
    fixed = '--dtype=float32'       # auto would measure, and choose by the load of this machine
    return ['train.py', f'--dataset={Path(dataset).name}', f'--out_dir={out_dir}', '--n_head=2', fixed, *TINY, *more]


def tiny_run(dataset, out_dir, *more, without=()):
    """That run, in this process, without these of its settings.  Returns its last checkpoint."""
    words = tiny_train(dataset, out_dir)[1:]
    train.main([*(word for word in words if word[2:].partition('=')[0] not in without), *more])
    return checkpoint.load(Path(out_dir) / 'ckpt.pt')


def resumes(run, folder, whole):
    """run(folder, *words): 5 steps, resumed, and 5 more end with the weights of `whole`, 10 steps in one go."""
    run(folder, '--max_iters=5')
    run(folder, '--max_iters=10', '--resume')
    one, two = (checkpoint.load(path / 'ckpt.pt')['model'] for path in (whole, folder))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture
def before_step(monkeypatch):
    """before_step(n, action): calls action() before step n of the runs in this process."""
    real = optim.learning_rate

    def arm(n, action):
        monkeypatch.setattr(optim, 'learning_rate', lambda cfg, step, *more: (
            action() if step == n else None, real(cfg, step, *more))[1])
    return arm


def script(path, *words):
    """Run a script of ours as the command line does, but in this process, which has imported all that takes it seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr('sys.argv', [str(path), *map(str, words)])
        patch.setattr('sys.path', [*sys.path])
        runpy.run_path(str(ROOT / path), run_name='__main__')


@pytest.fixture
def prepare(root):
    """Run prepare/<script> in this process; data/ is in an empty folder.  Returns the name of the data set."""
    def run(name, *words):
        script(f'prepare/{name}', *words)
        return next((str(word)[7:] for word in words if str(word).startswith('--name=')), name.removesuffix('.py'))
    return run


@pytest.fixture(scope='session')
def cli():
    """Run a script of ours in a process of its own: cli('train.py', ...) -> CompletedProcess, output as text."""
    def run(*words, env=None, timeout=120, launcher=(), cwd=ROOT):
        return subprocess.run([sys.executable, *launcher, *map(str, words)], cwd=cwd, capture_output=True, text=True,
                              timeout=timeout, env={**os.environ, **(env or {})})
    return run


@pytest.fixture
def refused(cli):
    """Run a script that must fail as a user's error does: exit code 1, one sentence, no traceback.  Returns the sentence.
    In this process; or, when told where (cwd=...) or in which environment (env=...), in one of its own, which takes seconds."""
    def run(*words, **more):
        if more:
            done = cli(*words, **more)
            assert done.returncode == 1, done
            printed = done.stderr
        else:
            stderr = io.StringIO()
            with pytest.raises(UserError) as e, contextlib.redirect_stderr(stderr), \
                    warnings.catch_warnings(action='error', category=UserWarning):      # it would be a second line
                script(*words)
            printed = f'{stderr.getvalue()}{e.value}\n'
        lines = [s for s in printed.splitlines() if s.strip()]
        assert len(lines) == 1, printed
        return lines[0]
    return run


def sentence(call, *args, **more):
    """What the UserError of call(*args, **more) says: one sentence, on one line."""
    with pytest.raises(UserError) as e:
        call(*args, **more)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) > 20
    return str(e.value)


def printed(main, words):
    """What a command prints, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        main(list(map(str, words)))
    return shown.getvalue()


def train_here(words, folder, *_):
    """Instead of race.processes.train(): the run in this process.  Returns None, or the reason why it failed."""
    with open(folder.with_name(f'{folder.name}.log'), 'w') as f, contextlib.redirect_stdout(f):
        try:
            train.main([*words, f'--out_dir={folder}'])
        except UserError as e:
            return str(e)


# processes that are stopped -----------------------------------------------------------------------------------------------

def begin(function, *args):
    """Call function(*args) in a process of its own, forked from one that has imported torch.  Returns the process."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['compare', 'torch._dynamo'])    # which import all that takes seconds
    process = context.Process(target=function, args=args)
    process.start()
    return process


def until(condition, process):
    """Wait for something that a process does.  Returns what condition() returned."""
    for _ in range(100_000):
        if found := condition():
            return found
        assert process.is_alive(), f'it ended with exit code {process.exitcode}'
        time.sleep(0.001)
    raise AssertionError('it never happened')


def killed(last, functions, call, *args):
    """call(*args) in a fork of this process that kills itself at the last-th call of the functions, (where, name) each.
    Returns whether that came."""
    def deadly(real):
        def count(*args, **more):
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)
        return count
    pid, calls = os.fork(), iter(range(last))
    if not pid:
        with contextlib.suppress(BaseException):
            for where, name in functions:
                setattr(where, name, deadly(getattr(where, name)))
            call(*args)
            os._exit(0)
        os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    return status != 0


needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='os.fork makes the process that is killed')


# what is there ------------------------------------------------------------------------------------------------------------

def contents(folder):
    """{path: content} of all files in a folder and its folders, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def text_of(name):
    """(the two texts of data/<name>, its meta.json); nothing else may be in the folder."""
    made = data.TextData(data.ROOT / 'data' / name)
    assert names(made.folder) == ['meta.json', 'train.bin', 'val.bin']
    return tuple(made.tokenizer.decode(made.tokens[split].tolist()) for split in ('train', 'val')), made.meta


def task_of(name):
    """({split: (x, y)}, meta.json) of data/<name>; nothing else may be in the folder."""
    task = data.open_data(name)
    assert names(task.folder) == sorted(['meta.json', *(f'{split}_{letter}.npy' for split in SPLITS for letter in 'xy')])
    for split in SPLITS:
        task.examples(split, [0])       # what a model is given
    return {split: (np.array(x), np.array(y)) for split, (x, y) in task.splits.items()}, task.meta


def byte_letters():
    """GPT-2's letter for each byte: the printable ones stand for themselves, the others are letters from 256 on."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != ' ']
    letters = {b: chr(b) for b in plain}
    return letters | {b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(plain)))}


@pytest.fixture(scope='session')
def race_configs(dataset, tmp_path_factory):
    """A folder with two configs of small networks, gpt.py and pic.py."""
    folder = tmp_path_factory.mktemp('configs')
    for name, lines in (('gpt', "arch = 'model'\nn_layer, n_head, n_embd = 1, 2, 16"),
                        ('pic', "arch = 'pacing'\nn_layer, n_embd, columns = 1, 16, 4")):
        (folder / f'{name}.py').write_text(f"{lines}\ndataset, device = '{dataset.name}', 'cpu'\n"
                                           'block_size, batch_size, eval_windows, warmup_iters = 16, 4, 8, 2\n')
    return folder
