"""notebooks/: each runs from top to bottom at a tiny size, and is kept without outputs."""

import json
import sys

import pytest
from conftest import script

from harness import ROOT
from prepare import common

CPU = '--device=cpu'
FEW = {'STEPS': 2, 'EVERY': 2}
SMALL = ['--n_layer=1', '--n_embd=16', CPU]
VIT = [*SMALL, '--n_head=2']

# {notebook: its parameters here, beside OUT, and the commands that make its data}
TINY = {
    'text': (FEW | {'DATASET': 'letters', 'SHAPE': [*SMALL, '--block_size=16', '--batch_size=2']}, []),
    'pictures': (FEW | {'SHAPES': {'convnet': ['--network=tutorial', CPU], 'vit': [*VIT, '--patch=8']}},
                 [('prepare/shapes_classes.py', '--examples=180')]),
    'tasks': (FEW | {'SHAPES': {'baselines': ['--network=lstm', '--n_embd=16', CPU], 'vit': VIT}},
              [('prepare/bit_xor.py', '--bits=4')])}


@pytest.mark.parametrize('name', sorted(TINY.keys() | {path.stem for path in (ROOT / 'notebooks').glob('*.ipynb')}))
def test_it_runs_and_has_no_outputs(name, root, tmp_path, monkeypatch):
    notebook = json.loads((ROOT / 'notebooks' / f'{name}.ipynb').read_text(encoding='utf-8'))
    parameters, commands = TINY[name]
    for command in commands:
        script(*command)
    letters = 'abcdefgh .\n' * 400
    common.write_text('letters', letters, common.char_tokenizer(letters), {'name': 'letters'}, 'text.py')
    monkeypatch.chdir(ROOT / 'notebooks')
    monkeypatch.setattr('sys.path', [*sys.path])
    cells, names, marked = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code'], {'__name__': name}, 0
    for cell in cells:
        assert not cell['outputs'] and cell['execution_count'] is None
        exec(compile(''.join(cell['source']), f'{name}.ipynb', 'exec'), names)
        if cell['metadata'].get('tags') == ['parameters']:
            assert parameters.keys() <= names.keys()
            names |= parameters | {'OUT': tmp_path / 'out'}
            marked += 1
    assert marked == 1
