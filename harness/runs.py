"""A run's folder, and what the run begins with: new weights, weights at hand, or its own last checkpoint."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from harness import ROOT, UserError, checkpoint, config, data
from harness.files import atomic
from harness.log import Log

FILES = ('ckpt.pt', 'best.pt', 'metrics.csv', 'test.json')


def prepare(settings):
    """Make what a run needs and is not there: its data, and runs that its model is made from, such as a trunk."""
    loop, arch = settings.loop, settings.arch
    data.ensure(loop.dataset)
    for folder in arch.needs(settings.model) if hasattr(arch, 'needs') else []:
        script = ROOT / 'config' / f'{Path(folder).name}.py'
        if Path(folder).exists() or not script.is_file():
            continue
        words = [sys.executable, str(ROOT / 'train.py'), str(script), f'--out_dir={folder}.training', '--overwrite',
                 '--sample_tokens=0']
        print(f'{folder} is missing: running python train.py config/{script.name} first', flush=True)
        torchruns = ('WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'TORCHELASTIC_RESTART_COUNT', 'TORCHELASTIC_RUN_ID')
        alone = {k: v for k, v in os.environ.items() if k not in torchruns}
        if code := subprocess.run(words, env=alone).returncode:
            raise UserError(f'{folder} could not be trained (exit code {code}): the lines above say why; mend that, or take '
                            f'another')
        os.rename(f'{folder}.training', folder)         # a trunk whose training was killed is not taken for a whole one


def new_model(settings, text):
    """The model that the run begins with: from scratch, from a checkpoint of ours, or from published weights."""
    loop, arch, said = settings.loop, settings.arch, settings.model
    task = getattr(arch.Model, 'predicts', None) == 'task'
    if task != (text.kind != 'text'):
        raise UserError(f'{arch.__name__}.py ' + ('answers tasks, and' if task else 'continues texts, and') +
                        f' data/{loop.dataset} is a ' + ('text: take a task, such as bit_xor' if task else
                                                         'task: take a text, such as shakespeare_char, or arch=fpt'))
    known = {f.name for f in dataclasses.fields(arch.Config)}
    shape = {k: v for k, v in text.shape().items() if k in known}
    if task and (wrong := [k for k, v in shape.items() if said.get(k, v) != v]):
        raise UserError(f'{wrong[0]}={said[wrong[0]]}, but data/{loop.dataset} has {wrong[0]}={shape[wrong[0]]}, and the model '
                        f'must fit it: leave {wrong[0]} out')
    if task and loop.last_only:
        raise UserError('last_only: a task has one answer for each example, not one for each token')
    if loop.init_from == 'scratch':
        model = config.build_model(arch, shape | said)
    elif checkpoint.is_ours(loop.init_from):
        path = checkpoint.find(loop.init_from)
        content = checkpoint.load(path)
        if content['arch'] != arch.__name__:
            raise UserError(f"{path} holds an arch '{content['arch']}', this run is of '{arch.__name__}'")
        was, wanted = (config.build(arch, content['config'] | more) for more in ({}, shape | said if task else said))
        refine = was != wanted and hasattr(arch.Model, 'refined')       # the same function in another shape
        try:
            model = arch.Model(was if refine else wanted)
            checkpoint.load_weights(model, content, path)
            model = model.refined(wanted) if refine else model
        except ValueError as e:
            raise UserError(f'init_from={loop.init_from}: {e}') from None
    elif hasattr(arch.Model, 'from_pretrained'):
        try:
            model = arch.Model.from_pretrained(loop.init_from, **(shape | said if task else said))
        except ValueError as e:
            raise UserError(f'init_from={loop.init_from}: {e}') from None
    else:
        raise UserError(f"init_from='{loop.init_from}': no such checkpoint, and {arch.__name__}.py loads no published "
                        f'weights')
    if not task and model.config.vocab_size < text.vocab_size:
        raise UserError(f'vocab_size={model.config.vocab_size}, but data/{loop.dataset} has {text.vocab_size} tokens: '
                        f'the model needs at least as many')
    return model


def resumed(settings, text, out_dir):
    """(model, checkpoint) to go on with.  Raises UserError if the run in out_dir is another one."""
    path = out_dir / 'ckpt.pt'
    content = checkpoint.load(path)
    loop, arch = settings.loop, settings.arch
    for what, was, now in [('arch', content['arch'], arch.__name__), ('data', content['data']['fingerprint'],
                                                                      text.fingerprint),
                           ('optimizer', content['loop']['optimizer'], loop.optimizer),
                           *((k, content['config'].get(k), v) for k, v in settings.model.items())]:
        if was != now:
            raise UserError(f'{path} cannot be resumed: its {what} is {was}, this run has {now}')
    if 'optimizers' not in content:
        raise UserError(f'{path} holds weights but no state of an optimizer, as best.pt does: begin a new run from it with '
                        f'--init_from={path}')
    model = config.build_model(arch, content['config'])
    checkpoint.load_weights(model, content, path)
    return model, content


def claim(loop, out_dir):
    """Is out_dir ours to write, and is all there that the log needs?  A run that torchrun restarts after a failure goes on
    by itself."""
    for asked, package in ((loop.tensorboard, 'tensorboard'), (loop.wandb_log, 'wandb')):
        if asked and importlib.util.find_spec(package) is None:
            raise UserError(f'{package} is asked for, but it is not installed: pip install {package}')
    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)):
        loop.resume = (out_dir / 'ckpt.pt').exists()
        loop.overwrite = not loop.resume
    if not loop.resume and not loop.overwrite and any((out_dir / n).exists() for n in FILES):
        raise UserError(f'{out_dir} already holds a run: --resume goes on with it, --overwrite replaces it, '
                        f'--out_dir=... leaves it alone')


def open_run(loop, out_dir, described, resumed_at, more):
    """Make out_dir, write config.json, and begin or go on with metrics.csv, of which the model has the columns `more`."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for stale in (*out_dir.glob('.*.partial'), *(() if loop.resume else (out_dir / n for n in FILES))):
            stale.unlink(missing_ok=True)
        shown = {k: v for k, v in described.items() if k != 'data'}
        shown['data'] = {k: described['data'][k] for k in ('fingerprint', 'source')}
        with atomic(out_dir / 'config.json', 'w') as f:
            json.dump(shown, f, indent=1)
        return Log(out_dir, resumed_at, more, loop.tensorboard, loop.wandb_log, loop.wandb_project, shown)
    except OSError as e:
        raise UserError(f'out_dir={out_dir} cannot be written ({e.strerror}): choose another --out_dir') from None
