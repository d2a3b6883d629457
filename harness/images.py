"""
Images, data/<name>/: meta.json and, memory-mapped, for each of {train,val,test}

    _x.npy           (N, H, W, C) uint8, C = 1 or 3
    _y.npy           (N,) a class, 0 to outputs - 1                                     if outputs is not 0
    _captions.npy    (N, L) int32 tokens, the end token, then -1 (as in pairs.py)       if meta.json has a tokenizer

What a batch is depends on the modality of the model: 'images' reads x as (B, C, H, W) and 'task' as patches (B, T, D), both
with a class y (B,).  A new way to read images is another subclass, such as those of harness/captions.py, see MODALITIES in
harness/data.py.

B batch   C channels   H, W height and width   P side of a patch   T patches   D = C * P * P   L tokens of a caption
"""

import numpy as np
import torch
import torch.nn.functional as F

from harness import SPLITS, UserError
from harness.files import read_image
from harness.pairs import open_rows
from harness.tasks import TaskData, check
from harness.tokenizer import Tokenizer

AUGMENT = ('none', 'flip', 'crop', 'flip+crop')


def augment(x, how, keys):
    """Images (B, H, W, C) as a model in training sees them, which is a function of the keys, one for each.  how: of AUGMENT.
    flip: half of the images are mirrored; crop: each is shifted by up to an eighth of its side, and the pixels at its edges are
    repeated."""
    (_, H, W, _), out = x.shape, np.empty_like(x)
    for image, new, key in zip(x, out, keys, strict=True):
        rng = np.random.default_rng(key)
        flip, down, right = rng.random() < 0.5, rng.integers(-(H // 8), H // 8 + 1), rng.integers(-(W // 8), W // 8 + 1)
        if 'crop' not in how:
            down = right = 0
        if flip and 'flip' in how:
            image = image[:, ::-1]
        new[:] = image[(np.arange(H) - down).clip(0, H - 1)][:, (np.arange(W) - right).clip(0, W - 1)]
    return out


def read_pixels(source, shape):
    """An image file, or its bytes, as (H, W, C) uint8 of this shape: scaled, its middle cut out.  Raises UserError."""
    H, W, C = shape
    image = read_image(source, (W, H), 'the file')
    return image.mean(2, keepdims=True).round().astype(np.uint8) if C == 1 else image


def standardise(x, standard):
    """Images (B, H, W, C) uint8 as (B, C, H, W) float32.  standard: the means and the standard deviations of the channels."""
    mean, deviation = (torch.tensor(v).view(-1, 1, 1) for v in standard)
    x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()       # strides of channels last crash torch 2.13 on a CPU
    return (x - mean) / deviation


def patches(x, side):
    """Images (B, C, H, W) as patches (B, T, D) in reading order, each flattened as (channel, row, column)."""
    return F.unfold(x, side, stride=side).mT.contiguous()


class ImageData(TaskData):
    """The images of data/<name> and their classes.  patch: P, for a model of modality 'task'.  Raises UserError for files that
    do not match meta.json, or that this modality cannot read."""
    noun = unit = 'images'
    columns, kind, vocab_size, sides = ('auc',), 'classify', 0, False

    def __init__(self, folder, meta, modality='images', patch=1):
        self.folder, self.meta, self.modality, self.patch = folder, meta, modality, patch
        self.y_standard = 0.0, 1.0          # classes are no numbers
        try:
            self.outputs, self.fingerprint = meta['outputs'], meta['fingerprint']
            self.splits = {split: (self._map(f'{split}_x'), self._map(f'{split}_y') if self.outputs else None)
                           for split in SPLITS}
            self.shape = H, W, C = self.splits['train'][0].shape[1:]
            for split, (x, y) in self.splits.items():
                count = meta['examples'][split]
                if (x.dtype, x.shape, np.shape(meta['standard'])) != (np.uint8, (count, H, W, C), (2, C)) or \
                        (y is not None and len(y) != count):
                    raise UserError(f'{folder}/{split}_x.npy, {x.shape} {x.dtype}, or {split}_y.npy do not hold {count:,} '
                                    f'images as meta.json says: run python prepare/{meta["script"]} again with --overwrite')
                if self.outputs:
                    check('classify', self.outputs, 0, x.reshape(len(x), H, W * C), y, f'{folder}/{split}_{{}}.npy')
            self.tokenizer, self.captions = None, None
            if 'tokenizer' in meta:
                self.tokenizer, self.vocab_size = Tokenizer(meta['tokenizer']), meta['vocab_size']
                self.captions = {split: open_rows(folder / f'{split}_captions.npy', meta['examples'][split], self.vocab_size,
                                                  meta['script']) for split in SPLITS}
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UserError(f'{folder / "meta.json"} is damaged ({type(e).__name__}: {e}): prepare the data again') from None
        if modality != 'images' and (patch < 1 or H % patch or W % patch):
            raise UserError(f'patch={patch} does not divide the images of data/{folder.name}, {W} x {H} pixels')
        if modality in ('patches', 'drawings') and H != W:
            raise UserError(f'the images of data/{folder.name} have {W} x {H} pixels, and this model reads square ones: '
                            f'prepare them with --size')
        if modality in ('images', 'task') and not self.outputs:
            raise UserError(f'data/{folder.name} has images with captions and without classes: choose another dataset, such as '
                            f'cifar10_images, or an arch that reads captions; a language model reads the data of '
                            f'prepare/pixels.py')

    @property
    def draw(self):
        H, W, C = self.shape
        return {'as': 'image', 'height': H, 'width': W, 'channels': C, 'patch': self.patch}

    @property
    def parts(self):
        """{name: indices} of the parts of the test split that are judged separately, such as 'held out'."""
        return {name: np.arange(*ends) for name, ends in self.meta.get('parts', {}).items()}

    def model_settings(self):
        """The fields of a model's Config that the data decides."""
        (H, W, C), P = self.shape, self.patch
        answer = {'outputs': self.outputs, 'kind': self.kind}
        if self.modality == 'task':
            return {'block_size': (H // P) * (W // P), 'vocab_size': 0, 'features': C * P * P, **answer}
        return {'channels': C, 'height': H, 'width': W, **answer}

    def require(self, block_size):
        """An image is an example of any size."""

    def read(self, x, y):
        """Images (B, H, W, C) and their classes as a model reads them: x (B, C, H, W), or patches (B, T, D) in reading order,
        each flattened as (channel, row, column); y (B,) int64."""
        x = standardise(x, self.meta['standard'])
        if self.modality == 'task':
            x = patches(x, self.patch)
        return x, torch.from_numpy(y.astype(np.int64))

    def examples(self, split, indices):
        return self.read(*(part[indices] for part in self.splits[split] if part is not None))

    def train_batch(self, indices, model, cfg, step):
        x, *y = (part[indices] for part in self.splits['train'] if part is not None)
        if cfg.augment != 'none':
            x = augment(x, cfg.augment, [(cfg.seed, step, i) for i in indices])
        return self.read(x, *y)

    def text(self, ids):
        """The text of a caption, without its end."""
        return self.tokenizer.decode([int(i) for i in ids if 0 <= i < self.tokenizer.n_vocab])
