"""What train.py, sample.py and the rest share. Nothing in here knows an architecture."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


LEAKS = 'this model sees the tokens that it is to predict: its loss is not that of a language model'
CENTERED = 'this model sees both sides of a token: its loss is not that of a language model, and it cannot continue a text'


class UserError(SystemExit):
    """Something that the user can mend: one sentence on stderr, exit code 1, no traceback."""
