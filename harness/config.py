"""
Settings: the defaults of a dataclass, then a Python file of plain assignments, then --name=value on the command line.

Names and types are checked against TrainConfig and the architecture's Config.  {seed} in a text of the latter becomes the
random seed: with trunk=out/gpt-{seed}, a race over several seeds has as many trunks.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import math
import os
import re
import types
import typing
from pathlib import Path

from harness import ROOT, UserError, describe_exception
from harness.arch import Architecture, load_arch

RENAMED = {'forget': 'memory_dropout'}      # settings of older versions and their new names
NANOGPT = {'gradient_accumulation_steps': 'tokens_per_step, over all micro-steps', 'eval_iters': 'eval_windows',
           'always_save_checkpoint': 'nothing: each evaluation writes ckpt.pt, and best.pt is kept beside it',
           'decay_lr': 'schedule', 'lr_decay_iters': 'max_iters, the end of the schedule', 'backend': 'nothing: it is chosen',
           'wandb_run_name': 'out_dir'}


@dataclasses.dataclass
class Settings:
    train: object               # a TrainConfig
    arch: Architecture
    model: dict                 # overrides of the architecture's Config
    name: str                   # of the config file, or of the architecture if there is none


def load(argv, TrainConfig):
    """The Settings of a command line.  argv: optionally a config file, then --name=value, --name value or --flag.  TrainConfig:
    the dataclass of the settings of train.py, with a field 'arch'.  Raises UserError."""
    files = [a for a in argv[:1] if not a.startswith('-')]
    overrides = {}
    for path in files:
        overrides.update(run_file(path))
    flags = parse_flags(argv[len(files):])
    for name, value in flags:
        if name != 'help':
            overrides[name] = Raw(value) if value is not None else True
        elif value is not None:
            raise UserError(f"--help={value}: --help has no value")
    train_types, defaults = typing.get_type_hints(TrainConfig), TrainConfig()
    arch_name = overrides.get('arch', defaults.arch)
    arch = load_arch(str(arch_name.text if isinstance(arch_name, Raw) else arch_name))
    if ('help', None) in flags:
        print_help(TrainConfig, arch)
        raise SystemExit(0)
    model_types = typing.get_type_hints(arch.Config)
    train, model = {}, {}
    for name, value in overrides.items():
        if name in train_types:
            train[name] = coerce(name, value, train_types[name])
        elif name in model_types:
            model[name] = coerce(name, value, model_types[name])
        elif name in RENAMED:
            raise UserError(f"the setting '{name}' is now called '{RENAMED[name]}'")
        elif name in NANOGPT:
            raise UserError(f"nanoGPT's {name} is here {NANOGPT[name]}")
        else:
            near = difflib.get_close_matches(name, [*train_types, *model_types], 1)
            raise UserError(f"unknown setting '{name}' (for arch '{arch.name}'): " +
                            (f"did you mean '{near[0]}'?" if near else '--help lists all settings'))
    train = TrainConfig(**train)
    model = {k: v.replace('{seed}', str(train.seed)) if type(v) is str else v for k, v in model.items()}
    return Settings(train, arch, model, Path(files[0]).stem if files else arch.name)


@dataclasses.dataclass
class Raw:
    """A value on the command line, before coerce() gives it the type of its setting."""
    text: str


def parse_flags(argv):
    """[(name, text or None)] of --name=value, --name value, or --name alone."""
    argv, pairs = list(argv), []
    while argv:
        word = argv.pop(0)
        if word == '-h':
            word = '--help'
        if not word.startswith('--') or word == '--':
            raise UserError(f"cannot read '{word}': one config file comes first, then settings as --name=value")
        name, equals, value = word[2:].partition('=')
        if not equals:
            value = argv.pop(0) if argv and not argv[0].startswith('--') else None
        pairs.append((name, value))
    return pairs


def run_file(path):
    """The values that a config file assigns, as a dict."""
    path = Path(os.path.expanduser(path))
    try:
        source = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as e:
        folder = Path(os.path.relpath(ROOT / 'config'))
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob('*.py')], 1)
        hint = f'did you mean {folder / near[0]}?' if near else f'choose one in {folder}/'
        reason = e.strerror if isinstance(e, OSError) else 'it is not a text file'
        raise UserError(f"cannot read the config file '{path}' ({reason}): {hint}") from None
    namespace = {'__name__': 'config', '__file__': str(path)}
    try:
        exec(compile(source, str(path), 'exec'), namespace)
    except BaseException as e:      # exit() in a config must not look like success
        raise UserError(f'{path}, {describe_exception(e, path)}') from None
    return {k: v for k, v in namespace.items()
            if not k.startswith('_') and not isinstance(v, types.ModuleType) and not callable(v)}


def coerce(name, value, kind):
    """value as the type `kind`.  An int is accepted as a float, a whole float as an int, a list as a tuple, and ~ as the
    home folder: a text is a name or a path."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = {typing.get_origin(k) or k: typing.get_args(k) for k in (typing.get_args(kind) if union else (kind,))}
    typed = isinstance(value, Raw)
    given = value = value.text if typed else value
    if typed and kinds.keys() != {str}:
        with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(given.title() if bool in kinds and given in ('true', 'false') else given)
    if float in kinds and type(value) is int:
        value = float(value)
    if int in kinds and type(value) is float and value.is_integer():    # 1e5 steps
        value = int(value)
    if tuple in kinds and isinstance(value, list):
        value = tuple(value)
    if typed and str in kinds and type(value) not in kinds:
        value = given
    if type(value) not in kinds:
        expected = ' or '.join(k.__name__ for k in kinds)
        raise UserError(f'{name}={given!r} has the wrong type: expected {expected}, got {type(value).__name__}')
    if type(value) is float and not math.isfinite(value):
        raise UserError(f'{name}={given!r} is not a finite number')
    if type(value) is str:
        value = os.path.expanduser(value)
    if type(value) is tuple and kinds[tuple]:           # tuple[int, ...]
        value = tuple(coerce(name, v, kinds[tuple][0]) for v in value)
    return value


def print_help(TrainConfig, arch):
    print('python train.py [config/NAME.py] [--name=value ...]\n')
    for title, cls in (('Training (train.py)', TrainConfig), (f'The model ({arch.name}.py)', arch.Config)):
        print(title)
        defaults, comments = cls(), dict(re.findall(r'^ {4}(\w+): .*?#\s*(.*)$', inspect.getsource(cls), re.M))
        for f in dataclasses.fields(cls):
            print(f'  --{f.name}={getattr(defaults, f.name)!r}'.ljust(36) + comments.get(f.name, ''))
        print()
