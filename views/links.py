"""
The edge functions of high-order layers: what they look like, which of their segments are used, and how a refinement keeps them.

B batch   T tokens   C inputs of a layer (per tap of a convolution)
I inputs   O outputs   S segments   P parameters per edge function (see piecewise.py)   n values that were read
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import highorder
from piecewise import PiecewisePolynomial, expand
from views.text import visible

LAYERS = 6          # layers drawn, at most
INPUTS = 64         # inputs of a layer in segments.png, at most
MANY = 16           # segments: an edge function with more is drawn across the whole figure
LABELLED = 128      # segments labelled with their tokens, at most
RED, BLUE, GREY = '#d1495b', '#2e86ab', '0.5'


def layer_inputs(model, layers, x):
    """{layer: its inputs (n, C) when the model reads the tokens x (N, T)}, nan where an input is absent; without the layers
    that x is too short for.  All taps of a convolution read the same C inputs: edge i reads input i % C."""
    found = {layer: [] for layer in layers}

    def hook(layer, args):
        inputs, present = (*args, None)[:2]
        found[layer].append((inputs if present is None else inputs.masked_fill(~present, math.nan)).flatten(0, -2))
    hooks = [layer.register_forward_pre_hook(hook) for layer in layers]
    for windows in x.split(4):      # the logits of all windows may not fit into memory
        model(windows)
    for handle in hooks:
        handle.remove()
    return {layer: torch.cat(inputs) for layer, inputs in found.items() if inputs}


def edge_parameters(layer):
    """(I, P, O)"""
    return layer.weight.view(-1, layer.P, layer.out_features)


def edge_basis(layer, x):
    """(n,) -> (n, P): the weights of the parameters of any edge function at x."""
    return expand(*layer.basis(x[:, None]), layer.P)


def edge_values(layer, i, x):
    """The edge functions of input i at x (n,): (n, O)."""
    return edge_basis(layer, x) @ edge_parameters(layer)[i]


def most_varied(layer, inputs, count):
    """[(i, o)]: the edge functions whose values vary most over the inputs (n, C), in descending order, one per input."""
    found = []
    for i, weight in enumerate(edge_parameters(layer)):                             # (P, O)
        seen = inputs[:, i % inputs.shape[1]]
        seen = seen[~seen.isnan()]
        if len(seen) > 1:
            covariance = torch.atleast_2d(edge_basis(layer, seen).T.cov())          # (P, P)
            variance = (weight * (covariance @ weight)).sum(0)                      # (O,)
            found.append((variance.max().item(), i, variance.argmax().item()))
    return [(i, o) for _, i, o in sorted(found, reverse=True)[:count]]


def segments_used(layer, inputs):
    """For inputs (n, C): the share of each input's values in each segment (C, S), and whether they use a parameter (C, P)."""
    present, C, S = ~inputs.isnan(), inputs.shape[1], layer.segments
    segment = layer.basis(inputs.nan_to_num())[0] // layer.spacing                  # (n, C)
    index = (segment + torch.arange(C, device=segment.device) * S)[present]
    counts = torch.bincount(index, minlength=C * S).view(C, S).cpu()
    used = torch.zeros(C, layer.P, dtype=torch.bool)
    for k in range(layer.n):
        used[:, k:k + layer.spacing * S:layer.spacing] |= counts > 0
    return (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy(), used.numpy()


def drawn_range(layer, inputs):
    """Slightly more than [-1, 1], and as far as nearly all inputs reach."""
    edge = 1 + min(0.15, 2 / layer.segments)
    return (min(-edge, np.nanquantile(inputs.cpu(), 0.002, method='lower')),
            max(edge, np.nanquantile(inputs.cpu(), 0.998, method='higher')))


def outside(inputs):
    """The share of the present inputs outside [-1, 1]."""
    return ((inputs.abs() > 1).sum() / (~inputs.isnan()).sum()).item()


def draw_edge(ax, layer, i, o, limits, color, lw, ms, alpha=1.0, label=None):
    """One edge function, interrupted where its segments do not meet, with dots at its nodes and lines at segment borders."""
    borders = torch.linspace(-1, 1, layer.segments + 1)
    x, jumps = torch.cat([torch.linspace(*limits, 400), borders - 1e-6, borders + 1e-6]), []
    if layer.kind != 'fourier':
        nodes = layer.nodes().cpu()
        x = torch.cat([x, nodes])
        ax.plot(nodes, edge_parameters(layer)[i, :, o].cpu(), ls='', marker='o', ms=ms, color=color, alpha=alpha)
        ax.vlines(borders, 0, 1, color='black', alpha=0.15, lw=0.8, zorder=0, transform=ax.get_xaxis_transform())
    x = x.unique().to(layer.weight)
    if layer.kind == 'discontinuous':
        jumps = layer.basis(x[:, None])[0].flatten().diff().cpu().numpy().nonzero()[0] + 1
    x, y = (np.insert(v.cpu().numpy(), jumps, np.nan) for v in (x, edge_values(layer, i, x)[:, o]))
    ax.plot(x, y, color=color, lw=lw, alpha=alpha, label=label)
    ax.set_xlim(limits)
    ax.set_title(f'input {i + 1} to output {o + 1}', fontsize=8)
    ax.tick_params(labelsize=7)
    ax.grid(axis='y', alpha=0.3)
    ax.spines[['top', 'right']].set_visible(False)


def shade_outside(ax):
    low, high = ax.get_xlim()
    for a, b in ((low, -1), (1, high)):
        ax.axvspan(a, b, color=GREY, alpha=0.18, lw=0, zorder=-1)


def draw_edges(layers, labels):
    """layers: {name: (layer, inputs)}.  labels: {layer that reads tokens: the text of each segment}."""
    heights = [4.2 if layer.segments > MANY else 2.3 for layer, _ in layers.values()]
    fig = plt.figure(figsize=(12, sum(heights) + 0.8), layout='constrained')
    rows = fig.subfigures(len(layers), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, (name, (layer, inputs)) in zip(rows, layers.items(), strict=True):
        axes = row.subplots(*((2, 1) if layer.segments > MANY else (1, 4)), squeeze=False).flatten()
        row.suptitle(f'{name}: {layer.extra_repr()}; {describe(layer, inputs, labels)}', x=0.01, ha='left', fontsize=9,
                     parse_math=False)
        for ax, (i, o) in zip(axes, most_varied(layer, inputs, len(axes)), strict=False):
            own = inputs[:, i % inputs.shape[1]]
            limits = (-1, 1) if layer in labels else drawn_range(layer, own)
            draw_edge(ax, layer, i, o, limits, RED, 1.5, 2 if layer in labels else 3)
            bins = np.linspace(-1, 1, layer.segments + 1) if layer in labels else np.linspace(*limits, 61)
            count, _ = np.histogram(own.cpu(), bins)
            ax.stairs(0.5 * count / count.max(), bins, fill=True, color=BLUE, alpha=0.3, zorder=0,
                      transform=ax.get_xaxis_transform())
            if layer in labels:
                middles = torch.tensor((bins[1:] + bins[:-1])[:len(labels[layer])] / 2).to(layer.weight)
                ax.plot(middles.cpu(), edge_values(layer, i, middles)[:, o].cpu(), ls='', marker='s', ms=4.5, color='black')
                label_segments(ax, middles.cpu(), labels[layer])
            else:
                shade_outside(ax)
                ax.set_title(f'{ax.get_title()}, {100 * outside(own):.0f} % outside', fontsize=8)
        for ax in axes:
            ax.set_visible(bool(ax.lines))      # a layer may have fewer inputs
    handles = [Line2D([], [], color=RED, marker='o', ms=3, label='edge function, and its values at the nodes'),
               *[Line2D([], [], ls='', color='black', marker='s', ms=4.5, label='a character (middle of its segment)')]
               * bool(labels),
               Patch(color=BLUE, alpha=0.3, label='distribution of the inputs'),
               Patch(color=GREY, alpha=0.18, label='outside [-1, 1]')]
    fig.suptitle('edge functions that vary most over their inputs', fontsize=11)
    fig.legend(handles=handles, loc='outside lower center', ncols=len(handles), fontsize=8)
    return fig


def describe(layer, inputs, labels):
    """What to know about the inputs of a layer, in a sentence."""
    if layer in labels:
        if layer.kind == 'continuous':
            return f'neighbouring characters share nodes: {layer.segments} segments, {layer.P} nodes'
        return 'each character has a segment, and nodes of its own'
    shape = 'is periodic' if layer.kind == 'fourier' else 'is reflected' if layer.periodic else 'is a straight line'
    return f'{100 * outside(inputs):.0f} % of the inputs are outside [-1, 1], where an edge function {shape}'


def label_segments(ax, middles, labels):
    ax.set_xticks(middles, labels, fontsize=8, family='DejaVu Sans Mono', parse_math=False)


def draw_segments(layers, labels, tokens):
    """layers, labels: see draw_edges().  tokens: the number of tokens that the inputs are from."""
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
        ax.set_title(f'{name}\nan input uses {layer.n} of {layer.P} parameters ({100 * layer.n / layer.P:.2g} %)\n'
                     f'not used by any token: {100 * (1 - used.mean()):.2g} % of the parameters', fontsize=8, parse_math=False)
        ax.set_xlabel('segment', fontsize=8)
        ax.set_ylabel('input' + f' (the first {INPUTS} of {len(shares)})' * (len(shares) > INPUTS), fontsize=8)
        ax.tick_params(labelsize=7)
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_major_locator().set_params(integer=True)
        if layer in labels:
            label_segments(ax, range(1, len(labels[layer]) + 1), labels[layer])
    fig.colorbar(image, ax=axes, label='share of the tokens (white: none)', ticks=[1, 0.5, 0.2, 0.1, 0.03, 0.01, 0.001],
                 format='%g')
    reflected = any(layer.periodic for layer, _ in layers.values())
    fig.suptitle(f'segments used by {tokens:,} tokens' +
                 '; inputs outside [-1, 1] count for the first and the last' * (not reflected), fontsize=11)
    return fig


def draw_refinement(name, layer, inputs):
    """Edge functions before and after a refinement, and the largest difference between the two, over all edges."""
    finer = layer.refined(layer.n + 2, 1) if layer.kind == 'fourier' else \
        layer.refined(layer.n + 1, layer.segments * (1 if layer.kind == 'polynomial' else 2))
    x = torch.linspace(*drawn_range(layer, inputs), 1001).to(layer.weight)
    difference = max((edge_values(finer, i, x) - edge_values(layer, i, x)).abs().max().item() for i in range(layer.in_features))
    fig, axes = plt.subplots(*((2, 1) if layer.segments > MANY else (2, 2)), figsize=(12, 6), layout='constrained')
    for ax, (i, o) in zip(axes.flat, most_varied(layer, inputs, axes.size), strict=False):
        limits = drawn_range(layer, inputs[:, i % inputs.shape[1]])
        draw_edge(ax, layer, i, o, limits, BLUE, 5, 9, 0.4, f'before: n={layer.n}, segments={layer.segments}')
        draw_edge(ax, finer, i, o, limits, RED, 1.2, 4, 1, f'after: n={finer.n}, segments={finer.segments}')
        shade_outside(ax)
    for ax in axes.flat:
        ax.set_visible(bool(ax.lines))
    fig.legend(*axes.flat[0].get_legend_handles_labels(), loc='outside lower center', ncols=2, fontsize=8)
    fig.suptitle(f'{name} before and after a refinement; the largest difference of any edge function is {difference:.2g}',
                 fontsize=11, parse_math=False)
    return fig


@torch.no_grad()
def links(model, x, names):
    """Yields (name, figure): edge functions, the segments in use, and the last layer before and after a refinement.
    x: (N, T) tokens.  names: the text of each token of the vocabulary."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PiecewisePolynomial)]
    layers = dict([*layers[:LAYERS], layers[-1]])
    inputs = layer_inputs(model, layers.values(), x)
    layers = {name: (layer, inputs[layer]) for name, layer in layers.items() if layer in inputs}
    labels = {m.links: [visible(s) for s in names[:m.links.segments]] for m in model.modules()
              if isinstance(m, highorder.Characters) and m.links.segments <= LABELLED}
    shown = dict(list(layers.items())[:LAYERS])
    yield 'links', draw_edges(shown, labels)
    if segmented := {name: (layer, seen) for name, (layer, seen) in shown.items() if layer.segments > 1}:
        yield 'segments', draw_segments(segmented, labels, x.numel())
    yield 'refinement', draw_refinement(*[(name, *layer) for name, layer in layers.items()][-1])
