"""Ensembles: the mixed probabilities, the loss of the mixture, and sample.py with several runs."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import sentence, tiny_train

import mamba
import model as gpt
import pacing
import sample
import train
import wavenet
from harness import checkpoint, data, device
from harness.arch import complete
from harness.ensemble import Ensemble

WEIGHTS = [0.5, 0.2, 0.2, 0.1]


def build(arch, seed, **change):
    torch.manual_seed(seed)
    model = complete(arch.Model(dataclasses.replace(arch.Config.tiny(), **change))).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


@pytest.fixture(scope='module')
def members():
    """Windows of 16 and 8 tokens, a memory of 4 before a window of 4, a padded vocabulary, and a model without step()."""
    return [build(gpt, 0), build(mamba, 1, block_size=8, vocab_size=20), build(wavenet, 2, block_size=4),
            build(pacing, 3, predicts='last')]


@pytest.fixture(scope='module')
def runs(dataset, tmp_path_factory):
    """The folders of two finished runs, of GPT with a window of 16 and of PACING with one of 8."""
    out = tmp_path_factory.mktemp('ensemble')
    more = ['--max_iters=40', '--eval_interval=40', '--optimizer=adamw', '--learning_rate=0.02']
    train.main(tiny_train(dataset, out / 'A', *more)[1:])
    words = tiny_train(dataset, out / 'B', '--arch=pacing', '--block_size=8', *more)[1:]
    train.main([w for w in words if 'n_head' not in w])
    return str(out / 'A'), str(out / 'B')


@pytest.fixture
def printed(capsys):
    """What sample.py prints for a command line."""
    return lambda *words: (sample.main(list(map(str, words))), capsys.readouterr().out)[1]


def changed(run, path, **values):
    """A checkpoint like that of the run, with another fingerprint or tokenizer of its data."""
    content = checkpoint.load(checkpoint.find(run))
    checkpoint.save(path, {k: v for k, v in content.items() if k != 'format'} | {'data': content['data'] | values})
    return str(path)


def mixed(weights, logits):
    """The mean of the probabilities, for the 17 ids that all members know."""
    return sum(w * x.double().softmax(-1)[..., :17] for x, w in zip(logits, weights, strict=True))


@torch.no_grad()
@pytest.mark.parametrize('count, weights, positions', [(4, WEIGHTS, 1), (3, [5, 2, 2], 4)])
def test_the_mixture_is_the_mean_of_the_probabilities(members, count, weights, positions):
    x = torch.randint(17, (3, 16))
    logits, _ = Ensemble(members[:count], weights)(x)
    assert logits.shape == (3, positions, 20)           # of the member with the fewest
    expected = mixed([w / sum(weights) for w in weights],
                     [m(x[:, -n:])[0][:, -positions:] for m, n in zip(members[:count], (16, 8, 8, 16), strict=False)])
    torch.testing.assert_close(logits[..., :17].exp().double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(3, positions))


@torch.no_grad()
def test_each_member_keeps_its_own_state(members):
    """Beyond all windows, read in pieces."""
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
        torch.testing.assert_close(logits[:, :17].exp().double(), mixed(WEIGHTS, alone), atol=1e-6, rtol=1e-4)


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
            losses = -np.log(p)
            expected[:, 0] += losses / positions / len(starts)
            expected[:, 1] += losses / len(starts) * (target == s + 16)
    np.testing.assert_allclose(Ensemble(models, weights).losses(text, starts, batch_size=3).numpy(), expected, rtol=1e-5)


def test_text_from_several_runs(runs, printed):
    """A text depends on its start and its seed only; with nearly all of the weight, a run generates what it does alone."""
    words = ['--max_new_tokens=20', '--device=cpu']
    together = printed(*runs, *words, '--weights=0.7,0.3', '--start=ab', '--start=a bad', '--seed=5')
    for i, text in enumerate(together.split('-' * 80 + '\n')):
        assert text == printed(*runs, *words, '--weights=7,3', '--start', ('ab', 'a bad')[i], f'--seed={5 + i}')
    alone = [printed(run, *words, '--start=ab') for run in runs]
    assert alone == [printed(*runs, *words, f'--weights={w}', '--start=ab') for w in ('1,1e-30', '1e-30,1')]


def table(printed):
    """({run: its other cells}, the lines below the table)"""
    lines = printed.splitlines()
    cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines if line.startswith('|')]
    return {row[0]: row[1:] for row in (cells[0], *cells[2:])}, '\n'.join(lines[len(cells):])


def test_eval(runs, dataset, printed):
    A, B = runs
    text = data.TextData(dataset)
    starts = text.val_indices(50, 16)
    rows, note = table(printed(A, B, '--eval', '--eval_windows=50', '--weights=3,1', '--device=cpu'))
    assert list(rows) == ['run', A, B, 'mixture'] and '50 windows of 16 tokens' in note and dataset.name in note
    for run, weight, T in ((A, '0.75', 16), (B, '0.25', 8)):
        expected = train.evaluate(checkpoint.load_model(run)[0], text, starts + 16 - T, 4, device.setup('cpu'))
        full = expected['val_loss_full']
        assert rows[run][0] == weight
        assert [float(v) for v in rows[run][2:]] == pytest.approx([full, full / math.log(2)], abs=1e-4)
    assert float(rows[B][1]) == pytest.approx(expected['val_loss'], abs=1e-4)       # A is scored at the positions of B
    assert list(table(printed(A, '--eval'))[0]) == ['run', A]


def test_eval_on_other_data(runs, tmp_path, printed, monkeypatch):
    A, B = runs
    other = changed(B, tmp_path / 'other.pt', fingerprint='0' * 16)
    _, note = table(printed(A, B, other, '--eval', '--eval_windows=4'))
    assert f'{other} may have been trained on the validation text of {A}' in note and note.count('may have been') == 1
    fingerprint = checkpoint.load(f'{A}/best.pt')['data']['fingerprint']
    leaking = changed(A, tmp_path / 'leaking.pt', fingerprint=f'{fingerprint}-leaking')
    assert f'{leaking} was trained with leaking_split' in printed(leaking, '--eval', '--eval_windows=4')
    bytes_ = changed(B, tmp_path / 'bytes.pt', tokenizer={'kind': 'bytes'})
    assert all(part in sentence(sample.main, [A, bytes_]) for part in (A, bytes_, 'tokenizer'))
    assert f'is not the data that {other} was trained on' in sentence(sample.main, [other, A, '--eval'])
    monkeypatch.setattr(data, 'ROOT', tmp_path)
    assert 'is missing' in sentence(sample.main, [A, '--eval'])


@pytest.mark.parametrize('words, said', [
    *(([f'--weights={w}'], f'--weights={w} ') for w in ('1', '1,2,3', '1,0', '1,-1', '1,nan', '1,inf', '1,much')),
    (['--eval', '--eval_windows=-1'], '--eval_windows=-1'), (['--eval', '--benchmark'], 'not allowed with argument'),
    (['--pretrained=gpt2'], '--pretrained'), (['--automaton', '--start=a'], '--automaton')])
def test_bad_commands(runs, words, said):
    assert said in sentence(sample.main, [*runs, *words])
    assert '--eval' in sentence(sample.main, ['--pretrained=gpt2', '--eval'])
