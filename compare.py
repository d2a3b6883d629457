"""
Race architectures on the same budget, and test whether the difference is larger than the noise:

    python compare.py config/shakespeare_gpt.py config/shakespeare_pacing.py --seconds=120
    python compare.py config/shakespeare_gpt.py "config/shakespeare_gpt.py --optimizer=adamw" --tokens=2e6 --seeds=5
    python compare.py config/shakespeare_gpt.py config/shakespeare_pacing.py --match=parameters --set block_size=128 n_layer=2
    python compare.py config/fpt_mnist.py --set trunk=gpt2,distilgpt2,out/shakespeare_gpt,random

- Every run is one of train.py, in its own process.  The entrants take turns, seed by seed, so that a busy machine affects all
  of them.
- The last weights are judged, not the best, on the same windows for all: nothing is chosen on the validation text.
- A run whose speed is not that of its siblings is repeated in a race by seconds.
- --confirm=FILE races what a protocol says (race/confirm.py), with fresh seeds and one look at the test split, and gives each
  rival a verdict: better, worse, equivalent or undecided.  Its record goes to results/.
- The report is written after every run.  The same command resumes a race that was stopped; finished runs are kept.  Entrants
  and seeds can be added later.
"""

import dataclasses
import datetime
import json
import math
import shlex
import shutil
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

from harness import ROOT, Arguments, UserError, checkpoint, command, device, require_memory, runs, schema
from harness.files import atomic
from harness.generate import generate
from race import confirm, page, tables
from race.entrants import add_budget, affordable, enter, measure, number_format, plan, read_budget, slug
from race.processes import (
    changed_since,
    commit,
    interrupt_on_signals,
    progress_bar,
    read_rows,
    spent,
    stopped_early,
    train,
    uncommitted,
)
from race.statistics import METRICS, TASK_METRICS, confirmed, values
from train import evaluate

RESULTS = ROOT / 'results'
STRAY = 0.1         # of the median of its entrant's tokens per second: a run that differs by more is repeated


def arguments(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('configs', nargs='*', help='config files; in quotes, with settings of their own behind them')
    add_budget(parser, seconds='of training, without evaluation', tokens="of training (default: the first config's max_iters)",
               flops='of training, counted on a step', steps='of the optimizer')
    parser.add_argument('--seeds', type=int, help='runs of each config (default 3)')
    parser.add_argument('--match', choices=['parameters'], help="scale the rivals' width to the first config's parameters")
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='NAME=VALUE',
                        help='settings of all configs; with commas between values, each value is an entrant')
    parser.add_argument('--windows', default='auto', help='validation windows that the last weights are judged on (auto: 5000, '
                        'or at least 500 where they would take more than a tenth of the budget; 0: all)')
    parser.add_argument('--confirm', metavar='FILE', help='a protocol, which says all of the above')
    parser.add_argument('--floors', action='store_true', help='add what methods without a network reach on the same data')
    parser.add_argument('--out', help='the folder of the race (default out/race, or out/ and the name of the protocol)')
    parser.add_argument('--overwrite', action='store_true', help='remove the race in --out and start again')
    args = parser.parse_args(argv)
    args.budget = read_budget(args, 'seconds', 'tokens', 'flops', 'steps')
    args.out = Path(args.out or f'out/{Path(args.confirm).stem if args.confirm else "race"}')
    if args.confirm:
        if args.configs or args.set or args.match or args.budget or args.seeds or args.windows != 'auto' or args.overwrite:
            raise UserError(f'--confirm={args.confirm}: the protocol says what is raced, and a race that has begun stays: '
                            f'leave all but --floors and --out away')
        return args
    if not args.configs:
        parser.error('the following arguments are required: configs, or --confirm')
    args.seeds = 3 if args.seeds is None else args.seeds
    if args.seeds < 1:
        raise UserError(f'--seeds={args.seeds} must be at least 1')
    if args.windows != 'auto' and not args.windows.isdecimal():
        raise UserError(f"--windows={args.windows} must be 'auto', or a number of windows of at least 0")
    args.windows = None if args.windows == 'auto' else int(args.windows)
    require_memory(32 * (args.windows or 0), f'--windows={args.windows}')
    return args


# race.json: what the race was started with ------------------------------------------------------------------------------------

RACE = {'budget': 'list', 'windows?': 'count', 'eval_windows?': 'count', 'entrants': 'dict', 'repeated?': 'dict',
        'floors?': 'list', 'protocol?': 'dict', 'commit?': 'text'}
RESULT = {'seed': 'count', 'steps': 'count', 'tokens': 'count', 'seconds': 'number', 'diverged?': 'text'}
FINISHED = {'val_loss': 'number', 'tokens_per_second': 'number', 'flops': 'number', 'train_loss': 'number'}


def load_race(path, args, entrants):
    """(race as kept in race.json, new entrants).  Raises UserError if --out holds a race that this command does not resume."""
    first, out = entrants[0], path.parent
    iters, sizes = first.settings.train.max_iters, sorted({e.model.block_size for e in entrants})
    budget = args.budget or (('steps', iters) if len(sizes) > 1 else ('tokens', iters * first.tokens_per_step))
    if budget[0] == 'tokens' and len(sizes) > 1:
        raise UserError(f'--tokens: these entrants read an image as {" or ".join(map(str, sizes))} tokens: set --steps, with '
                        f'one batch_size for all, or --seconds')
    if not budget[1]:
        raise UserError(f'{first.name} has no max_iters, so there is no budget: set --seconds, --tokens, --flops or --steps')

    def check(what, name, kept, asked):
        if kept != asked:
            raise UserError(f'{out} holds another {what}: its {name} is {kept}, this one has {asked}: choose another --out, or '
                            f'--overwrite it')
    try:
        kept = schema.read(path, RACE, 'choose another --out, or remove it') if path.exists() else None
        if kept is not None and args.overwrite:
            for name in kept['entrants']:
                for folder in out.glob(f'{slug(name)}-[0-9]*'):
                    if folder.is_dir():
                        shutil.rmtree(folder)
            kept = None
        race = kept
        if race is None:
            race = {'budget': list(budget), 'windows': args.windows, 'eval_windows': None, 'entrants': {}}
            race |= {'protocol': args.protocol, 'commit': commit()} if args.confirm else {}
        if args.confirm:
            confirm.pin(args.protocol, race.get('protocol', {}), path)
            began = race.get('commit', '').rstrip('+')          # older races have none
            if began and missing(out, entrants, args.protocol['seeds']) and changed_since(began):
                raise UserError(f'--confirm={args.confirm}: code has changed since commit {began}, with which this race began: '
                                f'git checkout {began} to end it, or write another claim with fresh seeds')
        elif 'protocol' in race:
            raise UserError(f'{out} holds a confirmed race: choose another --out, or resume it by --confirm='
                            f'{race["protocol"].get("path")}')
        check('race', 'budget', race['budget'], list(budget))
        if args.windows is not None:
            check('race', 'windows', race['windows'], args.windows)
        for e in entrants:
            asked = settings_of(e)
            was = race['entrants'][e.name]['asked'] if e.name in race['entrants'] else asked
            for k in asked:
                check(e.name, k, was.get(k, asked[k]), asked[k])
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f'{path} is damaged ({type(e).__name__}: {e}): choose another --out, or remove it') from None
    return race, [e for e in entrants if e.name not in race['entrants']]


def missing(out, entrants, seeds):
    """Whether a run of a race has not ended."""
    return not all((e.folder(out, seed) / 'result.json').exists() for e in entrants for seed in seeds)


def check_commit(args, entrants):
    """Raises UserError if a file of a confirmed race is not that of the commit which its record names."""
    code = commit()
    if code.endswith('+') or not code:
        raise UserError(f'--confirm={args.confirm}: files differ from commit {code[:-1]}, which the record names: commit the '
                        f'changes or undo them' if code else f'--confirm={args.confirm} names a commit in its record: race in '
                        f'a clone of the repository')
    files = [args.confirm, *args.protocol['entrants'], *(e.words[0] for e in entrants), *(
        f'{ROOT}/{e.settings.arch.name}.py' for e in entrants)]
    if new := uncommitted(files):
        raise UserError(f'--confirm={args.confirm}: git does not keep {new[0]}: commit it before the race, so that anyone can '
                        f'see that it was written before')


def settings_of(e):
    """All settings of an entrant, and its data, as they come back from JSON."""
    return json.loads(json.dumps({'data': e.data.fingerprint, **dataclasses.asdict(e.settings.train),
                                  **dataclasses.asdict(e.model)}))


def open_race(args, entrants, machine, out):
    """The race with the plan of every entrant: {'budget', 'windows', 'eval_windows', 'entrants': {name: {'asked', 'plan'}}}."""
    path, costs = out / 'race.json', {}
    race, new = load_race(path, args, entrants)
    for e in new:
        print(f'{e.name}: {e.parameters:,} parameters, measuring a step and an evaluation ...', flush=True)
        costs[e.name] = measure(e, machine)
        torch.cuda.empty_cache()        # memory that is kept here is missing where the run trains
    if new and not race['entrants']:        # all entrants are evaluated on the same windows, also those that join later
        curve, judgement = zip(*(affordable(e, costs[e.name], race['budget']) for e in new), strict=True)
        race['eval_windows'] = min(curve)
        race['windows'] = min(judgement) if args.windows is None else args.windows
    for e in new:
        planned = plan(e, costs[e.name], race['budget'], race.get('eval_windows'), race['windows'])
        if args.confirm and e.data.test_indices() is None:      # only judge() reads the text that it is judged on
            planned['flags']['validate'] = 'train'
        race['entrants'][e.name] = {'asked': settings_of(e), 'plan': planned}
    if args.floors and 'floors' not in race:
        from extras import floors
        race['floors'] = floors.measure(entrants[0], race['windows'], out, race['budget'])
    page.write_record(race, path)
    return race


def forecast(race, names):
    """How long the runs will take, as in '9 runs x 120 s, about 22 min with evaluation'.  names: their entrants."""
    kind, amount = race['budget']
    text = f'{len(names)} run{"s" * (len(names) > 1)} x ' + (f'{amount:g} s' if kind == 'seconds' else f'{amount:,.6g} {kind}')
    seconds = [race['entrants'][name]['plan'].get('run_seconds') for name in names]     # older races have no forecast
    if all(seconds):
        total = sum(seconds)
        text += f', about {total / 60:.0f} min with evaluation' if total > 90 else f', about {total:.0f} s with evaluation'
    return text


# runs -------------------------------------------------------------------------------------------------------------------------

def judge(e, seed, folder, flops_per_step, windows, machine, with_sample=True):
    """The metrics of a finished run, as plain data.  On a task, train.py has evaluated its best weights on the test split."""
    rows = read_rows(folder)
    last = next(r for r in reversed(rows) if 'val_loss' in r)
    tail = [r['train_loss'] for r in rows if 'train_loss' in r and r['step'] > 0.9 * last['step']]
    result = {'seed': seed, 'steps': last['step'], 'tokens': last['tokens'], 'seconds': last['seconds'],
              'tokens_per_second': last['tokens'] / last['seconds'], 'flops': last['step'] * flops_per_step,
              'memory': last['memory'], 'train_loss': sum(tail) / len(tail)}
    built = json.loads((folder / 'config.json').read_text(encoding='utf-8'))['config']
    if more := {k: v for k, v in built.items() if v != settings_of(e)[k]}:      # such as the hash of its trunk
        result['model'] = more
    if e.predicts == 'task':
        found = json.loads((folder / 'test.json').read_text(encoding='utf-8'))
        best = next(r for r in rows if r['step'] == found['step'] and 'val_loss' in r)
        return result | {'best_step': found['step'], 'val_loss': best['val_loss']} | {
            k: found[k] for k in ('test_loss', *TASK_METRICS) if k in found}
    model = checkpoint.load_model(folder / 'ckpt.pt')[0].to(machine.device)
    result |= evaluate(model, e.data, e.data.val_indices(windows, e.model.block_size), e.settings.train.batch_size, machine)
    if model.bidirectional or 'answers' in e.data.meta:         # its loss is not that of a text, and it writes none
        return result
    tokenizer, tokens = e.data.tokenizer, e.data.tokens['val'][:1 << 20].tolist()
    if 'val_loss_full' in result:       # not of pictures
        result['bits_per_character'] = result['val_loss_full'] / math.log(2) * len(tokens) / len(tokenizer.decode(tokens))
    if with_sample:
        model.eval()
        ids = generate(model, torch.tensor([tokenizer.begin()]), tokenizer.length or 400, temperature=0.8, top_k=50,
                       n_vocab=tokenizer.n_vocab, generator=torch.Generator().manual_seed(seed))
        result['sample'] = tokenizer.decode([int(i[0]) for i in ids])
    return result


def run(e, seed, folder, race, machine, progress, with_sample=True):
    """The result of one run: of judge(), or {'diverged': reason}, or {'failed': reason}, which alone is not kept, so that the
    same command tries it again."""
    path, planned = folder / 'result.json', race['entrants'][e.name]['plan']
    if path.exists():
        result = schema.read(path, RESULT, 'remove it, and the run is judged again')
        if 'diverged' not in result:
            schema.check(result, FINISHED, path, 'remove it, and the run is judged again')
        return result
    flags, code = planned['flags'] | {'seed': seed}, commit()           # the files may change while it trains
    reason = train([*e.words, *(f'--{k}={v}' for k, v in flags.items())], folder, progress)
    rows = read_rows(folder)
    last, early = (rows or [{}])[-1], stopped_early(e.settings.train.stop_after, rows)
    if reason and not all(math.isfinite(last.get(k, 0)) for k in ('train_loss', 'val_loss')):
        result = {'seed': seed, 'diverged': reason, 'steps': last['step'], 'tokens': last['tokens'], 'seconds': last['seconds']}
    elif reason or (spent(flags['max_iters'], flags['max_seconds'], last) < 1 and not early):
        return {'seed': seed, 'failed': reason or f'it was stopped at step {last.get("step", 0)}'}
    else:
        result = judge(e, seed, folder, planned['flops_per_step'], race['windows'], machine, with_sample)
        torch.cuda.empty_cache()
        if wrong := [k for k in METRICS if not math.isfinite(result.get(k, 0))]:
            result['diverged'] = f'its {wrong[0]} is {result[wrong[0]]}'
        now = datetime.datetime.now().isoformat(timespec='seconds')
        result |= {'commit': code, 'machine': machine.describe(), 'ended': now}
    if first := race.get('repeated', {}).get(folder.name):
        result['repeated'] = first
    with atomic(path, 'w') as f:
        json.dump(result, f, indent=1)
    return result


def strays(race, entrants, results, out):
    """[(entrant, seed, result)] of the runs of a race by seconds to be repeated, since their tokens per second are not those of
    their siblings: the machine was busy.  No run is repeated twice."""
    found = []
    for e in entrants if race['budget'][0] == 'seconds' else ():
        speeds = values({'runs': results[e.name].values()}, 'tokens_per_second')
        middle = statistics.median(speeds.values()) if len(speeds) > 2 else math.inf
        found += [(e, seed, results[e.name][seed]) for seed, v in speeds.items() if abs(v / middle - 1) > STRAY
                  and math.isfinite(middle) and e.folder(out, seed).name not in race.get('repeated', {})]
    return found


def repeat(race, e, seed, result, out):
    """Removes a run, of which race.json keeps the result, so that it is made again."""
    folder = e.folder(out, seed)
    race.setdefault('repeated', {})[folder.name] = {k: v for k, v in result.items() if k != 'sample'}
    page.write_record(race, out / 'race.json')
    (folder / 'result.json').unlink()
    runs.remove(folder)


def describe_result(result):
    """A result in a line."""
    if reason := result.get('failed') or result.get('diverged'):
        return reason
    names = TASK_METRICS if 'test_loss' in result else {'val_loss_full': 'full window'} if 'val_loss_full' in result else \
        {'bits_per_dimension': 'bits per dimension', 'accuracy': 'accuracy'}
    metrics = [f'{name} {format(result[k], METRICS[k][1])}' for k, name in names.items() if k in result]
    return f'val {result["val_loss"]:.4f} ({", ".join(metrics)}), {result["tokens"]:,} tokens, {result["seconds"]:.0f} s'


def influence(e, results, windows, machine, out):
    """{title: PNG} of the influence of each input position on each prediction, for the first finished run of an entrant.

    windows: that a run is judged on.  Influence is measured on few, since it evaluates each of them once per position."""
    seeds = [r['seed'] for r in results if 'val_loss' in r]
    if not seeds or e.predicts == 'task':       # look.py has pictures of tasks
        return {}
    from views import behaviour
    model = checkpoint.load_model(e.folder(out, seeds[0]) / 'ckpt.pt')[0].to(machine.device)
    indices = e.data.val_indices(1 + max(1, min(8, (windows or 5000) // 500)), e.model.block_size)
    # indices[1:]: the first window has no text before it
    x, start = behaviour.excerpt(model, e.data.batch('val', indices[1:], model)[0].to(machine.device), e.data.whole)
    matrix = behaviour.influence(model, x, first=start)
    picture = behaviour.png(behaviour.draw_influence(matrix, 'influence', model.bidirectional))
    return {f'How far a prediction moves when the token at an input position is replaced (seed {seeds[0]})': picture}


def make_record(argv, race, entrants, results, notes, machine, out, total):
    """What results.json holds; see race/statistics.py."""
    first, done = entrants[0], sum(map(len, results.values()))
    record = {'command': shlex.join(['python', 'compare.py', *argv]), 'date': datetime.date.today().isoformat(),
              'machine': machine.describe(), 'budget': race['budget'], 'windows': race['windows'], 'notes': notes,
              'commit': race.get('commit') or commit(),
              'data': {'name': first.settings.train.dataset, 'fingerprint': first.data.fingerprint,
                       'source': first.data.meta['source']['name']}}
    if done < total:
        record['progress'] = [done, total]
    if first.predicts == 'task':
        record['task'] = {'kind': first.data.kind, 'metric': first.data.metric, 'guess': first.data.chance('test')}
        if hasattr(first.data, 'chance_answer'):
            record['task']['constant'] = first.data.chance_answer()
    def curve(e, seed):
        rows = read_rows(e.folder(out, seed))
        rows = [] if race['entrants'][e.name]['plan']['flags'].get('validate') == 'train' else rows
        return page.curve(rows, first.data.metric if first.predicts == 'task' else None)
    record['entrants'] = [
        {'name': e.name, 'arch': e.settings.arch.name, 'parameters': e.parameters, 'trained': e.trained, 'predicts': e.predicts,
         'leaks': e.leaks, 'settings': race['entrants'][e.name]['asked'],
         'runs': [r | {'curve': curve(e, seed)} for seed, r in sorted(results[e.name].items())]} for e in entrants]
    record |= {k: race[k] for k in ('floors', 'protocol') if k in race}
    return record | ({'verdicts': confirmed(record)} if 'protocol' in race and done == total else {})


def main(argv):
    args = arguments(argv)
    if args.confirm:
        args.protocol, sweeps = confirm.read(args.confirm)
        args.configs = [confirm.config_of(s) for s in sweeps.values()]
        args.budget, args.windows = tuple(args.protocol['budget']), args.protocol['windows']
    entrants, notes = enter(args.configs, args.set, args.match)
    first, out, kept = entrants[0].settings.train, args.out, RESULTS / f'{Path(args.confirm or "").stem}.json'
    seeds = range(first.seed, first.seed + (args.seeds or 0))
    machine = device.setup(first.device, number_format(first).get('dtype', first.dtype), compile=False)
    if args.confirm:
        confirm.check(args.protocol, sweeps, entrants, machine.describe(), RESULTS)
        seeds = args.protocol['seeds']
        if kept.exists():
            record = schema.read(kept, {'protocol': 'dict'}, 'choose another name for the claim')
            confirm.pin(args.protocol, record['protocol'], kept)
        else:
            check_commit(args, entrants)
    interrupt_on_signals()
    todo = [(e, seed) for seed in seeds for e in entrants]
    results, pictures, total = {e.name: {} for e in entrants}, {}, len(todo)
    with runs.lock(out, '--out'):
        race = open_race(args, entrants, machine, out)
        if left := [e.name for e, seed in todo if not (e.folder(out, seed) / 'result.json').exists()]:
            print(forecast(race, left), flush=True)
        with progress_bar(total) as show:
            for i, (e, seed) in enumerate(todo):        # it grows by the runs to be repeated
                folder, ours = e.folder(out, seed), results[e.name]
                title, flags = f'run {i + 1} of {len(todo)}, {e.name}, seed {seed}', race['entrants'][e.name]['plan']['flags']

                def progress(rows, i=i, title=title, flags=flags):
                    last = rows[-1] if rows else {}
                    loss = next((r['val_loss'] for r in reversed(rows) if 'val_loss' in r), None)
                    show((i + spent(flags['max_iters'], flags['max_seconds'], last)) * total / len(todo),
                         f'{title}: step {last.get("step", 0):,}' + (f', val {loss:.3f}' if loss else ''))
                new = not (folder / 'result.json').exists()
                ours[seed] = run(e, seed, folder, race, machine, progress, not any('sample' in r for r in ours.values()))
                tqdm.write(f'{e.name}, seed {seed}: {describe_result(ours[seed])}')
                for x, again, result in strays(race, entrants, results, out) if i == len(todo) - 1 else ():
                    tqdm.write(f'{x.name}, seed {again}, is repeated: its tokens/s are not those of its siblings')
                    repeat(race, x, again, result, out)
                    del results[x.name][again]
                    todo.append((x, again))
                if new or i == len(todo) - 1:
                    for x in (x for x in entrants if not pictures.get(x.name) and not args.confirm):
                        pictures[x.name] = influence(x, results[x.name].values(), race['windows'], machine, out)
                    record = make_record(argv, race, entrants, results, notes, machine, out, total)
                    page.write(record, pictures, out)
    print(f'\n{tables.text(record, tables.WIDTH)}\nwritten to {out}/: report.html, race.png, table.md, table.csv, results.json')
    later = 'floors' in record and kept.exists() and 'floors' not in json.loads(kept.read_text(encoding='utf-8'))
    if record.get('verdicts') and (later or not kept.exists()):
        page.write_record(record, kept)
        print(f'the record of this claim: {kept}')
    failed = [f'{e.name}, seed {seed}: {r["failed"]}' for e in entrants for seed, r in results[e.name].items() if 'failed' in r]
    if failed:
        raise UserError(f'{len(failed)} of {total} runs failed, first {failed[0]}; the same command tries them again')


if __name__ == '__main__':
    command(main, 'the race was stopped: the same command resumes it')
