"""
Texts that are made of examples: a window begins at one, and holds nothing else.

AnswerText reads what prepare/examples.py writes, data/<name>/ with train.bin, val.bin and test.bin.  Each example is two rows
of T tokens, what a model reads, and below each token what it must answer there; a blank, token 0, is no answer:

        dbca=dbc                the letters before the mark are to be copied: at '=' the answer is d, and so on
            dbca

meta.json has 'answers': {'size': T, 'trained': the most letters, pairs, ... of an example for training, 'counted': what they
are}, and 'parts': {number of letters, pairs, ...: examples of the test split}, in the order of test.bin.

B batch   T tokens of an example
"""

import numpy as np
import torch
import torch.nn.functional as F

from harness import UserError, require_memory, schema
from harness.data import TextData

ANSWERS = {'answers.size': 'count', 'answers.trained': 'count', 'answers.counted': 'text', 'parts': 'dict of numbers',
           'tokens.test': 'count'}


class ExampleText(TextData):
    """A subclass says how many tokens a window has (size), and from how many tokens of the files it is made (stride)."""

    def starts(self, split):
        """Where the examples of a split begin."""
        return np.arange(len(self.tokens[split]) // self.stride) * self.stride

    def train_indices(self, count, block_size, seed, step):
        self.require(block_size)
        n = len(self.tokens['train']) // self.stride
        return np.random.default_rng((seed, step)).integers(n, size=count) * self.stride

    def val_indices(self, count, block_size):
        """The starts of evenly spaced validation examples; count=0: all."""
        self.require(block_size)
        require_memory(32 * count, f'eval_windows={count}')
        n = len(self.tokens['val']) // self.stride
        return np.linspace(0, n - 1, min(count or n, n)).round().astype(np.int64) * self.stride

    def model_settings(self):
        return super().model_settings() | {'block_size': self.size}


class AnswerText(ExampleText):
    """Examples with answers, which alone are scored: the target is -1 where there is none."""
    uneven = True

    def __init__(self, folder):
        super().__init__(folder)
        schema.check(self.meta, ANSWERS, self.folder / 'meta.json', 'prepare the data again')
        self.size, self.tokens['test'] = self.meta['answers']['size'], self._open('test')
        self.stride, ends = 2 * self.size, np.cumsum([0, *self.meta['parts'].values()])
        if not self.size or any(not len(t) or len(t) % self.stride for t in self.tokens.values()) or \
                ends[-1] * self.stride != len(self.tokens['test']):
            raise UserError(f'{self.folder} does not hold the examples of 2 x {self.size} tokens of its meta.json: run python '
                            f'prepare/{self.meta["script"]} again with --overwrite')
        self.parts = {name: self.starts('test')[a:b] for name, a, b in zip(self.meta['parts'], ends, ends[1:], strict=False)}

    def require(self, block_size):
        if block_size != self.size:
            raise UserError(f'block_size={block_size}: an example of data/{self.folder.name} has {self.size} tokens: set '
                            f'block_size={self.size}, or leave it out')

    def windows(self, split, starts, block_size, before=0):
        rows = np.stack([self.tokens[split][s:s + self.stride] for s in starts])
        self._check(rows, self._name(split))
        x, y = torch.from_numpy(rows.astype(np.int64)).chunk(2, dim=1)
        return torch.cat([x.new_full((len(x), before), -1), x], dim=1), y.masked_fill(y == 0, -1)   # nothing comes before it

    def batch(self, split, starts, model):
        """x and y.  For a model that predicts after the window alone, an example is moved to where its last answer is last."""
        x, y = self.windows(split, starts, model.config.block_size, model.memory)
        if model.predicts == 'last':
            at = (torch.arange(self.size) + last_answer(y)[:, None] + 1) % self.size
            x, y = x.gather(1, at), y.gather(1, at)
        return x, y

    def train_batch(self, starts, model, cfg, step):
        x, y = self.batch('train', starts, model)
        if cfg.last_only:
            y[torch.arange(self.size) != last_answer(y)[:, None]] = -1
        return x, y

    def test_indices(self):
        return self.starts('test')

    # metrics ---------------------------------------------------------------------------------------------------------------

    def score(self, logits, _, y):
        """As that of TextData: of all answers, of the last answer of each example, and their numbers."""
        y = y[:, -logits.shape[1]:]
        losses = F.cross_entropy(logits.float().transpose(1, 2), y, reduction='none', ignore_index=-1)  # (B, T or 1)
        scores = torch.stack([losses, (logits.argmax(-1) == y).float()]).cpu().double()                 # (2, B, T or 1)
        last = scores[:, torch.arange(len(y)), last_answer(y).cpu()]
        counts = torch.tensor([(y >= 0).sum(), len(y)], dtype=torch.float64)
        return torch.cat([scores.sum((1, 2)), last.sum(1), counts])

    def chance(self, split='test'):
        """The accuracy of the most frequent answer at each place of the answers, of all tests and of each part: counted on half
        of the examples, judged on the rest."""
        found = {}
        for name, starts in self.parts.items():
            _, y = self.windows('test', starts, self.size)
            rows = y[y >= 0].view(len(y), -1)       # the examples of a part have as many answers
            found[name] = float((rows[::2].mode(0).values == rows[1::2]).float().mean())
        sizes = [*self.meta['parts'].values()]
        return {'accuracy': float(np.average([*found.values()], weights=sizes)), 'parts': found}

    def format_metrics(self, metrics, split='val'):
        return f'{split} {metrics[f"{split}_loss"]:.4f}, answers right {metrics["accuracy"]:.1%}'

    def show(self, model, cfg, folder):
        """Prints examples of the validation split: what is read, the answers, and those of the model."""
        if not cfg.sample_tokens:
            return
        x, y = self.batch('val', self.val_indices(3, self.size), model)
        model.eval()
        with torch.no_grad():
            made = model(x.to(next(model.parameters()).device))[0].argmax(-1).cpu()
        model.train()
        for ids, expected, own in zip(x[:, model.memory:], y[:, -made.shape[1]:], made, strict=True):
            print('-' * 80)
            for title, row in (('read', ids), ('answers', expected.clamp(min=0)), ('made', own * (expected >= 0))):
                print(f'{title:8}{self.tokenizer.decode(row.tolist())}')


def last_answer(y):
    """The position of the last answer in each row of y (B, T): (B,)."""
    return y.shape[1] - 1 - (y >= 0).flip(1).int().argmax(1)
