"""What README.md says: every table is that of a record in results/, every command and file that it names is there."""

import json
import re

import pytest

from harness import ROOT, config, report
from train import Loop

README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_the_tables_are_those_of_the_records():
    marks = report.MARK.findall(README)
    named = {name for _, names, _ in marks for name in names.split()}
    assert named == {f'results/{p.name}' for p in (ROOT / 'results').glob('*.json')}
    assert report.refreshed(README, ROOT) == README


@pytest.mark.parametrize('path', sorted((ROOT / 'results').glob('*.json')), ids=lambda p: p.stem)
def test_a_record_is_of_what_stands_beside_it(path):
    """The command that made it is in README.md, near its table, and names configs that are there."""
    record = json.loads(path.read_text(encoding='utf-8'))
    at = README.index(f'<!-- results/{path.name} -->')
    command = record['command'].replace("'", '"')
    shown = README[:at].rindex(command)
    assert at - shown < 4000, 'the command stands far from its table'
    for name in re.findall(r'config/\w+\.py', command):
        assert (ROOT / name).is_file(), name


def test_what_is_named_exists():
    for name in set(re.findall(r'\b(?:config|prepare|assets|tests)/\w+\.(?:py|png)', README)):
        assert (ROOT / name).is_file(), name
    for name in set(re.findall(r'`(\w+\.py)`', README)):
        assert list(ROOT.glob(name)) + list((ROOT / 'config').glob(name)), name


def test_settings_in_commands_exist():
    """Every --name of train.py in a command is one of the loop's or the model's."""
    for line in re.findall(r'^ {4}(?:torchrun .*?|python )train\.py (.*?)(?:#.*)?$', README, re.M):
        words = line.split()
        if words and words[0].startswith('config/') and 'NAME' not in line:
            config.load([w for w in words if w not in ('...',)], Loop)
