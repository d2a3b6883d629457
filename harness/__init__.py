"""What train.py, sample.py and the rest share. Nothing in here knows an architecture."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


LEAKS = 'this model sees the tokens that it is to predict: its loss is not that of a language model'


class UserError(SystemExit):
    """Something that the user can mend: one sentence on stderr, exit code 1, no traceback."""
