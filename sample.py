"""
Generate text from a checkpoint, as it comes:

    python sample.py out/shakespeare_pacing --start "ROMEO:" --max_new_tokens 300 --temperature 0.8 --top_k 50
    python sample.py --pretrained gpt2 --start FILE:prompt.txt
    python sample.py out/shakespeare_mamba --benchmark --max_new_tokens=10000
"""

import os
import sys
from pathlib import Path

import torch

from harness import LEAKS, UserError, checkpoint, config, device
from harness.generate import benchmark, describe, generate
from harness.tokenizer import Tokenizer, gpt2_spec


def arguments(argv):
    parser = config.Arguments(description=__doc__)
    parser.add_argument('run', nargs='?', help='the folder of a run (its best checkpoint), or a checkpoint file')
    parser.add_argument('--pretrained', metavar='NAME', help='published weights instead, such as gpt2')
    parser.add_argument('--arch', default='model', help='the model file that loads the published weights')
    parser.add_argument('--start', action='append', help='the text to continue, or FILE:path to a file that holds it (default: '
                        'a line break); may be said several times')
    parser.add_argument('--num_samples', type=int, default=1, help='texts from each start')
    parser.add_argument('--max_new_tokens', type=int, default=300)
    parser.add_argument('--temperature', type=float, default=0.8, help='0 always takes the likeliest token')
    parser.add_argument('--top_k', type=int, default=50, help='draw from so many of the likeliest tokens (0: all)')
    parser.add_argument('--top_p', type=float, default=1.0, help='draw from the likeliest that together have this share')
    parser.add_argument('--seed', type=int, default=1337)
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:N')
    parser.add_argument('--benchmark', action='store_true', help='print how fast it is, and no text')
    args = parser.parse_args(argv)
    for name, ok, wanted in (('num_samples', args.num_samples > 0, 'at least 1'), ('top_k', args.top_k >= 0, '0 or more'),
                             ('max_new_tokens', args.max_new_tokens > 0, 'at least 1'), ('top_p', 0 < args.top_p <= 1,
                             'above 0 and at most 1'), ('temperature', args.temperature >= 0, '0 or more'),
                             ('seed', 0 <= args.seed < 2 ** 63, '0 or more and less than 2 ** 63')):
        if not ok:
            raise UserError(f'--{name}={getattr(args, name)}: {wanted} is wanted')
    if (args.run is None) == (args.pretrained is None):
        raise UserError('name either a run, such as out/shakespeare_pacing, or --pretrained gpt2')
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


def main(argv):
    args = arguments(argv)
    where = device.pick_device(args.device, 0, 1)
    if args.run:
        model, content = checkpoint.load_model(args.run)
        tokenizer = Tokenizer(content['data']['tokenizer'])
    else:
        arch = config.load_arch(args.arch)
        if not hasattr(arch.Model, 'from_pretrained'):
            raise UserError(f'{args.arch}.py loads no published weights')
        if getattr(arch.Model, 'published_tokens', None) != 'gpt2':
            raise UserError(f'the published weights that {args.arch}.py loads have a tokenizer of their own, which is not '
                            f'known here')
        try:
            model = arch.Model.from_pretrained(args.pretrained).eval()
        except ValueError as e:
            raise UserError(f'--pretrained {args.pretrained}: {e}') from None
        tokenizer = Tokenizer(gpt2_spec())
    model.to(where)
    if getattr(model, 'leaks', False):
        print(LEAKS, file=sys.stderr)
    starts = [prompt(start, tokenizer) for start in args.start or [None] for _ in range(args.num_samples)]
    n_vocab = min(tokenizer.n_vocab, model.config.vocab_size)
    if args.benchmark:
        print(describe(benchmark(model, torch.tensor([starts[0]]), args.max_new_tokens, n_vocab)))
        return
    how = (args.max_new_tokens, args.temperature, args.top_k, args.top_p, n_vocab)
    # each text has a seed of its own, so that it is the same alone and beside others
    generators = [torch.Generator().manual_seed(args.seed + i) for i in range(len(starts))]
    texts, together = {}, {}
    for i, start in enumerate(starts):
        together.setdefault(len(start), []).append(i)       # starts of one length go through the model together
    for rows in together.values() if len(starts) > 1 else ():
        ids = list(generate(model, torch.tensor([starts[i] for i in rows]), *how, [generators[i] for i in rows]))
        texts |= {i: torch.stack(ids)[:, k].tolist() for k, i in enumerate(rows)}
    for i, start in enumerate(starts):
        if i:
            print('-' * 80)
        ids = texts[i] if texts else (int(row[0]) for row in generate(model, torch.tensor([start]), *how, generators))
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
