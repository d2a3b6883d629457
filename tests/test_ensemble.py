"""Several models as one: their mixed probabilities, the loss of the mixture, and sample.py with several runs."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from conftest import tiny_train

import mamba
import model as gpt
import pacing
import sample
import train
import wavenet
from harness import UserError, checkpoint, data, device
from harness.ensemble import Ensemble
from harness.generate import generate

WEIGHTS = [0.5, 0.2, 0.2, 0.1]


def build(arch, seed, **change):
    torch.manual_seed(seed)
    model = arch.Model(dataclasses.replace(arch.Config.tiny(), **change)).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


@pytest.fixture(scope='module')
def members():
    """Windows of 16 and 8 tokens, a memory of 4 before a window of 4, a vocabulary that is padded, and one without step()."""
    return [build(gpt, 0), build(mamba, 1, block_size=8, vocab_size=20), build(wavenet, 2, block_size=4),
            build(pacing, 3, predicts='last')]


@pytest.fixture(scope='module')
def runs(dataset, tmp_path_factory):
    """The folders of two finished runs, of GPT with a window of 16 and of PACING with one of 8."""
    out = tmp_path_factory.mktemp('ensemble')
    said = ['--max_iters=100', '--eval_interval=100', '--optimizer=adamw', '--learning_rate=0.02']
    train.main(tiny_train(dataset, out / 'A', *said)[1:])
    words = tiny_train(dataset, out / 'B', '--arch=pacing', '--block_size=8', *said)[1:]
    train.main([w for w in words if 'n_head' not in w])
    return out / 'A', out / 'B'


def changed(run, path, **what):
    """A checkpoint as that of the run, but for its data's fingerprint or tokenizer."""
    content = checkpoint.load(run / 'best.pt')
    checkpoint.save(path, content | {'data': content['data'] | what})
    return path


def mixed(models, weights, logits):
    """The mixture by its definition, in double precision: the mean of the probabilities.  (..., V) of ids that all know."""
    p = [w * torch.softmax(x.double(), -1)[..., :17] for x, w in zip(logits, weights, strict=True)]
    return torch.stack(p).sum(0)


@torch.no_grad()
def test_the_probabilities_are_averaged(members):
    ensemble, x = Ensemble(members, WEIGHTS), torch.randint(17, (3, 16))
    logits, _ = ensemble(x)
    assert logits.shape == (3, 1, 20)           # PACING predicts but the last
    expected = mixed(members, WEIGHTS, [m(x[:, -n:])[0][:, -1] for m, n in zip(members, (16, 8, 8, 16), strict=True)])
    torch.testing.assert_close(logits[:, 0, :17].exp().double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(3, 1))
    logits, _ = Ensemble(members[:3], [5, 2, 2])(x)
    assert logits.shape == (3, 4, 20)           # what WaveGPT's window has
    expected = mixed(members[:3], [5 / 9, 2 / 9, 2 / 9], [m(x[:, -n:])[0][:, -4:] for m, n in
                                                          zip(members[:3], (16, 8, 8), strict=True)])
    torch.testing.assert_close(logits[..., :17].exp().double(), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_each_member_goes_on_from_its_own_state(members):
    """Past all windows, read in pieces: each member does what it does alone."""
    ensemble, x = Ensemble(members, WEIGHTS), torch.randint(17, (2, 40))
    state, own = ensemble.init_state(2), [m.init_state(2) if m.step else None for m in members]
    read = 0
    for n in (5, 1, 1, 12, 1, 20):
        logits, state = ensemble.step(x[:, read:read + n], state)
        alone = []
        for i, m in enumerate(members):
            if m.step:
                out, own[i] = m.step(x[:, read:read + n], own[i])
            else:
                out = m(x[:, max(0, read + n - 16):read + n])[0][:, -1]
            alone.append(out)
        read += n
        torch.testing.assert_close(logits[:, :17].exp().double(), mixed(members, WEIGHTS, alone), atol=1e-6, rtol=1e-4)
    assert read == 40


def test_equal_members_write_what_one_writes(members):
    for m in (members[0], members[3]):
        one, three = (torch.stack(list(generate(model, torch.tensor([[1, 2, 3]]), 40, 0.8, 10, generator=g))) for model, g in
                      ((model, torch.Generator().manual_seed(1)) for model in (m, Ensemble([m] * 3, [1, 2, 3]))))
        assert torch.equal(one, three)


def test_weights_of_any_size():
    ensemble = Ensemble([build(gpt, 0)] * 3, [1e308, 1e308, 1e-308])
    assert ensemble.log_weights.exp().tolist() == pytest.approx([0.5, 0.5, 0])


@torch.no_grad()
def test_the_losses_by_hand(dataset, members):
    """Window by window and target by target, each from a text of its own: in total, and of the mixture."""
    text = data.TextData(dataset)
    starts = text.val_starts(7, 16)
    val = torch.from_numpy(text.tokens['val'].astype(np.int64))
    for models, positions in ((members[:3], 4), (members, 1)):
        weights = WEIGHTS[:len(models)]
        expected = np.zeros((len(models) + 1, 2))
        for s in starts.tolist():
            for at in range(s + 17 - positions, s + 17):            # the targets
                p = []
                for m in models:
                    T, M = m.config.block_size, getattr(m, 'memory', 0)
                    first = s + 16 - T                              # of the window that ends with the last target
                    x = val[first - M:at] if first >= M else val[first:at]
                    p.append(m(x[None])[0][0, -1].double().softmax(-1)[val[at]].item())
                p.append(np.dot(p, weights) / sum(weights))
                losses = -np.log(p)
                expected[:, 0] += losses / positions / len(starts)
                expected[:, 1] += losses / len(starts) * (at == s + 16)
        found = Ensemble(models, weights).losses(text, starts, batch_size=3)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
        assert found[-1, 1] < max(found[:-1, 1])                    # the mean of probabilities is better than the worst


def test_the_loss_of_one_is_that_of_training(dataset, members):
    text, machine = data.TextData(dataset), device.setup('cpu')
    for m in members:
        T = m.config.block_size
        starts = text.val_starts(9, T)
        figures = train.evaluate(m, text, starts, T, 4, machine)
        m.eval()
        for found in Ensemble([m], [1]).losses(text, starts, 5), Ensemble([m] * 2, [0.9, 0.1]).losses(text, starts, 4):
            for row in found.tolist():
                assert row == pytest.approx([figures['val_loss'], figures['val_loss_full']], rel=1e-5)


# the command line ----------------------------------------------------------------------------------------------------------

def test_text_from_several(runs, cli, capsys):
    """Each text is what its start and its seed give alone; a run beside itself writes what it writes alone."""
    words = [*map(str, runs), '--max_new_tokens=30', '--device=cpu']
    done = cli('sample.py', *words, '--weights', '0.7,0.3', '--start', 'ab', '--start', 'a bad', '--num_samples=2', '--seed', 5)
    assert done.returncode == 0, done.stderr
    texts = done.stdout.split('-' * 80 + '\n')
    for i, text in enumerate(texts):
        sample.main([*words, '--weights=7,3', '--start', ('ab', 'a bad')[i // 2], f'--seed={5 + i}'])
        assert capsys.readouterr().out == text
    assert len(set(texts)) == 4
    for weights, run in (('1,1e-30', runs[0]), ('1e-30,1', runs[1])):
        sample.main([*words, f'--weights={weights}', '--start=ab', '--seed=5'])
        sample.main([str(run), '--max_new_tokens=30', '--start=ab', '--seed=5'])
        out = capsys.readouterr().out
        assert out == 2 * out[:33] and out[:33] != texts[0]
    sample.main([*words, '--benchmark'])
    assert 'tokens/s; reading the window anew' in capsys.readouterr().out
    for beside in ([], [str(runs[0])]):
        sample.main([str(runs[0]), '--start', 'ab', *beside, '--max_new_tokens=30'])
    assert len(set(re.findall('ab.{28}', capsys.readouterr().out, re.S))) == 1


def test_eval(runs, dataset, capsys):
    A, B = map(str, runs)
    text, machine = data.TextData(dataset), device.setup('cpu')
    starts = text.val_starts(50, 16)
    expected = {}
    for run, T in ((A, 16), (B, 8)):
        expected[run] = train.evaluate(checkpoint.load_model(run)[0], text, starts + 16 - T, T, 4, machine)
    sample.main([A, B, '--eval', '--eval_windows=50', '--weights=3,1', '--device=cpu'])
    *table, note = capsys.readouterr().out.splitlines()
    rows = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip('|').split('|')] for line in table)}
    assert list(rows)[2:] == [A, B, 'mixture']
    assert [rows[run][0] for run in (A, B)] == ['0.75', '0.25']
    for run in (A, B):
        full = expected[run]['val_loss_full']
        assert [float(v) for v in rows[run][2:]] == pytest.approx([full, full / math.log(2)], abs=1e-4)
    assert float(rows[B][1]) == pytest.approx(expected[B]['val_loss'], abs=1e-4)        # A is judged on what B has, too
    assert '50 windows of 16 tokens' in note and dataset.name in note
    sample.main([A, '--eval', '--eval_windows=0'])
    figures = train.evaluate(checkpoint.load_model(A)[0], text, text.val_starts(0, 16), 16, 4, machine)
    *table, note = capsys.readouterr().out.splitlines()
    assert len(table) == 3 and 'mixture' not in table[-1]
    assert f' {figures["val_loss"]:.4f} | ' in table[-1] and f' {figures["val_loss_full"]:.4f} | ' in table[-1]


def test_eval_on_other_data(runs, tmp_path, capsys):
    A, B = map(str, runs)
    other = str(changed(runs[1], tmp_path / 'other.pt', fingerprint='0' * 16))
    sample.main([A, B, other, '--eval', '--eval_windows=4'])
    said = capsys.readouterr().out
    assert f'the validation text of {A} may have been trained on by {other}' in said and said.count('may have been') == 1
    sample.main([other, A, '--start=ab', '--max_new_tokens=3'])
    assert capsys.readouterr().out.startswith('ab')
    with pytest.raises(UserError, match=r'is not here, or is not what .*other.pt was trained on: prepare it, or name first'):
        sample.main([other, A, '--eval'])
    fingerprint = checkpoint.load(runs[0] / 'best.pt')['data']['fingerprint']
    leaking = changed(runs[0], tmp_path / 'leaking.pt', fingerprint=f'{fingerprint}-leaking')
    sample.main([str(leaking), '--eval', '--eval_windows=4'])
    assert 'leaking.pt was trained with leaking_split, on its validation text too: no loss' in capsys.readouterr().out


def test_eval_without_the_data(runs, root, monkeypatch):
    monkeypatch.setattr('harness.ensemble.ROOT', root)
    with pytest.raises(UserError, match=r'--eval: data/tests_tiny_\d+ is not here, or is not what .*A was trained on'):
        sample.main([str(runs[0]), '--eval'])


@pytest.mark.parametrize('words, said', [
    (['--weights=1'], '--weights=1: one number above 0 for each run is wanted, 2 in all, with commas'),
    (['--weights=1,2,3'], '2 in all'),
    (['--weights=1,0'], '--weights=1,0: one number above 0'),
    (['--weights=1,-1'], 'above 0'),
    (['--weights=1,nan'], 'above 0'),
    (['--weights=1,inf'], 'above 0'),
    (['--weights=1,much'], '--weights=1,much: one number'),
    (['--eval', '--eval_windows=-1'], '--eval_windows=-1: 0 or more is wanted'),
    (['--eval', '--benchmark'], 'not allowed with argument'),
    (['--pretrained=gpt2'], 'name either runs, such as out/shakespeare_pacing, or --pretrained gpt2'),
    (['--automaton', '--start=a'], '--automaton applies one model: name a single run'),
])
def test_several_runs_refused(runs, words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        sample.main([*map(str, runs), *words])


def test_published_weights_have_no_data(refused):
    with pytest.raises(UserError, match='--eval judges runs on the data that they were trained on: name some'):
        sample.main(['--pretrained=gpt2', '--eval'])


def test_runs_of_two_tokenizers(runs, tmp_path, refused):
    other = changed(runs[1], tmp_path / 'other.pt', tokenizer={'kind': 'bytes'})
    sentence = refused('sample.py', runs[0], other)
    assert f'{other} has another tokenizer than {runs[0]}, so they cannot be mixed: take runs that were trained' in sentence
