"""
Floors: what methods without a neural network reach on the data of a race, for compare.py --floors.

- A text: equal probabilities, frequencies, an n-gram model with Kneser-Ney smoothing, and boosted trees (extras/gbm.py).  The
  n-grams count the whole training text, and once more only as much of it as the networks read.
- A task: nearest neighbour, and logistic regression, or ridge regression for numbers and bits (pip install scikit-learn).

What they have to choose is chosen as a network's settings are: the length of the n-grams on the last ninth of the training
text, the strength of a penalty on the validation split.

N tokens of training text   B windows   T tokens   V vocabulary   n longest n-gram
"""

import json
import warnings

import numpy as np
import torch

from harness import UserError
from harness.tasks import METRICS

MOST_TOKENS, LONGEST = 1 << 24, 8       # of the training text, and n
PIECE = 4096                            # tokens of a piece of a part of the text
MOST_EXAMPLES, STRENGTHS = 20_000, (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)       # relative to the loss of an example


class KneserNey:
    """An interpolated Kneser-Ney model of n-grams:

        p(w | context) = max(c - D, 0) / total + D types / total p(w | the context without its first token)

    c counts the n-grams, and of shorter ones the different tokens before them.  total is the sum of c after the context, types
    the number of different tokens after it.  D is n1 / (n1 + 2 n2), where n1 and n2 grams have a c of 1 and 2.  Below the
    single tokens are equal probabilities, so that no token has none.  Source: Chen and Goodman 1999, section 2.7."""

    def __init__(self, tokens, n, V, discount=None):
        """tokens: (N,).  discount: D of all lengths; None: as above."""
        tokens, context = np.asarray(tokens, np.int64), np.zeros(len(tokens), np.int64)
        self.V, self.keys, self.counts, self.sums, self.discounts, last = V, [], [], [], [], None
        for k in range(1, n + 1):
            # of the k-gram that ends at each token: its context's number and its last token; the first k - 1 tokens have none
            keys, first, gram, count = np.unique(context * V + tokens[k - 1:], return_index=True, return_inverse=True,
                                                 return_counts=True)
            if last is not None:        # the grams one shorter are counted by what stands before them
                self.counts[-1] = np.bincount(last[1:][first], minlength=len(self.keys[-1]))
            self.keys.append(keys)
            self.counts.append(count)
            last, context = gram, gram[:-1]
        for keys, count in zip(self.keys, self.counts, strict=True):
            once, twice = (count == 1).sum(), (count == 2).sum()
            self.discounts.append(discount if discount is not None else once / (once + 2 * twice) if once else 0.5)
            size = int(keys[-1]) // V + 1
            self.sums.append((np.bincount(keys // V, count, size), np.bincount(keys // V, count > 0, size)))

    def probabilities(self, context, token):
        """(B,) of a token (B,) after a context (B, k), of which at most the last n - 1 are read."""
        p, B = np.full(len(token), 1 / self.V), len(token)
        for k in range(min(context.shape[1] + 1, len(self.keys))):
            number = np.zeros(B, np.int64)      # of the last k tokens of the context; -1 if they were never seen
            for j in range(k):
                number = self.find(j, number, context[:, context.shape[1] - k + j])
            at, D = self.find(k, number, token), self.discounts[k]
            known = (number >= 0) & (number < len(self.sums[k][0]))
            total, types = (np.where(known, s[number * known], 0) for s in self.sums[k])
            count = np.where(at >= 0, self.counts[k][at], 0)
            p = np.where(total > 0, (np.maximum(count - D, 0) + D * types * p) / np.maximum(total, 1), p)
        return p

    def find(self, k, number, token):
        """The numbers (B,) of the grams of k + 1 tokens, a context and a token; -1 for those that were never seen."""
        key = number * self.V + token
        at = np.minimum(np.searchsorted(self.keys[k], key), len(self.keys[k]) - 1)
        return np.where((number >= 0) & (self.keys[k][at] == key), at, -1)

    def losses(self, x, y):
        """(B, T) nats of each target of windows x, y (B, T), given the tokens of its window only."""
        return -np.log(np.stack([self.probabilities(x[:, max(0, t + 2 - len(self.keys)):t + 1], y[:, t])
                                 for t in range(y.shape[1])], axis=1))


def of_text(e, windows, out, read):
    """The floors of a text, on the validation windows that the runs are judged on.  read: the tokens that a network reads, or
    None."""
    text, T, V = e.data, e.model.block_size, e.data.tokenizer.n_vocab
    train = np.asarray(text.tokens['train'][:MOST_TOKENS])
    x, y = (t.numpy() for t in text.windows('val', text.val_indices(windows, T), T))

    def floor(name, losses):
        loss = float(losses.mean())
        return {'name': name, 'val_loss': loss} | (
            {'bits_per_dimension': loss / np.log(2)} if text.whole else {'val_loss_full': float(losses[:, -1].mean())})
    cut, found = len(train) * 8 // 9, []
    held = np.lib.stride_tricks.sliding_window_view(train[cut:], min(T, len(train) - cut - 1) + 1)[::T].astype(np.int64)
    for n in range(1, LONGEST + 1):             # the longest that does not make the loss on the last ninth worse
        found.append(KneserNey(train[:cut], n, text.vocab_size).losses(held[:, :-1], held[:, 1:]).mean())
        if n > 2 and found[-1] > found[-2]:
            break
    best = int(np.argmin(found)) + 1
    floors = [floor('equal probabilities', np.full(y.shape, np.log(V))),
              floor('frequencies of tokens', KneserNey(train, 1, text.vocab_size).losses(x, y)),
              floor(f'{best}-grams, Kneser-Ney', KneserNey(train, best, text.vocab_size).losses(x, y))]
    if read and read + PIECE <= len(train):     # pieces from all over the text, as the windows of the networks
        starts = np.linspace(0, len(train) - PIECE, max(1, int(read) // PIECE)).astype(int)
        part = KneserNey(np.concatenate([train[i:i + PIECE] for i in starts]), best, text.vocab_size)
        floors.append(floor(f'{best}-grams, as many tokens', part.losses(x, y)))
    if not text.whole:
        try:
            floors.append(trees(e, windows, out))
        except UserError as reason:             # no lightgbm, or too large a vocabulary
            print(f'no floor of boosted trees: {reason}', flush=True)
    return floors


def trees(e, windows, out):
    """Boosted trees by extras/gbm.py, which keeps them in a folder of the race."""
    from extras import gbm
    folder = out / 'floor-trees'
    if not (folder / 'meta.json').exists():
        words = [f'--dataset={e.settings.train.dataset}', f'--block_size={e.model.block_size}', f'--eval_windows={windows}',
                 f'--features={min(16, e.model.block_size)}', f'--out={folder}', '--overwrite']
        gbm.train(gbm.arguments(words))         # gbm.main() would turn Ctrl-C into a reason to leave them out
    return {'name': 'boosted trees', 'val_loss_full': json.loads((folder / 'meta.json').read_text())['val_loss_full']}


def of_task(e):
    """The floors of a task, on its test split."""
    try:
        from scipy.sparse import csr_matrix
        from sklearn import linear_model, neighbors
    except ImportError:
        raise UserError('--floors needs scikit-learn for a task, which is not installed: pip install scikit-learn') from None
    data, parts = e.data, {}
    for split in ('train', 'val', 'test'):
        n = len(data.splits[split][0])
        x, y = data.batch(split, np.arange(min(n, MOST_EXAMPLES) if split == 'train' else n), None)
        (B, T), V, at, x = x.shape[:2], data.vocab_size, np.arange(x[0].numel()), x.flatten(1).numpy()
        if V:           # a token is one of V features that are 0 or 1
            x = csr_matrix((np.ones(x.size, np.float32), (x + at * V).ravel(), np.arange(B + 1) * T), (B, T * V))
        parts[split] = x, y
    near = neighbors.KNeighborsClassifier if data.kind == 'classify' else neighbors.KNeighborsRegressor
    candidates = {'nearest neighbour': [near(n_neighbors=1)]}
    n = len(parts['train'][1])
    if data.kind == 'classify':
        candidates['logistic regression'] = [linear_model.LogisticRegression(C=1 / (s * n), max_iter=300) for s in STRENGTHS]
    else:
        candidates['ridge regression'] = [linear_model.Ridge(alpha=s * n) for s in STRENGTHS]

    def judge(model, split):
        x, y = parts[split]
        if data.kind == 'classify':     # log-probabilities of all classes, also of those without an example
            p = np.full((len(y), data.outputs), 1e-9)
            p[:, model.classes_] += model.predict_proba(x)
            output = np.log(p)
        else:
            output = model.predict(x).reshape(len(y), -1) - (0.5 if data.kind == 'bits' else 0)
        return data.total([data.score(torch.from_numpy(output), None, y)])
    floors = []
    for name, models in candidates.items():
        with warnings.catch_warnings(action='ignore'):          # that 300 steps are not enough: the others are tried, too
            models = [m.fit(parts['train'][0], parts['train'][1].numpy()) for m in models]
        sign = 1 if data.metric == 'error' else -1
        model = min(models, key=lambda m: sign * judge(m, 'val')[data.metric])
        of = f', {MOST_EXAMPLES:,} examples' * (len(data.splits['train'][0]) > MOST_EXAMPLES)
        floors.append({'name': name + of, **{k: v for k, v in judge(model, 'test').items() if k in METRICS}})
    return floors


def measure(e, windows, out, budget=(None, 0)):
    """[{'name', metrics}] of the floors on the data of an entrant.  windows: of a text, that the runs are judged on.  budget:
    of a run, such as ('tokens', 1e6)."""
    print('measuring the floors ...', flush=True)
    if e.predicts == 'task' and e.data.unit in ('examples', 'images') and hasattr(e.data, 'splits'):
        return of_task(e)
    if 'answers' in e.data.meta:
        raise UserError(f'--floors: {e.name} is trained on a text with answers, whose floor is its chance: leave it out')
    if e.data.modality != 'text':
        raise UserError(f'--floors: {e.name} is trained on {e.data.modality} data, which has no floors: leave it out')
    kind, amount = budget
    read = {'tokens': amount, 'steps': amount * getattr(e, 'tokens_per_step', 0)}.get(kind)
    return of_text(e, windows, out, read)
