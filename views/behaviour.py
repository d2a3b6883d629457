"""
Measurements of any language model, and their pictures: influence, loss by context, surprise.

N windows   B batch   T tokens   V vocabulary
"""

import io
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from harness.log import Heartbeat

SPAN = 128          # tokens of a window that are measured, at most, for a model that predicts at every position
LOGITS = 1 << 24    # logits that are computed at once
SEEN = 1e-6         # total variation that counts as an influence: less is rounding


def progress(items, title, count=None):
    """Iterates over `count` items (None: their number) with a progress bar, or with a line every 20 seconds where stderr is not
    a terminal."""
    heartbeat, count = Heartbeat(), len(items) if count is None else count
    for n, item in enumerate(tqdm(items, desc=title, leave=False, disable=None, total=count), 1):
        yield item
        heartbeat(f'{title}: {n} of {count}')


def influence(model, x, tries=2, seed=0, first=0):
    """How far the prediction at each position moves when the token at another position is replaced.

    x: (N, T) tokens.  Each position in turn gets a random other token of the text, `tries` times.  Returns the mean total
    variation distance, 0 to 1, between the predicted distributions before and after: (outputs, T).  The last output is at
    the last input; there are fewer outputs than T if the model has a memory or predicts only the token after the window.
    Anything right of that diagonal is a leak.  first: the first position of both that is measured.

    The output of a bidirectional model is its prediction of the token at the same position, from infill(): on the diagonal, an
    influence is a leak.  A pass of infill() may cost as much as T passes, so two windows are measured."""
    columns = [*progress(influences(model, x, tries, seed, first), 'influence', x.shape[1] - first)]
    return torch.stack(columns, dim=1).cpu().numpy()


@torch.no_grad()
def influences(model, x, tries=2, seed=0, first=0):
    """Yields the columns (outputs,) of influence(), each of which takes a pass of the model."""
    generator = torch.Generator().manual_seed(seed)
    x, tries = (x[:2], 1) if model.bidirectional else (x, tries)
    x, read = x.repeat(tries, 1), model.infill if model.bidirectional else lambda x: model(x)[0]    # (N * tries, T)
    before = read(x).softmax(-1)                                                    # (N * tries, T or 1, V)
    for s in range(first, x.shape[1]):
        changed = x.clone()
        new = x.flatten()[torch.randint(x.numel(), (len(x),), generator=generator).to(x.device)]
        changed[:, s] = torch.where(new == x[:, s], (new + 1) % model.config.vocab_size, new)
        yield (read(changed).softmax(-1) - before).abs().sum(-1).mean(0)[first:] / 2    # (T - first or 1,)


@torch.no_grad()
def losses_by_position(model, x, y):
    """{tokens of context: losses in nats (N,)} for the windows x, y: (N, T).  A model that predicts only the token after the
    window reads the last 1, 2, 4, ... tokens of each."""
    T, found = x.shape[1], {}
    batch_size = max(1, LOGITS // (T * model.config.vocab_size))
    lengths = [T] if model.predicts == 'every' else sorted({*(2 ** k for k in range(T.bit_length())), T})
    for length in lengths:
        parts = []
        for i in progress(range(0, len(x), batch_size), f'{length} tokens of context'):
            logits = model(x[i:i + batch_size, T - length:])[0]                     # (B, length or 1, V)
            parts.append(F.cross_entropy(logits.mT, y[i:i + batch_size, -logits.shape[1]:], reduction='none'))
        losses = torch.cat(parts).cpu().numpy()                                     # (N, length or 1)
        found |= dict(enumerate(losses.T, 1)) if model.predicts == 'every' else {length: losses[:, 0]}
    return found


@torch.no_grad()
def surprise(model, ids, first=1):
    """-log2 p of the tokens ids[first:], in bits, given the block_size tokens before each and those of the model's memory:
    (len(ids) - first,).  A bidirectional model is given all other tokens."""
    ids, T, M = torch.as_tensor(ids), model.config.block_size, model.memory
    device, bits = next(model.parameters()).device, []
    batch_size = max(1, min(64, LOGITS // (T * model.config.vocab_size)))

    if model.bidirectional:
        log_p = model.infill(ids[None].to(device))[0].log_softmax(-1).cpu()         # (len(ids), V)
        return (-log_p[range(first, len(ids)), ids[first:]] / math.log(2)).numpy()

    def context(end):
        return T + M if end >= T + M else min(end, T)
    ends = list(range(first, len(ids)))
    while ends:
        length = context(ends[0])           # a batch has windows of one length
        group = [e for e in ends[:batch_size] if context(e) == length]
        x = torch.stack([ids[e - length:e] for e in group]).to(device)
        log_p = model(x)[0][:, -1].log_softmax(-1).cpu()                            # (B, V)
        bits += (-log_p[range(len(group)), ids[group]] / math.log(2)).tolist()
        ends = ends[len(group):]
    return np.array(bits)


# pictures -----------------------------------------------------------------------------------------------------------------

def draw_influence(matrix, title='influence', bidirectional=False):
    """The matrix of influence(), and its mean at each distance.  bidirectional: the model sees both sides of the token that it
    predicts, at the output's position; only that one must have no influence."""
    from matplotlib.colors import LogNorm
    outputs, T = matrix.shape
    before, every = T - outputs, outputs > 1        # inputs in front of the first output
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout='constrained', width_ratios=(1.1, 1))
    image = left.imshow(np.maximum(matrix, 1e-9), norm=LogNorm(1e-4, 1), cmap='magma_r', interpolation='nearest',
                        aspect='equal' if every else 'auto', extent=(-before, outputs, outputs, 0))
    fig.colorbar(image, ax=left, label='change of the prediction (total variation, 0 to 1)')
    if every:
        steps = np.arange(outputs + 1).repeat(2)
        label = 'the predicted token is left of this line' if bidirectional else \
            'a prediction may only depend on tokens left of this line'
        left.plot(steps[1:], steps[:-1], color='#00b4d8', lw=1.5, label=label)
        left.set_ylabel('position of the prediction')
        fig.legend(*left.get_legend_handles_labels(), loc='outside lower left', fontsize=8, frameon=False)
    else:
        left.set_yticks([])
        left.set_box_aspect(0.12)
    left.set(xlabel='position of the replaced token', xlim=(-before, outputs), ylim=(outputs, 0))
    left.set_title(title, parse_math=False)
    back = np.array([np.mean(np.diagonal(matrix, before - d)) for d in range(bidirectional, T)])
    leak = (np.diagonal(matrix) if bidirectional else np.triu(matrix, before + 1)).max(initial=0)
    right.plot(np.arange(len(back)) + 1, np.maximum(back, 1e-9), color='#d1495b', lw=2, label='mean over the window')
    right.set(xlabel='tokens back (1: the newest)', ylabel='influence', yscale='log', ylim=(3e-7, 1.2))
    text, forbidden = f'depends on {reach(back)} of {T} tokens back', 'later tokens'
    if bidirectional:
        ahead = np.array([np.mean(np.diagonal(matrix, d)) for d in range(1, T)])
        right.plot(np.arange(len(ahead)) + 1, np.maximum(ahead, 1e-9), color='#2e86ab', lw=2, ls='--', label='tokens after it')
        right.lines[0].set_label('tokens before the predicted one')
        right.set_xlabel('tokens away (1: next to the predicted one)')
        text, forbidden = f'depends on {reach(back)} tokens before and {reach(ahead)} after', 'itself'
    right.axhline(SEEN, color='black', lw=1, ls=':', label='threshold 1e-6: less is rounding')
    right.legend(fontsize=8, frameon=False)
    right.set_title(f'{text}; {f"LEAK of {leak:.2g}" if leak > SEEN else "no influence"} from {forbidden}', fontsize=9)
    if T > 20:
        right.set_xscale('log')
    for ax in (left, right):
        ax.spines[['top', 'right']].set_visible(False)
    right.grid(alpha=0.3)
    return fig


def reach(values):
    """The largest distance, from 1, whose influence is above SEEN; 0 if there is none."""
    return np.flatnonzero(np.append(True, values > SEEN))[-1]


def draw_context(losses):
    """losses: as losses_by_position() returns them."""
    n = np.array(sorted(losses))
    mean = np.array([losses[i].mean() for i in n])
    error = np.array([losses[i].std() / math.sqrt(len(losses[i])) for i in n])
    fig, ax = plt.subplots(figsize=(7, 4), layout='constrained')
    ax.plot(n, mean, color='#2e86ab', lw=1.5, marker='o' if len(n) < 20 else None,
            label=f'mean of {len(losses[n[0]]):,} windows')
    ax.fill_between(n, mean - error, mean + error, color='#2e86ab', alpha=0.25, lw=0, label='± standard error')
    ax.set_xscale('log', base=2)
    ax.set(xlabel='tokens of context', ylabel='cross-entropy (nats)')
    ax.set_title(f'loss by context: {mean[0]:.2f} after 1 token, {mean[-1]:.2f} after {n[-1]}', fontsize=10)
    ax.xaxis.set_major_formatter('{x:g}')
    ax.legend(frameon=False)
    ax.grid(alpha=0.3)
    ax.spines[['top', 'right']].set_visible(False)
    return fig


def draw_surprise(labels, bits, longest=80):
    """The text of the tokens in a grid of characters, each on the colour of its surprise.  nan: no prediction."""
    width = min(longest, max(map(len, ''.join(labels).split('\n'))) + 1)
    cells, row, column = [], 0, 0
    for label, b in zip(labels, bits, strict=True):
        for c in label:
            if column == width:
                row, column = row + 1, 0
            cells.append((row, column, '⏎' if c == '\n' else c, b))
            row, column = (row + 1, 0) if c == '\n' else (row, column + 1)
    rows = cells[-1][0] + 1
    fig, ax = plt.subplots(figsize=(0.13 * max(width, 40) + 1, 0.24 * rows + 1.4), layout='constrained')
    grid = np.full((rows, width), np.nan)
    for r, c, _, b in cells:
        grid[r, c] = b
    top = 8
    image = ax.imshow(grid, cmap='YlOrRd', vmin=0, vmax=top, aspect='auto', extent=(0, width, rows, 0))
    for r, c, char, b in cells:
        if np.isnan(b):
            ax.add_patch(plt.Rectangle((c, r), 1, 1, color='#d9d9d9', lw=0))
        ax.text(c + 0.5, r + 0.55, char if char.isprintable() else '·', ha='center', va='center', family='DejaVu Sans Mono',
                fontsize=9, color='white' if b > 0.7 * top else 'black', parse_math=False)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f'surprise: {np.nanmean(bits):.2f} bits per token' + ' (grey: no prediction)' * bool(np.isnan(bits).any()),
                 fontsize=10)
    ax.spines[:].set_visible(False)
    fig.colorbar(image, ax=ax, label='bits', fraction=0.05, pad=0.01, extend='max')
    return fig


def excerpt(model, x, pictures=False):
    """(the part of the windows x (B, T) to read, the first position of it to measure): at most SPAN positions, or all if the
    model must have a whole window.  pictures: pixels keep their positions in the window, and its middle is measured."""
    T = x.shape[1]
    if model.predicts == 'last' or model.memory:
        return x, 0
    if not pictures:
        return x[:, -SPAN:], 0
    end = min(T, SPAN if model.bidirectional else (T + SPAN) // 2)      # infill() is slow
    return x[:, :end], max(0, end - SPAN)


def png(figure, dpi=110):
    """The figure as the bytes of a PNG.  Closes it."""
    f = io.BytesIO()
    figure.savefig(f, format='png', dpi=dpi)
    plt.close(figure)
    return f.getvalue()
