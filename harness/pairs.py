"""
Pairs of sequences, data/<name>/: meta.json and {train,val,test}_{source,target}.npy, memory-mapped.

Each row is (S,) or (T,) int32 tokens of one vocabulary, -1 after its end.  The end of a target is a token of its own, one above
those of the tokenizer, which also stands in front of the target that a decoder reads.

B batch   S tokens of a source   T tokens of a target
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from harness import SPLITS, UserError
from harness.files import map_array
from harness.tokenizer import Tokenizer

SPAN = 16       # a step draws from this many times its size of pairs of similar length, so little of a batch is padding


def encode_source(text, tokenizer, model):
    """A text as a source (1, S).  Raises UserError."""
    ids, longest = tokenizer.encode(text), model.config.source_size
    if not 0 < len(ids) <= longest:
        raise UserError(f'the source {text[:40]!r} has {len(ids)} tokens: this model reads 1 to {longest}')
    return torch.tensor([ids])


def open_rows(path, count, vocab_size, script):
    """The rows of tokens (count, T) int32 in a file, by memory map; -1 after the end of a row.  Raises UserError."""
    rows = map_array(path, script)
    if rows.ndim != 2 or rows.dtype != np.int32 or not 0 < len(rows) == count:
        raise UserError(f'{path} holds {rows.shape} {rows.dtype}, not the {count:,} rows of meta.json: run python '
                        f'prepare/{script} again with --overwrite')
    if rows.min() < -1 or rows.max() >= vocab_size or (rows[:, 0] < 0).any():
        raise UserError(f'{path} has an empty row, or a token outside of the vocabulary of {vocab_size}: prepare '
                        f'the data again')
    return rows


class PairData:
    """The pairs of data/<name>.  Raises UserError for files that do not match meta.json."""
    modality = noun = kind = 'pairs'
    unit, columns, metric, uneven, parts = 'pairs', (), 'accuracy', True, {}

    def __init__(self, folder, meta):
        self.folder, self.meta = Path(folder), meta
        try:
            self.tokenizer, self.fingerprint = Tokenizer(meta['tokenizer']), meta['fingerprint']
            self.vocab_size = meta['vocab_size']
            self.splits = {split: [open_rows(self.folder / f'{split}_{side}.npy', meta['examples'][split], self.vocab_size,
                                             meta['script']) for side in ('source', 'target')] for split in SPLITS}
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UserError(f'{self.folder / "meta.json"} is damaged ({type(e).__name__}: {e}): prepare the data '
                            f'again') from None
        source, target = self.splits['train']
        self.order = np.lexsort([(part >= 0).sum(1) for part in (source, target)])      # by the length of the target first

    def model_settings(self):
        """The fields of a model's Config that the data decides."""
        source, target = self.splits['train']
        return {'vocab_size': self.vocab_size, 'source_size': source.shape[1], 'block_size': target.shape[1]}

    def require(self, block_size):
        T = self.splits['train'][1].shape[1]
        if block_size != T:
            raise UserError(f'data/{self.folder.name} has targets of {T} tokens, not block_size={block_size}')

    def train_indices(self, count, block_size, seed, step):
        """The pairs of one step, over all ranks and micro-steps: (count,), all from one bucket of similar lengths, which is
        drawn in proportion to its size."""
        rng, n = np.random.default_rng((seed, step)), len(self.order)
        edges = np.linspace(0, n, max(1, n // (SPAN * count)) + 1).astype(np.int64)
        bucket = np.searchsorted(edges, rng.integers(n), 'right') - 1
        return self.order[rng.integers(edges[bucket], edges[bucket + 1], size=count)]

    def val_indices(self, count, block_size):
        """Evenly spaced pairs of the validation split; count=0: all."""
        n = len(self.splits['val'][0])
        return np.linspace(0, n - 1, min(count or n, n)).round().astype(np.int64)

    def test_indices(self):
        return np.arange(len(self.splits['test'][0]))

    def batch(self, split, indices, model):
        """(source (B, S), y (B, T)) int64, as long as the longest of the batch; -1 after the end of a source or of a target y,
        the last token of which is its end."""
        source, y = (torch.from_numpy(part[indices].astype(np.int64)) for part in self.splits[split])
        return tuple(rows[:, :int((rows >= 0).sum(1).max())].contiguous() for rows in (source, y))

    def train_batch(self, indices, model, cfg, step):
        return self.batch('train', indices, model)

    def text(self, ids):
        """The text of a source or target, without its end."""
        return self.tokenizer.decode([int(i) for i in ids if 0 <= i < self.tokenizer.n_vocab])

    # metrics ---------------------------------------------------------------------------------------------------------------

    def score(self, logits, _, y):
        """(4,) sums over a batch: loss in nats and tokens of the targets, and pairs whose target is right as a whole, and all.

        A target is right if each token is the likeliest after the true ones before it.  By induction, these are the targets
        that greedy decoding writes."""
        losses = F.cross_entropy(logits.float().transpose(1, 2), y, ignore_index=-1, reduction='sum')
        right = ((logits.argmax(-1) == y) | (y < 0)).all(1).sum()
        return torch.stack([losses, (y >= 0).sum(), right, torch.tensor(len(y), device=y.device)]).cpu().double()

    def total(self, parts):
        loss, tokens, right, n = torch.stack(parts).sum(0).tolist()
        return {'val_loss': loss / tokens, 'accuracy': right / n}

    def constant(self):
        """The most frequent target of the training split, as bytes."""
        return Counter(row.tobytes() for row in self.splits['train'][1]).most_common(1)[0][0]

    def chance(self, split='val'):
        """The accuracy of always giving the most frequent target of the training split."""
        constant = self.constant()
        return {'accuracy': float(np.mean([row.tobytes() == constant for row in self.splits[split][1]]))}

    def chance_answer(self, metric=None):
        return f'always {self.text(np.frombuffer(self.constant(), np.int32))!r}'

    def format_metrics(self, metrics, split='val'):
        return f'{split} {metrics[f"{split}_loss"]:.4f} per token, whole targets right {metrics["accuracy"]:.1%}'

    def show(self, model, cfg, folder):
        """Prints what the model makes of some sources of the validation split."""
        if not cfg.sample_tokens:
            return
        indices, device = self.val_indices(5, model.config.block_size), next(model.parameters()).device
        source, y = self.batch('val', indices, model)
        model.eval()
        for ids, made, expected in zip(source, model.decode(source.to(device)).cpu(), y, strict=True):
            made, expected = self.text(made), self.text(expected)
            print(f'{self.text(ids)!r} -> {made!r}' + ('' if made == expected else f', expected {expected!r}'))
        model.train()
