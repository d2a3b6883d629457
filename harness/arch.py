"""
The contract between a model file, a data set and the commands.

A model file is NAME.py beside train.py.  It imports torch and nothing from harness/, and defines

    Config          a dataclass; every field has a default and a comment.  Config.tiny() is what the tests build: under 100,000
                    parameters
    Model(config)   an nn.Module that keeps its config as self.config.  forward(x, y=None) returns (output, loss); the loss is
                    None without y

and, if it needs them, these functions:

    needs(settings)             the run folders that the model is built from, such as a pretrained trunk; train.py trains the
                                missing ones.  settings: a dict of names of Config
    pictures(model, x, labels)  yields (name, matplotlib figure) for look.py.  x: (1, T) tokens; labels: their text.  For pairs:
                                pictures(model, source, y, texts, targets); of an image, texts is the image (H, W, C)
    label(settings)             a short name for a table of several tasks

ModelContract lists the other names that a command may use, and the default for a Model that does not define one.  No command
probes a model for anything else.  DataContract is the same for data sets: a new modality is a new kind of data, and no line of
train.py changes.  A model follows the type and the device of its parameters; what must be float32 inside says so in a comment.
It marks its parameters for the optimizer (harness/optim.py):

    parameter.no_weight_decay = True    never decayed (a gain, a bias, Mamba's A_log)
    parameter.matrix = True             the weight of a matrix product whose module is no nn.Linear
"""

import dataclasses
import difflib
import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn as nn

from harness import ROOT, UserError, describe_exception, require_memory

ANSWERS = ('task', 'images')        # the modalities of models that answer with a class, bits or a number


class ModelContract:
    """The optional attributes and methods of a Model, with their defaults.

    A text model reads x: (B, T) int64 tokens and is scored on y: (B, T), the next token at each position; positions where y is
    -1 are not scored."""

    predicts: str = 'every'
    """'every': logits (B, T, V), a prediction at each position.  'last': logits (B, 1, V), only the token after the window.
    'task': one answer per example, which may be a sequence; it has a test split."""

    modality: str | None = None
    """The kind of data it is trained on, see DataContract.modality.  None: 'task' if predicts is 'task', else 'text'.
    'masked text': y is the token that belongs at each position, -1 where x has not been masked.
    'images': x is (B, channels, H, W) float and y a class (B,).  A model of 'task' reads the same images as patches (B, T, D)
    of the side that train.py's setting `patch` says.  MODALITIES of harness/data.py are those that read images.
    'captions': x is (B, S, D) patches of images and y (B, T) their captions, -1 after the end of each; the output is (B, 2, E),
    the vectors of images and captions, whose products are logits.
    'patches': x and y are the same (B, S, D) patches of images, and the output is what the model makes of them.
    'drawings': x and y are as for 'captions', and the output is (B, T + S), the loss of each token of captions and images.
    Requires step(), which reads a caption and then the tokens of an image, and render()."""

    memory: int = 0
    """Number of tokens before the window that x may start with: x is then (B, memory + T), with -1 before the start of the
    text."""

    leaks: bool = False
    """True if a prediction depends on its own target, so that the loss is not that of a language model."""

    bidirectional: bool = False
    """True if a prediction depends on tokens on both sides, so that the model cannot continue a text.  Requires infill()."""

    model_types: tuple = ()
    """What from_pretrained() loads: values of model_type in a config.json, and of general.architecture in a GGUF file."""

    published_tokens: str | None = None
    """The tokenizer of the weights that from_pretrained() loads, such as 'gpt2', unless they have tokenizer files of their
    own."""

    known_tokens: dict | None = None
    """The specification of the tokenizer whose tokens a new Model has learned elsewhere, as by a trunk whose embedding it
    keeps: it cannot be trained on those of another."""

    known_pixels: list | None = None
    """The means and standard deviations of the channels by which the images were standardised that a part of a new Model has
    learned, such as a VAE: it cannot be trained on images that have others."""

    published_pixels: tuple | None = None
    """The means and standard deviations of red, green and blue, from 0 to 1, that standardised the images of those weights."""

    adjustable: tuple[str, ...] = ('dropout',)
    """Settings of trained weights that another run may change: they do not change the function in eval mode.  For any other,
    see refined()."""

    def metrics(self) -> dict[str, float]:
        """Numbers to log beside the loss: columns of metrics.csv."""
        return {}

    init_state: Callable | None = None
    """init_state(batch_size) -> state: the state of an empty text, for step()."""

    step: Callable | None = None
    """step(token (B, n), state) -> (logits (B, V), state): reads n more tokens at a cost that does not grow with the text, and
    may update the tensors of state in place.  step(token, state, every=True) -> (logits (B, n, V), state): as in steps of one
    token, for sample.py --draft.  None: generation recomputes the window for each token."""

    fork: Callable | None = None
    """fork(state) -> a copy of the state, which steps from the other do not change.  None: all its tensors are copied."""

    decode: Callable | None = None
    """Of models of pairs: decode(source (B, S), beams=1) -> targets (B, T), -1 after their end."""

    render: Callable | None = None
    """Of models that draw: render(tokens (B, S)) -> patches (B, S, D) of the image that the tokens are."""

    infill: Callable | None = None
    """infill(x (B, T)) -> logits (B, T, V): each token given its neighbours on both sides; -1 in x is an unknown token."""

    refined: Callable | None = None
    """refined(config) -> Model: the same function with another config.  Raises ValueError if there is none."""

    from_pretrained: Callable | None = None
    """Class method from_pretrained(name, **settings) -> Model with published weights.  Raises ValueError if they do not fit."""

    to_hub: Callable | None = None
    """to_hub() -> (config.json as a dict, {name: tensor}): the weights in the format of transformers.  Raises
    ValueError if it has no such model."""


class DataContract(Protocol):
    """The attributes and methods of a data set.  Text is in harness/data.py, tasks, pairs and images are in a file each."""

    modality: str           # the models that can be trained on it: ModelContract.modality
    noun: str               # the kind of data, for messages: 'text', 'task'
    unit: str               # the elements of a batch: 'windows' of a text, whose size the model chooses, 'examples', 'images'
    columns: tuple          # its columns of metrics.csv, beside the losses
    uneven: bool            # True if examples differ in their number of targets (y >= 0), of all of which the loss is the mean
    parts: dict             # {name: indices} of parts of the test split that are judged apart; required only with a test split
    meta: dict              # meta.json
    fingerprint: str        # a hash of the content: runs on data with different fingerprints are never compared

    def model_settings(self) -> dict:
        """The fields of a Config that the data determines, such as vocab_size."""

    def require(self, block_size: int) -> None:
        """Raises UserError if the data cannot fill one window or example of this size."""

    def train_indices(self, count: int, block_size: int, seed: int, step: int) -> np.ndarray:
        """The examples of one step, over all ranks and micro-steps: a pure function of the arguments."""

    def val_indices(self, count: int, block_size: int) -> np.ndarray:
        """A fixed, evenly spaced selection of validation examples; 0: all of them."""

    def test_indices(self) -> np.ndarray | None:
        """All examples of the test split, or None if there is no test split."""

    def batch(self, split: str, indices: np.ndarray, model: nn.Module) -> tuple[torch.Tensor, ...]:
        """The examples as CPU tensors, the arguments of model(*batch)."""

    def train_batch(self, indices: np.ndarray, model: nn.Module, cfg: Any, step: int) -> tuple[torch.Tensor, ...]:
        """batch() of the training split with the randomness of training: a pure function of the arguments."""

    def score(self, output: torch.Tensor, *batch: torch.Tensor) -> torch.Tensor:
        """The contribution of one batch to the metrics; evaluate() collects them from all ranks."""

    def total(self, parts: list[torch.Tensor]) -> dict[str, float]:
        """The metrics, {'val_loss': ..., ...}, from the scores of all batches."""

    def chance(self, split: str = 'val') -> dict[str, float]:
        """The metrics of the best constant answer.  Required only with a test split."""

    def format_metrics(self, metrics: dict, split: str = 'val') -> str:
        """The metrics of total() in one line."""

    def show(self, model: nn.Module, cfg: Any, folder: Path) -> None:
        """Prints a sample of the model's output, or draws it into the folder of the run, if it generates any."""


@dataclass(frozen=True)
class Architecture:
    """A model file that follows the contract."""
    name: str
    Config: type
    Model: type
    needs: Callable = lambda settings: []
    pictures: Callable = lambda model, x, labels: ()
    label: Callable | None = None


def contract_names():
    return [name for name in vars(ModelContract) if not name.startswith('_')]


def complete(model):
    """Gives the class of a model, or a Model class, the default of ModelContract for each name that it does not define.
    Returns its argument."""
    cls = model if isinstance(model, type) else type(model)
    for name in contract_names():
        if not hasattr(cls, name):
            setattr(cls, name, vars(ModelContract)[name])
    cls.modality = cls.modality or ('task' if cls.predicts == 'task' else 'text')
    return model


def architectures():
    """The names of all architectures."""
    return sorted(p.stem for p in ROOT.glob('*.py') if p.is_file() and b'class Model(' in p.read_bytes())


def load_arch(name):
    """The Architecture in NAME.py beside train.py.  Raises UserError if there is no such file or it breaks the contract."""
    if not re.fullmatch(r'[A-Za-z_]\w*', name) or not (ROOT / f'{name}.py').is_file():
        near = difflib.get_close_matches(name, architectures(), 1)
        hint = f"did you mean '{near[0]}'?" if near else f'choose from {", ".join(architectures())}'
        raise UserError(f"unknown architecture '{name}': there is no {name}.py beside train.py; {hint}")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        module = importlib.import_module(name)
    except BaseException as e:      # exit() in a model file must not look like success
        raise UserError(f'{name}.py cannot be imported: {describe_exception(e, f"{name}.py")}') from None
    Config, Model = getattr(module, 'Config', None), getattr(module, 'Model', None)
    missing = []
    if not dataclasses.is_dataclass(Config):
        missing.append('a dataclass Config')
    elif not hasattr(Config, 'tiny'):
        missing.append('Config.tiny()')
    if not (isinstance(Model, type) and issubclass(Model, nn.Module) and Model.forward is not nn.Module.forward):
        missing.append('a class Model with forward(x, y=None)')
    if missing:
        raise UserError(f"{name}.py is not an architecture: it lacks {' and '.join(missing)} (see docs/architectures.md)")
    optional = {k: getattr(module, k) for k in ('needs', 'pictures', 'label') if hasattr(module, k)}
    return Architecture(name, Config, complete(Model), **optional)


# the smallest values of settings that several architectures share
LEAST = {'block_size': 1, 'vocab_size': 1, 'n_layer': 0, 'n_head': 1, 'n_embd': 1, 'dropout': 0, 'eps': 0}


def build_config(arch, values):
    """arch.Config(**values).  Raises UserError for an unknown name, and for a value that the Config refuses by ValueError."""
    unknown = values.keys() - {f.name for f in dataclasses.fields(arch.Config)}
    if unknown:
        raise UserError(f"{arch.name}.py has no setting '{min(unknown)}', which the checkpoint or the data set needs: use the "
                        f'version of the file that has it')
    for name, least in LEAST.items():
        least = 0 if name == 'vocab_size' and 'outputs' in values else least    # the examples of a task may be features
        if values.get(name, least) < least:
            raise UserError(f'{arch.name}: {name}={values[name]} must be at least {least}')
    if values.get('dropout', 0) >= 1:
        raise UserError(f'{arch.name}: dropout={values["dropout"]} must be below 1')
    try:
        return arch.Config(**values)
    except ValueError as e:
        raise UserError(f'{arch.name}: {e}') from None


MOST_TENSORS = 5_000        # of parameters: 400 layers of a GPT; many more would take minutes to count


def require_fit(arch, config):
    """Raises UserError if there is not enough memory for a Model of this Config.  Its parameters are counted as they are made
    on the meta device, where nothing is allocated."""
    def size(value):
        return max((v for v in (value if isinstance(value, tuple) else [value]) if type(v) is int), default=0)
    ratios = {f.name: size(getattr(config, f.name)) / max(size(f.default), 10) for f in dataclasses.fields(config)}
    largest = [name for name, ratio in ratios.items() if ratio >= min(10, max(ratios.values()))]
    settings = f'{arch.name}: {", ".join(f"{name}={getattr(config, name)}" for name in largest)}'
    sizes = []

    def count(module, name, parameter):
        sizes.append(parameter.numel() * parameter.element_size() if parameter is not None else 0)
        if len(sizes) > MOST_TENSORS:
            raise UserError(f'{settings} would give the model more than {MOST_TENSORS:,} tensors of parameters: choose smaller '
                            f'values')
    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        with torch.random.fork_rng(devices=[]), torch.device('meta'):
            arch.Model(config)
    except (RuntimeError, TypeError, OverflowError) as e:
        if 'overflow' in str(e).lower():
            sizes.append(2 ** 63)
    finally:
        hook.remove()
    require_memory(sum(sizes), settings)


def build(arch, config):
    """The Model of an architecture.  config: its Config, or the values of one.  Raises UserError."""
    config = build_config(arch, config) if isinstance(config, dict) else config
    try:
        require_fit(arch, config)
        model = arch.Model(config)
    except ValueError as e:
        raise UserError(f'{arch.name}: {e}') from None
    parts = {name for name, _ in (*model.named_children(), *model.named_parameters(recurse=False))}
    if taken := parts.intersection(contract_names()):
        raise UserError(f"{arch.name}.py: '{min(taken)}' is a name of the contract (harness/arch.py): rename that layer or "
                        f'parameter')
    return model
