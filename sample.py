"""
Generate text from a checkpoint, as it comes:

    python sample.py out/shakespeare_pacing --start "ROMEO:" --max_new_tokens 300 --temperature 0.8 --top_k 50
    python sample.py --pretrained gpt2 --start FILE:prompt.txt
    python sample.py out/shakespeare_mamba --benchmark --max_new_tokens=10000

from several, whose probabilities are averaged; and what the mixture is worth:

    python sample.py out/shakespeare_gpt out/shakespeare_pacing --weights 0.7,0.3 --start "ROMEO:"
    python sample.py out/shakespeare_gpt out/shakespeare_pacing --eval

or change a text again and again, by a model that sees both sides of a character:

    python sample.py out/RUN --automaton --start "The monster awakes" --reapply 10
"""

import contextlib
import math
import os
import sys
from pathlib import Path

import torch

from harness import CENTERED, LEAKS, UserError, checkpoint, config, device
from harness.ensemble import Ensemble, judge
from harness.generate import automaton, benchmark, continuations, describe
from harness.tokenizer import Tokenizer, gpt2_spec


def arguments(argv):
    parser = config.Arguments(description=__doc__)
    parser.add_argument('run', nargs='*', help='the folder of a run (its best checkpoint), or a checkpoint file; several '
                        'are mixed: their probabilities are averaged')
    parser.add_argument('--weights', help='of the runs in that average, such as 0.7,0.3 (default: equal ones)')
    parser.add_argument('--pretrained', metavar='NAME', help='published weights instead, such as gpt2')
    parser.add_argument('--arch', default='model', help='the model file that loads the published weights')
    parser.add_argument('--start', action='append', help='the text to continue, or FILE:path to a file that holds it (default: '
                        'a line break); may be said several times')
    parser.add_argument('--num_samples', type=int, default=1, help='texts from each start')
    parser.add_argument('--max_new_tokens', type=int, default=300)
    parser.add_argument('--temperature', type=float, help='0 always takes the likeliest token (default: 0.8; --automaton: 0)')
    parser.add_argument('--top_k', type=int, default=50, help='draw from so many of the likeliest tokens (0: all)')
    parser.add_argument('--top_p', type=float, default=1.0, help='draw from the likeliest that together have this share')
    parser.add_argument('--seed', type=int, default=1337)
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:N')
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument('--benchmark', action='store_true', help='print how fast it is, and no text')
    instead.add_argument('--eval', action='store_true', help='print the loss on validation text, and no text')
    instead.add_argument('--automaton', action='store_true', help='replace all characters of --start at once by what the model '
                         'says of each, again and again')
    parser.add_argument('--eval_windows', type=int, default=1024, help='of validation text (0: all that fit side by side)')
    parser.add_argument('--reapply', type=int, default=10, help='passes of --automaton')
    args = parser.parse_intermixed_args(argv)
    if args.temperature is None:
        args.temperature = 0.0 if args.automaton else 0.8
    for name, ok, wanted in (('num_samples', args.num_samples > 0, 'at least 1'), ('top_k', args.top_k >= 0, '0 or more'),
                             ('max_new_tokens', args.max_new_tokens > 0, 'at least 1'), ('top_p', 0 < args.top_p <= 1,
                             'above 0 and at most 1'), ('temperature', args.temperature >= 0, '0 or more'),
                             ('seed', 0 <= args.seed < 2 ** 63, '0 or more and less than 2 ** 63'),
                             ('eval_windows', args.eval_windows >= 0, '0 or more'),
                             ('reapply', args.reapply > 0, 'at least 1')):
        if not ok:
            raise UserError(f'--{name}={getattr(args, name)}: {wanted} is wanted')
    if bool(args.run) == (args.pretrained is not None):
        raise UserError('name either runs, such as out/shakespeare_pacing, or --pretrained gpt2')
    if args.weights is not None:
        said, args.weights = args.weights, []
        with contextlib.suppress(ValueError):
            args.weights = [float(w) for w in said.split(',')]
        if len(args.weights) != len(args.run) or not all(0 < w < math.inf for w in args.weights):
            raise UserError(f'--weights={said}: one number above 0 for each run is wanted, {len(args.run)} in all, with commas '
                            f'between them')
    if args.eval and args.pretrained:
        raise UserError('--eval judges runs on the data that they were trained on: name some instead of --pretrained')
    if args.automaton and args.start is None:
        raise UserError('--automaton changes a text: say which by --start "..."')
    if args.automaton and len(args.run) > 1:
        raise UserError('--automaton applies one model: name a single run')
    return args


def prompt(start, tokenizer):
    """The ids of --start.  Raises UserError for a file that cannot be read, or a character without a token."""
    if start is None:
        return tokenizer.begin()
    if start.startswith('FILE:'):
        path = Path(start[len('FILE:'):])
        try:
            start = path.read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f'--start: {path} cannot be read as text ({e})') from None
    if not start:
        raise UserError('--start is empty: there is nothing to continue')
    return tokenizer.encode(start)


def pretrained(name, arch):
    """A model with published weights."""
    module = config.load_arch(arch)
    if not hasattr(module.Model, 'from_pretrained'):
        raise UserError(f'{arch}.py loads no published weights')
    if getattr(module.Model, 'published_tokens', None) != 'gpt2':
        raise UserError(f'the published weights that {arch}.py loads have a tokenizer of their own, which is not known here')
    try:
        return module.Model.from_pretrained(name).eval()
    except ValueError as e:
        raise UserError(f'--pretrained {name}: {e}') from None


def main(argv):
    args = arguments(argv)
    where = device.pick_device(args.device, 0, 1)
    names = args.run or [args.pretrained]
    if args.run:
        models, contents = zip(*map(checkpoint.load_model, args.run), strict=True)
        specs = [c['data'].get('tokenizer') for c in contents]
        if tasks := [name for name, spec in zip(names, specs, strict=True) if spec is None]:
            raise UserError(f'{tasks[0]} answers a task, and writes no text: python look.py {tasks[0]} shows its answers')
        if others := [name for name, spec in zip(names, specs, strict=True) if spec != specs[0]]:
            raise UserError(f'{others[0]} has another tokenizer than {names[0]}, so they cannot be mixed: take runs that were '
                            f'trained on one data set')
        tokenizer = Tokenizer(specs[0])
    else:
        models, tokenizer = [pretrained(args.pretrained, args.arch)], Tokenizer(gpt2_spec())
    for name, model in zip(names, models, strict=True):
        if getattr(model, 'centered', False) and not args.automaton:
            raise UserError(f'{name}: {CENTERED}: say --automaton --start "..."')
        if args.automaton and not getattr(model, 'centered', False):
            raise UserError(f'--automaton: {name} predicts a token from what is before it alone, and not from both its sides: '
                            f'take a run with --centered, such as of highorder.py')
    ensemble = Ensemble(models, args.weights or [1] * len(models)).to(where)
    model = ensemble if len(models) > 1 else models[0]
    if any(getattr(m, 'leaks', False) for m in models):
        print(LEAKS, file=sys.stderr)
    if args.eval:
        print(judge(ensemble, names, contents, args.eval_windows))
        return
    starts = [prompt(start, tokenizer) for start in args.start or [None] for _ in range(args.num_samples)]
    n_vocab = min(tokenizer.n_vocab, model.config.vocab_size)
    if args.benchmark:
        print(describe(benchmark(model, torch.tensor([starts[0]]), args.max_new_tokens, n_vocab)))
        return
    how = (args.temperature, args.top_k, args.top_p, n_vocab)
    texts = starts if args.automaton else continuations(model, starts, args.max_new_tokens, *how, args.seed)
    for i, (start, ids) in enumerate(zip(starts, texts, strict=True)):
        if i:
            print('-' * 80)
        if args.automaton:
            width, generator = len(str(args.reapply)), torch.Generator().manual_seed(args.seed + i)
            for k, (ids, earlier) in enumerate(automaton(model, start, args.reapply, *how, generator)):
                print(f'{k:{width}}  ' + tokenizer.decode(ids).replace('\n', '\n' + ' ' * (width + 2)), flush=True)
                if earlier is not None:
                    print(f'pass {k} is pass {earlier} again: a cycle of {k - earlier} passes' if earlier < k - 1 else
                          f'pass {k} changed nothing, so no other will')
            continue
        print(tokenizer.decode(start), end='', flush=True)
        for piece in tokenizer.stream(ids):
            print(piece, end='', flush=True)
        print()


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:       # enough read
        print()
    except BrokenPipeError:         # by `| head`, too: nobody is there for what Python would still flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
