"""Runs of train.py in their own processes, one at a time."""

import contextlib
import signal
import subprocess
import time
from pathlib import Path

from tqdm import tqdm

from harness import ROOT, log, runs


def git(*words, root=ROOT):
    """(exit status, what it prints); status 128 where there is no git."""
    try:
        found = subprocess.run(['git', '-C', str(root), *map(str, words)], capture_output=True, text=True)
    except OSError:
        return 128, ''
    return found.returncode, found.stdout.strip()


def commit():
    """The commit of this code, with a + if its files differ from it; empty where git does not know it."""
    return git('describe', '--always', '--dirty=+', '--exclude=*', '--abbrev=12')[1]


def uncommitted(paths, root=ROOT):
    """Those of the paths that git does not keep."""
    return [path for path in paths if git('ls-files', '--error-unmatch', Path(path).resolve(), root=root)[0]]


def changed_since(commit, root=ROOT):
    """Whether code that a race runs has changed since a commit, or the commit is unknown."""
    return git('diff', '--quiet', commit, '--', '*.py', ':!tests', ':!config/claims', root=root)[0] != 0


def interrupt_on_signals():
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, so that they also stop the run that is being trained."""
    for number in (signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)):
        signal.signal(number, signal.default_int_handler)


def train(words, folder, progress):
    """One run of train.py; what it prints goes to <folder>.log.  Returns None, or the reason why it failed.

    progress(rows): called every half second with the rows of metrics.csv."""
    resume = ['--resume'] if (folder / 'ckpt.pt').exists() else []
    if not resume:
        runs.remove(folder)             # what a run left that was killed before its first checkpoint
    printed = folder.with_name(f'{folder.name}.log')
    # in its own session, so that Ctrl-C reaches it once, through terminate() below
    with open(printed, 'w') as f, runs.start([*words, f'--out_dir={folder}', *resume], stdout=f, stderr=f,
                                             start_new_session=True) as process:
        try:
            while process.poll() is None:
                time.sleep(0.5)
                progress(read_rows(folder))
        except BaseException:           # Ctrl-C, a signal, or a closed pipe
            process.terminate()         # train.py finishes the step and saves
            process.wait()
            raise
    if process.returncode == 0:
        return None
    lines = [line for line in printed.read_text(errors='replace').splitlines() if line.strip()]
    return lines[-1] if lines else f'it was killed by signal {-process.returncode}'


def read_rows(folder):
    """The rows of a run's metrics.csv; none while it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        return log.read(folder / 'metrics.csv')
    return []


def spent(max_iters, max_seconds, row):
    """The share of its budget that a run has spent, 0 to 1.  row: the last one of metrics.csv.  A limit of 0 is none."""
    limits = (row.get('step', 0), max_iters), (row.get('seconds', 0), max_seconds)
    return min(1.0, max(value / limit for value, limit in limits if limit))


def stopped_early(stop_after, rows):
    """Whether the setting stop_after has ended a run.  rows: of metrics.csv."""
    losses = [row['val_loss'] for row in rows if 'val_loss' in row]
    return bool(losses) and 0 < stop_after < len(losses) - losses.index(min(losses))


@contextlib.contextmanager
def progress_bar(total):
    """Yields show(done, text): a bar in a terminal, elsewhere a line at most every 20 seconds."""
    beat = log.Heartbeat()
    with tqdm(total=total, bar_format='{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {desc}', leave=False,
              disable=None) as bar:
        def show(done, text):
            bar.n = done
            bar.set_description_str(text)
            beat(f'{text}, {done / total:.0%} of all')
        yield show
