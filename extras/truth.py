"""
How many captions that a model writes are true of their pictures, on a data set that can tell, such as shapes:

    python -m extras.truth out/shapes_captions

A picture has several true captions, so the share of those that the data set has is lower.  The parts of the test split are
judged apart: 'held out' are combinations that no picture for training has.  As a floor, the captions of other pictures of the
part are judged too.  Written to truth.json in the folder of the run.
"""

import importlib
from pathlib import Path

import torch
from tqdm import tqdm

from harness import Arguments, UserError, checkpoint, command, data, device
from race.page import origin, write_record

BATCH = 100


def arguments(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('run', help='the folder of a run of a model that writes captions')
    parser.add_argument('--beams', type=int, default=1, help='width of the beam search (default 1: greedy)')
    parser.add_argument('--examples', type=int, default=0, help='pictures of each part, at most (default 0: all)')
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:N')
    args = parser.parse_args(argv)
    if args.beams < 1 or args.examples < 0:
        raise UserError(f'--beams={args.beams} must be at least 1, and --examples={args.examples} at least 0')
    return args


def checker(dataset):
    """is_true(image, caption) of the script that made the data set.  Raises UserError if it has none."""
    found = getattr(importlib.import_module(f'prepare.{Path(dataset.meta["script"]).stem}'), 'is_true', None)
    if found is None:
        raise UserError(f'prepare/{dataset.meta["script"]} cannot tell whether a caption is true: choose a run on shapes')
    return found


@torch.no_grad()
def write(model, dataset, indices, beams):
    """The captions that a model writes for examples of the test split."""
    where, made = next(model.parameters()).device, []
    for i in tqdm(range(0, len(indices), BATCH), 'captions', leave=False, disable=None):
        x, _ = dataset.examples('test', indices[i:i + BATCH])
        made += [dataset.text(ids) for ids in model.decode(x.to(where), beams).cpu()]
    return made


def main(argv):
    args = arguments(argv)
    path = checkpoint.find(args.run)
    model, content = checkpoint.load_model(path)
    dataset = data.data_of(content)
    if model.modality != 'pairs' or 'shape' not in content['data'] or dataset is None:
        raise UserError(f'{args.run} writes no captions of images, or data/{content["loop"]["dataset"]} is missing or another: '
                        f'choose a run such as that of config/shapes_captions.py')
    is_true, found = checker(dataset), {}
    model.to(device.pick_device(args.device, 0, 1))
    for name, indices in (dataset.parts or {'test': dataset.test_indices()}).items():
        indices = indices[:args.examples or None]
        images, own = dataset.splits['test'][0][indices], [dataset.text(row) for row in dataset.splits['test'][1][indices]]
        made = write(model, dataset, indices, args.beams)
        true, others = ([is_true(image, text) for image, text in zip(images, texts, strict=True)]
                        for texts in (made, own[1:] + own[:1]))
        found[name] = {'pictures': len(indices), 'true': sum(true) / len(true), 'floor': sum(others) / len(others),
                       'same': sum(a == b for a, b in zip(made, own, strict=True)) / len(own)}
        print(f'{name}: of {len(indices):,} captions {found[name]["true"]:.1%} are true (of those of other pictures '
              f'{found[name]["floor"]:.1%}), {found[name]["same"]:.1%} are the ones of the data set')
        for text in [text for text, ok in zip(made, true, strict=True) if not ok][:3]:
            print(f'    not true: {text}')
    write_record(origin('extras.truth', argv, args.device) | {'step': content['step'], 'beams': args.beams, 'truth': found},
                 path.resolve().parent / 'truth.json')


if __name__ == '__main__':
    command(main)
