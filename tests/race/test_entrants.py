"""Entrants: their settings and names, matching widths, the FLOPs of a step, and what a budget gives them."""

import dataclasses
import shlex
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from conftest import sentence

import compare
from harness import config, device
from harness.arch import build_config
from race import entrants
from race.entrants import Cost, count_flops
from train import TrainConfig


def enter(*words):
    args = compare.arguments(list(map(str, words)))
    return entrants.enter(args.configs, args.set, args.match)


def test_own_settings_win_over_those_of_all(race_configs):
    gpt, deep, pic = enter(race_configs / 'gpt.py', f'{race_configs}/gpt.py --n_layer=3', race_configs / 'pic.py',
                           '--set', 'columns=8', 'max_iters=7', 'seed=5', 'n_layer=2')[0]
    assert [(e.name, e.model.n_layer) for e in (gpt, deep, pic)] == [('gpt', 2), ('gpt n_layer=3', 3), ('pic', 2)]
    assert pic.model.columns == 8 and {e.settings.train.max_iters for e in (gpt, deep, pic)} == {7}
    assert gpt.settings.train.seed == 5 and gpt.tokens_per_step == 64


@pytest.mark.parametrize('name', ['my gpt.py', 'a\\b.py', "it's - --x.py"])
def test_paths_of_configs_are_taken_as_they_are(race_configs, tmp_path, monkeypatch, name):
    """With blanks, backslashes and quotes, alone or before settings; also quoted, as a shell takes them."""
    monkeypatch.chdir(tmp_path)
    for path in (name, 'my_gpt.py'):
        shutil.copy(race_configs / 'gpt.py', path)
    assert entrants.split_words(name) == [name] == entrants.split_words(shlex.quote(name))
    if ' --' not in name:
        assert entrants.split_words(f"{name} --n_layer=2 --out_dir='a b'") == [name, '--n_layer=2', '--out_dir=a b']
        assert enter(f'{name} --n_layer=2')[0][0].model.n_layer == 2
    if name == 'my gpt.py':         # two entrants may not share a folder
        assert "'my_gpt'" in sentence(enter, name, 'my_gpt.py')


def test_values_with_commas_are_entrants(race_configs):
    task = [str(race_configs / 'gpt.py'), '--arch=fpt']
    split, common = entrants.expand([task, ['config/shakespeare_pacing.py']], [
        '--trunk=random,out/missing', '--dropout=0.2,0.3', '--warmup_iters=2', '--dims=8,8'])
    assert common == ['--warmup_iters=2', '--dims=8,8']
    pairs = [[f'--trunk={t}', f'--dropout={d}'] for t in ('random', 'out/missing') for d in ('0.2', '0.3')]
    assert split == [[*task, *pair] for pair in pairs] + [
        ['config/shakespeare_pacing.py', f'--dropout={d}'] for d in ('0.2', '0.3')]


def size(words):
    """Parameters of the model that train.py would train with these words."""
    settings = config.load(list(map(str, words)), TrainConfig)
    with torch.device('meta'):
        built = settings.arch.Model(build_config(settings.arch, {'vocab_size': 11} | settings.model))
    return sum(p.numel() for p in built.parameters())


LAST = 'pic.py --predicts=last --patch_size=4 --depths=1,1'


@pytest.mark.parametrize(('first', 'rival', 'width'), [
    ('gpt.py --n_embd=64', 'pic.py', '--n_embd='), ('gpt.py --n_embd=64', 'pic.py --n_embd=200', '--n_embd='),
    ('gpt.py --n_embd=64', 'gpt.py --n_layer=4', '--n_embd='), ('gpt.py --n_embd=64', f'{LAST} --dims=8,16', '--dims='),
    # head_dim follows the width
    ('gpt.py --n_embd=128', 'gpt.py --arch=llama --n_hidden=40 --n_kv_head=1', '--n_embd='),
    # most of its parameters do not depend on the width
    (f'{LAST} --vocab_size=1000 --dims=32,64', f'{LAST} --vocab_size=1000 --dims=8,16', '--dims=')], ids=range(6))
def test_matching_parameters(race_configs, first, rival, width):
    (one, e), (note,) = enter(f'{race_configs}/{first}', f'{race_configs}/{rival}', '--match=parameters')
    assert one.parameters == size(one.words) and size(e.words) == e.parameters
    assert abs(e.parameters / one.parameters - 1) <= 0.02
    chosen = next(w for w in reversed(e.words) if w.startswith(width))
    assert f'{chosen} gives {e.parameters:,} parameters, to match {one.parameters:,}' in note and note.startswith(f'{e.name}: ')


def test_widths_that_match_are_kept_and_impossible_ones_refused(race_configs):
    gpt = race_configs / 'gpt.py'
    (_, e), notes = enter(gpt, f'{gpt} --learning_rate=1e-2', '--match=parameters')
    assert notes == [] and e.model.n_embd == enter(race_configs / 'pic.py')[0][0].model.n_embd == 16
    said = sentence(enter, f'{gpt} --n_embd=90', f'{gpt} --n_head=64 --n_embd=64', '--match=parameters')
    assert 'n_head=64' in said and '2%' in said         # 64 heads: no width between 64 and 128


COST = Cost(flops=1e6, seconds=0.05, evaluation=0.005)


def test_a_budget_becomes_steps(race_configs, monkeypatch):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'amx_bf16': True})          # no run measures formats by itself
    e, = enter(race_configs / 'gpt.py')[0]
    cheap = dataclasses.replace(COST, evaluation=1e-9)
    for budget in (('steps', 100), ('tokens', 6400), ('tokens', 6463), ('flops', 1e8)):
        planned = entrants.plan(e, cheap, budget, 1000, 500)
        assert planned['flags'] == {'max_seconds': 0, 'max_iters': 100, 'eval_interval': 5, 'sample_tokens': 0,
                                    'dtype': 'float32'}
        assert planned['flops_per_step'] == 1e6 and planned['run_seconds'] == pytest.approx(entrants.STARTUP + 5, abs=0.1)
    assert entrants.plan(e, cheap, ('steps', 59), 1000, 500)['flags']['eval_interval'] == 3         # 2 would be 29 evaluations
    flags = entrants.plan(e, cheap, ('seconds', 30), 1000, 500)['flags']
    assert (flags['max_seconds'], flags['max_iters'], flags['eval_interval']) == (30, 0, 600 // 20)
    race = {'budget': ['seconds', 120.0], 'entrants': {'gpt': {'plan': {'run_seconds': 149}}, 'old': {'plan': {}}}}
    assert compare.forecast(race, ['gpt'] * 9) == '9 runs x 120 s, about 22 min with evaluation'
    assert compare.forecast(race | {'budget': ['steps', 1000.0]}, ['old']) == '1 run x 1,000 steps'     # of an older race


def fake(eval_windows=1024, words=()):
    """An entrant whose data has as many windows as one asks for."""
    data = SimpleNamespace(val_indices=lambda count, T: range(count or 10 ** 5), test_indices=lambda: None)
    settings = SimpleNamespace(train=TrainConfig(eval_windows=eval_windows))
    return entrants.Entrant('gpt', list(words), settings, data, SimpleNamespace(block_size=64), 1, 1, 'every', False, 0)


@pytest.mark.parametrize('seconds', [60, 120, 600, 10 ** 5])
@pytest.mark.parametrize('evaluation', [1e-5, 1e-3, 5e-3])
def test_evaluation_takes_at_most_a_quarter_of_the_budget(seconds, evaluation):
    cost, budget = dataclasses.replace(COST, evaluation=evaluation), ('seconds', seconds)
    curve, judgement = entrants.affordable(fake(), cost, budget)
    planned = entrants.plan(fake(), cost, budget, curve, judgement)
    points = int(seconds / cost.seconds) // planned['flags']['eval_interval']
    assert 500 <= judgement <= 5000 and 4 <= points <= 20
    spent = ((points + 1) * planned['flags'].get('eval_windows', 1024) + judgement) * evaluation
    assert spent <= 0.25 * seconds or (judgement == 500 and points == 4 and planned['flags']['eval_windows'] == 64)
    assert planned['run_seconds'] == pytest.approx(entrants.STARTUP + seconds + spent, rel=0.1)
    if seconds == 10 ** 5:              # there is time for all that is asked for
        assert judgement == 5000 and 'eval_windows' not in planned['flags'] and points == 20
    else:                               # settings of the user are kept
        asked = fake(words=['--eval_interval=250', '--eval_windows', '900'])
        flags = entrants.plan(asked, cost, ('steps', 1000), 64, 500)['flags']
        assert flags['eval_interval'] == 250 and 'eval_windows' not in flags


def test_the_cost_of_a_step(race_configs):
    gpt, machine = race_configs / 'gpt.py', device.setup('cpu', 'float32', False)
    settings = [f'{gpt} --optimizer=sgd{more}' for more in ('', ' --tokens_per_step=256', ' --n_layer=3')]
    costs = [entrants.measure(e, machine) for e in enter(*settings, gpt)[0]]
    # linear layers and attention, T x T scores and their weighted sum, masked or not; twice as much for the gradients
    layer, head = 2 * 64 * (12 * 16 * 16) + 2 * (2 * 4 * 16 * 16 * 16), 2 * 64 * 16 * 11
    assert [c.flops for c in costs[:3]] == [3 * (layer + head), 4 * 3 * (layer + head), 3 * (3 * layer + head)]
    assert costs[3].flops > costs[0].flops          # sgd has no matrix products, Muon has
    assert all(c.seconds > 0 and c.evaluation > 0 for c in costs)


@pytest.mark.parametrize(('kind', 'groups'), [(nn.Conv1d, 1), (nn.Conv1d, 4), (nn.Conv1d, 12), (nn.Conv2d, 3), (nn.Conv2d, 12),
                                              (nn.ConvTranspose1d, 4)])
def test_flops_of_a_convolution(kind, groups):
    """A multiplication and an addition for each output (of a transposed one: input) and tap; twice as much backward."""
    conv = kind(12, 24, 5, padding=2, stride=3, groups=groups)
    x = torch.randn(2, 12, *[10] * (conv.weight.dim() - 2), requires_grad=True)
    ends, others = (x.numel(), 24) if kind is nn.ConvTranspose1d else (conv(x).numel(), 12)
    forward = 2 * ends * (others // groups) * 5 ** (x.dim() - 2)
    assert count_flops(lambda: conv(x)) == forward and count_flops(lambda: conv(x).sum().backward()) == 3 * forward
    assert count_flops(lambda: conv(x.detach()).sum().backward()) == 2 * forward        # the input needs no gradient
