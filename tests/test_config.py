"""Settings: defaults, then the config file, then the command line, each value of the type that its name has."""

import dataclasses
import re

import pytest

import train
from harness import ROOT, UserError, config


@dataclasses.dataclass
class Loop:
    arch: str = 'model'                 # the model file
    out_dir: str = ''                   # a text
    resume: bool = False                # a flag
    max_iters: int = 100                # a count
    learning_rate: float = 1e-3         # a number
    compile: bool | str = 'auto'        # either


@pytest.fixture
def file(tmp_path):
    """A config file of the given text; returns its path."""
    def write(text, name='mine.py'):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(tmp_path / name)
    return write


def value(*words, name=None):
    """The one setting that words set, of the loop or of PACING."""
    settings = config.load(['--arch=pacing', *words], Loop)
    name = name or words[0].split('=')[0].removeprefix('--')
    return settings.model[name] if name in settings.model else getattr(settings.loop, name)


def test_defaults_then_file_then_command_line(file):
    path = file('max_iters = 5\nlearning_rate = 0.5\nn_layer = 3\nn_embd = 32\n')
    settings = config.load([path, '--max_iters=7', '--n_embd', '64'], Loop)
    assert settings.loop == Loop(max_iters=7, learning_rate=0.5)
    assert settings.model == {'n_layer': 3, 'n_embd': 64}       # what was said, without the defaults
    assert settings.name == 'mine' and settings.arch.__name__ == 'model'
    assert config.load([], Loop).loop == Loop() and config.load([], Loop).name == 'model'
    assert value('--max_iters=1', '--max_iters=2') == 2         # the last one counts


def test_the_command_line_chooses_the_architecture(file):
    path = file("arch = 'pacing'\nn_embd = 32\n")
    assert config.load([path], Loop).arch.__name__ == 'pacing'
    assert config.load([path, '--arch=model', '--n_head=2'], Loop).arch.__name__ == 'model'
    with pytest.raises(UserError, match=r"unknown setting 'n_head' \(for arch 'pacing'\)"):
        config.load([path, '--n_head=2'], Loop)


@pytest.mark.parametrize('words, wanted', [
    (['--max_iters=5'], 5), (['--max_iters', '5'], 5), (['--max_iters=1e5'], 100_000), (['--max_iters=1_000'], 1000),
    (['--max_iters=-1'], -1), (['--max_iters', '-1'], -1),
    (['--learning_rate=1'], 1.0), (['--learning_rate', '3'], 3.0), (['--learning_rate=-1e-3'], -1e-3),
    (['--out_dir=a=b'], 'a=b'), (['--out_dir', 'a=b'], 'a=b'), (['--out_dir='], ''), (['--out_dir', ''], ''),
    (['--out_dir=5'], '5'), (['--out_dir=None'], 'None'), (['--out_dir=True'], 'True'), (["--out_dir='x'"], "'x'"),
    (['--resume'], True), (['--resume', '--max_iters=5'], True), (['--resume=True'], True), (['--resume', 'false'], False),
    (['--resume=False'], False), (['--resume=true'], True),
    (['--compile'], True), (['--compile=True'], True), (['--compile=false'], False), (['--compile=auto'], 'auto'),
    (['--depths=1,2'], (1, 2)), (['--depths', '(1, 2)'], (1, 2)), (['--depths=[1, 2]'], (1, 2)), (['--depths=3,'], (3,)),
])
def test_words(words, wanted):
    got = value(*words)
    assert got == wanted and type(got) is type(wanted)


def test_a_file_is_python(file):
    """It may import, define and compute; what it assigns are the settings."""
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
compile = False
out_dir = str(Path(__file__).with_name('out'))
''')
    settings = config.load([path], Loop)
    assert settings.loop == Loop('pacing', path.replace('mine.py', 'out'), False, 20, 0.25, False)
    assert settings.model == {'depths': (1, 1), 'dims': (8, 16)}


@pytest.mark.parametrize('text, said', [
    ('max_iters = True', 'max_iters=True is of the wrong type: int is wanted, this is bool'),
    ('max_iters = 1.5', 'int is wanted, this is float'),
    ("learning_rate = '1e-3'", 'float is wanted, this is str'),
    ("learning_rate = float('nan')", 'learning_rate=nan is not a finite number'),
    ('resume = 1', 'bool is wanted, this is int'),
    ('out_dir = 5', 'str is wanted, this is int'),
    ('compile = 1', 'bool or str is wanted, this is int'),
    ('max_iters = None', 'int is wanted, this is NoneType'),
    ("arch = 'pacing'\ndepths = 2", 'tuple is wanted, this is int'),
    ('from math import pi', "unknown setting 'pi'"),
    ('for i in range(3): pass', "unknown setting 'i'"),
    ('exit()', 'line 1: SystemExit'),
    ('x = 1\n\ndef f():\n    return [][1]\nf()\n', 'line 4: IndexError'),       # the line that failed, not the call
    ("raise ValueError('two\\nlines')", 'line 1: ValueError: two lines'),
    ('x = 1\nx = (', 'line 2: this is not Python'),
    ('\0', 'null bytes'),
    (b'x = "\xff"', 'it is not a text file'),
])
def test_what_a_file_cannot_say(file, text, said):
    with pytest.raises(UserError) as e:
        config.load([file(text)], Loop)
    assert said in str(e.value) and '\n' not in str(e.value), e.value


@pytest.mark.parametrize('words, said', [
    (['--max_itres=5'], "unknown setting 'max_itres' (for arch 'model'): did you mean 'max_iters'?"),
    (['--max-iters=5'], "did you mean 'max_iters'?"),
    (['--n_haed=5'], "did you mean 'n_head'?"),
    (['--wyxz=5'], '--help lists them all'),
    (['--=5'], "unknown setting ''"),
    (['--max_iters=abc'], "max_iters='abc' is of the wrong type: int is wanted, this is str"),
    (['--max_iters=1.5'], 'int is wanted, this is float'),
    (['--max_iters='], 'int is wanted'),
    (['--max_iters'], 'int is wanted, this is bool'),
    (['--max_iters={[]:1}'], 'int is wanted'),
    (['--max_iters=' + '-' * 10_000 + '1'], 'int is wanted'),
    (['--learning_rate=inf'], 'float is wanted'),
    (['--learning_rate=1e999'], "learning_rate='1e999' is not a finite number"),
    (['--resume=yes'], 'bool is wanted, this is str'),
    (['--out_dir'], 'str is wanted, this is bool'),
    (['--arch=pacing', '--depths=2'], 'tuple is wanted, this is int'),
    (['--arch=pacing', '--depths=a,b'], 'tuple is wanted, this is str'),
    (['--max_iters=5', 'a.py'], "cannot read 'a.py': one config file comes first"),
    (['config/shakespeare_gpt.py', 'config/shakespeare_pacing.py'], 'one config file comes first'),
    (['--'], "cannot read '--'"),
    (['-x'], "cannot read '-x'"),
])
def test_what_the_command_line_cannot_say(monkeypatch, words, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as e:
        config.load(words, Loop)
    assert said in str(e.value) and '\n' not in str(e.value), e.value


@pytest.mark.parametrize('kind, given, wanted', [
    (tuple[int, ...], (1, 2.0), (1, 2)), (tuple[float, ...], '1,2', (1.0, 2.0)), (int | None, '5', 5),
    (int | None, 'None', None), (float | str, '2', 2.0), (float | str, 'two', 'two'), (bool | str, '5', '5'),
    (list[int], '[1]', [1]), (tuple[int, ...], '1.5,2', UserError), (tuple[int, ...], "'a',", UserError),
    (int | None, 'x', UserError),
])
def test_types_that_a_model_may_name(kind, given, wanted):
    given = config.Raw(given) if isinstance(given, str) else given
    if wanted is UserError:
        with pytest.raises(UserError, match='of the wrong type: int'):
            config.coerce('x', given, kind)
        return
    got = config.coerce('x', given, kind)
    assert got == wanted and type(got) is type(wanted)
    assert not isinstance(got, tuple) or [type(v) for v in got] == [type(v) for v in wanted]


def test_a_missing_file_offers_the_nearest(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for word in ('config/shakespear_pacing.py', 'shakespeare_pacing.py', 'shakespeare_pacing'):
        with pytest.raises(UserError, match=r'No such file.*did you mean config.shakespeare_pacing\.py\?'):
            config.load([word], Loop)
    with pytest.raises(UserError, match='those of the project are in config'):
        config.load(['nosuch'], Loop)
    with pytest.raises(UserError, match='Is a directory'):
        config.load(['config'], Loop)
    monkeypatch.chdir(tmp_path)             # from elsewhere the way is longer
    with pytest.raises(UserError) as e:
        config.load(['config/shakespeare_pacing.py'], Loop)
    near = re.search(r'did you mean (.*)\?', str(e.value))[1]
    assert config.load([near, '--arch=pacing'], train.Loop).name == 'shakespeare_pacing'


@pytest.mark.parametrize('words', [['--help'], ['-h'], ['--arch=pacing', '--help'], ['--help', '--arch', 'pacing']])
def test_help_lists_every_setting(capsys, words):
    with pytest.raises(SystemExit) as e:
        config.load(words, train.Loop)
    assert e.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for cls in (train.Loop, config.load_arch('pacing' if 'pacing' in ' '.join(words) else 'model').Config):
        for field in dataclasses.fields(cls):
            line = next(s for s in lines if s.startswith(f'  --{field.name}={field.default!r}'))
            assert len(line.split(repr(field.default), 1)[1].strip()) > 5, f'{field.name} has no comment'


@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('*.py')), ids=lambda p: p.stem)
def test_every_config_of_the_project_is_sound(path):
    settings = config.load([str(path)], train.Loop)
    assert config.build(settings.arch, settings.model)
    assert config.run_file(path).keys() <= {f.name for c in (train.Loop, settings.arch.Config) for f in dataclasses.fields(c)}


@pytest.mark.parametrize('values, said', [
    ({'block_size': 0}, 'model: block_size=0 must be at least 1'), ({'vocab_size': 0}, 'vocab_size=0 must be at least 1'),
    ({'n_embd': -8}, 'n_embd=-8 must be at least 1'), ({'n_head': 0}, 'n_head=0 must be at least 1'),
    ({'n_layer': -1}, 'n_layer=-1 must be at least 0'), ({'dropout': -0.1}, 'dropout=-0.1 must be at least 0'),
    ({'dropout': 1.0}, 'dropout=1.0 must be below 1'), ({'n_embd': 18, 'n_head': 4}, 'n_embd=18 is not divisible by n_head=4'),
    ({'rope': True}, "model.py has no setting 'rope'"),
])
def test_shapes_that_cannot_be(values, said):
    with pytest.raises(UserError) as e:
        config.build(config.load_arch('model'), values)
    assert said in str(e.value)


def test_the_smallest_shapes_can_be():
    c = config.build(config.load_arch('model'), {'block_size': 1, 'vocab_size': 1, 'n_layer': 0, 'n_head': 1, 'n_embd': 1})
    assert (c.block_size, c.n_layer, c.n_embd) == (1, 0, 1)
