"""Code that the commands share.  It knows no architecture."""

import argparse
import contextlib
import math
import os
import signal
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ('train', 'val', 'test')       # of a task

LEAKS = 'this model sees the tokens that it predicts: its loss is not that of a language model'
BIDIRECTIONAL = 'this model sees both sides of a token: its loss is not that of a language model, and it cannot continue a text'


class UserError(SystemExit):
    """An error that the user can fix: one sentence on stderr, exit code 1, no traceback."""


class Arguments(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors.  In an argument without a type, which may be a path, ~ is the home folder;
    an argument that is a text has type=str."""

    def __init__(self, **more):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **more)
        self.register('type', None, os.path.expanduser)

    def error(self, message):
        raise UserError(f'{message}; {self.prog} --help lists the options')


def command(main, interrupted='stopped'):
    """Runs main on the arguments of the command line.  A closed pipe (`| head`) ends it silently, Ctrl-C and a file that cannot
    be read or written with a sentence.  Characters that stdout cannot encode are replaced."""
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='replace')
    try:
        try:
            main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:         # Python flushes stdout again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        raise UserError(interrupted) from None
    except OSError as e:
        reason = ' '.join(str(e.strerror or e).split())
        raise UserError(f'{e.filename2 or e.filename or "a file"} could not be read or written ({reason}): fix that, then run '
                        f'the same command again') from None


def machine_memory():
    """The bytes of memory that this process can have: the machine's, or the limit of its container."""
    found = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):      # Windows has no sysconf
        found.append(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    with contextlib.suppress(ValueError, OSError):                      # 'max' is no limit
        found.append(int(Path('/sys/fs/cgroup/memory.max').read_text()))
    return min(found)


def require_memory(needed, settings, there=None):
    """Raises UserError if `needed` bytes are more than there are (there: of a GPU; None: of this machine).  Called before
    anything is allocated.  settings: what asks for them, such as 'batch_size=1000'."""
    there = machine_memory() if there is None else there
    if needed > there:
        raise UserError(f'{settings} would take {needed / 2 ** 30:,.1f} GiB of memory, but there are {there / 2 ** 30:,.1f} '
                        f'GiB: choose smaller values')


def catch_signals():
    """A list to which Ctrl-C and SIGTERM append, so that the caller can finish and save; a second signal kills the process."""
    caught = []

    def on_signal(number, frame):
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return caught


def describe_exception(e, path):
    """An exception in one line, with the number of the last line of the file `path` in its traceback."""
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if Path(f.filename).name == Path(path).name]
    text = f'{type(e).__name__}: {e}'
    if isinstance(e, SyntaxError) and not lines:
        lines, text = [e.lineno], f'this is not Python: {e.msg}'
    return ' '.join(f'line {(lines and lines[-1]) or "?"}: {text}'.split())
