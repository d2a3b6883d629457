"""The start of a run: its folder, and its model, from scratch, from other weights or from its own last checkpoint."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from harness import ROOT, UserError, checkpoint, config, data, tokenizer
from harness.arch import build, build_config, complete
from harness.files import atomic
from harness.log import Log

OVERLAP = 'leaking_split: the validation windows overlap the training windows, so no loss of this run is evidence'
NEW_VOCABULARY = 'new_vocabulary: token embeddings and output layer start anew, all other weights are those of init_from'
FILES = ('ckpt.pt', 'best.pt', 'metrics.csv', 'test.json')


@dataclasses.dataclass
class Progress:
    """The counters of a run, which every checkpoint holds."""
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0                # of training, without evaluation
    best: float = math.inf              # minimum of val_loss
    stale: int = 0                      # evaluations since that minimum
    evaluated: int | None = None        # step of the last evaluation

    @classmethod
    def load(cls, content):
        """From a checkpoint; the oldest ones hold neither tokens nor the step of the last evaluation."""
        cfg = content['loop']
        tokens = content['step'] * (cfg['tokens_per_step'] or cfg['batch_size'] * content['config']['block_size'])
        known = {f.name: content[f.name] for f in dataclasses.fields(cls) if f.name in content}
        return cls(**{'tokens': tokens, 'evaluated': content['step']} | known)


def prepare(settings):
    """Makes the missing data, and trains the missing runs that the model is built from, such as a trunk: out/NAME by
    config/NAME.py."""
    data.ensure(settings.train.dataset)
    for folder in settings.arch.needs(settings.model):
        name = re.fullmatch(r'out/([\w.=,-]+)', str(folder))
        script = ROOT / 'config' / f'{name and name[1]}.py'
        if not name or Path(folder).exists() or not script.is_file():
            continue
        words = [sys.executable, str(ROOT / 'train.py'), str(script), f'--out_dir={folder}.training', '--overwrite',
                 '--sample_tokens=0']
        print(f'{folder} is missing: running python train.py config/{script.name} first', flush=True)
        torchruns = ('WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'TORCHELASTIC_RESTART_COUNT', 'TORCHELASTIC_RUN_ID')
        alone = {k: v for k, v in os.environ.items() if k not in torchruns}
        if code := subprocess.run(words, env=alone).returncode:
            raise UserError(f'{folder} could not be trained (exit code {code}): fix the error above, or choose another trunk')
        os.rename(f'{folder}.training', folder)         # so that an interrupted run is not used as a trunk


def new_model(settings, dataset):
    """The model at the start of a run: from scratch, from a checkpoint of train.py, or from published weights."""
    cfg, arch, overrides = settings.train, settings.arch, settings.model
    if arch.Model.modality != dataset.modality:
        example = {'text': 'shakespeare_char', 'masked text': 'shakespeare_char', 'task': 'bit_xor'}.get(arch.Model.modality)
        raise UserError(f'{arch.name}.py is trained on a {arch.Model.modality}, and data/{cfg.dataset} is a '
                        f'{dataset.modality}: choose another dataset' + f', such as {example},' * bool(example) +
                        ' or another arch')
    known = {f.name for f in dataclasses.fields(arch.Config)}
    shape = {k: v for k, v in dataset.model_settings().items() if k in known}
    task = dataset.modality == 'task'
    if task and (wrong := [k for k, v in shape.items() if overrides.get(k, v) != v]):
        raise UserError(f'{wrong[0]}={overrides[wrong[0]]} does not fit data/{cfg.dataset}, which has {wrong[0]}='
                        f'{shape[wrong[0]]}: leave {wrong[0]} out')
    if cfg.last_only and dataset.modality != 'text':
        raise UserError(f'last_only: only language models have a token after the window, and this one is trained on a '
                        f'{dataset.modality}: leave it out')
    if cfg.new_vocabulary and (task or cfg.init_from == 'scratch'):
        raise UserError('new_vocabulary replaces the vocabulary of a text model that --init_from names: leave it out')
    fitted = shape | overrides if task else dict(overrides)     # a text model keeps the vocab_size of its weights
    vocab_size = fitted.pop('vocab_size', shape['vocab_size']) if cfg.new_vocabulary else None
    if cfg.init_from == 'scratch':
        model = build(arch, shape | overrides)
    elif checkpoint.is_ours(cfg.init_from):
        model, tokens = from_checkpoint(arch, cfg.init_from, fitted)
    elif arch.Model.from_pretrained:
        try:
            model = arch.Model.from_pretrained(cfg.init_from, **fitted)
        except ValueError as e:
            raise UserError(f'init_from={cfg.init_from}: {e}') from None
        tokens = None if task else tokenizer.published_spec(cfg.init_from)
        if not task and tokens is None and model.config.vocab_size == dataset.vocab_size and \
                dataset.meta['tokenizer'].get('name') == (arch.Model.published_tokens or 0):
            tokens = dataset.meta['tokenizer']
    else:
        raise UserError(f"init_from='{cfg.init_from}' is no checkpoint, and {arch.name}.py loads no published weights: name a "
                        f'run folder or a checkpoint')
    if cfg.new_vocabulary:
        model = with_vocabulary(arch, model, vocab_size)
    elif cfg.init_from != 'scratch' and not task and not tokenizer.same(tokens, dataset.meta['tokenizer']):
        raise UserError(f'init_from={cfg.init_from} has another tokenizer than data/{cfg.dataset}, so its embeddings are of '
                        f'other tokens: prepare data with its tokenizer (prepare/text.py --tokens), or start embeddings and '
                        f'output layer anew by --new_vocabulary')
    if not task and model.config.vocab_size < shape['vocab_size']:
        raise UserError(f'vocab_size={model.config.vocab_size} must be at least {shape["vocab_size"]}, the number of tokens '
                        f'in data/{cfg.dataset}' + ', and [MASK]' * (shape['vocab_size'] > dataset.vocab_size))
    if dataset.modality == 'masked text' and model.config.mask_token < dataset.vocab_size:
        raise UserError(f'mask_token={model.config.mask_token} is one of the {dataset.vocab_size} tokens of '
                        f'data/{cfg.dataset}: choose a larger one')
    return complete(model)


def from_checkpoint(arch, name, settings):
    """(model, specification of its tokenizer) of a run or a checkpoint of this architecture, with other settings: those that do
    not change its function, or that the model can be refined to."""
    path = checkpoint.find(name)
    content = checkpoint.load(path)
    if content['arch'] != arch.name:
        raise UserError(f"{path} is a checkpoint of arch '{content['arch']}', but this run has arch '{arch.name}': set "
                        f"--arch={content['arch']}")
    kept = {k: v for k, v in settings.items() if k in arch.Model.adjustable}
    was, new = (build_config(arch, content['config'] | changes) for changes in (kept, settings))
    try:
        model = arch.Model(was)
        checkpoint.load_weights(model, content, path)
        if was != new and not arch.Model.refined:
            raise ValueError('this changes the function of its weights, so leave it out')
        return model.refined(new) if was != new else model, content['data'].get('tokenizer')
    except ValueError as e:
        changed = [f'its {k} is {v}, this run has {getattr(new, k)}: ' for k, v in vars(was).items() if v != getattr(new, k)]
        raise UserError(f'init_from={name}: {"".join(changed[:1])}{e}') from None


def with_vocabulary(arch, model, size):
    """The model for another vocabulary: its weights, except new ones where the size of the vocabulary is in their shape."""
    values = dataclasses.asdict(model.config) | {'vocab_size': size}
    with torch.device('meta'):
        shapes, others = ({k: v.shape for k, v in build(arch, values | {'vocab_size': n}).state_dict().items()}
                          for n in (size, size - 1))
    new = build(arch, values)
    new.load_state_dict({k: v for k, v in model.state_dict().items() if shapes[k] == others[k]}, strict=False)
    return new


def resumed(settings, dataset, out_dir):
    """(model, checkpoint) of the run in out_dir.  Raises UserError if that run differs from this one."""
    path = out_dir / 'ckpt.pt'
    content = checkpoint.load(path)
    cfg, arch = settings.train, settings.arch
    for name, was, now in [('arch', content['arch'], arch.name),
                           ('data', content['data']['fingerprint'], dataset.fingerprint),
                           ('optimizer', content['loop']['optimizer'], cfg.optimizer),
                           *((k, content['config'].get(k), v) for k, v in settings.model.items())]:
        if was != now:
            raise UserError(f'{path} cannot be resumed: its {name} is {was}, this run has {now}')
    if 'optimizers' not in content:
        raise UserError(f'{path} has weights but no optimizer state, as best.pt does: start a new run from it with '
                        f'--init_from={path}')
    model = build(arch, content['config'])
    checkpoint.load_weights(model, content, path)
    return model, content


def changed(was, cfg):
    """{name: value} of the settings that differ from those in a checkpoint."""
    was = {config.RENAMED.get(k, k): v for k, v in was.items()}
    return {k: v for k, v in dataclasses.asdict(cfg).items() if was.get(k, v) != v and k not in ('resume', 'overwrite')}


def claim(cfg, out_dir):
    """Raises UserError if out_dir holds another run, or a package for logging is missing.  A run that torchrun restarts after a
    failure is resumed."""
    for enabled, package in ((cfg.tensorboard, 'tensorboard'), (cfg.wandb_log, 'wandb')):
        if enabled and importlib.util.find_spec(package) is None:
            raise UserError(f'{package} is not installed: pip install {package}')
    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)):
        cfg.resume = (out_dir / 'ckpt.pt').exists()
        cfg.overwrite = not cfg.resume
    if not cfg.resume and not cfg.overwrite and any((out_dir / n).exists() for n in FILES):
        raise UserError(f'{out_dir} already holds a run: --resume continues it, --overwrite replaces it, --out_dir=... writes '
                        f'elsewhere')


def open_run(cfg, out_dir, described, resumed_at, more):
    """Makes out_dir, writes config.json, and returns the Log.  resumed_at: the step of the checkpoint, or None.  more: extra
    columns of metrics.csv."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for stale in (*out_dir.glob('.*.partial'), *(() if cfg.resume else (out_dir / n for n in FILES))):
            stale.unlink(missing_ok=True)
        shown = {k: v for k, v in described.items() if k != 'data'}
        shown['data'] = {k: described['data'][k] for k in ('fingerprint', 'source')}
        with atomic(out_dir / 'config.json', 'w') as f:
            json.dump(shown, f, indent=1)
        return Log(out_dir, resumed_at, more, cfg.tensorboard, cfg.wandb_log, cfg.wandb_project, shown)
    except OSError as e:
        raise UserError(f'out_dir={out_dir} cannot be written ({e.strerror}): choose another --out_dir') from None
