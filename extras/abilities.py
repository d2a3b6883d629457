"""
What each architecture can and cannot do: small tasks, of which longer examples are tested than were trained on.

    python -m extras.abilities
    python -m extras.abilities config/shakespeare_gpt.py "config/shakespeare_mamba.py --n_embd=64" --tasks=recall,parity

- each rival is trained on each task with each of --rates, by sweep.py: equal steps of equal examples; the rate with the lowest
  validation loss counts
- the accuracy of every part of the test split goes to abilities.json, which is written after each sweep, and to abilities.png
- the same command resumes; rivals and tasks can be added later

One run of each: no difference between two rivals is evidence.
"""

import datetime
import importlib.util
import json
import shlex
from pathlib import Path

import sweep
from harness import Arguments, UserError, command, data, device, runs
from harness.files import atomic
from harness.log import markdown
from race.entrants import read, slug, split_words
from race.page import write_record
from race.tables import abilities

TASKS = 'copying', 'recall', 'induction', 'parity', 's5', 'sorting', 'needle'
RIVALS = {      # of 0.2 M parameters
    'GPT': 'config/shakespeare_gpt.py --n_layer=2 --n_embd=88',
    'GPT, short_conv': 'config/shakespeare_gpt.py --n_layer=2 --n_embd=88 --short_conv=4',
    'Llama': 'config/shakespeare_llama.py --n_layer=2 --n_embd=88 --n_hidden=272',
    'PACING': 'config/shakespeare_pacing.py --n_layer=3 --n_embd=88',
    'Mamba': 'config/shakespeare_mamba.py --n_layer=2 --n_embd=116',
    'WaveGPT, causal': 'config/shakespeare_wavegpt_causal.py --n_layer=2 --n_embd=56',
    'high-order transformer': 'config/shakespeare_high_order_transformer.py --n_layer=2 --n_embd=68'}
OURS = 'dataset', 'block_size', 'batch_size', 'learning_rate', 'min_lr', 'max_iters', 'eval_interval', 'eval_windows'


def arguments(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('configs', nargs='*', help='in quotes with settings of their own (default: seven of 0.2 M parameters)')
    parser.add_argument('--tasks', default=','.join(TASKS), help=f'data sets with answers (default {",".join(TASKS)})')
    parser.add_argument('--rates', default='1e-3,4e-3,1.6e-2', help='learning rates (default 1e-3,4e-3,1.6e-2)')
    parser.add_argument('--steps', type=int, default=1000, help='of training, of each run (default 1000)')
    parser.add_argument('--examples', type=int, default=16, help='in a step (default 16)')
    parser.add_argument('--out', default='out/abilities', help='the folder of the runs (default out/abilities)')
    args = parser.parse_args(argv)
    if min(args.steps, args.examples) < 1:
        raise UserError(f'--steps={args.steps} and --examples={args.examples} must be at least 1')
    try:
        rates = [float(rate) for rate in args.rates.split(',')]
    except ValueError:
        rates = [0]
    if min(rates) <= 0 or len(set(rates)) < len(rates):
        raise UserError(f'--rates={args.rates} must be different numbers above 0, with commas between them')
    if importlib.util.find_spec('optuna') is None:
        raise UserError('extras.abilities needs optuna, which is not installed: pip install optuna')
    args.rivals = {text: text for text in args.configs} or RIVALS
    for text in args.rivals.values():
        if set_twice := [w for w in split_words(text)[1:] if w.lstrip('-').partition('=')[0] in OURS]:
            raise UserError(f'{set_twice[0]} cannot be set here: every rival is trained with the same --steps, --examples and '
                            f'--rates on all tasks')
    return args


def run(text, task, size, args, out):
    """What a rival reaches on a task: its best rate, loss and accuracies, and the seconds of all its runs."""
    words = [f'--dataset={task}', f'--block_size={size}', f'--batch_size={args.examples}', '--min_lr=0',
             f'--eval_interval={max(1, args.steps // 4)}', '--eval_windows=512']
    config = shlex.join([*split_words(text), *words])
    sweep.main([config, '--search', f'learning_rate={args.rates}', f'--steps={args.steps}', f'--out={out}',
                f'--trials={args.rates.count(",") + 1}'])
    trials = json.loads((out / 'results.json').read_text(encoding='utf-8'))['trials']
    best = trials[0]
    found = json.loads((out / f'trial-{best["number"]}' / 'test.json').read_text(encoding='utf-8'))
    return {'rate': best['values']['learning_rate'], 'val_loss': best['val_loss'],
            'seconds': sum(t.get('seconds', 0) for t in trials),
            'accuracy': {name: part['accuracy'] for name, part in found['parts'].items()}}


def draw(record):
    """A panel for each task: accuracy by length, a line for each rival."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    columns = min(4, len(record['abilities']))
    rows = -(-(len(record['abilities']) + 1) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.7 * rows), layout='constrained', squeeze=False)
    for ax, (task, about) in zip(axes.flat, record['abilities'].items(), strict=False):
        for i, rival in enumerate(record['rivals']):
            if task in rival['tasks']:
                accuracy = rival['tasks'][task]['accuracy']
                ax.plot([*map(int, accuracy)], [*accuracy.values()], f'C{i}', marker='os^vDP*'[i % 7], ms=4, lw=1.3,
                        label=rival['name'])
        ax.plot([*map(int, about['chance'])], [*about['chance'].values()], 'k:', lw=1, label='chance')
        ax.axvline(about['trained'], color='0.6', lw=1, ls='--', label='longest in training')
        ax.set(ylim=(-0.03, 1.03), xticks=[*map(int, about['chance'])], xlabel=about['counted'])
        ax.set_title(task, fontsize=10)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)
        ax.spines[['top', 'right']].set_visible(False)
    for ax in axes.flat[len(record['abilities']):]:
        ax.set_axis_off()
    labels = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    axes.flat[len(record['abilities'])].legend(labels.values(), labels.keys(), fontsize=8, frameon=False, loc='center left')
    axes[0, 0].set_ylabel('accuracy')
    return fig


def main(argv):
    args, about, rivals = arguments(argv), {}, {}
    out = Path(args.out)
    for task in args.tasks.split(','):
        dataset = data.open_data(task)
        if 'answers' not in dataset.meta:
            raise UserError(f'--tasks: data/{task} has no examples with answers: choose of {", ".join(TASKS)}')
        about[task] = {**dataset.meta['answers'], 'chance': dataset.chance()['parts'], 'fingerprint': dataset.fingerprint}
    record = {'command': shlex.join(['python', '-m', 'extras.abilities', *argv]), 'date': datetime.date.today().isoformat(),
              'machine': device.setup('auto', 'auto', compile=False).describe(), 'steps': args.steps, 'examples': args.examples,
              'rates': args.rates, 'abilities': about, 'rivals': []}
    with runs.lock(out, '--out'):
        for task in about:
            for name, text in args.rivals.items():
                e = read([*split_words(text), f'--dataset={task}', f'--block_size={about[task]["size"]}'])
                rival = rivals.setdefault(name, {'name': name, 'config': text, 'arch': e.settings.arch.name,
                                                 'predicts': e.predicts, 'parameters': {}, 'tasks': {}})
                rival['parameters'][task] = e.parameters
                print(f'{task}, {name}: {e.parameters:,} parameters', flush=True)
                rival['tasks'][task] = run(text, task, about[task]['size'], args, out / f'{task}-{slug(name)}')
                record['rivals'] = [*rivals.values()]
                write_record(record, out / 'abilities.json')
        from views.behaviour import png
        with atomic(out / 'abilities.png') as f:
            f.write(png(draw(record)))
    print(f'{markdown(*abilities(record))}\n\nwritten to {out}/: abilities.json, abilities.png')


if __name__ == '__main__':
    command(main, 'stopped: the same command resumes')
