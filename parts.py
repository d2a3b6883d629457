"""
Pictures of the parts that models are made of, for look.py: where attention looks, PACING's image and kernels, and the functions
of high-order layers.

B batch   T tokens   C channels, or the inputs of a layer of links   H heads, or the height of an image   D channels of a head
I inputs   O outputs   S segments   P parameters a link (see piecewise.py)   n how many numbers have been read
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

import highorder
import model as gpt
import pacing
from piecewise import PiecewisePolynomial

LAYERS = 6          # of links that are drawn, at most
INPUTS = 64         # of a layer whose segments are drawn, at most
MANY = 16           # segments: links of more have the whole width to themselves
LABELLED = 128      # segments that are labelled with their tokens, at most


def visible(text):
    return ''.join({'\n': '⏎', ' ': '␣'}.get(c, c if c.isprintable() else '·') for c in text)


# attention ------------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def attention_maps(model, x):
    """softmax(q k / sqrt(D)) of every SelfAttention for the first example of x: arrays (H, T, T), rows look at columns."""
    layers, maps = [m for m in model.modules() if isinstance(m, gpt.SelfAttention)], []

    def look(module, args, output):
        B, T, _ = args[0].shape
        q, k, _ = module.c_attn(args[0]).view(B, T, 3, module.n_head, -1).permute(2, 0, 3, 1, 4)     # each (B, H, T, D)
        scores = q @ k.mT / math.sqrt(q.shape[-1])                                                  # (B, H, T, T)
        future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1) & module.causal
        maps.append(scores.masked_fill(future, -torch.inf).softmax(-1)[0].cpu().numpy())
    hooks = [layer.register_forward_hook(look) for layer in layers]
    model(x)
    for hook in hooks:
        hook.remove()
    return maps


def attention(model, x, labels):
    """Where each head looks, a row a layer."""
    maps = attention_maps(model, x)
    heads = max(len(m) for m in maps)
    size = (2.3 * heads + 0.6, 2.4 * len(maps))
    fig, axes = plt.subplots(len(maps), heads, figsize=size, layout='constrained', squeeze=False)
    for i, row in enumerate(axes):
        for h, ax in enumerate(row):
            ax.set_axis_off() if h >= len(maps[i]) else ax.imshow(np.sqrt(maps[i][h]), cmap='magma_r', vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.set_title(f'layer {i + 1}, head {h + 1}', fontsize=8)
    fig.suptitle('attention: rows look at columns (colour: square root of the weight)', fontsize=10)
    yield 'attention', fig


# PACING ---------------------------------------------------------------------------------------------------------------------

def label_cells(ax, labels, columns, size):
    """The texts of the tokens, in reading order from the upper left, on cells of `size`."""
    from matplotlib.patheffects import withStroke
    outline = withStroke(linewidth=2, foreground='black')
    for i, label in enumerate(labels):
        row, column = divmod(i, columns)
        ax.text((column + 0.5) * size - 0.5, (row + 0.5) * size - 0.5, visible(label), ha='center', va='center', color='white',
                fontsize=9, family='DejaVu Sans Mono', parse_math=False, path_effects=[outline])


def side_by_side(image, labels, columns, size, title):
    """An image (H, W, 3), and the same with its tokens."""
    low, high = np.nanquantile(image, (0.01, 0.99))
    image = np.clip((image - low) / (high - low + 1e-9), 0, 1)
    fig, axes = plt.subplots(1, 2, figsize=(9, 4.9), layout='constrained')
    for ax in axes:
        ax.imshow(np.where(np.isnan(image), 1, image), interpolation='nearest')
        ax.set(xticks=[], yticks=[])
    for edge in range(0, image.shape[1] + 1, size):
        axes[1].axvline(edge - 0.5, color='white', lw=1)
    for edge in range(0, image.shape[0] + 1, size):
        axes[1].axhline(edge - 0.5, color='white', lw=1)
    label_cells(axes[1], labels, columns, size)
    fig.suptitle(title, fontsize=11)
    return fig


def draw_kernels(kernels, title):
    """kernels: (C, rows, columns), nan where there is no tap."""
    kernels = kernels[:48]
    top, rows = np.nanmax(np.abs(kernels)), -(-len(kernels) // 12)
    size = (11, 0.7 + rows * (0.2 + 0.75 * kernels.shape[1] / kernels.shape[2]))
    fig, axes = plt.subplots(rows, 12, figsize=size, layout='constrained', squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if i < len(kernels):
            image = ax.imshow(kernels[i], cmap='RdBu_r', vmin=-top, vmax=top)
    fig.colorbar(image, ax=axes, fraction=0.02)
    fig.suptitle(title, fontsize=11)
    return fig


@torch.no_grad()
def causal_picture(model, x, labels):
    """PACING that predicts every token: its cells have more channels than a screen has colours, so the three principal
    components of them are shown."""
    h, columns = model.look(x)[0].cpu(), model.config.columns                       # (T, C)
    h = h - h.mean(0)
    colours = h @ torch.linalg.svd(h, full_matrices=False).Vh[:3].T                 # (T, up to 3)
    colours = F.pad(colours / (colours.std(0) + 1e-9), (0, 3 - colours.shape[1]))
    image = F.pad(colours, (0, 0, 0, -len(h) % columns), value=math.nan).view(-1, columns, 3)
    yield 'picture', side_by_side(image.numpy(), labels, columns, 1,
                                  'the text as a picture: three principal components of the cells')
    if not model.picture.blocks:
        return
    block = model.picture.blocks[0]
    back = pacing.taps(columns)
    weight, reach = block.dwconv.weight[:, 0].cpu().numpy(), 3                      # (C, taps)
    kernels = np.full((len(weight), reach + 1, 2 * reach + 1), np.nan)
    for up in range(reach + 1):
        for right in range(-reach, reach + 1):
            if (b := up * columns - right) in back:
                kernels[:, reach - up, reach + right] = weight[:, back.index(b)]
    yield 'kernels', draw_kernels(kernels, 'kernels of the first block: rows above, and what is left of the cell (bottom row)')


@torch.no_grad()
def seed_picture(model, x, labels):
    """PACING as its seed has it: a colour image of which every token is a patch, the newest in the upper left corner."""
    image = model.picture.image(model.look(x))[0].permute(1, 2, 0).cpu().numpy()    # (H * P, W * P, 3)
    yield 'picture', side_by_side(image, labels[::-1], model.config.columns, model.config.patch_size,
                                  'the text as the network sees it: an image, the newest token in the upper left corner')
    yield 'kernels', draw_kernels(model.picture.stages[0][0].dwconv.weight[:, 0].cpu().numpy(), 'kernels of the first block')


# links: the functions of a high-order layer ---------------------------------------------------------------------------------

def inputs_of(model, layers, x):
    """{layer: what it reads of the tokens x (N, T): (n, C), nan where an input is not there}; some need longer texts.
    The taps of a convolution have links of their own, but all read the same C inputs: link i reads input i % C."""
    found = {layer: [] for layer in layers}

    def look(layer, args):
        inputs, present = (*args, None)[:2]
        found[layer].append((inputs if present is None else inputs.masked_fill(~present, math.nan)).flatten(0, -2))
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    for windows in x.split(4):      # all at once may be too many logits
        model(windows)
    for hook in hooks:
        hook.remove()
    return {layer: torch.cat(inputs) for layer, inputs in found.items() if inputs}


def links_of(layer):
    """The parameters, link by link: (I, P, O)."""
    return layer.weight.view(-1, layer.P, layer.out_features)


def curves(layer, i, x):
    """What the links of input i make of x (n,): (n, O)."""
    return layer.expand(*layer.basis(x[:, None])) @ links_of(layer)[i]


def liveliest(layer, inputs, count):
    """[(i, o)]: the links whose values vary most over the inputs (n, C), the first of all first, and no two of one input."""
    found = []
    for i, weight in enumerate(links_of(layer)):                                    # (P, O)
        seen = inputs[:, i % inputs.shape[1]]
        seen = seen[~seen.isnan()]
        if len(seen) > 1:
            basis = layer.expand(*layer.basis(seen[:, None]))                       # (n, P)
            variance = (weight * (torch.atleast_2d(basis.T.cov()) @ weight)).sum(0)             # (O,)
            found.append((variance.max().item(), i, variance.argmax().item()))
    return [(i, o) for _, i, o in sorted(found, reverse=True)[:count]]


def segments_used(layer, inputs):
    """Of each of the inputs (n, C) the share in each segment (C, S), and which parameters of a link it has ever used (C, P)."""
    there, C, S = ~inputs.isnan(), inputs.shape[1], layer.segments
    step = layer.n - (layer.kind == 'continuous')       # from the first parameter of a segment to that of the next
    piece = layer.basis(inputs.nan_to_num())[0] // step                             # (n, C)
    where = (piece + torch.arange(C, device=piece.device) * S)[there]
    counts = torch.bincount(where, minlength=C * S).view(C, S).cpu()
    used = torch.zeros(C, layer.P, dtype=torch.bool)
    for k in range(layer.n):
        used[:, k:k + step * S:step] |= counts > 0
    return (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy(), used.numpy()


def reach_of(layer, inputs):
    """From where to where links are drawn: a little beyond [-1, 1], and as far as nearly all of the inputs go."""
    edge = 1 + min(0.15, 2 / layer.segments)
    return (min(-edge, np.nanquantile(inputs.cpu(), 0.002, method='lower')),
            max(edge, np.nanquantile(inputs.cpu(), 0.998, method='higher')))


def draw_link(ax, layer, i, o, reach, color, lw, ms, alpha=1.0, label=None):
    """One function: torn where its pieces do not meet, with dots where its values are given, and the borders behind it."""
    borders = torch.linspace(-1, 1, layer.segments + 1)
    x, torn = torch.cat([torch.linspace(*reach, 400), borders - 1e-6, borders + 1e-6]), []
    if layer.kind != 'fourier':
        nodes = layer.nodes().cpu()
        x = torch.cat([x, nodes])
        ax.plot(nodes, links_of(layer)[i, :, o].cpu(), ls='', marker='o', ms=ms, color=color, alpha=alpha)
        ax.vlines(borders, 0, 1, color='black', alpha=0.15, lw=0.8, zorder=0, transform=ax.get_xaxis_transform())
    x = x.unique().to(layer.weight)
    if layer.kind == 'discontinuous':
        torn = layer.basis(x[:, None])[0].flatten().diff().cpu().numpy().nonzero()[0] + 1
    x, y = (np.insert(v.cpu().numpy(), torn, np.nan) for v in (x, curves(layer, i, x)[:, o]))
    ax.plot(x, y, color=color, lw=lw, alpha=alpha, label=label)
    ax.set_xlim(reach)
    ax.set_title(f'input {i + 1} to output {o + 1}', fontsize=8)
    ax.tick_params(labelsize=7)
    ax.grid(axis='y', alpha=0.3)
    ax.spines[['top', 'right']].set_visible(False)


def draw_links(layers, labels):
    """layers: {name: (layer, inputs)}.  labels: {layer that reads tokens: the text of each segment}."""
    heights = [3.8 if layer.segments > MANY else 2.2 for layer, _ in layers.values()]
    fig = plt.figure(figsize=(12, sum(heights) + 0.4), layout='constrained')
    rows = fig.subfigures(len(layers), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, (name, (layer, inputs)) in zip(rows, layers.items(), strict=True):
        axes = row.subplots(*((2, 1) if layer.segments > MANY else (1, 4)), squeeze=False).flatten()
        outside = (inputs.abs() > 1).sum() / (~inputs.isnan()).sum()
        row.suptitle(f'{name}: {layer.extra_repr()}; {100 * outside:.0f} % of the inputs are outside of [-1, 1]', x=0.01,
                     ha='left', fontsize=9, parse_math=False)
        for ax, (i, o) in zip(axes, liveliest(layer, inputs, len(axes)), strict=False):
            mine = inputs[:, i % inputs.shape[1]]
            reach = reach_of(layer, mine)
            draw_link(ax, layer, i, o, reach, '#d1495b', 1.5, 3)
            bins = np.linspace(-1, 1, layer.segments + 1) if layer in labels else np.linspace(*reach, 61)
            count, _ = np.histogram(mine.cpu(), bins)
            ax.stairs(0.5 * count / count.max(), bins, fill=True, color='#2e86ab', alpha=0.3, zorder=0,
                      transform=ax.get_xaxis_transform())
            if layer in labels:
                label_segments(ax, (bins[1:] + bins[:-1])[:len(labels[layer])] / 2, labels[layer])
        for ax in axes:
            ax.set_visible(bool(ax.lines))      # a layer may have fewer inputs
    fig.suptitle('links: their functions, with dots where values are given; blue: which inputs occur', fontsize=11)
    return fig


def label_segments(ax, middles, labels):
    ax.set_xticks(middles, labels, fontsize=8, family='DejaVu Sans Mono', parse_math=False)


def draw_segments(layers, labels, tokens):
    """layers, labels: see draw_links().  tokens: how many the inputs have been read from."""
    from matplotlib.colors import PowerNorm
    columns, rows = min(3, len(layers)), -(-len(layers) // 3)
    each = [2.7 + 0.1 * min(layer.segments, LABELLED) for layer, _ in layers.values()]
    widths = [max(each[i::columns]) for i in range(columns)]
    fig, axes = plt.subplots(rows, columns, figsize=(sum(widths) + 1, 0.5 + 5 * rows), layout='constrained', squeeze=False,
                             width_ratios=widths)
    for ax in axes.flat[len(layers):]:
        ax.set_visible(False)
    for ax, (name, (layer, inputs)) in zip(axes.flat, layers.items(), strict=False):
        shares, used = segments_used(layer, inputs)
        top, S = shares[:INPUTS], layer.segments
        image = ax.imshow(np.where(top > 0, top, np.nan), norm=PowerNorm(0.3, 0, 1), cmap='magma_r',
                          interpolation='nearest', aspect='auto', extent=(0.5, S + 0.5, len(top) + 0.5, 0.5))
        ax.set_title(f'{name}\none input uses {layer.n} of {layer.P} parameters ({100 * layer.n / layer.P:.2g} %);\n'
                     f'{100 * (1 - used.mean()):.2g} % are used by no token', fontsize=8, parse_math=False)
        ax.set_xlabel('segment', fontsize=8)
        ax.set_ylabel('input' + f' (the first {INPUTS} of {len(shares)})' * (len(shares) > INPUTS), fontsize=8)
        ax.tick_params(labelsize=7)
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_major_locator().set_params(integer=True)
        if layer in labels:
            label_segments(ax, range(1, len(labels[layer]) + 1), labels[layer])
    fig.colorbar(image, ax=axes, label='share of the tokens (white: none)', ticks=[1, 0.5, 0.2, 0.1, 0.03, 0.01, 0.001])
    fig.suptitle(f'which segments are in use, by {tokens:,} tokens', fontsize=11)
    return fig


def draw_refinement(name, layer, inputs):
    """Links of a layer before and after it is given more points and pieces, and how far the two are apart anywhere."""
    finer = layer.refined(layer.n + 2, 1) if layer.kind == 'fourier' else \
        layer.refined(layer.n + 1, layer.segments * (1 if layer.kind == 'polynomial' else 2))
    x = torch.linspace(*reach_of(layer, inputs), 1001).to(layer.weight)
    apart = max((curves(finer, i, x) - curves(layer, i, x)).abs().max().item() for i in range(layer.in_features))
    wide = layer.segments > MANY
    fig, axes = plt.subplots(*((2, 1) if wide else (2, 2)), figsize=(12, 6), layout='constrained')
    for ax, (i, o) in zip(axes.flat, liveliest(layer, inputs, axes.size), strict=False):
        reach = reach_of(layer, inputs[:, i % inputs.shape[1]])
        draw_link(ax, layer, i, o, reach, '#2e86ab', 5, 9, 0.4, f'before: n={layer.n}, segments={layer.segments}')
        draw_link(ax, finer, i, o, reach, '#d1495b', 1.2, 4, 1, f'after: n={finer.n}, segments={finer.segments}')
    for ax in axes.flat:
        ax.set_visible(bool(ax.lines))
    fig.legend(*axes.flat[0].get_legend_handles_labels(), loc='outside lower center', ncols=2, fontsize=8)
    fig.suptitle(f'{name} before and after a refinement: nowhere are its functions more than {apart:.2g} apart', fontsize=11,
                 parse_math=False)
    return fig


@torch.no_grad()
def links(model, x, names):
    """What is made of links that are functions: some of them, which segments are in use, and one layer before and after a
    refinement."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PiecewisePolynomial)]
    layers = dict([*layers[:LAYERS], layers[-1]])       # nothing is kept of what is not drawn
    inputs = inputs_of(model, layers.values(), x)
    layers = {name: (layer, inputs[layer]) for name, layer in layers.items() if layer in inputs}
    labels = {m.links: [visible(s) for s in names[:m.links.segments]] for m in model.modules()
              if isinstance(m, highorder.Characters) and m.links.segments <= LABELLED}
    shown = dict(list(layers.items())[:LAYERS])
    yield 'links', draw_links(shown, labels)
    if pieces := {name: (layer, seen) for name, (layer, seen) in shown.items() if layer.segments > 1}:
        yield 'segments', draw_segments(pieces, labels, x.numel())
    yield 'refinement', draw_refinement(*[(name, *layer) for name, layer in layers.items()][-1])


PARTS = {gpt.SelfAttention: attention, pacing.CausalPicture: causal_picture, pacing.Picture: seed_picture}
