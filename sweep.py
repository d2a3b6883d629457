"""
Search the settings of a config for the lowest validation loss, by optuna's TPE (pip install optuna):

    python sweep.py config/shakespeare_gpt.py --search 'learning_rate=log(1e-4,1e-1)' 'n_layer=2..5' --steps=500 --set min_lr=0
    python sweep.py "config/shakespeare_gpt.py --min_lr=0" --search 'optimizer=adamw,lion' 'dropout=lin(0,0.3)' --seconds=60

- Every trial is a run of train.py, in a process of its own; its last weights are judged, never the best. One that diverges or
  is refused (n_embd=130 with n_head=4, say) has failed: its reason is kept, and optuna takes it for worse than all others.
- A sweep that was stopped goes on when the same command is given again, with the trials that it would have had. More --trials
  may be asked for later.
- The best loss of many trials is an optimistic figure: it was chosen on the validation text, with one seed. A claim needs a
  fresh race, on other seeds: python compare.py "CONFIG --seed=1" "<out>/best.py --seed=1".
"""

import csv
import dataclasses
import datetime
import itertools
import json
import math
import re
import shlex
import shutil
import signal
import sys
import textwrap
from pathlib import Path

import numpy as np
from tqdm import tqdm

from compare import locked, read, rows_of, train
from harness import LEAKS, UserError, config, device
from harness.files import atomic
from harness.report import markdown
from train import Loop

try:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
except ImportError:
    raise UserError('sweep.py searches by optuna, which is not installed: pip install optuna') from None

HOPELESS = 5        # so many first trials that all fail end a sweep
FORMS = 'name=log(a,b), name=lin(a,b), name=a..b (whole numbers) or name=x,y,z (choices)'
NEVER = ('help', 'arch', 'dataset', 'leaking_split', 'block_size', 'centered', 'eval_windows', 'seed', 'max_iters',
         'max_seconds', 'out_dir', 'resume', 'overwrite', 'dry_run', 'eval_only', 'sample_tokens')


def arguments(argv):
    parser = config.Arguments(description=__doc__)
    parser.add_argument('config', help='a config file; in quotes, one with settings of its own behind it')
    parser.add_argument('--search', nargs='+', action='extend', required=True, metavar='NAME=SPACE', help=FORMS)
    parser.add_argument('--trials', type=int, default=30, help='with those of before (default 30)')
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument('--seconds', type=float, help="of training, of each trial (default: the config's own budget)")
    budget.add_argument('--tokens', type=float, help='read in training')
    budget.add_argument('--steps', type=float)
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='NAME=VALUE', help='settings of all trials')
    parser.add_argument('--seed', type=int, default=0, help="of what is tried (default 0); that of the runs is the config's")
    parser.add_argument('--out', default='out/sweep', help='the folder of the sweep (default out/sweep)')
    parser.add_argument('--overwrite', action='store_true', help='begin anew: remove the sweep that --out holds')
    args = parser.parse_args(argv)
    args.budget = next(((k, v) for k in ('seconds', 'tokens', 'steps') if (v := getattr(args, k)) is not None), None)
    if args.budget and not (args.budget[1] > 0 and math.isfinite(args.budget[1])):
        raise UserError(f'--{args.budget[0]}={args.budget[1]:g} must be above 0')
    if args.trials < 1 or args.seed < 0:
        raise UserError(f'--trials={args.trials} must be at least 1, and --seed={args.seed} not negative')
    try:
        path, *own = shlex.split(args.config)
    except ValueError as e:             # nothing in it, or a quote that does not end
        raise UserError(f"'{args.config}' is no config ({e}): name a file, such as config/shakespeare_gpt.py") from None
    args.words = [path, *own, *(f'--{word}' for word in args.set)]
    return args


# what is tried --------------------------------------------------------------------------------------------------------------

def space(text, words):
    """(name, optuna's distribution) of a --search.  words: the config file and settings for train.py, by which the name is
    checked, and both ends or all choices.  Raises UserError."""
    name, _, said = (s.strip() for s in text.partition('='))
    if not re.fullmatch(r'\w+', name) or not said:
        raise UserError(f"cannot read --search '{text}': {FORMS} is wanted")
    if name in NEVER:
        raise UserError(f"--search '{text}': the losses of trials that differ in {name} cannot be compared")
    if name in (n for n, _ in config.parse_flags(words[1:])):
        raise UserError(f"--search '{text}': {name} is set to one value, too: do one of the two")
    floats, whole = re.fullmatch(r'(log|lin|)\(([^(),]+),([^(),]+)\)', said), re.fullmatch(r'(.+?)\.\.(.+)', said)
    found = floats.groups()[1:] if floats else whole.groups() if whole else re.split(r',(?![^(]*\))', said)
    loaded = [config.load([*words, f'--{name}={s.strip()}'], Loop) for s in found]
    values = [s.model[name] if name in s.model else getattr(s.loop, name) for s in loaded]
    if not (floats or whole):
        if len(values) < 2 or any(v in values[:i] for i, v in enumerate(values)):
            raise UserError(f"--search '{text}' must have two choices or more, each once, or a range: {FORMS}")
        return name, CategoricalDistribution([str(v) if isinstance(v, tuple) else v for v in values])
    low, high = values
    if type(low) is not (float if floats else int):
        wanted = {int: 'a..b', float: f'lin(a,b) or {name}=log(a,b)'}.get(type(low), 'x,y')
        raise UserError(f"--search '{text}': {name} is of type {type(low).__name__}, so {name}={wanted} is wanted")
    log = said.startswith('log')
    if low >= high or (log and low <= 0):
        raise UserError(f"--search '{text}': the first end must be {'above 0 and ' * log}below the second")
    return name, FloatDistribution(low, high, log=log) if floats else IntDistribution(low, high)


def frozen(result, spaces):
    """A result as a trial of optuna's.  Raises ValueError, KeyError or TypeError if it is not one of these spaces.

    A failed trial is told as a pruned one: TPE keeps away from those, and forgets failed ones."""
    loss = result.get('val_loss')
    state = optuna.trial.TrialState.PRUNED if loss is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(state=state, value=loss, params=result['values'], distributions=spaces)


def suggest(spaces, earlier, seed, number):
    """{name: value} for trial `number`, from the results of those before it; never what was tried already.

    A function of its arguments alone, with a sampler of its own for every trial, so a sweep that was stopped goes on as if it
    had not been."""
    for attempt in itertools.count():
        source = int(np.random.SeedSequence((seed, number, attempt)).generate_state(1)[0])
        # where few combinations are left, TPE might insist on its favourites for ever
        sampler = (optuna.samplers.TPESampler if attempt < 10 else optuna.samplers.RandomSampler)(seed=source)
        study = optuna.create_study(sampler=sampler)
        study.add_trials([frozen(r, spaces) for r in earlier])
        values = study.ask(spaces).params
        for name, s in spaces.items():
            if isinstance(s, FloatDistribution):        # four digits can be read, and a loss tells no more apart
                values[name] = min(max(float(f'{values[name]:.4g}'), s.low), s.high)
        if values not in [r['values'] for r in earlier]:
            return values


# the trials -----------------------------------------------------------------------------------------------------------------

def keep(path, content):
    with atomic(path, 'w') as f:
        json.dump(content, f, indent=1)


def open_sweep(args, first, spaces, out):
    """What --out holds: {number: result} of the trials that came to an end, {number: values} of all that were begun.

    sweep.json keeps what was asked for, so that a sweep that goes on is the sweep that was begun."""
    path, results, begun = out / 'sweep.json', {}, {}
    if args.overwrite:
        for old in out.glob('trial-[0-9]*/result.json'):
            shutil.rmtree(old.parent)
            Path(f'{old.parent}.log').unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    asked = json.loads(json.dumps({
        'search': {s.partition('=')[0].strip(): s.partition('=')[2].strip() for s in args.search},
        'budget': args.budget or "the config's own", '--seed': args.seed, 'data': first.text.fingerprint,
        **dataclasses.asdict(first.settings.loop), **dataclasses.asdict(first.model)}))
    try:
        kept = json.loads(path.read_text(encoding='utf-8')) if path.exists() else asked
        if changed := [k for k in asked if kept.get(k, asked[k]) != asked[k]]:
            raise UserError(f'{out} holds another sweep: its {changed[0]} is {kept[changed[0]]}, this one asks for '
                            f'{asked[changed[0]]}: choose another --out, or --overwrite it')
        keep(path, asked)
        for path in out.glob('trial-[0-9]*/result.json'):
            result = json.loads(path.read_text(encoding='utf-8'))
            frozen(result, spaces)
            begun[result['number']] = result['values']
            if 'val_loss' in result or 'failed' in result:
                results[result['number']] = result
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        why = f'{type(e).__name__}: {" ".join(str(e).split())[:80]}'
        raise UserError(f'{path} is damaged ({why}): remove it, and the same command makes it anew') from None
    return results, begun


def entrant(first, values, budget):
    """The Entrant of a trial, whose words hold it to its budget.  Raises UserError for a combination that cannot be."""
    words = [*first.words, *(f'--{k}={v}' for k, v in values.items())]
    e = read(words, [])
    if (e.predicts, e.leaks) != (first.predicts, first.leaks):
        raise UserError("its loss is of other positions than the config's, or it sees its targets: it cannot be compared")
    if budget:
        kind, amount = budget
        steps = int(amount / (e.tokens_per_step if kind == 'tokens' else 1))
        if kind != 'seconds' and not steps:
            raise UserError(f'--{kind}={amount:g} is less than one step')
        limits = {'max_iters': 0, 'max_seconds': amount} if kind == 'seconds' else {'max_iters': steps, 'max_seconds': 0}
        words += [f'--{k}={v}' for k, v in limits.items()]
    return dataclasses.replace(e, words=words, settings=config.load(words, Loop))


def spent(loop, row):
    """How much of its budget a run has spent, 0 to 1, by its last row."""
    limits = {'step': loop.max_iters, 'seconds': loop.max_seconds}
    return min(1.0, max(row.get(k, 0) / limit for k, limit in limits.items() if limit))


def run(number, values, first, budget, out, lock, progress):
    """The result of a trial: 'val_loss' of its last evaluation, or why it 'failed'."""
    folder = out / f'trial-{number}'
    folder.mkdir(exist_ok=True)
    result = {'number': number, 'values': values}
    keep(folder / 'result.json', result)        # whose run the folder holds, should it be stopped
    try:
        e = entrant(first, values, budget)
    except UserError as refused:
        result['failed'] = str(refused)
    else:
        loop = e.settings.loop
        why = train([*e.words, '--sample_tokens=0'], folder, lock, lambda rows: progress(loop, rows[-1] if rows else {}))
        last = (rows_of(folder) or [{}])[-1]
        if not why and (spent(loop, last) < 1 or 'val_loss' not in last):
            raise UserError(f'trial {number} was stopped at step {last.get("step", 0)}: the same command goes on with it')
        if lost := [k for k in ('train_loss', 'val_loss') if not math.isfinite(last.get(k, 0))]:
            why = f'diverged: its {lost[0]} was {last[lost[0]]} at step {last["step"]}'
        result |= {'failed': why} if why else {'val_loss': last['val_loss']}
        result |= {k: last[k] for k in ('step', 'tokens', 'seconds') if k in last}
    keep(folder / 'result.json', result)
    return result


# what comes of them ---------------------------------------------------------------------------------------------------------

def shown(value):
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def draw(ordered, spaces, title, path):
    """The loss against each searched name: later trials darker, the best a star, those that failed ticks at the top."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator
    fig, axes = plt.subplots(1, len(spaces), figsize=(1 + 3.4 * len(spaces), 3.8), sharey=True, squeeze=False,
                             layout='constrained')
    losses = [r['val_loss'] for r in ordered if 'val_loss' in r]
    numbers = [r['number'] for r in ordered]
    for ax, (name, s) in zip(axes[0], spaces.items(), strict=True):
        x = [r['values'][name] for r in ordered]
        if choices := getattr(s, 'choices', ()):        # each a column, in which no two trials stand one above the other
            x = [choices.index(v) + (n * 0.618 % 1 - 0.5) / 2 for v, n in zip(x, numbers, strict=True)]
            ax.set_xticks(range(len(choices)), choices)
            ax.set_xlim(-0.5, len(choices) - 0.5)
        elif isinstance(s, IntDistribution):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        elif s.log:
            ax.set_xscale('log')
        n = len(losses)
        ax.scatter(x[:n], losses, c=numbers[:n], cmap='Blues', vmin=-max(numbers) / 2, vmax=max(numbers), s=30)
        ax.plot(x[:min(n, 1)], losses[:1], '*', color='#c2452d', ms=15)
        ax.plot(x[n:], [0.97] * len(x[n:]), '|', color='#c2452d', ms=9, transform=ax.get_xaxis_transform())
        ax.set_xlabel(name)
        ax.grid(alpha=0.3)
        ax.spines[['top', 'right']].set_visible(False)
    axes[0, 0].set_ylabel('val_loss, nats')
    fig.suptitle(title, parse_math=False)
    with atomic(path) as f:
        fig.savefig(f, format='png', dpi=110)
    plt.close(fig)


def report(results, spaces, first, args, argv, out):
    """results.json, table.csv, sweep.png and best.py of the trials so far, and no weights but the best's.  Returns them, best
    first."""
    ordered = sorted(results.values(), key=lambda r: (r.get('val_loss', math.inf), r['number']))
    loop, text = first.settings.loop, first.text
    keep(out / 'results.json', {
        'command': shlex.join(['python', 'sweep.py', *argv]), 'date': datetime.date.today().isoformat(),
        'machine': device.setup(loop.device, loop.dtype, compile=False).describe(),
        'data': {'name': loop.dataset, 'fingerprint': text.fingerprint, 'source': text.meta['source']['name']},
        'trials': ordered})
    with atomic(out / 'table.csv', 'w') as f:
        writer = csv.DictWriter(f, ['number', 'val_loss', *spaces, 'step', 'tokens', 'seconds', 'failed'])
        writer.writeheader()
        writer.writerows({k: v for k, v in r.items() if k != 'values'} | r['values'] for r in ordered)
    draw(ordered, spaces, f'{first.name}: {len(ordered)} trials', out / 'sweep.png')
    best = ordered[0]
    for r in ordered[0 if 'failed' in best else 1:]:
        for name in ('ckpt.pt', 'best.pt'):
            (out / f'trial-{r["number"]}' / name).unlink(missing_ok=True)
    if 'val_loss' in best:
        e = entrant(first, best['values'], args.budget)
        said = {'arch': '', **config.run_file(e.words[0]), **dict(config.parse_flags(e.words[1:]))}
        resolved = dataclasses.asdict(e.settings.loop) | e.settings.model
        with atomic(out / 'best.py', 'w') as f:
            f.write(f'# The best of {len(ordered)} trials (number {best["number"]}, val_loss {best["val_loss"]:.4f}) of\n'
                    f'#     {shlex.join(["python", "sweep.py", *argv])}\n'
                    '# It was chosen on the validation text: race it on other seeds before you believe its loss.\n\n')
            f.writelines(f'{k} = {resolved[k]!r}{"     # searched" * (k in spaces)}\n' for k in said if k != 'out_dir')
    return ordered


def main(argv):
    args = arguments(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces, out = {}, Path(args.out)
    for text in args.search:
        name, distribution = space(text, args.words)
        if name in spaces:
            raise UserError(f"--search '{text}': {name} is searched twice")
        spaces[name] = distribution
    first = read(args.words, [])
    entrant(first, {}, args.budget)         # is the budget enough for a step?
    if first.leaks:
        print(LEAKS)
    combinations = math.prod(len(s.choices) if isinstance(s, CategoricalDistribution) else s.high - s.low + 1
                             if isinstance(s, IntDistribution) else math.inf for s in spaces.values())
    if args.trials > combinations:
        args.trials = combinations
        print(f'there are {combinations} combinations: as many trials try them all')
    for signal_number in (signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)):
        signal.signal(signal_number, signal.default_int_handler)        # end the run that is being trained, too
    looks = '{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {desc}'
    with locked(out) as lock, tqdm(total=args.trials, bar_format=looks, leave=False, disable=None) as bar:
        results, begun = open_sweep(args, first, spaces, out)
        best = math.nan
        for number in range(args.trials):
            if number in results:
                continue
            earlier = [results[i] for i in range(number)]
            if earlier:
                best = report(results, spaces, first, args, argv, out)[0].get('val_loss', math.nan)
            if number >= HOPELESS and math.isnan(best):
                break
            values = begun.get(number) or suggest(spaces, earlier, args.seed, number)
            name = f'trial {number}, ' + ' '.join(f'{k}={shown(v)}' for k, v in values.items())

            def progress(loop, row, number=number, name=name, best=best):
                loss = row.get('train_loss', math.nan)
                bar.set_description_str(f'{name}: step {row.get("step", 0):,}, train {loss:.3f}, best so far {best:.3f}')
                bar.n = number + spent(loop, row)
                bar.refresh()
            r = results[number] = run(number, values, first, args.budget, out, lock, progress)
            tqdm.write(f'{name}: ' + (f'val {r["val_loss"]:.4f}, {r["seconds"]:.0f} s' if 'val_loss' in r else r['failed']))
        ordered = report(results, spaces, first, args, argv, out)
    rows = [[str(r['number']), f'{r["val_loss"]:.4f}' if 'val_loss' in r else 'failed', *map(shown, r['values'].values()),
             f'{r.get("seconds", 0):.0f}', textwrap.shorten(r.get('failed', ''), 72)] for r in ordered[:10]]
    print(markdown(['trial', 'val_loss', *spaces, 'seconds', ''], rows))
    if 'failed' in ordered[0]:
        raise UserError(f'no trial of {len(ordered)} came to its end, the last since: {ordered[-1]["failed"]}; mend that, and '
                        f'begin anew with --overwrite')
    print(f'the best as a config: {out}/best.py; all of them: {out}/table.csv, {out}/sweep.png, {out}/results.json')


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        raise UserError('the sweep was stopped: the same command goes on with it') from None
    except OSError as e:
        what = e.filename2 or e.filename or 'a file of the sweep'
        raise UserError(f'{what} could not be written ({e.strerror}): mend that, and the same command goes on') from None
