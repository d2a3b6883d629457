"""prepare/bpe.py against a trainer that recounts all pairs, and against the tokenizers library."""

import random
from collections import Counter
from itertools import pairwise

import pytest
import regex
from conftest import byte_letters, text_of
from tiktoken_ext.openai_public import r50k_pat_str
from tokenizers import Tokenizer as Reference
from tokenizers import decoders, models, pre_tokenizers

from harness.tokenizer import Tokenizer
from prepare import bpe
from prepare.common import split_text

VERSES = '''\
ROMEO:
But, soft! what light through yonder window breaks?  It is the east, and Juliet is the sun.

JULIET:
Thou art thyself, though not a Montague. What's Montague? it is nor hand, nor foot,
Nor arm, nor face, nor any other part belonging to a man. O, be some other name!
'''
# Characters of old Unicode versions, on which the tables of all libraries agree
STRANGE = [chr(c) for c in (*range(0x180), *range(0x391, 0x3a2), *range(0x5d0, 0x5eb), *range(0x4e00, 0x4e80),
                            *range(0x2000, 0x2030), 0x301, 0x3000, 0xfeff, 0xfffd, *range(0x1f600, 0x1f640), 0x1f3fd)]


def verses(rng, words=600):
    return ' '.join(rng.choices(VERSES.split(' '), k=words))


def few(letters, rng, length=400):
    """Repetitions, where merges overlap."""
    return ''.join(rng.choice(letters) * rng.choice([1, 1, 1, 2, 3, 4, 7]) for _ in range(length))


TEXTS = {'verses': verses, 'strange': lambda rng: ''.join(rng.choices(STRANGE, k=400)) * 2, 'a': lambda rng: few('a ', rng),
         'ab': lambda rng: few('abab ', rng), 'abc': lambda rng: few('abc ', rng, 800), 'blanks': lambda rng: few(' \na', rng)}


def recounted(text, count):
    """The merges by the definition: all pairs are counted before each, which is made in a string."""
    words, merges = [word.encode().decode('latin-1') for word in regex.findall(r50k_pat_str, text)], []
    while len(merges) < count and (counts := Counter(pair for word in words for pair in pairwise(word))):
        a, b = min(counts, key=lambda pair: (-counts[pair], pair))
        words = [word.replace(a + b, chr(256 + len(merges))) for word in words]
        merges.append((ord(a), ord(b)))
    return merges


def reference(merges):
    """The tokenizers library with these merges, which it looks up as pairs."""
    pieces = [byte_letters()[b] for b in range(256)]
    pairs = []
    for a, b in merges:
        pairs.append((pieces[a], pieces[b]))
        pieces.append(pieces[a] + pieces[b])
    assert len(set(pieces)) == len(pieces)          # no two merges make the same bytes
    model = Reference(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=pairs))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)      # GPT-2's pattern
    model.decoder = decoders.ByteLevel()
    return model


@pytest.mark.parametrize('make', TEXTS.values(), ids=TEXTS)
def test_merges_and_tokens(make):
    """tiktoken looks up the bytes of a token and encodes as if it looked up the pairs."""
    for seed in range(2):
        rng = random.Random(seed)
        text = make(rng)
        train, val = split_text(text)
        merges = bpe.train(train, 150)
        assert merges == recounted(train, 150) and len(merges) > 20
        spec = bpe.train_tokenizer('made', text, 150)
        assert bpe.train_tokenizer('made', train + 'z' * len(val), 150) == spec         # the validation text does not matter
        ours, other = Tokenizer(spec), reference(merges)
        every = ''.join(rng.choices([chr(c) for c in range(0x110000) if not 0xd800 <= c < 0xe000], k=200))
        assert ours.decode(ours.encode(every)) == every and ours.encode('a<|endoftext|>')[-1] == 256 + len(merges)
        for part in (text, '', ' ', 'a', '\n\n ', *(kind(rng) for kind in TEXTS.values())):
            ids = ours.encode(part)
            assert ids == other.encode(part).ids and ours.decode(ids) == part
        assert len(ours.encode(text)) < 0.8 * len(text.encode())


def test_merges_by_hand():
    """aaab: (a, a) occurs twice in aaa but is merged once, from the left; ties go to the lowest ids."""
    a, b, space = b'ab '
    assert bpe.train('aaab', 9) == [(a, a), (a, b), (256, 257)]
    assert bpe.train('ab ba ab', 9) == [(a, b), (space, b), (space, 256), (257, a)]
    assert bpe.train('', 9) == bpe.train('a a', 0) == []
    assert bpe.train('<|endoftext|>'.join(['ab', 'c', 'de'] * 20), 9) == [(a, b), (ord('d'), ord('e'))]


def test_a_data_set_of_a_text(prepare, tmp_path, capsys):
    text = verses(random.Random(6))
    (tmp_path / 'mine.txt').write_text(text, encoding='utf-8')
    (tmp_path / 'short.md').write_text('ab abc ' * 20)
    prepare('bpe.py', 'mine', tmp_path / 'mine.txt', '--merges=120')
    texts, meta = text_of('mine')
    assert texts == split_text(text) and meta['vocab_size'] == 256 + 120 + 1
    assert meta['script'] == 'bpe.py' and meta['dtype'] == 'uint16'
    assert meta['tokenizer'] == bpe.train_tokenizer('mine', text, 120) and 'merges' not in capsys.readouterr().out
    prepare('bpe.py', 'few', tmp_path / 'short.md')
    assert text_of('few')[1]['vocab_size'] == 256 + 3 + 1 and '3 merges' in capsys.readouterr().out
    meta = text_of(prepare('shakespeare_bpe.py', f'--input={tmp_path / "mine.txt"}'))[1]
    assert meta['script'] == 'shakespeare_bpe.py' and meta['source']['name'] == 'mine.txt'
    assert meta['tokenizer'] == bpe.train_tokenizer('shakespeare_bpe', text, 1024)
