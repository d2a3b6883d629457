"""
Data sets on disk, data/<name>/: meta.json, for a task what harness/tasks.py tells of, and for text train.bin and val.bin, flat
files of tokens. A large split may be in shards, train_0000.bin and so on, of which meta.json's 'shards' tells the lengths; they
are read as one.

A batch is a pure function of (seed, step): resuming replays nothing and skips nothing, evaluating changes nothing, and
the windows of a step are the same however many processes share them.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from harness import ROOT, UserError
from harness.files import atomic
from harness.tasks import KINDS, TaskData
from harness.tokenizer import Tokenizer

SCAN = 1 << 26      # tokens of a split that are looked at when it is opened


class Shards:
    """Arrays of tokens behind one another, read as one: len(), and slices [a:b], which may go from one into the next."""

    def __init__(self, parts):
        self.parts, self.starts = parts, np.cumsum([0, *map(len, parts)])

    def __len__(self):
        return int(self.starts[-1])

    def __getitem__(self, wanted):
        start, stop, _ = wanted.indices(len(self))
        first, last = np.searchsorted(self.starts, start, 'right') - 1, np.searchsorted(self.starts, stop)
        pieces = [self.parts[i][max(start - self.starts[i], 0):stop - self.starts[i]] for i in range(first, last)]
        return np.concatenate(pieces) if pieces else self.parts[0][:0]


class TextData:
    """The tokens of data/<name>, by memory map.  Raises UserError for files that are not what meta.json says."""
    kind, what, unit, columns = 'text', 'text', 'windows', ()

    def __init__(self, folder):
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        if self.meta.get('kind') != 'text':
            raise UserError(f"{self.folder} holds a task (kind '{self.meta.get('kind')}'), and text is wanted: take another "
                            f'dataset, such as shakespeare_char')
        try:
            self.vocab_size, self.fingerprint = self.meta['vocab_size'], self.meta['fingerprint']
            self.tokenizer = Tokenizer(self.meta['tokenizer'])
            self.tokens = {split: self._open(split) for split in ('train', 'val')}
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f'{self.folder / "meta.json"} is damaged ({type(e).__name__}: {e}): prepare the data '
                            f'again') from None

    def _open(self, split):
        if self.meta['dtype'] not in ('uint16', 'uint32'):
            raise UserError(f"{self.folder / 'meta.json'}: dtype '{self.meta['dtype']}' is unknown: uint16 and uint32 are")
        if split not in self.meta.get('shards', ()):
            return self._map(self.folder / f'{split}.bin', self.meta['tokens'][split], SCAN)
        counts = self.meta['shards'][split]
        if not counts or sum(counts) != self.meta['tokens'][split]:
            raise ValueError(f'the shards of {split} do not add up to its tokens')
        return Shards([self._map(self.folder / shard(split, i), count, SCAN // len(counts)) for i, count in enumerate(counts)])

    def _map(self, path, count, scan):
        dtype = np.dtype(self.meta['dtype'])
        size = path.stat().st_size if path.exists() else 0
        if size != count * dtype.itemsize:
            raise UserError(f'{path} is truncated or of another dtype: {size:,} bytes, where {count:,} tokens of {dtype} '
                            f'take {count * dtype.itemsize:,}: run python prepare/{self.meta["script"]} again')
        tokens = np.memmap(path, dtype=dtype, mode='r') if count else np.zeros(0, dtype)    # no map of an empty file
        # A corrupt file is told at once where that is cheap; rows() looks at every token that is really used.
        self._check(tokens[:scan], path)
        return tokens

    def _check(self, tokens, path):
        if tokens.size and (worst := int(tokens.max())) >= self.vocab_size:
            raise UserError(f'{path} holds the token {worst}, but the vocabulary has {self.vocab_size}: the file is '
                            f'corrupt, or of another dtype than {self.meta["dtype"]}')

    def _name(self, split):
        return self.folder / f'{split}{"_*" if split in self.meta.get("shards", ()) else ""}.bin'

    def rows(self, split, starts, block_size, before=0):
        """Windows at the given starts: x and y, each (len(starts), block_size) int64; y is the token after x.

        before: x begins with so many tokens more, those in front of the window; -1 where the text has not begun."""
        tokens = self.tokens[split]
        rows = np.stack([tokens[s:s + block_size + 1] for s in starts])
        self._check(rows, self._name(split))
        rows = torch.from_numpy(rows.astype(np.int64))
        x, y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        if not before:
            return x, y
        earlier = np.full((len(starts), before), -1)
        for row, s in zip(earlier, starts, strict=True):
            row[max(0, before - s):] = tokens[max(0, s - before):s]
        return torch.cat([torch.from_numpy(earlier), x], dim=1), y

    def batch_starts(self, count, block_size, seed, step):
        """Where the windows of one step begin, for all ranks and micro-steps together: (count,)."""
        self.need(block_size)
        return np.random.default_rng((seed, step)).integers(len(self.tokens['train']) - block_size, size=count)

    def val_starts(self, count, block_size):
        """Evenly spaced windows of the validation text, the same for every run with this window; count 0: as many as
        fit side by side."""
        self.need(block_size)
        n = len(self.tokens['val'])
        return np.linspace(0, n - block_size - 1, count or max(1, (n - 1) // block_size)).astype(np.int64)

    def shape(self):
        """What the data dictates of a model's Config."""
        return {'vocab_size': self.vocab_size}

    def score(self, logits, y):
        """Sums over windows: loss in nats and tokens that the model holds likeliest, over all positions that it predicts, and
        over the last of each window, which every architecture predicts; and the counts of both: (6,)."""
        y = y[:, -logits.shape[1]:]
        losses = F.cross_entropy(logits.float().transpose(1, 2), y, reduction='none')                   # (B, T or 1)
        scores = torch.stack([losses, (logits.argmax(-1) == y).float()]).cpu().double()                 # (2, B, T or 1)
        counts = torch.tensor([losses.numel(), len(losses)], dtype=torch.float64)
        return torch.cat([scores.sum((1, 2)), scores[:, :, -1].sum(1), counts])

    def total(self, parts):
        loss, right, loss_full, right_full, n, n_full = torch.stack(parts).sum(0).tolist()
        return {'val_loss': loss / n, 'val_loss_full': loss_full / n_full, 'accuracy': right / n,
                'accuracy_full': right_full / n_full}

    def told(self, row):
        return f'val {row["val_loss"]:.4f} (full window {row["val_loss_full"]:.4f})'

    def need(self, block_size):
        for split, tokens in self.tokens.items():
            if len(tokens) <= block_size:
                raise UserError(f'{self._name(split)} has {len(tokens):,} tokens, but one window of block_size={block_size} '
                                f'and its target take {block_size + 1:,}: take a smaller block_size or more text')


class LeakingText(TextData):
    """The split of PACING's seed: a random tenth of all windows, which overlap, is for validation, so every token of the
    validation windows is trained on too.  Kept to show what a leak is worth."""

    def __init__(self, folder):
        super().__init__(folder)
        whole = Shards([self.tokens['train'], self.tokens['val']])
        self.tokens = {'train': whole, 'val': whole}
        self.meta['fingerprint'] = self.fingerprint = f'{self.fingerprint}-leaking'
        self.starts = {}

    def _starts(self, block_size):
        if block_size not in self.starts:
            self.need(block_size)
            order = np.random.default_rng(0).permutation(len(self.tokens['train']) - block_size)
            if len(order) < 10:
                raise UserError(f'{self.folder} has {len(order)} windows of block_size={block_size}, of which a tenth is none: '
                                f'take a smaller block_size or more text')
            self.starts[block_size] = np.split(order, [len(order) // 10])
        return self.starts[block_size]

    def batch_starts(self, count, block_size, seed, step):
        _, starts = self._starts(block_size)
        return np.random.default_rng((seed, step)).choice(starts, size=count)

    def val_starts(self, count, block_size):
        starts, _ = self._starts(block_size)
        return starts[:count or max(1, len(starts) // block_size)]


def shard(split, number):
    """The file name of one shard."""
    return f'{split}_{number:04d}.bin'


def read_meta(folder):
    path = Path(folder) / 'meta.json'
    try:
        meta = json.loads(path.read_text(encoding='utf-8'))
    except OSError:
        raise UserError(f'there is no data set in {folder} (no meta.json)') from None
    except ValueError as e:
        raise UserError(f'{path} is not JSON ({e}): prepare the data again') from None
    kind = meta.get('kind') if isinstance(meta, dict) else None
    own = {'outputs', 'examples', 'standard'} if kind in KINDS else {'dtype', 'tokens', 'tokenizer'}
    missing = {'kind', 'vocab_size', 'source', 'script', 'fingerprint', *own} - set(meta if isinstance(meta, dict) else ())
    if missing:
        raise UserError(f'{path} lacks {", ".join(sorted(missing))}: prepare the data again')
    return meta


def open_data(name, leaking_split=False, make=True):
    """data/<name>: a TextData, or the TaskData of a task.  make: run prepare/<name>.py if it is not there, which only the
    commands do that train; a checkpoint that is looked at may be a stranger's, and must not make anything run."""
    folder = ensure(name) if make else local(name)
    if not make and not (folder / 'meta.json').exists():
        raise UserError(f'data/{name} is missing, which this checkpoint was trained on: run python prepare/{name}.py first')
    meta = read_meta(folder)
    if meta['kind'] not in KINDS:
        return (LeakingText if leaking_split else TextData)(folder)
    if leaking_split:
        raise UserError(f'leaking_split: data/{name} is a task of {meta["kind"]}, and only windows of text overlap')
    return TaskData(folder, meta)


ANY_NAME = {'text', 'bpe', 'gutenberg'}      # scripts of prepare/ that make data sets of other names


def local(name):
    """data/<name>, which need not exist.  Raises UserError for a name that leads anywhere else: it may come from a stranger's
    checkpoint, and prepare/<name>.py is run by it."""
    check_name(name)
    return ROOT / 'data' / name


def ensure(name):
    """data/<name>, made by prepare/<name>.py if it is not there."""
    check_name(name)
    folder, script = ROOT / 'data' / name, ROOT / 'prepare' / f'{name}.py'
    if not (folder / 'meta.json').exists():
        if name in ANY_NAME or not script.is_file():
            known = {p.stem for p in (ROOT / 'prepare').glob('*.py')} - ANY_NAME | \
                {p.parent.name for p in (ROOT / 'data').glob('*/meta.json')}
            raise UserError(f"there is no data set '{name}': known are {', '.join(sorted(known))}, and python "
                            f"prepare/text.py NAME FILE makes one of any text")
        print(f'data/{name} is missing: running python prepare/{name}.py', flush=True)
        code = subprocess.run([sys.executable, str(script)]).returncode
        if code > 0:
            raise SystemExit(code)      # it has said why
        if code:
            raise UserError(f'prepare/{name}.py was killed by signal {-code}: data/{name} was not made')
    return folder


def check_name(name):
    """Raises UserError if data/<name> cannot be the folder of a data set."""
    if not isinstance(name, str) or not re.fullmatch(r'[A-Za-z0-9_]+', name):
        raise UserError(f"'{name}' cannot name a data set: letters, digits and _ can")


def halves(text):
    """(the training text, the validation text): the last tenth is for validation."""
    cut = int(0.9 * len(text))
    return text[:cut], text[cut:]


def describe(tokens, hashes, dtype, tokenizer, source, script, **more):
    """meta.json of a text.  tokens: {split: how many}.  hashes: the SHA-256 of each file of tokens, train before val."""
    fingerprint = hashlib.sha256(json.dumps([hashes, str(dtype), tokenizer], sort_keys=True).encode()).hexdigest()[:16]
    return {'kind': 'text', 'dtype': str(dtype), 'vocab_size': Tokenizer(tokenizer).n_vocab, 'tokens': tokens, **more,
            'source': source, 'script': script, 'fingerprint': fingerprint, 'tokenizer': tokenizer}


def write_text(name, text, tokenizer, source, script, val=None):
    """Write data/<name> from a text: its last tenth is the validation text, unless there is one of its own.

    text, val: str.  tokenizer: its spec, see harness/tokenizer.py.  source: {'name', 'sha256', ...}, what the text is.
    Each half is encoded by itself, so no token holds text of both."""
    if len(text) < 20:
        raise UserError(f'{source["name"]}: {len(text)} characters are too few to train on')
    parts = halves(text) if val is None else (text, val)
    encoder = Tokenizer(tokenizer)
    dtype = np.dtype('uint16' if encoder.n_vocab <= 1 << 16 else 'uint32')
    folder = ROOT / 'data' / name
    counts, hashes = {}, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Renamed from right to left, and meta.json, without which there is no data set, is away while that goes on
        with atomic(folder / 'meta.json', 'w') as described, atomic(folder / 'val.bin') as val_bin, \
                atomic(folder / 'train.bin') as train_bin:
            for split, f, part in zip(('train', 'val'), (train_bin, val_bin), parts, strict=True):
                ids = np.array(encoder.encode(part), dtype=dtype).tobytes()
                f.write(ids)
                counts[split] = len(ids) // dtype.itemsize
                hashes.append(hashlib.sha256(ids).hexdigest())
            meta = describe(counts, hashes, dtype, tokenizer, source, script)
            json.dump(meta, described, indent=1 if tokenizer['kind'] == 'char' else None)
            (folder / 'meta.json').unlink(missing_ok=True)
    except OSError as e:
        raise UserError(f'{folder} cannot be written ({e})') from None
    print(f'data/{name}: {counts["train"]:,} tokens to train, {counts["val"]:,} to validate, vocabulary '
          f'{encoder.n_vocab:,}, {source["name"]}, fingerprint {meta["fingerprint"]}')
