"""Every model file, held to the contract: a new one is found by itself."""

import dataclasses
import importlib
import inspect
import math
import re

import pytest
import torch

from harness import ROOT, checkpoint, optim

ARCHS = sorted(p.stem for p in ROOT.glob('*.py') if 'class Model(' in p.read_text(encoding='utf-8'))
VARIANTS = {'pacing': [{'predicts': 'last'}], 'model': [{'bias': False, 'gelu': 'tanh'}],
            'wavenet': [{'reads': 'causal', 'alpha_per_channel': True}, {'reads': 'leak'}],
            'highorder': [{'n_layer': 0}, {'kind': 'discontinuous', 'n_layer': 3, 'normalization': 'maxabs'},
                          {'kind': 'polynomial', 'n': 4, 'normalization': 'none', 'periodic': True},
                          {'kind': 'fourier', 'n': 5, 'normalization': 'maxcenter', 'initialization': 'linear'},
                          {'network': 'high_order_input'}, {'network': 'low_order_mlp'}, {'network': 'conv', 'n_layer': 3},
                          {'network': 'tail_focus', 'features': 4}, {'network': 'dual_convolution'}, {'network': 'transformer'},
                          {'network': 'high_order_input_transformer', 'features': 4}, {'network': 'mamba'},
                          {'network': 'high_order_input_transformer', 'features': 1}, {'centered': True, 'features': 9}]}
TASKS = [arch for arch in ARCHS if getattr(importlib.import_module(arch).Model, 'predicts', None) == 'task']
CASES = [(arch, change) for arch in ARCHS if arch not in TASKS for change in [{}, *VARIANTS.get(arch, [])]]
ANSWERS = [{}, {'kind': 'classify', 'outputs': 4}, {'kind': 'bits', 'outputs': 3}, {'kind': 'regress', 'outputs': 1}]
TASK_VARIANTS = {'fpt': [*ANSWERS, {'mode': 'urt'}, {'vocab_size': 7, 'features': 0}, {'sees': 'both', 'readout': 'class'},
                         {'sees': 'both', 'trained': 'output+norms'}],
                 'vit': [*ANSWERS, {'readout': 'mean'}, {'bias': False}],
                 'baselines': [*ANSWERS, {'network': 'nac', 'kind': 'regress', 'outputs': 1}, {'vocab_size': 7, 'features': 0}]}
TASK_CASES = [(arch, change) for arch in TASKS for change in TASK_VARIANTS.get(arch, [{}])]


@pytest.fixture(params=CASES, ids=lambda c: '-'.join([c[0], *map(str, c[1].values())]))
def model(request):
    arch, change = request.param
    module = importlib.import_module(arch)
    torch.manual_seed(0)
    return module.Model(dataclasses.replace(module.Config.tiny(), **change)).eval()


def tokens(model, batch=3, length=None):
    """A window, and in front of it the tokens of the model's memory, if it has one."""
    generator = torch.Generator().manual_seed(1)
    length = length or getattr(model, 'memory', 0) + model.config.block_size
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator)


def targets(model):
    return tokens(model).flip(1)[:, -model.config.block_size:]


def stir(model):
    """Weights at which nothing is 0 by initialisation, so that no part of the model is hidden from a test."""
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    return model


def test_shapes_and_loss(model):
    c, x, y = model.config, tokens(model), targets(model)
    logits, loss = model(x, y)
    T = c.block_size if model.predicts == 'every' else 1
    assert model.predicts in ('every', 'last')
    assert logits.shape == (3, T, c.vocab_size) and loss.shape == ()
    assert abs(loss.item() - math.log(c.vocab_size)) < 0.3
    expected = -logits.log_softmax(-1).gather(-1, y[:, -T:, None]).mean()
    torch.testing.assert_close(loss, expected)
    assert model(x)[1] is None
    assert model(x[:, :5])[0].shape == (3, min(T, 5), c.vocab_size)
    assert sum(p.numel() for p in model.parameters()) < 100_000


def test_targets_of_minus_one_are_not_scored(model):
    x, y = tokens(model), targets(model)
    logits, _ = model(x)
    y[0] = -1
    kept = y[1:, -logits.shape[1]:]
    expected = -logits[1:].log_softmax(-1).gather(-1, kept[:, :, None]).mean()
    torch.testing.assert_close(model(x, y)[1], expected)


def test_every_parameter_gets_a_gradient(model):
    model.train()
    model(tokens(model), targets(model))[1].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


@pytest.mark.parametrize('k', [1, 7, 12])
def test_causality(model, k):
    """No logit before k moves, not by a rounding error, when the tokens from k on change; the one at k does.  A model that says
    of itself that it leaks must be seen to leak."""
    if model.predicts == 'last':
        pytest.skip('the target of a model that predicts the last token is not in its window')
    if getattr(model, 'centered', False):
        pytest.skip('a model that sees both sides is no language model: see the next test')
    stir(model)
    x = tokens(model)
    at = x.shape[1] - model.config.block_size + k
    changed = x.clone()
    changed[:, at:] = (x[:, at:] + 1) % model.config.vocab_size
    before, after = model(x)[0], model(changed)[0]
    assert torch.equal(before[:, :k], after[:, :k]) != getattr(model, 'leaks', False)
    assert not torch.allclose(before[:, k], after[:, k], atol=1e-3)


def test_centered(model):
    """A model that says that it sees both sides of a token sees all but that token."""
    if not getattr(model, 'centered', False):
        pytest.skip('not centered')
    stir(model)
    x = tokens(model)
    for k in (1, 7, 12):
        changed = x.clone()
        changed[:, k] = (x[:, k] + 1) % model.config.vocab_size
        before, after = model(x)[0], model(changed)[0]
        assert torch.equal(before[:, k - 1], after[:, k - 1])       # whose target it is
        assert not torch.allclose(before[:, k], after[:, k], atol=1e-3)
        if k > 1:
            assert not torch.allclose(before[:, k - 2], after[:, k - 2], atol=1e-3)


def test_its_size_can_be_asked_for_without_its_weights(model):
    """As compare.py does."""
    with torch.device('meta'):
        empty = type(model)(model.config)
    assert all(p.is_meta for p in empty.parameters())
    assert [p.shape for p in empty.parameters()] == [p.shape for p in model.parameters()]


def test_memory(model):
    """A model with a memory is moved by all of it, does without it, and takes a -1 in it for none at all."""
    M = getattr(model, 'memory', 0)
    if not M:
        pytest.skip('no memory')
    stir(model)
    x = tokens(model)
    whole, without = model(x)[0], model(x[:, M:])[0]
    for k in range(M):
        changed = x.clone()
        changed[:, k] = (x[:, k] + 1) % model.config.vocab_size
        assert not torch.allclose(model(changed)[0], whole, atol=1e-5), k
    assert not torch.allclose(without, whole, atol=1e-3)
    changed = x.clone()
    changed[:, 0] = -1
    assert torch.equal(model(changed)[0], without)


def test_save_and_load(model, tmp_path):
    stir(model)
    arch = type(model).__module__
    checkpoint.save(tmp_path / 'ckpt.pt', {'arch': arch, 'config': dataclasses.asdict(model.config), 'step': 1,
                                           'model': model.state_dict(), 'data': {}})
    again, content = checkpoint.load_model(tmp_path)
    assert content['step'] == 1 and again.config == model.config
    assert torch.equal(again(tokens(model))[0], model(tokens(model))[0])


def test_one_step_lowers_the_loss(model):
    x, y = tokens(model), targets(model)
    optimizer, = optim.build(model, 'adamw', 1e-3, (0.9, 0.95), 0.1)
    before = model(x, y)[1]
    before.backward()
    optimizer.step()
    assert model(x, y)[1] < before


@torch.no_grad()
def test_step_is_forward(model):
    """Read in pieces of any size, the state gives the logits that forward gives."""
    if not getattr(model, 'step', None):
        pytest.skip('no step')
    stir(model)
    x, state = tokens(model), model.init_state(3)
    read, M = 0, getattr(model, 'memory', 0)
    whole = torch.cat([model(x[:, :M])[0], model(x)[0]], dim=1) if M else model(x)[0]      # one window after another
    for n in (1, 4, 1, 1, 2, 3, 1, 3, *((5, 9, 2) if M else ())):
        logits, state = model.step(x[:, read:read + n], state)
        read += n
        torch.testing.assert_close(logits, whole[:, read - 1], atol=1e-4, rtol=1e-4)
    assert read == x.shape[1]


@torch.no_grad()
def test_step_goes_on_past_the_window(model):
    if not getattr(model, 'step', None):
        pytest.skip('no step')
    x, state = tokens(model, length=3 * model.config.block_size + 1), model.init_state(3)
    for i in range(x.shape[1]):
        logits, state = model.step(x[:, i:i + 1], state)
        assert logits.shape == (3, model.config.vocab_size) and logits.isfinite().all()


# models that answer tasks --------------------------------------------------------------------------------------------------

@pytest.fixture(params=TASK_CASES, ids=lambda c: '-'.join([c[0], *map(str, c[1].values())]))
def answering(request):
    arch, change = request.param
    module = importlib.import_module(arch)
    torch.manual_seed(0)
    return module.Model(dataclasses.replace(module.Config.tiny(), **change)).eval()


def examples(model, batch=6):
    """x and y, as the data of a task would give them."""
    c, generator = model.config, torch.Generator().manual_seed(1)
    if getattr(c, 'vocab_size', 0):
        x = torch.randint(c.vocab_size, (batch, c.block_size), generator=generator)
    else:
        x = torch.randn(batch, c.block_size, c.features, generator=generator)
    if c.kind == 'classify':
        return x, torch.randint(c.outputs, (batch,), generator=generator)
    if c.kind == 'bits':
        return x, torch.randint(2, (batch, c.outputs), generator=generator).float()
    return x, torch.randn(batch, generator=generator)


def expected_loss(logits, y, kind):
    if kind == 'classify':
        return -logits.log_softmax(-1)[range(len(y)), y].mean()
    if kind == 'bits':
        p = logits.sigmoid()
        return -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    return (logits[:, 0] - y).square().mean()


def test_answers_and_their_loss(answering):
    x, y = examples(answering)
    logits, loss = answering(x, y)
    assert logits.shape == (6, answering.config.outputs) and loss.shape == ()
    torch.testing.assert_close(loss, expected_loss(logits, y, answering.config.kind))
    assert answering(x)[1] is None
    if answering.config.kind == 'classify':
        assert abs(loss.item() - math.log(answering.config.outputs)) < 0.5
        torch.testing.assert_close(answering(x, torch.where(torch.arange(6) < 2, -1, y))[1],
                                   expected_loss(logits[2:], y[2:], 'classify'))
    assert sum(p.numel() for p in answering.parameters()) < 100_000


def test_every_token_moves_the_answer(answering):
    stir(answering)
    x, _ = examples(answering)
    whole = answering(x)[0]
    for t in range(x.shape[1]):
        changed = x.clone()
        changed[:, t] = (x[:, t] + 1) % 7 if x.dtype == torch.int64 else x[:, t].flip(0)
        assert not torch.allclose(answering(changed)[0], whole, atol=1e-6), t


def test_what_is_trained_gets_a_gradient_and_nothing_else(answering):
    stir(answering).train()
    answering(*examples(answering))[1].backward()
    for name, p in answering.named_parameters():
        assert (p.grad is not None and bool(p.grad.abs().max() > 0)) == p.requires_grad, name


def test_answers_after_saving(answering, tmp_path):
    trained = [p for p in answering.parameters() if p.requires_grad]
    for p in trained:
        p.data += 0.1
    checkpoint.save(tmp_path / 'ckpt.pt', {'arch': type(answering).__module__, 'config': dataclasses.asdict(answering.config),
                                           'step': 1, 'model': answering.state_dict(), 'data': {}})
    again, _ = checkpoint.load_model(tmp_path)
    assert again.config == answering.config
    assert torch.equal(again(examples(answering)[0])[0], answering(examples(answering)[0])[0])


def test_a_step_lowers_the_loss_of_answers(answering):
    x, y = examples(answering)
    optimizer, = optim.build(answering, 'adamw', 1e-3, (0.9, 0.95), 0.1)
    before = answering(x, y)[1]
    before.backward()
    optimizer.step()
    assert answering(x, y)[1] < before


def test_the_size_of_an_answering_model_without_its_weights(answering):
    with torch.device('meta'):
        empty = type(answering)(answering.config)
    assert [p.shape for p in empty.parameters()] == [p.shape for p in answering.parameters()]
    assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in answering.parameters()]


@pytest.mark.parametrize('arch', ARCHS)
def test_every_setting_has_a_default_and_a_comment(arch):
    module = importlib.import_module(arch)
    module.Config()
    comments = dict(re.findall(r'^ {4}(\w+): .*?#\s*(.*)$', inspect.getsource(module.Config), re.M))
    assert {f.name for f in dataclasses.fields(module.Config)} == comments.keys()


@pytest.mark.parametrize('arch', ARCHS)
def test_a_model_file_stands_alone(arch):
    """It imports no harness at its head (from_pretrained may), so it can be read and copied by itself."""
    assert not re.findall(r'^(?:import|from) (?:harness|train)', (ROOT / f'{arch}.py').read_text(encoding='utf-8'), re.M)
