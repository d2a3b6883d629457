"""The byte pair encoding that prepare/bpe.py trains: against a trainer that recounts everything, and the tokenizers library."""

import hashlib
import json
import random
import runpy
import sys
from collections import Counter
from itertools import pairwise

import pytest
import regex
from conftest import tiny_train
from tiktoken_ext.openai_public import r50k_pat_str
from tokenizers import Tokenizer as Theirs
from tokenizers import decoders, models, pre_tokenizers

from harness import ROOT, UserError, data
from harness.tokenizer import Tokenizer
from prepare import bpe

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
# Characters that have been letters, digits or blanks for so long that every library's tables agree on them
STRANGE = [chr(c) for c in (*range(0x180), *range(0x391, 0x3a2), *range(0x430, 0x450), *range(0x5d0, 0x5eb),
                            *range(0x4e00, 0x4e80), *range(0x2000, 0x2030), 0x301, 0x3000, 0xfeff, 0xfffd,
                            *range(0x1f600, 0x1f640), 0x1f3fd)]


def shakespeare(rng, length):
    """Lines of words in another order, as a play has them."""
    lines, text = VERSES.splitlines(), ''
    while len(text) < length:
        words = rng.choice(lines).split(' ') + rng.choice(lines).split(' ')
        rng.shuffle(words)
        text += ' '.join(words) + rng.choice(['\n', '\n', '\n\n', '  '])
    return text


def strange(rng, length):
    return ''.join(rng.choices(STRANGE, k=length))


def few(letters, rng, length):
    """Runs, and runs within runs: where merges come close to one another."""
    return ''.join(rng.choice(letters) * rng.choice([1, 1, 1, 2, 3, 4, 7]) for _ in range(length))


def sentence(call, *args):
    with pytest.raises(UserError) as e:
        call(*args)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) > 20
    return str(e.value)


def replaced(ids, pair, new):
    """By way of text, so that nothing of bpe.py is used."""
    text = ''.join(map(chr, ids)).replace(chr(pair[0]) + chr(pair[1]), chr(new))
    return list(map(ord, text))


def recounted(text, count):
    """The merges, by counting all pairs of the whole text before each."""
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


# ---------------------------------------------------------------------------------------------------- the merges


@each_text
def test_the_merges_are_those_of_recounting_everything(make):
    for seed in range(3):
        text = make(random.Random(seed))
        merges = bpe.train(text, 150)
        assert merges == recounted(text, 150) and len(merges) > 20


def test_merges_by_hand():
    """aaab: (a, a) is found twice in aaa, but merged once, from the left; equals are taken by their ids."""
    a, b, space = b'ab '
    assert bpe.train('aaab', 9) == [(a, a), (a, b), (256, 257)]
    assert bpe.train('ab ba ab', 9) == [(a, b), (space, b), (space, 256), (257, a)]
    assert bpe.train('', 9) == bpe.train('a a', 0) == []


def test_more_is_asked_for_with_the_same_beginning():
    text = shakespeare(random.Random(1), 5000)
    assert bpe.train(text, 50) == bpe.train(text, 200)[:50]


def test_an_end_of_text_is_no_text_to_learn_from():
    assert bpe.train('<|endoftext|>'.join(['ab', 'c', 'de'] * 20), 9) == [(ord('a'), ord('b')), (ord('d'), ord('e'))]


def test_the_validation_text_is_not_learned_from():
    text = shakespeare(random.Random(2), 5000)
    train, _ = data.halves(text)
    other = train + 'zqzqzq ' * ((len(text) - len(train)) // 7) + 'z' * ((len(text) - len(train)) % 7)
    assert len(other) == len(text) and bpe.spec('x', other, 300) == bpe.spec('x', text, 300)


# ---------------------------------------------------------------------------------------------------- the tokenizer


def theirs(text, count):
    """The tokenizers library with the same merges, as a list of pairs."""
    letters = byte_letters()
    pieces, merges = [letters[b] for b in range(256)], []
    for a, b in bpe.train(data.halves(text)[0], count):
        merges.append((pieces[a], pieces[b]))
        pieces.append(pieces[a] + pieces[b])
    assert len(set(pieces)) == len(pieces)          # no two merges make the same bytes
    model = Theirs(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)      # GPT-2's pattern
    model.decoder = decoders.ByteLevel()
    return model


def byte_letters():
    """GPT-2's letter for each byte: the printable ones stand for themselves, the others are letters from 256 on."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != ' ']
    letters = {b: chr(b) for b in plain}
    return letters | {b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(plain)))}


@each_text
def test_it_encodes_as_the_list_of_merges_does(make):
    """tiktoken looks for the bytes of a token, the other library for the pairs: texts of every kind, learned from or not."""
    rng = random.Random(5)
    text = make(rng)
    ours, other = Tokenizer(bpe.spec('made', text, 200)), theirs(text, 200)
    read = [text, *(make(rng) for _ in range(3)), *(shakespeare(rng, 500) for _ in range(3)),
            *(strange(rng, 300) for _ in range(10)), *(few('abc ', rng, 200) for _ in range(5)), '', ' ', 'a', '\n\n ']
    for part in read:
        ids = ours.encode(part)
        assert ids == other.encode(part).ids
        assert ours.decode(ids) == part
    assert len(ours.encode(text)) < 0.8 * len(text.encode())


def test_every_byte_is_a_token():
    tokenizer = Tokenizer(bpe.spec('made', shakespeare(random.Random(3), 3000), 100))
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


def test_no_merges_are_bytes():
    tokenizer = Tokenizer(bpe.spec('made', VERSES, 0))
    assert tokenizer.n_vocab == 257 and tokenizer.encode('caf\u00e9') == list('caf\u00e9'.encode())


# ---------------------------------------------------------------------------------------------------- the scripts


@pytest.fixture
def prepare(root, monkeypatch):
    """Run prepare/<script> in this process, as the command line does; data/ is in an empty folder."""
    def run(script, *words):
        monkeypatch.setattr('sys.argv', [script, *map(str, words)])
        monkeypatch.setattr('sys.path', [*sys.path])
        runpy.run_path(str(ROOT / 'prepare' / script), run_name='__main__')
    return run


def test_a_text_of_your_own(prepare, root, tmp_path, capsys):
    text = shakespeare(random.Random(6), 6000)
    (tmp_path / 'mine.txt').write_text(text, encoding='utf-8')
    prepare('bpe.py', 'mine', tmp_path / 'mine.txt', '--merges=120')
    made = data.TextData(root / 'data' / 'mine')
    assert sorted(p.name for p in made.folder.iterdir()) == ['meta.json', 'train.bin', 'val.bin']
    parts = [made.tokenizer.decode(made.tokens[split].tolist()) for split in ('train', 'val')]
    assert tuple(parts) == data.halves(text) and ''.join(parts) == text
    assert made.vocab_size == 256 + 120 + 1 and made.meta['script'] == 'bpe.py' and made.meta['dtype'] == 'uint16'
    assert made.meta['source'] == {'name': 'mine.txt', 'sha256': hashlib.sha256(text.encode()).hexdigest()}
    assert made.meta['tokenizer'] == bpe.spec('mine', text, 120)
    assert 'merges only' not in capsys.readouterr().out


def test_fewer_merges_than_asked_for(prepare, root, tmp_path, capsys):
    (tmp_path / 'a.txt').write_text('ab abc ' * 20)
    prepare('bpe.py', 'mine', tmp_path)             # a folder, and 1024 merges
    lines = [line for line in capsys.readouterr().out.splitlines() if 'merges' in line]
    assert lines == ['the text has 3 merges only, not 1,024: each of its words is one token then']
    assert data.TextData(root / 'data' / 'mine').vocab_size == 256 + 3 + 1


@pytest.mark.parametrize('words, said', [
    (('mine', '{}/absent'), 'there is no file or folder'), (('a b', '{}/a.txt'), "'a b' cannot name a data set"),
    (('mine', '{}/a.txt', '--merges=-1'), '--merges=-1 is less than none'), (('mine', '{}/b.txt'), '2 characters are too few'),
    (('mine', '{}/c.txt'), 'c.txt is not UTF-8 text')], ids=['absent', 'name', 'merges', 'short', 'latin-1'])
def test_what_will_not_do(prepare, root, tmp_path, words, said):
    for name, content in {'a.txt': b'ab' * 50, 'b.txt': b'ab', 'c.txt': b'latin \xe9' * 9}.items():
        (tmp_path / name).write_bytes(content)
    assert said in sentence(prepare, 'bpe.py', *(w.format(tmp_path) for w in words))
    assert not (root / 'data').exists()


def test_shakespeare(tree, cli, tmp_path):
    """1024 merges, or all that there are, of the text that shakespeare_char.py has; train.py takes what was made."""
    text = shakespeare(random.Random(7), 20_000)
    (tmp_path / 'input.txt').write_text(text, encoding='utf-8')
    done = cli(tree / 'prepare' / 'shakespeare_bpe.py', '--input=input.txt', cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    meta = json.loads((tree / 'data' / 'shakespeare_bpe' / 'meta.json').read_text())
    assert meta['source']['name'] == 'input.txt' and meta['script'] == 'shakespeare_bpe.py' and meta['vocab_size'] <= 1281
    assert meta['tokenizer'] == bpe.spec('shakespeare_bpe', text, 1024) and meta['tokenizer']['special'] \
        == {'<|endoftext|>': meta['vocab_size'] - 1}
    done = cli(*tiny_train('shakespeare_bpe', tree / 'run', '--max_iters=1'), cwd=tree)
    assert done.returncode == 0 and 'text: input.txt' in done.stdout, done.stderr
