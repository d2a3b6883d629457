"""
Generate text from a checkpoint, printed token by token:

    python sample.py out/shakespeare_pacing --start "ROMEO:" --max_new_tokens 300 --temperature 0.8 --top_k 50
    python sample.py --pretrained gpt2 --start FILE:prompt.txt
    python sample.py out/shakespeare_mamba --benchmark --max_new_tokens=10000
    python sample.py out/speedrun --draft out/shakespeare_gpt --start "ROMEO:"

from several checkpoints, whose probabilities are averaged, or evaluate them and their mixture:

    python sample.py out/shakespeare_gpt out/shakespeare_pacing --weights 0.7,0.3 --start "ROMEO:"
    python sample.py out/shakespeare_gpt out/shakespeare_pacing --eval

complete the upper part of a picture, or draw pictures, by a model of pixels:

    python sample.py out/mnist_pixels_gpt --start FILE:half.png --num_samples 8 --out grid.png

write the target of a source, by a model of pairs:

    python sample.py out/dates_transformer --start "the 3rd of March, 1999" --beams=4
    python sample.py out/shapes_captions --image picture.png

say which caption fits an image best, of those that are named:

    python sample.py out/shapes_clip --image picture.png --labels "a red circle,a blue square"

draw images of a caption, those first that a model of images and captions ranks first:

    python sample.py out/shapes_dalle --start "a red circle above a blue square" --num_samples 16 --rerank out/shapes_clip

or use a model that sees both sides of a token, to fill blanks or to rewrite a text repeatedly:

    python sample.py out/shakespeare_bert --fill "To be, or not to [MASK]e"
    python sample.py out/shakespeare_automaton --automaton --start "The monster awakes" --reapply 10
"""

import contextlib
import itertools
import math
import os
import sys
from functools import partial
from pathlib import Path

import torch

from harness import (
    BIDIRECTIONAL,
    LEAKS,
    Arguments,
    UserError,
    checkpoint,
    command,
    device,
    formats,
    hub,
    optim,
    require_memory,
    speculate,
)
from harness.arch import ANSWERS, architectures, complete, load_arch
from harness.captions import encode_captions, encode_image, published_images
from harness.drawings import draw, ranker, save, set_guidance
from harness.ensemble import Ensemble, judge
from harness.generate import automaton, benchmark, continuations, describe
from harness.pairs import encode_source
from harness.tokenizer import published_tokenizer, same

# what each kind of model, or of output, reads beside the run and --device; any other option would have no effect
SAMPLING = 'num_samples', 'temperature', 'top_k', 'top_p', 'seed'
READS = {
    'texts': ('start', 'max_new_tokens', 'weights', 'dtype', 'draft', *SAMPLING),
    'pictures': ('start', 'max_new_tokens', 'weights', 'dtype', 'draft', 'out', *SAMPLING),
    '--benchmark': ('start', 'max_new_tokens', 'weights', 'dtype', 'draft', *SAMPLING[:-1]),
    '--eval': ('eval_windows', 'weights', 'dtype'),
    '--fill': ('dtype',),
    '--automaton': ('start', 'reapply', 'dtype', *SAMPLING),
    'targets': ('start', 'beams'),
    'targets of images': ('image', 'beams'),
    'probabilities of captions': ('image', 'labels'),
    'images of captions': ('start', 'out', 'rerank', 'guidance', *SAMPLING)}
MODES = 'benchmark', 'eval', 'fill', 'automaton'
FOR_ANY = 'run', 'pretrained', 'arch', 'device'


def arguments(argv):
    parser = Arguments(description=__doc__)
    add = parser.add_argument
    add('run', nargs='*', help='the folder of a run (its best checkpoint), or a checkpoint file; several are mixed')
    add('--weights', help='of the runs in the mixture, such as 0.7,0.3 (default: equal)')
    add('--draft', metavar='RUN', help='a smaller model that drafts tokens, which the run checks several at a time: the same '
        'distribution in less time')
    add('--pretrained', metavar='NAME', help='published weights instead of a run, such as gpt2')
    add('--arch', help='the model file that loads the published weights (default: by their model_type)')
    add('--start', action='append', type=str, help='the text to continue, or FILE:path (default: a line break); repeatable')
    add('--image', metavar='FILE', action='append', help='the image of which a caption is written or chosen; repeatable')
    add('--labels', type=str, help='the captions to choose from, separated by commas, or by semicolons if there are any')
    add('--num_samples', type=int, default=1, help='texts or images for each start')
    add('--max_new_tokens', type=int, help='(default: 300, or the rest of the picture)')
    add('--out', metavar='FILE', help='the PNG of images (default: sample.png in the folder of the run)')
    add('--rerank', metavar='RUN', help='a run of clip.py, by which the images of a start are sorted, the best first')
    add('--guidance', type=float, help="weight of the caption in an image that is drawn (1: none; default: the run's)")
    add('--temperature', type=float, help='0: greedy (default: 0.8; --automaton, and --benchmark without --draft: 0)')
    add('--top_k', type=int, default=50, help='sample from the k most likely tokens (0: all)')
    add('--top_p', type=float, default=1.0, help='sample from the most likely tokens whose probabilities sum to this')
    add('--seed', type=int, default=1337)
    add('--device', default='auto', help='auto, cpu, mps, cuda or cuda:N')
    add('--dtype', default='auto', choices=['auto', 'float32', 'bfloat16', 'int8'], help='of the weights: each '
        'token costs reading all of them (auto: float32, but published weights as they are stored if that is faster)')
    add('--eval_windows', type=int, default=1024, help='validation windows of --eval (0: all that fit side by side)')
    add('--beams', type=int, default=1, help='width of the beam search of a model of pairs (1: greedy)')
    add('--reapply', type=int, default=10, help='passes of --automaton')
    add = parser.add_mutually_exclusive_group().add_argument        # MODES
    add('--benchmark', action='store_true', help='print the speed of generation instead of a text')
    add('--eval', action='store_true', help='print the loss on validation text instead of a text')
    add('--fill', metavar='TEXT', type=str, help='print the likeliest tokens for each [MASK] in this text')
    add('--automaton', action='store_true', help='replace every character of --start at once by its prediction, repeatedly')
    args = parser.parse_intermixed_args(argv)
    args.given = [name for name, value in vars(args).items() if value != parser.get_default(name)]
    if args.temperature is None:
        args.temperature = 0.0 if args.automaton or (args.benchmark and args.draft is None) else 0.8
    for names, ok, expected in (('num_samples max_new_tokens reapply beams', lambda v: v > 0, 'at least 1'),
                                ('top_k temperature eval_windows', lambda v: v >= 0, '0 or more'),
                                ('top_p', lambda v: 0 < v <= 1, 'above 0 and at most 1'),
                                ('seed', lambda v: 0 <= v < 2 ** 63, '0 or more and less than 2 ** 63')):
        for name in names.split():
            if getattr(args, name) is not None and not ok(getattr(args, name)):
                raise UserError(f'--{name}={getattr(args, name)} must be {expected}')
    if bool(args.run) == (args.pretrained is not None):
        raise UserError('name either runs, such as out/shakespeare_pacing, or --pretrained gpt2')
    if args.weights is not None:
        text, args.weights = args.weights, []
        with contextlib.suppress(ValueError):
            args.weights = [float(w) for w in text.split(',')]
        if len(args.weights) != len(args.run) or not all(0 < w < math.inf for w in args.weights):
            raise UserError(f'--weights={text} must be one number above 0 for each of {len(args.run)} runs, such as 0.7,0.3')
    if args.arch and not args.pretrained:
        raise UserError(f'--arch={args.arch} is of --pretrained: a run knows its own, so leave it out')
    if args.eval and args.pretrained:
        raise UserError('--eval uses the data that a run was trained on: choose runs instead of --pretrained')
    starts = len(args.start or [None])
    if args.draft == '':
        raise UserError('--draft names no run: give the folder of one, such as --draft out/shakespeare_gpt')
    if args.draft is not None and not (len(args.run) < 2 and starts == args.num_samples == 1):
        raise UserError(f'--draft={args.draft} is for one run, one --start and --num_samples=1, not for '
                        f'{max(1, len(args.run))}, {starts} and --num_samples={args.num_samples}: several texts are faster '
                        f'as a batch, so leave it out')
    if args.automaton and args.start is None:
        raise UserError('--automaton needs a text to rewrite: add --start "..."')
    args.both_sides = '--automaton' if args.automaton else '--fill' if args.fill is not None else ''
    if args.both_sides and len(args.run) > 1:
        raise UserError(f'{args.both_sides} uses one model: choose one of the {len(args.run)} runs')
    if args.fill is not None and '[MASK]' not in args.fill:
        raise UserError(f'--fill={args.fill!r} has no [MASK]: write [MASK] in place of each token that is to be predicted')
    return args


def prompt(start, tokenizer):
    """The ids of --start.  Raises UserError for a file that cannot be read, or a character without a token."""
    if start is None:
        return tokenizer.begin()
    if start.startswith('FILE:'):
        ids = tokenizer.read(Path(os.path.expanduser(start[len('FILE:'):])))
    else:
        ids = tokenizer.encode(start)
    if not ids:
        raise UserError('--start is empty: at least one token is needed')
    return ids


def load_pretrained(name, arch, option='--pretrained'):
    """([model], tokenizer) of published weights.  arch: None: the one that loads their model_type.  option: that named them."""
    if arch is None:
        kind = hub.model_type(name)
        arch = 'model' if kind is None else next((a for a in architectures() if kind in load_arch(a).Model.model_types), None)
        if arch is None:
            raise UserError(f"{option} {name} has the model_type '{kind}', which no architecture here loads")
    Model = load_arch(arch).Model
    if not Model.from_pretrained:
        raise UserError(f'--arch={arch}: {arch}.py loads no published weights')
    if Model.modality in ANSWERS:
        raise UserError(f'--arch={arch}: {arch}.py answers a task, and writes no text')
    try:
        model = complete(Model.from_pretrained(name)).eval()
    except ValueError as e:
        raise UserError(f'{option} {name}: {e}') from None
    return [model], published_tokenizer(name, Model.published_tokens, model.config.vocab_size)


def load_draft(name, tokenizer, pretrained):
    """[model] of published weights that draft tokens for those of `pretrained`.  Raises UserError for another tokenizer."""
    if checkpoint.is_ours(name):
        raise UserError(f'--draft={name} is a run, and {pretrained} are published weights: name other published weights')
    models, own = load_pretrained(name, None, '--draft')
    if not same(own.spec, tokenizer.spec):
        raise UserError(f'--draft={name} and {pretrained} have different tokenizers: choose published weights that share one')
    return models


def load_runs(names):
    """(models, tokenizer, checkpoints) of runs that share a tokenizer."""
    models, contents = zip(*map(checkpoint.load_model, names), strict=True)
    specs = [c['data'].get('tokenizer') for c in contents]
    for name, spec, model in zip(names, specs, models, strict=True):
        if model.modality in (*ANSWERS, 'patches'):
            raise UserError(f'{name} answers a task, and writes no text: python look.py {name} shows its answers')
        if spec != specs[0]:
            raise UserError(f'{name} and {names[0]} have different tokenizers: choose runs that were trained on one data set')
    tokenizers = [checkpoint.tokenizer(c, name) for c, name in zip(contents, names, strict=True)]
    return models, tokenizers[0], contents


def kind_of(model, tokenizer, args, images):
    """Which of READS is asked for.  images: whether the model reads images.  Raises UserError for an option that would have no
    effect, or one that is missing."""
    name, mode = (args.run or [args.pretrained])[0], next((f'--{m}' for m in MODES if m in args.given), None)
    only = {'pairs': 'targets of images' if images else 'targets', 'captions': 'probabilities of captions',
            'drawings': 'images of captions'}.get(model.modality)
    writes = only or ('pictures' if tokenizer.length else 'texts')
    kind = only or mode or writes
    known = {*READS[kind], *FOR_ANY, *[kind[2:]] * (kind == mode)}
    if other := [option for option in args.given if option not in known]:
        what = f'{mode} of {name}' if kind == mode else f'{name}, which writes {writes},'
        reads = ', '.join(f'--{option}' for option in READS[kind])
        raise UserError(f'--{other[0]}={getattr(args, other[0])} has no effect: {what} reads only {reads}; leave it out, or '
                        f'choose another run')
    needed = [option for option in ('image', 'labels', 'start') if only and option in READS[kind]]
    if missing := [option for option in needed if option not in args.given]:
        raise UserError(f'{name} writes {writes}: it needs {" and ".join(f"--{option} ..." for option in needed)}, so add '
                        f'--{missing[0]} ...')
    if only and len(args.run) > 1:
        raise UserError(f'{name} writes {writes}, and such models are not mixed: name one run')
    return kind


def print_targets(model, tokenizer, args, where, content):
    """What a model of pairs writes for each source, a text or an image."""
    found = [encode_image(path, content)[0] for path in args.image or ()] + [     # (1, S, D) or (1, S)
        encode_source(tokenizer.decode(prompt(start, tokenizer)), tokenizer, model) for start in args.start or ()]
    require_memory(args.beams * model.config.block_size * optim.token_memory(model), f'--beams={args.beams}')
    for source in found:
        print(tokenizer.decode([i for i in model.to(where).decode(source.to(where), args.beams)[0].tolist() if i >= 0]))


@torch.no_grad()
def print_labels(model, tokenizer, args, where, content):
    """The probability of each of --labels for each --image."""
    found = [encode_image(path, content)[0] for path in args.image]
    labels = [v.strip() for v in args.labels.split(';' if ';' in args.labels else ',')]
    if not all(labels):
        raise UserError(f'--labels={args.labels!r} has an empty caption: write captions with commas or semicolons between '
                        f'them, such as "a cat,a dog"')
    y = encode_captions(labels, tokenizer, model).to(where)
    for path, x in zip(args.image, found, strict=True):
        output = model.to(where)(x.to(where).expand(len(y), -1, -1), y)[0].float()
        p = (output[0, 0] @ output[:, 1].T).softmax(-1).tolist()
        print('\n'.join([path] * (len(found) > 1) + [f'{q:6.1%}  {label}' for q, label in zip(p, labels, strict=True)]))


def draw_images(model, tokenizer, args, where, content):
    """Draws --num_samples images of each --start, a row for each start."""
    about, N = content['data'], args.num_samples
    set_guidance(model, args.guidance)
    require_memory(N * len(args.start) * (math.prod(about['shape']) + optim.token_memory(model)), f'--num_samples={N}')
    texts = [' '.join(tokenizer.decode(prompt(start, tokenizer)).split()) for start in args.start]      # as in the data sets
    score = ranker([text for text in texts for _ in range(N)], args.rerank, about['shape'], where) if args.rerank else None
    y = encode_captions(texts, tokenizer, model).repeat_interleave(N, 0)
    images = draw(model.to(where), y, about, content['loop']['patch'], args.temperature, args.top_k, args.top_p, args.seed)
    rows = images.reshape(-1, N, *images.shape[1:])
    if score:
        order = score(images).view(-1, N).argsort(1, descending=True).numpy()
        rows = [row[best] for row, best in zip(rows, order, strict=True)]
    from views.drawings import strips
    save(strips(rows, texts), Path(args.out or checkpoint.find(args.run[0]).parent / 'sample.png'))


SHOW = {'targets': print_targets, 'targets of images': print_targets, 'probabilities of captions': print_labels,
        'images of captions': draw_images}      # of READS, those that are not texts or pictures token by token


def print_automaton(model, tokenizer, start, passes, options, seed):
    width = len(str(passes))
    for k, (ids, earlier) in enumerate(automaton(model, start, passes, *options, torch.Generator().manual_seed(seed))):
        print(f'{k:{width}}  ' + tokenizer.decode(ids).replace('\n', '\n' + ' ' * (width + 2)), flush=True)
        if earlier is not None:
            print(f'pass {k} equals pass {earlier}: a cycle of {k - earlier} passes' if earlier < k - 1 else
                  f'pass {k} changed nothing: a fixed point')


@torch.no_grad()
def print_fill(model, tokenizer, ids, n_vocab, most=5):
    """The likeliest tokens for each -1 in ids, a line each."""
    x = torch.tensor([ids], device=next(model.parameters()).device)
    for n, p in enumerate(model.infill(x)[x < 0][:, :n_vocab].float().softmax(-1).cpu(), 1):
        best = zip(*(v.tolist() for v in p.topk(min(most, n_vocab))), strict=True)
        print(f'[MASK] {n}: ' + ', '.join(f'{tokenizer.token_bytes(i).decode(errors="replace")!r} {q:.1%}' for q, i in best))


def main(argv):
    args = arguments(argv)
    where = device.pick_device(args.device, 0, 1)
    names, contents = [*(args.run or [args.pretrained]), *[args.draft] * (args.draft is not None)], ()
    if args.run:
        models, tokenizer, contents = load_runs(names)
    else:
        models, tokenizer = load_pretrained(args.pretrained, args.arch)
        if args.draft is not None:
            models += load_draft(args.draft, tokenizer, args.pretrained)
    content = contents[0] if contents else published_images(models[0]) if models[0].modality == 'captions' else {}
    kind = kind_of(models[0], tokenizer, args, 'shape' in content.get('data', {}))
    if show := SHOW.get(kind):
        show(models[0], tokenizer, args, where, content)
        return
    for name, model in zip(names, models, strict=True):
        if model.bidirectional and tokenizer.length:
            raise UserError(f'{name} fills in pixels of a whole picture, and writes no text: python look.py {name} draws some')
        if model.bidirectional and not args.both_sides:
            raise UserError(f'{name}: {BIDIRECTIONAL}: use --fill "... [MASK] ..." or --automaton --start "..."')
        if args.both_sides and not model.bidirectional:
            raise UserError(f'{args.both_sides}: {name} predicts a token from earlier tokens only: choose a run that sees both '
                            f'sides, such as that of config/shakespeare_bert.py or config/shakespeare_automaton.py')
    if args.draft is not None:
        speculate.require_text(models, names)
    if any(m.leaks for m in models):
        print(LEAKS, file=sys.stderr)
    dtype, why = formats.choose(args.dtype, models, args.pretrained, where)
    if dtype != 'float32':
        print(f'numbers: {dtype} ({why})', file=sys.stderr)
    cast = partial(formats.cast, models, dtype, where)
    *models, draft = models if args.draft is not None else [*models, None]
    ensemble = Ensemble(models, args.weights or [1] * len(models)).to(where)
    if not args.eval:
        cast()
    model = ensemble if len(models) > 1 else models[0]
    n_vocab = min(tokenizer.n_vocab, model.config.vocab_size)
    if args.fill is not None:
        print_fill(model, tokenizer, tokenizer.encode_masked(args.fill), n_vocab)
        return
    if not args.eval:       # each text has a generator, and the state of step() or the logits of a window
        each = (speculate.state_bytes(model) if model.step else 0) or 4 * model.config.block_size * model.config.vocab_size
        if draft:               # and the copies of both states
            each = 2 * (each + speculate.state_bytes(draft))
        require_memory((5000 + each) * args.num_samples * len(args.start or [None]), f'--num_samples={args.num_samples}')
    starts = [prompt(start, tokenizer) for start in args.start or [None] for _ in range(args.num_samples)]
    if args.eval:
        print(judge(ensemble, names, contents, args.eval_windows, dtype, cast))
        return
    count, options = args.max_new_tokens or tokenizer.length or 300, (args.temperature, args.top_k, args.top_p, n_vocab)
    if args.benchmark:
        x = torch.tensor(starts[:args.num_samples])
        line = speculate.describe_draft(speculate.benchmark_draft(model, draft, x, count, *options)) if draft else \
            describe(benchmark(model, x, count, *options))
        print(f'{dtype}: {line}')
        return
    if args.automaton:
        for i, start in enumerate(starts):
            print('-' * 80 + '\n' if i else '', end='')
            print_automaton(model, tokenizer, start, args.reapply, options, args.seed + i)
        return
    if draft:
        count = min(count, (tokenizer.length or math.inf) + 1 - len(starts[0]))
        ids = speculate.speculate(model, draft, torch.tensor(starts), count, *options, torch.Generator().manual_seed(args.seed))
        texts = [itertools.chain.from_iterable(part.tolist() for part in ids)]
    else:
        texts = continuations(model, starts, count, *options, args.seed, longest=tokenizer.length)
    folder = checkpoint.find(names[0]).parent if contents else Path()
    tokenizer.show(starts, texts, args.out or folder / 'sample.png')


if __name__ == '__main__':
    command(main)
