"""prepare/bpe.py against a trainer that recounts all pairs, and against the tokenizers library."""

import random
from collections import Counter
from itertools import pairwise

import pytest
import regex
from conftest import byte_letters, sentence
from tiktoken_ext.openai_public import r50k_pat_str
from tokenizers import Tokenizer as Reference
from tokenizers import decoders, models, pre_tokenizers

from harness import data
from harness.tokenizer import Tokenizer
from prepare import bpe
from prepare.common import split_text

VERSES = '''\
ROMEO:
But, soft! what light through yonder window breaks?
It is the east, and Juliet is the sun.
Arise, fair sun, and kill the envious moon,
Who is already sick and pale with grief,
That thou her maid art far more fair than she.

JULIET:
'Tis but thy name that is my enemy;
Thou art thyself, though not a Montague. What's Montague? it is nor hand, nor foot,
Nor arm, nor face, nor any other part belonging to a man. O, be some other name!
'''
# Characters of old Unicode versions, on which the tables of all libraries agree
STRANGE = [chr(c) for c in (*range(0x180), *range(0x391, 0x3a2), *range(0x430, 0x450), *range(0x5d0, 0x5eb),
                            *range(0x4e00, 0x4e80), *range(0x2000, 0x2030), 0x301, 0x3000, 0xfeff, 0xfffd,
                            *range(0x1f600, 0x1f640), 0x1f3fd)]


def shakespeare(rng, length):
    lines, text = VERSES.splitlines(), ''
    while len(text) < length:
        words = rng.choice(lines).split(' ') + rng.choice(lines).split(' ')
        rng.shuffle(words)
        text += ' '.join(words) + rng.choice(['\n', '\n', '\n\n', '  '])
    return text


def strange(rng, length):
    return ''.join(rng.choices(STRANGE, k=length))


def few(letters, rng, length):
    """Repetitions, where merges overlap."""
    return ''.join(rng.choice(letters) * rng.choice([1, 1, 1, 2, 3, 4, 7]) for _ in range(length))


def replaced(ids, pair, new):
    """Replaces a pair by converting to a string, independently of bpe.py."""
    text = ''.join(map(chr, ids)).replace(chr(pair[0]) + chr(pair[1]), chr(new))
    return list(map(ord, text))


def recounted(text, count):
    """The merges by the definition: all pairs are counted before each."""
    words = [list(w.encode()) for w in regex.findall(r50k_pat_str, text)]
    merges = []
    while len(merges) < count:
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            break
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        words = [replaced(word, merges[-1], 255 + len(merges)) for word in words]
    return merges


TEXTS = {'verses': lambda rng: shakespeare(rng, 3000), 'strange': lambda rng: strange(rng, 400) * 2,
         'a': lambda rng: few(['a', ' '], rng, 300), 'ab': lambda rng: few(['a', 'b', 'a', 'b', ' '], rng, 400),
         'abc': lambda rng: few(['a', 'b', 'c', ' '], rng, 800), 'blanks': lambda rng: few([' ', '\n', 'a'], rng, 300)}
each_text = pytest.mark.parametrize('make', TEXTS.values(), ids=TEXTS)


# the merges


@each_text
def test_merges_agree_with_recounting_all_pairs(make):
    for seed in range(3):
        text = make(random.Random(seed))
        merges = bpe.train(text, 150)
        assert merges == recounted(text, 150) and len(merges) > 20


def test_merges_by_hand():
    """aaab: (a, a) occurs twice in aaa but is merged once, from the left; ties go to the lowest ids."""
    a, b, space = b'ab '
    assert bpe.train('aaab', 9) == [(a, a), (a, b), (256, 257)]
    assert bpe.train('ab ba ab', 9) == [(a, b), (space, b), (space, 256), (257, a)]
    assert bpe.train('', 9) == bpe.train('a a', 0) == []
    assert bpe.train('<|endoftext|>'.join(['ab', 'c', 'de'] * 20), 9) == [(a, b), (ord('d'), ord('e'))]


def test_merges_do_not_depend_on_the_validation_text():
    text = shakespeare(random.Random(2), 5000)
    train, _ = split_text(text)
    other = train + 'zqzqzq ' * ((len(text) - len(train)) // 7) + 'z' * ((len(text) - len(train)) % 7)
    assert len(other) == len(text) and bpe.train_tokenizer('x', other, 300) == bpe.train_tokenizer('x', text, 300)


# the tokenizer


def reference(text, count):
    """The tokenizers library with the same merges, as a list of pairs."""
    letters = byte_letters()
    pieces, merges = [letters[b] for b in range(256)], []
    for a, b in bpe.train(split_text(text)[0], count):
        merges.append((pieces[a], pieces[b]))
        pieces.append(pieces[a] + pieces[b])
    assert len(set(pieces)) == len(pieces)          # no two merges make the same bytes
    model = Reference(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)      # GPT-2's pattern
    model.decoder = decoders.ByteLevel()
    return model


@each_text
def test_encoding_agrees_with_the_list_of_merges(make):
    """tiktoken looks up the bytes of a token, the tokenizers library the pairs."""
    rng = random.Random(5)
    text = make(rng)
    ours, other = Tokenizer(bpe.train_tokenizer('made', text, 200)), reference(text, 200)
    read = [text, *(make(rng) for _ in range(3)), *(shakespeare(rng, 500) for _ in range(3)),
            *(strange(rng, 300) for _ in range(10)), *(few('abc ', rng, 200) for _ in range(5)), '', ' ', 'a', '\n\n ']
    for part in read:
        ids = ours.encode(part)
        assert ids == other.encode(part).ids
        assert ours.decode(ids) == part
    assert len(ours.encode(text)) < 0.8 * len(text.encode())


def test_every_byte_is_a_token():
    tokenizer = Tokenizer(bpe.train_tokenizer('made', shakespeare(random.Random(3), 3000), 100))
    assert tokenizer.n_vocab == 357
    assert [tokenizer.token_bytes(i) for i in range(256)] == [bytes([b]) for b in range(256)]
    assert all(len(tokenizer.token_bytes(i)) > 1 for i in range(256, 356))
    assert tokenizer.token_bytes(356) == b'<|endoftext|>' and tokenizer.encode('a<|endoftext|>')[-1] == 356
    rng = random.Random(4)
    for _ in range(20):
        text = ''.join(chr(c) for c in rng.choices([c for c in range(0x110000) if not 0xd800 <= c < 0xe000], k=50))
        assert tokenizer.decode(tokenizer.encode(text)) == text
        raw = rng.randbytes(50)
        assert b''.join(tokenizer.token_bytes(i) for i in raw) == raw


# the scripts


def test_a_data_set_of_a_text(prepare, root, tmp_path, capsys):
    text = shakespeare(random.Random(6), 6000)
    (tmp_path / 'mine.txt').write_text(text, encoding='utf-8')
    (tmp_path / 'short.md').write_text('ab abc ' * 20)
    prepare('bpe.py', 'mine', tmp_path / 'mine.txt', '--merges=120')
    made = data.TextData(root / 'data' / 'mine')
    assert tuple(made.tokenizer.decode(made.tokens[split].tolist()) for split in ('train', 'val')) == split_text(text)
    assert made.vocab_size == 256 + 120 + 1 and made.meta['script'] == 'bpe.py' and made.meta['dtype'] == 'uint16'
    assert made.meta['tokenizer'] == bpe.train_tokenizer('mine', text, 120) and 'merges' not in capsys.readouterr().out
    prepare('bpe.py', 'few', tmp_path / 'short.md')
    assert data.TextData(root / 'data' / 'few').vocab_size == 256 + 3 + 1 and '3 merges' in capsys.readouterr().out
    prepare('shakespeare_bpe.py', f'--input={tmp_path / "mine.txt"}')
    meta = data.TextData(root / 'data' / 'shakespeare_bpe').meta
    assert meta['script'] == 'shakespeare_bpe.py' and meta['source']['name'] == 'mine.txt'
    assert meta['tokenizer'] == bpe.train_tokenizer('shakespeare_bpe', text, 1024)
    twice = f'{tmp_path / "mine.txt"} and {tmp_path / "mine.txt"} have the same text'
    for words, reason in ((('new', tmp_path / 'mine.txt', tmp_path), twice),
                          (('mine', tmp_path / 'short.md'), 'data/mine already exists'),
                          (('new', tmp_path / 'short.md', '--merges=-1'), "'-1' must be an integer of at least 0")):
        assert reason in sentence(prepare, 'bpe.py', *words)


