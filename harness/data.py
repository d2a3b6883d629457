"""
Data sets on disk, data/<name>/: meta.json, and for text train.bin and val.bin, flat files of tokens.

A batch is a pure function of (seed, step): resuming replays nothing and skips nothing, evaluating changes nothing, and
the windows of a step are the same however many processes share them.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from harness import ROOT, UserError
from harness.files import atomic
from harness.tokenizer import Tokenizer

SCAN = 1 << 26      # tokens of a file that are looked at when it is opened


class TextData:
    """The tokens of data/<name>, by memory map.  Raises UserError for files that are not what meta.json says."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        if self.meta.get('kind') != 'text':
            raise UserError(f"{self.folder} holds data of kind '{self.meta.get('kind')}', not text")
        try:
            self.vocab_size, self.fingerprint = self.meta['vocab_size'], self.meta['fingerprint']
            self.tokenizer = Tokenizer(self.meta['tokenizer'])
            self.tokens = {split: self._open(split) for split in ('train', 'val')}
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f'{self.folder / "meta.json"} is damaged ({type(e).__name__}: {e}): prepare the data '
                            f'again') from None

    def _open(self, split):
        path, count = self.folder / f'{split}.bin', self.meta['tokens'][split]
        if self.meta['dtype'] not in ('uint16', 'uint32'):
            raise UserError(f"{self.folder / 'meta.json'}: dtype '{self.meta['dtype']}' is unknown: uint16 and uint32 are")
        dtype = np.dtype(self.meta['dtype'])
        size = path.stat().st_size if path.exists() else 0
        if size != count * dtype.itemsize:
            raise UserError(f'{path} is truncated or of another dtype: {size:,} bytes, where {count:,} tokens of {dtype} '
                            f'take {count * dtype.itemsize:,}: run python prepare/{self.meta["script"]} again')
        tokens = np.memmap(path, dtype=dtype, mode='r') if count else np.zeros(0, dtype)    # no map of an empty file
        # A corrupt file is told at once where that is cheap; rows() looks at every token that is really used.
        self._check(tokens[:SCAN], path)
        return tokens

    def _check(self, tokens, path):
        if tokens.size and (worst := int(tokens.max())) >= self.vocab_size:
            raise UserError(f'{path} holds the token {worst}, but the vocabulary has {self.vocab_size}: the file is '
                            f'corrupt, or of another dtype than {self.meta["dtype"]}')

    def rows(self, split, starts, block_size, before=0):
        """Windows at the given starts: x and y, each (len(starts), block_size) int64; y is the token after x.

        before: x begins with so many tokens more, those in front of the window; -1 where the text has not begun."""
        tokens = self.tokens[split]
        rows = np.stack([tokens[s:s + block_size + 1] for s in starts])
        self._check(rows, self.folder / f'{split}.bin')
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

    def need(self, block_size):
        for split, tokens in self.tokens.items():
            if len(tokens) <= block_size:
                raise UserError(f'{self.folder}/{split}.bin has {len(tokens):,} tokens, but one window of block_size='
                                f'{block_size} and its target take {block_size + 1:,}: take a smaller block_size or more '
                                f'text')


class LeakingText(TextData):
    """The split of PACING's seed: a random tenth of all windows, which overlap, is for validation, so every token of the
    validation windows is trained on too.  Kept to show what a leak is worth."""

    def __init__(self, folder):
        super().__init__(folder)
        whole = np.concatenate([self.tokens['train'], self.tokens['val']])
        self.tokens = {'train': whole, 'val': whole}
        self.meta['fingerprint'] = self.fingerprint = f'{self.fingerprint}-leaking'
        self.starts = {}

    def _starts(self, block_size):
        if block_size not in self.starts:
            self.need(block_size)
            order = np.random.default_rng(0).permutation(len(self.tokens['train']) - block_size)
            self.starts[block_size] = np.split(order, [len(order) // 10])
        return self.starts[block_size]

    def batch_starts(self, count, block_size, seed, step):
        _, starts = self._starts(block_size)
        return np.random.default_rng((seed, step)).choice(starts, size=count)

    def val_starts(self, count, block_size):
        starts, _ = self._starts(block_size)
        return starts[:count or None]


def read_meta(folder):
    path = Path(folder) / 'meta.json'
    try:
        meta = json.loads(path.read_text(encoding='utf-8'))
    except OSError:
        raise UserError(f'there is no data set in {folder} (no meta.json)') from None
    except ValueError as e:
        raise UserError(f'{path} is not JSON ({e}): prepare the data again') from None
    missing = {'kind', 'dtype', 'vocab_size', 'tokens', 'tokenizer', 'source', 'script', 'fingerprint'} \
        - set(meta if isinstance(meta, dict) else ())
    if missing:
        raise UserError(f'{path} lacks {", ".join(sorted(missing))}: prepare the data again')
    return meta


def ensure(name):
    """data/<name>, made by prepare/<name>.py if it is not there."""
    folder, script = ROOT / 'data' / name, ROOT / 'prepare' / f'{name}.py'
    if not (folder / 'meta.json').exists():
        if name == 'text' or not script.is_file():      # text.py makes data sets of other names
            known = {p.stem for p in (ROOT / 'prepare').glob('*.py')} - {'text'} | \
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


def write_text(name, text, tokenizer, source, script, val_fraction=0.1):
    """Write data/<name> from a text: its last tenth is the validation text.

    text: str.  tokenizer: its spec, see harness/tokenizer.py.  source: {'name', 'sha256', ...}, what the text is.
    Each half is encoded by itself, so no token holds text of both."""
    if len(text) < 20:
        raise UserError(f'{source["name"]}: {len(text)} characters are too few to train on')
    cut = int(len(text) * (1 - val_fraction))
    encoder = Tokenizer(tokenizer)
    dtype = np.dtype('uint16' if encoder.n_vocab <= 1 << 16 else 'uint32')
    folder = ROOT / 'data' / name
    counts, hashes = {}, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Renamed from right to left, and meta.json, without which there is no data set, is away while that goes on
        with atomic(folder / 'meta.json', 'w') as described, atomic(folder / 'val.bin') as val, \
                atomic(folder / 'train.bin') as train:
            for split, f, part in (('train', train, text[:cut]), ('val', val, text[cut:])):
                ids = np.array(encoder.encode(part), dtype=dtype).tobytes()
                f.write(ids)
                counts[split] = len(ids) // dtype.itemsize
                hashes.append(hashlib.sha256(ids).hexdigest())
            fingerprint = hashlib.sha256(json.dumps([hashes, str(dtype), tokenizer], sort_keys=True).encode()).hexdigest()[:16]
            json.dump({'kind': 'text', 'dtype': str(dtype), 'vocab_size': encoder.n_vocab, 'tokens': counts,
                       'source': source, 'script': script, 'fingerprint': fingerprint, 'tokenizer': tokenizer},
                      described, indent=1 if tokenizer['kind'] == 'char' else None)
            (folder / 'meta.json').unlink(missing_ok=True)
    except OSError as e:
        raise UserError(f'{folder} cannot be written ({e})') from None
    print(f'data/{name}: {counts["train"]:,} tokens to train, {counts["val"]:,} to validate, vocabulary '
          f'{encoder.n_vocab:,}, {source["name"]}, fingerprint {fingerprint}')
