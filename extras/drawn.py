"""
How many images that a model draws are true of their captions, on a data set that can tell, such as shapes:

    python -m extras.drawn out/shapes_dalle --rerank out/shapes_clip

Of some captions of the test split --samples images each are drawn.  'true' is the share of the images that are true of their
caption; with --rerank, 'reranked' is the share of the captions of which the image that ranks first is true.  Captions of one,
two and three shapes and the parts of the test split are judged apart: 'held out' are combinations that no picture for training
has.  As a floor, the images are judged by the captions of others; 'rebuilt' is the share of the pictures of the data set that
stay true when their tokens are drawn, which limits what the tokens can show.  So does their PSNR; the perplexity says how many
codes are in use, as if all of these were used equally often.  Written to drawn.json in the folder of the run.
"""

import importlib
import math
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dvae import perplexity
from extras.truth import checker
from harness import Arguments, UserError, checkpoint, command, data, device
from harness.drawings import BATCH, draw, ranker, set_guidance, to_images
from race.page import origin, write_record

PICTURES = 1000     # by which the codebook is judged, at most


def arguments(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('run', help='the folder of a run of a model that draws')
    parser.add_argument('--rerank', metavar='RUN', help='a run of clip.py, by which the images of a caption are ranked')
    parser.add_argument('--captions', type=int, default=100, help='of each part and number of shapes (default 100)')
    parser.add_argument('--samples', type=int, default=8, help='images of each caption (default 8)')
    parser.add_argument('--temperature', type=float, default=1.0, help='of the sampling (default 1; 0: greedy)')
    parser.add_argument('--top_p', type=float, default=0.9, help='share of the probability that is kept (default 0.9; 1: all)')
    parser.add_argument('--guidance', type=float, help="weight of the caption (1: none; default: the run's)")
    parser.add_argument('--seed', type=int, default=1337)
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:N')
    args = parser.parse_args(argv)
    if min(args.captions, args.samples) < 1 or not args.temperature >= 0 or args.seed < 0 or not 0 < args.top_p <= 1:
        raise UserError(f'--captions={args.captions} and --samples={args.samples} must be at least 1, --temperature='
                        f'{args.temperature} and --seed={args.seed} at least 0, and --top_p={args.top_p} above 0 and at most 1')
    return args


def groups(dataset, most):
    """{(part, number of shapes): indices of the test split}, the first `most` of each whose captions differ."""
    count = importlib.import_module(f'prepare.{Path(dataset.meta["script"]).stem}').count
    found, seen = {}, set()
    for part, indices in (dataset.parts or {'test': np.arange(len(dataset.splits['test'][0]))}).items():
        for i in indices:
            text = dataset.text(dataset.captions['test'][i])
            group = found.setdefault((part, count(text)), [])
            if len(group) < most and text not in seen:
                seen.add(text)
                group.append(i)
    return dict(sorted(found.items(), key=lambda item: (item[0][0] != 'seen', item[0])))


@torch.no_grad()
def rebuild(model, dataset, indices):
    """(pictures of the test split, drawn from their own tokens; these tokens (B, S))."""
    x, _ = dataset.examples('test', indices)
    codes = torch.cat([model.vae.tokens(part.to(next(model.parameters()).device)) for part in x.split(BATCH)])
    images = [to_images(model.render(part), dataset.meta, dataset.patch) for part in codes.split(BATCH)]
    return np.concatenate(images), codes.cpu()


def codebook(model, dataset):
    """What the tokens keep of the pictures of the test split: the PSNR in dB, and the perplexity of the codes."""
    n = len(dataset.splits['test'][0])
    indices = np.linspace(0, n - 1, min(PICTURES, n)).round().astype(int)
    images, codes = rebuild(model, dataset, indices)
    error = np.square((images.astype(float) - dataset.splits['test'][0][indices]) / 255).mean()
    return {'pictures': len(indices), 'psnr': -10 * math.log10(max(error, 1e-10)),
            'perplexity': perplexity(codes.flatten().bincount())}


def judge(model, dataset, indices, is_true, args):
    """The shares of one group, as a dict."""
    texts, N = [dataset.text(row) for row in dataset.captions['test'][indices]], args.samples
    _, y = dataset.examples('test', indices)
    each = [text for text in texts for _ in range(N)]
    score = ranker(each, args.rerank, dataset.shape, next(model.parameters()).device) if args.rerank else None
    images = draw(model, y.repeat_interleave(N, 0), dataset.meta, dataset.patch, args.temperature, top_p=args.top_p,
                  seed=args.seed)
    true = np.array([is_true(image, text) for image, text in zip(images, each, strict=True)]).reshape(-1, N)
    others = [is_true(image, text) for image, text in zip(images, each[N:] + each[:N], strict=True)]
    rebuilt = [is_true(image, text) for image, text in zip(rebuild(model, dataset, indices)[0], texts, strict=True)]
    found = {'captions': len(texts), 'true': true.mean(), 'floor': np.mean(others), 'rebuilt': np.mean(rebuilt)}
    if score:
        found['reranked'] = true[np.arange(len(true)), score(images).view(-1, N).argmax(1).numpy()].mean()
    return {k: v if k == 'captions' else float(v) for k, v in found.items()}


def main(argv):
    args = arguments(argv)
    path = checkpoint.find(args.run)
    model, content = checkpoint.load_model(path)
    dataset = data.data_of(content)
    if model.modality != 'drawings' or dataset is None:
        raise UserError(f'{args.run} draws no images, or data/{content["loop"]["dataset"]} is missing or another: choose a run '
                        f'such as that of config/shapes_dalle.py')
    set_guidance(model, args.guidance)
    is_true, found = checker(dataset), []
    model.to(device.pick_device(args.device, 0, 1))
    for (part, shapes), indices in tqdm(groups(dataset, args.captions).items(), 'drawn', leave=False, disable=None):
        row = judge(model, dataset, indices, is_true, args)
        found.append({'part': part, 'shapes': shapes, **row})
        print(f'{part}, {shapes} shape{"s" * (shapes > 1)}: of {row["captions"]} captions, {args.samples} images each, '
              f'{row["true"]:.1%} true' + (f', {row["reranked"]:.1%} of those that rank first' if args.rerank else '') +
              f' (captions of others {row["floor"]:.1%}, pictures rebuilt {row["rebuilt"]:.1%})', flush=True)
    quality = codebook(model, dataset)
    print(f'{quality["pictures"]:,} pictures rebuilt: PSNR {quality["psnr"]:.1f} dB, perplexity of the codes '
          f'{quality["perplexity"]:.1f}')
    write_record(origin('extras.drawn', argv, args.device) | {
        'step': content['step'], 'samples': args.samples, 'temperature': args.temperature, 'top_p': args.top_p,
        'guidance': getattr(model.config, 'guidance', None), 'seed': args.seed, 'rerank': args.rerank, 'codebook': quality,
        'groups': found},
        path.resolve().parent / 'drawn.json')


if __name__ == '__main__':
    command(main)
