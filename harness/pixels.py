"""
Texts of pixels, data/<name>/: a text whose tokenizer is a palette (harness/palette.py).  Each picture is the token of the
start, then its pixels in reading order, so a window is a picture, and a language model predicts all of its pixels.  There is
also test.bin, and if the pictures have classes, {train,val,test}_y.npy: a model that answers a task reads the same pictures.

- loss: nats per pixel, the mean over all pixels of -log p(pixel | the pixels before it)
- bits per dimension: the same by log 2.  A dimension is a pixel of the palette, so the figures of two data sets can be compared
  only if palette and size are the same; for 256 greys, they are those of the literature (-log2 p(image) / its dimensions)

N pictures   T pixels of a picture
"""

import math

import torch

from harness import SPLITS, UserError
from harness.data import MaskedText
from harness.examples import ExampleText
from harness.tasks import TaskData


class PixelText(ExampleText):
    """Pictures for language models: x (B, T) is the start and all pixels but the last, y (B, T) the pixels."""
    columns, whole = ('bits_per_dimension',), True

    def __init__(self, folder, validate='val'):
        super().__init__(folder, validate)
        self.size = self.tokenizer.length
        self.stride = self.size + 1
        for split, tokens in self.tokens.items():
            if not len(tokens) or len(tokens) % (self.size + 1) or (tokens[::self.size + 1] != self.tokenizer.n_vocab).any():
                raise UserError(f'{self._name(split)} is not made of pictures of {self.size} pixels, each after its start: run '
                                f'python prepare/{self.meta["script"]} again with --overwrite')

    def windows(self, split, starts, block_size, before=0):
        x, y = super().windows(split, starts, block_size)
        return torch.cat([x.new_full((len(x), before), -1), x], dim=1), y      # nothing comes before a picture

    def require(self, block_size):
        if block_size != self.size:
            height, width = (self.meta['tokenizer'][k] for k in ('height', 'width'))
            raise UserError(f'block_size={block_size}: a window of data/{self.folder.name} is a picture of {width} x {height} '
                            f'pixels: set block_size={self.size}, or leave it out')

    def total(self, parts):
        loss, correct, _, _, n, _ = torch.stack(parts).sum(0).tolist()
        return {'val_loss': loss / n, 'bits_per_dimension': loss / n / math.log(2), 'accuracy': correct / n}

    def format_metrics(self, metrics, split='val'):
        return f'{split} {metrics["val_loss"]:.4f} per pixel ({metrics["bits_per_dimension"]:.4f} bits per dimension)'


class MaskedPixels(MaskedText, PixelText):
    """Pictures for models that fill in masked pixels: x is a picture without its start."""
    columns = ()

    def windows(self, split, starts, block_size, before=0):
        _, pixels = super().windows(split, starts, block_size)
        return pixels, pixels


class PixelTask(TaskData):
    """Pictures and their classes: x (B, T) is what a language model reads, the start and all pixels but the last."""

    def __init__(self, folder, meta):
        if not meta.get('labels'):
            raise UserError(f'data/{folder.name} has pictures without classes: choose one with classes, or a model of texts')
        self.text = PixelText(folder)
        super().__init__(folder, meta | {
            'kind': 'classify', 'outputs': len(meta['labels']), 'standard': (0.0, 1.0),
            'examples': {split: meta['tokens'].get(split, 0) // (self.text.size + 1) for split in SPLITS},
            'draw': {'as': 'palette', 'palette': meta['tokenizer']}})

    def _map(self, name):
        split, part = name.split('_')
        return super()._map(name) if part == 'y' else self.text._open(split).reshape(-1, self.text.size + 1)[:, :-1]


READERS = {'text': PixelText, 'masked text': MaskedPixels}      # {modality of a model: the class that reads pictures for it}
