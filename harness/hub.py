"""Published weights: from the Hugging Face hub, or from files at hand in its format."""

import json
import pickle
from pathlib import Path

import requests
import safetensors.torch
import torch

from harness import UserError, files

HUB = 'https://huggingface.co'


def load(name):
    """(config, weights) of a model: a name on the hub (owner/model), a folder, or a .safetensors file.

    config is what config.json says ({} where a local file has none beside it); weights are tensors by name.
    Raises UserError when there is no such model, or its files cannot be had or read."""
    path = Path(name)
    if path.suffix == '.safetensors' or path.is_dir():
        folder, file = (path, path / 'model.safetensors') if path.is_dir() else (path.parent, path)
        if not file.is_file():
            raise UserError(f'there is no file {file}')
        described = folder / 'config.json'
        return (parse(described) if described.is_file() else {}), read(file)
    if name.count('/') != 1 or name.startswith(('out/', '.', '/')) or name.endswith('.pt'):
        raise UserError(f"'{name}' is neither a checkpoint or file at hand nor a model on the hub (owner/model)")
    folder = name.replace('/', '--')
    described = parse(fetch(name, folder, 'config.json'))
    try:
        return described, read(fetch(name, folder, 'model.safetensors'))
    except FileNotFoundError:           # older models have a pickle only, of which torch reads the tensors and no more
        return described, read(fetch(name, folder, 'pytorch_model.bin'))


def fetch(name, folder, file):
    """data/downloads/<folder>/<file> of a model on the hub.  Raises FileNotFoundError if the model has no such file."""
    url = f'{HUB}/{name}/resolve/main/{file}'
    try:
        return files.download(url, f'{folder}/{file}')
    except requests.HTTPError as e:
        if e.response.status_code in (401, 404) and file != 'model.safetensors':
            raise UserError(f"there is no model '{name}' on the hub that can be read (no {url})") from None
        if e.response.status_code == 404:
            raise FileNotFoundError(url) from None
        raise files.must_put_by_hand(f"'{name}'", f'{folder}/{file}', url, [e]) from None
    except OSError as e:
        raise files.must_put_by_hand(f"'{name}'", f'{folder}/{file}', url, [e]) from None


def parse(file):
    """A config.json as a dict."""
    try:
        return dict(json.loads(file.read_text(encoding='utf-8')))
    except (ValueError, TypeError, OSError) as e:
        raise UserError(f'{file} does not describe a model ({e})') from None


def read(file):
    try:
        if file.suffix == '.safetensors':
            return safetensors.torch.load_file(file)
        return torch.load(file, map_location='cpu', weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as e:
        raise UserError(f'{file} is truncated or holds no weights ({" ".join(str(e).split())[:100]})') from None
