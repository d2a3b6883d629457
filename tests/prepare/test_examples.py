"""Small tasks as texts with answers: each script against brute force, what is scored, and every text model on them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import sentence

import compare
import look
import model as gpt
import sample
import train
from harness import ROOT, data, device
from harness.arch import complete
from harness.examples import last_answer
from prepare.examples import split_of
from race.entrants import read

BALL = dict(zip('abcdefghij', [(a, b) for a in range(5) for b in range(a + 1, 5)], strict=True))


def s5(x, t):
    cups = ['ball', '', '', '', '']
    for c in x[:t + 1].strip():
        a, b = BALL[c]
        cups[a], cups[b] = cups[b], cups[a]
    return str(cups.index('ball') + 1)


def after_mark(make):
    """The answers of a task whose answer to the text before '=' is make(text)."""
    def answer(x, t):
        before, _, given = x[:t + 1].strip().partition('=')
        return make(before)[len(given)] if '=' in x[:t + 1] else ' '
    return answer


# {script: (settings, what is to be answered at position t of a window x, or ' ' where nothing may be asked)}
TASKS = {
    'copying': (['--length=8'], after_mark(str)),
    'sorting': (['--length=8'], after_mark(sorted)),
    'recall': (['--pairs=8'], lambda x, t: dict(zip(*[iter(x.strip().partition('=')[0])] * 2, strict=True)).get(
        x[t], ' ') if '=' in x[:t] else ' '),
    'induction': (['--length=8'], lambda x, t: x[x.rindex(x[t], 0, t) + 1] if x[t] in x[:t] else ' '),
    'parity': (['--length=16'], lambda x, t: str(x[:t + 1].count('1') % 2)),
    's5': (['--length=16'], s5),
    'needle': (['--length=16'], lambda x, t: x[x.index('#') + 1] if x[t] == '?' else ' ')}


@pytest.mark.parametrize('task', TASKS)
def test_answers_are_right(prepare, task):
    words, answer = TASKS[task]
    made, seen, lengths = data.open_data(prepare(f'{task}.py', *words, '--examples=300')), {}, set()
    dense, trained = task in ('induction', 'parity', 's5', 'needle'), made.meta['answers']['trained']
    for split in ('train', 'val', 'test'):
        text = made.tokenizer.decode(made.tokens[split].tolist())
        for i, start in enumerate(range(0, len(text), made.stride)):
            x, y = text[start:start + made.size], text[start + made.size:start + made.stride]
            asked = [t for t, c in enumerate(y) if c != ' ']
            assert asked and all(y[t] == answer(x, t) for t in asked), (x, y)
            place = slice(len(x) - len(x.lstrip()), len(x.rstrip()))
            assert ' ' not in x[place] and not y[:place.start].strip() and not y[place.stop:].strip()
            if split == 'test' and dense:       # only the last answer is asked for
                assert asked == [len(x[:place.stop]) - 1]
            else:
                known = (x[place], y[place])
                assert seen.setdefault(known, split) == split and split_of(*known) == split, 'in two splits'
                must = {t for t in range(len(x)) if x[t] != ' ' and answer(x, t) != ' '}
                # what is longer ago than in training is not asked for
                assert {t for t in must if task != 'induction' or t - x.rindex(x[t], 0, t) <= trained} <= {*asked}
            last = asked[-1]
            length = {'recall': x[place].find('=') // 2, 'parity': len(x[place]), 's5': len(x[place]), 'needle': last - x.find(
                '#') - 1, 'induction': last - x.rfind(x[last], 0, last)}.get(task, x[place].find('='))
            if split == 'test':
                assert length == int([*made.parts][i // 500])
            else:
                assert 1 <= length <= trained
                lengths.add(length)
    assert lengths == set(range(1, trained + 1)) and [*map(int, made.parts)] == [trained * k // 4 for k in (1, 2, 4, 6, 8)]
    assert 0 < made.chance()['accuracy'] < 0.7 and made.chance()['parts'].keys() == made.parts.keys()
    if task not in ('induction', 'needle'):         # all places of a window are used
        assert all((made.windows('train', made.starts('train'), made.size)[0] > 0).any(0))


def test_a_seed_decides_the_examples(prepare, root):
    prints = [data.open_data(prepare('copying.py', '--length=4', '--examples=50', f'--seed={seed}', '--overwrite')).fingerprint
              for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


@pytest.fixture
def copying(prepare):
    return data.open_data(prepare('copying.py', '--length=4', '--examples=100'))


def test_what_is_scored(copying):
    """By hand, with logits that are right at some answers; and the one answer of a model that predicts after the window."""
    x, y = copying.windows('test', copying.parts['4'][:6], copying.size)
    logits = torch.nn.functional.one_hot(y.clamp(min=0), copying.vocab_size).float() * 9
    at = last_answer(y)
    assert at.tolist() == [max(t for t in range(copying.size) if row[t] >= 0) for row in y]
    logits[0, at[0]] = 0                # not right: token 0 is never an answer
    logits[1, at[1] - 1] = 0
    wrong, right = np.log(copying.vocab_size), np.log(np.exp(9) + copying.vocab_size - 1) - 9
    found = copying.total([copying.score(logits[:3], x[:3], y[:3]), copying.score(logits[3:], x[3:], y[3:])])
    assert found == pytest.approx({'val_loss': (2 * wrong + 22 * right) / 24, 'val_loss_full': (wrong + 5 * right) / 6,
                                   'accuracy': 22 / 24, 'accuracy_full': 5 / 6}, abs=1e-5)

    model, starts = complete(gpt.Model(gpt.Config.tiny())), copying.starts('train')[:6]
    (_, every), (_, one) = (copying.train_batch(starts, model, SimpleNamespace(last_only=v), 0) for v in (False, True))
    assert torch.equal(one.amax(1), every[range(6), last_answer(every)]) and ((one >= 0).sum(1) == 1).all()
    model.predicts = 'last'
    x2, y2 = copying.batch('test', copying.parts['4'][:6], model)
    texts = [[copying.tokenizer.decode(row.tolist()).strip() for row in rows] for rows in (x, x2)]
    assert texts[0] == texts[1] and all(answers[-1] == row[row >= 0][-1] for answers, row in zip(y2, y, strict=True))


@pytest.mark.parametrize('words', [
    'model', 'llama', 'mamba', 'pacing --columns=8 --n_layer=1', 'wavenet --reads=causal', 'highorder --network=transformer',
    'pacing --predicts=last --columns=4 --patch_size=4 --depths=(1,1) --dims=(8,16)', 'model --last_only=True'])
def test_every_text_model_is_trained_and_tested_by_part(copying, tmp_path, words, capsys):
    last = '--predicts=last' in words
    train.main([*f'--arch={words}'.split(), *['--n_embd=16'] * (not last), '--dataset=copying', f'--out_dir={tmp_path}/run',
                '--max_iters=3', '--batch_size=100', '--eval_windows=8', '--device=cpu'])
    found = json.loads((tmp_path / 'run' / 'test.json').read_text())
    assert [*found['parts']] == ['1', '2', '4', '6', '8'] and 0 <= found['parts']['4']['accuracy'] <= 1
    assert np.isfinite(found['test_loss']) and 'answers' in capsys.readouterr().out
    assert not last or found['accuracy'] == found['accuracy_full']


def test_other_commands(copying, tmp_path):
    """look.py draws an example; a race is judged on the answers, and writes no text; what needs one text is refused."""
    run, small = tmp_path / 'run', ['--n_layer=1', '--n_embd=16', '--n_head=2', '--device=cpu', '--eval_windows=8']
    train.main(['--dataset=copying', f'--out_dir={run}', '--max_iters=1', '--batch_size=100', *small])
    look.main([str(run), '--device=cpu', '--only=influence,surprise'])
    assert '--eval' in sentence(sample.main, [str(run), '--eval', '--device=cpu'])
    entrant = read([str(ROOT / 'config' / 'shakespeare_gpt.py'), '--dataset=copying', f'--block_size={copying.size}', *small])
    found = compare.judge(entrant, 1, run, 1.0, 50, device.setup('cpu', 'float32', compile=False))
    assert 'answers' in sentence(pytest.importorskip('extras.gbm').main, ['--dataset=copying', f'--out={tmp_path}/gbm'])
    assert 0 <= found['accuracy'] <= 1 and not {'sample', 'bits_per_character'} & found.keys()


@pytest.mark.parametrize('change, part', [
    (lambda m: m['answers'].update(size=0), '0 tokens'), (lambda m: m['answers'].update(size=30), '30 tokens'),
    (lambda m: m['parts'].update({'4': 499}), 'examples'), (lambda m: m.pop('parts'), 'parts'),
    (lambda m: m['answers'].pop('trained'), 'answers.trained'), (lambda m: m['tokens'].pop('test'), 'tokens.test')])
def test_damaged_meta(copying, change, part):
    path = copying.folder / 'meta.json'
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    assert part in sentence(data.open_data, 'copying')


@pytest.mark.parametrize('words, part', [(['--block_size=32'], 'block_size=32'), (['--leaking_split=True'], 'leaking_split'),
                                         (['--validate=tune'], 'validate=tune'), (['--arch=bert'], 'next token')])
def test_bad_settings(copying, tmp_path, words, part):
    assert part in sentence(train.main, ['--dataset=copying', f'--out_dir={tmp_path}/run', '--device=cpu', *words])
