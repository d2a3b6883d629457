"""Tokenizers: text and tokens, GPT-2's against two libraries, and those of published models."""

import hashlib
import json
import re
import shutil
import sys

import pytest
import tiktoken
import tokenizers
import torch
import transformers
from conftest import ABOUT, printed, sentence, text_of

import mamba
import model as gpt
import sample
import train
from extras import export
from harness import UserError, checkpoint, files
from harness.arch import complete
from harness.generate import generate
from harness.tokenizer import GPT2_FILES, GPT2_URL, Tokenizer, bpe_spec, gpt2_spec, published_spec, same
from prepare.common import split_text, write_text

MERGES = [b'th', b'the', b' the', b'an', b'and', b' and', b'\xf0\x9f', b'\x91\xa9', b'\xe2\x80']
BPE = bpe_spec('small', r'\s+$|\s?[^\s]+|\s', {t: i for i, t in enumerate([*(bytes([b]) for b in range(256)), *MERGES])},
               {'<|endoftext|>': 256 + len(MERGES)})
TEXT = 'the cat and the dog \u2014 naïve\r\n\n\t漢字, e\u0301, \x00 \N{WOMAN}\u200d\N{WOMAN}\u200d\N{GIRL} \U0001f600!\n' * 7
SPECS = {'char': {'kind': 'char', 'chars': sorted(set(TEXT))}, 'bytes': {'kind': 'bytes'}, 'bpe': BPE}


@pytest.mark.parametrize('spec', SPECS.values(), ids=SPECS)
def test_decoding_inverts_encoding(root, spec):
    """Also in a stream, which yields complete characters; and on disk, where no token contains text of both splits."""
    tokenizer = Tokenizer(json.loads(json.dumps(spec)))
    for text in (TEXT, TEXT[3:40], '\U0001f600', 'e\u0301', '\n', ''):
        ids = tokenizer.encode(text)
        assert all(0 <= i < tokenizer.n_vocab for i in ids) and tokenizer.decode(ids) == text
        pieces, shown, raw = [*tokenizer.stream(ids)], '', b''
        for piece, i in zip(pieces, ids, strict=False):
            shown, raw = shown + piece, raw + tokenizer.token_bytes(i)
            assert shown == raw.decode(errors='ignore')             # without an incomplete character
        assert shown == text and raw == text.encode()
    write_text('mine', TEXT, spec, {'name': 'a test'}, 'text.py')
    assert text_of('mine')[0] == split_text(TEXT) == (TEXT[:int(0.9 * len(TEXT))], TEXT[int(0.9 * len(TEXT)):])


def test_bytes_and_tokens():
    """A character may be split over several tokens, a special token is one, and invalid UTF-8 is replaced."""
    bpe = Tokenizer(BPE)
    assert [bpe.token_bytes(i) for i in bpe.encode('\N{WOMAN} the')] == [b'\xf0\x9f', b'\x91\xa9', b' the']
    ids = bpe.encode('the<|endoftext|>')
    assert ids[1:] == [bpe.n_vocab - 1] and bpe.decode(ids) == 'the<|endoftext|>'
    for tokenizer in (bpe, Tokenizer(SPECS['bytes'])):
        for raw in (b'a\xffb', b'\x91\xa9x', b'\xf0\x9f', b'ok\xe2\x80', b'\xe6\xbcx'):
            assert tokenizer.decode(list(raw)) == raw.decode(errors='replace')
        assert 'the' in tokenizer.decode(tokenizer.encode('\udcff the'))      # an argument that is not UTF-8
    # unknown characters are named, the first five; a text begins with a line break or token 0
    tokenizer = Tokenizer({'kind': 'char', 'chars': ['a', 'b']})
    assert "no token for '\\n', '\U0001f600': " in sentence(tokenizer.encode, 'a\U0001f600\n') and tokenizer.begin() == [0]
    assert sentence(tokenizer.encode, 'abcdefghijk').count("'") == 10
    assert Tokenizer(SPECS['bytes']).begin() == [10] and Tokenizer({'kind': 'char', 'chars': ['a', '\n']}).begin() == [1]


def test_gpt2_agrees_with_tiktoken_and_transformers(tmp_path, monkeypatch):
    for name in GPT2_FILES:
        if (files.DOWNLOADS / name).exists():
            shutil.copy(files.DOWNLOADS / name, tmp_path)
    monkeypatch.setattr(files, 'DOWNLOADS', tmp_path)
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path))
    try:
        spec = gpt2_spec()
    except UserError as e:
        pytest.skip(str(e))
    for name, other in zip(GPT2_FILES, ('merges.txt', 'vocab.json'), strict=True):
        shutil.copy(tmp_path / name, tmp_path / other)
        shutil.copy(tmp_path / name, tmp_path / hashlib.sha1(f'{GPT2_URL}/{name}'.encode()).hexdigest())    # tiktoken's cache
    monkeypatch.setattr('tiktoken.load.read_file', lambda path: pytest.fail(f'tiktoken downloads {path}'))
    theirs, ours = tiktoken.get_encoding('gpt2'), Tokenizer(spec)
    assert ours.bpe._mergeable_ranks == theirs._mergeable_ranks and ours.n_vocab == theirs.n_vocab == 50257
    text = TEXT + "aaaaa It's 12345 o'clock,   isn't it?  \n\n  def f(x):\n\treturn x**2 # \u00a0\u3000 \U0001f468\U0001f3fd\n"
    ids = ours.encode(text)
    assert len(ids) > 100 and ours.decode(ids) == text
    assert ids == transformers.GPT2Tokenizer.from_pretrained(tmp_path).encode(text)
    assert [*ids, 50256] == theirs.encode(text + '<|endoftext|>', allowed_special='all') == ours.encode(text + '<|endoftext|>')


def train_bpe(*special):
    """A byte-level BPE of 275 tokens, of the library tokenizers."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bytewise = tokenizers.pre_tokenizers.ByteLevel
    bpe.pre_tokenizer, bpe.decoder = bytewise(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(['the cat and the dog and the hat in the café. ' * 9], tokenizers.trainers.BpeTrainer(
        vocab_size=275, special_tokens=[*special], initial_alphabet=bytewise.alphabet()))
    return bpe


@pytest.fixture
def published(tmp_path):
    """published(rows=280, pairs=False): a Mamba in the format of the hub, with its tokenizer.  Returns the folder."""
    def write(rows=280, pairs=False):
        bpe = train_bpe('<|endoftext|>')
        bpe.add_tokens(['   '])             # a run of blanks, as of GPT-NeoX
        bpe.enable_truncation(4)            # as of sentence encoders
        torch.manual_seed(0)
        config = transformers.MambaConfig(vocab_size=rows, hidden_size=16, state_size=4, num_hidden_layers=1)
        transformers.MambaForCausalLM(config).save_pretrained(tmp_path / 'hub')
        bpe.model.save(str(tmp_path / 'hub')) if pairs else bpe.save(str(tmp_path / 'hub' / 'tokenizer.json'))
        return tmp_path / 'hub'
    return write


@pytest.mark.parametrize('pairs', [False, True], ids=['tokenizer.json', 'vocab.json and merges.txt'])
def test_published_weights_with_their_own_tokenizer(published, pairs):
    """The rows of the embedding are padded; the text is what the library writes for the ids that the model continues with."""
    hub, bpe, start = published(pairs=pairs), train_bpe('<|endoftext|>'), 'the café  <|endoftext|>\n'
    out = printed(sample.main, ['--pretrained', hub, '--arch=mamba', '--start', start, '--temperature=2', '--top_k=0'])
    own = Tokenizer(published_spec(str(hub)))
    assert own.n_vocab == 276 - pairs and own.encode(start) == bpe.encode(start).ids
    model = complete(mamba.Model.from_pretrained(str(hub))).eval()
    more = [int(i) for i in generate(model, torch.tensor([own.encode(start)]), 300, 2.0, n_vocab=own.n_vocab,
                                     generator=[torch.Generator().manual_seed(1337)])]
    bpe.add_tokens(['   '])
    assert max(more) < own.n_vocab and out == start + bpe.decode(more, skip_special_tokens=False) + '\n'


@pytest.mark.parametrize('rows, damage, expected', [
    (280, lambda path, patch: path.unlink(), r'tokenizer\.json.*280'), (270, None, '276.*270'), (5000, None, '276.*5,000'),
    (280, lambda path, patch: path.write_text('{}'), r'tokenizer\.json'),
    (280, lambda path, patch: patch.setitem(sys.modules, 'tokenizers', None), 'pip install tokenizers')])
def test_a_tokenizer_that_is_not_that_of_the_weights_is_refused(published, monkeypatch, rows, damage, expected):
    hub = published(rows)
    if damage:
        damage(hub / 'tokenizer.json', monkeypatch)
    assert re.search(expected, sentence(sample.main, ['--pretrained', str(hub), '--arch=mamba']))


def test_a_run_from_published_weights_with_their_own_tokenizer(published, prepare, root, tmp_path, capsys):
    """Data is prepared with the model's tokenizer; the run continues texts, and other data needs --new_vocabulary."""
    hub, run = published(), tmp_path / 'run'
    (tmp_path / 'a.txt').write_text(TEXT.replace('\0', '') * 9, encoding='utf-8')
    prepare('text.py', 'mine', tmp_path / 'a.txt', f'--tokens={hub}')
    prepare('text.py', 'chars', tmp_path / 'a.txt')
    words = ['--arch=mamba', '--block_size=16', '--max_iters=1', '--eval_windows=8', '--device=cpu', '--sample_tokens=5']
    train.main(['--dataset=mine', *words, f'--init_from={hub}', f'--out_dir={run}'])
    assert checkpoint.load(run / 'best.pt')['config']['vocab_size'] == 280
    assert printed(sample.main, [run, '--start=the', '--max_new_tokens=3']).startswith('the')
    before = mamba.Model.from_pretrained(str(hub)).state_dict()
    for source in (hub, run):
        more = ['--dataset=chars', *words, f'--init_from={source}', f'--out_dir={tmp_path / "chars"}', '--overwrite']
        assert re.search(f'{source} .*data/chars.*--new_vocabulary', sentence(train.main, more))
        capsys.readouterr()
        train.main([*more, '--new_vocabulary'])
        assert 'new_vocabulary: ' in capsys.readouterr().out
        content = checkpoint.load(tmp_path / 'chars' / 'best.pt')
        size = Tokenizer(content['data']['tokenizer']).n_vocab
        assert content['config']['vocab_size'] == size < 60 and content['model']['lm_head.weight'].shape == (size, 16)
        assert (content['model']['layers.0.mixer.A_log'] - before['layers.0.mixer.A_log']).abs().max() < 0.05


def test_export_with_the_tokenizer_of_published_weights(tmp_path):
    """A run that was fine-tuned from a model with a tokenizer.json: the export has it again."""
    model = gpt.Model(gpt.Config(block_size=16, vocab_size=275, n_embd=16))
    spec = {'kind': 'tokenizers', 'json': train_bpe().to_str()}
    checkpoint.save(tmp_path / 'ckpt.pt', {'arch': 'model', 'config': vars(model.config), 'step': 1, **ABOUT,
                                           'model': model.state_dict(), 'data': {'fingerprint': '', 'tokenizer': spec}})
    export.main([str(tmp_path / 'ckpt.pt'), str(tmp_path / 'hub')])
    texts = [printed(sample.main, [*run, '--start=the', '--max_new_tokens=9'])
             for run in ([tmp_path / 'ckpt.pt'], ['--pretrained', tmp_path / 'hub'])]
    assert texts[0] == texts[1] != ''


def test_tokenizers_without_bytes():
    """Of words, as BERT has them: what the library decodes, in a stream."""
    words = tokenizers.models.WordPiece({'[UNK]': 0, 'cat': 1, '##s': 2, 'the': 3}, unk_token='[UNK]')
    library = tokenizers.Tokenizer(words)
    library.pre_tokenizer, library.decoder = tokenizers.pre_tokenizers.Whitespace(), tokenizers.decoders.WordPiece()
    tokenizer = Tokenizer({'kind': 'tokenizers', 'json': library.to_str()})
    assert tokenizer.encode('the cats') == [3, 1, 2] and tokenizer.decode([3, 1, 2]) == 'the cats'
    assert tokenizer.token_bytes(1) == b'cat' and tokenizer.n_vocab == 4


def test_the_same_tokenizer_in_two_formats():
    """tiktoken's and tokenizers' have the same tokens at the same ids, or not."""
    one = {'kind': 'tokenizers', 'json': train_bpe().to_str()}
    tokens = [Tokenizer(one).token_bytes(i) for i in range(275)]
    for ids, expected in (([*range(275)], True), ([1, 0, *range(2, 275)], False), ([*range(274)], False)):
        other = bpe_spec('mine', r'\S+|\s+', {tokens[i]: rank for rank, i in enumerate(ids)}, {})
        assert same(one, other) == same(other, one) == expected
    assert same(one, one) and not same(None, one)
