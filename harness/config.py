"""
Settings: a dataclass's defaults, then a Python file of plain assignments, then --name=value on the command line.

Every name and type is checked against the loop's dataclass and the architecture's Config before anything else happens.
"""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import importlib
import inspect
import math
import os
import re
import sys
import traceback
import types
import typing
from pathlib import Path

import torch.nn as nn

from harness import ROOT, UserError


@dataclasses.dataclass
class Settings:
    loop: object                # the loop's dataclass, filled in
    arch: types.ModuleType      # the model file
    model: dict                 # what was said about the model: names of its Config, without the defaults
    name: str                   # the config file's name, or the architecture's without one


def load(argv, Loop):
    """argv: config files and --name=value, --name value or --flag.  Loop: the dataclass of the loop's own settings,
    'arch' among them.  Returns Settings.  Raises UserError for whatever a user can get wrong."""
    files = [a for a in argv[:1] if not a.startswith('-')]
    said = {}
    for path in files:
        said.update(run_file(path))
    for name, value in parse_flags(argv[len(files):]):
        if name != 'help':
            said[name] = Raw(value) if value is not None else True
    loop_types, defaults = typing.get_type_hints(Loop), Loop()
    arch_name = said.get('arch', defaults.arch)
    arch = load_arch(str(arch_name.text if isinstance(arch_name, Raw) else arch_name))
    if any(a in ('--help', '-h') for a in argv):
        print_help(Loop, arch)
        raise SystemExit(0)
    model_types = typing.get_type_hints(arch.Config)
    loop, model = {}, {}
    for name, value in said.items():
        if name in loop_types:
            loop[name] = coerce(name, value, loop_types[name])
        elif name in model_types:
            model[name] = coerce(name, value, model_types[name])
        else:
            near = difflib.get_close_matches(name, [*loop_types, *model_types], 1)
            raise UserError(f"unknown setting '{name}' (for arch '{arch.__name__}'): " +
                            (f"did you mean '{near[0]}'?" if near else '--help lists them all'))
    return Settings(Loop(**loop), arch, model, Path(files[0]).stem if files else arch.__name__)


class Arguments(argparse.ArgumentParser):
    """A parser of command lines whose errors are a sentence, as all of ours are."""

    def __init__(self, **more):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **more)

    def error(self, message):
        raise UserError(f'{message}; {self.prog} --help lists what can be said')


@dataclasses.dataclass
class Raw:
    """A value as it was typed on the command line: what it means depends on the type of its name."""
    text: str


def parse_flags(argv):
    """--name=value, --name value, or --name alone (True), as (name, text or None)."""
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
    """The plain values that a config file assigns, as a dict."""
    path = Path(path)
    try:
        source = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as e:
        folder = Path(os.path.relpath(ROOT / 'config'))
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob('*.py')], 1)
        hint = f'did you mean {folder / near[0]}?' if near else f'those of the project are in {folder}/'
        reason = e.strerror if isinstance(e, OSError) else 'it is not a text file'
        raise UserError(f"cannot read the config file '{path}' ({reason}): {hint}") from None
    namespace = {'__name__': 'config', '__file__': str(path)}
    try:
        exec(compile(source, str(path), 'exec'), namespace)
    except (Exception, SystemExit) as e:        # exit() in a config must not look like a run that went well
        raise UserError(f'{path}, {told(e, path)}') from None
    return {k: v for k, v in namespace.items()
            if not k.startswith('_') and not isinstance(v, types.ModuleType) and not callable(v)}


def told(e, path):
    """What an exception says, in one line, and the last line of the file `path` that led to it."""
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if Path(f.filename).name == Path(path).name]
    text = f'{type(e).__name__}: {e}'
    if isinstance(e, SyntaxError) and not lines:
        lines, text = [e.lineno], f'this is not Python: {e.msg}'
    return ' '.join(f'line {(lines and lines[-1]) or "?"}: {text}'.split())


def load_arch(name):
    """The module of a model file.  Raises UserError if there is none, or it does not hold to the contract."""
    if not re.fullmatch(r'[A-Za-z_]\w*', name) or not (ROOT / f'{name}.py').is_file():
        known = sorted(p.stem for p in ROOT.glob('*.py') if p.is_file() and b'class Model(' in p.read_bytes())
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f'known are {", ".join(known)}'
        raise UserError(f"there is no architecture '{name}': {name}.py is not beside train.py; {hint}")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as e:
        raise UserError(f'{name}.py cannot be imported: {told(e, f"{name}.py")}') from None
    config, model = getattr(module, 'Config', None), getattr(module, 'Model', None)
    lacks = []
    if not dataclasses.is_dataclass(config):
        lacks.append('a dataclass Config')
    elif not hasattr(config, 'tiny'):
        lacks.append('Config.tiny()')
    if not (isinstance(model, type) and issubclass(model, nn.Module) and model.forward is not nn.Module.forward):
        lacks.append('a class Model with a forward(x, y=None)')
    if lacks:
        raise UserError(f"{name}.py is not an architecture: it lacks {' and '.join(lacks)} "
                        f"(README.md, 'Add an architecture')")
    return module


def coerce(name, value, kind):
    """value, as the type `kind` says: an int is taken where a float is due, and a list where a tuple is."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = {typing.get_origin(k) or k: typing.get_args(k) for k in (typing.get_args(kind) if union else (kind,))}
    typed = isinstance(value, Raw)
    said = value = value.text if typed else value
    if typed and kinds.keys() != {str}:
        with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(said.title() if bool in kinds and said in ('true', 'false') else said)
    if float in kinds and type(value) is int:
        value = float(value)
    if int in kinds and type(value) is float and value.is_integer():    # 1e5 steps
        value = int(value)
    if tuple in kinds and isinstance(value, list):
        value = tuple(value)
    if typed and str in kinds and type(value) not in kinds:
        value = said
    if type(value) not in kinds:
        wanted = ' or '.join(k.__name__ for k in kinds)
        raise UserError(f'{name}={said!r} is of the wrong type: {wanted} is wanted, this is {type(value).__name__}')
    if type(value) is float and not math.isfinite(value):
        raise UserError(f'{name}={said!r} is not a finite number')
    if type(value) is tuple and kinds[tuple]:           # tuple[int, ...]
        value = tuple(coerce(name, v, kinds[tuple][0]) for v in value)
    return value


LEAST = {'block_size': 1, 'vocab_size': 1, 'n_layer': 0, 'n_head': 1, 'n_embd': 1, 'dropout': 0}    # what archs share


def build(arch, values):
    """The architecture's Config from a dict.  A value that it refuses (ValueError) becomes a UserError."""
    unknown = values.keys() - {f.name for f in dataclasses.fields(arch.Config)}
    if unknown:
        raise UserError(f"{arch.__name__}.py has no setting '{min(unknown)}', which the checkpoint or the data asks for: is it "
                        f'another version of the file?')
    for name, least in LEAST.items():
        least = 0 if name == 'vocab_size' and 'outputs' in values else least    # the examples of a task may be numbers
        if values.get(name, least) < least:
            raise UserError(f'{arch.__name__}: {name}={values[name]} must be at least {least}')
    if values.get('dropout', 0) >= 1:
        raise UserError(f'{arch.__name__}: dropout={values["dropout"]} must be below 1')
    try:
        return arch.Config(**values)
    except ValueError as e:
        raise UserError(f'{arch.__name__}: {e}') from None


def build_model(arch, values):
    """The architecture's Model from a dict of its Config.  A ValueError becomes a UserError."""
    built = build(arch, values)
    try:
        return arch.Model(built)
    except ValueError as e:
        raise UserError(f'{arch.__name__}: {e}') from None


def print_help(Loop, arch):
    print('python train.py [config/NAME.py] [--name=value ...]\n')
    for title, cls in (('The loop (train.py)', Loop), (f'The model ({arch.__name__}.py)', arch.Config)):
        print(title)
        defaults, comments = cls(), dict(re.findall(r'^ {4}(\w+): .*?#\s*(.*)$', inspect.getsource(cls), re.M))
        for f in dataclasses.fields(cls):
            print(f'  --{f.name}={getattr(defaults, f.name)!r}'.ljust(36) + comments.get(f.name, ''))
        print()
