"""
Pictures of a model that answers a task, for look.py: which of its weights were trained, where it looks, what it takes for what,
and where it is most wrong. All on the validation split.

N examples   B batch   T tokens   D numbers a token   O outputs   H heads, or the height of an image   P the side of a patch
"""

import math
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

import model as gpt
from harness.tasks import METRICS, shown
from parts import attention, attention_maps

EXAMPLES = 5000     # of the validation split that are looked at, at most
WORST = 12          # that are drawn


@torch.no_grad()
def answer(model, task, where, batch_size=50):
    """(logits (N, O), y, scores (N, 4)) of the validation examples `where`; scores: see TaskData.score()."""
    device, logits, ys = next(model.parameters()).device, [], []
    for i in tqdm(range(0, len(where), batch_size), desc='answering', leave=False, disable=None):
        x, y = task.rows('val', where[i:i + batch_size])
        logits.append(model(x.to(device))[0].float().cpu())
        ys.append(y)
    logits, ys = torch.cat(logits), torch.cat(ys)
    return logits, ys, task.score(logits, ys)


def pictures(model, name, task):
    """Yields (name, figure) of all there is to see.  name: of the run.  task: its TaskData."""
    yield 'trained', draw_trained(model, name)
    where = task.val_starts(EXAMPLES, model.config.block_size)
    logits, y, scores = answer(model, task, where)
    found = task.total([scores])
    told = f'{name}: ' + ', '.join(f'{METRICS[k]} {shown(k, v)} (guessing {shown(k, task.guess()[k])})'
                                   for k, v in found.items() if k in METRICS)
    if task.kind == 'classify':
        yield 'confusion', draw_confusion(logits.argmax(-1).numpy(), y.numpy(), task, told)
    elif task.kind == 'bits':
        yield 'bits', draw_bits(((logits > 0) == (y > 0.5)).float().mean(0).numpy(), task, told)
    else:
        mean, deviation = task.y_standard
        yield 'numbers', draw_numbers(logits[:, 0].numpy() * deviation + mean, y.numpy() * deviation + mean, told)
    worst = scores[:, 0].argsort(descending=True)[:WORST]
    yield 'wrong', draw_wrong(task, where[worst], logits[worst], y[worst], scores[worst, 0], name)
    if any(isinstance(m, gpt.SelfAttention) for m in model.modules()):
        x = task.rows('val', where[:1])[0].to(next(model.parameters()).device)
        yield from attention(model, x, [])
        if task.meta.get('draw', {}).get('as') == 'image':
            yield 'gaze', draw_gaze(model, x, task, where[0])


def draw_trained(model, title):
    """Which weights were trained: a row for the blocks and what is around them, a column for the modules of a block."""
    cells, rows, columns = {}, [], []
    for name, p in model.named_parameters():
        path = name.split('.')
        row, rest = (f'block {int(path[1]) + 1}', path[2]) if path[0] == 'h' else (path[0], '')
        for key, keys in ((row, rows), (rest, columns)):
            if key not in keys:
                keys.append(key)
        trained, every = cells.get((row, rest), (0, 0))
        cells[row, rest] = (trained + p.numel() * p.requires_grad, every + p.numel())
    rows.sort(key=lambda row: row not in ('input', 'cls', 'wpe'))       # as an example goes through them
    fig, ax = plt.subplots(figsize=(1.6 + 1.5 * len(columns), 1 + 0.36 * len(rows)), layout='constrained')
    for (row, column), (trained, every) in cells.items():
        i, j = rows.index(row), columns.index(column)
        ax.add_patch(plt.Rectangle((j, i), 1, 1, color='#d1495b' if trained else '#cfe0ee', lw=0))
        ax.text(j + 0.5, i + 0.5, f'{every:,}', ha='center', va='center', fontsize=9, color='white' if trained else 'black')
    ax.set(xlim=(0, len(columns)), ylim=(len(rows), 0), xticks=np.arange(len(columns)) + 0.5, yticks=np.arange(len(rows)) + 0.5)
    ax.set_xticklabels(columns)
    ax.set_yticklabels(rows)
    ax.tick_params(length=0, top=False)
    ax.spines[:].set_visible(False)
    trained, every = (sum(c[i] for c in cells.values()) for i in (0, 1))
    ax.set_title(f'{title}: {trained:,} of {every:,} weights trained (red)', fontsize=10, parse_math=False)
    return fig


def names_of(task):
    return task.meta.get('labels') or list(map(str, range(task.outputs)))


def draw_confusion(said, y, task, title):
    """What was taken for what: a row for each true class, in shares of it."""
    counts = np.zeros((task.outputs, task.outputs))
    np.add.at(counts, (y, said), 1)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(11, max(5, 2 + 0.32 * task.outputs))
    fig, ax = plt.subplots(figsize=(size + 1, size), layout='constrained')
    image = ax.imshow(np.sqrt(share), cmap='Blues', vmin=0, vmax=1)
    if task.outputs <= 12:
        for i, j in zip(*np.nonzero(counts), strict=True):
            ax.text(j, i, f'{counts[i, j]:.0f}', ha='center', va='center', fontsize=9,
                    color='white' if share[i, j] > 0.3 else 'black')
    if task.outputs <= 40:
        ax.set_xticks(range(task.outputs), names_of(task), rotation=90 if max(map(len, names_of(task))) > 2 else 0)
        ax.set_yticks(range(task.outputs), names_of(task))
    ax.set(xlabel='answer', ylabel='truth')
    ax.set_title('\n'.join(textwrap.wrap(title, 12 * round(size))), fontsize=10, parse_math=False)
    bar = fig.colorbar(image, ax=ax, fraction=0.04, label='share of the true class')
    bar.set_ticks(np.sqrt([0, 0.01, 0.1, 0.25, 0.5, 1]), labels=['0', '1 %', '10 %', '25 %', '50 %', '100 %'])
    return fig


def draw_bits(right, task, title):
    fig, ax = plt.subplots(figsize=(8, 3.2), layout='constrained')
    ax.bar(np.arange(len(right)) + 1, right, width=0.8 if len(right) < 200 else 1, color='#2e86ab')
    ax.axhline(task.guess()['accuracy'], color='#d1495b', ls='--', lw=1.5, label='guessing')
    ax.set(xlabel='bit', ylabel='share of examples it is right in', ylim=(0, 1.02))
    ax.set_title(title, fontsize=10, parse_math=False)
    ax.legend(loc='lower right')
    ax.spines[['top', 'right']].set_visible(False)
    return fig


def draw_numbers(said, y, title):
    fig, ax = plt.subplots(figsize=(5.2, 5), layout='constrained')
    ax.plot(y, said, '.', color='#2e86ab', alpha=0.35, ms=5, mew=0)
    ends = [min(y.min(), said.min()), max(y.max(), said.max())]
    ax.plot(ends, ends, color='#d1495b', lw=1)
    ax.set(xlabel='truth', ylabel='answer')
    ax.set_title('\n'.join(textwrap.wrap(title, 60)), fontsize=10, parse_math=False)
    ax.spines[['top', 'right']].set_visible(False)
    return fig


# examples -------------------------------------------------------------------------------------------------------------------

def unpatched(x, draw):
    """(T, D) patches in reading order, each (channel, row, column), as an image (H, W, channels)."""
    P, C = draw['patch'], draw['channels']
    rows, columns = draw['height'] // P, draw['width'] // P
    x = x.reshape(rows, columns, C, P, P).transpose(0, 3, 1, 4, 2)                  # (rows, P, columns, P, C)
    return x.reshape(draw['height'], draw['width'], C)


def picture(ax, image):
    ax.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap='gray', vmin=0, vmax=255)


def draw_example(ax, x, draw):
    """One example, as it stands in its file."""
    ax.set(xticks=[], yticks=[])
    kind = draw.get('as', '')
    if kind == 'image':
        picture(ax, unpatched(x, draw))
    elif kind == 'images':
        columns = math.ceil(math.sqrt(len(x)))
        one = [unpatched(token[None], {**draw, 'patch': draw['height']}) for token in x]
        one += [np.zeros_like(one[0])] * (-len(one) % columns)
        picture(ax, np.concatenate([np.concatenate(one[i:i + columns], 1) for i in range(0, len(one), columns)]))
    elif kind == 'wave':
        wave = x.ravel()
        ax.plot(np.arange(len(wave)) / draw['rate'], wave, lw=0.5, color='#2e86ab')
        ax.set(ylim=(-max(1, np.abs(wave).max()), max(1, np.abs(wave).max())))
    elif kind == 'text':
        tokens = [draw['tokens'][i] for i in x if i]            # 0 is what fills up
        between = '' if all(len(t) == 1 or (t[0] == '[' and t[-1] == ']') for t in tokens) or len(tokens) > 90 else ' '
        ax.text(0.5, 0.5, '\n'.join(textwrap.wrap(between.join(tokens), 34)[:9]), ha='center', va='center', fontsize=7,
                family='DejaVu Sans Mono', parse_math=False, transform=ax.transAxes)
    elif x.ndim == 2:
        ax.imshow(x, cmap='RdBu', aspect='auto', interpolation='nearest')
    else:
        said = textwrap.fill(' '.join(map(str, x)), 34)
        ax.text(0.5, 0.5, said, ha='center', va='center', fontsize=8, transform=ax.transAxes)
    ax.spines[:].set_color('#bbbbbb')


def draw_wrong(task, where, logits, y, losses, title):
    """The examples of the highest loss, the truth and the answer above each."""
    fig, axes = plt.subplots(3, 4, figsize=(11, 7.6), layout='constrained')
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, i, answer, truth, loss in zip(axes.flat, where, logits, y, losses, strict=False):
        ax.set_axis_on()
        draw_example(ax, task.splits['val'][0][i], task.meta.get('draw', {}))
        if task.kind == 'classify':
            names, p = names_of(task), answer.softmax(-1)
            said = f'{names[truth]}, taken for {names[answer.argmax()]} ({p.max():.0%})'
        elif task.kind == 'bits':
            said = f'{int(((answer > 0) != (truth > 0.5)).sum())} of {len(truth)} bits wrong'
        else:
            mean, deviation = task.y_standard
            said = f'{truth * deviation + mean:g}, taken for {answer[0] * deviation + mean:.1f}'
        ax.set_title(f'{said}\nloss {loss:.2f}', fontsize=8, parse_math=False)
    fig.suptitle(f'{title}: the examples of the validation split that it is most wrong about', fontsize=10, parse_math=False)
    return fig


@torch.no_grad()
def draw_gaze(model, x, task, i):
    """Which patches the position that gives the answer looks at, a picture for each layer."""
    draw, maps = task.meta['draw'], attention_maps(model, x)
    image = unpatched(np.asarray(task.splits['val'][0][i]), draw)
    at = 0 if getattr(model, 'cls', None) is not None else -1
    rows, columns = draw['height'] // draw['patch'], draw['width'] // draw['patch']
    fig, axes = plt.subplots(1, len(maps) + 1, figsize=(2.2 * (len(maps) + 1), 2.7), layout='constrained')
    picture(axes[0], image)
    axes[0].set_title('the image', fontsize=9)
    for k, (ax, weights) in enumerate(zip(axes[1:], maps, strict=True), 1):
        seen = weights.mean(0)[at][-rows * columns:].reshape(rows, columns)                  # of all heads together
        picture(ax, image)
        ax.imshow(seen, cmap='inferno', alpha=0.75, extent=(-0.5, draw['width'] - 0.5, draw['height'] - 0.5, -0.5))
        ax.set_title(f'layer {k}', fontsize=9)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    fig.suptitle('what the position that gives the answer looks at (brighter: more)', fontsize=10)
    return fig
