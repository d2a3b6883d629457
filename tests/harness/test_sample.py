"""Generation: sampling, streaming, cellular automata, and the command lines of sample.py and extras/export.py."""

import dataclasses
import math
import sys

import pytest
import torch
from conftest import ABOUT, sentence, tiny_train

import llama
import mamba
import model as gpt
import pacing
import sample
import train
import wavenet
from extras import export
from harness import checkpoint
from harness.arch import complete
from harness.generate import automaton, benchmark, describe, generate, reapply, sample_token
from harness.tokenizer import Tokenizer, bpe_spec, published_spec, same


@pytest.fixture(scope='module')
def run(dataset, tmp_path_factory):
    """The folder of a finished run of GPT."""
    out = tmp_path_factory.mktemp('sample') / 'run'
    train.main(tiny_train(dataset, out, '--max_iters=20', '--bias=False')[1:])
    return out


@pytest.fixture
def printed(capsys):
    """What sample.py prints for a command line."""
    return lambda *words: (sample.main(list(map(str, words))), capsys.readouterr().out)[1]


def ids(model, prompt, count, **options):
    return torch.stack(list(generate(model, prompt, count, **options)), dim=1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# sampling -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('options, expected', [
    ((1.0, 0, 1.0), {0, 1, 2, 3}), ((0, 0, 1.0), {0}), ((1.0, 2, 1.0), {0, 1}), ((1.0, 100, 1.0), {0, 1, 2, 3}),
    ((1.0, 0, 0.65), {0, 1}), ((1.0, 0, 0.01), {0}), ((1e-4, 0, 1.0), {0}), ((1e-40, 0, 1.0), {0})])
def test_the_candidates_of_top_k_and_top_p(options, expected):
    """Of probabilities 0.64, 0.24, 0.09 and 0.03; the fifth token is padding of the vocabulary."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 9.0]]).repeat(4000, 1)
    assert set(sample_token(logits, *options, n_vocab=4, generator=seeded(0)).tolist()) == expected


def test_sampling_follows_the_distribution():
    p, logits = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(20_000, 1)
    for options, weights in (((1.0, 0, 1.0), p), ((0.5, 0, 1.0), p ** 2), ((1.0, 2, 1.0), p * torch.tensor([1, 1, 0])),
                             ((1.0, 0, 0.7), p * torch.tensor([1, 1, 0]))):
        counts = sample_token(logits, *options, generator=seeded(0)).bincount(minlength=3)
        assert (counts / 20_000 - weights / weights.sum()).abs().max() < 0.015


STEPPING = {'gpt': (gpt, {}), 'pacing': (pacing, {}), 'memory': (wavenet, {}), 'causal': (wavenet, {'reads': 'causal'}),
            'mamba': (mamba, {}), 'llama': (llama, {})}


@pytest.fixture(params=STEPPING.values(), ids=STEPPING)
def model(request):
    """A model that has a step(), with weights away from their initial values."""
    arch, change = request.param
    torch.manual_seed(0)
    model = complete(arch.Model(dataclasses.replace(arch.Config.tiny(), **change))).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def test_generation_with_step_is_generation_by_recomputation(model):
    prompt = torch.randint(17, (2, 3))
    fast = ids(model, prompt, 13, temperature=0)
    assert torch.equal(fast, ids(model, prompt, 13, temperature=0, recompute=True))
    model.step = None
    assert torch.equal(fast, ids(model, prompt, 13, temperature=0))


def test_a_row_of_a_batch_is_the_row_alone(model):
    prompts = torch.randint(17, (3, 20))
    together = ids(model, prompts, 30, generator=[seeded(i) for i in range(3)])
    for i in range(3):
        assert torch.equal(together[i:i + 1], ids(model, prompts[i:i + 1], 30, generator=[seeded(i)]))


def test_benchmark(model):
    prompt = torch.zeros(1, 3, dtype=torch.long)
    found = benchmark(model, prompt, 12, most=4)
    assert found['first'] > 0 and found['rate'] > 0 and found['recompute'] > 0 and found['growth'] is None
    assert 'tokens/s without step()' in describe(found) and 'last 1,000' not in describe(found)
    model.step = None
    assert benchmark(model, prompt, 1)['recompute'] is None


def test_a_seed_repeats_a_text():
    torch.manual_seed(0)
    model = complete(gpt.Model(gpt.Config.tiny())).eval()
    prompt = torch.zeros(8, 1, dtype=torch.long)
    first, again, other = (ids(model, prompt, 20, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) == 8
    assert ids(model, prompt, 60, n_vocab=3, temperature=5.0).max() <= 2


# cellular automata --------------------------------------------------------------------------------------------------------

class Neighbours(torch.nn.Module):
    """Predicts for each token the one `offset` places before it, on a ring, with the logit `sharp`."""
    bidirectional = True

    def __init__(self, offset=1, sharp=9.0):
        super().__init__()
        complete(self)
        self.offset, self.config = offset, gpt.Config.tiny()
        self.sharp = torch.nn.Parameter(torch.tensor(sharp))
        self.infill = lambda x: self.sharp * torch.nn.functional.one_hot(x.roll(self.offset, 1), 17).float()


def test_a_pass_replaces_all_tokens_at_once():
    x = torch.tensor([[1, 2, 3, 4, 5], [6, 6, 7, 8, 9]])
    assert reapply(Neighbours(), x).tolist() == [[5, 1, 2, 3, 4], [9, 6, 6, 7, 8]]      # one by one, all would be the first
    assert reapply(Neighbours(-2), x).tolist() == [[3, 4, 5, 1, 2], [7, 8, 9, 6, 6]]
    assert reapply(Neighbours(sharp=-9.0), x, n_vocab=2).max() <= 1
    x = torch.arange(17).repeat(400, 1)
    sampled = reapply(Neighbours(sharp=1.0), x, 1.0, generator=seeded(0))
    assert (sampled == x.roll(1, 1)).float().mean().item() == pytest.approx(math.e / (16 + math.e), abs=0.015)


def test_an_automaton_ends_at_a_cycle():
    cycle = [([1, 2, 3], None), ([3, 1, 2], None), ([2, 3, 1], None), ([1, 2, 3], 0)]
    assert list(automaton(Neighbours(), [1, 2, 3], 10)) == cycle
    assert list(automaton(Neighbours(), [1, 2, 3], 2))[-1] == ([2, 3, 1], None)
    assert list(automaton(Neighbours(), [4, 4], 10, 1.0, 1, generator=seeded(0)))[-1] == ([4, 4], 0)        # top_k=1
    assert list(automaton(Neighbours(sharp=99.0), [4, 4], 10, 1.0, generator=seeded(0))) == [([4, 4], None)] * 11


def test_an_automaton_prints_each_pass(run, monkeypatch, printed):
    content = checkpoint.load_model(run)[1]
    monkeypatch.setattr(checkpoint, 'load_model', lambda path: (Neighbours(), content))
    words = ['run', '--automaton', '--device=cpu']
    assert printed(*words, '--start', 'a\nb', '--start', 'dd') == (
        ' 0  a\n    b\n 1  ba\n    \n 2  \n    ba\n 3  a\n    b\npass 3 equals pass 0: a cycle of 3 passes\n' + '-' * 80 +
        '\n 0  dd\n 1  dd\npass 1 changed nothing: a fixed point\n')
    assert printed(*words, '--start', 'abc', '--reapply=2') == '0  abc\n1  cab\n2  bca\n'
    one, two = printed(*words, '--start=abc', '--temperature=99', '--num_samples=2').split('-' * 80 + '\n')
    assert one != two
    for more in ([], ['--benchmark'], ['--eval']):
        assert '--automaton' in sentence(sample.main, ['run', *more])


@pytest.mark.parametrize('words', [['--arch=bert'], ['--arch=highorder', '--centered', '--features=5']], ids=str)
def test_fill(dataset, printed, tmp_path, words):
    """The likeliest tokens for each blank, with their probabilities, among those of the text."""
    words = tiny_train(dataset, tmp_path / 'run', *words, '--max_iters=5', '--sample_tokens=0')[1:]
    train.main([w for w in words if '--arch=bert' in words or 'n_head' not in w])
    model, content = checkpoint.load_model(tmp_path / 'run')
    tokenizer = Tokenizer(content['data']['tokenizer'])
    text = 'a bad [MASK]ab. a bed add a [MASK]ag'           # longer than the window of 16
    x = [-1 if c == '#' else tokenizer.ids[c] for c in text.replace('[MASK]', '#')]
    *_, last, one, two = printed(tmp_path / 'run', '--fill', text).splitlines()
    assert 'written to' in last
    for line, at in zip((one, two), [i for i, token in enumerate(x) if token < 0], strict=True):
        p = model.infill(torch.tensor([x]))[0, at, :tokenizer.n_vocab].softmax(-1)
        expected = [f'{tokenizer.decode([int(i)])!r} {p[i]:.1%}' for i in p.argsort(descending=True)[:5]]
        assert line.partition(': ')[2] == ', '.join(expected)
    assert 'both sides' in sentence(sample.main, [str(tmp_path / 'run'), '--start=a'])


def test_fill_by_a_published_bert(printed, tmp_path):
    """With its own tokenizer, whose [CLS] and [SEP] are around the text."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'to', 'be', 'or', 'not', '##ing', ',']
    torch.manual_seed(0)
    theirs = BertForMaskedLM(BertConfig(vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                        intermediate_size=32, initializer_range=0.5)).eval()
    theirs.save_pretrained(tmp_path)
    BertWordPieceTokenizer({w: i for i, w in enumerate(words)}).save(str(tmp_path / 'tokenizer.json'))
    line = printed('--pretrained', tmp_path, '--fill=To be, or [MASK] being')
    p = theirs(torch.tensor([[2, 5, 6, 10, 7, 4, 6, 9, 3]])).logits[0, 5].softmax(-1)
    expected = [f'{words[i]!r} {p[i]:.1%}' for i in p.argsort(descending=True)[:5]]
    assert line == f'[MASK] 1: {", ".join(expected)}\n'


def test_the_automaton_of_a_network(dataset, printed, tmp_path):
    """Each character of a pass is predicted from its neighbours alone."""
    train.main(tiny_train(dataset, tmp_path / 'run', '--arch=highorder', '--network=high_order', '--centered', '--features=5',
                          '--max_iters=30', '--sample_tokens=0')[1:])
    text, passes = 'a bad cab', printed(tmp_path / 'run', '--automaton', '--start', 'a bad cab', '--reapply=4')
    model, content = checkpoint.load_model(tmp_path / 'run')
    tokenizer, seen = Tokenizer(content['data']['tokenizer']), []
    while text not in seen and len(seen) < 5:
        assert f'{len(seen)}  ' + text.replace('\n', '\n   ') in passes
        seen.append(text)
        padded = [-1, -1, *tokenizer.encode(text), -1, -1]
        around = torch.tensor([[*padded[i:i + 2], -1, *padded[i + 3:i + 5]] for i in range(len(text))])
        text = tokenizer.decode(model.infill(around)[:, 2].argmax(-1).tolist())
    assert len(seen) > 1


# the command lines --------------------------------------------------------------------------------------------------------

def test_sample(run, printed, tmp_path, dataset, monkeypatch):
    """Beyond the window of 16, without the data set; a text depends on its start and its seed only."""
    monkeypatch.setattr('harness.data.ROOT', tmp_path)
    (tmp_path / 'prompt.txt').write_text('abc')
    words = [run, '--max_new_tokens', 40]
    both = printed(*words, '--seed=5', '--start', f'FILE:{tmp_path / "prompt.txt"}', '--start=a bad', '--num_samples=2')
    parts = both.split('-' * 80 + '\n')
    starts = ['abc', 'abc', 'a bad', 'a bad']
    assert parts == [printed(*words, f'--start={start}', f'--seed={5 + i}') for i, start in enumerate(starts)]
    assert [len(part) for part in parts] == [44, 44, 46, 46] and len(set(parts)) == 4
    assert len(printed(run / 'best.pt', '--temperature', 0, '--max_new_tokens', 5)) == 1 + 5 + 1
    assert 'tokens/s' in printed(run, '--benchmark', '--max_new_tokens', 10, '--dtype=bfloat16')


@pytest.mark.parametrize('words, said', [
    (['--automaton'], '--start'), (['--automaton', '--start=a'], '--automaton: '), (['--reapply=0'], '--reapply=0'),
    (['--fill=nothing'], 'has no [MASK]'), (['--fill=a [MASK]'], '--fill: '), (['--fill=[MASK]', '--eval'], 'not allowed with'),
    (['--automaton', '--start=a', '--benchmark'], 'not allowed with argument'), (['--start=aX'], "no token for 'X'"),
    (['--dtype=int8'], '--dtype'), (['--num_samples=0'], '--num_samples=0'),
    (['--max_new_tokens=0'], '--max_new_tokens=0'), (['--seed=-1'], '--seed=-1'),
    (['--temperature=nan'], '--temperature=nan'), (['--top_p=1.5'], '--top_p=1.5')])
def test_bad_commands(run, words, said):
    assert said in sentence(sample.main, [str(run), *words])


TEXT = 'the cat and the dog and the hat in the café. ' * 9


def train_bpe(*special):
    """A byte-level BPE of 275 tokens, of the library tokenizers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=275, special_tokens=[*special],
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return bpe


@pytest.fixture
def trained_bpe():
    """As GPT-NeoX has it, with a run of blanks as an added token; and with what the files of sentence encoders have."""
    bpe = train_bpe('<|endoftext|>')
    bpe.add_tokens(['   '])
    bpe.enable_truncation(4)
    return bpe


def write_published(folder, bpe, rows, pairs=False):
    """A Mamba in the format of the hub, with its tokenizer: tokenizer.json, or vocab.json and merges.txt."""
    from transformers import MambaConfig, MambaForCausalLM
    torch.manual_seed(0)
    MambaForCausalLM(MambaConfig(vocab_size=rows, hidden_size=16, state_size=4, num_hidden_layers=1)).save_pretrained(folder)
    if bpe is not None:
        bpe.model.save(str(folder)) if pairs else bpe.save(str(folder / 'tokenizer.json'))


@pytest.mark.parametrize('pairs', [False, True], ids=['tokenizer.json', 'vocab.json and merges.txt'])
def test_published_weights_with_their_own_tokenizer(trained_bpe, printed, tmp_path, pairs):
    """The rows of the embedding are padded; the text is what the library writes for the ids that the model continues with."""
    trained_bpe.no_truncation()
    write_published(tmp_path, trained_bpe, 280, pairs)
    start = 'the café  <|endoftext|>\n'
    out = printed('--pretrained', tmp_path, '--arch=mamba', '--start', start, '--temperature=2', '--top_k=0')
    theirs = published_spec(str(tmp_path))
    own = Tokenizer(theirs)
    assert own.n_vocab == 276 - pairs and own.encode(start) == trained_bpe.encode(start).ids
    model = complete(mamba.Model.from_pretrained(str(tmp_path))).eval()
    more = [int(i) for i in generate(model, torch.tensor([own.encode(start)]), 300, 2.0, n_vocab=own.n_vocab,
                                     generator=[seeded(1337)])]
    assert max(more) < own.n_vocab and out == start + trained_bpe.decode(more, skip_special_tokens=False) + '\n'


@pytest.mark.parametrize(('rows', 'tokens', 'words'), [
    (280, False, ['tokenizer.json', '280']), (270, True, ['276', '270']), (5000, True, ['276', '5,000'])])
def test_a_tokenizer_that_is_not_that_of_the_weights_is_refused(trained_bpe, tmp_path, rows, tokens, words):
    write_published(tmp_path, trained_bpe if tokens else None, rows)
    said = sentence(sample.main, ['--pretrained', str(tmp_path), '--arch=mamba'])
    assert all(word in said for word in [str(tmp_path), *words])


def test_published_weights_that_cannot_write(monkeypatch, trained_bpe, tmp_path):
    assert all(s in sentence(sample.main, ['--pretrained=gpt2', f'--arch={s}']) for s in ('pacing', 'vit'))
    write_published(tmp_path, trained_bpe, 280)
    (tmp_path / 'tokenizer.json').write_text('{}')
    assert 'tokenizer.json' in sentence(sample.main, ['--pretrained', str(tmp_path), '--arch=mamba'])
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    assert 'pip install tokenizers' in sentence(sample.main, ['--pretrained', str(tmp_path), '--arch=mamba'])


def test_tokenizers_without_bytes():
    """Of words, as BERT has them: what the library decodes, in a stream."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers
    library = Library(models.WordPiece({'[UNK]': 0, 'cat': 1, '##s': 2, 'the': 3}, unk_token='[UNK]'))
    library.pre_tokenizer, library.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    tokenizer = Tokenizer({'kind': 'tokenizers', 'json': library.to_str()})
    assert tokenizer.encode('the cats') == [3, 1, 2] and tokenizer.decode([3, 1, 2]) == 'the cats'
    assert tokenizer.token_bytes(1) == b'cat' and tokenizer.n_vocab == 4


def test_a_run_from_published_weights_with_their_own_tokenizer(trained_bpe, printed, prepare, root, tmp_path, capsys):
    """Data is prepared with the model's tokenizer; the run continues texts, and other data needs --new_vocabulary."""
    hub, run = tmp_path / 'hub', tmp_path / 'run'
    write_published(hub, trained_bpe, 280)
    (tmp_path / 'a.txt').write_text(TEXT * 9, encoding='utf-8')
    prepare('text.py', 'mine', tmp_path / 'a.txt', f'--tokens={hub}')
    prepare('text.py', 'chars', tmp_path / 'a.txt')
    words = [f'--init_from={hub}', '--arch=mamba', '--block_size=16', '--max_iters=1', '--eval_windows=8', '--device=cpu',
             '--sample_tokens=5', f'--out_dir={run}']
    train.main(['--dataset=mine', *words])
    capsys.readouterr()
    assert checkpoint.load(run / 'best.pt')['config']['vocab_size'] == 280
    assert printed(run, '--start=the', '--max_new_tokens=3').startswith('the')
    for source in (hub, run):
        words[0] = f'--init_from={source}'
        out = tmp_path / f'chars_{source.name}'
        words[-1] = f'--out_dir={out}'
        said = sentence(train.main, ['--dataset=chars', *words])
        assert all(s in said for s in (str(source), 'data/chars', '--new_vocabulary'))
        capsys.readouterr()
        train.main(['--dataset=chars', *words, '--new_vocabulary'])
        assert 'new_vocabulary: ' in capsys.readouterr().out
        content, before = checkpoint.load(out / 'best.pt'), mamba.Model.from_pretrained(str(hub)).state_dict()
        assert content['config']['vocab_size'] == Tokenizer(content['data']['tokenizer']).n_vocab < 30
        assert content['model']['lm_head.weight'].shape == (content['config']['vocab_size'], 16)
        assert (content['model']['layers.0.mixer.A_log'] - before['layers.0.mixer.A_log']).abs().max() < 0.05


def test_the_same_tokenizer_in_two_formats():
    """tiktoken's and tokenizers' have the same tokens at the same ids, or not."""
    specs = [{'kind': 'tokenizers', 'json': train_bpe().to_str()}]
    tokens = Tokenizer(specs[0])
    for ids in (range(275), [1, 0, *range(2, 275)]):
        specs.append(bpe_spec('mine', r'\S+|\s+', {tokens.token_bytes(i): rank for rank, i in enumerate(ids)}, {}))
    assert [[same(a, b) for b in specs] for a in specs] == [[True, True, False], [True, True, False], [False, False, True]]
    assert not same(None, specs[0])


def test_the_first_token_without_a_line_break():
    assert Tokenizer({'kind': 'char', 'chars': ['a', 'b']}).begin() == [0] and Tokenizer({'kind': 'bytes'}).begin() == [10]
    with pytest.raises(ValueError, match='morse'):
        Tokenizer({'kind': 'morse'})


def test_export(run, tmp_path, capsys):
    """transformers computes the same logits; the printed numbers add up to what is written."""
    from safetensors.torch import load_file
    from transformers import GPT2LMHeadModel

    hub = tmp_path / 'hub'
    export.main([str(run), str(hub)])
    ours, _ = checkpoint.load_model(run)
    x = torch.randint(ours.config.vocab_size, (2, 16))
    with torch.no_grad():
        assert (GPT2LMHeadModel.from_pretrained(hub)(x).logits - ours(x)[0]).abs().max() < 1e-4
    torch.testing.assert_close(gpt.Model.from_pretrained(str(hub)).eval()(x)[0], ours(x)[0])
    parameters = sum(p.numel() for p in ours.parameters())
    zeros = sum(w.numel() for w in load_file(hub / 'model.safetensors').values()) - parameters
    assert f'{parameters:,} parameters and {zeros:,} zeros' in capsys.readouterr().out and zeros > 0


def test_export_with_the_tokenizer_of_published_weights(trained_bpe, printed, tmp_path):
    """A run that was fine-tuned from a model with a tokenizer.json: the export has it again."""
    model, spec = gpt.Model(gpt.Config(block_size=16, vocab_size=276, n_embd=16)), {'kind': 'tokenizers'}
    spec['json'] = trained_bpe.to_str()
    checkpoint.save(tmp_path / 'ckpt.pt', {'arch': 'model', 'config': dataclasses.asdict(model.config), 'step': 1,
                                           'model': model.state_dict(), **ABOUT,
                                           'data': {'fingerprint': '', 'tokenizer': spec}})
    words = ['--start=the', '--max_new_tokens=9']
    export.main([str(tmp_path / 'ckpt.pt'), str(tmp_path / 'hub')])
    assert printed('--pretrained', tmp_path / 'hub', *words).endswith(printed(tmp_path / 'ckpt.pt', *words))


def test_export_is_refused(run, dataset, tmp_path):
    before = (run / 'config.json').read_bytes()
    assert str(run) in sentence(export.main, [str(run), str(run)])
    assert (run / 'config.json').read_bytes() == before
    train.main([w for w in tiny_train(dataset, tmp_path / 'run', '--arch=pacing', '--max_iters=1') if 'n_head' not in w][1:])
    assert "arch 'pacing'" in sentence(export.main, [str(tmp_path / 'run'), str(tmp_path / 'hub')])
