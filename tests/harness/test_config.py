"""Settings: defaults, then the config file, then the command line, each value with the type of its name; and model files."""

import dataclasses
import re
import sys

import pytest
from conftest import sentence

import look
import sample
import train
from harness import arch, config
from harness.arch import build, load_arch


@dataclasses.dataclass
class TrainConfig:
    arch: str = 'model'                     # the model file
    out_dir: str = ''                       # a string
    resume: bool = False                    # a flag
    max_iters: int = 100                    # an integer
    learning_rate: float = 1e-3             # a number
    compile: bool | str = 'auto'            # either
    warmup: float | str = 'auto'            # either
    heads: int | None = None                # an integer, or none
    sizes: tuple[float, ...] = ()           # several numbers


@pytest.fixture
def load(tmp_path):
    """load(text of a config file, *words) -> Settings"""
    def call(text, *words):
        (tmp_path / 'mine.py').write_bytes(text if isinstance(text, bytes) else text.encode())
        return config.load([str(tmp_path / 'mine.py'), *words], TrainConfig)
    return call


def test_defaults_then_file_then_command_line(load):
    text = "\ufeffarch = 'pacing'\nmax_iters = 5\nlearning_rate = 0.5\nn_layer = 3\nn_embd = 32\n"     # a mark of Windows
    found = load(text, '--max_iters=6', '--max_iters=7', '--n_embd', '64')
    assert found.train == TrainConfig('pacing', max_iters=7, learning_rate=0.5) and found.name == 'mine'
    assert found.model == {'n_layer': 3, 'n_embd': 64} and found.arch.name == 'pacing'                  # overrides only
    found = config.load([], TrainConfig)
    assert found.train == TrainConfig() and found.name == 'model' and found.model == {}
    assert load(text, '--arch=model', '--n_head=2').arch.name == 'model'
    assert "'n_head' (for arch 'pacing')" in sentence(load, text, '--n_head=2')


@pytest.mark.parametrize('words, expected', [
    ('--max_iters=5', 5), ('--max_iters 5', 5), ('--max_iters=1e5', 100_000), ('--max_iters=1_000', 1000),
    ('--max_iters -1', -1), ('--learning_rate=1', 1.0), ('--learning_rate=-1e-3', -1e-3), ('--out_dir=a=b', 'a=b'),
    ('--out_dir a=b', 'a=b'), ('--out_dir=', ''), ('--out_dir=5', '5'), ("--out_dir='x'", "'x'"), ('--resume', True),
    ('--resume --max_iters=5', True), ('--resume=True', True), ('--resume false', False), ('--compile', True),
    ('--compile=false', False), ('--compile=auto', 'auto'), ('--compile=5', '5'), ('--depths=1,2', (1, 2)),
    ('--depths=[1,2]', (1, 2)), ('--depths=3,', (3,)), ('--warmup=2', 2.0), ('--warmup=two', 'two'), ('--heads=5', 5),
    ('--heads=None', None), ('--sizes=1,2', (1.0, 2.0))])
def test_values_on_the_command_line(words, expected):
    settings = config.load(['--arch=pacing', *words.split(' ')], TrainConfig)
    value = (settings.model | dataclasses.asdict(settings.train))[re.match(r'--(\w+)', words)[1]]
    assert repr(value) == repr(expected)


def test_a_config_file_is_python(load, tmp_path):
    """It may import, define and compute; the values that it assigns are the settings."""
    found = load('''
"""A docstring, and 'é'."""
from pathlib import Path
def twice(x): return 2 * x
class Unit: ten = 10
_hidden = 'not a setting'
max_iters, learning_rate, depths, dims, arch = twice(Unit.ten), 1 / 4, [1, 1], (8, 16), 'pacing'
out_dir = str(Path(__file__).with_name('out'))
''')
    assert found.train == TrainConfig('pacing', str(tmp_path / 'out'), max_iters=20, learning_rate=0.25)
    assert found.model == {'depths': (1, 1), 'dims': (8, 16)}


@pytest.mark.parametrize('text, words, expected', [
    ('max_iters = True', '', 'max_iters=True .* int, got bool'), ('max_iters = 1.5', '', 'int, got float'),
    ("learning_rate = '1e-3'", '', 'float, got str'), ("learning_rate = float('nan')", '', 'learning_rate=nan'),
    ('resume = 1', '', 'bool, got int'), ('compile = 1', '', 'bool or str, got int'), ('from math import pi', '', "'pi'"),
    ('max_itres = 5', '', "'max_itres' .*'max_iters'"), ('forget = 0.1', '', "'forget' .*'memory_dropout'"),
    ('eval_iters = 5', '', 'eval_iters .*eval_windows'),
    ('exit()', '', 'mine.py, line 1: SystemExit'), ('x = 1\nx = (', '', 'line 2: '), ('\0', '', 'null bytes'),
    ('x = 1\n\ndef f():\n    return [][1]\nf()\n', '', 'line 4: IndexError'),      # the line that failed, not the call
    ("raise ValueError('two\\nlines')", '', 'line 1: ValueError: two lines'), (b'x = "\xff"', '', 'not a text file'),
    ('', '--max-iters=5', "'max_iters'"), ('', '--n_haed=5', "'n_head'"), ('', '--wyxz=5', '--help'), ('', '--=5', "''"),
    ('', '--max_iters=1.5', 'int, got float'), ('', '--max_iters=', 'int'), ('', '--max_iters', 'int, got bool'),
    ('', '--max_iters={[]:1}', 'int'), ('', '--max_iters=' + '-' * 10_000 + '1', 'int'), ('', '--out_dir', 'str, got bool'),
    ('', '--learning_rate=1e999', "learning_rate='1e999'"), ('', '--heads=x', "heads='x' .*int"),
    ('', '--arch=pacing --depths=2', 'tuple, got int'), ('', '--arch=pacing --depths=1.5,2', 'depths=1.5 .* int')])
def test_bad_settings(load, text, words, expected):
    assert re.search(expected, sentence(load, text, *words.split()))


def test_the_nearest_file_is_named_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for word in ('shakespear_pacing.py', 'config/shakespeare_pacing.py', 'shakespeare_pacing'):
        near = re.search(r'No such file.*did you mean (.*)\?', sentence(config.load, [word], TrainConfig))[1]
        assert config.load([near], train.TrainConfig).name == 'shakespeare_pacing'


@pytest.mark.parametrize('words', [['-h'], ['--help', '--arch', 'pacing']])
def test_help_lists_every_setting_with_its_comment(capsys, words):
    with pytest.raises(SystemExit, match=r'^0$'):
        config.load(words, train.TrainConfig)
    lines = capsys.readouterr().out.splitlines()
    for cls in (train.TrainConfig, load_arch('pacing' if 'pacing' in words else 'model').Config):
        for field in dataclasses.fields(cls):
            line = next(s for s in lines if s.startswith(f'  --{field.name}={field.default!r}'))
            assert len(line.split(repr(field.default), 1)[1].strip()) > 5, f'{field.name} has no comment'


def test_a_tilde_in_a_setting_and_in_a_text(load, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert load("out_dir = '~/runs'").train.out_dir == f'{tmp_path}/runs'
    assert config.load(['~/mine.py', '--out_dir=a~b'], TrainConfig).train.out_dir == 'a~b'
    assert sample.arguments(['run', '--start', '~/ is home']).start == ['~/ is home']
    assert look.arguments(['run', '--prompt', '~/ is home']).prompt == '~/ is home'


def test_the_seed_in_a_text_setting_of_a_model():
    words = ['--arch=fpt', '--trunk=out/gpt-{seed}']
    found = [config.load([*words, *more], train.TrainConfig) for more in ([], ['--seed=7'])]
    assert [f.model['trunk'] for f in found] == [f'out/gpt-{train.TrainConfig.seed}', 'out/gpt-7']


MODEL = """
from dataclasses import dataclass
import torch
@dataclass
class Config:
    vocab_size: int = 7     # tokens
    @classmethod
    def tiny(cls): return cls()
class Model(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def forward(self, x, y=None): return self.layer(x), None
"""


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Writes mine.py into an empty folder in which this process looks for model files; returns the folder."""
    def write(text):
        (tmp_path / 'mine.py').write_text(text)
        return tmp_path
    monkeypatch.setattr(arch, 'ROOT', tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield write
    sys.modules.pop('mine', None)


@pytest.mark.parametrize('text, expected', [
    ('', ['a dataclass Config and a class Model']), (MODEL.replace('forward', 'backward'), ['a class Model with forward']),
    ('import torch\nimport no_such_module\n', ['line 2: ModuleNotFoundError', 'no_such_module']),
    ('class Model(:\n', ['line 1: ']), ('raise SystemExit(0)\n', ['line 1: SystemExit']),
    (MODEL.replace('self.layer', 'self.memory'), ["'memory'"])], ids=['empty', 'forward', 'import', 'syntax', 'exit', 'clash'])
def test_bad_model_files(refused, dataset, beside, text, expected):
    beside(text)
    said = refused('train.py', '--arch=mine', f'--dataset={dataset.name}', '--out_dir=out/never', '--dry_run', '--device=cpu')
    assert all(s in said for s in ['mine.py', *expected])


def test_a_model_file_gets_the_defaults_of_the_contract(refused, beside):
    """Other files beside train.py are no architectures."""
    folder = beside(MODEL)
    mine = load_arch('mine')
    model = build(mine, {})
    assert mine.Model.modality == 'text' and mine.Model.from_pretrained is None and mine.needs({}) == []
    assert (model.predicts, model.memory, model.leaks, model.step, model.metrics()) == ('every', 0, False, None, {})
    (folder / 'latin.py').write_bytes(b'# caf\xe9\n')
    (folder / 'folder.py').mkdir()
    assert refused('train.py', '--arch=nosuch').endswith('choose from mine')
