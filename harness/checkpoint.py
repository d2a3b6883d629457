"""Checkpoints: plain tensors and plain data, written atomically and read without executing code."""

import math
import pickle
import typing
import zipfile
from pathlib import Path

import torch

from harness import UserError, config, hub, schema, shard
from harness.arch import build, load_arch
from harness.files import atomic
from harness.tokenizer import Tokenizer

FORMAT = 1
PARTS = {
    'format': 'count', 'arch': 'text', 'config': 'dict', 'model': 'dict', 'step': 'count', 'loop.dataset': 'text',
    'loop.optimizer': 'text', 'loop.batch_size': 'count', 'loop.tokens_per_step': 'count', 'data.fingerprint': 'text',
    'data.tokenizer?': 'dict', 'tokens?': 'count', 'seconds?': 'number', 'best?': 'loss', 'stale?': 'count',
    'evaluated?': 'count', 'optimizers?': 'list', 'scaler?': 'dict', 'plateau?': 'dict', 'plateau.best?': 'loss',
    'plateau.num_bad_epochs?': 'count', 'plateau._last_lr?': 'numbers', 'plateau.total?': 'number', 'plateau.count?': 'count'}


class NotFinite(UserError):
    """A weight is nan or infinite."""


def save(path, content):
    """Writes a checkpoint atomically.  Raises UserError, and keeps the previous checkpoint, if the disk is full, or NotFinite
    if a weight is not finite."""
    path = Path(path)
    kept = f'; {path} still holds the previous weights' * path.exists()
    bad = [n for n, t in content['model'].items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise NotFinite(f'at step {content["step"]} the weights of {bad[0]} are not finite: try a smaller learning_rate{kept}')
    try:
        with atomic(path) as f:
            torch.save({'format': FORMAT, **content}, f)
    except (OSError, RuntimeError) as e:        # on a full disk, torch may raise its own error after the OSError
        reason = ' '.join(str(e.strerror if isinstance(e, OSError) else e.__context__ or e).split())[:150]
        raise UserError(f'{path} could not be written ({reason}): free some space or choose another --out_dir{kept}') from None


def load(path):
    """A checkpoint as a dict, on the CPU.  A pickle that would execute code is refused."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f'there is no checkpoint {path}: train.py writes best.pt and ckpt.pt into the run folder')
    try:
        with zipfile.ZipFile(path) as archive:      # torch.load does not verify checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f'the checksum of {damaged} differs')
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f'{path} is not a checkpoint of plain tensors: it is a pickle that would execute code, and was not '
                        f'loaded') from None
    except Exception as e:      # damaged files raise many types
        other = path.with_name('ckpt.pt' if path.name == 'best.pt' else 'best.pt')
        raise UserError(f'{path} is truncated or not a checkpoint ({" ".join(str(e).split())[:100]}): use another one' +
                        f', such as {other}' * other.exists()) from None
    advice = 'it is not a checkpoint of train.py; use another one'
    schema.check(content if isinstance(content, dict) else {}, PARTS, path, advice)
    if content['format'] != FORMAT:
        raise UserError(f'{path} has format {content["format"]}, but this code reads {FORMAT}: use the code that wrote it')
    types = typing.get_type_hints(load_arch(content['arch']).Config)
    try:
        for name in content['config'].keys() & types.keys():
            config.coerce(name, content['config'][name], types[name])
    except UserError as e:
        raise UserError(f'{path} is damaged: {e}; {advice}') from None
    for name, w in content['model'].items():
        if not (isinstance(name, str) and isinstance(w, torch.Tensor)) or w.is_complex() or not w.isfinite().all():
            raise UserError(f'{path} is damaged: its weight {name!r} is no tensor of finite real numbers: {advice}')
    return content


def find(path):
    """The checkpoint file for `path`, a file or a run folder, in which best.pt is preferred to ckpt.pt."""
    path = Path(path)
    if path.is_dir():
        for name in ('best.pt', 'ckpt.pt'):
            if (path / name).exists():
                return path / name
        raise UserError(f'{path} holds no checkpoint (best.pt or ckpt.pt)')
    return path


def is_ours(name):
    """Whether `name` is a checkpoint or a run folder, not a file or folder in the format of the hub."""
    path = Path(name)
    if path.is_dir():
        return any((path / file).exists() for file in ('best.pt', 'ckpt.pt'))
    return path.exists() and path.suffix not in hub.FORMATS


def load_model(path):
    """(model, checkpoint) from a run folder or a file, in eval mode on the CPU."""
    path = find(path)
    content = load(path)
    model = build(load_arch(content['arch']), content['config'])
    load_weights(model, content, path)
    return model.eval(), content


def load_weights(model, content, path):
    own = model.state_dict()
    try:
        model.load_state_dict({name: shard.part(w, own.get(name)) for name, w in content['model'].items()})
    except RuntimeError as e:
        lines = [s.strip() for s in str(e).splitlines()[1:]]
        raise UserError(f"{path} holds another model (arch '{content['arch']}'): "
                        f'{lines[0][:200] if lines else e}') from None


def tokenizer(content, path):
    """The Tokenizer of a language model's checkpoint.  Raises UserError if there is none, or it has more tokens than the model.
    (It may have fewer: a vocabulary can be padded, and generate() never samples the padding.)"""
    if not (spec := content['data'].get('tokenizer')):
        raise UserError(f'{path} is damaged: its data.tokenizer is missing: use another checkpoint')
    try:
        found = Tokenizer(spec)
    except ValueError as e:
        raise UserError(f'{path} is damaged: its tokenizer: {e}: use another checkpoint') from None
    if found.n_vocab > content['config'].get('vocab_size', math.inf):
        raise UserError(f'{path} is damaged: its tokenizer has {found.n_vocab} tokens, but its model has vocab_size='
                        f'{content["config"]["vocab_size"]}: use another checkpoint')
    return found
