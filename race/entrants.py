"""
The entrants of a race: their settings, their size, what a step and an evaluation cost, and what a budget gives them.

Evaluation is planned to take at most a quarter of a run's time: CURVE of it for the validation curve, JUDGEMENT of it for the
evaluation of the final weights.  For small budgets LEAST_POINTS and the least numbers of windows may exceed that.
"""

import contextlib
import dataclasses
import math
import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from harness import BIDIRECTIONAL, UserError, config, data, device, runs
from harness.arch import ANSWERS
from train import TrainConfig, Trainer, evaluate, split_batch

OURS = ('out_dir', 'resume', 'overwrite', 'dry_run', 'eval_only')       # settings of train.py that a race decides
WIDTHS = ('n_embd', 'dims')             # the settings that set the width of a model
POINTS, LEAST_POINTS = 20, 4            # evaluations of a run, beside the one before its first step
CURVE, LEAST_CURVE = 0.15, 64           # share of the time, and windows of each evaluation
JUDGEMENT, LEAST_JUDGEMENT, MOST_JUDGEMENT = 0.1, 500, 5000
STARTUP = 8                             # seconds to start a process and to write the report, about


@dataclass
class Entrant:
    name: str
    words: list             # for train.py: the config file and settings
    settings: config.Settings
    data: object            # a DataContract
    model: object           # its Config, as built
    parameters: int
    trained: int            # parameters that are trained
    predicts: str
    leaks: bool
    memory: int
    bidirectional: bool = False

    def folder(self, out, seed):
        return out / f'{slug(self.name)}-{seed}'

    @property
    def tokens_per_step(self):
        return math.prod(split_batch(self.settings.train, self.model.block_size, 1)) * self.model.block_size

    def sets(self, name):
        """Whether its words set the setting `name`."""
        return any(w.partition('=')[0] == f'--{name}' for w in self.words)


def slug(name):
    """A name as that of a folder."""
    return re.sub(r'[^\w.=,-]+', '_', name)


def split_words(text):
    """The words of a config with its own settings, as in 'config/shakespeare_gpt.py --n_layer=2'.  Raises UserError."""
    path, *rest = [text] if Path(text).is_file() else re.split(r'\s+(?=--)', text, maxsplit=1)
    exact = Path(path).is_file()        # its name may have blanks and backslashes
    try:
        words = [path] * exact + shlex.split(' '.join(rest) if exact else text)
    except ValueError as e:
        raise UserError(f"cannot read the config '{text}' ({e}): close the quotes") from None
    if not words:
        raise UserError("'' is not a config: name a file, such as config/shakespeare_gpt.py")
    return words


def setting_type(words, name):
    """The type of a setting of TrainConfig or of the architecture that these words name; None if there is no such setting."""
    classes = TrainConfig, config.load(words, TrainConfig).arch.Config
    return {f.name: f.type for cls in classes for f in dataclasses.fields(cls)}.get(name)


def load(words, common):
    """(words, Settings, name) of a config file and its settings.  common: settings of all entrants; the entrant's own settings
    win, and those that its architecture does not have are left out."""
    path, *own = words
    if ours := [w for w in (*common, *own) if w.partition('=')[0].removeprefix('--') in OURS]:
        raise UserError(f'{ours[0]} cannot be set here: every run has a folder in --out, and is trained from start to end')
    words = [path, *(w for w in common if setting_type(words, w[2:].partition('=')[0]) is not None), *own]
    settings = config.load(words, TrainConfig)
    return words, settings, ' '.join([settings.name, *(w.lstrip('-') for w in own)])


def open_data(settings):
    """The data set of these Settings, as their architecture reads it."""
    cfg = settings.train
    return data.open_data(cfg.dataset, cfg.leaking_split, settings.arch.Model.modality, cfg.patch, cfg.validate)


def read(words, common=()):
    """The Entrant of a config file and its settings.  Prepares its data and trains its trunk if they are missing."""
    words, settings, name = load(words, common)
    cfg = settings.train
    if settings.arch.Model.modality in ('patches', 'drawings'):
        raise UserError(f'{name}: {settings.arch.name}.py rebuilds or draws images, for which there is no race: train it by '
                        f'train.py')
    runs.prepare(settings)
    source = open_data(settings)
    torch.manual_seed(cfg.seed)         # a model may keep a seed for its random parts
    with torch.device('meta') if cfg.init_from == 'scratch' else contextlib.nullcontext():
        model = runs.new_model(settings, source)
    source.require(model.config.block_size)
    parameters, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad or frozen) for frozen in (True, False))
    return Entrant(name, words, settings, source, model.config, parameters, trained, model.predicts, model.leaks, model.memory,
                   model.bidirectional)


def expand(split, common):
    """(words of every entrant, settings of all): a setting with commas between values makes one entrant per value, unless its
    type is a tuple (PACING's dims)."""
    kept = []
    for word in common:
        name, _, value = word[2:].partition('=')
        if ',' not in value or any('tuple' in str(setting_type(words, name)) for words in split):
            kept.append(word)
            continue
        split = [[*words, *more] for words in split for more in (
            [[f'--{name}={v}'] for v in value.split(',')] if setting_type(words, name) is not None else [[]])]
    return split, kept


def check_data(loaded):
    """Raises UserError if the entrants are trained on different data.  loaded: what load() returns for each.

    Data sets that exist are compared first, before a missing one is prepared, and all of them before any trunk is trained."""
    _, first, first_name = loaded[0]
    for _, settings, name in loaded[1:]:
        ours, theirs = ('task' if m in ANSWERS else m for m in (s.arch.Model.modality for s in (settings, first)))
        if ours != theirs:
            raise UserError(f'{name} is trained on a {ours} and {first_name} on a {theirs}, so they cannot be compared: choose '
                            f'configs for one kind of data')

    def missing(entry):
        return not (data.local(entry[1].train.dataset) / 'meta.json').exists()
    opened = None
    for _, settings, name in sorted(loaded, key=missing):
        cfg, source = settings.train, open_data(settings)
        if settings.arch.Model.modality != source.modality:
            raise UserError(f'{name} is trained on a {settings.arch.Model.modality}, but data/{cfg.dataset} is a '
                            f'{source.modality}: '
                            f'choose another dataset or arch')
        opened = opened or (source.fingerprint, name, cfg.dataset)
        if source.fingerprint != opened[0]:
            raise UserError(f'{name} reads other data ({cfg.dataset}, {source.fingerprint}) than {opened[1]} ({opened[2]}, '
                            f'{opened[0]}), so their losses cannot be compared: --set dataset=...')


def enter(configs, settings, match=False):
    """(entrants, notes) of a race.  Raises UserError for entrants that cannot be raced, before anything is trained.

    configs: config files, each with its own settings behind it.  settings: NAME=VALUE for all of them.  match: scale the
    width of the others to the first one's number of parameters."""
    if bad := [word for word in settings if '=' not in word]:
        raise UserError(f"cannot read --set '{bad[0]}': expected name=value")
    split, common = [split_words(c) for c in configs], [f'--{word}' for word in settings]
    names = [word.partition('=')[0] for word in settings]
    if unused := [w for w, n in zip(settings, names, strict=True) if all(setting_type(words, n) is None for words in split)]:
        raise UserError(f'--set {unused[0]}: none of these configs has such a setting')
    split, common = expand(split, common)
    loaded = [load(words, common) for words in split]
    folders = [slug(name) for *_, name in loaded]
    if twice := [f for i, f in enumerate(folders) if f in folders[:i]]:
        raise UserError(f"two entrants are called '{twice[0]}': add a setting to one of them, in quotes: 'CONFIG --name=value'")
    check_data(loaded)
    entrants, notes = [read(words, common) for words in split], []
    first = entrants[0]
    for e in entrants[1:]:
        if e.bidirectional != first.bidirectional:
            name = e.name if e.bidirectional else first.name
            raise UserError(f'{name}: {BIDIRECTIONAL}: choose configs that all see both sides, or none')
        if e.data.unit == 'windows' and e.model.block_size != first.model.block_size:
            raise UserError(f'{e.name} reads windows of {e.model.block_size} tokens and {first.name} of '
                            f'{first.model.block_size}, so they are judged on different validation windows: --set '
                            f'block_size={first.model.block_size}')
    for i, e in enumerate(entrants[1:], 1):
        if match and abs(e.parameters / first.parameters - 1) > 0.02:
            entrants[i], note = match_parameters(e, first.parameters)
            notes.append(note)
    return entrants, notes


def match_parameters(e, target, tolerance=0.02):
    """(the entrant at a width that gives it `target` parameters, a note that names the width)."""
    arch, shape = e.settings.arch, dataclasses.asdict(e.model)
    # not all of e.model: what it derived from the width, such as head_dim, must follow the width
    given = {k: v for k, v in e.data.model_settings().items() if k in shape} | e.settings.model

    def scaled(by, names):
        def scale(n):
            return max(1, round(n * by))
        return {k: tuple(map(scale, shape[k])) if isinstance(shape[k], tuple) else scale(shape[k]) for k in names}

    def parameters(values):
        with contextlib.suppress(ValueError), torch.device('meta'):     # ValueError: n_head does not divide the width
            return sum(p.numel() for p in arch.Model(arch.Config(**given | values)).parameters())

    # an architecture may have a width that is not used with these settings
    names = [k for k in WIDTHS if k in shape and parameters(scaled(4, [k])) not in (None, e.parameters)]
    if not names:
        raise UserError(f'--match=parameters: {e.name} has no setting for its width, such as {WIDTHS[0]}: match it by hand')
    base = max(shape[names[0]]) if isinstance(shape[names[0]], tuple) else shape[names[0]]
    # apart from a part that does not depend on the width, parameters grow at least linearly and at most as its square
    fixed = min(parameters(scaled(0, names)) or 0, target - 1, e.parameters - 1)
    ratio = (target - fixed) / (e.parameters - fixed)
    low, high = sorted((base * ratio, base * math.sqrt(ratio)))
    step = 1 << max(0, int(low).bit_length() - 8)
    counts = {w: n for w in range(max(step, int(low * 0.95) // step * step), int(high * 1.05) + step, step)
              if (n := parameters(scaled(w / base, names)))}
    good = [w for w, n in counts.items() if abs(n / target - 1) <= tolerance]
    if not good:
        near = min(counts, key=lambda w: abs(counts[w] - target), default=base)
        raise UserError(f'--match=parameters: no width brings {e.name} within {tolerance:.0%} of {target:,} parameters (the '
                        f'nearest is {scaled(near / base, names)}): change its layers or heads')
    width = max(good, key=lambda w: (w & -w, -abs(counts[w] - target)))     # a multiple of a high power of 2 is fast
    chosen = [f'--{k}={v}'.replace(' ', '') for k, v in scaled(width / base, names).items()]
    note = f'{e.name}: {" ".join(chosen)} gives {counts[width]:,} parameters, to match {target:,}'
    return dataclasses.replace(read([*e.words, *chosen]), name=e.name), note


# budgets ----------------------------------------------------------------------------------------------------------------------

def add_budget(parser, **kinds):
    """Mutually exclusive options for the budget.  kinds: {name: help}."""
    group = parser.add_mutually_exclusive_group()
    for name, text in kinds.items():
        group.add_argument(f'--{name}', type=float, help=text)


def read_budget(args, *kinds):
    """(kind, amount) of the budget option that was given, or None.  Raises UserError."""
    for kind in kinds:
        if (amount := getattr(args, kind)) is not None:
            if not (amount > 0 and math.isfinite(amount)):
                raise UserError(f'--{kind}={amount:g} must be above 0 and finite')
            return kind, amount


@dataclass
class Cost:
    flops: float            # per training step: matrix products and convolutions
    seconds: float          # per training step
    evaluation: float       # seconds per evaluated window or example


def measure(e, machine):
    """The Cost of the step that train.py makes, and of an evaluation, measured on untrained weights."""
    cfg = e.settings.train
    torch.manual_seed(cfg.seed)
    trainer = Trainer(cfg, runs.new_model(e.settings, e.data), e.data, machine)
    indices = e.data.val_indices(cfg.batch_size, e.model.block_size)

    def step():
        trainer.step(0, 0.0)            # at a learning rate of 0 nothing diverges
        machine.synchronize()

    def seconds(function):
        began = time.perf_counter()
        function()
        return time.perf_counter() - began
    flops = count_flops(step)
    steps = sorted(seconds(step) for _ in range(5))
    evaluations = [seconds(lambda: evaluate(trainer.model, e.data, indices, cfg.batch_size, machine)) for _ in range(3)]
    return Cost(flops, steps[2], min(evaluations) / len(indices))


def steps_for(e, cost, budget):
    """(steps, what one costs in the unit of the budget, seconds of training) that a budget gives an entrant, about."""
    kind, amount = budget
    each = {'seconds': cost.seconds, 'tokens': e.tokens_per_step, 'flops': cost.flops, 'steps': 1}[kind]
    steps = int(amount / each * (1 + 1e-9))
    return steps, each, amount if kind == 'seconds' else steps * cost.seconds


def affordable(e, cost, budget):
    """(windows of an evaluation of the curve, windows of the judgement) that an entrant can evaluate within its share."""
    windows = steps_for(e, cost, budget)[2] / cost.evaluation
    return (max(LEAST_CURVE, int(CURVE * windows / (POINTS + 1))),
            min(MOST_JUDGEMENT, max(LEAST_JUDGEMENT, int(JUDGEMENT * windows) // 100 * 100)))


def number_format(cfg):
    """{'dtype': ...} for a run whose dtype is auto.  train.py may measure which format is faster; the runs of a race or sweep
    have one, whatever the load of the machine is when they begin."""
    found, _ = device.number_format(device.pick_device(cfg.device, 0, 1))
    return {'dtype': str(found).removeprefix('torch.')} if cfg.dtype == 'auto' else {}


def plan(e, cost, budget, curve_windows, windows):
    """How an entrant is trained, as plain data.  Raises UserError if the budget is too small for one evaluation.

    curve_windows: most windows of an evaluation during training (None: as its settings say).  windows: of the judgement."""
    kind, amount = budget
    cfg, T = e.settings.train, e.model.block_size
    steps, each, seconds = steps_for(e, cost, budget)
    count = len(e.data.val_indices(cfg.eval_windows, T))
    flags = {'max_seconds': amount, 'max_iters': 0} if kind == 'seconds' else {'max_seconds': 0, 'max_iters': steps}
    if curve_windows is not None and not e.sets('eval_windows') and curve_windows < count:
        flags['eval_windows'] = count = curve_windows
    points = min(POINTS, max(LEAST_POINTS, int(CURVE * seconds / (count * cost.evaluation)) - 1))
    interval = cfg.eval_interval if e.sets('eval_interval') else max(1, -(-steps // points))
    if steps < interval:
        about = 'about ' if kind == 'seconds' else ''
        raise UserError(f'--{kind}={amount:g} gives {e.name} {about}{steps} steps of {each:.3g} {kind} each, too few for one '
                        f'evaluation: it needs at least {about}{interval * each:.3g}')
    test = e.data.test_indices()
    judged = len(e.data.val_indices(windows, T) if test is None else test)
    total = STARTUP + seconds + ((steps // interval + 1) * count + judged) * cost.evaluation
    flags |= {**number_format(cfg), 'eval_interval': interval, 'sample_tokens': 0}
    return {'flags': flags, 'flops_per_step': cost.flops, 'run_seconds': total}


def convolution_backward_flops(dy, x, w, *args, out_shape=None):
    """Each gradient costs as much as the convolution.  torch 2.13 ignores the groups, so its count for a depthwise convolution
    is too high by the number of channels."""
    transposed, mask = args[4], args[-1]
    return sum(mask[:2]) * conv_flop_count(x, w, dy, transposed=transposed)


def count_flops(step):
    """Calls step() and returns the FLOPs of the matrix products and convolutions in it, on any device.

    Attention runs as two matrix products, because torch does not count the fused kernel of a CPU."""
    fixed = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=fixed) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()
