"""Every model file beside train.py is found by itself and held to the contract of harness/arch.py."""

import concurrent.futures
import dataclasses
import functools
import importlib
import inspect
import math
import multiprocessing
import re

import pytest
import torch
import torch.nn as nn
from conftest import ABOUT
from torch._subclasses.fake_tensor import FakeTensorMode

from harness import ROOT, UserError, checkpoint, optim
from harness.arch import ModelContract, build, complete, load_arch

ARCHS = sorted(p.stem for p in ROOT.glob('*.py') if 'class Model(' in p.read_text(encoding='utf-8'))
ANSWERS = [{'kind': 'classify', 'outputs': 4}, {'kind': 'bits', 'outputs': 3}, {'kind': 'regress', 'outputs': 1}]
VARIANTS = {'pacing': [{'predicts': 'last'}], 'model': [{'bias': False, 'gelu': 'tanh'}],
            'llama': [{'rope_layout': 'interleaved', 'qk_norm': True, 'tied': False},
                      {'rope_scaling': (8.0, 1.0, 4.0, 32.0), 'head_dim': 6}],
            'wavenet': [{'reads': 'causal', 'alpha_per_channel': True}, {'reads': 'leak'}],
            'highorder': [{'n_layer': 0}, {'kind': 'discontinuous', 'n_layer': 3, 'normalization': 'maxabs'},
                          {'kind': 'polynomial', 'n': 4, 'normalization': 'none', 'periodic': True},
                          {'kind': 'fourier', 'n': 5, 'normalization': 'maxcenter', 'initialization': 'linear'},
                          {'network': 'high_order_input'}, {'network': 'low_order_mlp'}, {'network': 'conv', 'n_layer': 3},
                          {'network': 'tail_focus', 'features': 4}, {'network': 'dual_convolution'}, {'network': 'transformer'},
                          {'network': 'high_order_input_transformer', 'features': 4}, {'network': 'mamba'},
                          {'network': 'high_order_input_transformer', 'features': 1}, {'centered': True, 'features': 9}],
            'fpt': [*ANSWERS, {'mode': 'urt'}, {'vocab_size': 7, 'features': 0}, {'sees': 'both', 'readout': 'class'},
                    {'sees': 'both', 'trained': 'output+norms'}, {'trunk_arch': 'bert'},
                    {'trunk_arch': 'llama', 'shape': {'n_kv_head': 1, 'qk_norm': True}}],
            'transformer': [{'shared': False}, {'features': 4}],
            'vit': [*ANSWERS, {'readout': 'mean'}, {'bias': False}],
            'baselines': [*ANSWERS, {'network': 'nac', 'kind': 'regress', 'outputs': 1}, {'vocab_size': 7, 'features': 0}]}
CASES = [(arch, change) for arch in ARCHS for change in [{}, *VARIANTS.get(arch, [])]]
POSITIONS = (1, 7, 12)


def case_id(case):
    return '-'.join([case[0], *map(str, case[1].values())])


def tiny_model(name, change):
    arch = load_arch(name)
    torch.manual_seed(0)
    return complete(arch.Model(dataclasses.replace(arch.Config.tiny(), **change))).eval()


@pytest.fixture(params=CASES, ids=case_id)
def model(request):
    """The tiny Model of each file and variant."""
    try:
        return tiny_model(*request.param)
    except UserError as e:
        pytest.fail(str(e))


@pytest.fixture
def text_model(model):
    if model.modality not in ('text', 'masked text'):
        pytest.skip('not a text model')
    return model


def example_batch(model, batch=6):
    """x and y as the model's data set gives them: tokens, with those of its memory in front, or the examples of a task."""
    c, generator = model.config, torch.Generator().manual_seed(1)
    integers = functools.partial(torch.randint, generator=generator)
    if model.modality in ('text', 'masked text'):
        x = integers(c.vocab_size, (batch, model.memory + c.block_size))
        return x, x.flip(1)[:, -c.block_size:]
    size = getattr(c, 'source_size', c.block_size)
    x = torch.randn(batch, size, c.features, generator=generator) if c.features else integers(c.vocab_size, (batch, size))
    if model.modality == 'pairs':
        return x, integers(c.vocab_size, (batch, c.block_size))
    y = {'classify': integers(c.outputs, (batch,)), 'bits': integers(2, (batch, c.outputs)).float(),
         'regress': torch.randn(batch, generator=generator)}[c.kind]
    return x, y


def change_at(x, where, model):
    """x with other tokens at the positions `where`."""
    changed = x.clone()
    changed[:, where] = (x[:, where] + 1) % model.config.vocab_size if x.dtype == torch.int64 else x[:, where].flip(0)
    return changed


def perturb(model):
    """Moves every weight away from its initial value, so that a zero does not hide a part of the model from a test."""
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn(p.shape, generator=generator)
    return model


def expected_loss(logits, y, kind):
    """From the definition; kind: of the task, or None for a text model."""
    if kind == 'bits':
        p = logits.sigmoid()
        return -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    if kind == 'regress':
        return (logits[:, 0] - y).square().mean()
    y = y if kind else y[:, -logits.shape[1]:]
    scored = y >= 0
    return -logits.log_softmax(-1)[scored].gather(-1, y[scored][:, None]).mean()


def test_shapes_and_loss(model):
    c, (x, y) = model.config, example_batch(model)
    given, (logits, loss) = (x.clone(), y.clone()), model(x, y)
    kind = getattr(c, 'kind', None) if model.modality == 'task' else None
    shape = {'every': (c.block_size, getattr(c, 'vocab_size', 0)), 'last': (1, getattr(c, 'vocab_size', 0)),
             'task': (getattr(c, 'outputs', 0),)}['every' if model.modality == 'pairs' else model.predicts]
    assert logits.shape == (6, *shape) and loss.shape == () and model(x)[1] is None
    torch.testing.assert_close(loss, expected_loss(logits, y, kind))
    assert torch.equal(x, given[0]) and torch.equal(y, given[1]), 'forward() changed its arguments'
    assert sum(p.numel() for p in model.parameters()) < 100_000, 'Config.tiny() must have under 100,000 parameters'
    if kind in (None, 'classify'):
        limit = math.log(shape[-1])
        assert abs(loss.item() - limit) < 0.5, f'the loss begins at {loss:.2f}, far from ln({shape[-1]}) = {limit:.2f}'
        y[:2] = -1
        torch.testing.assert_close(model(x, y)[1], expected_loss(logits, y, kind), msg='targets of -1 were scored')
    if model.modality in ('text', 'masked text'):
        for T in (1, 5):
            assert model(x[:, :T])[0].shape == (6, min(T, shape[0]), c.vocab_size), f'a text of {T} tokens'


def test_examples_of_a_batch_are_independent(model):
    x, y = example_batch(perturb(model))
    torch.testing.assert_close(model(x, y)[0][2:4], model(x[2:4], y[2:4])[0], atol=1e-5, rtol=1e-4)


def test_trainable_parameters_get_a_gradient(model):
    if model.modality == 'task':
        perturb(model)
    model.train()(*example_batch(model))[1].backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and bool(p.grad.abs().max() > 0)) == p.requires_grad, name


def check_causality(model):
    """The logits before position k do not move, not even by rounding, when the tokens from k on change; those at k do.  A model
    that declares leaks = True must leak."""
    x, y = example_batch(model)
    start, logits = x.shape[1] - model.config.block_size, lambda x: model(x)[0]
    if model.modality == 'pairs':       # the target: position k + 1 is the first that reads token k
        source, x, start, logits = x, y, 0, lambda y: model(source, y)[0][:, 1:]
    for k in POSITIONS:
        before, after = logits(x), logits(change_at(x, slice(start + k, None), model))
        moved = not torch.equal(before[:, :k], after[:, :k])
        assert not moved or model.leaks, (f'logits before position {k} moved when a token at or after {k} changed: the model '
                                          f'sees the future (fix it, or declare leaks = True)')
        assert moved or not model.leaks, f'leaks = True, but no logit before position {k} moved when a token after it changed'
        assert not torch.allclose(before[:, k], after[:, k], atol=1e-3), f'the logits at position {k} ignore the token there'


def test_causality(model):
    if model.modality == 'task' or model.predicts == 'last' or model.bidirectional:
        pytest.skip('its target is not in the window, or it is no language model')
    check_causality(perturb(model))


def test_bidirectional_model_sees_all_but_the_target(text_model):
    if not text_model.bidirectional:
        pytest.skip('not bidirectional')
    x, _ = example_batch(perturb(text_model))
    for k in POSITIONS:
        before, after = text_model.infill(x), text_model.infill(change_at(x, k, text_model))
        assert torch.equal(before[:, k], after[:, k]), f'the prediction of token {k} sees it'
        for neighbour in (k - 1, k + 1):
            assert not torch.allclose(before[:, neighbour], after[:, neighbour], atol=1e-3), (k, neighbour)
    x[:, 7] = -1
    assert text_model.infill(x).isfinite().all(), 'an unknown token'


def test_memory(text_model):
    """Every token of the memory matters, the model works without it, and -1 in it means that there is none."""
    if not (M := text_model.memory):
        pytest.skip('no memory')
    x, _ = example_batch(perturb(text_model))
    whole, without = text_model(x)[0], text_model(x[:, M:])[0]
    for k in range(M):
        assert not torch.allclose(text_model(change_at(x, k, text_model))[0], whole, atol=1e-5), f'token {k} is ignored'
    x[:, 0] = -1
    assert torch.equal(text_model(x)[0], without)


def test_every_token_of_an_example_matters(model):
    if model.modality not in ('task', 'pairs'):
        pytest.skip('not a model of examples')
    x, y = example_batch(perturb(model))
    for t in range(x.shape[1]):
        assert not torch.allclose(model(change_at(x, t, model), y)[0], model(x, y)[0], atol=1e-6), f'token {t} is ignored'


def test_save_and_load(model, tmp_path):
    checkpoint.save(tmp_path / 'ckpt.pt', {'arch': type(model).__module__, 'config': dataclasses.asdict(model.config),
                                           'step': 1, 'model': perturb(model).state_dict(), **ABOUT})
    again, _ = checkpoint.load_model(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(*example_batch(model))[0], model(*example_batch(model))[0])


def test_one_step_lowers_the_loss(model):
    optimizer, = optim.build(model, 'adamw', 1e-3, (0.9, 0.95), 0.1)
    before = model(*example_batch(model))[1]
    before.backward()
    optimizer.step()
    assert model(*example_batch(model))[1] < before


def test_parameters_can_be_counted_without_memory(model):
    """On the meta device, as compare.py does."""
    with torch.device('meta'):
        empty = type(model)(model.config)
    assert all(p.is_meta for p in empty.parameters())
    assert [(p.shape, p.requires_grad) for p in empty.parameters()] == [(p.shape, p.requires_grad) for p in model.parameters()]
    torch.manual_seed(0)        # build() counts them too, and must not change the weights
    same = build(load_arch(type(model).__module__), dataclasses.asdict(model.config))
    assert all(torch.equal(p, q) for p, q in zip(same.parameters(), model.parameters(), strict=True))


def difference(given, expected):
    """The median error, as a fraction of the mean size: a jump of a piecewise polynomial moves few values, and those far."""
    return ((given.float() - expected).abs().median() / expected.abs().mean()).item()


@pytest.mark.parametrize('dtype, most', [('float64', 1e-3), ('bfloat16', 0.1), ('float16', 0.01), ('autocast', 0.1)])
def test_other_number_formats_agree_with_float32(model, dtype, most):
    """After .double(), .bfloat16(), .half() and under autocast.  float64 may differ by the error of float32."""
    perturb(model)
    x, y = example_batch(model)
    expected, loss = model(x, y)
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    kind = torch.bfloat16 if dtype == 'autocast' else getattr(torch, dtype)
    if dtype != 'autocast':
        x, y = (v.to(kind) if v.is_floating_point() else v for v in (x, y))
        model.to(kind)
    with torch.autocast('cpu', dtype=kind, enabled=dtype == 'autocast'):
        logits, loss = model(x, y)
        if model.step:
            stepped, state = model.step(x[:, :3], model.init_state(6))
            stepped, state = model.step(x[:, 3:5], state)
    loss.backward()
    assert all(p.grad.dtype == p.dtype for p in model.parameters() if p.grad is not None)
    if dtype != 'autocast':
        assert logits.dtype == loss.dtype == kind and (not model.step or stepped.dtype == kind)
    assert difference(logits, expected) < most
    assert difference(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]),
                      torch.cat([g.flatten() for g in grads])) < most


# a GPU that is not there: tensors that have a device and a shape, and no numbers ----------------------------------------------

def make_believe_gpu():
    torch.utils.backend_registration._setup_privateuseone_for_python_backend('gpu')
    torch.gpu.get_amp_supported_dtype = lambda: [torch.bfloat16]                        # for torch.autocast
    torch.__future__.set_overwrite_module_params_on_conversion(True)                    # for Module._apply


@pytest.fixture(scope='module')
def gpu_process():
    """A process with that GPU, so that the other tests have none."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), make_believe_gpu) as pool:
        yield pool


def use_gpu(make, *args):
    """All that a command does with the model make(*args) on a GPU, as train.py does: made on the CPU, then moved.  Raises if a
    tensor stayed behind."""
    model = complete(make(*args))
    batch = example_batch(model)
    with FakeTensorMode() as mode:
        move = lambda t: mode.from_tensor(t).to('gpu')      # noqa: E731
        model._apply(move)
        x, y = map(move, batch)
        logits, loss = model(x, y)
        loss.backward()
        assert {t.device.type for t in (logits, loss, *(p.grad for p in model.parameters() if p.requires_grad))} == {'gpu'}
        if model.step:
            _, state = model.step(x[:, :3], model.init_state(len(x)))
            assert model.step(x[:, 3:5], state)[0].device.type == 'gpu'
        for optimizer in optim.build(model, 'muon', 1e-3, (0.9, 0.95), 0.1):
            optimizer.step()


def gpu_error(make, *args):
    """What use_gpu() raises, as text, since not every exception of torch can be sent to another process."""
    try:
        use_gpu(make, *args)
    except Exception as e:
        return f'{type(e).__name__}: {e}'
    return ''


@pytest.mark.parametrize('case', CASES, ids=case_id)
def test_nothing_is_left_on_the_cpu(case, gpu_process):
    error = gpu_process.submit(gpu_error, tiny_model, *case).result()
    if error.startswith('NotImplementedError'):         # nn.GRU, for example
        pytest.skip(f'torch does not know the shapes of an operation: {error[:100]}')
    assert not error


@pytest.mark.parametrize('place', ['attribute', 'forward', 'step'])
def test_what_is_left_on_the_cpu_is_found(place, gpu_process):
    assert re.search(r'cpu|FakeTensor', gpu_process.submit(gpu_error, newcomer, False, place).result())
    assert not gpu_process.submit(gpu_error, newcomer).result()


@torch.no_grad()
def test_step_is_forward(text_model):
    """step() in pieces of any size gives the logits of forward(), and continues past the window."""
    if not text_model.step:
        pytest.skip('no step()')
    (x, _), state = example_batch(perturb(text_model)), text_model.init_state(6)
    read, M = 0, text_model.memory
    whole = torch.cat([text_model(x[:, :M])[0], text_model(x)[0]], dim=1) if M else text_model(x)[0]
    for n in (1, 4, 1, 1, 2, 3, 1, 3, *((5, 9, 2) if M else ())):
        logits, state = text_model.step(x[:, read:read + n], state)
        read += n
        torch.testing.assert_close(logits, whole[:, read - 1], atol=1e-4, rtol=1e-4)
    assert read == x.shape[1]
    for i in range(2 * text_model.config.block_size):
        logits, state = text_model.step(x[:, i % read, None], state)
        assert logits.shape == (6, text_model.config.vocab_size) and logits.isfinite().all()


@pytest.mark.parametrize('arch', ARCHS)
def test_model_file_stands_alone(arch):
    """It imports nothing of ours but model files at its head, and every setting has a default and a comment."""
    module, text = importlib.import_module(arch), (ROOT / f'{arch}.py').read_text(encoding='utf-8')
    assert not re.findall(r'^(?:import|from) (?:harness|train|race|views|extras)\b', text, re.M)
    comments = dict(re.findall(r'^ {4}(\w+): .*?#\s*(.*)$', inspect.getsource(module.Config), re.M))
    assert {f.name for f in dataclasses.fields(module.Config())} == comments.keys()


# the contract itself ----------------------------------------------------------------------------------------------------------

class Newcomer(nn.Module):
    """The least that a model file must define.  future: it reads one token too many, as an off-by-one error does.
    on_cpu: where it makes a tensor without a device: as an 'attribute' that is no buffer, in 'forward', or in 'step'."""

    def __init__(self, config, future=False, on_cpu=''):
        super().__init__()
        self.config, self.future, self.on_cpu = config, future, on_cpu
        self.wte, self.rnn = nn.Embedding(config.vocab_size, 16), nn.RNN(16, 16, batch_first=True)
        self.scale = torch.ones(16) if on_cpu == 'attribute' else 1
        if on_cpu == 'step':
            self.init_state = lambda batch_size: torch.zeros(1, batch_size, 16)
            self.step = lambda token, state: (None, self.rnn(self.wte(token), state)[1])

    def forward(self, x, y=None):
        scale = torch.ones(16) if self.on_cpu == 'forward' else self.scale
        logits = self.rnn(self.wte(x.roll(-1, 1) if self.future else x))[0] * scale @ self.wte.weight.T
        return logits, None if y is None else nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)


def newcomer(*options):
    torch.manual_seed(0)
    return complete(Newcomer(importlib.import_module('model').Config.tiny(), *options))


def test_defaults_complete_a_model_and_replace_nothing():
    plain, own = newcomer(), complete(type('Own', (Newcomer,), {'memory': 3, 'step': lambda self, token, state: 'own'})(
        importlib.import_module('model').Config.tiny()))
    for name in (n for n in vars(ModelContract) if not n.startswith('_')):
        assert hasattr(plain, name), name
    assert (plain.predicts, plain.memory, plain.leaks, plain.step, plain.metrics()) == ('every', 0, False, None, {})
    assert (plain.modality, own.memory, own.step(0, 0)) == ('text', 3, 'own')
    check_causality(plain)


def test_a_model_that_sees_the_future_is_named_in_a_sentence():
    with pytest.raises(AssertionError, match='logits before position 1 moved when a token at or after 1 changed') as e:
        check_causality(newcomer(True))
    assert 'tensor(' not in str(e.value)
