"""
Emoji with their names, in the drawings of Google's Noto: data/emoji.

    python prepare/emoji.py [--size=32] [--seed=0] [--name=NAME]

1,911 pictures of 64 x 64, scaled to --size on white, each with its name in small letters, "grinning face with smiling eyes", as
its caption and its group, such as "Food & Drink", as its class; a random tenth is for validation and a tenth for testing. Equal
pictures, such as the flags of Norway and of Bouvet Island, are in one split. They come from the npm package
emoji-datasource-google (images: Apache 2.0).
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command
from prepare.common import fetch_package, members, positive, task_parser, write_images
from prepare.pictures import caption_tokenizer, equal, read_images, split_at_random

PACKAGE, SHA256 = 'emoji-datasource-google@16.0.0', 'fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438'
ARCHIVE = 'emoji-datasource-google-16.0.0.tgz'


def write(args, script, captions, sources, source, classes=None, groups=None, **more):
    """Write the pictures [(name, content of a file)], their captions and their classes.  groups: of indices, for
    split_at_random(); None: of equal pictures.  more: for meta.json.  Also for stamps.py."""
    content = {'x': read_images(sources, (args.size, args.size), square=True), 'captions': np.array(captions, dtype=object)}
    parts = split_at_random(len(captions), args.seed, groups or equal(content['x']))
    labels = sorted(set(classes or ()))
    if labels:
        content['y'] = np.array([labels.index(name) for name in classes])
    splits = {split: {key: value[part] for key, value in content.items()} for split, part in parts.items()}
    write_images(args.name, splits, source | {'name': f'{source["name"]}, seed {args.seed}'}, Path(script).name, labels or None,
                 caption_tokenizer(args.name, splits['train']['captions']), **more)


def parser(doc, script):
    found = task_parser(doc, script)
    found.add_argument('--size', type=positive, default=32, help='scale all pictures to SIZE x SIZE pixels')
    return found


def main(argv):
    args = parser(__doc__, __file__).parse_args(argv)
    path = fetch_package('Emoji', f'the archive of {PACKAGE} (npm pack)', ARCHIVE, PACKAGE, SHA256, 'npm', None)
    content = {file.name: raw for file, raw in members(
        path, lambda file: file.name == 'emoji.json' or (file.parent.name == '64' and file.suffix == '.png'))}
    emoji = [e for e in json.loads(content['emoji.json']) if e['image'] in content]
    if not emoji:
        raise UserError(f'{path} contains no emoji: replace it with the archive of {PACKAGE}')
    write(args, __file__, [e['name'].lower() for e in emoji], [(e['image'], content[e['image']]) for e in emoji],
          {'name': f'emoji ({PACKAGE})', 'sha256': SHA256}, [e['category'] for e in emoji])


if __name__ == '__main__':
    command(main)
