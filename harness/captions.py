"""
Images with captions, for models that write a caption (modality 'pairs', such as transformer.py) or that compare images with
captions (modality 'captions', such as clip.py).  Where a data set has classes and no captions, its images have as captions the
names of their classes in the prompts of PROMPTS, in turn.

B batch   S patches of an image   D features of a patch   T tokens of a caption   E dimensions of the space of a CLIP
"""

import math
import re

import numpy as np
import torch
import torch.nn.functional as F

from harness import UserError, require_memory
from harness.images import ImageData, patches, read_pixels, standardise
from harness.pairs import PairData
from harness.tokenizer import Tokenizer

PROMPTS = 'a photo of a {}', 'a picture of a {}', 'a small photo of a {}', 'this is a {}', '{}'
RECALLS = 'image_at_1', 'image_at_5', 'caption_at_1', 'caption_at_5'


def encode_captions(texts, tokenizer, model):
    """Captions as a model reads them: (B, T) int64 tokens, each with its end, then -1.  Raises UserError."""
    end, longest = model.config.vocab_size - 1, model.config.block_size
    published = tokenizer.kind == 'tokenizers'          # its own tokens begin and end a text
    rows = [tokenizer.bpe.encode(text).ids if published else [*tokenizer.encode(text), end] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not text.strip() or len(row) > longest:
            raise UserError(f'the caption {text[:40]!r} has {len(row)} tokens with its end: this model reads 2 to {longest}')
    return torch.tensor([row + [-1] * (max(map(len, rows)) - len(row)) for row in rows])


def encode_image(path, content):
    """An image file, or its bytes, as a model reads it: (patches (1, S, D), pixels (H, W, C) uint8).  It is scaled to the size
    of the images of the training split, its middle cut out.  content: a checkpoint.  Raises UserError."""
    image = read_pixels(path, content['data']['shape'])
    return patches(standardise(image[None], content['data']['standard']), content['loop']['patch']), image


def published_images(model):
    """What a checkpoint says of images, for published weights that read patches of square images with three channels."""
    P, side = math.isqrt(model.config.features // 3), math.isqrt(model.config.source_size)
    mean, deviation = model.published_pixels
    return {'loop': {'patch': P}, 'data': {'shape': (side * P, side * P, 3), 'standard': [[255 * v for v in mean],
                                                                                          [255 * v for v in deviation]]}}


class CaptionData(PairData, ImageData):
    """The images of data/<name> as sources, and their captions as targets.  Raises UserError."""
    modality, noun, unit, columns, kind = 'pairs', 'images with captions', 'images', (), 'pairs'
    batch, train_batch, parts = ImageData.batch, ImageData.train_batch, ImageData.parts

    def __init__(self, folder, meta, modality, patch):
        ImageData.__init__(self, folder, meta, modality, patch)
        self.meta = meta | {'shape': [*self.shape]}
        if self.captions is None:
            self.tokenizer = Tokenizer({'kind': 'bytes'})
            self.meta['tokenizer'], self.vocab_size = self.tokenizer.spec, self.tokenizer.n_vocab + 1
            texts = [prompt.format(label) for label in meta['labels'] for prompt in PROMPTS]
            rows = [np.array([*self.tokenizer.encode(text), self.tokenizer.n_vocab], np.int32) for text in texts]
            table = np.full((len(rows), max(map(len, rows))), -1, np.int32)
            for out, row in zip(table, rows, strict=True):
                out[:len(row)] = row
            self.captions = {split: table[y * np.int64(len(PROMPTS)) + np.arange(len(y)) % len(PROMPTS)]
                             for split, (_, y) in self.splits.items()}
        self.splits = {split: (x, self.captions[split]) for split, (x, _) in self.splits.items()}
        self.order = np.argsort((self.captions['train'] >= 0).sum(1), kind='stable')

    @property
    def sides(self):
        """Whether a caption for training says left or right, which is wrong of a mirrored image."""
        return any(re.search(r'\b(left|right)\b', self.text(row), re.I) for row in np.unique(self.captions['train'], axis=0))

    def model_settings(self):
        (H, W, C), P = self.shape, self.patch
        return {'vocab_size': self.vocab_size, 'block_size': self.captions['train'].shape[1],
                'source_size': (H // P) * (W // P), 'features': C * P * P, **({} if H == W else {'rows': H // P})}

    def read(self, x, captions):
        """(patches (B, S, D) float32, captions (B, T) int64, as long as the longest)."""
        captions = torch.from_numpy(captions[:, :(captions >= 0).sum(1).max()].astype(np.int64))
        return patches(standardise(x, self.meta['standard']), self.patch), captions

    def chance_answer(self, metric=None):
        return f'always {self.text(np.frombuffer(self.constant(), np.int32))!r}'

    def show(self, model, cfg, folder):
        """Prints the captions that the model writes for some images of the validation split."""
        if not cfg.sample_tokens:
            return
        device = next(model.parameters()).device
        x, y = self.examples('val', self.val_indices(5, model.config.block_size))
        model.eval()
        for made, expected in zip(model.decode(x.to(device)).cpu(), y, strict=True):
            made, expected = self.text(made), self.text(expected)
            print(f'{made!r}' + ('' if made == expected else f', expected {expected!r}'))
        model.train()


class ContrastiveData(CaptionData):
    """The images of data/<name> and their captions, for a model that tells which belong together."""
    modality, columns, metric, uneven = 'captions', RECALLS, 'accuracy', False

    def train_indices(self, count, block_size, seed, step):
        """Without replacement as far as that goes: an image twice in a batch would be a wrong pair with itself."""
        rng, n = np.random.default_rng((seed, step)), len(self.splits['train'][0])
        return rng.choice(n, count, replace=count > n)

    def score(self, output, _, y):
        """(B, 2E + T): the vectors of each image and its caption, and the caption itself, which other images may have too."""
        longest = self.captions['train'].shape[1]
        return torch.cat([output.flatten(1).cpu().double(), F.pad(y.cpu().double(), (0, longest - y.shape[1]), value=-1)], 1)

    def total(self, parts):
        """Over all of the images and captions that were evaluated: the loss, and the share of images whose caption, and of
        captions one of whose images, is among the 1 and the 5 most similar; accuracy is caption_at_1.  What is as similar as
        the right one ranks before it: a model whose vectors are all equal is never right."""
        table = torch.cat(parts)
        require_memory(40 * len(table) ** 2, f'the similarities of {len(table):,} images and their captions (eval_windows)')
        T = self.captions['train'].shape[1]
        output, captions = table[:, :-T].unflatten(1, (2, -1)), table[:, -T:]
        logits, own = output[:, 0] @ output[:, 1].mT, torch.arange(len(output))
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.mT, own)) / 2
        _, which = captions.unique(dim=0, return_inverse=True)                              # (N,) the number of its caption
        first = torch.full((int(which.max()) + 1,), len(which)).scatter_reduce(0, which, own, 'amin')
        logits = logits[:, first]                                                           # (N, U), each caption once
        right = which[:, None] == torch.arange(len(first))
        best, others = logits.masked_fill(~right, -math.inf), logits.masked_fill(right, -math.inf)
        ranks = {'caption': (others >= best.amax(1, keepdim=True)).sum(1),                  # of the caption of each image
                 'image': (others >= best.amax(0)).sum(0)}                                  # of an image of each caption
        recalls = {f'{name}_at_{k}': (rank < k).double().mean().item() for name, rank in ranks.items() for k in (1, 5)}
        return {'val_loss': loss.item(), 'accuracy': recalls['caption_at_1'], **recalls}

    def chance(self, split='val'):
        """The accuracy of always giving the most frequent caption of the training split."""
        return PairData.chance(self, split)

    def format_metrics(self, metrics, split='val'):
        captions, images = (' / '.join(f'{metrics[f"{name}_at_{k}"]:.1%}' for k in (1, 5)) for name in ('caption', 'image'))
        return (f'{split} {metrics[f"{split}_loss"]:.4f}, recall at 1 / at 5: of the caption of an image {captions}, of an '
                f'image of a caption {images}')

    def show(self, model, cfg, folder):
        """It generates nothing."""
