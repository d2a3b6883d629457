"""The start of a run: its folder, and its model, from scratch, from other weights or from its own last checkpoint."""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import torch

from harness import ROOT, UserError, checkpoint, config, data, shard, tokenizer
from harness.arch import build, build_config, complete
from harness.files import atomic
from harness.log import Log

OVERLAP = 'leaking_split: the validation windows overlap the training windows, so no loss of this run is evidence'
TRAINED_ON = 'validate=train: the validation windows are trained on, so no val_loss of this run is evidence'
NEW_VOCABULARY = 'new_vocabulary: token embeddings and output layer are reinitialized, all others are those of init_from'
FILES = ('ckpt.pt', 'best.pt', 'metrics.csv', 'test.json')             # a folder with any of them holds a run
EXTRAS = ('config.json', 'loss.png', 'wandb_id', 'events.out.tfevents.*')
FOLLOWS = 'NANORIVALS_FOLLOWS_ITS_PARENT'


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
        tokens = content['step'] * (cfg['tokens_per_step'] or cfg['batch_size'] * content['config'].get('block_size', 1))
        known = {f.name: content[f.name] for f in dataclasses.fields(cls) if f.name in content}
        return cls(**{'tokens': tokens, 'evaluated': content['step']} | known)


def prepare(settings):
    """Makes the missing data, and trains the missing runs that the model is built from, such as a trunk: out/NAME by
    config/NAME.py.  A run that is resumed is refused any trunk but its own, so none is trained for it."""
    data.ensure(settings.train.dataset)
    for folder in () if settings.train.resume else settings.arch.needs(settings.model):
        name = re.fullmatch(r'out/([\w.=,-]+)', str(folder))
        script = ROOT / 'config' / f'{name and name[1]}.py'
        if not name or Path(folder).exists() or not script.is_file():
            continue
        print(f'{folder} is missing: running python train.py config/{script.name} first', flush=True)
        with start([str(script), f'--out_dir={folder}.training', '--overwrite', '--sample_tokens=0']) as process:
            code = process.wait()
        if code:
            raise UserError(f'{folder} could not be trained (exit code {code}): fix the error above, or choose another run')
        os.rename(f'{folder}.training', folder)         # so that an interrupted run is not used


def new_model(settings, dataset):
    """The model at the start of a run: from scratch, from a checkpoint of train.py, or from published weights."""
    cfg, arch, overrides = settings.train, settings.arch, settings.model
    if arch.Model.modality != dataset.modality:
        example = {'text': 'shakespeare_char', 'masked text': 'shakespeare_char', 'task': 'bit_xor', 'pairs': 'dates',
                   'images': 'cifar10_images', 'patches': 'shapes', 'drawings': 'shapes'}.get(arch.Model.modality)
        raise UserError(f'{arch.name}.py is trained on {arch.Model.modality} data, and data/{cfg.dataset} is '
                        f'{dataset.modality} data: choose another dataset' + f', such as {example},' * bool(example) +
                        ' or another arch')
    known = {f.name for f in dataclasses.fields(arch.Config)}
    shape = {k: v for k, v in dataset.model_settings().items() if k in known}
    task = dataset.unit != 'windows'    # the data decides what an example is, as in a task or in pairs
    spec = dataset.meta.get('tokenizer') if shape.get('vocab_size') else None       # a model of images alone reads no tokens
    if task and (wrong := [k for k, v in shape.items() if overrides.get(k, v) != v]):
        raise UserError(f'{wrong[0]}={overrides[wrong[0]]} does not fit data/{cfg.dataset}, which has {wrong[0]}='
                        f'{shape[wrong[0]]}: leave {wrong[0]} out')
    if cfg.last_only and dataset.modality != 'text':
        raise UserError(f'last_only: only language models have a token after the window, and this one is trained on a '
                        f'{dataset.modality}: leave it out')
    if cfg.augment != 'none' and dataset.unit != 'images':
        raise UserError(f'augment={cfg.augment}: only images are augmented, and data/{cfg.dataset} is {dataset.modality} data: '
                        f'leave it out')
    if 'flip' in cfg.augment and dataset.sides:
        raise UserError(f'augment={cfg.augment} mirrors images, and captions of data/{cfg.dataset} say left or '
                        f'right: choose crop')
    if cfg.new_vocabulary and (task or cfg.init_from == 'scratch'):
        raise UserError('new_vocabulary replaces the vocabulary of a text model that --init_from names: leave it out')
    fitted = shape | overrides if task else dict(overrides)     # a text model keeps the vocab_size of its weights
    vocab_size = fitted.pop('vocab_size', shape['vocab_size']) if cfg.new_vocabulary else None
    if cfg.init_from == 'resume':
        raise UserError("init_from='resume' is nanoGPT's: continue a run with --resume")
    if cfg.init_from == 'scratch':
        model = build(arch, shape | overrides)
    elif checkpoint.is_ours(cfg.init_from):
        model, tokens = from_checkpoint(arch, cfg.init_from, fitted)
    elif arch.Model.from_pretrained:
        try:
            model = arch.Model.from_pretrained(cfg.init_from, **fitted)
        except ValueError as e:
            raise UserError(f'init_from={cfg.init_from}: {e}') from None
        tokens = tokenizer.published_spec(cfg.init_from) if spec else None
        if spec and tokens is None and model.config.vocab_size == dataset.vocab_size and \
                spec.get('name') == (arch.Model.published_tokens or 0):
            tokens = spec
    else:
        raise UserError(f"init_from='{cfg.init_from}' is no checkpoint, and {arch.name}.py loads no published weights: name a "
                        f'run folder or a checkpoint')
    if cfg.new_vocabulary:
        model = with_vocabulary(arch, model, vocab_size)
    elif cfg.init_from != 'scratch' and spec and not tokenizer.same(tokens, spec):
        raise UserError(f'init_from={cfg.init_from} has another tokenizer than data/{cfg.dataset}, so its embeddings are of '
                        f'other tokens: ' + ('choose another run, or leave init_from out' if task else
                        'prepare data with its tokenizer (prepare/text.py --tokens), or ' * (spec['kind'] != 'palette') +
                        'reinitialize embeddings and output layer by --new_vocabulary'))
    if not task and model.config.vocab_size < shape['vocab_size']:
        raise UserError(f'vocab_size={model.config.vocab_size} must be at least {shape["vocab_size"]}, the number of tokens '
                        f'in data/{cfg.dataset}' + ', and [MASK]' * (shape['vocab_size'] > dataset.vocab_size))
    if model.known_tokens and not tokenizer.same(model.known_tokens, dataset.meta.get('tokenizer')):
        raise UserError(f'keep_embedding: the trunk was trained on other tokens than those of data/{cfg.dataset}: choose '
                        f'another trunk, or leave it out')
    if model.known_pixels not in (None, dataset.meta.get('standard')):
        raise UserError(f'vae: it was trained on other images than those of data/{cfg.dataset}, whose means and standard '
                        f'deviations are others: choose a VAE that was trained on data/{cfg.dataset}')
    if dataset.modality == 'text' and dataset.whole and (cfg.last_only or model.predicts == 'last'):
        raise UserError(f"last_only or predicts='last' would learn only the last pixel of each picture of data/{cfg.dataset}: "
                        f'choose a model that predicts every token, and leave last_only out')
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
        model = build(arch, was)
        checkpoint.load_weights(model, content, path)
        if was != new and not arch.Model.refined:
            raise ValueError('this changes the function of its weights, so leave it out')
        return model.refined(new) if was != new else model, content['data'].get('tokenizer')
    except ValueError as e:
        changed = [f'its {k} is {v}, this run has {getattr(new, k)}: ' for k, v in vars(was).items() if v != getattr(new, k)]
        raise UserError(f'init_from={name}: {"".join(changed[:1])}{e}') from None


def with_vocabulary(arch, model, size):
    """The model for another vocabulary: its weights, except new ones where the size of the vocabulary is in their shape."""
    was, derived = dataclasses.asdict(model.config), {}
    for f in dataclasses.fields(arch.Config):       # a setting that follows from the vocabulary, such as the token [MASK]
        as_default = was | {f.name: f.default}
        with contextlib.suppress(UserError):
            if f.default is not dataclasses.MISSING and dataclasses.asdict(build_config(arch, as_default)) == was:
                derived[f.name] = f.default
    values = was | derived | {'vocab_size': size}
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
                           ('patch', content['loop'].get('patch', cfg.patch), cfg.patch),
                           ('validate', content['loop'].get('validate', cfg.validate), cfg.validate),
                           *([('init_from', content['loop'].get('init_from'), cfg.init_from)] * (cfg.init_from != 'scratch')),
                           *((k, content['config'].get(k), v) for k, v in settings.model.items())]:
        if was != now:
            raise UserError(f'{path} cannot be resumed: its {name} is {was}, this run has {now}')
    if 'optimizers' not in content:
        raise UserError(f'{path} has weights but no optimizer state, as best.pt does: start a new run from it with '
                        f'--init_from={path}')
    cfg.init_from = content['loop'].get('init_from', cfg.init_from)
    model = build(arch, content['config'])
    checkpoint.load_weights(model, content, path)
    return model, content


def changed(was, cfg):
    """{name: value} of the settings that differ from those in a checkpoint."""
    was = {config.RENAMED.get(k, k): v for k, v in was.items()}
    return {k: v for k, v in dataclasses.asdict(cfg).items() if was.get(k, v) != v and k not in ('resume', 'overwrite')}


# the folder -------------------------------------------------------------------------------------------------------------------

def not_finite(e, tensors):
    """Whether one of these tensors, or one in the functions that were running when e was raised, holds nan or infinity."""
    running = [v for frame, _ in traceback.walk_tb(e.__traceback__) for v in frame.f_locals.values()]
    tensors = [v for v in map(shard.local, (*running, *tensors)) if isinstance(v, torch.Tensor) and not v.is_meta]
    return any((v.isnan() | (v == math.inf)).any() for v in tensors if v.is_floating_point())      # -inf may be a mask


def lock(folder, option):
    """An open file that locks a folder, which is made if it is missing, until it is closed or this process ends.  option: the
    one that chose the folder.  Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        f = open(folder / '.lock', 'a+')     # noqa: SIM115 (the caller closes it)
    except OSError as e:
        raise UserError(f'{option}={folder} cannot be written ({e.strerror}): choose another {option}') from None
    try:
        import fcntl
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        f.close()
        raise UserError(f'{folder} is in use by another process: stop it, or wait until it has ended') from None
    except (ImportError, OSError):      # Windows has no fcntl, and some network file systems have no locks
        pass
    return f


def remove(folder):
    """Removes the files of a run."""
    for path in (path for name in (*FILES, *EXTRAS) for path in folder.glob(name)):
        path.unlink()


class Folder:
    """The folder of a run, to which one process at a time writes.

    A run that replaces another with --overwrite is written to out_dir/.new, and the old one stays as it is, until promote()."""

    def __init__(self, out_dir):
        self.out_dir = self.path = out_dir      # path: where the files of this run are
        self.held = self.links = None           # the lock, and the number of its names

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.held:
            self.held.close()

    @property
    def staged(self):
        return self.path != self.out_dir

    def claim(self, cfg, make=False):
        """Locks the folder, if it exists or make is True.  Raises UserError if it holds a run that cfg neither resumes nor
        overwrites.  A run that torchrun restarts after a failure is resumed."""
        for enabled, package in ((cfg.tensorboard, 'tensorboard'), (cfg.wandb_log, 'wandb')):
            if enabled and importlib.util.find_spec(package) is None:
                raise UserError(f'{package} is not installed: pip install {package}')
        if self.held or not (make or self.out_dir.is_dir()):
            return
        self.held = lock(self.out_dir, '--out_dir')
        self.links = os.fstat(self.held.fileno()).st_nlink
        new, resumable = self.out_dir / '.new', self.out_dir / 'ckpt.pt'
        if (self.out_dir / '.done').exists():   # it was killed within promote()
            self.promote()
        job = f'{os.environ["TORCHELASTIC_RUN_ID"]} {os.getppid()}' if 'TORCHELASTIC_RUN_ID' in os.environ else ''
        self.held.seek(0)
        # an earlier attempt of this very job has claimed the folder
        if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) and self.held.read() == job:
            cfg.resume = resumable.exists() and not new.exists()
            cfg.overwrite = not cfg.resume
        elif new.exists():
            print(f'{new}, which --overwrite began and did not evaluate after a step, is removed')
        shutil.rmtree(new, ignore_errors=True)
        holds = any((self.out_dir / n).exists() for n in FILES)
        if holds and not cfg.resume and not cfg.overwrite:
            raise UserError(f'{self.out_dir} already holds a run: --resume continues it, --overwrite replaces it, '
                            f'--out_dir=... writes elsewhere')
        if holds and cfg.overwrite:
            new.mkdir()
            self.path = new
        if job:
            self.held.truncate(0)
            self.held.write(job)
            self.held.flush()

    def open(self, cfg, about, resumed_at, more):
        """Writes config.json, and returns the Log.  about: what the checkpoints say of the run.  resumed_at: the step of the
        checkpoint, or None.  more: extra columns of metrics.csv."""
        self.claim(cfg, make=True)
        try:
            for stale in self.path.glob('.*.partial'):
                stale.unlink()
            if cfg.overwrite:
                remove(self.path)
            about = about | {'data': {k: about['data'][k] for k in ('fingerprint', 'source')}}
            log = Log(self.path, resumed_at, more, cfg, about)
            with atomic(self.path / 'config.json', 'w') as f:
                json.dump(about, f, indent=1)
            if not self.staged:
                log.track(self.out_dir)
            return log
        except OSError as e:
            raise UserError(f'out_dir={self.out_dir} cannot be written ({e.strerror}): choose another --out_dir') from None

    def check(self):
        """Raises UserError if the folder was removed since claim(): one of the same name may belong to another process."""
        if os.fstat(self.held.fileno()).st_nlink < self.links:
            raise UserError(f'{self.out_dir} was removed while the run wrote to it: start it again')

    def promote(self):
        """Replaces the old run by the one in .new.  It may be killed at any point, and then be called again."""
        done = self.out_dir / '.done'
        if self.staged:
            os.rename(self.path, done)
        if (done / 'ckpt.pt').exists():         # it is moved first, so the old run has not been removed yet
            remove(self.out_dir)
        for path in sorted(done.iterdir(), key=lambda path: path.name != 'ckpt.pt'):
            os.replace(path, self.out_dir / path.name)
        done.rmdir()
        self.path = self.out_dir


# processes --------------------------------------------------------------------------------------------------------------------

def start(words, **more):
    """A process of train.py for the words of its command line.  It ends with this one, even if this one is killed: its stdin is
    a pipe that is then closed."""
    ranks = ('WORLD_SIZE', 'RANK', 'LOCAL_RANK', 'TORCHELASTIC_RESTART_COUNT', 'TORCHELASTIC_RUN_ID')
    env = {k: v for k, v in os.environ.items() if k not in ranks} | {FOLLOWS: '1'}
    return subprocess.Popen([sys.executable, str(ROOT / 'train.py'), *words], env=env, stdin=subprocess.PIPE, **more)


def follow_parent():
    """Lets this process end as soon as the one that started it by start() has."""
    def wait():
        os.read(0, 1)       # not by sys.stdin, whose lock Python takes when it exits
        os._exit(1)
    if FOLLOWS in os.environ:
        threading.Thread(target=wait, daemon=True).start()
