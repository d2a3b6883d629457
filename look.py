"""
Pictures of what a trained model has learned, as PNGs in the folder of the run:

    python look.py out/shakespeare_pacing
    python look.py out/shakespeare_gpt --only influence,surprise
    python look.py out/shakespeare_gpt --prompt "ROMEO: But soft, what light through yonder window"

Of a language model:

    influence.png   how far the prediction at each position moves when the token at another position is replaced
    context.png     the loss at each position of the window: how much more context helps
    surprise.png    a text, coloured by the surprise of each token in bits
    attention.png   with attention: the map of each head of each layer
    links.png, segments.png, refinement.png    with piecewise-polynomial layers: some of their edge functions and the inputs
                    that occur; the segments in use; edge functions before and after a refinement

Of a model of pixels, on validation pictures:

    completions.png    the upper half of each, completed
    surprise.png, pixels.png    the surprise of each pixel, of some pictures and in the mean
    influence.png, attention.png    as above

Of a model that answers a task:

    trained.png     which weights were trained
    confusion.png, bits.png or numbers.png     the answers against the expected ones
    wrong.png       the examples with the highest loss
    attention.png, gaze.png    with attention: the map of each head; on images, the attention to each patch

Of a model of pairs:

    cross_attention.png    which token of the source each token of the target looks at; of an image, where each word looks

Of a model that compares images with captions:

    similarity.png  the cosine of some images with the captions of all of them
    pairs.png       the pairs that it gets right by most, and wrong by most

Of a model that rebuilds or draws images:

    rebuilt.png     images, and what is made of their tokens
    codes.png       how often each token of the codebook occurs
    samples.png     images of four captions

A model file adds its own by a function pictures(model, x, labels) that yields (name, matplotlib figure); x: (1, T) tokens,
labels: their texts. For pairs it is pictures(model, source, y, texts, targets), where texts may be an image.
"""

import importlib
from functools import partial
from pathlib import Path

import torch

from harness import BIDIRECTIONAL, Arguments, UserError, checkpoint, command, data, device
from harness.arch import ANSWERS, load_arch
from harness.captions import encode_image
from harness.files import atomic
from harness.pairs import encode_source
from piecewise import PiecewisePolynomial

# {modality of a model: the module of views/ that draws validation examples of its data}
VIEWS = dict.fromkeys(ANSWERS, 'tasks') | {'captions': 'captions', 'patches': 'drawings', 'drawings': 'drawings'}

SHOWN = 640         # tokens of surprise.png, at most
CONTEXT = 1 << 18   # tokens of context.png
READ = 1 << 13      # tokens from which the inputs of piecewise-polynomial layers are collected


def arguments(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('run', help='the folder of a run (its best checkpoint), or a checkpoint file')
    parser.add_argument('--only', help='names of the pictures to draw, such as influence,surprise (default: all)')
    parser.add_argument('--prompt', type=str, help='the text to draw (default: a part of the validation text)')
    parser.add_argument('--image', metavar='FILE', help='the image to draw, of a model of images and their captions')
    parser.add_argument('--out', help='the folder for the pictures (default: look/ in the folder of the run)')
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:N')
    return parser.parse_args(argv)


def text_views(model, tokenizer, ids, text=None):
    """{name: function that yields (name, figure)} for a language model.  ids: the text to draw.  text: its TextData, or None:
    influence is then measured on `ids`, and there is no context.png."""
    from views import behaviour
    from views.attention import attention, attention_maps
    from views.links import links
    where, T, bidirectional = next(model.parameters()).device, model.config.block_size, model.bidirectional
    x, labels = window_of(model, tokenizer, ids)

    def influence():
        starts = () if text is None else text.val_indices(9, T)[1:]         # the first window has no memory
        windows = x if text is None else text.windows('val', starts, T, model.memory)[0]
        matrix = behaviour.influence(model, behaviour.excerpt(model, windows)[0].to(where))
        yield 'influence', behaviour.draw_influence(matrix, bidirectional=bidirectional)

    def context():
        batch = text.batch('val', text.val_indices(max(256, CONTEXT // T), T), model)
        yield 'context', behaviour.draw_context(behaviour.losses_by_position(model, *(t.to(where) for t in batch)))

    def surprise():
        labels, first = texts_of(tokenizer, ids), max(0, len(ids) - SHOWN)
        if first:       # start at a line, if one starts soon
            first = next((i for i in range(first, min(first + 80, len(ids) - 1)) if labels[i - 1] == '\n'), first)
        unpredicted = [] if first or bidirectional else [float('nan')]      # nothing comes before the first token
        bits = behaviour.surprise(model, ids, first + len(unpredicted)).tolist()
        yield 'surprise', behaviour.draw_surprise(labels[first:], unpredicted + bits)

    def edge_functions():
        if text is None:
            windows = torch.tensor(ids[-max(1, len(ids) // T) * T:]).view(-1, min(T, len(ids)))
        else:
            windows, _ = text.windows('val', text.val_indices(max(1, READ // T), T), T)
        yield from links(model, windows.to(where), texts_of(tokenizer, range(tokenizer.n_vocab)))

    views = {'influence': influence, 'context': context, 'surprise': surprise}
    if text is None or bidirectional:       # bidirectional: a position does not say how much context there is
        del views['context']
    if attention_maps(model, x):
        views['attention'] = partial(attention, model, x, labels)
    if any(isinstance(m, PiecewisePolynomial) for m in model.modules()):
        views |= dict.fromkeys(('links', 'segments', 'refinement'), edge_functions)
    return views


def texts_of(tokenizer, ids):
    return [tokenizer.token_bytes(i).decode(errors='replace') for i in ids]


def window_of(model, tokenizer, ids):
    """The newest window of a text, or a part of it: (x (1, T), the text of each token)."""
    from views.behaviour import excerpt
    x = excerpt(model, torch.tensor([ids[-model.config.block_size:]], device=next(model.parameters()).device))[0]
    return x, texts_of(tokenizer, x[0].tolist())


def pair_of(model, tokenizer, dataset, args, content):
    """A source of the validation split, or the prompt or image, and what the model makes of it: (source (1, S) or (1, S, D),
    target (1, T), the text of each token of the source or the image that it is from, that of each token of the target)."""
    where, end, images = next(model.parameters()).device, model.config.vocab_size - 1, 'shape' in content['data']
    if (args.prompt if images else args.image) is not None:
        raise UserError(f'{args.run} reads {"images: use --image" if images else "texts: use --prompt"}')
    if args.image:
        source, shown = encode_image(args.image, content)
    else:
        source = dataset.batch('val', [0], model)[0] if args.prompt is None else encode_source(args.prompt, tokenizer, model)
        shown = dataset.splits['val'][0][0] if images else texts_of(tokenizer, source[0].tolist())
    made = [i for i in model.decode(source.to(where))[0].tolist() if i >= 0]
    words = [*texts_of(tokenizer, made), ' end' if images else 'end']
    longest = model.config.block_size           # a target that is as long has no end
    return source.to(where), torch.tensor([[*made, end][:longest]], device=where), shown, words[:longest]


def choose(views, own, only=None):
    """An iterator of (name, figure): the pictures named in `only`, or all.  Raises UserError for an unknown name.

    views: {name: function that yields it}; a function may yield several.  own: that of the model file, whose names are known
    only once it is called."""
    if only is not None and (unknown := [name for name in only if name not in views]):
        known = [*views, *(name for name, _ in own())]
        if unknown := [name for name in unknown if name not in known]:
            raise UserError(f'--only: there is no picture {unknown[0]!r} of this run: choose from {", ".join(known)}')
    functions = dict.fromkeys([*views.values(), own] if only is None else [views.get(name, own) for name in only])
    return ((name, figure) for draw in functions for name, figure in draw() if only is None or name in only)


def save(pictures, folder, title):
    """Write the figures as PNGs, each as soon as it is drawn, and print their paths.  title: which checkpoint they show."""
    from views.behaviour import png
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures:
            figure.suptitle(f'{title}: {figure.get_suptitle()}'.rstrip(': '), fontsize=10, parse_math=False)
            with atomic(folder / f'{name}.png') as f:
                f.write(png(figure))
            print(folder / f'{name}.png', flush=True)
    except OSError as e:
        raise UserError(f'{folder} cannot be written ({e.strerror}): choose another folder by --out') from None


def main(argv):
    args = arguments(argv)
    only = None if args.only is None else [name.strip().removesuffix('.png') for name in args.only.split(',')]
    path = checkpoint.find(args.run)
    model, content = checkpoint.load_model(path)
    model.to(device.pick_device(args.device, 0, 1))
    arch, folder = load_arch(content['arch']), path.resolve().parent
    if model.modality in VIEWS and args.prompt is not None:
        raise UserError(f'--prompt: {args.run} reads no text alone, and its pictures show validation examples: leave it out')
    dataset = data.data_of(content)
    if args.image is not None and model.modality != 'pairs':
        raise UserError(f'--image: {args.run} writes no captions: leave it out')
    if dataset is None and args.prompt is None and args.image is None:
        raise UserError(f'data/{content["loop"]["dataset"]} is missing or is not the data that {args.run} was trained on: '
                        'prepare it' + ', or choose a text by --prompt "..."' * (
                            'tokenizer' in content['data'] and 'shape' not in content['data'] and
                            content['data']['tokenizer']['kind'] != 'palette'))
    import matplotlib
    matplotlib.use('Agg')       # before pyplot is imported, which takes a second that --help and errors need not wait for
    if model.modality in VIEWS:
        views, own = importlib.import_module(f'views.{VIEWS[model.modality]}').views(model, dataset), lambda: ()
    elif model.modality == 'pairs':
        views, own = {}, partial(arch.pictures, model, *pair_of(model, checkpoint.tokenizer(content, path), dataset, args,
                                                                content))
    elif (tokenizer := checkpoint.tokenizer(content, path)).length is not None:
        if args.prompt is not None:
            raise UserError(f'--prompt: {args.run} was trained on pixels, and its pictures show validation pictures')
        from views import pixels
        views, x = pixels.views(model, dataset), dataset.windows('val', [0], dataset.size)[0]
        own = partial(arch.pictures, model, x.to(next(model.parameters()).device), [''] * dataset.size)
    else:
        if dataset is not None and 'answers' in dataset.meta:       # pictures of one example
            ids, dataset = dataset.batch('val', [0], model)[0][0].tolist(), None
        if args.prompt is None and dataset is not None:
            middle = len(dataset.tokens['val']) // 2
            ids = dataset.tokens['val'][middle:middle + model.config.block_size + SHOWN].tolist()
        elif args.prompt is not None and len(ids := tokenizer.encode(args.prompt)) < 2:
            raise UserError(f'--prompt has {len(ids)} token{"s" * (len(ids) != 1)}: at least 2 are needed')
        views = text_views(model, tokenizer, ids, dataset)
        own = partial(arch.pictures, model, *window_of(model, tokenizer, ids))
    if content['step'] == 0:
        print(f'warning: {"best " * (path.name == "best.pt")}checkpoint is step 0: this network is untrained', flush=True)
    if content['data']['fingerprint'].endswith('-leaking'):
        print('warning: this run was trained with leaking_split, so the validation text was trained on', flush=True)
    save(choose(views, own, only), Path(args.out or folder / 'look'), f'{folder.name}, step {content["step"]:,}')
    if model.modality in ('text', 'masked text') and {'context', 'pixels'}.isdisjoint(views) and only is None:
        print(f'context.png was left out: {BIDIRECTIONAL}' if model.bidirectional else
              f'context.png was left out: data/{content["loop"]["dataset"]} is missing, is not the data of this run, or has '
              f'answers at some positions only')


if __name__ == '__main__':
    command(main)
