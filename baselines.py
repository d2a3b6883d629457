"""
Baselines for a frozen pretrained transformer: an LSTM, and a neural accumulator, which can only add.

- lstm: Hochreiter and Schmidhuber 1997, as in torch; the answer is read from the state after the last token
- nac: Trask et al. 2018, "Neural Arithmetic Logic Units" (arXiv 1808.00508), section 3: each token is mapped to a number, and
  the numbers are summed with weights that are biased towards -1, 0 and 1
- a third baseline, a transformer trained from scratch, is fpt.py with mode=urt

B batch   T tokens   D features per token   V vocabulary   C channels (n_embd)   O outputs
"""

from dataclasses import dataclass

import torch
import torch.nn as nn

from vit import check_kind, task_loss


@dataclass
class Config:
    block_size: int = 10        # tokens of an example
    vocab_size: int = 0         # size of the vocabulary, or 0 if a token is a vector of features
    features: int = 16          # features per token, or 0 if tokens come from a vocabulary
    outputs: int = 10           # classes, bits, or 1 for regression
    kind: str = 'classify'      # type of task: classify, bits or regress
    network: str = 'lstm'       # lstm, or nac (regression only)
    n_layer: int = 2            # layers of the lstm
    n_embd: int = 128           # channels
    dropout: float = 0.0        # between the layers of the lstm

    @classmethod
    def tiny(cls):
        return cls(block_size=6, features=4, outputs=5, n_layer=2, n_embd=16)

    def __post_init__(self):
        check_kind(self.kind)
        if self.network not in ('lstm', 'nac'):
            raise ValueError(f"unknown network='{self.network}': choose lstm or nac")
        if self.network == 'nac' and self.kind != 'regress':
            raise ValueError(f'network=nac is for kind=regress, and this task has kind={self.kind}: use network=lstm')


class NAC(nn.Module):
    """(B, T) -> (B, O): sums with weights tanh(w) sigmoid(m) in (-1, 1), which saturate at -1, 0 and 1."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.w, self.m = (nn.Parameter(nn.init.xavier_uniform_(torch.empty(outputs, inputs))) for _ in range(2))

    def forward(self, x):
        return x @ (self.w.tanh() * self.m.sigmoid()).T


class Model(nn.Module):
    predicts = 'task'
    adjustable = ('block_size', 'dropout')

    def __init__(self, config: Config):
        super().__init__()
        self.config, C = config, config.n_embd
        self.input = nn.Embedding(config.vocab_size, C) if config.vocab_size else nn.Linear(config.features, C)
        if config.network == 'lstm':
            self.lstm = nn.LSTM(C, C, config.n_layer, batch_first=True, dropout=config.dropout if config.n_layer > 1 else 0.0)
            self.output = nn.Linear(C, config.outputs)
            nn.init.normal_(self.output.weight, std=0.02)
            nn.init.zeros_(self.output.bias)
        else:
            self.number = nn.Sequential(nn.Linear(C, C), nn.ReLU(), nn.Linear(C, 1))
            self.output = NAC(config.block_size, config.outputs)

    def forward(self, x, y=None):
        """x: (B, T) int64 or (B, T, D) float.  y: see vit.task_loss().
        Returns logits (B, O) and the mean loss (None without y)."""
        h = self.input(x)                                                                   # (B, T, C)
        if self.config.network == 'lstm':
            if torch.is_autocast_enabled(h.device.type):        # it casts the weights of an LSTM, but not embeddings
                h = h.to(torch.get_autocast_dtype(h.device.type))
            logits = self.output(self.lstm(h)[0][:, -1])                                    # (B, O)
        else:
            logits = self.output(self.number(torch.relu(h)).squeeze(-1))                    # (B, T) -> (B, O)
        return logits, None if y is None else task_loss(logits, y, self.config.kind)
