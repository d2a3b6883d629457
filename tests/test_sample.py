"""Generation: what is drawn, what is streamed, and the command line of sample.py and export.py."""

import dataclasses
import math
import re

import pytest
import torch
from conftest import tiny_train

import mamba
import model as gpt
import pacing
import sample
import train
import wavenet
from harness import UserError, checkpoint
from harness.generate import automaton, benchmark, describe, draw, generate, reapply
from harness.tokenizer import Tokenizer


@pytest.fixture(scope='module')
def run(dataset, tmp_path_factory):
    """The folder of a finished run of GPT."""
    out = tmp_path_factory.mktemp('sample') / 'run'
    train.main(tiny_train(dataset, out, '--max_iters=20')[1:])
    return out


def ids(model, prompt, count, **more):
    return torch.stack(list(generate(model, prompt, count, **more)), dim=1)


def test_drawing_keeps_to_its_limits():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 9.0]]).repeat(4000, 1)
    g = torch.Generator().manual_seed(0)

    def drawn(*rest):
        return set(draw(logits, *rest, generator=g).tolist())
    assert drawn(1.0, 0, 1.0, 4) == {0, 1, 2, 3}            # id 4 does not exist
    assert drawn(0, 0, 1.0, 4) == {0}
    assert drawn(1.0, 2, 1.0, 4) == {0, 1}
    assert drawn(1.0, 100, 1.0, 4) == {0, 1, 2, 3}          # top_k above the vocabulary
    assert drawn(1.0, 0, 0.65, 4) == {0, 1}                 # 0.64 alone is not enough
    assert drawn(1.0, 0, 0.01, 4) == {0}
    assert drawn(1e-4, 0, 1.0, 4) == {0}


def test_drawing_follows_the_distribution():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(20_000, 1)
    for temperature in (1.0, 0.5):
        p = torch.tensor([0.5, 0.3, 0.2]) ** (1 / temperature)
        counts = draw(logits, temperature, 0, 1.0, generator=torch.Generator().manual_seed(0)).bincount(minlength=3)
        assert (counts / 20_000 - p / p.sum()).abs().max() < 0.015


STEPPING = {'gpt': (gpt, {}), 'pacing': (pacing, {}), 'memory': (wavenet, {}), 'causal': (wavenet, {'reads': 'causal'}),
            'mamba': (mamba, {})}


@pytest.fixture(params=STEPPING.values(), ids=STEPPING)
def model(request):
    """A model that has a step(), at weights that are not those of the start."""
    arch, change = request.param
    torch.manual_seed(0)
    model = arch.Model(dataclasses.replace(arch.Config.tiny(), **change)).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def test_prompts_of_different_lengths_give_what_they_give_alone(model):
    """In batches of equal length, each row with a generator of its own."""
    def generators(seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]
    prompts = torch.randint(17, (3, 20))
    together = ids(model, prompts, 30, generator=generators([1, 2, 3]))
    for i in range(3):
        assert torch.equal(together[i:i + 1], ids(model, prompts[i:i + 1], 30, generator=generators([i + 1])))


def test_benchmark(model):
    found = benchmark(model, torch.zeros(1, 3, dtype=torch.long), 12, most=4)
    assert found['first'] > 0 and found['rate'] > 0 and found['reread'] > 0 and found['growth'] is None
    assert 'tokens/s' in describe(found) and 'last thousand' not in describe(found)
    model.step = None
    assert benchmark(model, torch.zeros(1, 3, dtype=torch.long), 4)['reread'] is None


def test_with_and_without_state(model):
    """step() and reading the window anew draw the same tokens, up to the end of the window."""
    prompt = torch.randint(17, (2, 3))
    fast = ids(model, prompt, 13, temperature=0)
    assert torch.equal(fast, ids(model, prompt, 13, temperature=0, reread=True))
    model.step = None
    assert torch.equal(fast, ids(model, prompt, 13, temperature=0))


def test_a_batch_differs_row_by_row_and_a_seed_repeats():
    torch.manual_seed(0)
    model = gpt.Model(gpt.Config.tiny()).eval()
    first, again, other = (ids(model, torch.zeros(8, 1, dtype=torch.long), 20, generator=torch.Generator().manual_seed(s))
                           for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) == 8 and len(set(first[:, 0].tolist())) > 1


def test_a_padded_vocabulary_is_never_drawn():
    model = gpt.Model(gpt.Config.tiny()).eval()
    assert ids(model, torch.zeros(4, 1, dtype=torch.long), 60, n_vocab=3, temperature=5.0).max() <= 2


def test_sample(run, cli, tmp_path):
    """Past the window of 16, several samples, a prompt from a file, the same text for the same seed."""
    (tmp_path / 'prompt.txt').write_text('abc')
    words = ['sample.py', run, '--max_new_tokens', '40', '--num_samples', '2', '--seed', '1']
    first, again, other = (cli(*words, *more) for more in (['--start', 'abc'], ['--start', f'FILE:{tmp_path / "prompt.txt"}'],
                                                           ['--start', 'abc', '--seed', '2']))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout != other.stdout
    one, two = first.stdout.split('-' * 80 + '\n')
    assert one.startswith('abc') and two.startswith('abc') and one != two
    assert len(one) == len(two) == 3 + 40 + 1


def test_the_tokenizer_comes_from_the_checkpoint(run, dataset, cli):
    """A run is sampled from where its data set is not."""
    hidden = dataset.with_name(dataset.name + '_hidden')
    dataset.rename(hidden)
    try:
        done = cli('sample.py', run / 'best.pt', '--temperature', '0', '--max_new_tokens', '5')
    finally:
        hidden.rename(dataset)
    assert done.returncode == 0 and len(done.stdout) == 1 + 5 + 1


def test_export(run, cli, tmp_path):
    from transformers import GPT2LMHeadModel

    done = cli('export.py', run, tmp_path / 'hub')
    assert done.returncode == 0, done.stderr
    ours, _ = checkpoint.load_model(run)
    x = torch.randint(ours.config.vocab_size, (2, 16))
    with torch.no_grad():
        assert (GPT2LMHeadModel.from_pretrained(tmp_path / 'hub')(x).logits - ours(x)[0]).abs().max() < 1e-4
    again = gpt.Model.from_pretrained(str(tmp_path / 'hub')).eval()
    torch.testing.assert_close(again(x)[0], ours(x)[0])


def test_export_of_a_rival_is_refused(dataset, tmp_path, refused):
    train.main([w for w in tiny_train(dataset, tmp_path / 'run', '--arch=pacing', '--max_iters=1') if 'n_head' not in w][1:])
    assert "arch 'pacing' has no counterpart" in refused('export.py', tmp_path / 'run', tmp_path / 'hub')


def test_begin_without_a_line_break():
    assert Tokenizer({'kind': 'char', 'chars': ['a', 'b']}).begin() == [0]
    assert Tokenizer({'kind': 'bytes'}).begin() == [10]
    with pytest.raises(UserError, match='unknown kind'):
        Tokenizer({'kind': 'morse'})


def test_several_starts(run, cli):
    """Of different lengths in one call: each text is what its start and its seed give alone."""
    both = cli('sample.py', run, '--start', 'ab', '--start', 'a bad', '--max_new_tokens', 20, '--seed', 5).stdout
    alone = [cli('sample.py', run, '--start', start, '--max_new_tokens', 20, '--seed', seed).stdout
             for start, seed in (('ab', 5), ('a bad', 6))]
    assert both == f'{alone[0]}{"-" * 80}\n{alone[1]}'
    assert 'tokens/s; reading the window anew' in cli('sample.py', run, '--benchmark', '--max_new_tokens', 10).stdout


def test_published_weights_with_other_tokens_are_refused(refused):
    """GPT-2's tokenizer would make a text of Mamba's ids, but not the one that they mean."""
    assert 'tokenizer of their own' in refused('sample.py', '--pretrained', 'state-spaces/mamba-130m-hf', '--arch', 'mamba')


# the automaton --------------------------------------------------------------------------------------------------------------

class Neighbours(torch.nn.Module):
    """Says of each token that it is the one `reach` before it, on a ring; and of how surely by `sharp`."""
    centered = True

    def __init__(self, reach=1, sharp=9.0):
        super().__init__()
        self.reach, self.config = reach, gpt.Config.tiny()
        self.sharp = torch.nn.Parameter(torch.tensor(sharp))

    def both_sides(self, x):
        return self.sharp * torch.nn.functional.one_hot(x.roll(self.reach, 1), 17).float()


def test_a_pass_replaces_all_at_once():
    x = torch.tensor([[1, 2, 3, 4, 5], [6, 6, 7, 8, 9]])
    assert reapply(Neighbours(), x).tolist() == [[5, 1, 2, 3, 4], [9, 6, 6, 7, 8]]      # one by one, all would be the first
    assert reapply(Neighbours(-2), x).tolist() == [[3, 4, 5, 1, 2], [7, 8, 9, 6, 6]]
    assert reapply(Neighbours(sharp=-9.0), x, n_vocab=2).max() <= 1


def test_a_pass_draws():
    """e of 16 + e, for the token that the model holds likeliest."""
    x = torch.arange(17).repeat(400, 1)
    drawn = reapply(Neighbours(sharp=1.0), x, 1.0, generator=torch.Generator().manual_seed(0))
    assert (drawn == x.roll(1, 1)).float().mean().item() == pytest.approx(math.e / (16 + math.e), abs=0.015)
    assert torch.equal(drawn, reapply(Neighbours(sharp=1.0), x, 1.0, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(reapply(Neighbours(sharp=1.0), x, 1.0, top_k=1), x.roll(1, 1))


def test_the_automaton_ends_where_it_knows_what_follows():
    g = torch.Generator().manual_seed(0)
    turned = list(automaton(Neighbours(), [1, 2, 3], 10))
    assert turned == [([1, 2, 3], None), ([3, 1, 2], None), ([2, 3, 1], None), ([1, 2, 3], 0)]
    assert list(automaton(Neighbours(), [4, 4], 10)) == [([4, 4], None), ([4, 4], 0)]
    assert list(automaton(Neighbours(), [1, 2, 3], 2))[-1] == ([2, 3, 1], None)
    assert list(automaton(Neighbours(), [4, 4], 10, 1.0, 1, generator=g))[-1] == ([4, 4], 0)
    drawn = list(automaton(Neighbours(sharp=99.0), [4, 4], 10, 1.0, generator=g))       # chance may change it the next time
    assert drawn == [([4, 4], None)] * 11


@pytest.fixture
def fake(run, monkeypatch):
    """sample.py reads the run as one of Neighbours(), whose characters are those of the test data."""
    content = checkpoint.load_model(run)[1]
    monkeypatch.setattr(checkpoint, 'load_model', lambda path: (Neighbours(), content))
    return ['run', '--automaton', '--device=cpu']


def test_the_automaton_prints_each_pass(fake, capsys):
    sample.main([*fake, '--start', 'a\nb', '--start', 'dd'])
    assert capsys.readouterr().out == (' 0  a\n    b\n 1  ba\n    \n 2  \n    ba\n 3  a\n    b\n'
                                       'pass 3 is pass 0 again: a cycle of 3 passes\n' + '-' * 80 +
                                       '\n 0  dd\n 1  dd\npass 1 changed nothing, so no other will\n')
    sample.main([*fake, '--start', 'abc', '--reapply=2'])
    assert capsys.readouterr().out == '0  abc\n1  cab\n2  bca\n'
    sample.main([*fake, '--start=abc', '--temperature=99', '--num_samples=2'])
    one, two = (part.splitlines() for part in capsys.readouterr().out.split('-' * 80 + '\n'))
    assert one[0] == two[0] == ' 0  abc' and one != two


def test_a_centered_model_writes_no_text(fake):
    for words in ([], ['--benchmark'], ['--eval']):
        with pytest.raises(UserError, match=r'run: .* both sides .* cannot continue a text: say --automaton --start'):
            sample.main(['run', *words])


@pytest.mark.parametrize('words, said', [([], '--automaton changes a text: say which by --start'),
                                         (['--start=a', '--benchmark'], 'not allowed with argument'),
                                         (['--start=a', '--reapply=0'], '--reapply=0: at least 1 is wanted'),
                                         (['--start=aX'], "no token for 'X'")])
def test_the_automaton_is_refused(fake, words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        sample.main([*fake, *words])


def test_the_automaton_needs_both_sides(run, refused):
    assert 'from what is before it alone, and not from both its sides: take a run with --centered' in \
        refused('sample.py', run, '--automaton', '--start=a')


def test_the_automaton_of_a_network(dataset, cli, tmp_path):
    """Each character of a pass, from the model and a text of its neighbours alone."""
    words = tiny_train(dataset, tmp_path / 'run', '--arch=highorder', '--network=high_order', '--centered', '--features=5',
                       '--max_iters=30', '--sample_tokens=0')[1:]
    train.main(words)
    done = cli('sample.py', tmp_path / 'run', '--automaton', '--start', 'a bad cab', '--reapply=4')
    assert done.returncode == 0, done.stderr
    model, content = checkpoint.load_model(tmp_path / 'run')
    tokenizer, ids = Tokenizer(content['data']['tokenizer']), None
    text, expected = 'a bad cab', {}
    for k in range(5):
        expected[text] = expected.get(text, k)
        assert f'{k}  ' + text.replace('\n', '\n   ') in done.stdout
        if expected[text] != k:
            break
        ids = [-1, -1, *tokenizer.encode(text), -1, -1]
        around = torch.tensor([[*ids[i:i + 2], -1, *ids[i + 3:i + 5]] for i in range(len(text))])
        text = tokenizer.decode(model.both_sides(around)[:, 2].argmax(-1).tolist())
    assert len(expected) > 1
