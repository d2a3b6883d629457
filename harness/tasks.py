"""
Data of tasks, data/<name>/: meta.json, and {train,val,test}_{x,y}.npy, read by memory map.

x is (N, T) whole numbers, tokens of a vocabulary, or (N, T, D) numbers, a token of D features each; shorter texts have the
token 0 in front. y says what is wanted, by meta.json's kind:

    classify   (N,) a class, 0 to outputs - 1          logits (B, outputs), cross-entropy
    bits       (N, outputs) 0 or 1                     logits (B, outputs), a cross-entropy a bit
    regress    (N,) a number                           (B, 1), squared error of the number as standardised by the training split

N examples   B batch   T tokens   D features
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from harness import ROOT, UserError
from harness.files import atomic

KINDS = ('classify', 'bits', 'regress')
SPLITS = ('train', 'val', 'test')
METRICS = {'accuracy': 'accuracy', 'error': 'mean absolute error', 'auc': 'ROC-AUC'}


class TaskData:
    """The examples of data/<name>.  Raises UserError for files that are not what meta.json says."""
    tokenizer, what, unit, columns = None, 'task', 'examples', ('error', 'auc')

    def __init__(self, folder, meta):
        self.folder, self.meta = Path(folder), meta
        try:
            self.kind, self.outputs, self.fingerprint = meta['kind'], meta['outputs'], meta['fingerprint']
            self.vocab_size, self.standard = meta['vocab_size'], meta['standard']
            self.splits = {split: (self._map(f'{split}_x'), self._map(f'{split}_y')) for split in SPLITS}
            for split, (x, y) in self.splits.items():
                if not len(x) == len(y) == meta['examples'][split] or x.shape[1:] != self.splits['train'][0].shape[1:]:
                    raise UserError(f'{self.folder}/{split}_x.npy and {split}_y.npy are not the {meta["examples"][split]:,} '
                                    f'examples that meta.json tells of: run python prepare/{meta["script"]} again')
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f'{self.folder / "meta.json"} is damaged ({type(e).__name__}: {e}): prepare the data '
                            f'again') from None
        y = self.splits['train'][1]
        self.y_standard = (float(y.mean()), float(y.std()) or 1.0) if self.kind == 'regress' else (0.0, 1.0)

    def _map(self, name):
        path = self.folder / f'{name}.npy'
        try:
            return np.load(path, mmap_mode='r', allow_pickle=False)
        except (OSError, ValueError, EOFError) as e:
            raise UserError(f'{path} is missing or truncated ({" ".join(str(e).split())[:80]}): run python '
                            f'prepare/{self.meta["script"]} again') from None

    def shape(self):
        """What the data dictates of a model's Config."""
        x = self.splits['train'][0]
        return {'block_size': x.shape[1], 'vocab_size': self.vocab_size, 'features': x.shape[2] if x.ndim == 3 else 0,
                'outputs': self.outputs, 'kind': self.kind}

    def rows(self, split, where, block_size=None, before=0):
        """Examples where (B,): x (B, T) int64 or (B, T, D) float32, with the training split's mean and deviation taken out;
        y (B,) int64, (B, outputs) float32 or (B,) float32, standardised."""
        x, y = (np.stack([part[i] for i in where]) for part in self.splits[split])
        if self.vocab_size:
            if x.max(initial=0) >= self.vocab_size:
                raise UserError(f'{self.folder}/{split}_x.npy holds the token {x.max()}, but the vocabulary has '
                                f'{self.vocab_size}: prepare the data again')
            x = torch.from_numpy(x.astype(np.int64))
        else:
            x = (torch.from_numpy(x.astype(np.float32)) - self.standard[0]) / self.standard[1]
        if self.kind == 'classify':
            return x, torch.from_numpy(y.astype(np.int64))
        return x, (torch.from_numpy(y.astype(np.float32)) - self.y_standard[0]) / self.y_standard[1]

    def batch_starts(self, count, block_size, seed, step):
        """The examples of one step, for all ranks and micro-steps together: (count,)."""
        return np.random.default_rng((seed, step)).integers(len(self.splits['train'][0]), size=count)

    def val_starts(self, count, block_size):
        """Evenly spaced examples of the validation split, the same for every run; count 0: all."""
        n = len(self.splits['val'][0])
        return np.linspace(0, n - 1, min(count or n, n)).round().astype(np.int64)

    def need(self, block_size):
        T = self.splits['train'][0].shape[1]
        if block_size != T:
            raise UserError(f'data/{self.folder.name} has examples of {T} tokens, not block_size={block_size}')

    # what it is worth --------------------------------------------------------------------------------------------------------

    def score(self, logits, y):
        """What the answers are worth, a row for each example: (B, 4) loss, right or wrong (of bits: the share), how far off
        (of numbers), and by how much the second class is preferred (of two)."""
        logits, y, nan = logits.float().cpu(), y.cpu(), torch.full((len(y),), torch.nan)
        right, off, sure = nan, nan, nan
        if self.kind == 'bits':
            losses = F.binary_cross_entropy_with_logits(logits, y, reduction='none').mean(-1)
            right = ((logits > 0) == (y > 0.5)).float().mean(-1)
        elif self.kind == 'regress':
            losses = (logits[:, 0] - y).square()
            off = (logits[:, 0] - y).abs() * self.y_standard[1]
        else:
            losses = F.cross_entropy(logits, y, reduction='none')
            right = (logits.argmax(-1) == y).float()
            if self.meta.get('numbers'):            # the classes are the numbers from 0
                off = (logits.argmax(-1) - y).abs().float()
            if self.outputs == 2:
                sure = logits[:, 1] - logits[:, 0]
                off = y.float()                     # the class, for auc()
        return torch.stack([losses, right, off, sure], dim=1).double()

    def total(self, parts):
        """{'val_loss', and of METRICS what this kind of task has} of the scores of all examples."""
        losses, right, off, sure = torch.cat(parts).unbind(1)
        found = {'val_loss': losses.mean().item()}
        if not right.isnan().any():
            found['accuracy'] = right.mean().item()
        if not sure.isnan().any():
            found['auc'] = auc(sure.numpy(), off.numpy())
        elif not off.isnan().any():
            found['error'] = off.mean().item()
        return found

    @property
    def metric(self):
        """The one that the task is judged by."""
        return 'error' if self.kind == 'regress' or self.meta.get('numbers') else 'accuracy'

    def guess(self, split='val'):
        """{metric: what it is without a look at x}: the commonest class, each bit's commoner value, or the median of the
        training split; what meta.json says of it has the last word."""
        (_, known), (_, y) = self.splits['train'], self.splits[split]
        if self.kind == 'bits':
            found = {'accuracy': float(((known.mean(0) > 0.5) == (y[:] > 0.5)).mean())}
        elif self.kind == 'regress':
            found = {'error': float(np.abs(np.median(known) - y[:]).mean())}
        else:
            found = {'accuracy': float((y[:] == np.bincount(known).argmax()).mean())}
            if self.meta.get('numbers'):
                found['error'] = float(np.abs(np.median(known) - y[:].astype(np.int64)).mean())
            if self.outputs == 2:
                found['auc'] = 0.5
        return found | self.meta.get('guess', {})

    def told(self, row, split='val'):
        """The figures of total(), each beside what guessing scores, in a line."""
        guess = self.guess(split)
        return f'{split} {row[f"{split}_loss"]:.4f}' + ''.join(
            f', {title} {shown(name, row[name])} (guessing {shown(name, guess[name])})'
            for name, title in METRICS.items() if name in row)


def shown(metric, value):
    return f'{value:.1%}' if metric == 'accuracy' else f'{value:.3f}'


def auc(scores, labels):
    """The probability that an example of class 1 has a higher score than one of class 0, ties half: the area under the ROC
    curve.  nan if a class is missing."""
    from scipy.stats import rankdata
    positive = labels > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return float('nan')
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * m))


def moments(x):
    """(mean, deviation, or 1 if there is none) of a large array, of which no copy is made."""
    parts = np.array_split(x, 1 + (x.size >> 24))
    mean = sum(float(part.sum(dtype=np.float64)) for part in parts) / x.size
    variance = sum(float(np.square(np.subtract(part, mean, dtype=np.float64)).sum()) for part in parts) / x.size
    return mean, variance ** 0.5 or 1.0


def write_task(name, kind, splits, outputs, source, script, vocab_size=0, labels=None, **more):
    """Write data/<name>.  splits: {'train' | 'val' | 'test': (x, y)}, arrays as above.  source: {'name', ...}.  labels: names
    of the classes.  more: what else meta.json is to tell: numbers (the classes are the numbers from 0), guess ({metric:
    figure}), draw (how answers.py shows an example, see there).  Raises UserError for a split or a class without examples."""
    for split in SPLITS:
        x, y = splits[split]
        if not len(x):
            raise UserError(f'{source["name"]}: the {split} split has no examples: more are needed')
        if kind == 'classify':
            counts = np.bincount(y, minlength=outputs)
            if split == 'train' and not more.get('numbers') and not counts.all():
                empty = int(np.flatnonzero(counts == 0)[0])
                raise UserError(f'{source["name"]}: the class {labels[empty] if labels else empty} has no examples in the '
                                f'training split, so it cannot be learned: more are needed')
    x, y = splits['train']
    standard = (0.0, 1.0) if vocab_size else moments(x)
    folder, hashes = ROOT / 'data' / name, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'meta.json').unlink(missing_ok=True)      # without which there is no data set
        for split in SPLITS:
            for letter, part in zip('xy', splits[split], strict=True):
                with atomic(folder / f'{split}_{letter}.npy') as f:
                    np.save(f, part, allow_pickle=False)
                hashes.append(hashlib.sha256(np.ascontiguousarray(part).data).hexdigest())
        meta = {'kind': kind, 'outputs': outputs, 'vocab_size': vocab_size, 'standard': standard, 'labels': labels, **more,
                'examples': {split: len(splits[split][0]) for split in SPLITS}, 'source': source, 'script': script}
        meta['fingerprint'] = hashlib.sha256(json.dumps([hashes, meta], sort_keys=True).encode()).hexdigest()[:16]
        with atomic(folder / 'meta.json', 'w') as f:
            json.dump(meta, f, indent=1)
    except OSError as e:
        raise UserError(f'{folder} cannot be written ({e})') from None
    task = TaskData(folder, meta)
    print(f'data/{name}: {", ".join(f"{len(splits[s][0]):,} {s}" for s in SPLITS)} examples of {x.shape[1]} tokens' +
          (f' of {x.shape[2]} numbers' if x.ndim == 3 else f', vocabulary {vocab_size:,}') +
          f'; {source["name"]}; fingerprint {meta["fingerprint"]}')
    if kind == 'classify':
        for split in SPLITS:
            counts = np.bincount(splits[split][1], minlength=outputs)
            said = [f'{labels[i] if labels else i} {n:,}' for i, n in enumerate(counts)]
            print(f'  {split}: ' + (', '.join(said) if len(said) <= 40 else
                                    f'{len(said)} classes, {counts.min():,} to {counts.max():,} examples each'))
    print('  guessing scores ' + ', '.join(f'{METRICS[k]} {shown(k, v)}' for k, v in task.guess('test').items()))
