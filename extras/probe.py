"""
Linear probe: how well a linear classifier tells the classes of pictures from each layer of a model that was trained on pixels.

    python -m extras.probe out/mnist_pixels_gpt [--examples=5000]

- Image-GPT's second stage (Chen et al. 2020, section 3.4): the features of a layer are the means of its outputs over all
  positions, and the model itself is not trained
- a softmax regression for each layer, with the weight decay that is best on the validation split; its accuracy is that of the
  test split
- beside it the same network without training, with random weights, and the pixels' colours themselves

Writes probe.json and probe.png to the folder of the run.  N examples   T positions   C channels   O classes
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from harness import SPLITS, Arguments, UserError, checkpoint, command, device
from harness.arch import build, load_arch
from harness.data import data_of, open_data
from harness.files import atomic
from harness.log import markdown
from prepare.common import positive
from race import tables
from race.page import origin, write_record

DECAYS = 1e-5, 1e-4, 1e-3, 1e-2, 1e-1       # of the classifier's weights; the features are standardised
BATCH = 50


def blocks_of(model):
    """The layers of a model: the first ModuleList in it."""
    return next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)), None)


@torch.no_grad()
def features(model, x):
    """{layer: features (N, C)} of the tokens x (N, T); layer 0 is the input of the first block."""
    found, blocks, where = {}, blocks_of(model), next(model.parameters()).device

    def record(layer, h):
        found.setdefault(layer, []).append((h[0] if isinstance(h, tuple) else h).float().mean(1).cpu())
    hooks = [blocks[0].register_forward_pre_hook(lambda module, args: record(0, args))]
    hooks += [block.register_forward_hook(lambda module, args, h, i=i: record(i, h)) for i, block in enumerate(blocks, 1)]
    for part in x.split(BATCH):
        model(part.to(where))
    for hook in hooks:
        hook.remove()
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def fit(x, y, outputs, decay):
    """The softmax regression of y (N,) on x (N, C) with the least cross-entropy + decay * |weights|^2."""
    layer = nn.Linear(x.shape[1], outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn='strong_wolfe')

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(layer(x), y) + decay * layer.weight.square().sum()
        value.backward()
        return value
    optimizer.step(loss)
    return layer


@torch.no_grad()
def accuracy(layer, x, y):
    return (layer(x).argmax(1) == y).float().mean().item()


def probe(x, y, outputs):
    """The test accuracy of the best classifier on the validation split.  x: {split: (N, C)}.  y: {split: (N,)}."""
    mean, deviation = x['train'].mean(0), x['train'].std(0) + 1e-6
    x = {split: (part - mean) / deviation for split, part in x.items()}
    layers = [fit(x['train'], y['train'], outputs, decay) for decay in DECAYS]
    best = max(layers, key=lambda layer: accuracy(layer, x['val'], y['val']))
    return accuracy(best, x['test'], y['test'])


def draw(found, title):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    fig, ax = plt.subplots(figsize=(6.5, 4), layout='constrained')
    ax.plot(range(len(found['trained'])), found['trained'], color='#d1495b', lw=2, marker='o', label='trained on pixels')
    ax.plot(range(len(found['untrained'])), found['untrained'], color='#2e86ab', lw=1.5, marker='o', label='random weights')
    ax.axhline(found['pixels'], color='#3f9c6b', lw=1.5, ls='--', label='the pixels themselves')
    ax.axhline(found['chance'], color='black', lw=1, ls=':', label='chance')
    ax.set(xlabel='layer (0: the embeddings)', ylabel='test accuracy', xticks=range(len(found['trained'])))
    ax.set_title(title, fontsize=10, parse_math=False)
    ax.legend(fontsize=8, frameon=False)
    ax.grid(alpha=0.3)
    ax.spines[['top', 'right']].set_visible(False)
    return fig


def main(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('run', help='the folder of a run on pixels (its best checkpoint), or a checkpoint file')
    parser.add_argument('--examples', type=positive, default=5000, help='of each split, at most (default 5000)')
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:N')
    args = parser.parse_args(argv)
    path = checkpoint.find(args.run)
    model, content = checkpoint.load_model(path)
    name, text = content['loop']['dataset'], data_of(content)
    if getattr(getattr(text, 'tokenizer', None), 'length', None) is None or blocks_of(model) is None:
        raise UserError(f'{args.run} is no run of layers on the pixels of data/{name}, or these have changed: choose one such '
                        f'as that of config/mnist_pixels_gpt.py')
    task, where = open_data(name, modality='task'), device.pick_device(args.device, 0, 1)
    torch.manual_seed(content['loop'].get('seed', 0))
    untrained = build(load_arch(content['arch']), dataclasses.asdict(model.config)).eval()
    x, y = {}, {}
    for split in SPLITS:
        n = len(task.splits[split][0])
        x[split], y[split] = task.examples(split, np.linspace(0, n - 1, min(args.examples, n)).round().astype(np.int64))
    if model.bidirectional:             # it was trained on pictures without their start
        x = {split: part[:, 1:] for split, part in x.items()}
    colours = torch.tensor(text.tokenizer.spec['colours'] + [[0, 0, 0]]) / 255                  # the start is no colour
    found = {'step': content['step'], 'examples': {split: len(part) for split, part in x.items()},
             'chance': task.chance('test')['accuracy'],
             'pixels': probe({split: colours[part].flatten(1) for split, part in x.items()}, y, task.outputs)}
    for key, network in (('trained', model), ('untrained', untrained)):
        layers = {split: features(network.to(where), part) for split, part in x.items()}
        found[key] = [probe({split: layers[split][i] for split in SPLITS}, y, task.outputs) for i in layers['train']]
    print(markdown(*tables.probe(found)))
    from views.behaviour import png
    folder = Path(path).parent
    write_record(origin('extras.probe', argv, args.device) | {'probe': found}, folder / 'probe.json')
    with atomic(folder / 'probe.png') as f:
        f.write(png(draw(found, f'{folder.resolve().name}, step {content["step"]:,}: a linear classifier on each layer')))
    print(folder / 'probe.png')


if __name__ == '__main__':
    command(main)
