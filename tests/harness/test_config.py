"""Settings: defaults, then the config file, then the command line, each value with the type of its name."""

import dataclasses
import re

import pytest
import torch

import look
import sample
import train
from harness import ROOT, UserError, arch, config, data, tasks
from harness.arch import build, build_config, load_arch


@dataclasses.dataclass
class TrainConfig:
    arch: str = 'model'                 # the model file
    out_dir: str = ''                   # a string
    resume: bool = False                # a flag
    max_iters: int = 100                # an integer
    learning_rate: float = 1e-3         # a number
    compile: bool | str = 'auto'        # either


@pytest.fixture
def file(tmp_path):
    """Writes a config file; returns its path."""
    def write(text):
        (tmp_path / 'mine.py').write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(tmp_path / 'mine.py')
    return write


def test_defaults_then_file_then_command_line(file):
    path = file('max_iters = 5\nlearning_rate = 0.5\nn_layer = 3\nn_embd = 32\n')
    settings = config.load([path, '--max_iters=6', '--max_iters=7', '--n_embd', '64'], TrainConfig)
    assert settings.train == TrainConfig(max_iters=7, learning_rate=0.5)
    assert settings.model == {'n_layer': 3, 'n_embd': 64}               # overrides only
    assert settings.name == 'mine' and settings.arch.name == 'model'
    assert config.load([], TrainConfig).train == TrainConfig() and config.load([], TrainConfig).name == 'model'


def test_the_command_line_chooses_the_architecture(file):
    path = file("\ufeffarch = 'pacing'\nn_embd = 32\n")      # with the mark that editors on Windows put in front
    assert config.load([path], TrainConfig).arch.name == 'pacing'
    assert config.load([path, '--arch=model', '--n_head=2'], TrainConfig).arch.name == 'model'
    with pytest.raises(UserError, match=r"'n_head' \(for arch 'pacing'\)"):
        config.load([path, '--n_head=2'], TrainConfig)


@pytest.mark.parametrize('words, expected', [
    ('--max_iters=5', 5), ('--max_iters 5', 5), ('--max_iters=1e5', 100_000), ('--max_iters=1_000', 1000),
    ('--max_iters -1', -1), ('--learning_rate=1', 1.0), ('--learning_rate=-1e-3', -1e-3),
    ('--out_dir=a=b', 'a=b'), ('--out_dir a=b', 'a=b'), ('--out_dir=', ''), ('--out_dir=5', '5'), ('--out_dir=None', 'None'),
    ("--out_dir='x'", "'x'"), ('--resume', True), ('--resume --max_iters=5', True), ('--resume=True', True),
    ('--resume false', False), ('--compile', True), ('--compile=false', False), ('--compile=auto', 'auto'),
    ('--depths=1,2', (1, 2)), ('--depths=[1,2]', (1, 2)), ('--depths=3,', (3,)),
])
def test_values_on_the_command_line(words, expected):
    settings = config.load(['--arch=pacing', *words.split(' ')], TrainConfig)
    name = re.match(r'--(\w+)', words)[1]
    value = (settings.model | dataclasses.asdict(settings.train))[name]
    assert value == expected and type(value) is type(expected)


def test_a_config_file_is_python(file):
    """It may import, define and compute; the values that it assigns are the settings."""
    path = file('''
"""A docstring, and 'é'."""
from pathlib import Path
def twice(x): return 2 * x
class Unit: ten = 10
_hidden = 'not a setting'
max_iters = twice(Unit.ten)
learning_rate = 1 / 4
depths, dims = [1, 1], (8, 16)
arch = 'pacing'
out_dir = str(Path(__file__).with_name('out'))
''')
    settings = config.load([path], TrainConfig)
    assert settings.train == TrainConfig('pacing', path.replace('mine.py', 'out'), max_iters=20, learning_rate=0.25)
    assert settings.model == {'depths': (1, 1), 'dims': (8, 16)}


@pytest.mark.parametrize('text, expected', [
    ('max_iters = True', 'max_iters=True .* int, got bool'), ('max_iters = 1.5', 'int, got float'),
    ('max_iters = None', 'int, got NoneType'), ("learning_rate = '1e-3'", 'float, got str'),
    ("learning_rate = float('nan')", 'learning_rate=nan'), ('resume = 1', 'bool, got int'), ('out_dir = 5', 'str, got int'),
    ('compile = 1', 'bool or str, got int'), ("arch = 'pacing'\ndepths = 2", 'tuple, got int'),
    ('from math import pi', "'pi'"), ('for i in range(3): pass', "'i'"), ('max_itres = 5', "'max_itres' .*'max_iters'"),
    ('forget = 0.1', "'forget' .*'memory_dropout'"), ('exit()', 'mine.py, line 1: SystemExit'),
    ('x = 1\n\ndef f():\n    return [][1]\nf()\n', 'line 4: IndexError'),       # the line that failed, not the call
    ("raise ValueError('two\\nlines')", 'line 1: ValueError: two lines'), ('x = 1\nx = (', 'line 2: '), ('\0', 'null bytes'),
    (b'x = "\xff"', 'not a text file'), ('raise KeyboardInterrupt', 'line 1: KeyboardInterrupt'),
    ('class Mine(BaseException): pass\nraise Mine("own")', 'line 2: Mine: own'),
])
def test_bad_config_files(file, text, expected):
    with pytest.raises(UserError, match=expected) as e:
        config.load([file(text)], TrainConfig)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('words, expected', [
    ('--max_itres=5', "'max_itres' .*'max_iters'"), ('--max-iters=5', "'max_iters'"), ('--n_haed=5', "'n_head'"),
    ('--wyxz=5', '--help'), ('--=5', "unknown setting ''"), ('--forget=0.1', "'forget' .*'memory_dropout'"),
    ('--help=x', '--help=x'), ('--help x', '--help'),
    ('--max_iters=abc', "max_iters='abc' .* int, got str"), ('--max_iters=1.5', 'int, got float'), ('--max_iters=', 'int'),
    ('--max_iters', 'int, got bool'), ('--max_iters={[]:1}', 'int'), ('--max_iters=' + '-' * 10_000 + '1', 'int'),
    ('--learning_rate=inf', 'float'), ('--learning_rate=1e999', "learning_rate='1e999'"), ('--resume=yes', 'bool, got str'),
    ('--out_dir', 'str, got bool'), ('--arch=pacing --depths=2', 'tuple, got int'),
    ('--arch=pacing --depths=a,b', 'tuple, got str'),
    ('--arch=pacing --depths=1.5,2', 'depths=1.5 .* int'), ('--arch=paceing', "'paceing'.*'pacing'"),
    ('--arch=train', 'train.py .*Config and .*Model'), ('--max_iters=5 a.py', "'a.py'"),
    ('config/shakespeare_gpt.py config/lstm.py', "'config/lstm.py'"),
    ('--', "'--'"), ('-x', "'-x'"), ('config', 'Is a directory'), ('nosuch', 'config'),
    ('config/shakespear_pacing.py', r'No such file.*config.shakespeare_pacing\.py'),
    ('shakespeare_pacing', r'config.shakespeare_pacing\.py'),
])
def test_bad_command_lines(monkeypatch, words, expected):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=expected) as e:
        config.load(words.split(' '), TrainConfig)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('kind, given, expected', [
    (tuple[int, ...], (1, 2.0), (1, 2)), (tuple[float, ...], '1,2', (1.0, 2.0)), (int | None, '5', 5),
    (int | None, 'None', None), (float | str, '2', 2.0), (float | str, 'two', 'two'), (bool | str, '5', '5'),
    (list[int], '[1]', [1]), (tuple[int, ...], '1.5,2', UserError), (tuple[int, ...], "'a',", UserError),
    (int | None, 'x', UserError),
])
def test_types_of_settings(kind, given, expected):
    given = config.Raw(given) if isinstance(given, str) else given
    if expected is UserError:
        with pytest.raises(UserError, match='int'):
            config.coerce('x', given, kind)
        return
    value = config.coerce('x', given, kind)
    assert repr(value) == repr(expected)


def test_the_nearest_file_is_named_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as e:
        config.load(['config/shakespeare_pacing.py'], TrainConfig)
    near = re.search(r'did you mean (.*)\?', str(e.value))[1]
    assert config.load([near], train.TrainConfig).name == 'shakespeare_pacing'


@pytest.mark.parametrize('words', [['--help'], ['-h'], ['--help', '--arch', 'pacing']])
def test_help_lists_every_setting_with_its_comment(capsys, words):
    with pytest.raises(SystemExit) as e:
        config.load(words, train.TrainConfig)
    assert e.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for cls in (train.TrainConfig, load_arch('pacing' if 'pacing' in words else 'model').Config):
        for field in dataclasses.fields(cls):
            line = next(s for s in lines if s.startswith(f'  --{field.name}={field.default!r}'))
            assert len(line.split(repr(field.default), 1)[1].strip()) > 5, f'{field.name} has no comment'


@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('*.py')), ids=lambda p: p.stem)
def test_every_config_can_be_built(path):
    settings = config.load([str(path)], train.TrainConfig)
    assert build_config(settings.arch, settings.model)


@pytest.mark.parametrize('values, expected', [
    ({'block_size': 0}, 'model: block_size=0 .* 1'), ({'vocab_size': 0}, 'vocab_size=0 .* 1'),
    ({'n_embd': -8}, 'n_embd=-8 .* 1'),
    ({'n_layer': -1}, 'n_layer=-1 .* 0'), ({'dropout': -0.1}, 'dropout=-0.1 .* 0'), ({'dropout': 1.0}, 'dropout=1.0 .* 1'),
    ({'n_embd': 18, 'n_head': 4}, 'n_embd=18 .*n_head=4'), ({'rope': True}, "'rope'"),
])
def test_impossible_model_settings(values, expected):
    assert build_config(load_arch('model'), {'block_size': 1, 'vocab_size': 1, 'n_layer': 0, 'n_head': 1, 'n_embd': 1})
    with pytest.raises(UserError, match=expected):
        build_config(load_arch('model'), values)


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
        self.config = config
        self.NAME = torch.nn.Linear(1, 1)
    def forward(self, x, y=None): return self.NAME(x), None
"""


def test_a_model_file_gets_the_defaults_of_the_contract(tmp_path, monkeypatch):
    monkeypatch.setattr(arch, 'ROOT', tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'plain_one.py').write_text(MODEL.replace('NAME', 'layer'))
    (tmp_path / 'clash_one.py').write_text(MODEL.replace('NAME', 'memory'))
    plain = load_arch('plain_one')
    model = build(plain, {})
    assert plain.Model.modality == 'text' and plain.Model.from_pretrained is None and plain.needs({}) == []
    assert (model.predicts, model.memory, model.leaks, model.step, model.metrics()) == ('every', 0, False, None, {})
    with pytest.raises(UserError, match=r"clash_one.py: 'memory'"):
        build(load_arch('clash_one'), {})


def test_data_sets_follow_the_contract(dataset, task_data):
    methods = {n for n, value in vars(arch.DataContract).items() if callable(value) and not n.startswith('_')}
    for found, without in ((data.TextData(dataset), {'chance'}), (data.open_data(task_data('bits').name), set())):
        assert all(callable(getattr(found, n)) for n in methods - without)
        assert all(hasattr(found, n) for n in arch.DataContract.__annotations__)
    assert isinstance(found, tasks.TaskData) and isinstance(found.batch('val', [0], torch.nn.Module()), tuple)


@pytest.mark.parametrize('words', [
    ['train.py', 'HOME/absent.py'], ['train.py', '--out_dir=HOME/new', '--init_from=HOME/absent', '--arch=pacing'],
    ['train.py', '--arch=fpt', '--dataset=BITS', '--trunk=HOME/absent', '--out_dir=HOME/new'], ['sample.py', 'HOME/absent'],
    ['sample.py', '--pretrained=HOME/absent.safetensors'], ['look.py', 'HOME/absent'], ['compare.py', 'HOME/absent.py'],
    ['compare.py', 'config/shakespeare_gpt.py', '--out=HOME/file/race', '--steps=1'], ['bench.py', 'train', 'HOME/absent.py'],
    ['sweep.py', 'HOME/absent.py', '--search', 'n_layer=1,2', '--out=HOME/new'], ['extras/export.py', 'HOME/absent', 'HOME/x'],
    ['extras/gbm.py', 'HOME/absent'], ['prepare/text.py', 'mine', 'HOME/absent'], ['prepare/bpe.py', 'mine', 'HOME/absent'],
    ['prepare/gutenberg.py', '84', '--input=HOME/absent'], ['prepare/mnist.py', '--name=mine', '--input=HOME/absent'],
    ['prepare/openwebtext.py', '--name=mine', '--input', 'HOME/absent.txt'],
    *([f'prepare/{name}.py', '--input=HOME/absent', '--overwrite'] for name in
      ('shakespeare_char', 'cifar10', 'cyp3a4', 'speech_commands')),
], ids=' '.join)
def test_a_path_may_begin_at_home(refused, task_data, tmp_path, monkeypatch, words):
    """Every command says the same of ~ as of the folder that it stands for."""
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'file').touch()
    words = [word.replace('BITS', task_data('bits').name) for word in words]
    tilde, path = (refused(*(word.replace('HOME', home) for word in words)) for home in ('~', str(tmp_path)))
    assert tilde == path and str(tmp_path) in tilde and '~' not in tilde


def test_settings_and_texts_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.py').write_text("out_dir = '~/runs'")
    found = config.load(['~/mine.py', '--init_from=~/gpt2', '--wandb_project=a~b'], train.TrainConfig)
    assert (found.name, found.train.out_dir, found.train.init_from, found.train.wandb_project) == \
        ('mine', f'{tmp_path}/runs', f'{tmp_path}/gpt2', 'a~b')
    assert sample.arguments(['run', '--start', '~/ is home']).start == ['~/ is home']
    assert look.arguments(['run', '--prompt', '~/ is home']).prompt == '~/ is home'
