"""notebooks/: each runs from top to bottom at a tiny size, and is kept without outputs."""

import json
import sys

import pytest
from conftest import script

from harness import ROOT
from prepare import common

CPU = '--device=cpu'
FEW = {'STEPS': 2, 'EVERY': 2}
VIT = ['--n_layer=1', '--n_embd=16', '--n_head=2', CPU]

# {notebook: its parameters here, beside OUT, and the commands that make its data}
TINY = {
    'text': (FEW | {'DATASET': 'letters', 'SHAPE': ['--n_layer=1', '--n_embd=16', '--block_size=16', '--batch_size=2', CPU]},
             []),
    'pictures': (FEW | {'SHAPES': {'convnet': ['--network=tutorial', CPU], 'vit': [*VIT, '--patch=8']}},
                 [('prepare/shapes_classes.py', '--examples=180')]),
    'tasks': (FEW | {'SHAPES': {'baselines': ['--network=lstm', '--n_embd=16', CPU], 'vit': VIT}},
              [('prepare/bit_xor.py', '--bits=4')])}


def test_every_notebook_is_run():
    assert {path.stem for path in (ROOT / 'notebooks').glob('*.ipynb')} == TINY.keys()


@pytest.mark.parametrize('name', TINY)
def test_it_runs_and_has_no_outputs(name, root, tmp_path, monkeypatch):
    notebook = json.loads((ROOT / 'notebooks' / f'{name}.ipynb').read_text(encoding='utf-8'))
    parameters, commands = TINY[name]
    for command in commands:
        script(*command)
    letters = 'abcdefgh .\n' * 400
    common.write_text('letters', letters, common.char_tokenizer(letters), {'name': 'letters'}, 'text.py')
    monkeypatch.chdir(ROOT / 'notebooks')
    monkeypatch.setattr('sys.path', [*sys.path])
    cells = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    assert len([cell for cell in cells if cell['metadata'].get('tags') == ['parameters']]) == 1
    names = {'__name__': name}
    for cell in cells:
        assert not cell['outputs'] and cell['execution_count'] is None
        exec(compile(''.join(cell['source']), f'{name}.ipynb', 'exec'), names)
        if cell['metadata'].get('tags') == ['parameters']:
            assert parameters.keys() <= names.keys()
            names |= parameters | {'OUT': tmp_path / 'out'}
