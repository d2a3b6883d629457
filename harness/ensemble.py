"""
An ensemble: the mean of several models' probabilities for the next token.

Source: "creating larger language models from an ensemble of smaller models", https://github.com/jloveric/language-interpolation

K members   B batch   T tokens   S positions at which all members predict   V vocabulary
"""

import math
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from harness import UserError, data
from harness.arch import complete
from harness.generate import reader, window
from harness.log import Heartbeat, markdown


class Ensemble(nn.Module):
    """A model to generate with: its logits are the log of the mixed probabilities.

    models: K models with one tokenizer; architecture, window and memory may differ.
    weights: K numbers above 0, normalised here."""

    def __init__(self, models, weights):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.register_buffer('log_weights', torch.tensor(weights, dtype=torch.float64).log().log_softmax(0).float())
        longest = max(m.config.block_size for m in models)
        self.memory = max(m.config.block_size + m.memory for m in models) - longest
        self.config = SimpleNamespace(block_size=longest, vocab_size=max(m.config.vocab_size for m in models))
        complete(self)

    def mix(self, logits):
        """The members' logits, each (..., V or, without padding, fewer) -> log of the mixed probabilities (..., V)"""
        V = self.config.vocab_size
        log_p = [F.pad(x.float().log_softmax(-1), (0, V - x.shape[-1]), value=-torch.inf) for x in logits]
        return torch.stack([x + w for x, w in zip(log_p, self.log_weights, strict=True)]).logsumexp(0)

    def forward(self, x):
        """x: (B, T) int64, or (B, memory + T).  Returns the logits (B, S, V) of the last positions, those at which all members
        predict, and None."""
        logits = [m(window(m, x))[0] for m in self.models]
        S = min(part.shape[1] for part in logits)
        return self.mix([part[:, -S:] for part in logits]), None

    def init_state(self, batch_size):
        return [reader(m, batch_size) for m in self.models]

    def step(self, token, state):
        """token: (B, n), the next n tokens of each text.  Returns (logits (B, V) of the token after them, state).
        Members without a step() recompute their window."""
        return self.mix([read(token) for read in state]), state

    @torch.no_grad()
    def losses(self, text, starts, batch_size):
        """Loss in nats per token of each member and, in the last row, of the mixture: (K + 1, 2), over all positions at which
        every member predicts, and over the last position of each window.

        text: TextData.  starts: of windows of the longest block_size.  Each member reads as much as it can before the same last
        target, so all are scored on the same tokens."""
        device = self.log_weights.device
        total = torch.zeros(len(self.models) + 1, 2, dtype=torch.float64)
        heartbeat = Heartbeat()
        for i in tqdm(range(0, len(starts), batch_size), desc='validation', leave=False, disable=None):
            x, y = (t.to(device) for t in text.batch('val', starts[i:i + batch_size], self))
            each = []
            for m in self.models:       # one after the other, and only the targets' losses are kept: logits are large
                logits = m(window(m, x))[0].float()                                             # (B, T or 1, V)
                each.append(F.cross_entropy(logits.mT, y[:, -logits.shape[1]:], reduction='none'))
            S = min(part.shape[1] for part in each)
            each = torch.stack([part[:, -S:] for part in each])                                 # (K, B, S)
            mixed = -(self.log_weights[:, None, None] - each).logsumexp(0, keepdim=True)        # (1, B, S)
            scores = torch.cat([each, mixed]).cpu().double()                                    # (K + 1, B, S)
            total += torch.stack([scores.mean(2).sum(1), scores[:, :, -1].sum(1)], dim=1)
            heartbeat(f'evaluated {min(i + batch_size, len(starts)):,} of {len(starts):,} windows')
        return total / len(starts)


def judge(ensemble, names, contents, count, dtype='float32', cast=None):
    """A table of the losses of runs and of their mixture, on `count` windows of the validation text of the first run.

    names, contents: of the runs, their checkpoints.  cast: turns the models from float32 into dtype, whose losses follow.
    Raises UserError if that text is not available."""
    fingerprints = [c['data']['fingerprint'] for c in contents]
    name, text = contents[0]['loop']['dataset'], data.data_of(contents[0])
    if text is None:
        raise UserError(f'--eval: data/{name} is missing or is not the data that {names[0]} was trained on: prepare it, or '
                        f'name a run with available data first')
    if 'answers' in text.meta:
        raise UserError(f'--eval: data/{name} has answers at some positions only: see test.json of each run, or train.py '
                        f'--eval_only')
    T = ensemble.config.block_size
    starts = text.val_indices(count, T)
    measure = partial(ensemble.losses, text, starts, min(c['loop']['batch_size'] for c in contents))
    losses = measure().tolist()
    weights = [f'{w:.3g}' for w in ensemble.log_weights.exp().tolist()]
    titles = ['val_loss', 'val_loss_full'][:1 if text.whole else 2]         # the last token of a picture is a corner
    rows = [[*row, *(f'{v:.4f}' for v in found[:len(titles)]), f'{found[len(titles) - 1] / math.log(2):.4f}']
            for row, found in zip([*zip(names, weights, strict=True), ('mixture', '')], losses, strict=True)]
    headers = ['run', 'weight', *(f'{title} (nats)' for title in titles), f'{titles[-1]} (bits)']
    lines = [markdown(headers, rows if len(names) > 1 else rows[:1]),
             f'per token, on {len(starts):,} windows of {T} tokens of data/{name}; val_loss: all positions at which '
             f'{"every run" if len(names) > 1 else "the run"} predicts' +
             '; val_loss_full: the token after each full window' * (not text.whole)]
    if dtype != 'float32':
        cast()
        lines.append(f'in {dtype}, from float32: ' + '; '.join(
            f'{title} {new:.4f} ({new - old:+.5f})' for title, new, old in zip(titles, measure()[-1].tolist(), losses[-1],
                                                                              strict=False)))
    if fingerprints[0].endswith('-leaking'):
        lines.append(f'{names[0]} was trained with leaking_split, on its validation text too: no loss here is evidence')
    return '\n'.join(lines + [f'{name} may have been trained on the validation text of {names[0]}'
                              for name, f in zip(names, fingerprints, strict=True) if f != fingerprints[0]])
