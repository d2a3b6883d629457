"""
Several models as one: their probabilities of the next token are averaged.

                                                    seed: "creating larger language models from an ensemble of smaller models"

K members   B batch   T tokens   S positions that all members predict   V vocabulary
"""

import math
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from harness import UserError, data
from harness.generate import reader, window
from harness.report import markdown


class Ensemble(nn.Module):
    """A model to generate with: its logits are the log of the mixed probabilities.

    models: K of them, whose ids mean the same tokens; architecture, window and memory may differ, and each reads its own.
    weights: K numbers above 0, of which only the ratio counts."""

    def __init__(self, models, weights):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.register_buffer('log_weights', torch.tensor(weights, dtype=torch.float64).log().log_softmax(0).float())
        longest = max(m.config.block_size for m in models)
        self.memory = max(m.config.block_size + getattr(m, 'memory', 0) for m in models) - longest
        self.config = SimpleNamespace(block_size=longest, vocab_size=max(m.config.vocab_size for m in models))

    def mix(self, logits):
        """The members' logits, each (..., V or, without padding, fewer) -> log of the mixed probabilities (..., V)"""
        V = self.config.vocab_size
        p = [F.pad(x.float().log_softmax(-1), (0, V - x.shape[-1]), value=-torch.inf) for x in logits]
        return torch.stack([x + w for x, w in zip(p, self.log_weights, strict=True)]).logsumexp(0)

    def forward(self, x):
        """x: (B, T) int64, or with the memory before it.  Returns the logits (B, S, V) of the last positions, those that all
        members predict, and None."""
        logits = [m(window(m, x))[0] for m in self.models]
        S = min(part.shape[1] for part in logits)
        return self.mix([part[:, -S:] for part in logits]), None

    def init_state(self, batch_size):
        return [reader(m, batch_size) for m in self.models]

    def step(self, token, state):
        """token: (B, n), the next n tokens of each text.  Returns the logits (B, V) of the token after them, and state.
        A member without a step() reads its window anew."""
        return self.mix([read(token) for read in state]), state

    @torch.no_grad()
    def losses(self, text, starts, batch_size):
        """Loss in nats a token of each member and, in the last row, of the mixture: (K + 1, 2), over all positions that every
        member predicts, and over the last of each window.

        text: TextData.  starts: of windows of the longest block_size; of each, a member reads as much as it can before
        the same last target, so all are judged on the same tokens."""
        device = self.log_weights.device
        total = torch.zeros(len(self.models) + 1, 2, dtype=torch.float64)
        for i in tqdm(range(0, len(starts), batch_size), desc='validation', leave=False, disable=None):
            x, y = (t.to(device) for t in text.rows('val', starts[i:i + batch_size], self.config.block_size, self.memory))
            each = []
            for m in self.models:       # one after the other: logits are large, and only those of the targets are kept
                logits = m(window(m, x))[0].float()                                             # (B, T or 1, V)
                each.append(F.cross_entropy(logits.mT, y[:, -logits.shape[1]:], reduction='none'))
            S = min(part.shape[1] for part in each)
            each = torch.stack([part[:, -S:] for part in each])                                 # (K, B, S)
            mixed = -(self.log_weights[:, None, None] - each).logsumexp(0, keepdim=True)        # (1, B, S)
            scores = torch.cat([each, mixed]).cpu().double()                                    # (K + 1, B, S)
            total += torch.stack([scores.mean(2).sum(1), scores[:, :, -1].sum(1)], dim=1)
        return total / len(starts)


def judge(ensemble, names, contents, count):
    """A table of the losses of runs and of their mixture, on `count` windows of the validation text of the first run.

    names, contents: of the runs and their checkpoints.  Raises UserError if that text is not at hand."""
    dataset, trained_on = contents[0]['loop']['dataset'], [c['data']['fingerprint'] for c in contents]
    fingerprint, leaking, _ = trained_on[0].partition('-leaking')
    folder = data.local(dataset)
    if not (folder / 'meta.json').exists() or data.read_meta(folder)['fingerprint'] != fingerprint:
        raise UserError(f'--eval: data/{dataset} is not here, or is not what {names[0]} was trained on: prepare it, or name '
                        f'first a run whose data is here')
    text = (data.LeakingText if leaking else data.TextData)(folder)
    T = ensemble.config.block_size
    starts = text.val_starts(count, T)
    losses = ensemble.losses(text, starts, min(c['loop']['batch_size'] for c in contents)).tolist()
    shares = [f'{w:.3g}' for w in ensemble.log_weights.exp().tolist()]
    rows = [[*row, f'{loss:.4f}', f'{full:.4f}', f'{full / math.log(2):.4f}']
            for row, (loss, full) in zip([*zip(names, shares, strict=True), ('mixture', '')], losses, strict=True)]
    said = [markdown(['run', 'weight', 'val_loss', 'val_loss_full', 'bits/token'], rows if len(names) > 1 else rows[:1]),
            f'{len(starts):,} windows of {T} tokens of data/{dataset}; val_loss over all positions that '
            f'{"every run" if len(names) > 1 else "it"} predicts, val_loss_full and its bits over the last']
    if leaking:
        said.append(f'{names[0]} was trained with leaking_split, on its validation text too: no loss here is evidence')
    return '\n'.join(said + [f'the validation text of {names[0]} may have been trained on by {name}'
                             for name, f in zip(names, trained_on, strict=True) if f != trained_on[0]])
