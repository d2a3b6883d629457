"""
Race architectures on one budget, and say whether the difference is larger than the noise:

    python compare.py config/shakespeare_gpt.py config/shakespeare_pacing.py --seconds=120
    python compare.py config/shakespeare_gpt.py "config/shakespeare_gpt.py --optimizer=adamw" --tokens=2e6 --seeds=5
    python compare.py config/shakespeare_gpt.py config/shakespeare_pacing.py --match=parameters --set block_size=128 n_layer=2
    python compare.py config/fpt_mnist.py --set trunk=gpt2,distilgpt2,out/shakespeare_gpt,random

- Every run is one of train.py, in a process of its own. The entrants take turns, seed by seed, so a noisy machine hurts all
  alike.
- The last weights are judged, never the best, on the same windows for all: nothing is chosen on the validation text.
- A race that was stopped goes on when the same command is given again; what has finished is not run again. More entrants
  or seeds may join.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import look
from harness import ROOT, UserError, checkpoint, config, data, device, flops, log, optim, report, runs
from harness.files import atomic
from harness.generate import generate
from train import Loop, evaluate, share_out

WIDTHS = ('n_embd', 'dims')     # the settings that say how wide a model is
POINTS = 20                     # evaluations in a run, unless --set eval_interval says otherwise


def arguments(argv):
    parser = config.Arguments(description=__doc__)
    parser.add_argument('configs', nargs='+', help='config files; in quotes, one with settings of its own behind it')
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument('--seconds', type=float, help='of training, evaluation not counted')
    budget.add_argument('--tokens', type=float, help='read in training (default: as many as the first config reads)')
    budget.add_argument('--flops', type=float, help='of training, counted on a real step')
    budget.add_argument('--steps', type=float)
    parser.add_argument('--seeds', type=int, default=3, help='runs of each config (default 3)')
    parser.add_argument('--match', choices=['parameters'], help="scale the rivals' width to the first config's parameters")
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='NAME=VALUE',
                        help='settings of all configs; with commas between values, each of them is an entrant')
    parser.add_argument('--windows', type=int, default=5000, help='of the validation text, to judge by (default 5000; 0: all)')
    parser.add_argument('--out', default='out/race', help='the folder of the race (default out/race)')
    parser.add_argument('--overwrite', action='store_true', help='begin anew: remove the race that --out holds')
    args = parser.parse_args(argv)
    args.budget = next(((k, v) for k in ('seconds', 'tokens', 'flops', 'steps') if (v := getattr(args, k)) is not None), None)
    if args.budget and not (args.budget[1] > 0 and math.isfinite(args.budget[1])):
        raise UserError(f'--{args.budget[0]}={args.budget[1]:g} must be above 0')
    if args.seeds < 1 or args.windows < 0:
        raise UserError(f'--seeds={args.seeds} must be at least 1, and --windows={args.windows} not negative')
    return args


# the entrants: settings, size, and what a step costs ------------------------------------------------------------------------

@dataclass
class Entrant:
    name: str
    words: list             # for train.py: the config file and settings
    settings: config.Settings
    text: data.TextData     # or TaskData
    model: object           # its Config, resolved
    parameters: int
    trained: int            # of them
    predicts: str
    leaks: bool
    memory: int             # tokens before the window that it reads

    def folder(self, out, seed):
        return out / f'{slug(self.name)}-{seed}'

    @property
    def tokens_per_step(self):
        return math.prod(share_out(self.settings.loop, self.model.block_size, 1)) * self.model.block_size


def slug(name):
    """A name as that of a folder."""
    return re.sub(r'[^\w.=,-]+', '_', name)


def read(words, common):
    """The Entrant of a config file and its settings.  common: those of --set, of which it takes the ones that it has."""
    path, *own = words
    words = [path, *(w for w in common if known(words, w)), *own]       # its own have the last word
    settings = config.load(words, Loop)
    loop = settings.loop
    runs.prepare(settings)
    text = data.open_data(loop.dataset, loop.leaking_split)
    name = ' '.join([settings.name, *(w.lstrip('-') for w in own)])
    torch.manual_seed(loop.seed)        # a model may keep what its random parts were drawn from
    with torch.device('meta') if loop.init_from == 'scratch' else contextlib.nullcontext():
        model = runs.new_model(settings, text)
    text.need(model.config.block_size)
    parameters, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad or frozen) for frozen in (True, False))
    return Entrant(name, words, settings, text, model.config, parameters, trained, model.predicts,
                   getattr(model, 'leaks', False), getattr(model, 'memory', 0))


def kind_of(words, name):
    """The type of a setting of the loop or of the architecture that these words mean; None if they have no such setting."""
    return {f.name: f.type for cls in (Loop, config.load(words, Loop).arch.Config) for f in dataclasses.fields(cls)}.get(name)


def known(words, word):
    """Is the name in '--name=value' a setting of the loop or of the architecture that these words mean?"""
    return kind_of(words, word[2:].partition('=')[0]) is not None


def each(split, common):
    """(words of every entrant, settings of all): a setting with commas between its values makes an entrant of each, unless it
    is of a kind that has several (PACING's dims)."""
    kept = []
    for word in common:
        name, _, said = word[2:].partition('=')
        if ',' not in said or any('tuple' in str(kind_of(words, name)) for words in split):
            kept.append(word)
            continue
        split = [[*words, *more] for words in split for more in (
            [[f'--{name}={value}'] for value in said.split(',')] if kind_of(words, name) else [[]])]
    return split, kept


def enter(args):
    """The entrants of a race.  Raises UserError for what cannot be raced, before anything is trained."""
    common = [f'--{word}' for word in args.set]
    if wrong := [word for word in args.set if '=' not in word]:
        raise UserError(f"cannot read --set '{wrong[0]}': name=value is wanted")
    split = [shlex.split(c) for c in args.configs]
    if not all(split):
        raise UserError('one of the configs is empty: name files, such as config/shakespeare_gpt.py')
    if unused := [c for c in common if not any(known(words, c) for words in split)]:
        raise UserError(f'--set {unused[0][2:]}: none of these configs has such a setting')
    split, common = each(split, common)
    entrants = [read(words, common) for words in split]
    first = entrants[0]
    if twice := [e.name for i, e in enumerate(entrants) if slug(e.name) in [slug(f.name) for f in entrants[:i]]]:
        raise UserError(f"two entrants are called '{twice[0]}': give one of them a setting of its own, in quotes behind "
                        f'its config')
    for e in entrants[1:]:
        ours, theirs = (x.text.fingerprint for x in (e, first))
        if ours != theirs:
            raise UserError(f'{e.name} reads other data ({e.settings.loop.dataset}, {ours}) than {first.name} '
                            f'({first.settings.loop.dataset}, {theirs}), so their losses cannot be compared: --set dataset=...')
        if e.model.block_size != first.model.block_size:
            raise UserError(f'{e.name} reads windows of {e.model.block_size} tokens and {first.name} of '
                            f'{first.model.block_size}, so they are judged on different validation windows: --set '
                            f'block_size={first.model.block_size}')
    notes = []
    if args.match:
        for i, e in enumerate(entrants[1:], 1):
            entrants[i], note = match(e, first.parameters)
            notes += note
    return entrants, notes


def match(e, wanted, tolerance=0.02):
    """e at a width that gives it `wanted` parameters, and a note that says which."""
    if abs(e.parameters / wanted - 1) <= tolerance:
        return e, []
    arch, said = e.settings.arch, dataclasses.asdict(e.model)

    def scaled(by, names):
        def grown(n):
            return max(1, round(n * by))
        return {k: tuple(map(grown, said[k])) if isinstance(said[k], tuple) else grown(said[k]) for k in names}

    def parameters(values):
        with contextlib.suppress(ValueError), torch.device('meta'):     # ValueError: heads that do not divide it, say
            return sum(p.numel() for p in arch.Model(arch.Config(**said | values)).parameters())

    # an architecture may have a width that is of no use in this setting
    names = [k for k in WIDTHS if k in said and parameters(scaled(4, [k])) not in (None, e.parameters)]
    if not names:
        raise UserError(f'--match=parameters: {e.name} has no setting for its width, such as {WIDTHS[0]}: match it by hand')
    base = max(said[names[0]]) if isinstance(said[names[0]], tuple) else said[names[0]]
    # what does not depend on the width apart, parameters grow at least as it does, and at most as its square
    fixed = min(parameters(scaled(0, names)) or 0, wanted - 1, e.parameters - 1)
    ratio = (wanted - fixed) / (e.parameters - fixed)
    low, high = sorted((base * ratio, base * math.sqrt(ratio)))
    step = 1 << max(0, int(low).bit_length() - 8)
    counts = {w: n for w in range(max(step, int(low * 0.95) // step * step), int(high * 1.05) + step, step)
              if (n := parameters(scaled(w / base, names)))}
    good = [w for w, n in counts.items() if abs(n / wanted - 1) <= tolerance]
    if not good:
        near = min(counts, key=lambda w: abs(counts[w] - wanted), default=base)
        raise UserError(f'--match=parameters: no width brings {e.name} within {tolerance:.0%} of {wanted:,} parameters (the '
                        f'nearest is {scaled(near / base, names)}): change its layers or heads')
    width = max(good, key=lambda w: (w & -w, -abs(counts[w] - wanted)))     # the roundest number: fast on any device
    chosen = [f'--{k}={v}'.replace(' ', '') for k, v in scaled(width / base, names).items()]
    note = f'{e.name}: {" ".join(chosen)} gives {counts[width]:,} parameters, to match {wanted:,}'
    return dataclasses.replace(read([*e.words, *chosen], []), name=e.name), [note]


# what a run costs, and what the budget buys ---------------------------------------------------------------------------------

def cost(e, machine):
    """(FLOPs, seconds) of a training step, from real ones: the run's own batch, backward pass and optimizer."""
    loop, T = e.settings.loop, e.model.block_size
    torch.manual_seed(loop.seed)
    model = runs.new_model(e.settings, e.text).to(machine.device)
    optimizers = optim.build(model, loop.optimizer, loop.learning_rate, (loop.beta1, loop.beta2), loop.weight_decay)
    micro_steps, rows = share_out(loop, T, 1)
    x, y = (t.to(machine.device) for t in e.text.rows('train', e.text.batch_starts(rows, T, loop.seed, 0), T, e.memory))

    def micro_step():
        with machine.autocast():
            loss = model(x, y)[1]
        loss.backward()

    def update():
        for o in optimizers:
            o.step()
            o.zero_grad()
        if machine.device.type == 'cuda':
            torch.cuda.synchronize()
    operations = micro_steps * flops.count(micro_step) + flops.count(update)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        micro_step()
        between = time.perf_counter()
        update()
        times.append(micro_steps * (between - began) + time.perf_counter() - between)
    return operations, sorted(times)[2]


def plan(e, args, budget, machine):
    """How e is to be trained, as plain data.  Raises UserError if the budget buys it no evaluation."""
    operations, seconds = cost(e, machine)
    kind, amount = budget
    each = {'seconds': seconds, 'tokens': e.tokens_per_step, 'flops': operations, 'steps': 1}[kind]
    steps = int(amount / each * (1 + 1e-9))
    said = any(w.partition('=')[0] == '--eval_interval' for w in e.words)
    interval = e.settings.loop.eval_interval if said else max(1, steps // POINTS)
    if steps < interval:
        about = 'about ' if kind == 'seconds' else ''
        raise UserError(f'--{kind}={amount:g} gives {e.name} {about}{steps} steps of {each:.3g} {kind} each, too few for one '
                        f'evaluation: {about}{interval * each:.3g} are the least')
    limits = {'max_seconds': amount, 'max_iters': 0} if kind == 'seconds' else {'max_seconds': 0, 'max_iters': steps}
    return {'flags': {**limits, 'eval_interval': interval, 'sample_tokens': 0}, 'flops_per_step': operations}


# the race -------------------------------------------------------------------------------------------------------------------

def open_race(args, entrants, machine, out):
    """The plan of every entrant, by name.  race.json keeps them, so that a race that goes on is the race that was begun."""
    first, path = entrants[0], out / 'race.json'
    budget = args.budget or ('tokens', first.settings.loop.max_iters * first.tokens_per_step)
    if not budget[1]:
        raise UserError(f'{first.name} has no max_iters to tell the budget: say --seconds, --tokens, --flops or --steps')
    try:
        kept = json.loads(path.read_text(encoding='utf-8')) if path.exists() else None
        if kept and args.overwrite:
            for name in kept['entrants']:
                for folder in out.glob(f'{slug(name)}-[0-9]*'):
                    if folder.is_dir():
                        shutil.rmtree(folder)
            kept = None
        race = {'budget': list(budget), 'windows': args.windows, 'entrants': dict(kept['entrants'] if kept else {})}
        if kept and (changed := [k for k in ('budget', 'windows') if kept[k] != race[k]]):
            raise UserError(f'{out} holds another race: its {changed[0]} is {kept[changed[0]]}, this one asks for '
                            f'{race[changed[0]]}: choose another --out, or --overwrite it')
        new = []
        for e in entrants:
            asked = json.loads(json.dumps({'data': e.text.fingerprint, **dataclasses.asdict(e.settings.loop),
                                           **dataclasses.asdict(e.model)}))
            if (was := race['entrants'].get(e.name)) is None:
                new.append((e, asked))
            elif changed := [k for k in asked if was['asked'].get(k, asked[k]) != asked[k]]:
                raise UserError(f'{out} holds another {e.name}: its {changed[0]} is {was["asked"][changed[0]]}, this one '
                                f'has {asked[changed[0]]}: choose another --out, or --overwrite it')
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f'{path} is damaged ({type(e).__name__}: {e}): choose another --out, or remove it') from None
    for e, asked in new:
        print(f'{e.name}: {e.parameters:,} parameters, counting and timing a step ...', flush=True)
        race['entrants'][e.name] = {'asked': asked, 'plan': plan(e, args, budget, machine)}
    with atomic(path, 'w') as f:
        json.dump(race, f, indent=1)
    return race


@contextlib.contextmanager
def locked(out):
    """The file that this race and the run that it trains hold open, so that a second race cannot write over the two."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        f = open(out / '.lock', 'a')     # noqa: SIM115 (closed below)
    except OSError as e:
        raise UserError(f'--out={out} cannot be written ({e.strerror}): choose another') from None
    with f:
        with contextlib.suppress(ImportError):      # Windows has no such locks
            import fcntl
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f'{out} is in use by another race, or by a run that a killed race left behind: end it, or '
                                f'wait until it is over') from None
        yield f


def train(words, folder, lock, progress):
    """One run of train.py, to its end.  progress: called now and then with the rows of its metrics.csv.  Returns None, or
    why it came to no end.  What it prints goes to <folder>.log."""
    resume = '--resume' if (folder / 'ckpt.pt').exists() else '--overwrite'
    printed = folder.with_name(f'{folder.name}.log')
    # a session of its own: Ctrl-C reaches it through us alone, and once
    posix = {'start_new_session': True, 'pass_fds': [lock.fileno()]} if os.name == 'posix' else {}
    with open(printed, 'w') as f:
        process = subprocess.Popen([sys.executable, str(ROOT / 'train.py'), *words, f'--out_dir={folder}', resume],
                                   stdin=subprocess.DEVNULL, stdout=f, stderr=f, **posix)
    try:
        while process.poll() is None:
            time.sleep(0.5)
            progress(rows_of(folder))
    except KeyboardInterrupt:
        process.terminate()             # it finishes the step and saves
        process.wait()
        raise UserError('the race was stopped: the same command goes on with it') from None
    if process.returncode == 0:
        return None
    said = [line for line in printed.read_text(errors='replace').splitlines() if line.strip()]
    return said[-1] if said else f'it was killed by signal {-process.returncode}'


def rows_of(folder):
    with contextlib.suppress(OSError, ValueError):
        return log.read(folder / 'metrics.csv')
    return []


def judge(e, seed, folder, plan, windows, machine):
    """What a finished run has come to: plain data, kept in result.json.  On a task, the run has looked at the test split, once,
    with its best weights."""
    rows = rows_of(folder)
    last = next(r for r in reversed(rows) if 'val_loss' in r)
    tail = [r['train_loss'] for r in rows if 'train_loss' in r and r['step'] > 0.9 * last['step']]
    spent = {'seed': seed, 'steps': last['step'], 'tokens': last['tokens'], 'seconds': last['seconds'],
             'tokens_per_second': last['tokens'] / last['seconds'], 'flops': last['step'] * plan['flops_per_step'],
             'memory': last['memory'], 'train_loss': sum(tail) / len(tail)}
    if e.predicts == 'task':
        found = json.loads((folder / 'test.json').read_text(encoding='utf-8'))
        best = next(r for r in rows if r['step'] == found['step'] and 'val_loss' in r)
        return spent | {'best_step': found['step'], 'val_loss': best['val_loss']} | {
            k: found[k] for k in ('test_loss', *report.METRICS) if k in found}
    T = e.model.block_size
    model = checkpoint.load_model(folder / 'ckpt.pt')[0].to(machine.device)
    losses = evaluate(model, e.text, e.text.val_starts(windows, T), T, e.settings.loop.batch_size, machine)
    model.eval()
    tokenizer = e.text.tokenizer
    ids = generate(model, torch.tensor([tokenizer.begin()]), 400, temperature=0.8, top_k=50, n_vocab=tokenizer.n_vocab,
                   generator=torch.Generator().manual_seed(seed))
    written = tokenizer.decode(e.text.tokens['val'][:1 << 20].tolist())
    tokens_per_character = min(len(e.text.tokens['val']), 1 << 20) / len(written)
    return {**spent, **losses, 'bits_per_character': losses['val_loss_full'] / math.log(2) * tokens_per_character,
            'sample': tokenizer.decode([int(i[0]) for i in ids])}


def run(e, seed, folder, race, lock, machine, progress):
    """A result: of judge(), or {'diverged': ...}, or {'failed': ...}, which alone is tried again when the race goes on."""
    path, plan = folder / 'result.json', race['entrants'][e.name]['plan']
    if path.exists():
        try:
            return json.loads(path.read_text(encoding='utf-8'))
        except ValueError as e:
            raise UserError(f'{path} is damaged ({e}): remove it, and the run is judged again') from None
    flags = [f'--{k}={v}' for k, v in (plan['flags'] | {'seed': seed}).items()]
    why = train([*e.words, *flags], folder, lock, lambda rows: progress(plan, rows))
    rows = rows_of(folder)
    last = rows[-1] if rows else {}
    if why and not all(math.isfinite(last.get(k, 0)) for k in ('train_loss', 'val_loss')):
        result = {'seed': seed, 'diverged': why, 'steps': last['step'], 'tokens': last['tokens'], 'seconds': last['seconds']}
    elif why or (done(plan, last) < 1 and not (folder / 'test.json').exists()):     # a run on a task may stop early
        return {'seed': seed, 'failed': why or f'it was stopped at step {last.get("step", 0)}'}
    else:
        result = judge(e, seed, folder, plan, race['windows'], machine)
    with atomic(path, 'w') as f:
        json.dump(result, f, indent=1)
    return result


def done(plan, row):
    """How much of its budget a run has spent, 0 to 1, by its last row."""
    steps, seconds = plan['flags']['max_iters'], plan['flags']['max_seconds']
    return min(1.0, row.get('step', 0) / steps if steps else row.get('seconds', 0) / seconds)


def main(argv):
    args = arguments(argv)
    entrants, notes = enter(args)
    first, out = entrants[0].settings.loop, Path(args.out)
    machine = device.setup(first.device, first.dtype, compile=False)
    for number in (signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)):
        signal.signal(number, signal.default_int_handler)       # end the run that is being trained, too
    with locked(out) as lock:
        race = open_race(args, entrants, machine, out)
        todo = [(e, first.seed + i) for i in range(args.seeds) for e in entrants]
        results = {e.name: [] for e in entrants}
        shown = [('val_loss_full', 'full window', '.4f')]
        if entrants[0].predicts == 'task':
            shown = [(k, title, report.FIGURES[k][1]) for k, title in report.METRICS.items()]
        looks = '{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {desc}'
        with tqdm(total=len(todo), bar_format=looks, leave=False, disable=None) as bar:
            for i, (e, seed) in enumerate(todo):
                def progress(plan, rows, i=i, e=e, seed=seed):
                    loss = next((r['val_loss'] for r in reversed(rows) if 'val_loss' in r), math.nan)
                    bar.set_description_str(f'run {i + 1} of {len(todo)}, {e.name}, seed {seed}: '
                                            f'step {rows[-1]["step"] if rows else 0:,}, val {loss:.3f}')
                    bar.n = i + (done(plan, rows[-1]) if rows else 0)
                    bar.refresh()
                result = run(e, seed, e.folder(out, seed), race, lock, machine, progress)
                results[e.name].append(result)
                tqdm.write(f'{e.name}, seed {seed}: ' + (result.get('failed') or result.get('diverged') or
                           f'val {result["val_loss"]:.4f} (' + ', '.join(
                               f'{title} {format(result[k], form)}' for k, title, form in shown if k in result) + '), '
                           f'{result["tokens"]:,} tokens, {result["seconds"]:.0f} s'))
    record = {
        'command': shlex.join(['python', 'compare.py', *argv]), 'date': datetime.date.today().isoformat(),
        'machine': machine.describe(), 'budget': race['budget'], 'windows': race['windows'], 'notes': notes,
        'data': {'name': first.dataset, 'fingerprint': entrants[0].text.fingerprint,
                 'source': entrants[0].text.meta['source']['name']},
        **({'task': {'kind': entrants[0].text.kind, 'metric': entrants[0].text.metric,
                     'guess': entrants[0].text.guess('test')}} if entrants[0].predicts == 'task' else {}),
        'entrants': [{'name': e.name, 'arch': e.settings.arch.__name__, 'parameters': e.parameters, 'trained': e.trained,
                      'predicts': e.predicts, 'leaks': e.leaks, 'settings': race['entrants'][e.name]['asked'],
                      'runs': results[e.name]} for e in entrants]}
    curves = {e.name: [rows_of(e.folder(out, r['seed'])) for r in results[e.name]] for e in entrants}
    report.write(record, curves, {e.name: sights(e, results[e.name], machine, out) for e in entrants}, out)
    failed = [f'{e.name}, seed {r["seed"]}: {r["failed"]}' for e in entrants for r in results[e.name] if 'failed' in r]
    if failed:
        raise UserError(f'{len(failed)} of {len(todo)} runs failed, first {failed[0]}; to try again, repeat the command')


def sights(e, results, machine, out):
    """{title: PNG} of what the first run of an entrant that came to its end has learned to see."""
    seeds = [r['seed'] for r in results if 'val_loss' in r]
    if not seeds or e.predicts == 'task':       # of a task, look.py shows more
        return {}
    T = e.model.block_size
    model = checkpoint.load_model(e.folder(out, seeds[0]) / 'ckpt.pt')[0].to(machine.device)
    x = look.span(model, e.text.rows('val', e.text.val_starts(9, T)[1:], T, e.memory)[0]).to(machine.device)
    figure = look.draw_influence(look.influence(model, x), 'who sees whom')
    return {f'How far its prediction moves when the token at another position is replaced (seed {seeds[0]})': look.png(figure)}


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        raise UserError('the race was stopped: the same command goes on with it') from None
