"""
Pictures of what a trained model sees, written as PNGs into the folder of the run:

    python look.py out/shakespeare_pacing
    python look.py out/shakespeare_gpt --prompt "ROMEO: But soft, what light through yonder window"

    influence.png   who sees whom: how far the prediction at each position moves when the token at another one is replaced
    context.png     the loss at each position of the window: what more context is worth
    surprise.png    a text, coloured by how much each token surprises the model
    attention.png   for what has attention: where each head of each layer looks
    picture.png, kernels.png    for PACING: the text as the network sees it, and the kernels that look at it
    links.png       for what has links that are functions: some of them, and the inputs that occur
    segments.png    for the same: which pieces of the links are in use
    refinement.png  for the same: links before and after they are given more points and pieces

For a run on a task (drawn by answers.py): trained.png, which weights were trained; confusion.png, bits.png or numbers.png, what
it takes for what; wrong.png, the examples that it is most wrong about; attention.png, and for images gaze.png.

The pictures of parts (attention, and all below it) are drawn by parts.py.
A model file may add its own by a function pictures(model, x, labels) that yields (name, matplotlib figure); x: (1, T) tokens,
labels: their texts.
"""

import io
import math
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import answers
from harness import CENTERED, UserError, checkpoint, config, data, device
from harness.files import atomic
from harness.tokenizer import Tokenizer
from parts import PARTS, PiecewisePolynomial, links

matplotlib.use('Agg')
import matplotlib.pyplot as plt

SPAN = 128          # tokens of a window that are looked at, at most, by a model that predicts every one
SHOWN = 640         # tokens of surprise.png, at most
LOGITS = 1 << 24    # numbers of logits that are made at once
SEEN = 1e-6         # of total variation: less is rounding
READ = 1 << 13      # tokens that the layers of links are shown


# what can be measured of any model -------------------------------------------------------------------------------------------

@torch.no_grad()
def influence(model, x, tries=2, seed=0):
    """How much each input position moves each output position's prediction.

    x: (N, T) tokens.  Each token in turn is replaced by others of the text, `tries` times; what is returned, (outputs, T), is
    the mean total variation distance, 0 to 1, between the distributions before and after.  Rows are outputs, the last of
    them at the last input: fewer than T from a model that has a memory or predicts the last token alone.  Whatever is
    right of the diagonal is a leak."""
    generator = torch.Generator().manual_seed(seed)
    x = x.repeat(tries, 1)                                                          # (N * tries, T)
    before = model(x)[0].softmax(-1)                                                # (N * tries, T or 1, V)
    columns = []
    for s in tqdm(range(x.shape[1]), desc='who sees whom', leave=False, disable=None):
        changed = x.clone()
        new = x.flatten()[torch.randint(x.numel(), (len(x),), generator=generator).to(x.device)]
        changed[:, s] = torch.where(new == x[:, s], (new + 1) % model.config.vocab_size, new)
        columns.append((model(changed)[0].softmax(-1) - before).abs().sum(-1).mean(0) / 2)      # (T or 1,)
    return torch.stack(columns, dim=1).cpu().numpy()


@torch.no_grad()
def losses_by_position(model, x, y):
    """{tokens seen: losses in nats (N,)} of the windows x, y: (N, T).  A model that predicts the last token alone is shown
    texts of 1, 2, 4, ... tokens."""
    T, found = x.shape[1], {}
    batch_size = max(1, LOGITS // (T * model.config.vocab_size))
    lengths = [T] if model.predicts == 'every' else sorted({*(2 ** k for k in range(T.bit_length())), T})
    for length in lengths:
        parts = []
        for i in tqdm(range(0, len(x), batch_size), desc=f'{length} tokens of context', leave=False, disable=None):
            logits = model(x[i:i + batch_size, T - length:])[0]                     # (B, length or 1, V)
            parts.append(F.cross_entropy(logits.transpose(1, 2), y[i:i + batch_size, -logits.shape[1]:], reduction='none'))
        losses = torch.cat(parts).cpu().numpy()                                     # (N, length or 1)
        found |= dict(enumerate(losses.T, 1)) if model.predicts == 'every' else {length: losses[:, 0]}
    return found


@torch.no_grad()
def surprise(model, ids, first=1):
    """Bits that the tokens ids[first:] cost the model, each by the block_size tokens before it, and by those of its memory, if
    it has one: (len(ids) - first,).  A centered model is shown all that is beside them."""
    ids, T, M = torch.as_tensor(ids), model.config.block_size, getattr(model, 'memory', 0)
    where, bits = next(model.parameters()).device, []
    batch_size = max(1, min(64, LOGITS // (T * model.config.vocab_size)))

    if getattr(model, 'centered', False):
        log_p = model.both_sides(ids[None].to(where))[0].log_softmax(-1).cpu()      # (len(ids), V)
        return (-log_p[range(first, len(ids)), ids[first:]] / math.log(2)).numpy()

    def context(end):
        return T + M if end >= T + M else min(end, T)
    ends = list(range(first, len(ids)))
    while ends:
        length = context(ends[0])           # windows of one length go together
        group = [e for e in ends if context(e) == length][:batch_size]
        x = torch.stack([ids[e - length:e] for e in group]).to(where)
        log_p = model(x)[0][:, -1].log_softmax(-1).cpu()                            # (B, V)
        bits += (-log_p[range(len(group)), ids[group]] / math.log(2)).tolist()
        ends = ends[len(group):]
    return np.array(bits)


# pictures of any model ------------------------------------------------------------------------------------------------------

def draw_influence(matrix, title, centered=False):
    """The matrix with its diagonal, and what it says of distance.  centered: the model sees both sides of what it predicts, the
    token after the output's position, but must not see that one."""
    from matplotlib.colors import LogNorm
    outputs, T = matrix.shape
    before, every = T - outputs, outputs > 1        # inputs in front of the first output
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout='constrained', width_ratios=(1.1, 1))
    image = left.imshow(np.maximum(matrix, 1e-9), norm=LogNorm(1e-4, 1), cmap='magma_r', interpolation='nearest',
                        aspect='equal' if every else 'auto', extent=(-before, outputs, outputs, 0))
    fig.colorbar(image, ax=left, label='how far the prediction moves (total variation)')
    if every:
        steps = np.arange(outputs + 1).repeat(2)
        left.plot(steps[1:], steps[:-1], color='#00b4d8', lw=1.5)
        left.set_ylabel('output position')
    else:
        left.set_yticks([])
        left.set_box_aspect(0.12)
    seen = np.array([np.mean(np.diagonal(matrix, before - d)) for d in range(T)])
    leak = (np.diagonal(matrix, 1) if centered else np.triu(matrix, before + 1)).max(initial=0)
    left.set(xlabel='input position', xlim=(-before, outputs), ylim=(outputs, 0))
    left.set_title(title, parse_math=False)     # names of folders may have a $ in them
    right.plot(np.arange(T) + 1, np.maximum(seen, 1e-9), color='#d1495b', lw=2)
    right.set(xlabel='tokens back (1: the newest)', ylabel='mean over the window', yscale='log', ylim=(1e-5, 1.2))
    said, unseen = f'sees {reach(seen)} of {T} tokens back', 'later ones'
    if centered:
        ahead = np.array([np.mean(np.diagonal(matrix, 1 + d)) for d in range(1, T - 1)])
        right.plot(np.arange(len(ahead)) + 1, np.maximum(ahead, 1e-9), color='#2e86ab', lw=2, ls='--', label='after it')
        right.lines[0].set_label('before the predicted token')
        right.legend()
        right.set_xlabel('tokens away (1: next to the predicted one)')
        said, unseen = f'sees {reach(seen)} before and {reach(ahead)} after', 'the one between'
    found = f'LEAKS: {leak:.2g}' if leak > SEEN else 'nothing'
    right.set_title(f'{said}; {found} from {unseen}', fontsize=10)
    if T > 20:
        right.set_xscale('log')
    for ax in (left, right):
        ax.spines[['top', 'right']].set_visible(False)
    right.grid(alpha=0.3)
    return fig


def reach(seen):
    """How far there is anything to be seen."""
    return np.flatnonzero(np.append(True, seen > SEEN))[-1]


def draw_context(found, title):
    n = np.array(sorted(found))
    mean = np.array([found[i].mean() for i in n])
    error = np.array([found[i].std() / math.sqrt(len(found[i])) for i in n])
    fig, ax = plt.subplots(figsize=(7, 4), layout='constrained')
    ax.fill_between(n, mean - error, mean + error, color='#2e86ab', alpha=0.25, lw=0)
    ax.plot(n, mean, color='#2e86ab', lw=1.5, marker='o' if len(n) < 20 else None)
    ax.set_xscale('log', base=2)
    ax.set(xlabel='tokens seen', ylabel='cross-entropy (nats)')
    ax.set_title(f'{title}: {mean[0]:.2f} after 1 token, {mean[-1]:.2f} after {n[-1]}', parse_math=False)
    ax.xaxis.set_major_formatter('{x:g}')
    ax.grid(alpha=0.3)
    ax.spines[['top', 'right']].set_visible(False)
    return fig


def draw_surprise(labels, bits, title, longest=80):
    """The text of the tokens in a grid of characters, each on the colour of its surprise."""
    width = min(longest, max(map(len, ''.join(labels).split('\n'))) + 1)
    cells, row, column = [], 0, 0
    for label, b in zip(labels, bits, strict=True):
        for c in label:
            if column == width:
                row, column = row + 1, 0
            cells.append((row, column, '⏎' if c == '\n' else c, b))
            row, column = (row + 1, 0) if c == '\n' else (row, column + 1)
    rows = row + 1
    fig, ax = plt.subplots(figsize=(0.13 * max(width, 40) + 1, 0.24 * rows + 1.2), layout='constrained')
    shown = np.full((rows, width), np.nan)
    for r, c, _, b in cells:
        shown[r, c] = b
    top = 8
    image = ax.imshow(shown, cmap='YlOrRd', vmin=0, vmax=top, aspect='auto', extent=(0, width, rows, 0))
    for r, c, char, b in cells:
        ax.text(c + 0.5, r + 0.55, char if char.isprintable() else '·', ha='center', va='center', family='DejaVu Sans Mono',
                fontsize=9, color='white' if b > 0.7 * top else 'black', parse_math=False)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f'{title}: {np.mean(bits):.2f} bits a token', parse_math=False)
    ax.spines[:].set_visible(False)
    fig.colorbar(image, ax=ax, label='surprise (bits)', fraction=0.05, pad=0.01)
    return fig


# ------------------------------------------------------------------------------------------------------------------------------

def pictures(model, arch, name, tokenizer, ids, text=None):
    """Yields (name, figure) of all there is to see.  name: of the run.  ids: the text to look at.  text: the data set, or None
    if it is not at hand: then who sees whom is asked of `ids` alone, and what context is worth is left out."""
    where, T = next(model.parameters()).device, model.config.block_size
    x = torch.tensor([ids[-T:]], device=where)
    labels = [tokenizer.token_bytes(i).decode(errors='replace') for i in ids]
    windows, before, centered = x, getattr(model, 'memory', 0), getattr(model, 'centered', False)
    if text is not None:
        windows, _ = text.rows('val', text.val_starts(9, T)[1:], T, before)     # the first has nothing before it
    yield 'influence', draw_influence(influence(model, span(model, windows).to(where)), f'{name}: who sees whom', centered)
    if text is not None and not centered:       # whose positions differ in how much there is on either side
        many = text.rows('val', text.val_starts(max(256, (1 << 18) // T), T), T, before)
        found = losses_by_position(model, *(t.to(where) for t in many))
        yield 'context', draw_context(found, f'{name}, loss by context')
    first = max(1, len(ids) - SHOWN)
    if first > 1:       # what is left begins with a line, if there is one
        first = next((i for i in range(first, min(first + 80, len(ids) - 1)) if labels[i - 1] == '\n'), first)
    yield 'surprise', draw_surprise(labels[first:], surprise(model, ids, first),
                                    f'{name}{", by both sides" * centered}')
    drawn = [draw for part, draw in PARTS.items() if any(isinstance(m, part) for m in model.modules())]
    for draw in [*drawn, *([arch.pictures] if hasattr(arch, 'pictures') else [])]:
        shown = span(model, x)
        yield from draw(model, shown, labels[-shown.shape[1]:])
    if any(isinstance(m, PiecewisePolynomial) for m in model.modules()):
        if text is not None:
            many, _ = text.rows('val', text.val_starts(max(1, READ // T), T), T)
        else:
            many = torch.tensor(ids[-max(1, len(ids) // T) * T:]).view(-1, min(T, len(ids)))
        names = [tokenizer.token_bytes(i).decode(errors='replace') for i in range(tokenizer.n_vocab)]
        yield from links(model, many.to(where), names)


def span(model, x):
    """The part of the windows x (B, T) that is looked at: all of what a model needs whole, else not too much to be seen."""
    return x if model.predicts == 'last' or getattr(model, 'memory', 0) else x[:, -SPAN:]


def png(figure, dpi=110):
    f = io.BytesIO()
    figure.savefig(f, format='png', dpi=dpi)
    plt.close(figure)
    return f.getvalue()


def write(drawn, args, path):
    """The figures (name, figure) as PNGs, where --out says, or beside the checkpoint `path`."""
    out = Path(args.out or path.parent / 'look')
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn:
            with atomic(out / f'{name}.png') as f:
                f.write(png(figure))
            print(f'{out / name}.png', flush=True)
    except OSError as e:
        raise UserError(f'{out} cannot be written ({e.strerror}): say --out=...') from None


def main(argv):
    parser = config.Arguments(description=__doc__)
    parser.add_argument('run', help='the folder of a run (its best checkpoint), or a checkpoint file')
    parser.add_argument('--prompt', help='the text to look at (default: some of the validation text)')
    parser.add_argument('--out', help='where the pictures go (default: look/ in the folder of the run)')
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:N')
    args = parser.parse_args(argv)
    path = checkpoint.find(args.run)
    model, content = checkpoint.load_model(path)
    model.to(device.pick_device(args.device, 0, 1))
    if getattr(model, 'predicts', None) == 'task':
        if args.prompt is not None:
            raise UserError(f'--prompt: {args.run} answers a task, and looks at examples of its validation split')
        task = data.open_data(content['loop']['dataset'], make=False)
        if task.fingerprint != content['data']['fingerprint']:
            raise UserError(f'data/{task.folder.name} is not what {args.run} was trained on: prepare it as it was')
        write(answers.pictures(model, path.resolve().parent.name, task), args, path)
        return
    tokenizer = Tokenizer(content['data']['tokenizer'])
    fingerprint, leaking, _ = content['data']['fingerprint'].partition('-leaking')
    folder, text, T = data.local(content['loop']['dataset']), None, model.config.block_size
    if (folder / 'meta.json').exists() and data.read_meta(folder)['fingerprint'] == fingerprint:
        text = data.TextData(folder)
        if leaking:
            print('this run was trained with leaking_split: what is shown of the validation text was trained on')
    if args.prompt is not None:
        ids = tokenizer.encode(args.prompt)
        if len(ids) < 2:
            raise UserError(f'--prompt has {len(ids)} token{"s" * (len(ids) != 1)}: at least 2 are needed to see anything')
    elif text is None:
        raise UserError(f'data/{folder.name} is not here, or is not what the run was trained on: prepare it, or say '
                        f'--prompt "..."')
    else:
        middle = len(text.tokens['val']) // 2
        ids = text.tokens['val'][middle:middle + T + SHOWN].tolist()
    run, arch = path.resolve().parent.name, config.load_arch(content['arch'])
    write(pictures(model, arch, run, tokenizer, ids, text), args, path)
    if getattr(model, 'centered', False):
        print(f'context.png was left out: {CENTERED}')
    elif text is None:
        print(f'context.png was left out: data/{folder.name} is not what the run was trained on')


if __name__ == '__main__':
    main(sys.argv[1:])
