"""
Single shapes, and as their classes all combinations of a colour and a shape: data/shapes_classes.

    python prepare/shapes_classes.py [--examples=3600] [--seed=0] [--name=NAME]

Also those that prepare/shapes.py holds out.  For the zero-shot classification by a model that was trained on data/shapes.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import SPLITS, command
from prepare.common import held_out, task_parser, write_images
from prepare.shapes import COLOURS, SHAPES, scene


def main(argv):
    args = task_parser(__doc__, __file__, 3600).parse_args(argv)
    rng, kinds, splits = np.random.default_rng((args.seed, 1)), [(c, s) for c in COLOURS for s in SHAPES], {}
    for split in SPLITS:
        y = np.arange(args.examples if split == 'train' else held_out(args.examples)) % len(kinds)
        splits[split] = {'x': np.stack([scene(rng, [kinds[k]])[0] for k in y]), 'y': y.astype(np.uint8)}
    write_images(args.name, splits, {'name': f'single shapes, {args.examples:,} for training, seed {args.seed}'},
                 Path(__file__).name, labels=[' '.join(kind) for kind in kinds])


if __name__ == '__main__':
    command(main)
