"""
What the page of extras/play.py shows of a run: a function for each of its parts, which yields it as plain data for JSON.

One pass of one model is computed at a time.  Requests take turns after each token, and each has a state and a generator of its
own, so the result of a request does not depend on the others, nor does the speed that is shown.
"""

import base64
import contextlib
import io
import math
import re
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import torch
from torch.utils import _pytree as pytree

matplotlib.use('Agg')       # before pyplot is imported

from harness import BIDIRECTIONAL, LEAKS, UserError, checkpoint, log, palette, schema
from harness.arch import ANSWERS, load_arch
from harness.captions import encode_captions, encode_image
from harness.data import data_of
from harness.drawings import to_images
from harness.files import read_image
from harness.generate import generate, reader, sample_token
from harness.images import patches, read_pixels, standardise
from harness.pairs import encode_source
from look import texts_of, window_of
from sample import load_pretrained

PIXELS = 1 << 22            # of an image, at most
SEEN = 1000                 # characters of a text to look at, at most
MEASURED = 96               # of its last tokens, those whose influence and attention are measured
OTHERS = 10                 # likeliest tokens that are shown for each
IMAGES = 16                 # that are drawn of a caption
COMPLETED = 4               # pictures that a model of pixels completes
POINTS = 400                # of a curve, at most

turn = threading.Lock()     # held while a model computes


def in_turn(items):
    """The items of an iterator, each of which is computed while no other request computes."""
    items, end = iter(items), object()
    while True:
        with turn:
            item = next(items, end)
        if item is end:
            return
        yield item


def png(image):
    """An image (H, W, C) uint8 as a data URL."""
    f = io.BytesIO()
    palette.pillow().fromarray(image if image.shape[2] == 3 else image[..., 0]).save(f, 'PNG')
    return url(f.getvalue())


def url(content):
    return 'data:image/png;base64,' + base64.b64encode(content).decode()


# runs -----------------------------------------------------------------------------------------------------------------------

class Run:
    """A run folder, a checkpoint file or published weights, named at the start."""

    def __init__(self, name, where, pretrained=False):
        self.name, self.where, self.pretrained = str(name), where, pretrained
        self.loading, self.stamp, self.loaded = threading.Lock(), None, None

    @property
    def folder(self):
        return Path(self.name).parent if Path(self.name).suffix == '.pt' else Path(self.name)

    def load(self, last=False):
        """What is loaded of it: .model, .content (its checkpoint), .tokenizer (None: it has none), .dataset of a task
        (None: it is missing or another).  last: of the last checkpoint, not of the best.  Raises UserError."""
        if self.pretrained:
            with self.loading:
                self.loaded = self.loaded or self.published()
                return self.loaded
        path = self.folder / 'ckpt.pt' if last else checkpoint.find(self.name)
        if last:
            return self.read(path)
        with self.loading:
            stamp = path, path.stat().st_mtime_ns, path.stat().st_size
            if stamp != self.stamp:
                self.loaded, self.stamp = None, None
                self.loaded = self.read(path)
                self.stamp = stamp
            return self.loaded

    def read(self, path):
        model, content = checkpoint.load_model(path)
        tokenizer = checkpoint.tokenizer(content, path) if content['data'].get('tokenizer') else None
        dataset = data_of(content) if model.modality in ANSWERS else None       # which says what an answer is
        return SimpleNamespace(model=model.to(self.where), content=content, tokenizer=tokenizer, dataset=dataset)

    def published(self):
        (model,), tokenizer = load_pretrained(self.name, None)
        content = {'arch': type(model).__module__, 'data': {}, 'loop': {'dataset': ''}, 'step': None}
        return SimpleNamespace(model=model.to(self.where), content=content, tokenizer=tokenizer, dataset=None)

    def about(self):
        """What the page shows of it; with an 'error' if it cannot be used."""
        found = {'name': self.name, 'parts': [] if self.pretrained else ['watch']}
        with reported(found):
            loaded = self.load()
            model, content = loaded.model, loaded.content
            found |= {'arch': content['arch'], 'step': content['step'], 'data': content['loop']['dataset'],
                      'parameters': sum(p.numel() for p in model.parameters())}
            found |= use_of(loaded)
            found['parts'] = [*found['parts'], *([] if self.pretrained else ['watch'])]
        return found


@contextlib.contextmanager
def reported(found):
    """An error within it becomes found['error'], a sentence."""
    try:
        yield
    except UserError as e:
        found['error'] = str(e)
    except OSError as e:
        found['error'] = f'{e.filename or "a file"} cannot be read ({e.strerror}): train this run, or choose another'
    except Exception as e:      # of an architecture: the other runs go on
        traceback.print_exc()
        found['error'] = f'{type(e).__name__}: {" ".join(str(e).split())[:200]}'


def use_of(loaded):
    """{'parts': the parts of the page for a run, 'note': what a reader must know, and for Draw 'reads',
    and 'instant', whether an answer takes one pass}."""
    model, tokenizer, modality = loaded.model, loaded.tokenizer, loaded.model.modality
    shape = shape_of(loaded)
    if modality == 'text' and tokenizer.length is None:
        return {'parts': ['write', 'see'], 'note': LEAKS if model.leaks else ''}
    if modality == 'masked text' and tokenizer.length is None:
        return {'parts': ['see'], 'note': BIDIRECTIONAL}
    if modality == 'pairs' and not shape:
        return {'parts': ['write'], 'note': 'it reads the text as a source, and writes its target'}
    if shape and modality in DRAWN:
        reads, note, _ = DRAWN[modality]
        return {'parts': ['draw'], 'reads': reads, 'note': note, 'instant': modality in ONE_PASS}
    if modality in ANSWERS and loaded.dataset is None:
        return {'parts': [], 'note': f'data/{loaded.content["loop"]["dataset"]} is missing or is not the data of this run: '
                                     f'prepare it to see answers'}
    return {'parts': [], 'note': 'its examples are neither a text nor an image, so there are only its curves to watch'}


def shape_of(loaded):
    """The height, width and channels of the images of a run, or None."""
    if loaded.tokenizer and loaded.tokenizer.length is not None and loaded.model.modality == 'text':
        spec = loaded.tokenizer.spec
        return [spec['height'], spec['width'], 3]
    if loaded.model.modality in ANSWERS:
        draw = loaded.dataset.draw if loaded.dataset and loaded.dataset.kind == 'classify' else {}
        return [draw['height'], draw['width'], draw['channels']] if draw.get('as') == 'image' else None
    return loaded.content['data'].get('shape')


# Write ----------------------------------------------------------------------------------------------------------------------

def write(loaded, request):
    """Yields the tokens that continue request.text and the tokens request.ids after it: {'token', 'text', 'bits', 'others'},
    where others are the likeliest [token, text, probability]; then {'speed': tokens/s} without the first."""
    model, tokenizer = loaded.model, loaded.tokenizer
    if model.modality == 'pairs':
        source = encode_source(request.text, tokenizer, model).to(device_of(model))
        with turn:
            target = [i for i in model.decode(source)[0].tolist() if i >= 0]
        yield from ({'text': piece} for piece in tokenizer.stream(target))
        return
    n_vocab = min(tokenizer.n_vocab, model.config.vocab_size)
    if any(i >= n_vocab for i in request.ids):
        raise UserError(f'the token {max(request.ids)} is not one of the {n_vocab} of this run: choose one of those')
    start = [*(tokenizer.encode(request.text) or tokenizer.begin()), *request.ids]
    options = request.temperature, request.top_k, request.top_p, n_vocab, torch.Generator().manual_seed(request.seed)
    read, seconds, record = reader(model, 1), [], {}

    def tokens():
        new = torch.tensor([start])
        for _ in range(request.count):
            with turn:
                began = time.perf_counter()
                logits = read(new.to(device_of(model))).float().cpu()           # (1, V)
                new = sample_token(logits, *options)[:, None]
                seconds.append(time.perf_counter() - began)
            record.update(token=int(new), **describe(logits[0, :n_vocab], int(new), tokenizer))
            yield int(new)
    for piece in tokenizer.stream(tokens()):
        if piece or record:         # the last piece may be the rest of a character, without a token of its own
            yield {'text': piece, **record}
        record.clear()
    yield {'speed': (len(seconds) - 1) / max(sum(seconds[1:]), 1e-9) if seconds[1:] else None}


def describe(logits, token, tokenizer):
    """The surprise of a token in bits, and the likeliest others.  logits: (V,)"""
    log_p = logits.log_softmax(-1)
    best = log_p.topk(min(OTHERS, len(log_p)))
    others = [[i, text, round(math.exp(p), 5)] for i, text, p in zip(
        best.indices.tolist(), texts_of(tokenizer, best.indices.tolist()), best.values.tolist(), strict=True)]
    return {'bits': round(-log_p[token].item() / math.log(2), 3), 'others': others}


def device_of(model):
    return next(model.parameters()).device


# See ------------------------------------------------------------------------------------------------------------------------

def see(loaded, request):
    """Yields what can be measured of a run on request.text: {'read': text of the next token, 'bits': its surprise or None},
    {'first': number of the first measured token, 'size'}, {'influence': (outputs,) of the next of these}, {'attention'},
    {'picture', 'png'}."""
    from views.attention import attention_maps
    from views.behaviour import influences
    from views.behaviour import png as png_of
    model, tokenizer, where = loaded.model, loaded.tokenizer, device_of(loaded.model)
    if len(request.text) > SEEN:
        raise UserError(f'the text has {len(request.text):,} characters: See measures at most {SEEN:,}, so shorten it')
    ids = tokenizer.encode(request.text)
    if len(ids) < 2:
        raise UserError(f'the text has {len(ids)} token{"s" * (len(ids) != 1)}: at least 2 are needed')
    parts = pytree.tree_leaves(model.init_state(1)) if model.step else ()
    state = sum(t.nbytes for t in parts if isinstance(t, torch.Tensor))
    yield {'state': state if model.step else None, 'window': model.config.block_size, 'bidirectional': model.bidirectional}
    for text, bits in zip(texts_of(tokenizer, ids), surprises(model, ids, where), strict=True):
        yield {'read': text, 'bits': bits}
    x, labels = window_of(model, tokenizer, ids)
    if model.predicts == 'every' and not model.memory:
        x = x[:, -MEASURED:]
    yield {'first': len(ids) - x.shape[1], 'size': x.shape[1]}
    for column in in_turn(influences(model, x)):
        yield {'influence': [float(f'{v:.3g}') for v in column.tolist()]}
    with turn:
        maps = [m for m in attention_maps(model, x) if m.shape[1] == x.shape[1]]
    if maps:        # a byte for each weight, of its square root: small weights are seen, too
        packed = np.concatenate([np.sqrt(m).ravel() * 255 for m in maps]).round().astype(np.uint8)
        yield {'attention': base64.b64encode(packed.tobytes()).decode(), 'heads': [len(m) for m in maps], 'size': x.shape[1]}
    pictures = load_arch(loaded.content['arch']).pictures(model, x, labels[-x.shape[1]:])
    for name, content in in_turn((name, png_of(figure)) for name, figure in pictures):
        yield {'picture': name, 'png': url(content)}


def surprises(model, ids, where):
    """Yields the surprise of each token in bits, given those before it; None for the first.  A bidirectional model is given all
    other tokens."""
    if model.bidirectional:
        with turn:
            log_p = model.infill(torch.tensor([ids], device=where))[0].float().log_softmax(-1).cpu()
        yield from (-log_p[range(len(ids)), ids] / math.log(2)).tolist()
        return
    yield None
    read = reader(model, 1)
    logits = in_turn(read(torch.tensor([[i]], device=where)).float().log_softmax(-1).cpu() for i in ids[:-1])
    yield from (-row[0, i].item() / math.log(2) for row, i in zip(logits, ids[1:], strict=True))


# Draw -----------------------------------------------------------------------------------------------------------------------

def image_of(request):
    """The bytes of request.image, a data URL.  Raises UserError."""
    found = re.fullmatch(r'data:image/[\w.+-]+;base64,([A-Za-z0-9+/=\s]+)', request.image)
    if not found:
        raise UserError('there is no image: draw one, or drop an image file')
    try:
        content = base64.b64decode(found[1])
    except ValueError:
        raise UserError('the image is damaged: draw one, or drop an image file') from None
    size = 0, 0
    with contextlib.suppress(Exception), palette.pillow().open(io.BytesIO(content)) as image:
        size = image.size           # that of a file that is no image is left to read_image()
    if math.prod(size) > PIXELS:    # a small file may hold a large image of one colour
        raise UserError(f'the image has {size[0]} x {size[1]} pixels: at most {PIXELS:,} are read, so scale it down')
    return content


def answer(loaded, request):
    """The classes of an image with their probabilities, and the image as the model sees it."""
    task, draw = loaded.dataset, loaded.dataset.draw
    image = read_pixels(image_of(request), (draw['height'], draw['width'], draw['channels']))
    x = standardise(image[None], task.meta['standard'])
    if loaded.model.modality == 'task':
        x = patches(x, draw['patch'])
    with turn:
        p = loaded.model(x.to(device_of(loaded.model)))[0][0].float().softmax(-1).cpu()
    labels = task.meta.get('labels') or list(map(str, range(task.outputs)))
    yield {'image': png(image), 'patch': draw['patch'] if loaded.model.modality == 'task' else None}
    yield {'answers': ranked(labels, p)}


def ranked(labels, p):
    best = p.topk(min(OTHERS, len(p)))
    return [[labels[i], round(q, 4)] for i, q in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def captions_of(request, most):
    found = [line.strip() for line in request.captions.splitlines() if line.strip()]
    if not 0 < len(found) <= most:
        raise UserError(f'there are {len(found)} captions: write 1 to {most}, a line each')
    return found


def choose(loaded, request):
    """The probabilities of captions for an image."""
    labels = captions_of(request, 20)
    x, image = encode_image(image_of(request), loaded.content)
    y = encode_captions(labels, loaded.tokenizer, loaded.model)
    with turn:
        where = device_of(loaded.model)
        output = loaded.model(x.expand(len(y), -1, -1).to(where), y.to(where))[0].float().cpu()
    yield {'image': png(image), 'patch': loaded.content['loop']['patch']}
    yield {'answers': ranked(labels, (output[0, 0] @ output[:, 1].T).softmax(-1))}


def caption(loaded, request):
    """The caption of an image."""
    x, image = encode_image(image_of(request), loaded.content)
    yield {'image': png(image), 'patch': loaded.content['loop']['patch']}
    with turn:
        ids = loaded.model.decode(x.to(device_of(loaded.model)))[0].tolist()
    yield {'caption': loaded.tokenizer.decode([i for i in ids if 0 <= i < loaded.tokenizer.n_vocab])}


def rebuild(loaded, request):
    """An image from its tokens."""
    content, P = loaded.content, loaded.content['loop']['patch']
    x, image = encode_image(image_of(request), content)
    yield {'image': png(image), 'patch': P}
    with turn:
        made = loaded.model(x.to(device_of(loaded.model)))[0]
    yield {'images': [png(to_images(made, content['data'], P)[0])], 'caption': 'rebuilt from its tokens'}


def draw(loaded, request):
    """Images of a caption."""
    text = captions_of(request, 20)[0]
    model, content = loaded.model, loaded.content
    y = encode_captions([text], loaded.tokenizer, model).expand(IMAGES, -1)
    tokens = []
    yield from sampled(model, y, model.config.source_size, request, None, tokens)
    with turn:
        images = to_images(model.render(torch.stack(tokens, 1)), content['data'], content['loop']['patch'])
    yield {'images': [*map(png, images)], 'caption': text}


def complete(loaded, request):
    """Pictures that begin with the upper half of an image, or with nothing if there is no image."""
    model, tokenizer, spec, start = loaded.model, loaded.tokenizer, loaded.tokenizer.spec, loaded.tokenizer.begin()
    if request.image:
        image = read_image(image_of(request), (spec['width'], spec['height']), 'the file')
        ids = palette.tokens(image[None], spec)[0].tolist()[:spec['width'] * (spec['height'] // 2)]
        start = [*start, *ids]
        yield {'image': png(palette.picture(ids, spec)), 'patch': None}
    tokens = []
    yield from sampled(model, torch.tensor([start] * COMPLETED), tokenizer.length + 1 - len(start), request, tokenizer.n_vocab,
                       tokens)
    rows = torch.stack(tokens, 1).tolist()
    yield {'images': [png(palette.picture([*start, *row], spec)) for row in rows]}


def sampled(model, prompt, count, request, n_vocab, tokens):
    """Appends `count` tensors (B,) that continue the prompt (B, T) to tokens; yields the progress.  Row i has the seed
    request.seed + i."""
    generators = [torch.Generator().manual_seed(request.seed + i) for i in range(len(prompt))]
    options = request.temperature, request.top_k, request.top_p, n_vocab, generators
    for token in in_turn(generate(model, prompt, count, *options)):
        tokens.append(token)
        yield {'progress': len(tokens) / count}


# {modality: (what it reads, a note for the page, the function)}
DRAWN = {
    'task': ('image', '', answer), 'images': ('image', '', answer),
    'captions': ('image and captions', 'it compares the picture with the captions', choose),
    'pairs': ('image', 'it writes a caption of the picture', caption),
    'patches': ('image', 'it rebuilds the picture from tokens', rebuild),
    'drawings': ('caption', f'it draws {IMAGES} pictures of the first caption', draw),
    'text': ('image', f'it completes the upper half of the picture {COMPLETED} times', complete)}
ONE_PASS = *ANSWERS, 'captions', 'patches'
PARTS = {'write': write, 'see': see, 'draw': lambda loaded, request: DRAWN[loaded.model.modality][2](loaded, request)}


# Watch ----------------------------------------------------------------------------------------------------------------------

def watch(run):
    """The rows of metrics.csv of a run, at most POINTS, how long it takes until its end, and the time of its checkpoint."""
    found = {}
    with reported(found):
        path = run.folder / 'metrics.csv'
        try:
            rows = log.read(path)
        except (ValueError, KeyError):
            raise UserError(f'{path} is damaged: move it away') from None
        loop = schema.read(run.folder / 'config.json', {'loop.max_iters': 'count', 'loop.max_seconds': 'number'},
                           'start the run again')['loop']
        last = {name: value for row in rows for name, value in row.items() if math.isfinite(value)}
        spent = max((last.get(name, 0) / loop[limit] for name, limit in (('step', 'max_iters'), ('seconds', 'max_seconds'))
                     if loop[limit]), default=0)
        kept = {round(i) for i in np.linspace(0, len(rows) - 1, min(POINTS, len(rows)))}
        names = ('step', 'tokens', 'seconds', 'train_loss', 'val_loss', 'grad_norm')
        found |= {'rows': [[row[name] if math.isfinite(row.get(name, math.nan)) else None for name in names]
                           for i, row in enumerate(rows) if i in kept or 'val_loss' in row],
                  'last': {name: value for name, value in last.items() if name in (*names, 'lr', 'tokens_per_second')},
                  'best': min((row['val_loss'] for row in rows if math.isfinite(row.get('val_loss', math.nan))), default=None),
                  'spent': min(1, spent), 'left': last.get('seconds', 0) * (1 / spent - 1) if 0 < spent < 1 else None,
                  'age': time.time() - path.stat().st_mtime}
        with contextlib.suppress(OSError):
            found['saved'] = (run.folder / 'ckpt.pt').stat().st_mtime_ns // 1000
    return found
