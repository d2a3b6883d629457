"""Generation by one model or several: sampling, ensembles, cellular automata, sample.py and extras/export.py."""

import math
import re
import subprocess
import sys
from functools import partial

import conftest
import numpy as np
import pytest
import torch
from conftest import sentence, tiny_run

import model as gpt
import sample
import train
from extras import export
from harness import ROOT, checkpoint, data, device, formats, speculate
from harness.arch import complete
from harness.ensemble import Ensemble
from harness.generate import automaton, benchmark, describe, generate, probabilities, reapply, sample_token
from harness.tokenizer import Tokenizer
from tests.models.test_contract import perturb, tiny_model

LINE = '-' * 80 + '\n'


@pytest.fixture(scope='module')
def runs(dataset, tmp_path_factory):
    """The folders of two finished runs, of GPT with a window of 16 and of PACING with one of 8."""
    out = tmp_path_factory.mktemp('sample')
    more = ['--max_iters=40', '--eval_interval=40', '--optimizer=adamw', '--learning_rate=0.02']
    tiny_run(dataset, out / 'A', '--bias=False', *more)
    tiny_run(dataset, out / 'B', '--arch=pacing', '--block_size=8', *more, without=['n_head'])
    return str(out / 'A'), str(out / 'B')


@pytest.fixture
def run(runs):
    return runs[0]


def printed(*words):
    return conftest.printed(sample.main, [*words, '--device=cpu'])


def random_model(arch, **change):
    """A tiny model with weights away from their initial values."""
    return perturb(tiny_model(arch, change))


def ids(model, prompt, count, **options):
    return torch.stack(list(generate(model, prompt, count, **options)), dim=1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# sampling -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('options, expected', [
    ((1.0, 0, 1.0), [64, 24, 9, 3]), ((0.5, 0, 1.0), [64 ** 2, 24 ** 2, 9 ** 2, 3 ** 2]), ((0, 0, 1.0), [1]),
    ((1.0, 100, 1.0), [64, 24, 9, 3]), ((1.0, 2, 1.0), [64, 24]), ((1.0, 0, 0.65), [64, 24]),
    ((1.0, 0, 0.01), [1]), ((1e-4, 0, 1.0), [1]), ((1e-40, 0, 1.0), [1])])
def test_sampling_follows_the_distribution(options, expected):
    """temperature, top_k and top_p of four probabilities; the fifth token is padding of the vocabulary."""
    logits = torch.tensor([[0.64, 0.24, 0.09, 0.03, 900.0]]).log().repeat(20_000, 1)
    counts = sample_token(logits, *options, n_vocab=4, generator=seeded(0)).bincount(minlength=len(expected))
    assert len(counts) == len(expected) and (counts > 0).all()
    assert (counts / 20_000 - torch.tensor(expected) / sum(expected)).abs().max() < 0.015


stepping = pytest.mark.parametrize('arch, change', [
    ('model', {}), ('pacing', {}), ('wavenet', {}), ('wavenet', {'reads': 'causal'}), ('mamba', {}), ('llama', {})], ids=str)


@stepping
def test_generation(arch, change):
    """With step() it is generation by recomputation; a row of a batch is the row alone; a seed repeats a text."""
    model = random_model(arch, **change)
    prompts = torch.randint(17, (3, 20))
    together = ids(model, prompts, 30, generator=[seeded(i) for i in range(3)])
    assert torch.equal(together, torch.cat([ids(model, prompts[i:i + 1], 30, generator=[seeded(i)]) for i in range(3)]))
    assert not torch.equal(together, ids(model, prompts, 30, generator=seeded(1)))
    assert ids(model, prompts, 30, n_vocab=3, temperature=5.0).max() <= 2
    fast = ids(model, prompts[:, :3], 13, temperature=0)
    assert torch.equal(fast, ids(model, prompts[:, :3], 13, temperature=0, recompute=True))
    found = benchmark(model, prompts[:1, :3], 12, most=4)
    assert found['first'] > 0 and found['rate'] > 0 and found['recompute'] > 0 and found['growth'] is None
    assert 'tokens/s without step()' in describe(found) and 'last 1,000' not in describe(found)
    model.step = None
    assert torch.equal(fast, ids(model, prompts[:, :3], 13, temperature=0))
    assert benchmark(model, prompts[:1, :3], 1)['recompute'] is None


@stepping
@pytest.mark.parametrize('size', [4, 64])
def test_speculative_decoding(arch, change, size):
    """Greedily it is the text without a draft, whatever the draft is, also beyond the window.  A model that drafts for itself
    is never refuted, but where it reads again at the end of a window."""
    model = random_model(arch, **change, block_size=size)
    for T in (3, 70):
        x = torch.randint(17, (1, T))
        expected = ids(model, x, 50, temperature=0)[0]
        for draft in (random_model('mamba', n_layer=1), random_model('pacing', vocab_size=20), model):
            parts = list(speculate.speculate(model, draft, x, 50, 0))
            assert torch.equal(torch.cat(parts), expected)
        again = not model.memory and arch in ('model', 'wavenet')
        assert again or [len(part) for part in parts] == [1, *[5] * 9, 4]
    draft = random_model('mamba', n_layer=1)
    assert sum(map(len, speculate.speculate(model, draft, x, 90, 1.0, 5, 0.9, generator=seeded(0)))) == 90
    found = speculate.benchmark_draft(model, draft, x, 9, 1.0, repeats=1)
    assert found['with'] > 0 and 1 <= found['tokens a step'] <= 5


@torch.no_grad()
def test_drafted_texts_follow_the_distribution():
    """By counting: pairs of tokens after a prompt, and one token of which p and q differ much."""
    model, draft = (random_model(arch, vocab_size=3) for arch in ('llama', 'model'))
    x, N, options, seed = torch.tensor([[0, 1, 2]]), 1200, (0.7, 0, 0.95), seeded(0)
    first, second = torch.zeros(3), torch.zeros(3, 3)
    for i in range(3):
        logits = model(torch.cat([x, torch.tensor([[i]])], dim=1))[0]
        first, second[i] = probabilities(logits[0, -2:], *options)
    expected = (first[:, None] * second).flatten()
    found = [torch.cat(list(speculate.speculate(model, draft, x, 2, *options, generator=seed))) for _ in range(N)]
    counts = torch.stack([3 * one + two for one, two in found]).bincount(minlength=9)
    assert ((counts / N - expected).abs() < 4.5 * (expected * (1 - expected) / N).sqrt() + 1e-9).all()
    p, q = torch.tensor([[0.1, 0.3, 0.6], [1.0, 0.0, 0.0]]), torch.tensor([0.6, 0.4, 0.0])
    ends = [speculate.judge(x, [q], p, seed) for x in torch.multinomial(q, 6000, True, generator=seed)[:, None]]
    assert all(rejected == (len(accepted) == 1) and accepted[1:].sum() == 0 for accepted, rejected in ends)
    counts = torch.stack([accepted[0] for accepted, _ in ends]).bincount()
    assert (counts / 6000 - p[0]).abs().max() < 0.025


def test_sample_with_a_draft(runs, tmp_path):
    """The same greedy text; the draft must have a step() and the same tokenizer."""
    A, B = runs
    words = [B, '--max_new_tokens=30', '--temperature=0']
    assert printed(*words, '--draft', A) == printed(*words)
    assert 'with the draft' in printed(*words[:2], '--draft', A, '--benchmark')
    content = torch.load(f'{A}/best.pt', weights_only=True)
    content['data']['tokenizer'] = {'kind': 'bytes'}
    torch.save(content, tmp_path / 'bytes.pt')
    assert 'tokenizers' in sentence(sample.main, [*words, f'--draft={tmp_path}/bytes.pt'])
    for model in (random_model('pacing', predicts='last'), random_model('bert')):
        assert 'does not write a text' in sentence(speculate.require_text, [model], ['B'])


def test_sample(run, tmp_path, monkeypatch):
    """Beyond the window of 16, without the data set; a text depends on its start and its seed only."""
    monkeypatch.setattr('harness.data.ROOT', tmp_path)
    (tmp_path / 'prompt.txt').write_text('\ufeffabc', encoding='utf-8')         # by an editor on Windows
    more = partial(printed, run, '--max_new_tokens=40')
    parts = more('--seed=5', '--start', f'FILE:{tmp_path / "prompt.txt"}', '--start=a bad', '--num_samples=2').split(LINE)
    assert parts == [more(f'--start={s}', f'--seed={5 + i}') for i, s in enumerate(['abc', 'abc', 'a bad', 'a bad'])]
    assert [len(part) for part in parts] == [44, 44, 46, 46] and len(set(parts)) == 4
    assert len(printed(f'{run}/best.pt', '--temperature=0', '--max_new_tokens=5')) == 1 + 5 + 1
    monkeypatch.setattr(formats, 'LEAST', 100)
    for dtype in ('float32', 'bfloat16', 'int8'):
        shown = printed(run, '--benchmark', '--max_new_tokens=10', '--num_samples=3', f'--dtype={dtype}')
        assert shown.startswith(f'{dtype}: ') and 'tokens/s of 3 texts' in shown


@torch.no_grad()
@stepping
def test_int8_weights(arch, change, monkeypatch):
    """The logits move by the rounding of the weights alone, also those of a row of zeros; a row does not depend on others."""
    layer, x = torch.nn.Linear(24, 40), torch.randn(3, 5, 24) * torch.tensor([1, 0, 100])[:, None, None]
    rounded = formats.Int8Linear(layer)
    assert ((rounded.weight - layer.weight).abs().amax(1) <= layer.weight.abs().amax(1) / 127 / 1.99).all()
    exact = torch.nn.functional.linear(x, rounded.weight, layer.bias)
    assert ((rounded(x) - exact).abs().amax((1, 2)) <= 1e-3 * exact.abs().amax((1, 2))).all()
    assert torch.equal(rounded(x[2:]), rounded(x)[2:])
    model, x = random_model(arch, **change), torch.randint(17, (2, 12))
    whole = model.step(x, model.init_state(2))[0]
    monkeypatch.setattr(formats, 'LEAST', 0)
    formats.cast([model], 'int8', torch.device('cpu'))
    stepped, state = model.step(x[:, :5], model.init_state(2))
    for n in range(5, 12):
        stepped, state = model.step(x[:, n:n + 1], state)
    assert 1e-5 < (stepped - whole).abs().max() / whole.abs().max() < 0.05
    assert not any(type(m) is torch.nn.Linear for m in model.modules())


def test_the_format_is_the_stored_one_where_that_is_faster(tmp_path, monkeypatch):
    cpu, cuda, hub = torch.device('cpu'), torch.device('cuda'), str(tmp_path)
    (tmp_path / 'config.json').write_text('{"torch_dtype": "bfloat16"}')
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda **k: True)
    for where, expected in (((None, cuda), 'float32'), ((hub, cpu), 'float32'), ((hub, cuda), 'bfloat16')):
        assert formats.choose('auto', [], *where)[0] == expected
    assert 'int8' in sentence(formats.cast, [], 'int8', cuda)
    monkeypatch.setattr(formats.hub, 'stored', lambda name: 'int8')
    large, small = ([torch.nn.Sequential(torch.nn.Linear(512, n))] for n in (512, 511))
    assert [formats.choose(name, models, 'x', cpu)[0] for name, models in (
        ('auto', large), ('auto', small), ('float32', large), ('int8', large))] == ['int8', 'float32', 'float32', 'int8']
    assert '262,144 weights' in sentence(formats.choose, 'int8', small, None, cpu)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda **k: False)
    assert formats.choose('auto', [], 'x', cuda)[0] == 'float32' and 'bfloat16' in sentence(formats.cast, [], 'bfloat16', cuda)


def test_a_closed_pipe_ends_sample_silently(run):
    words = [sys.executable, 'sample.py', run, '--max_new_tokens=100000']
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait() == 0


# several models -----------------------------------------------------------------------------------------------------------

WEIGHTS = [0.5, 0.2, 0.2, 0.1]


@pytest.fixture(scope='module')
def members():
    """Windows of 16 and 8 tokens, a memory of 4 before a window of 4, a padded vocabulary, and a model without step()."""
    return [random_model('model'), random_model('mamba', block_size=8, vocab_size=20), random_model('wavenet', block_size=4),
            random_model('pacing', predicts='last')]


@torch.no_grad()
def test_the_mixture_is_the_mean_of_the_probabilities(members):
    """In one pass, and by step() beyond all windows, read in pieces, where each member keeps its own state."""
    def check(logits, each, weights):       # for the 17 ids that all members know
        expected = sum(w / sum(weights) * x.double().softmax(-1)[..., :17] for x, w in zip(each, weights, strict=True))
        torch.testing.assert_close(logits[..., :17].exp().double(), expected, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(logits.exp().sum(-1), torch.ones(logits.shape[:-1]))
    x = torch.randint(17, (2, 40))
    for count, weights, positions in ((4, WEIGHTS, 1), (3, [5, 2, 2], 4)):          # of the member with the fewest
        logits, _ = Ensemble(members[:count], weights)(x[:, :16])
        assert logits.shape == (2, positions, 20)
        check(logits, [m(x[:, 16 - n:16])[0][:, -positions:] for m, n in zip(members, (16, 8, 8, 16)[:count], strict=False)],
              weights)
    ensemble, read = Ensemble(members, WEIGHTS), 0
    state, own = ensemble.init_state(2), [m.init_state(2) if m.step else None for m in members]
    for n in (5, 1, 1, 12, 1, 20):
        logits, state = ensemble.step(x[:, read:read + n], state)
        alone = []
        for i, m in enumerate(members[:3]):
            out, own[i] = m.step(x[:, read:read + n], own[i])
            alone.append(out)
        read += n
        check(logits, [*alone, members[3](x[:, max(0, read - 16):read])[0][:, -1]], WEIGHTS)


@torch.no_grad()
@pytest.mark.parametrize('count, positions', [(3, 4), (4, 1)])
def test_losses_by_brute_force(dataset, members, count, positions):
    """Window by window and target by target, each from a text of its own."""
    text, models, weights = data.TextData(dataset), members[:count], WEIGHTS[:count]
    starts, val = text.val_indices(7, 16), torch.from_numpy(text.tokens['val'].astype(np.int64))
    expected = np.zeros((count + 1, 2))
    for s in starts.tolist():
        for target in range(s + 17 - positions, s + 17):
            p = []
            for m in models:
                first, M = s + 16 - m.config.block_size, m.memory       # of the window that ends before the last target
                x = val[first - M:target] if first >= M else val[first:target]
                p.append(m(x[None])[0][0, -1].double().softmax(-1)[val[target]].item())
            p.append(np.dot(p, weights) / sum(weights))
            expected -= np.outer(np.log(p), [1 / positions, target == s + 16]) / len(starts)
    np.testing.assert_allclose(Ensemble(models, weights).losses(text, starts, batch_size=3).numpy(), expected, rtol=1e-5)


def test_text_from_several_runs(runs):
    """A text depends on its start and its seed only; with nearly all of the weight, a run generates what it does alone."""
    more = partial(printed, '--max_new_tokens=20')
    together = more(*runs, '--weights=0.7,0.3', '--start=ab', '--start=a bad', '--seed=5').split(LINE)
    assert together == [more(*runs, '--weights=7,3', *w) for w in (('--start=ab', '--seed=5'), ('--start=a bad', '--seed=6'))]
    assert [more(run) for run in runs] == [more(*runs, f'--weights={w}') for w in ('1,1e-30', '1e-30,1')]


def test_eval(runs, dataset, tmp_path, monkeypatch):
    """The losses are those of training; other data is named, and that of the first run must be there."""
    def table(*words):      # {run: its other cells}, the lines below the table
        lines = printed(*words, '--eval', '--eval_windows=50').splitlines()
        cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines if line.startswith('|')]
        return {row[0]: row[1:] for row in (cells[0], *cells[2:])}, '\n'.join(lines[len(cells):])

    def changed(run, name, **values):       # a checkpoint like that of the run, with other words on its data
        content = checkpoint.load(checkpoint.find(run))
        checkpoint.save(tmp_path / name, content | {'data': content['data'] | values})
        return str(tmp_path / name)
    (A, B), text = runs, data.TextData(dataset)
    starts = text.val_indices(50, 16)
    cells, note = table(A, B, '--weights=3,1')
    assert list(cells) == ['run', A, B, 'mixture'] and '50 windows of 16 tokens' in note and dataset.name in note
    for run, weight, T in ((A, '0.75', 16), (B, '0.25', 8)):
        expected = train.evaluate(checkpoint.load_model(run)[0], text, starts + 16 - T, 4, device.setup('cpu'))
        full = expected['val_loss_full']
        assert cells[run][0] == weight
        assert [float(v) for v in cells[run][2:]] == pytest.approx([full, full / math.log(2)], abs=1e-4)
    assert float(cells[B][1]) == pytest.approx(expected['val_loss'], abs=1e-4)       # A is scored at the positions of B
    assert list(table(A)[0]) == ['run', A]
    (loss, change), (_, full) = re.findall(r'([\d.]+) \(([+-][\d.]+)\)', table(A, '--dtype=bfloat16')[1])
    assert abs(float(change)) < 0.02 and 0 < abs(float(full)) < 0.02      # the mean may cancel
    assert float(loss) - float(change) == pytest.approx(float(table(A)[0][A][1]), abs=2e-4)
    other, leaking = changed(B, 'b.pt', fingerprint='0' * 16), changed(A, 'a.pt', fingerprint=f'{text.fingerprint}-leaking')
    note = table(A, B, other)[1]
    assert f'{other} may have been trained on the validation text of {A}' in note and note.count('may have been') == 1
    assert f'{leaking} was trained with leaking_split' in table(leaking)[1]
    assert all(s in sentence(sample.main, [A, changed(B, 'c.pt', tokenizer={'kind': 'bytes'})]) for s in (A, 'c.pt'))
    assert f'is not the data that {other} was trained on' in sentence(sample.main, [other, A, '--eval'])
    monkeypatch.setattr(data, 'ROOT', tmp_path)
    assert 'is missing' in sentence(sample.main, [A, '--eval'])


# models that see both sides -----------------------------------------------------------------------------------------------

class Neighbours(torch.nn.Module):
    """Predicts for each token the one before it, on a ring, with the logit `sharp`."""
    bidirectional = True

    def __init__(self, sharp=9.0):
        super().__init__()
        complete(self)
        self.config, self.sharp = gpt.Config.tiny(), torch.nn.Parameter(torch.tensor(sharp))
        self.infill = lambda x: self.sharp * torch.nn.functional.one_hot(x.roll(1, 1), 17).float()


def test_passes_of_an_automaton():
    """All tokens are replaced at once; greedy, it ends at a cycle."""
    x = torch.tensor([[1, 2, 3, 4, 5], [6, 6, 7, 8, 9]])
    assert reapply(Neighbours(), x).tolist() == [[5, 1, 2, 3, 4], [9, 6, 6, 7, 8]]      # one by one, all would be the first
    assert reapply(Neighbours(sharp=-9.0), x, n_vocab=2).max() <= 1
    x = torch.arange(17).repeat(400, 1)
    sampled = reapply(Neighbours(sharp=1.0), x, 1.0, generator=seeded(0))
    assert (sampled == x.roll(1, 1)).float().mean().item() == pytest.approx(math.e / (16 + math.e), abs=0.015)
    cycle = [([1, 2, 3], None), ([3, 1, 2], None), ([2, 3, 1], None), ([1, 2, 3], 0)]
    assert list(automaton(Neighbours(), [1, 2, 3], 10)) == cycle and list(automaton(Neighbours(), [1, 2, 3], 2)) == cycle[:3]
    assert list(automaton(Neighbours(), [4, 4], 10, 1.0, 1, generator=seeded(0)))[-1] == ([4, 4], 0)        # top_k=1
    assert list(automaton(Neighbours(sharp=99.0), [4, 4], 10, 1.0, generator=seeded(0))) == [([4, 4], None)] * 11


def test_an_automaton_prints_each_pass(run, monkeypatch):
    content = checkpoint.load_model(run)[1]
    monkeypatch.setattr(checkpoint, 'load_model', lambda path: (Neighbours(), content))
    show = partial(printed, 'run', '--automaton')
    assert show('--start', 'a\nb', '--start', 'dd') == (
        ' 0  a\n    b\n 1  ba\n    \n 2  \n    ba\n 3  a\n    b\npass 3 equals pass 0: a cycle of 3 passes\n' + LINE +
        ' 0  dd\n 1  dd\npass 1 changed nothing: a fixed point\n')
    assert show('--start', 'abc', '--reapply=2') == '0  abc\n1  cab\n2  bca\n'
    one, two = show('--start=abc', '--temperature=99', '--num_samples=2').split(LINE)
    assert one != two


@pytest.mark.parametrize('words', [['--arch=bert'], ['--arch=highorder', '--centered', '--features=5']], ids=str)
def test_fill_and_rewrite_by_a_run(dataset, tmp_path, words):
    """--fill prints the likeliest tokens for each blank; a character of a pass of --automaton follows from its neighbours."""
    tiny_run(dataset, tmp_path, '--max_iters=5', '--sample_tokens=0', *words, without=['n_head'])
    model, content = checkpoint.load_model(tmp_path)
    tokenizer = Tokenizer(content['data']['tokenizer'])
    text = 'a bad [MASK]ab. a bed add a [MASK]ag'           # longer than the window of 16
    x = [tokenizer.ids.get(c, -1) for c in text.replace('[MASK]', '#')]
    lines = printed(tmp_path, '--fill', text).splitlines()
    for line, at in zip(lines, [i for i, token in enumerate(x) if token < 0], strict=True):
        p = model.infill(torch.tensor([x]))[0, at, :tokenizer.n_vocab].softmax(-1)
        expected = [f'{tokenizer.decode([int(i)])!r} {p[i]:.1%}' for i in p.argsort(descending=True)[:5]]
        assert line.partition(': ')[2] == ', '.join(expected)
    text, seen, passes = 'a bad cab', [], printed(tmp_path, '--automaton', '--start', 'a bad cab', '--reapply=4')
    while text not in seen and len(seen) < 5:
        assert f'{len(seen)}  ' + text.replace('\n', '\n   ') in passes
        seen.append(text)
        logits = model.infill(torch.tensor([tokenizer.encode(text)]))[0, :, :tokenizer.n_vocab]
        text = tokenizer.decode(logits.argmax(-1).tolist())
    assert len(seen) > 1 and 'both sides' in sentence(sample.main, [str(tmp_path), '--start=a'])


def test_fill_by_a_published_bert(tmp_path):
    """With its own tokenizer, whose [CLS] and [SEP] are around the text."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'to', 'be', 'or', 'not', '##ing', ',']
    torch.manual_seed(0)
    theirs = BertForMaskedLM(BertConfig(vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                        intermediate_size=32, initializer_range=0.5)).eval()
    theirs.save_pretrained(tmp_path)
    BertWordPieceTokenizer({w: i for i, w in enumerate(words)}).save(str(tmp_path / 'tokenizer.json'))
    p = theirs(torch.tensor([[2, 5, 6, 10, 7, 4, 6, 9, 3]])).logits[0, 5].softmax(-1)
    expected = ', '.join(f'{words[i]!r} {p[i]:.1%}' for i in p.argsort(descending=True)[:5])
    assert printed('--pretrained', tmp_path, '--fill=To be, or [MASK] being') == f'[MASK] 1: {expected}\n'
    BertWordPieceTokenizer({w: i for i, w in enumerate(words) if i != 4}).save(str(tmp_path / 'tokenizer.json'))
    assert '[MASK]' in sentence(sample.main, ['--pretrained', str(tmp_path), '--fill=To be [MASK]'])


def test_export(run, tmp_path):
    """transformers computes the same logits; the printed numbers add up to what is written."""
    from safetensors.torch import load_file
    from transformers import GPT2LMHeadModel
    shown, (ours, _) = conftest.printed(export.main, [run, tmp_path]), checkpoint.load_model(run)
    x = torch.randint(ours.config.vocab_size, (2, 16))
    assert (GPT2LMHeadModel.from_pretrained(tmp_path)(x).logits - ours(x)[0]).abs().max() < 1e-4
    torch.testing.assert_close(gpt.Model.from_pretrained(str(tmp_path)).eval()(x)[0], ours(x)[0])
    parameters = sum(p.numel() for p in ours.parameters())
    zeros = sum(w.numel() for w in load_file(tmp_path / 'model.safetensors').values()) - parameters
    assert f'{parameters:,} parameters and {zeros:,} zeros' in shown and zeros > 0
