"""
Settings: a dataclass's defaults, then a Python file of plain assignments, then --name=value on the command line.

Every name and type is checked against the loop's dataclass and the architecture's Config before anything else happens.
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
import re
import sys
import types
import typing
from pathlib import Path

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
    files = [a for a in argv[:1] if not a.startswith('--')]
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
            raise UserError(f"cannot read '{word}': the config file comes first, then settings as --name=value")
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
        near = difflib.get_close_matches(path.name, [p.name for p in (ROOT / 'config').glob('*.py')], 1)
        hint = f': did you mean config/{near[0]}?' if near else ''
        reason = e.strerror if isinstance(e, OSError) else 'it is not a text file'
        raise UserError(f"cannot read the config file '{path}' ({reason}){hint}") from None
    namespace = {'__name__': 'config', '__file__': str(path)}
    try:
        exec(compile(source, str(path), 'exec'), namespace)
    except SyntaxError as e:
        raise UserError(f'{path}, line {e.lineno}: this is not Python: {e.msg}') from None
    except Exception as e:
        lines = [f.lineno for f in inspect.getinnerframes(e.__traceback__) if f.filename == str(path)]
        raise UserError(f'{path}, line {lines[-1] if lines else "?"}: {type(e).__name__}: {e}') from None
    return {k: v for k, v in namespace.items()
            if not k.startswith('_') and not isinstance(v, types.ModuleType) and not callable(v)}


def load_arch(name):
    """The module of a model file.  Raises UserError if there is none, or it does not hold to the contract."""
    known = sorted(p.stem for p in ROOT.glob('*.py') if 'class Model(' in p.read_text(encoding='utf-8'))
    if not re.fullmatch(r'[A-Za-z_]\w*', name) or not (ROOT / f'{name}.py').is_file():
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f'known are {", ".join(known)}'
        raise UserError(f"there is no architecture '{name}': {name}.py is not beside train.py; {hint}")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        module = importlib.import_module(name)
    except Exception as e:
        raise UserError(f'{name}.py cannot be imported: {type(e).__name__}: {e}') from None
    config, model = getattr(module, 'Config', None), getattr(module, 'Model', None)
    lacks = []
    if not dataclasses.is_dataclass(config):
        lacks.append('a dataclass Config')
    elif not hasattr(config, 'tiny'):
        lacks.append('Config.tiny()')
    if not (isinstance(model, type) and callable(getattr(model, 'forward', None))):
        lacks.append('a class Model with a forward(x, y=None)')
    if lacks:
        raise UserError(f"{name}.py is not an architecture: it lacks {' and '.join(lacks)} "
                        f"(README.md, 'Add an architecture')")
    return module


def coerce(name, value, kind):
    """value, as the type `kind` says: an int is taken where a float is due, and a list where a tuple is."""
    raw = isinstance(value, Raw)
    text = value.text if raw else value
    kinds = typing.get_args(kind) or (kind,)
    value = text
    if raw:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if str in kinds and not (bool in kinds and isinstance(value, bool)):
            return text
        if bool in kinds and text.lower() in ('true', 'false'):
            value = text.lower() == 'true'
    if float in kinds and type(value) is int:
        value = float(value)
    if int in kinds and type(value) is float and value.is_integer():    # 1e5 steps
        value = int(value)
    if tuple in kinds and isinstance(value, list):
        value = tuple(value)
    if type(value) not in kinds:
        wanted = ' or '.join(k.__name__ for k in kinds)
        raise UserError(f'{name}={text!r} is of the wrong type: {wanted} is wanted, this is {type(value).__name__}')
    return value


def build(arch, values):
    """The architecture's Config from a dict.  A value that it refuses (ValueError) becomes a UserError."""
    try:
        return arch.Config(**values)
    except ValueError as e:
        raise UserError(f'{arch.__name__}: {e}') from None


def print_help(Loop, arch):
    print('python train.py [config/NAME.py] [--name=value ...]\n')
    for title, cls in (('The loop (train.py)', Loop), (f'The model ({arch.__name__}.py)', arch.Config)):
        print(title)
        comments = dict(re.findall(r'^ {4}(\w+): .*?#\s*(.*)$', inspect.getsource(cls), re.M))
        for f in dataclasses.fields(cls):
            print(f'  --{f.name}={f.default!r}'.ljust(36) + comments.get(f.name, ''))
        print()
