"""Checkpoints: plain tensors and plain data, whole or not there, and read without running anything."""

import pickle
import zipfile
from pathlib import Path

import torch

from harness import UserError, config
from harness.files import atomic

FORMAT = 1
PARTS = {'format': int, 'arch': str, 'config': dict, 'model': dict, 'step': int, 'data': dict}


def save(path, content):
    """Write a checkpoint under `path` when it is whole; until then the one before stays.

    Raises UserError when the disk does not take it, or a weight is not finite (the last good one stays)."""
    path = Path(path)
    bad = [n for n, t in content['model'].items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise UserError(f'at step {content["step"]} the weights of {bad[0]} are not finite: {path} was not '
                        f'written, and the last good one stays; try a smaller learning_rate')
    try:
        with atomic(path) as f:
            torch.save({'format': FORMAT, **content}, f)
    except (OSError, RuntimeError) as e:        # a disk that is full can end in torch's own error, after that of the disk
        reason = ' '.join(str(e if isinstance(e, OSError) else e.__context__ or e).split())[:150]
        raise UserError(f'{path} could not be written ({reason}): free some space or choose another --out_dir; '
                        f'what was there before is untouched') from None


def load(path):
    """A checkpoint as a dict, on the CPU.  A pickle that would run code is refused, not run."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f'there is no checkpoint {path}: train.py writes best.pt and ckpt.pt into the folder of a run')
    try:
        with zipfile.ZipFile(path) as archive:      # what torch.save writes; torch.load would not look at its checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f'the checksum of {damaged} differs')
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f'{path} is not a checkpoint of plain tensors: it is a pickle that would run code, and was '
                        f'not run') from None
    except Exception as e:      # what a damaged file raises has no common base
        raise UserError(f'{path} is truncated or not a checkpoint ({" ".join(str(e).split())[:100]}): take another '
                        f'one, such as {"ckpt.pt" if path.name == "best.pt" else "best.pt"} beside it') from None
    parts = content if isinstance(content, dict) else {}
    wrong = [name for name, kind in PARTS.items() if not isinstance(parts.get(name), kind)]
    if wrong:
        raise UserError(f'{path} is not a checkpoint of nanorivals: it lacks {", ".join(wrong)}')
    if content['format'] != FORMAT:
        raise UserError(f'{path} is of format {content["format"]}, this code reads {FORMAT}: take the code that wrote it')
    return content


def find(path):
    """The checkpoint that `path` means: a file, or a run's folder, where the best comes before the last."""
    path = Path(path)
    if path.is_dir():
        for name in ('best.pt', 'ckpt.pt'):
            if (path / name).exists():
                return path / name
        raise UserError(f'{path} holds no checkpoint (best.pt or ckpt.pt)')
    return path


def is_ours(name):
    """Is this a checkpoint or the folder of a run, and no file or folder in the hub's format?"""
    path = Path(name)
    return path.exists() and path.suffix != '.safetensors' and not list(path.glob('*.safetensors'))


def load_model(path):
    """(model, checkpoint) of a run's folder or a file, in eval mode on the CPU."""
    path = find(path)
    content = load(path)
    model = config.build_model(config.load_arch(content['arch']), content['config'])
    load_weights(model, content, path)
    return model.eval(), content


def load_weights(model, content, path):
    try:
        model.load_state_dict(content['model'])
    except RuntimeError as e:
        lines = [s.strip() for s in str(e).splitlines()[1:]]
        raise UserError(f"{path} holds another model (arch '{content['arch']}'): "
                        f'{lines[0][:200] if lines else e}') from None
