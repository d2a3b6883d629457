"""Published weights: from the Hugging Face hub or from local files in its format, and how they fill a model.

huggingface_hub fetches the files: users of transformers share its cache, its tokens for private models, and its mirrors
(HF_ENDPOINT, HF_HOME).  A local folder works without it."""

import json
import pickle
from fnmatch import fnmatch
from pathlib import Path

import safetensors.torch
import torch

from harness import UserError

WEIGHTS = ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin')


def load(name):
    """(config.json as a dict, {name: tensor}) of a model: its name on the hub (owner/model), a local folder, or a .safetensors
    file, whose config.json may be absent ({}).  Weights in several files are merged; of a pickle only tensors are read.
    Raises UserError if there is no such model, or its files cannot be fetched or read."""
    path = Path(name)
    if path.suffix == '.safetensors':
        if not path.is_file():
            raise UserError(f'there is no file {path}')
        described = path.with_name('config.json')
        return (parse(described) if described.is_file() else {}), read(path)
    if path.is_dir():
        find = path.joinpath
    elif name.count('/') != 1 or name.startswith(('out/', '.', '/')) or name.endswith('.pt'):
        raise UserError(f"'{name}' is neither a local checkpoint, file or folder nor a model on the hub (owner/model)")
    else:
        def find(file): return fetch(name, file)
    described = parse(find('config.json')) if find('config.json').is_file() else {}
    for file in WEIGHTS:
        if (found := find(file)).is_file():
            if file.endswith('.json'):
                parts = sorted(set(parse(found).get('weight_map', {}).values()))
                return described, {k: v for part in parts for k, v in read(find(part)).items()}
            return described, read(found)
    raise UserError(f"'{name}' has no weights: expected {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}")


def fetch(name, file):
    """The path of a file of the model `name` on the hub, in huggingface_hub's cache; a path that does not exist if the model
    has no such file.  Raises UserError if there is no such model or the hub cannot be reached."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
    try:
        return Path(hf_hub_download(name, file, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        url = hf_hub_url(name, file)
    try:
        get_hf_file_metadata(url, timeout=5)        # fails at once, where hf_hub_download would retry for 24 seconds
        return Path(hf_hub_download(name, file, etag_timeout=5))
    except errors.RemoteEntryNotFoundError:
        return Path(name, file)
    except errors.RepositoryNotFoundError:
        raise UserError(f"the hub has no model '{name}' that can be read (tried {url}): check the name, or log in with "
                        f"'hf auth login' if it is private") from None
    except Exception as e:                          # its HTTP library, and so the type of a network error, varies by version
        raise UserError(f"'{name}' could not be fetched ({type(e).__name__}: {' '.join(str(e).split())[:80]}): download {url} "
                        f'and the weights beside it (model.safetensors) into a folder, and pass that folder instead') from None


def parse(file):
    """A JSON file as a dict."""
    try:
        return dict(json.loads(file.read_text(encoding='utf-8')))
    except (ValueError, TypeError, OSError) as e:
        raise UserError(f'{file} is not a valid JSON object ({e})') from None


def read(file):
    """The tensors of a file, by name."""
    try:
        if file.suffix == '.safetensors':
            return safetensors.torch.load_file(file)
        return torch.load(file, map_location='cpu', weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as e:
        raise UserError(f'{file} is truncated or holds no weights ({" ".join(str(e).split())[:100]})') from None


# filling a model: for from_pretrained() of a model file; all raise ValueError -----------------------------------------------

def check_config(file, described, **possible):
    """Refuse a config.json (a dict) that asks for what the architecture in `file` does not compute.
    possible: for a key, the list of values that it computes; a key that config.json does not have is not checked."""
    for key, values in possible.items():
        if key in described and described[key] not in values:
            raise ValueError(f'config.json has {key}={described[key]!r}, but {file} computes only '
                             f'{" or ".join(map(repr, values))}')


def merge(published, settings):
    """settings, completed by what the weights decide.  published: fields of a Config, as the weights have them."""
    if wrong := {k: v for k, v in settings.items() if published.get(k, v) != v}:
        raise ValueError(f'the published model has {({k: published[k] for k in wrong})}, which cannot be set to {wrong}')
    return settings | published


def fill(model, weights, new=(), unused=()):
    """Copies weights, {name: tensor}, into the model, and returns it.  The names must be those of its state_dict, except for
    patterns (fnmatch): new, of parameters that keep their initial values, and unused, of weights that are not copied."""
    own, first = model.state_dict(), {}
    wrong = [f'{k} is missing' for k in own if k not in weights and not any(fnmatch(k, p) for p in new)]
    for key in own.keys() & weights.keys():
        if weights[key].shape != own[key].shape:
            wrong.append(f'{key} is {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}')
        elif (one := first.setdefault(own[key].data_ptr(), key)) != key and not torch.equal(weights[key], weights[one]):
            wrong.append(f'{" and ".join(sorted([one, key]))} differ, but are one tensor in this model')
    wrong += [f'{k} has no place in the model' for k in weights if k not in own and not any(fnmatch(k, p) for p in unused)]
    if wrong:
        more = f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''
        raise ValueError(f'the weights do not fit: {"; ".join(sorted(wrong)[:5])}{more}')
    for key in own.keys() & weights.keys():
        own[key].copy_(weights[key])
    return model
