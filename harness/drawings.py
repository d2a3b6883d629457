"""
Images that a model draws: to be rebuilt (modality 'patches', such as dvae.py), or by their captions (modality 'drawings', such
as dalle.py).  The data are those of harness/captions.py.

B batch   S patches of an image   D values of a patch   T tokens of a caption   H, W, C height, width and channels
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from harness import UserError, checkpoint
from harness.captions import CaptionData, encode_captions
from harness.files import atomic
from harness.generate import generate
from harness.images import ImageData, patches, standardise

BATCH = 100         # images that are drawn at once


def to_images(patches, about, P):
    """The images (B, H, W, C) uint8 of patches (B, S, D): rounded to the nearest.  about: the 'shape' of the
    images and the 'standard' of their values, as meta.json and checkpoints have it."""
    H, W, _ = about['shape']
    mean, deviation = (torch.tensor(v).view(-1, 1, 1) for v in about['standard'])
    x = F.fold(patches.float().cpu().mT.contiguous(), (H, W), P, stride=P) * deviation + mean           # (B, C, H, W)
    return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def set_guidance(model, guidance):
    """Sets the weight of a caption for the images that are drawn from now on.  None: as in the run.  Raises UserError."""
    if guidance is not None:
        if not 0 <= guidance < math.inf:
            raise UserError(f'--guidance={guidance} must be at least 0 and finite')
        if not hasattr(model.config, 'guidance'):
            raise UserError(f'--guidance={guidance}: this model has no guidance: leave it out')
        model.config.guidance = guidance


@torch.no_grad()
def draw(model, y, about, P, temperature=1.0, top_k=0, top_p=1.0, seed=0):
    """Images (B, H, W, C) uint8 of captions y (B, T).  Image i depends on `seed` + i and on its caption, not on the others."""
    made = []
    for i in range(0, len(y), BATCH):
        rows = y[i:i + BATCH]
        generators = [torch.Generator().manual_seed(seed + i + k) for k in range(len(rows))]
        codes = generate(model, rows, model.config.source_size, temperature, top_k, top_p, generator=generators)
        made.append(to_images(model.render(torch.stack([*codes], dim=1)), about, P))
    return np.concatenate(made)


def ranker(texts, path, shape, where):
    """A function of images (N, H, W, C) uint8: how well each fits its text, for the model of images and captions in a run
    folder: (N,), the logit of the pair.  shape: (H, W, C).  Raises UserError, before anything is drawn."""
    model, content = checkpoint.load_model(path)
    if model.modality != 'captions':
        raise UserError(f"{path} is a run of arch='{content['arch']}', which compares no images with captions: choose one such "
                        f'as that of config/shapes_clip.py')
    if [*content['data']['shape']] != [*shape]:
        raise UserError(f'{path} reads images of {content["data"]["shape"]} (height, width, channels), and those drawn '
                        f'have {[*shape]}: choose a run on images of that size')
    y = encode_captions(texts, checkpoint.tokenizer(content, path), model)
    model.to(where)

    @torch.no_grad()
    def score(images):
        x, scores = patches(standardise(images, content['data']['standard']), content['loop']['patch']), []
        for i in range(0, len(x), BATCH):
            output = model(x[i:i + BATCH].to(where), y[i:i + BATCH].to(where))[0].float()               # (B, 2, E)
            scores.append((output[:, 0] * output[:, 1]).sum(1).cpu())
        return torch.cat(scores)
    return score


def save(figure, path):
    """Writes a figure as a PNG, and prints the path.  Raises UserError."""
    from views.behaviour import png
    try:
        with atomic(path) as f:
            f.write(png(figure))
    except OSError as e:
        raise UserError(f'{path} cannot be written ({e.strerror}): choose another file by --out') from None
    print(path)


class PatchData(ImageData):
    """The images of data/<name> as patches x (B, S, D), which a model rebuilds: y is x."""
    modality, columns, metric = 'patches', ('psnr',), 'psnr'

    def __init__(self, folder, meta, modality, patch):
        super().__init__(folder, meta, modality, patch)
        self.meta = meta | {'shape': [*self.shape]}

    def model_settings(self):
        (H, W, C), P = self.shape, self.patch
        return {'block_size': (H // P) * (W // P), 'features': C * P * P}

    def read(self, x, y=None):
        x = patches(standardise(x, self.meta['standard']), self.patch)
        return x, x

    def test_indices(self):
        return None

    def score(self, output, _, y):
        """(3,) sums: squared error of values in standard deviations of their channel, and on the scale of 0 to 1; values."""
        errors = (output.float() - y).square().cpu().double()                                           # (B, S, D)
        scale = (torch.tensor(self.meta['standard'][1]) / 255).square().repeat_interleave(self.patch ** 2).double()
        return torch.stack([errors.sum(), (errors * scale).sum(), torch.tensor(errors.numel(), dtype=torch.float64)])

    def total(self, parts):
        """val_loss: the mean squared error, in standard deviations.  psnr: -10 log10 of that of values from 0 to 1, in dB."""
        error, plain, n = torch.stack(parts).sum(0).tolist()
        return {'val_loss': error / n, 'psnr': -10 * math.log10(max(plain / n, 1e-10))}

    def format_metrics(self, metrics, split='val'):
        return f'{split} {metrics[f"{split}_loss"]:.4f} squared error, PSNR {metrics["psnr"]:.1f} dB' + (
            f', perplexity of the codebook {metrics["perplexity"]:.1f}' if 'perplexity' in metrics else '')

    def show(self, model, cfg, folder):
        """Draws images of the validation split, and what the model makes of them: rebuilt.png in the folder of the run."""
        from views import drawings
        save(next(figure for name, figure in drawings.rebuilt(model, self)), folder / 'rebuilt.png')


class DrawingData(CaptionData):
    """The images of data/<name> as patches x (B, S, D) and their captions y (B, T), for a model that draws."""
    modality, columns, uneven = 'drawings', ('text_loss', 'image_loss'), False      # the loss is the sum of two means

    def test_indices(self):
        return None

    def score(self, losses, _, y):
        """(4,) sums over a batch of the losses (B, T + S) of a model's tokens: of captions, of images; and their numbers."""
        T = self.captions['train'].shape[1]
        words, image = losses[:, :T].sum(), losses[:, T:].sum()
        numbers = torch.tensor([(y >= 0).sum(), losses[:, T:].numel()], dtype=torch.float64)
        return torch.cat([torch.stack([words, image]).cpu().double(), numbers])

    def total(self, parts):
        """In nats per token; val_loss: of the tokens of images."""
        words, image, n_words, n_image = torch.stack(parts).sum(0).tolist()
        return {'val_loss': image / n_image, 'image_loss': image / n_image, 'text_loss': words / n_words}

    def format_metrics(self, metrics, split='val'):
        return f'{split} {metrics[f"{split}_loss"]:.4f} per token of an image, {metrics["text_loss"]:.4f} of a caption'

    def show(self, model, cfg, folder):
        """Draws images of four captions of the validation split: samples.png in the folder of the run."""
        from views import drawings
        save(next(figure for name, figure in drawings.samples(model, self)), folder / 'samples.png')
