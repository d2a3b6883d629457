"""
Your own pictures, with captions or in classes: data/<name>.

    python prepare/pictures.py NAME FOLDER [--size=64]                  # each FILE.png has its caption in FILE.txt
    python prepare/pictures.py NAME FOLDER --table=FILE.tsv             # or in a line of a table: file, tab, caption
    python prepare/pictures.py NAME FOLDER --classes                    # or each folder in FOLDER is a class

A random tenth of the pictures is for validation and a tenth for testing; equal pictures are in one split. All pictures have one
size: without --size, they must have it already; with it they are scaled, and their middle is cut out. They are turned as their
EXIF says; transparent parts become white, and 16 bits become 8. Captions are encoded by a BPE that is trained on those of the
training split.
"""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command, require_memory
from harness.files import read_image
from prepare.common import Parser, natural, positive, read_text, walk, write_images

FORMATS = '.png', '.jpg', '.jpeg', '.gif', '.bmp', '.webp', '.tif', '.tiff'


def read_images(sources, size=None, square=False):
    """(N, H, W, 3) uint8 of [(name, path or bytes)], see read_image().  Raises UserError, with two names, for several sizes."""
    if size:
        require_memory(6 * len(sources) * size[0] * size[1], f'--size={size[0]} for {len(sources):,} pictures')
    images = [read_image(source, size, name, square) for name, source in sources]
    for image, (name, _) in zip(images, sources, strict=True):
        if image.shape != images[0].shape:
            (h, w, _), (H, W, _) = image.shape, images[0].shape
            raise UserError(f'{name} has {w} x {h} pixels and {sources[0][0]} {W} x {H}: bring all to one size by --size')
    return np.stack(images)


def caption_tokenizer(name, captions, merges=1024):
    """The specification of a BPE that is trained on the captions of the training split."""
    from prepare.bpe import END, spec, train
    return spec(name, train(END.join(captions), merges))


def equal(images):
    """[[indices of images (N, H, W, C)]] with the same pixels, in the order of the first of each."""
    groups = {}
    for i, image in enumerate(images):
        groups.setdefault(hashlib.sha256(image.tobytes()).digest(), []).append(i)
    return list(groups.values())


def split_at_random(count, seed, groups):
    """{split: indices}: a random tenth for validation, a tenth for testing, or some more, so that each of the groups, lists of
    indices, is in one split.  Raises UserError if there are too few."""
    parts = {'test': [], 'val': [], 'train': []}
    for which in np.random.default_rng(seed).permutation(len(groups)):
        split = next((name for name in ('test', 'val') if len(parts[name]) < count // 10), 'train')
        parts[split] += groups[which]
    if not all(parts.values()):
        raise UserError(f'there are {count} pictures, {len(groups)} of them different: at least 10 different ones are needed, '
                        f'and more where many are equal')
    return parts


def captions_of(paths, folder, table, longest):
    """The caption of each picture, of the .txt beside it or of a table {file: caption}.  Raises UserError."""
    if table:
        rows = {}
        for number, line in enumerate(read_text(table).split('\n'), 1):
            if line.strip():
                file, tab, caption = line.partition('\t')
                if not tab or '\t' in caption:
                    raise UserError(f'{table}, line {number} has {1 + line.count(chr(9))} columns: expected a file and its '
                                    f'caption with one tab between them')
                if (file := os.path.normpath(file.strip())) in rows:
                    raise UserError(f'{table}, line {number} is another caption of {file}: keep one line of each picture')
                rows[file] = caption
        if unknown := rows.keys() - {str(path.relative_to(folder)) for path in paths}:
            raise UserError(f'{table} names {min(unknown)}, but there is no such picture in {folder}: correct the line')
    found = []
    for path in paths:
        where = table or path.with_suffix('.txt')
        text = rows.get(str(path.relative_to(folder))) if table else read_text(where) if where.exists() else None
        if text is None:
            raise UserError(f'{path} has no caption in {where}: write one, or remove the picture')
        text = ' '.join(text.split())
        if not 0 < len(text) <= longest:
            raise UserError(f'the caption of {path} in {where} has {len(text)} characters: it must have 1 to '
                            f'--longest={longest}')
        found.append(text)
    return found


def main(argv):
    parser = Parser(__doc__)
    parser.add_argument('name', help='the data set becomes data/<name>')
    parser.add_argument('folder', metavar='FOLDER', help='of the pictures; its folders are searched, too')
    how = parser.add_mutually_exclusive_group()
    how.add_argument('--classes', action='store_true', help='the folder of a picture is its class; there are no captions')
    how.add_argument('--table', metavar='FILE', help='a file of FOLDER, a tab and its caption in each line, in UTF-8')
    parser.add_argument('--size', type=positive, help='scale all pictures to SIZE x SIZE pixels')
    parser.add_argument('--longest', type=positive, default=200, help='characters of a caption, at most')
    parser.add_argument('--seed', type=natural, default=0, help='random seed of the split')
    args = parser.parse_args(argv)
    paths = [path for path in walk(args.folder) if path.suffix.lower() in FORMATS]
    if not paths:
        raise UserError(f'{args.folder} contains no pictures ({", ".join(FORMATS)}): name the folder that they are in')
    labels, content = None, {}
    if args.classes:
        names = [path.relative_to(args.folder).parts[0] for path in paths]
        if loose := [path for path in paths if path.parent == Path(args.folder)]:
            raise UserError(f'{loose[0]} is in no folder of {args.folder}, so it has no class: move it into one')
        labels = sorted(set(names))
        content['y'] = np.array([labels.index(name) for name in names])
    else:
        content['captions'] = np.array(captions_of(paths, args.folder, args.table, args.longest), dtype=object)
    content['x'] = read_images([(path, path) for path in paths], args.size and (args.size, args.size))
    parts = split_at_random(len(paths), args.seed, equal(content['x']))
    splits = {split: {key: value[part] for key, value in content.items()} for split, part in parts.items()}
    source = {'name': f'{Path(args.folder).resolve().name}, {len(paths):,} pictures, seed {args.seed}',
              'sha256': hashlib.sha256(content['x'].data).hexdigest()}
    tokenizer = None if args.classes else caption_tokenizer(args.name, splits['train']['captions'])
    write_images(args.name, splits, source, Path(__file__).name, labels, tokenizer)


if __name__ == '__main__':
    command(main)
