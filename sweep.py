"""
Search the settings of a config for the lowest validation loss, with optuna's TPE (pip install optuna):

    python sweep.py config/shakespeare_gpt.py --search 'learning_rate=log(1e-4,1e-1)' 'n_layer=2..5' --steps=500 --set min_lr=0
    python sweep.py "config/shakespeare_gpt.py --min_lr=0" --search 'optimizer=adamw,lion' 'dropout=lin(0,0.3)' --seconds=60

- Every trial is a run of train.py, in its own process; its last weights are judged, not the best.  A trial that diverges or is
  refused (n_embd=130 with n_head=4) has failed: its reason is kept, and TPE avoids its neighbourhood.
- --tune, for a text: trials train on the first eight ninths of the training text and are judged on its last ninth, so that the
  validation text stays unread, and compare.py --confirm can judge on it what was chosen here.
- The same command resumes a sweep that was stopped, with the trials that it would have had.  --trials can be raised later,
  and a search can become wider.
- The best loss of many trials is optimistic: it was chosen on the text that it is judged on, with one seed.  A claim needs a
  race with other seeds: docs/racing.md.
"""

import csv
import datetime
import itertools
import json
import math
import re
import shlex
import shutil
import textwrap
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from harness import LEAKS, Arguments, UserError, command, config, device, runs, schema
from harness.files import atomic
from race.entrants import add_budget, number_format, read, read_budget, split_words
from race.page import write_record
from race.processes import commit, interrupt_on_signals, progress_bar, read_rows, spent, stopped_early, train
from race.tables import fitted
from train import TrainConfig

HOPELESS = 5        # a sweep ends if its first 5 trials all fail
FORMS = 'name=log(a,b), name=lin(a,b), name=a..b (whole numbers) or name=x,y,z (choices)'
NEVER = ('help', 'arch', 'dataset', 'leaking_split', 'block_size', 'centered', 'eval_windows', 'seed', 'max_iters',
         'max_seconds', 'validate', 'out_dir', 'resume', 'overwrite', 'dry_run', 'eval_only', 'sample_tokens')


def arguments(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('config', help='a config file; in quotes, with settings of its own behind it')
    parser.add_argument('--search', nargs='+', action='extend', required=True, metavar='NAME=SPACE', help=FORMS)
    parser.add_argument('--trials', type=int, default=30, help='including those of earlier commands (default 30)')
    add_budget(parser, seconds="of training, of each trial (default: the config's own budget)", tokens='of training',
               steps='of the optimizer')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='NAME=VALUE', help='settings of all trials')
    parser.add_argument('--tune', action='store_true', help='validate on the last ninth of the training text')
    parser.add_argument('--seed', type=int, default=0, help="of the search (default 0); the config's seed is that of the runs")
    parser.add_argument('--out', default='out/sweep', help='the folder of the sweep (default out/sweep)')
    parser.add_argument('--overwrite', action='store_true', help='remove the sweep in --out and start again')
    args = parser.parse_args(argv)
    args.budget = read_budget(args, 'seconds', 'tokens', 'steps')
    if args.trials < 1 or args.seed < 0:
        raise UserError(f'--trials={args.trials} must be at least 1, and --seed={args.seed} at least 0')
    args.words = [*split_words(args.config), *(f'--{word}' for word in args.set), *['--validate=tune'] * args.tune]
    return args


# the search space -------------------------------------------------------------------------------------------------------------

@dataclass
class Space:
    """The values of one setting: choices, or all numbers from low to high."""
    choices: tuple = ()
    low: int | float = 0
    high: int | float = 0
    log: bool = False

    @property
    def size(self):
        return len(self.choices) or (self.high - self.low + 1 if isinstance(self.low, int) else math.inf)

    def distribution(self):
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
        if self.choices:
            return CategoricalDistribution(self.choices)
        return (IntDistribution if isinstance(self.low, int) else FloatDistribution)(self.low, self.high, log=self.log)


def read_space(text, words):
    """(name, Space) of a --search.  words: the config file and settings for train.py, which check the name, and both ends or
    all choices.  Raises UserError."""
    name, _, value = (s.strip() for s in text.partition('='))
    if not re.fullmatch(r'\w+', name) or not value:
        raise UserError(f"cannot read --search '{text}': expected {FORMS}")
    if name in NEVER:
        raise UserError(f"--search '{text}': losses cannot be compared between trials that differ in {name}")
    if name in (n for n, _ in config.parse_flags(words[1:])):
        raise UserError(f"--search '{text}': {name} is also set to one value: remove one of the two")
    floats, whole = re.fullmatch(r'(log|lin|)\(([^(),]+),([^(),]+)\)', value), re.fullmatch(r'(.+?)\.\.(.+)', value)
    parts = floats.groups()[1:] if floats else whole.groups() if whole else re.split(r',(?![^(]*\))', value)
    loaded = [config.load([*words, f'--{name}={s.strip()}'], TrainConfig) for s in parts]
    values = [s.model[name] if name in s.model else getattr(s.train, name) for s in loaded]
    if not (floats or whole):
        if len(values) < 2 or any(v in values[:i] for i, v in enumerate(values)):
            raise UserError(f"--search '{text}' must be a range, or at least 2 different choices: {FORMS}")
        return name, Space(tuple(str(v) if isinstance(v, tuple) else v for v in values))
    low, high = values
    if type(low) is not (float if floats else int):
        expected = {int: 'a..b', float: f'lin(a,b) or {name}=log(a,b)'}.get(type(low), 'x,y')
        raise UserError(f"--search '{text}': {name} is of type {type(low).__name__}: expected {name}={expected}")
    log = value.startswith('log')
    if low >= high or (log and low <= 0):
        raise UserError(f"--search '{text}': {low} must be {'above 0 and ' * log}below {high}")
    return name, Space(low=low, high=high, log=log)


def as_trial(result, spaces):
    """A result as a trial of optuna.  Raises ValueError, KeyError or TypeError if its values are not in these spaces.

    A failed trial is passed as a pruned one: TPE avoids those, but ignores failed ones."""
    from optuna.trial import TrialState, create_trial
    loss = result.get('val_loss')
    return create_trial(state=TrialState.PRUNED if loss is None else TrialState.COMPLETE, value=loss, params=result['values'],
                        distributions={name: s.distribution() for name, s in spaces.items()})


def suggest(spaces, earlier, seed, number):
    """{name: value} for trial `number`, from the results of the trials before it; never a combination that was tried.

    A pure function of its arguments with a new sampler for every trial, so that a resumed sweep has the same trials."""
    import optuna
    distributions = {name: s.distribution() for name, s in spaces.items()}
    for attempt in itertools.count():
        source = int(np.random.SeedSequence((seed, number, attempt)).generate_state(1)[0])
        # where few combinations are left, TPE may repeat its favourites forever
        sampler = (optuna.samplers.TPESampler if attempt < 10 else optuna.samplers.RandomSampler)(seed=source)
        study = optuna.create_study(sampler=sampler)
        study.add_trials([as_trial(r, spaces) for r in earlier])
        values = study.ask(distributions).params
        for name, s in spaces.items():
            if s.size == math.inf:                      # four digits are readable, and losses do not resolve more
                values[name] = min(max(float(f'{values[name]:.4g}'), s.low), s.high)
        if values not in [r['values'] for r in earlier]:
            return values


# the trials -------------------------------------------------------------------------------------------------------------------

AGAIN = 'remove it, and the same command makes it again'
SWEEP = {'search': 'dict', '--seed': 'count', 'data': 'text'}
TRIAL = {'number': 'count', 'values': 'dict', 'val_loss?': 'number', 'failed?': 'text', 'step?': 'count', 'seconds?': 'number'}


def open_sweep(args, first, spaces, out):
    """({number: result} of the trials that ended, {number: values} of all that were started) in --out.

    sweep.json keeps what was asked for, so that a sweep is only resumed by the command that started it, or by one whose search
    is wider."""
    path, results, started = out / 'sweep.json', {}, {}
    if args.overwrite:
        path.unlink(missing_ok=True)
        for old in out.glob('trial-[0-9]*/result.json'):
            shutil.rmtree(old.parent)
            Path(f'{old.parent}.log').unlink(missing_ok=True)
    asked = json.loads(json.dumps({
        'search': {s.partition('=')[0].strip(): s.partition('=')[2].strip() for s in args.search},
        'budget': args.budget or "the config's own", '--seed': args.seed, 'data': first.data.fingerprint,
        **asdict(first.settings.train), **asdict(first.model)}))
    try:
        kept = schema.read(path, SWEEP, AGAIN) if path.exists() else asked
        changed = [k for k in asked if kept.get(k, asked[k]) != asked[k]]
        other = changed and UserError(f'{out} holds another sweep: its {changed[0]} is {kept[changed[0]]}, this one has '
                                      f'{asked[changed[0]]}: choose another --out, or --overwrite it')
        if changed and changed != ['search']:
            raise other
        for path in out.glob('trial-[0-9]*/result.json'):
            result = schema.read(path, TRIAL, AGAIN)
            try:
                as_trial(result, spaces)        # raises if it belongs to another sweep
            except (ValueError, KeyError) as e:
                raise other or e from None
            started[result['number']] = result['values']
            if 'val_loss' in result or 'failed' in result:
                results[result['number']] = result
        write_record(asked, out / 'sweep.json')
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f'{path} is damaged ({type(e).__name__}: {" ".join(str(e).split())[:80]}): {AGAIN}') from None
    return results, started


def entrant(first, values, budget):
    """The Entrant of a trial, with its budget in its words.  Raises UserError for values that train.py would refuse."""
    words = [*first.words, *(f'--{k}={v}' for k, v in values.items())]
    e = read(words)
    if (e.predicts, e.leaks) != (first.predicts, first.leaks):
        raise UserError("its loss is over other positions than the config's, or it sees its targets: it cannot be compared")
    if budget:
        kind, amount = budget
        steps = int(amount / (e.tokens_per_step if kind == 'tokens' else 1))
        if kind != 'seconds' and not steps:
            raise UserError(f'--{kind}={amount:g} is less than one step')
        limits = {'max_iters': 0, 'max_seconds': amount} if kind == 'seconds' else {'max_iters': steps, 'max_seconds': 0}
        words += [f'--{k}={v}' for k, v in limits.items()]
    return replace(e, words=words, settings=config.load(words, TrainConfig))


def run(number, values, first, budget, out, progress):
    """The result of a trial: 'val_loss' of its last evaluation, or the lowest on a task; or the reason why it 'failed'."""
    folder = out / f'trial-{number}'
    folder.mkdir(exist_ok=True)
    result = {'number': number, 'values': values}
    write_record(result, folder / 'result.json')      # the values of the run in this folder, in case it is stopped
    try:
        e = entrant(first, values, budget)
    except UserError as refused:
        result['failed'] = str(refused)
    else:
        limits = e.settings.train.max_iters, e.settings.train.max_seconds
        fixed = {'sample_tokens': 0, **number_format(e.settings.train)}
        reason = train([*e.words, *(f'--{k}={v}' for k, v in fixed.items())], folder, lambda rows: progress(limits, rows))
        rows = read_rows(folder)
        last = (rows or [{}])[-1]
        if not reason and (spent(*limits, last) < 1 or 'val_loss' not in last) and not stopped_early(
                e.settings.train.stop_after, rows):
            raise UserError(f'trial {number} was stopped at step {last.get("step", 0)}: the same command resumes it')
        if diverged := [k for k in ('train_loss', 'val_loss') if not math.isfinite(last.get(k, 0))]:
            reason = f'diverged: its {diverged[0]} was {last[diverged[0]]} at step {last["step"]}'
        # on a task, the weights of the best evaluation are those that are judged
        judged = [last] if first.data.test_indices() is None else rows
        result |= {'failed': reason} if reason else {'val_loss': min(r['val_loss'] for r in judged if 'val_loss' in r)}
        result |= {k: last[k] for k in ('step', 'tokens', 'seconds') if k in last}
    write_record(result, folder / 'result.json')
    return result


# the report -------------------------------------------------------------------------------------------------------------------

def shown(value):
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def draw(ordered, spaces, title, path):
    """The loss against each searched setting: later trials are darker, the best is a star, failed ones are ticks at the top."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator
    width = max(5, 1 + 3.4 * len(spaces))
    fig, axes = plt.subplots(1, len(spaces), figsize=(width, 4), sharey=True, squeeze=False, layout='constrained')
    losses, numbers = [r['val_loss'] for r in ordered if 'val_loss' in r], [r['number'] for r in ordered]
    n = len(losses)
    for ax, (name, s) in zip(axes[0], spaces.items(), strict=True):
        x = [r['values'][name] for r in ordered]
        if s.choices:
            x = [s.choices.index(v) for v in x]
            slanted = sum(len(str(c)) + 2 for c in s.choices) > 32
            ax.set_xticks(range(len(s.choices)), s.choices, rotation=30 * slanted, ha='right' if slanted else 'center')
            ax.set_xlim(-0.5, len(s.choices) - 0.5)
        elif isinstance(s.low, int):
            ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        elif s.log:
            ax.set_xscale('log')
            ticks = np.geomspace(s.low, s.high, min(6, max(3, 1 + round(math.log10(s.high / s.low)))))
            ax.set_xticks(ticks, [f'{v:.2g}' for v in ticks])
            ax.minorticks_off()
        else:
            ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
        # alpha: trials with the same value and nearly the same loss show through each other
        ax.scatter(x[:n], losses, c=numbers[:n], cmap='Blues', vmin=-max(numbers) / 2, vmax=max(numbers), s=40, alpha=0.8)
        ax.plot(x[:min(n, 1)], losses[:1], '*', color='#c2452d', ms=15)
        ax.plot(x[n:], [0.97] * len(x[n:]), '|', color='#c2452d', ms=9, transform=ax.get_xaxis_transform())
        ax.set_xlabel(name)
        ax.grid(alpha=0.3)
        ax.spines[['top', 'right']].set_visible(False)
    axes[0, 0].set_ylabel('val_loss (nats)')
    fig.suptitle(textwrap.fill(title, int(10 * width)), fontsize=11, parse_math=False)
    with atomic(path) as f:
        fig.savefig(f, format='png', dpi=110)
    plt.close(fig)


def report(results, spaces, first, args, argv, out):
    """Writes results.json, table.csv, sweep.png and best.py of the trials so far, and removes all weights but the best.
    Returns the results, best first."""
    ordered = sorted(results.values(), key=lambda r: (r.get('val_loss', math.inf), r['number']))
    cfg, source = first.settings.train, first.data
    write_record({
        'command': shlex.join(['python', 'sweep.py', *argv]), 'date': datetime.date.today().isoformat(),
        'machine': device.setup(cfg.device, number_format(cfg).get('dtype', cfg.dtype), compile=False).describe(),
        'data': {'name': cfg.dataset, 'fingerprint': source.fingerprint, 'source': source.meta['source']['name']},
        'commit': commit(), 'budget': args.budget, 'words': [w for w in first.words if w != '--validate=tune'],
        'validate': cfg.validate, 'settings': asdict(cfg) | asdict(first.model), 'trials': ordered}, out / 'results.json')
    with atomic(out / 'table.csv', 'w') as f:
        columns = ['number', 'val_loss', *spaces, 'step', 'tokens', 'seconds', 'failed']
        writer = csv.DictWriter(f, columns, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(r | r['values'] for r in ordered)
    draw(ordered, spaces, f'{first.name}: {len(ordered)} trial{"s" * (len(ordered) > 1)}', out / 'sweep.png')
    best = ordered[0]
    for r, name in itertools.product(ordered['val_loss' in best:], ('ckpt.pt', 'best.pt')):
        (out / f'trial-{r["number"]}' / name).unlink(missing_ok=True)
    if 'val_loss' in best:
        e = entrant(first, best['values'], args.budget)
        given = {'arch': '', **config.run_file(e.words[0]), **dict(config.parse_flags(e.words[1:]))}
        resolved = asdict(e.settings.train) | e.settings.model
        with atomic(out / 'best.py', 'w') as f:
            f.write(f'# The best of {len(ordered)} trials (number {best["number"]}, val_loss {best["val_loss"]:.4f}) of\n'
                    f'#     {shlex.join(["python", "sweep.py", *argv])}\n'
                    '# Its loss was chosen on the text that it is judged on: compare it with other seeds before you believe it.'
                    '\n\n')
            f.writelines(f'{k} = {resolved[k]!r}{"     # searched" * (k in spaces)}\n' for k in given
                         if k not in ('out_dir', 'validate'))
    return ordered


def sweep(args, argv):
    out, spaces = Path(args.out), {}
    for text in args.search:
        name, found = read_space(text, args.words)
        if name in spaces:
            raise UserError(f"--search '{text}': {name} is searched twice")
        spaces[name] = found
    first = read(args.words)
    entrant(first, {}, args.budget)         # raises if the budget is less than a step
    if first.leaks:
        print(LEAKS)
    if args.trials > (combinations := math.prod(s.size for s in spaces.values())):
        print(f'there are only {combinations} combinations, so there are as many trials')
        args.trials = combinations
    interrupt_on_signals()
    with runs.lock(out, '--out'), progress_bar(args.trials) as show:
        results, started = open_sweep(args, first, spaces, out)
        best = math.nan
        for number in range(args.trials):
            if number in results:
                continue
            earlier = [results[i] for i in range(number)]
            if earlier:
                best = report(results, spaces, first, args, argv, out)[0].get('val_loss', math.nan)
            if number >= HOPELESS and math.isnan(best):
                break
            values = started.get(number) or suggest(spaces, earlier, args.seed, number)
            title = f'trial {number}, ' + ' '.join(f'{k}={shown(v)}' for k, v in values.items())

            def progress(limits, rows, number=number, title=title, best=best):
                row = rows[-1] if rows else {}
                loss = f', train {row["train_loss"]:.3f}' if 'train_loss' in row else ''
                known = '' if math.isnan(best) else f', best so far {best:.3f}'
                show(number + spent(*limits, row), f'{title}: step {row.get("step", 0):,}{loss}{known}')
            r = results[number] = run(number, values, first, args.budget, out, progress)
            tqdm.write(f'{title}: ' + (f'val {r["val_loss"]:.4f}, {r["seconds"]:.0f} s' if 'val_loss' in r else r['failed']))
        ordered = report(results, spaces, first, args, argv, out)
    rows = [[str(r['number']), f'{r["val_loss"]:.4f}' if 'val_loss' in r else 'failed', *map(shown, r['values'].values()),
             f'{r.get("seconds", 0):.0f}', textwrap.shorten(r.get('failed', ''), 48)] for r in ordered[:10]]
    keep = None if any(row[-1] for row in rows) else -1         # a column of reasons only if there is one
    print(fitted(['trial', 'val_loss', *spaces, 'seconds', 'reason'][:keep], [row[:keep] for row in rows]))
    if 'failed' in ordered[0]:
        raise UserError(f'all {len(ordered)} trials failed, the last because {ordered[-1]["failed"]}; fix that, and start again'
                        f' with --overwrite')
    print(f'the best as a config: {out}/best.py; all trials: {out}/table.csv, {out}/sweep.png, {out}/results.json')


def main(argv):
    args = arguments(argv)
    try:
        import optuna
    except ImportError:
        raise UserError('sweep.py needs optuna, which is not installed: pip install optuna') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep(args, argv)


if __name__ == '__main__':
    command(main, 'the sweep was stopped: the same command resumes it')
