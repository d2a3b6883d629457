"""
Pictures of a model that answers a task: which of its weights were trained, what it confuses, where it is most wrong, where it
looks. All on the validation split.

N examples   B batch   T tokens   D features per token   O outputs   H heads, or the height of an image   P the side of a patch
"""

import functools
import math
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import PowerNorm

from harness import palette
from views.attention import attention, attention_maps
from views.behaviour import progress

EXAMPLES = 5000     # of the validation split that are evaluated, at most
WORST = 12          # examples in wrong.png
BITS = 40           # answers of more bits are drawn in part


@torch.no_grad()
def evaluate(model, task, indices, batch_size=50):
    """(logits (N, O), y, scores (N, 4)) of validation examples; scores: see TaskData.score()."""
    device, logits, ys = next(model.parameters()).device, [], []
    for i in progress(range(0, len(indices), batch_size), 'answers'):
        x, y = task.examples('val', indices[i:i + batch_size])
        logits.append(model(x.to(device))[0].float().cpu())
        ys.append(y)
    logits, ys = torch.cat(logits), torch.cat(ys)
    return logits, ys, task.score(logits, None, ys)


def class_names(task):
    return task.meta.get('labels') or list(map(str, range(task.outputs)))


def views(model, task):
    """{name: function that yields (name, figure)} for a run on a task.  task: its TaskData."""
    indices = task.val_indices(EXAMPLES, model.config.block_size)

    @functools.cache
    def answers():
        logits, y, scores = evaluate(model, task, indices)
        return logits, y, scores, task.format_metrics(task.total([scores]))

    def confusion():
        logits, y, _, title = answers()
        yield 'confusion', draw_confusion(logits.argmax(-1).numpy(), y.numpy(), task, title)

    def bits():
        logits, y, _, title = answers()
        yield 'bits', draw_bits(((logits > 0) == (y > 0.5)).float().mean(0).numpy(), task, title)

    def numbers():
        logits, y, _, title = answers()
        mean, deviation = task.y_standard
        yield 'numbers', draw_numbers(logits[:, 0].numpy() * deviation + mean, y.numpy() * deviation + mean, title)

    def wrong():
        logits, y, scores, _ = answers()
        worst = scores[:, 0].argsort(descending=True)[:WORST]
        yield 'wrong', draw_wrong(task, indices[worst], logits[worst], y[worst], scores[worst, 0])

    def first():
        return task.examples('val', indices[:1])[0].to(next(model.parameters()).device)
    by_kind = {'classify': confusion, 'bits': bits, 'regress': numbers}[task.kind]
    found = {'trained': lambda: [('trained', draw_trained(model))], by_kind.__name__: by_kind, 'wrong': wrong}
    if attention_maps(model, first()):
        found['attention'] = lambda: attention(model, first())
        if task.draw.get('as') == 'image':
            found['gaze'] = lambda: [('gaze', draw_gaze(model, first(), task, indices[0]))]
    return found


def draw_trained(model):
    """Which weights were trained: a row for each block and each part around the blocks, a column for the modules of a block."""
    cells, rows, columns = {}, [], []
    for name, p in model.named_parameters():
        path = name.split('.')
        row, rest = (f'block {int(path[1]) + 1}', path[2]) if path[0] == 'h' else (path[0], '')
        for key, keys in ((row, rows), (rest, columns)):
            if key not in keys:
                keys.append(key)
        trained, every = cells.get((row, rest), (0, 0))
        cells[row, rest] = (trained + p.numel() * p.requires_grad, every + p.numel())
    rows.sort(key=lambda row: row not in ('input', 'cls', 'wpe', 'ln'))       # in the order of the forward pass
    fig, ax = plt.subplots(figsize=(1.6 + 1.5 * len(columns), 1 + 0.36 * len(rows)), layout='constrained')
    for (row, column), (trained, every) in cells.items():
        i, j = rows.index(row), columns.index(column)
        ax.add_patch(plt.Rectangle((j, i), 1, 1, color='#d1495b' if trained else '#cfe0ee', lw=0))
        ax.text(j + 0.5, i + 0.5, f'{every:,}', ha='center', va='center', fontsize=9, color='white' if trained else 'black')
    ax.set(xlim=(0, len(columns)), ylim=(len(rows), 0), xticks=np.arange(len(columns)) + 0.5, yticks=np.arange(len(rows)) + 0.5)
    ax.set_xticklabels(columns, parse_math=False)
    ax.set_yticklabels(rows, parse_math=False)
    ax.tick_params(length=0, top=False)
    ax.spines[:].set_visible(False)
    trained, every = (sum(c[i] for c in cells.values()) for i in (0, 1))
    ax.set_title(f'{trained:,} of {every:,} weights trained (red)', fontsize=10)
    return fig


def draw_confusion(answers, y, task, title):
    """The confusion matrix: a row for each true class, coloured by shares of that class."""
    counts = np.zeros((task.outputs, task.outputs))
    np.add.at(counts, (y, answers), 1)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(11, max(5, 2 + 0.32 * task.outputs))
    fig, ax = plt.subplots(figsize=(size + 1, size), layout='constrained')
    image = ax.imshow(share, cmap='Blues', norm=PowerNorm(0.5, 0, 1))
    if task.outputs <= 12:
        for i, j in zip(*np.nonzero(counts), strict=True):
            ax.text(j, i, f'{counts[i, j]:.0f}', ha='center', va='center', fontsize=9,
                    color='white' if share[i, j] > 0.3 else 'black')
    if task.outputs <= 40:
        names = class_names(task)
        ax.set_xticks(range(task.outputs), names, rotation=90 if max(map(len, names)) > 2 else 0, parse_math=False)
        ax.set_yticks(range(task.outputs), names, parse_math=False)
    ax.set(xlabel='answer', ylabel='expected')
    ax.set_title(textwrap.fill(title, 12 * round(size)), fontsize=10, parse_math=False)
    bar = fig.colorbar(image, ax=ax, fraction=0.04, label='share of the true class')
    bar.set_ticks([0, 0.01, 0.1, 0.25, 0.5, 1], labels=['0', '1 %', '10 %', '25 %', '50 %', '100 %'])
    return fig


def draw_bits(right, task, title):
    """right: the share of examples in which each bit is right, (outputs,)."""
    fig, ax = plt.subplots(figsize=(8, 3.6), layout='constrained')
    ax.bar(np.arange(len(right)) + 1, right, width=0.8 if len(right) < 200 else 1, color='#2e86ab', label='the model')
    ax.axhline(task.chance()['accuracy'], color='#d1495b', ls='--', lw=1.5, label=task.chance_answer('accuracy'))
    ax.set(xlabel='bit', ylabel='share of examples in which\nthe bit is right', ylim=(0, 1.02))
    if len(right) <= 20:
        ax.set_xticks(range(1, len(right) + 1))
    ax.set_title(title, fontsize=10, parse_math=False)
    fig.legend(loc='outside lower center', ncols=2, frameon=False)
    ax.spines[['top', 'right']].set_visible(False)
    return fig


def draw_numbers(answers, y, title):
    fig, ax = plt.subplots(figsize=(5.2, 5.2), layout='constrained')
    ax.plot(y, answers, '.', color='#2e86ab', alpha=0.35, ms=5, mew=0)
    ends = [min(y.min(), answers.min()), max(y.max(), answers.max())]
    ax.plot(ends, ends, color='#d1495b', lw=1)
    ax.set(xlabel='expected', ylabel='answer')
    ax.set_title(textwrap.fill(title, 60), fontsize=10, parse_math=False)
    ax.spines[['top', 'right']].set_visible(False)
    return fig


# examples -------------------------------------------------------------------------------------------------------------------

def unpatched(x, draw):
    """(T, D) patches in reading order, each (channel, row, column), as an image (H, W, channels), as which x may come."""
    if x.ndim == 3:
        return x
    P, C = draw['patch'], draw['channels']
    rows, columns = draw['height'] // P, draw['width'] // P
    x = x.reshape(rows, columns, C, P, P).transpose(0, 3, 1, 4, 2)                  # (rows, P, columns, P, C)
    return x.reshape(draw['height'], draw['width'], C)


def show_image(ax, image):
    ax.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap='gray', vmin=0, vmax=255)


def draw_example(ax, x, draw):
    """One example, as its file has it.  draw: see write_task() in harness/tasks.py."""
    ax.set(xticks=[], yticks=[])
    kind = draw.get('as', '')
    if kind == 'image':
        show_image(ax, unpatched(x, draw))
    elif kind == 'images':
        columns = math.ceil(math.sqrt(len(x)))
        one = [unpatched(token[None], {**draw, 'patch': draw['height']}) for token in x]
        one += [np.zeros_like(one[0])] * (-len(one) % columns)
        show_image(ax, np.concatenate([np.concatenate(one[i:i + columns], 1) for i in range(0, len(one), columns)]))
    elif kind == 'palette':
        show_image(ax, palette.picture(x.tolist(), draw['palette']))
    elif kind == 'wave':
        wave = x.ravel()
        ax.plot(np.arange(len(wave)) / draw['rate'], wave, lw=0.5, color='#2e86ab')
        ax.set(ylim=(-max(1, np.abs(wave).max()), max(1, np.abs(wave).max())))
    elif kind == 'text':
        tokens = [draw['tokens'][i] for i in x if i]            # 0 is padding
        space = '' if all(len(t) == 1 or (t[0] == '[' and t[-1] == ']') for t in tokens) or len(tokens) > 90 else ' '
        ax.text(0.5, 0.5, '\n'.join(textwrap.wrap(space.join(tokens), 34)[:9]), ha='center', va='center', fontsize=7,
                family='DejaVu Sans Mono', parse_math=False, transform=ax.transAxes)
    elif x.ndim == 2:
        ax.imshow(x, cmap='Greys' if kind == 'bits' else 'RdBu', aspect='auto', interpolation='nearest')
    else:
        ax.text(0.5, 0.5, textwrap.fill(' '.join(map(str, x)), 34), ha='center', va='center', fontsize=8,
                transform=ax.transAxes)
    ax.spines[:].set_color('#bbbbbb')


def draw_wrong(task, indices, logits, y, losses):
    """The examples of the highest loss, with the expected and the given answer above each, or for bits below it."""
    bits = task.kind == 'bits'
    fig, axes = plt.subplots(3, 4, figsize=(11, 9 if bits else 7.6), layout='constrained')
    for ax in axes.flat[len(indices):]:
        ax.set_axis_off()
    for ax, i, answer, truth, loss in zip(axes.flat, indices, logits, y, losses, strict=False):
        draw_example(ax, task.splits['val'][0][i], task.draw)
        if task.kind == 'classify':
            names, p = class_names(task), answer.softmax(-1)
            text = f'expected {names[truth]}, answered {names[answer.argmax()]} ({p.max():.0%})'
        elif bits:
            given, expected = (answer > 0).numpy(), (truth > 0.5).numpy()
            text = f'{(given != expected).sum()} of {len(expected)} bits wrong'
            draw_answer_bits(ax.inset_axes((0.15, -0.34, 0.85, 0.28)), expected, given)
        else:
            mean, deviation = task.y_standard
            text = f'expected {truth * deviation + mean:g}, answered {answer[0] * deviation + mean:.1f}'
        ax.set_title(f'{textwrap.fill(text, 40)}\nloss {loss:.2f}', fontsize=8, parse_math=False)
    fig.suptitle('the validation examples with the highest loss' + ' (black: 1, red: wrong)' * bits, fontsize=10)
    return fig


def draw_answer_bits(ax, expected, given):
    """The bits of an answer, black for 1, in two rows; wrong ones in red.  Of a long answer, those from the first error on."""
    first = int((expected != given).argmax()) // BITS * BITS if len(expected) > BITS else 0
    expected, given = expected[first:first + BITS], given[first:first + BITS]
    colours = np.array([[0.93, 0.93, 0.93], [0.1, 0.1, 0.1], [1, 0.6, 0.55], [0.8, 0.1, 0.1]])      # 0, 1, wrong 0, wrong 1
    cells = np.stack([expected, given + 2 * (expected != given)]).astype(int)
    ax.imshow(colours[cells], aspect='auto', interpolation='nearest')
    if len(expected) <= 12:
        for j, pair in enumerate(zip(expected, given, strict=True)):
            for row, bit in enumerate(pair):
                ax.text(j, row, int(bit), ha='center', va='center', fontsize=8, color='white' if bit else 'black')
    ax.set_yticks([0, 1], ['expected', 'answer'], fontsize=7)
    ax.set_xticks([])
    if first or len(expected) == BITS:
        ax.set_xlabel(f'bits {first + 1} to {first + len(expected)}', fontsize=7)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


@torch.no_grad()
def draw_gaze(model, x, task, i):
    """The attention of the position that gives the answer to each patch, or the mean of all positions if that of all patches
    does; a panel for each layer, all on one scale."""
    draw, maps = task.draw, attention_maps(model, x)
    image = unpatched(np.asarray(task.splits['val'][0][i]), draw)
    all_answer = getattr(model.config, 'readout', None) == 'mean'
    at = slice(None) if all_answer else [0] if getattr(model, 'cls', None) is not None else [-1]
    rows, columns = draw['height'] // draw['patch'], draw['width'] // draw['patch']
    T = maps[0].shape[-1]
    weights = [m.mean(0)[at].mean(0)[-rows * columns:].reshape(rows, columns) for m in maps]    # the mean over the heads
    norm = PowerNorm(0.5, 0, max(4 / T, *(w.max() for w in weights)))
    fig, axes = plt.subplots(1, len(maps) + 1, figsize=(2.2 * (len(maps) + 1) + 1, 2.9), layout='constrained')
    show_image(axes[0], image)
    axes[0].set_title('the image', fontsize=9)
    for k, (ax, w) in enumerate(zip(axes[1:], weights, strict=True), 1):
        show_image(ax, image)
        overlay = ax.imshow(w, cmap='inferno', norm=norm, alpha=0.75,
                            extent=(-0.5, draw['width'] - 0.5, draw['height'] - 0.5, -0.5))
        ax.set_title(f'layer {k}', fontsize=9)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    bar = fig.colorbar(overlay, ax=axes, fraction=0.04, label='attention weight')
    bar.set_ticks([0, 1 / T, norm.vmax], labels=['0', f'{1 / T:.3f} = 1/{T}, uniform', f'{norm.vmax:.3f}'])
    bar.ax.axhline(1 / T, color='white', lw=1.5)
    bar.ax.tick_params(labelsize=8)
    fig.suptitle(f'attention of {"all positions" if all_answer else "the position that gives the answer"}, mean over the heads',
                 fontsize=10)
    return fig
