"""What train.py, sample.py and the rest share. Nothing in here knows an architecture."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class UserError(SystemExit):
    """Something that the user can mend: one sentence on stderr, exit code 1, no traceback."""
