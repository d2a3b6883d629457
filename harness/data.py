"""
Data sets on disk, data/<name>/: meta.json, and for a text train.bin and val.bin, flat files of tokens.  A large split may be in
shards, train_0000.bin and so on, whose lengths are in meta.json's 'shards'; they are read as one sequence.  harness/tasks.py
reads tasks, harness/pairs.py pairs, harness/images.py images; prepare/common.py writes them.

A batch is a pure function of (seed, step): resuming repeats nothing and skips nothing, evaluation changes nothing, and the
windows of a step do not depend on the number of processes that share them.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from harness import ROOT, UserError, require_memory, schema
from harness.arch import load_arch
from harness.captions import CaptionData, ContrastiveData
from harness.drawings import DrawingData, PatchData
from harness.files import check_name, exclusive
from harness.generate import generate
from harness.images import ImageData
from harness.pairs import PairData
from harness.tasks import KINDS, TaskData
from harness.tokenizer import Tokenizer

SCAN = 1 << 26      # tokens per split that are checked when it is opened


class Shards:
    """Arrays of tokens, read as their concatenation: len() and slices [a:b], which may cross from one array into the next."""

    def __init__(self, parts):
        self.parts, self.starts = parts, np.cumsum([0, *map(len, parts)])

    def __len__(self):
        return int(self.starts[-1])

    def __getitem__(self, window):
        start, stop, _ = window.indices(len(self))
        first, last = np.searchsorted(self.starts, start, 'right') - 1, np.searchsorted(self.starts, stop)
        pieces = [self.parts[i][max(start - self.starts[i], 0):stop - self.starts[i]] for i in range(first, last)]
        return np.concatenate(pieces) if pieces else self.parts[0][:0]

    def split(self, at):
        """The tokens before position `at`, and those from it on."""
        cuts = [min(max(at - start, 0), len(part)) for part, start in zip(self.parts, self.starts, strict=False)]
        return (Shards([part[:cut] for part, cut in zip(self.parts, cuts, strict=True)]),
                Shards([part[cut:] for part, cut in zip(self.parts, cuts, strict=True)]))


class TextData:
    """The tokens of data/<name>, memory-mapped.  Raises UserError for files that do not match meta.json.

    validate: what the split 'val' is.  'val': val.bin.  'tune': the last ninth of train.bin, which is then no training text: of
    a whole text 80 % are trained on.  'train': the same ninth, which is also trained on.  Only 'val' reads val.bin."""
    kind = modality = noun = 'text'
    unit, columns, uneven = 'windows', (), False
    whole = False       # whether each window is a text of its own, so that every token of it must be learned

    def __init__(self, folder, validate='val'):
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        if self.meta.get('kind') != 'text':
            raise UserError(f"{self.folder} is a task (kind '{self.meta.get('kind')}'), not a text: choose another dataset, "
                            f'such as shakespeare_char')
        try:
            self.vocab_size, self.fingerprint = self.meta['vocab_size'], self.meta['fingerprint']
            self.tokenizer = Tokenizer(self.meta['tokenizer'])
            if self.tokenizer.n_vocab + (self.tokenizer.length is not None) != self.vocab_size:     # with the start
                raise ValueError(f'vocab_size={self.vocab_size}, but its tokenizer has {self.tokenizer.n_vocab} tokens')
            self.tokens = {split: self._open(split) for split in ('train', 'val')[:1 + (validate == 'val')]}
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f'{self.folder / "meta.json"} is damaged ({type(e).__name__}: {e}): prepare the data '
                            f'again') from None
        if validate != 'val':
            text, unit = self.tokens['train'], self.tokenizer.length + 1 if self.whole else 1
            at = len(text) // unit * 8 // 9 * unit
            rest, self.tokens['val'] = text.split(at) if isinstance(text, Shards) else (text[:at], text[at:])
            if validate == 'tune':
                self.tokens['train'] = rest
                self.meta['fingerprint'] = self.fingerprint = f'{self.fingerprint}-tune'

    def _open(self, split):
        if split not in self.meta.get('shards', ()):
            return self._map(self.folder / f'{split}.bin', self.meta['tokens'][split], SCAN)
        counts = self.meta['shards'][split]
        if not counts or sum(counts) != self.meta['tokens'][split]:
            raise ValueError(f'the shards of {split} do not add up to its tokens')
        return Shards([self._map(self.folder / f'{split}_{i:04d}.bin', count, SCAN // len(counts))
                       for i, count in enumerate(counts)])

    def _map(self, path, count, scan):
        dtype = np.dtype(self.meta['dtype'])
        size = path.stat().st_size if path.exists() else 0
        if size != count * dtype.itemsize:
            raise UserError(f'{path} is truncated or of another dtype: it has {size:,} bytes, but {count:,} tokens of {dtype} '
                            f'have {count * dtype.itemsize:,}: run python prepare/{self.meta["script"]} again with --overwrite')
        tokens = np.memmap(path, dtype=dtype, mode='r') if count else np.zeros(0, dtype)    # an empty file has no memory map
        # The start is checked here, so most corrupt files are found early; windows() checks every token that is used
        self._check(tokens[:scan], path)
        return tokens

    def _check(self, tokens, path):
        if tokens.size and (worst := int(tokens.max())) >= self.vocab_size:
            raise UserError(f'{path} contains the token {worst}, but the vocabulary has {self.vocab_size}: the file is corrupt '
                            f'or of another dtype than {self.meta["dtype"]}; prepare the data again')

    def _name(self, split):
        return self.folder / f'{split}{"_*" if split in self.meta.get("shards", ()) else ""}.bin'

    def windows(self, split, starts, block_size, before=0):
        """Windows at the given starts: x (B, before + block_size) and y (B, block_size), int64; y is the token after each of x.

        before: x also has this many tokens in front of each window; -1 before the beginning of the text."""
        tokens = self.tokens[split]
        windows = np.stack([tokens[s:s + block_size + 1] for s in starts])
        self._check(windows, self._name(split))
        windows = torch.from_numpy(windows.astype(np.int64))
        x, y = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        if not before:
            return x, y
        earlier = np.full((len(starts), before), -1)
        for row, s in zip(earlier, starts, strict=True):
            row[max(0, before - s):] = tokens[max(0, s - before):s]
        return torch.cat([torch.from_numpy(earlier), x], dim=1), y

    def batch(self, split, starts, model):
        """x and y for model(x, y): windows, with the tokens of the model's memory in front."""
        return self.windows(split, starts, model.config.block_size, model.memory)

    def train_batch(self, starts, model, cfg, step):
        """batch() of the training text; in a share memory_dropout of the steps, the same on all ranks, without the memory."""
        x, y = self.batch('train', starts, model)
        if model.memory and np.random.default_rng((cfg.seed, step, 1)).random() < cfg.memory_dropout:
            x[:, :model.memory] = -1
        if cfg.last_only:
            y[:, :-1] = -1
        return x, y

    def test_indices(self):
        return None

    def train_indices(self, count, block_size, seed, step):
        """The starts of the windows of one step, over all ranks and micro-steps: (count,)."""
        self.require(block_size)
        return np.random.default_rng((seed, step)).integers(len(self.tokens['train']) - block_size, size=count)

    def val_indices(self, count, block_size):
        """The starts of evenly spaced windows of the validation text; count=0: all that fit without overlap."""
        self.require(block_size)
        require_memory(32 * count, f'eval_windows={count}')
        n = len(self.tokens['val'])
        return np.linspace(0, n - block_size - 1, count or max(1, (n - 1) // block_size)).astype(np.int64)

    def model_settings(self):
        """The fields of a model's Config that the data decides."""
        return {'vocab_size': self.vocab_size}

    def score(self, logits, _, y):
        """(6,) sums over a batch: loss in nats and correct predictions at all positions that the model predicts; the same at
        the last position of each window, which every architecture predicts; and the two numbers of positions."""
        y = y[:, -logits.shape[1]:]
        losses = F.cross_entropy(logits.float().transpose(1, 2), y, reduction='none')                   # (B, T or 1)
        scores = torch.stack([losses, (logits.argmax(-1) == y).float()]).cpu().double()                 # (2, B, T or 1)
        counts = torch.tensor([losses.numel(), len(losses)], dtype=torch.float64)
        return torch.cat([scores.sum((1, 2)), scores[:, :, -1].sum(1), counts])

    def total(self, parts):
        loss, correct, loss_full, correct_full, n, n_full = torch.stack(parts).sum(0).tolist()
        return {'val_loss': loss / n, 'val_loss_full': loss_full / n_full, 'accuracy': correct / n,
                'accuracy_full': correct_full / n_full}

    def format_metrics(self, metrics, split='val'):
        return f'{split} {metrics["val_loss"]:.4f} (full window {metrics["val_loss_full"]:.4f})'

    def show(self, model, cfg, folder):
        """Print a sample of cfg.sample_tokens tokens."""
        if not cfg.sample_tokens or model.bidirectional:
            return
        model.eval()
        ids = generate(model, torch.tensor([self.tokenizer.begin()]), self.tokenizer.length or cfg.sample_tokens,
                       temperature=0.8, top_k=50, n_vocab=self.tokenizer.n_vocab,
                       generator=torch.Generator().manual_seed(cfg.seed))
        print('-' * 80)
        for piece in self.tokenizer.stream(int(i[0]) for i in ids):
            print(piece, end='', flush=True)
        print()
        model.train()

    def require(self, block_size):
        for split, tokens in self.tokens.items():
            if len(tokens) <= block_size:
                raise UserError(f'{self._name(split)} has {len(tokens):,} tokens, but a window of block_size={block_size} and '
                                f'its target need {block_size + 1:,}: choose a smaller block_size or more text')


class MaskedText(TextData):
    """A text for models that fill in masked tokens: in each window a share of the tokens is to be predicted; of these 80 % are
    replaced by the model's [MASK], which is no token of the text, 10 % by a random token, and 10 % are kept.

    Which ones is a function of the window and, in training, of (seed, step).  Source: Devlin et al. 2018, section 3.1."""
    modality = noun = 'masked text'
    share = 0.15

    def model_settings(self):
        return super().model_settings() | {'vocab_size': self.vocab_size + 1}      # [MASK] is the last

    def batch(self, split, starts, model, key=()):
        """x (B, T), masked; y (B, T), the tokens to predict, -1 elsewhere."""
        mask = model.config.mask_token
        x, _ = self.windows(split, starts, model.config.block_size)
        y = torch.full_like(x, -1)
        for i, start in enumerate(starts):
            rng = np.random.default_rng((*key, start))
            chosen = rng.permutation(x.shape[1])[:max(1, round(self.share * x.shape[1]))]
            y[i, chosen] = x[i, chosen]
            new, kind = rng.integers(self.tokenizer.n_vocab, size=len(chosen)), rng.random(len(chosen))
            new = np.where(kind < 0.8, mask, np.where(kind < 0.9, new, x[i, chosen]))
            x[i, chosen] = torch.from_numpy(new)
        return x, y

    def train_batch(self, starts, model, cfg, step):
        return self.batch('train', starts, model, (cfg.seed, step))

    def score(self, logits, _, y):
        """(3,) sums over the masked tokens of a batch: loss in nats, correct predictions, and their number."""
        logits, y = logits[y >= 0].float(), y[y >= 0]
        loss, correct = F.cross_entropy(logits, y, reduction='sum'), (logits.argmax(-1) == y).sum()
        return torch.stack([loss, correct, torch.tensor(len(y), device=y.device)]).cpu().double()

    def total(self, parts):
        loss, correct, n = torch.stack(parts).sum(0).tolist()
        return {'val_loss': loss / n, 'accuracy': correct / n}

    def format_metrics(self, metrics, split='val'):
        return f'{split} {metrics["val_loss"]:.4f} on masked tokens (accuracy {metrics["accuracy"]:.1%})'


class LeakingText(TextData):
    """The split of the original PACING code (https://github.com/aveygo/WordsAreWorth16x16Pixels): a random tenth of all windows
    is for validation.  Windows overlap, so every validation token is also trained on.  Kept to measure this leak."""

    def __init__(self, folder):
        super().__init__(folder)
        whole = Shards([self.tokens['train'], self.tokens['val']])
        self.tokens = {'train': whole, 'val': whole}
        self.meta['fingerprint'] = self.fingerprint = f'{self.fingerprint}-leaking'
        self.starts = {}

    def _starts(self, block_size):
        if block_size not in self.starts:
            self.require(block_size)
            order = np.random.default_rng(0).permutation(len(self.tokens['train']) - block_size)
            if len(order) < 10:
                raise UserError(f'{self.folder} has {len(order)} windows of block_size={block_size}, but leaking_split needs '
                                f'10: choose a smaller block_size or more text')
            self.starts[block_size] = np.split(order, [len(order) // 10])
        return self.starts[block_size]

    def train_indices(self, count, block_size, seed, step):
        _, starts = self._starts(block_size)
        return np.random.default_rng((seed, step)).choice(starts, size=count)

    def val_indices(self, count, block_size):
        starts, _ = self._starts(block_size)
        return starts[:count or max(1, len(starts) // block_size)]


# {modality of a model: the class that reads images for it}
MODALITIES = {'images': ImageData, 'task': ImageData, 'pairs': CaptionData, 'captions': ContrastiveData, 'patches': PatchData,
              'drawings': DrawingData}
META = {'kind': ('text', *KINDS, PairData.kind, 'images'), 'vocab_size': 'count', 'source.name': 'text',
        'script': 'text', 'fingerprint': 'text'}
TEXT_META = {'dtype': ('uint16', 'uint32'), 'tokens.train': 'count', 'tokens.val': 'count', 'tokens.test?': 'count',
             'tokenizer': 'dict', 'shards?': 'dict', 'shards.train?': 'counts', 'shards.val?': 'counts', 'labels?': 'texts',
             'answers?': 'dict'}
TASK_META = {'outputs': 'count', 'standard': 'numbers', 'labels?': 'list', 'numbers?': 'bool', 'draw?': 'dict',
             'guess?': 'dict of numbers', 'examples.train': 'count', 'examples.val': 'count', 'examples.test': 'count'}
PAIRS_META = {'examples.train': 'count', 'examples.val': 'count', 'examples.test': 'count', 'tokenizer': 'dict'}
IMAGES_META = {'outputs': 'count', 'standard': 'list', 'labels?': 'texts', 'parts?': 'dict', 'tokenizer?': 'dict',
               'examples.train': 'count', 'examples.val': 'count', 'examples.test': 'count'}


def read_meta(folder):
    """meta.json of a data set.  Raises UserError if it is missing, damaged or incomplete."""
    path = Path(folder) / 'meta.json'
    if not path.exists():
        raise UserError(f'there is no data set in {folder} (no meta.json)')
    meta = schema.read(path, {}, 'prepare the data again')
    of_kind = dict.fromkeys(KINDS, TASK_META) | {PairData.kind: PAIRS_META, 'images': IMAGES_META}
    schema.check(meta, META | of_kind.get(str(meta.get('kind')), TEXT_META), path, 'prepare the data again')
    return meta


def open_data(name, leaking_split=False, modality='text', patch=4, validate='val'):
    """The TextData, TaskData, PairData or ImageData of data/<name>, which prepare/<name>.py makes if it is missing.  modality:
    of the model, which decides how a text or images are read.  patch: see ImageData.  validate: see TextData."""
    folder = ensure(name)
    meta = read_meta(folder)
    is_text = meta['kind'] == 'text'
    if validate != 'val' and (leaking_split or not is_text or modality == 'task' or 'answers' in meta):
        raise UserError(f'validate={validate}: ' + ('leaking_split trains on the validation text: leave one of the two out' if
                        leaking_split else f'data/{name} has a validation and a test split: leave it out'))
    if is_text and meta['tokenizer'].get('kind') == 'palette':
        from harness.pixels import READERS, PixelTask  # it imports this file
        if leaking_split:
            raise UserError(f'leaking_split: the windows of data/{name} are pictures, which do not overlap: leave it out')
        return PixelTask(folder, meta) if modality == 'task' else READERS.get(modality, READERS['text'])(folder, validate)
    if is_text and 'answers' in meta:
        from harness.examples import AnswerText
        if leaking_split or modality != 'text':
            raise UserError(f'data/{name} holds examples with answers, for models that predict the next token: '
                            f'{"leave leaking_split out" if leaking_split else "choose another arch or dataset"}')
        return AnswerText(folder)
    if is_text and modality == MaskedText.modality:
        if leaking_split:
            raise UserError(f'leaking_split: only language models have it, and this one is trained on a {modality}: leave '
                            f'it out')
        return MaskedText(folder, validate)
    if is_text:
        return LeakingText(folder) if leaking_split else TextData(folder, validate)
    if leaking_split:
        raise UserError(f'leaking_split: data/{name} is no text (its kind is {meta["kind"]}), and only windows of a text '
                        f'overlap')
    if meta['kind'] == 'images':
        return MODALITIES.get(modality, ImageData)(folder, meta, modality if modality in MODALITIES else 'images', patch)
    return (PairData if meta['kind'] == PairData.kind else TaskData)(folder, meta)


def data_of(content):
    """The data set that a checkpoint was trained on; None if it is missing or data/<name> is another.  It is never made: a
    checkpoint may come from a stranger and must not run anything."""
    name, fingerprint = content['loop']['dataset'], content['data']['fingerprint']
    if (local(name) / 'meta.json').exists():
        found = open_data(name, fingerprint.endswith('-leaking'), load_arch(content['arch']).Model.modality,
                          content['loop'].get('patch', 4), 'tune' if fingerprint.endswith('-tune') else 'val')
        return found if found.fingerprint == fingerprint else None


# files of prepare/ that do not make the data set of their name
GENERAL = {'common', 'text', 'bpe', 'gutenberg', 'pairs', 'pictures', 'pixels', 'examples'}


def local(name):
    """The path data/<name>, which need not exist.  Raises UserError for a name that leads anywhere else: it may come from a
    stranger's checkpoint."""
    check_name(name)
    return ROOT / 'data' / name


def ensure(name):
    """The path data/<name>; prepare/<name>.py makes it if it is missing.  Raises UserError or SystemExit if that fails."""
    folder, script = local(name), ROOT / 'prepare' / f'{name}.py'
    if (folder / 'meta.json').exists():
        return folder
    if name in GENERAL or not script.is_file():
        known = {p.stem for p in (ROOT / 'prepare').glob('*.py')} - GENERAL | \
            {p.parent.name for p in (ROOT / 'data').glob('*/meta.json')}
        raise UserError(f"there is no data set '{name}': choose {', '.join(sorted(known))}, or make one of any text with "
                        f"python prepare/text.py NAME FILE")
    with exclusive(folder.with_name(f'.{name}.lock')):
        if (folder / 'meta.json').exists():         # another process has made it since
            return folder
        print(f'data/{name} is missing: running python prepare/{name}.py', flush=True)
        code = subprocess.run([sys.executable, str(script)]).returncode
    if code > 0:
        raise SystemExit(code)      # the script has printed the reason
    if code:
        raise UserError(f'prepare/{name}.py was killed by signal {-code}: data/{name} was not made')
    return folder
