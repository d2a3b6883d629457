"""Checkpoints: plain tensors and plain data, written atomically and read without executing code."""

import pickle
import zipfile
from pathlib import Path

import torch

from harness import UserError
from harness.arch import build, load_arch
from harness.files import atomic

FORMAT = 1
PARTS = {'format': int, 'arch': str, 'config': dict, 'model': dict, 'step': int, 'data': dict}


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
    parts = content if isinstance(content, dict) else {}
    wrong = [name for name, kind in PARTS.items() if not isinstance(parts.get(name), kind)]
    if wrong:
        raise UserError(f'{path} is not a checkpoint of nanorivals: it lacks {", ".join(wrong)}')
    if content['format'] != FORMAT:
        raise UserError(f'{path} has format {content["format"]}, but this code reads {FORMAT}: use the code that wrote it')
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
    return path.exists() and path.suffix not in ('.safetensors', '.bin')


def load_model(path):
    """(model, checkpoint) from a run folder or a file, in eval mode on the CPU."""
    path = find(path)
    content = load(path)
    model = build(load_arch(content['arch']), content['config'])
    load_weights(model, content, path)
    return model.eval(), content


def load_weights(model, content, path):
    try:
        model.load_state_dict(content['model'])
    except RuntimeError as e:
        lines = [s.strip() for s in str(e).splitlines()[1:]]
        raise UserError(f"{path} holds another model (arch '{content['arch']}'): "
                        f'{lines[0][:200] if lines else e}') from None
