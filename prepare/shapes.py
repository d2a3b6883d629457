"""
Pictures of shapes with captions that are true of them, and a checker of captions: data/shapes.

    python prepare/shapes.py [--examples=40000] [--seed=0] [--name=NAME]

    a small red circle above a blue square              a yellow triangle, a white square and a large green circle

One to three shapes on 32 x 32 black pixels, whose captions say their colours and sometimes their sizes; with two shapes, also
how they lie. The combinations HELD_OUT are in no picture for training or validation: they are in those of the last part of the
test split, which meta.json's 'parts' names. is_true() says whether a caption is true of a picture, also of one that a model
has drawn.
"""

import re
import sys
from itertools import permutations
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command, require_memory
from prepare.common import held_out, task_parser, write_images
from prepare.pictures import caption_tokenizer

SIDE, GAP, CLEAR = 32, 2, 4     # pixels: of a picture, between two shapes, by which 'above' is more above than beside
COLOURS = {'red': (235, 40, 40), 'green': (40, 215, 60), 'blue': (50, 80, 245), 'yellow': (245, 230, 40),
           'purple': (190, 50, 230), 'white': (245, 245, 245)}
SHAPES = 'circle', 'square', 'triangle'
SIZES = {'small': (6, 7, 8), 'large': (11, 12, 13)}         # pixels
HELD_OUT = {('red', 'square'), ('blue', 'triangle'), ('yellow', 'circle')}
RELATIONS = {'above': (-1, 0), 'below': (1, 0), 'left of': (0, -1), 'right of': (0, 1)}      # of the first: down, right
OBJECT = re.compile(rf'a (?:({"|".join(SIZES)}) )?({"|".join(COLOURS)}) ({"|".join(SHAPES)})')


def mask(shape, height, width):
    """The pixels of a shape, (height, width) bool."""
    v, u = (np.arange(n) * 2 / n + 1 / n - 1 for n in (height, width))          # the centers of the pixels, -1 to 1
    v, u = v[:, None], u[None]
    return {'circle': u ** 2 + v ** 2 <= 1, 'square': (u < 2) & (v < 2), 'triangle': abs(u) <= (v + 1) / 2 + 1 / width}[shape]


def relation(a, b):
    """How a center (down, right) lies to another, and by how many pixels this is clearer than any other relation."""
    down, right = a[0] - b[0], a[1] - b[1]
    vertical = abs(down) > abs(right)
    step = (int(np.sign(down)), 0) if vertical else (0, int(np.sign(right)))
    return next((name for name, s in RELATIONS.items() if s == step), None), abs(abs(down) - abs(right))


def scene(rng, kinds):
    """(image (32, 32, 3) uint8, caption) of shapes, with kinds [(colour, shape), ...]."""
    while True:
        sizes = [list(SIZES)[rng.integers(2)] for _ in kinds]
        sides = [int(rng.choice(SIZES[size])) for size in sizes]
        corners = [rng.integers(1, SIDE - side, size=2) for side in sides]
        boxes = [(top, left, top + side + GAP, left + side + GAP) for (top, left), side in zip(corners, sides, strict=True)]
        apart = all(a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
                    for i, a in enumerate(boxes) for b in boxes[:i])
        how, clear = relation(*(corner + side / 2 for corner, side in zip(corners, sides, strict=True))) if len(kinds) == 2 \
            else (None, CLEAR)
        if apart and clear >= CLEAR:
            break
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    for (colour, shape), (top, left), side in zip(kinds, corners, sides, strict=True):
        image[top:top + side, left:left + side][mask(shape, side, side)] = COLOURS[colour]
    words = [f'a {size} {colour} {shape}' if rng.random() < 0.5 else f'a {colour} {shape}'
             for size, (colour, shape) in zip(sizes, kinds, strict=True)]
    if len(words) == 2:
        return image, f'{words[0]} {how} {words[1]}'
    return image, f'{", ".join(words[:-1])} and {words[-1]}' if len(words) > 1 else words[0]


def count(caption):
    """The number of shapes that a caption names."""
    return len(OBJECT.findall(caption))


# the checker ---------------------------------------------------------------------------------------------------------------

def find(image):
    """[(colour, shape, size, center)] of the shapes in an image (H, W, 3) of 0 to 255: the connected parts of one colour.
    What is too small to be a shape is left out; what looks like none has shape None."""
    from scipy.ndimage import find_objects, label
    image = np.asarray(image, dtype=np.float64)
    bright = image.max(-1)
    palette = np.array(list(COLOURS.values()), float)
    hues = image / np.maximum(bright, 1)[..., None]             # so that the dark edge of a shape has its colour
    nearest = ((hues[:, :, None] - palette / palette.max(1, keepdims=True)) ** 2).sum(-1).argmin(-1)
    found = []
    for i, colour in enumerate(COLOURS):
        parts, _ = label((nearest == i) & (bright > 110))
        for k, box in enumerate(find_objects(parts), 1):
            part = parts[box] == k
            if part.sum() < 14 or min(part.shape) < 4:          # the smallest shape is a triangle of 6 x 6
                continue
            scores = {shape: (part & m).sum() / (part | m).sum() for shape in SHAPES for m in [mask(shape, *part.shape)]}
            best = max(scores, key=scores.get)
            center = tuple((edge.start + edge.stop) / 2 for edge in box)
            found.append((colour, best if scores[best] > 0.7 else None, 'small' if sum(part.shape) < 19 else 'large', center))
    return found


def is_true(image, caption):
    """Whether a caption is true of an image (H, W, 3) of 0 to 255: the image has the shapes that it names and no others, and
    they lie as it says.  A text that is no caption is true of nothing."""
    words = [match.groups() for match in OBJECT.finditer(caption)]
    rest = OBJECT.sub('X', caption)
    how = next((name for name in RELATIONS if rest == f'X {name} X'), None)
    if how is None and rest not in ('X', 'X, X and X'):
        return False
    objects = find(image)

    def fits(order):
        chosen = [objects[i] for i in order]
        named = all((size or o[2], colour, shape) == (o[2], o[0], o[1]) for (size, colour, shape), o in
                    zip(words, chosen, strict=True))
        return named and (how is None or relation(chosen[0][3], chosen[1][3])[0] == how)
    return len(objects) == len(words) and any(map(fits, permutations(range(len(words)))))


def main(argv):
    args = task_parser(__doc__, __file__, 40_000).parse_args(argv)
    require_memory(4 * 3 * SIDE ** 2 * args.examples, f'--examples={args.examples}')
    rng, held, seen = np.random.default_rng(args.seed), held_out(args.examples), set()
    every = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    known, splits = [kind for kind in every if kind not in HELD_OUT], {}

    def draw(count, new):
        """(images, captions) that are in no part yet.  new: one of the shapes, at random, is one of HELD_OUT."""
        made = []
        while len(made) < count:
            n = rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2])
            kinds = [known[rng.integers(len(known))] for _ in range(n)]
            if new:
                kinds[rng.integers(n)] = sorted(HELD_OUT)[rng.integers(len(HELD_OUT))]
            image, caption = scene(rng, kinds)
            if image.tobytes() not in seen:
                seen.add(image.tobytes())
                made.append((image, caption))
        return made
    counts = {'train': [(args.examples, False)], 'val': [(held, False)], 'test': [(held, False), (held, True)]}
    for split, parts in counts.items():
        images, captions = zip(*(pair for part in parts for pair in draw(*part)), strict=True)
        splits[split] = {'x': np.stack(images), 'captions': captions}
    write_images(args.name, splits, {'name': f'shapes, {args.examples:,} for training, seed {args.seed}'}, Path(__file__).name,
                 tokenizer=caption_tokenizer('shapes', splits['train']['captions']),
                 parts={'seen': (0, held), 'held out': (held, 2 * held)})


if __name__ == '__main__':
    command(main)
