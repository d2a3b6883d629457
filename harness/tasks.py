"""
Tasks, data/<name>/: meta.json and {train,val,test}_{x,y}.npy, memory-mapped.

x is (N, T) tokens of a vocabulary, with token 0 in front of shorter examples, or (N, T, D) features.  y is the target; its form
depends on the kind in meta.json:

    classify   (N,) a class, 0 to outputs - 1     output (B, outputs), cross-entropy
    bits       (N, outputs) 0 or 1                output (B, outputs), binary cross-entropy
    regress    (N,) a number                      output (B, 1), squared error of y, standardised by the training split

N examples   B batch   T tokens   D features per token
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from harness import SPLITS, UserError
from harness.files import map_array

KINDS = ('classify', 'bits', 'regress')
CHUNK = 1 << 22     # values that are checked at once: x may be larger than memory
METRICS = {'accuracy': 'accuracy', 'error': 'mean absolute error', 'auc': 'ROC-AUC'}


class TaskData:
    """The examples of data/<name>.  Raises UserError for files that do not match meta.json."""
    modality = noun = 'task'
    tokenizer, unit, columns, uneven, parts = None, 'examples', ('error', 'auc'), False, {}

    def __init__(self, folder, meta):
        self.folder, self.meta = Path(folder), meta
        try:
            self.kind, self.outputs, self.fingerprint = meta['kind'], meta['outputs'], meta['fingerprint']
            self.vocab_size, self.standard = meta['vocab_size'], meta['standard']
            self.splits = {split: (self._map(f'{split}_x'), self._map(f'{split}_y')) for split in SPLITS}
            for split, (x, y) in self.splits.items():
                if not 0 < len(x) == len(y) == meta['examples'][split] or x.shape[1:] != self.splits['train'][0].shape[1:]:
                    raise UserError(f'{self.folder}/{split}_x.npy and {split}_y.npy are not the {meta["examples"][split]:,} '
                                    f'examples of meta.json: run python prepare/{meta["script"]} again with --overwrite')
                if len(self.standard) != 2:
                    raise ValueError(f'standard={self.standard} is not a mean and a standard deviation')
                check(self.kind, self.outputs, self.vocab_size, x, y, f'{self.folder}/{split}_{{}}.npy')
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f'{self.folder / "meta.json"} is damaged ({type(e).__name__}: {e}): prepare the data '
                            f'again') from None
        y = self.splits['train'][1]
        self.y_standard = (float(y.mean()), float(y.std()) or 1.0) if self.kind == 'regress' else (0.0, 1.0)

    def _map(self, name):
        return map_array(self.folder / f'{name}.npy', self.meta['script'])

    @property
    def draw(self):
        """How views/tasks.py draws an example, see draw_example()."""
        return self.meta.get('draw', {})

    def model_settings(self):
        """The fields of a model's Config that the data decides."""
        x = self.splits['train'][0]
        return {'block_size': x.shape[1], 'vocab_size': self.vocab_size, 'features': x.shape[2] if x.ndim == 3 else 0,
                'outputs': self.outputs, 'kind': self.kind}

    def examples(self, split, indices):
        """Examples of a split: x (B, T) int64, or (B, T, D) float32 standardised by the training split; y (B,) int64 classes,
        (B, outputs) float32 bits, or (B,) float32 standardised numbers."""
        x, y = (np.stack([part[i] for i in indices]) for part in self.splits[split])
        if self.vocab_size:
            x = torch.from_numpy(x.astype(np.int64))
        else:
            x = (torch.from_numpy(x.astype(np.float32)) - self.standard[0]) / self.standard[1]
        if self.kind == 'classify':
            return x, torch.from_numpy(y.astype(np.int64))
        return x, (torch.from_numpy(y.astype(np.float32)) - self.y_standard[0]) / self.y_standard[1]

    def batch(self, split, indices, model):
        return self.examples(split, indices)

    def train_batch(self, indices, model, cfg, step):
        return self.examples('train', indices)

    def test_indices(self):
        return np.arange(len(self.splits['test'][0]))

    def train_indices(self, count, block_size, seed, step):
        """The examples of one step, over all ranks and micro-steps: (count,)."""
        return np.random.default_rng((seed, step)).integers(len(self.splits['train'][0]), size=count)

    def val_indices(self, count, block_size):
        """Evenly spaced examples of the validation split; count=0: all."""
        n = len(self.splits['val'][0])
        return np.linspace(0, n - 1, min(count or n, n)).round().astype(np.int64)

    def require(self, block_size):
        T = self.splits['train'][0].shape[1]
        if block_size != T:
            raise UserError(f'data/{self.folder.name} has examples of {T} tokens, not block_size={block_size}')

    # metrics ---------------------------------------------------------------------------------------------------------------

    def score(self, output, _, y):
        """(B, 4) per example: loss; accuracy (of bits, the share that is correct); absolute error, if the answer is a number;
        logit of class 1 minus that of class 0, if there are two.  nan where one does not apply."""
        output, y, nan = output.float().cpu(), y.cpu(), torch.full((len(y),), torch.nan)
        correct, error, margin = nan, nan, nan
        if self.kind == 'bits':
            losses = F.binary_cross_entropy_with_logits(output, y, reduction='none').mean(-1)
            correct = ((output > 0) == (y > 0.5)).float().mean(-1)
        elif self.kind == 'regress':
            losses = (output[:, 0] - y).square()
            error = (output[:, 0] - y).abs() * self.y_standard[1]
        else:
            losses = F.cross_entropy(output, y, reduction='none')
            correct = (output.argmax(-1) == y).float()
            if self.meta.get('numbers'):            # class k is the number k
                error = (output.argmax(-1) - y).abs().float()
            if self.outputs == 2:
                margin = output[:, 1] - output[:, 0]
                error = y.float()                   # the class, for auc()
        return torch.stack([losses, correct, error, margin], dim=1).double()

    def total(self, parts):
        """{'val_loss': ...} and the METRICS of this kind of task, from the scores of all batches."""
        losses, correct, error, margin = torch.cat(parts).unbind(1)
        metrics = {'val_loss': losses.mean().item()}
        if not correct.isnan().any():
            metrics['accuracy'] = correct.mean().item()
        if not margin.isnan().any():
            metrics['auc'] = auc(margin.numpy(), error.numpy())
        elif not error.isnan().any():
            metrics['error'] = error.mean().item()
        return metrics

    @property
    def metric(self):
        """The metric that a race compares: 'accuracy' or 'error'."""
        return 'error' if self.kind == 'regress' or self.meta.get('numbers') else 'accuracy'

    def chance(self, split='val'):
        """{metric: its value for the constant answer of chance_answer()}; meta.json's 'guess' takes precedence."""
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

    def chance_answer(self, metric=None):
        """The constant answer behind chance()[metric], in a few words; metric=None: the one of the race."""
        metric = metric or self.metric
        if metric in self.meta.get('guess', {}):
            return 'chance'
        if metric == 'auc':
            return 'any constant'
        if metric == 'error':
            return f'always {np.median(self.splits["train"][1]):g}'
        if self.kind == 'bits':
            return 'the more frequent value of each bit'
        label = int(np.bincount(self.splits['train'][1]).argmax())
        return f'always {self.meta["labels"][label] if self.meta.get("labels") else label}'

    def format_metrics(self, metrics, split='val'):
        """The loss and the metrics of total() in a line, each metric beside that of a constant answer."""
        chance = self.chance(split)
        return f'{split} {metrics[f"{split}_loss"]:.4f}' + ''.join(
            f', {title} {format_metric(name, metrics[name])} ({self.chance_answer(name)}: {format_metric(name, chance[name])})'
            for name, title in METRICS.items() if name in metrics)

    def show(self, model, cfg, folder):
        """A task generates nothing."""


def check(kind, outputs, vocab_size, x, y, name):
    """Raises UserError, with the row, for arrays that are no examples of such a task.  name: theirs, with {} for x or y."""
    def below(count):
        return 'biu', lambda v: (v >= 0) & (v < count), f'an integer from 0 to {count - 1}'

    finite = 'biuf', lambda v: np.abs(v) <= np.finfo(np.float32).max, 'finite in float32'
    bits = 'biuf', lambda v: (v == 0) | (v == 1), '0 or 1'
    if y.shape[1:] != (outputs,) * (kind == 'bits') or x.ndim != 2 + (not vocab_size):
        raise UserError(f'{name.replace("{}", "x")} has the shape {x.shape}, y {y.shape}: expected '
                        f'(N, T{", D" * (not vocab_size)}) and (N,{f" {outputs}" * (kind == "bits")})')
    for letter, array, (types, valid, expected) in (
            ('y', y, {'classify': below(outputs), 'bits': bits, 'regress': finite}[kind]),
            ('x', x, below(vocab_size) if vocab_size else finite)):
        where = name.replace('{}', letter)
        if array.dtype.kind not in types:
            raise UserError(f'{where} has the type {array.dtype}: each must be {expected}')
        if valid is finite[1] and array.dtype.kind != 'f':
            continue        # integers are finite
        rows = max(1, CHUNK * len(array) // max(1, array.size))
        for start in range(0, len(array), rows):
            part = array[start:start + rows]
            if len(wrong := np.argwhere(~valid(part))):
                raise UserError(f'{where}, row {start + wrong[0][0]:,}: {part[tuple(wrong[0])]} must be {expected}')


def format_metric(metric, value):
    return f'{value:.1%}' if metric == 'accuracy' else f'{value:.3f}'


def auc(scores, labels):
    """Area under the ROC curve: the probability that an example of class 1 has a higher score than one of class 0, where ties
    count half.  nan if a class is missing."""
    from scipy.stats import rankdata
    positive = labels > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return float('nan')
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * m))
