"""
What the vectors of a CLIP can do: find the caption of an image, and classify images, without any example and with few.

    python -m extras.zeroshot out/emoji_clip
    python -m extras.zeroshot out/shapes_clip --dataset=shapes_classes --prompts "a {};a small {};a large {}"
    python -m extras.zeroshot out/cifar10_clip --dataset=mnist_images --names zero,one,two,three,four,five,six,seven,eight,nine

- Zero-shot: the class whose caption is most similar to the image, by the first prompt, and by the mean vector of all prompts
  (Radford et al. 2021, section 3.1.4).  Classes that no caption of the training split names are judged apart.
- Recall: how often the right caption is among the 1 or 5 most similar to an image, and the other way round, on the test split
  of the data that the model was trained on.
- Few-shot: ridge regression from the vectors of the images to the classes, on 1, 2, 4 ... random examples of each class,
  the mean of --draws draws, all judged on the test split.

Written to zeroshot_<dataset>.json in the folder of the run, and drawn beside it.  Without --dataset only the recall is
measured, and written to recall.json.

N images   E dimensions of the space   K classes
"""

import re

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from harness import Arguments, UserError, checkpoint, command, data, device
from harness.captions import PROMPTS, encode_captions
from harness.files import atomic
from harness.images import patches, standardise
from race import tables
from race.page import origin, write_record

BATCH, RIDGE = 200, 0.1


def arguments(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('run', help='the folder of a run of clip.py')
    parser.add_argument('--dataset', help='data/<dataset>: images with classes (default: only the recall is measured)')
    parser.add_argument('--prompts', type=str, help='captions with {} for the name of a class, with semicolons between them '
                        f'(default {";".join(PROMPTS)!r})')
    parser.add_argument('--names', type=str, help='of the classes, with commas between them (default: those of the data set)')
    parser.add_argument('--shots', type=str, help='examples of each class (default 1,2,4,8,16)')
    parser.add_argument('--draws', type=int, help='random choices of examples (default 5)')
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:N')
    args = parser.parse_args(argv)
    defaults = {'prompts': ';'.join(PROMPTS), 'shots': '1,2,4,8,16', 'draws': 5}
    for name in ('names', *defaults):
        if getattr(args, name) is None:
            setattr(args, name, defaults.get(name))
        elif args.dataset is None:
            raise UserError(f'--{name} has no effect without --dataset: give images with classes, too, or leave it out')
    args.prompts = [prompt.strip() for prompt in args.prompts.split(';')]
    if not all(prompt.count('{}') == 1 for prompt in args.prompts):
        raise UserError(f'--prompts={";".join(args.prompts)!r}: each prompt must have one {{}}, for the name of a class')
    shots = args.shots.split(',')
    if not all(n.strip().isdecimal() and int(n) for n in shots) or args.draws < 1:
        raise UserError(f'--shots={args.shots} must be numbers above 0, such as 1,2,4, and --draws={args.draws} at least 1')
    args.shots = sorted({int(n) for n in shots})
    return args


@torch.no_grad()
def image_vectors(model, images, content):
    """(N, E) of length 1.  images: (N, H, W, C) uint8, which are scaled, and repeated in three channels, as the model needs."""
    H, W, C = content['data']['shape']
    where, found = next(model.parameters()).device, []
    for i in tqdm(range(0, len(images), BATCH), 'images', leave=False, disable=None):
        x = np.array(images[i:i + BATCH])
        x = x.repeat(C, 3) if x.shape[3] == 1 else x
        if x.shape[3] != C:
            raise UserError(f'the images have {x.shape[3]} channels, but this model reads {C}: choose another dataset')
        if x.shape[1:3] != (H, W):
            x = F.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2).float(), (H, W), mode='bilinear', antialias=True)
            x = x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        x = patches(standardise(x, content['data']['standard']), content['loop']['patch'])
        found.append(F.normalize(model(x.to(where))[0][:, 0].float().cpu(), dim=1))
    return torch.cat(found)


@torch.no_grad()
def class_vectors(model, tokenizer, names, prompts):
    """(K, E) of length 1: of each class, the mean vector of its name in the prompts."""
    where = next(model.parameters()).device
    found = [model.embed_texts(encode_captions([prompt.format(name) for name in names], tokenizer, model).to(where)).float()
             for prompt in prompts]
    return F.normalize(torch.stack(found).mean(0).cpu(), dim=1)


@torch.no_grad()
def recall(model, own):
    """On the test split of its own data: the recalls, and the number of images and of different captions."""
    where, (x, y), parts = next(model.parameters()).device, own.splits['test'], []
    for i in range(0, len(x), BATCH):
        batch = [t.to(where) for t in own.examples('test', np.arange(i, min(i + BATCH, len(x))))]
        parts.append(own.score(model(*batch)[0], *batch))
    found = own.total(parts)
    return {k: found[k] for k in own.columns} | {'images': len(x), 'captions': len(np.unique(y, axis=0))}


def probe(x, y, classes, test):
    """The answers (M,) of a ridge regression from vectors (N, E) to classes y (N,), on test vectors (M, E)."""
    mean = x.mean(0)
    design = F.pad(x - mean, (0, 1), value=1).double()
    target = F.one_hot(y, classes).double()
    weights = torch.linalg.solve(design.T @ design + RIDGE * torch.eye(design.shape[1]), design.T @ target)
    return (F.pad(test - mean, (0, 1), value=1).double() @ weights).argmax(1)


def choices(y, shots, draws):
    """{n: the indices (draws, n K) of random examples, n of each class}, without those n that a class of y (N,) lacks."""
    found, counts = {}, np.bincount(y)
    for n in shots:
        if n > counts.min():
            print(f'left out: {n} examples of each class, because one class has {counts.min()}')
            continue
        rngs = [np.random.default_rng((draw, n)) for draw in range(draws)]
        found[n] = np.stack([np.concatenate([rng.choice(np.flatnonzero(y == k), n, replace=False) for k in range(len(counts))])
                             for rng in rngs])
    return found


def draw(record, title):
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(6.4, 4), layout='constrained')
    shots = [int(n) for n in record['few_shot']]
    for (group, size), style in zip(record['classes'].items(), ('-', '--'), strict=False):
        if not size:
            continue
        ax.plot(shots, [row[group] for row in record['few_shot'].values()], style, marker='o', color='#2e86ab',
                label=f'linear probe, {group}')
        for name, colour in (('prompt', '#d1495b'), ('ensemble', '#2f8458')):
            ax.axhline(record[name][group], ls=style, color=colour, label=f'zero-shot by {name}, {group}')
    ax.axhline(1 / sum(record['classes'].values()), color='grey', lw=1, ls=':', label='chance')
    ax.set_xscale('log', base=2)
    ax.set_xticks(shots, shots)
    ax.set(xlabel='examples of each class', ylabel='accuracy', ylim=(0, 1.02))
    ax.set_title(title, fontsize=10, parse_math=False)
    ax.legend(fontsize=7, frameon=False)
    ax.spines[['top', 'right']].set_visible(False)
    return fig


def evaluate(model, tokenizer, content, own, dataset, names, args):
    """Accuracies {group: share} on the test split, by the first prompt, by all prompts, and by probes.  own: the data that the
    model was trained on."""
    known = ' '.join({own.text(row) for row in own.splits['train'][1]})
    named = torch.tensor([bool(re.search(rf'\b{re.escape(name)}\b', known)) for name in names])
    (images, y), (test, truth) = dataset.splits['train'], dataset.splits['test']
    test, truth = image_vectors(model, test, content), torch.from_numpy(truth.astype(np.int64))
    chosen = choices(y, args.shots, args.draws)
    some = np.unique(np.concatenate([i.ravel() for i in chosen.values()])) if chosen else np.empty(0, int)
    few = image_vectors(model, images[some], content) if chosen else None
    classes = torch.from_numpy(y[some].astype(np.int64))

    def few_shot(rows):
        """The answers (draws, M) of the probes on these examples, of which row is one draw."""
        return torch.stack([probe(few[i], classes[i], len(names), test) for i in np.searchsorted(some, rows)])
    groups = {'named in training': named, 'never named': ~named}

    def score(answers):
        right = (answers == truth).float().view(-1, len(truth)).mean(0)
        return {group: right[inside[truth]].mean().item() for group, inside in groups.items() if inside.any()}

    def zero_shot(prompts):
        return score((test @ class_vectors(model, tokenizer, names, prompts).T).argmax(1))
    return {'prompts': args.prompts, 'images': len(truth),
            'classes': {group: int(inside.sum()) for group, inside in groups.items()},
            'prompt': zero_shot(args.prompts[:1]), 'ensemble': zero_shot(args.prompts),
            'few_shot': {n: score(few_shot(rows)) for n, rows in chosen.items()}}


def main(argv):
    args = arguments(argv)
    path = checkpoint.find(args.run)
    model, content = checkpoint.load_model(path)
    if model.modality != 'captions':
        raise UserError(f'{args.run} does not compare images with captions: choose a run of clip.py')
    if (own := data.data_of(content)) is None:
        raise UserError(f'data/{content["loop"]["dataset"]}, which {args.run} was trained on, is missing or another: prepare '
                        f'it again')
    name, classes = 'recall', {}
    if args.dataset is not None:
        name, dataset = f'zeroshot_{args.dataset}', data.open_data(args.dataset, modality='images')
        if dataset.unit != 'images':
            raise UserError(f'data/{args.dataset} is {dataset.noun} data, and no images with classes: choose another dataset')
        names = [name.strip() for name in args.names.split(',')] if args.names is not None else dataset.meta['labels']
        if len(names) != dataset.outputs or not all(names):
            raise UserError(f'--names={args.names} must be {dataset.outputs} names, those of the classes of data/'
                            f'{args.dataset}')
    model.to(device.pick_device(args.device, 0, 1))
    if args.dataset is not None:
        classes = evaluate(model, checkpoint.tokenizer(content, path), content, own, dataset, names, args)
        print(f'{classes["images"]:,} images of {len(names)} classes, chance {1 / len(names):.1%}; ' +
              ', '.join(f'{n} {group}' for group, n in classes['classes'].items()))
    record = {'step': content['step'], 'recall': recall(model, own)} | classes
    print(tables.zeroshot(record))
    folder = path.resolve().parent
    write_record(origin('extras.zeroshot', argv, args.device) | {'zeroshot': record}, folder / f'{name}.json')
    if classes:
        import matplotlib
        matplotlib.use('Agg')
        from views.behaviour import png
        with atomic(folder / f'{name}.png') as f:
            f.write(png(draw(record, f'{folder.name} on {args.dataset}')))
        print(folder / f'{name}.png')


if __name__ == '__main__':
    command(main)
