"""Every model file beside train.py is found by itself and held to the contract of harness/arch.py."""

import concurrent.futures
import dataclasses
import functools
import importlib
import inspect
import math
import multiprocessing
import os
import re

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from conftest import save, sentence
from torch._subclasses.fake_tensor import FakeTensorMode

from harness import ROOT, checkpoint, optim, shard
from harness.arch import ANSWERS, build, complete, contract_names, load_arch

DEVICE = os.environ.get('CONTRACT_DEVICE', 'cpu')        # of bench.py gpu
ARCHS = sorted(p.stem for p in ROOT.glob('*.py') if 'class Model(' in p.read_text(encoding='utf-8'))
KINDS = [{'kind': 'classify', 'outputs': 4}, {'kind': 'bits', 'outputs': 3}, {'kind': 'regress', 'outputs': 1}]
VARIANTS = {'pacing': [{'predicts': 'last'}],
            'model': [{'bias': False, 'gelu': 'tanh'}, {'short_conv': 4}, {'predicts': 'last'}],
            'llama': [{'rope_layout': 'interleaved', 'qk_norm': True, 'tied': False},
                      {'rope_scaling': (8.0, 1.0, 4.0, 32.0), 'head_dim': 6}, {'short_conv': 2}],
            'wavenet': [{'reads': 'causal', 'alpha_per_channel': True, 'join': 3}, {'reads': 'leak'}],
            'highorder': [{'n_layer': 0}, {'kind': 'discontinuous', 'n_layer': 3, 'normalization': 'maxabs'},
                          {'kind': 'polynomial', 'n': 4, 'normalization': 'none', 'periodic': True},
                          {'kind': 'fourier', 'n': 5, 'normalization': 'maxcenter', 'initialization': 'linear'},
                          {'network': 'high_order_input'}, {'network': 'low_order_mlp'}, {'network': 'conv', 'n_layer': 3},
                          {'network': 'tail_focus', 'features': 4}, {'network': 'dual_convolution'}, {'network': 'transformer'},
                          {'network': 'high_order_input_transformer', 'features': 4}, {'network': 'mamba'},
                          {'network': 'high_order_input_transformer', 'features': 1}, {'centered': True, 'features': 9}],
            'fpt': [*KINDS, {'mode': 'urt'}, {'vocab_size': 7, 'features': 0}, {'sees': 'both', 'readout': 'class'},
                    {'sees': 'both', 'trained': 'output+norms'}, {'trunk_arch': 'bert'},
                    {'trunk_arch': 'llama', 'shape': {'n_kv_head': 1, 'qk_norm': True}}],
            'transformer': [{'shared': False}, {'features': 4}],
            'convnet': [*KINDS, {'stem': 'imagenet', 'height': 32, 'width': 32}, {'network': 'resnet50', 'n_embd': 2},
                        {'network': 'tutorial', 'height': 32, 'width': 32}, {'channels': 1}],
            'clip': [{'tower': 'resnet18', 'n_embd': 4, 'text_embd': 16}], 'dvae': [{'quantizer': 'vq', 'local': True}],
            'dalle': [{'attention': 'row+conv'}, {'neighbours': True, 'codebook': True, 'rotary': True},
                      {'attention': 'column', 'text_weight': 0.5}],
            'vit': [*KINDS, {'readout': 'mean'}, {'bias': False}],
            'baselines': [*KINDS, {'network': 'nac', 'kind': 'regress', 'outputs': 1}, {'vocab_size': 7, 'features': 0}]}
# settings that a Config refuses: each in its turn, on top of tiny(); the message names the last of them and its value
BAD = {'llama': [{'n_kv_head': 3}, {'head_dim': 0, 'n_embd': 30}, {'head_dim': 3}, {'rope_layout': 'both'},
                 {'rope_scaling': (8.0, 4.0, 1.0, 32.0)}, {'rope_scaling': (8.0,)}, {'short_conv': 1}],
       'model': [{'short_conv': -4}, {'predicts': 'next'}],
       'pacing': [{'predicts': 'all'}, {'columns': 0}, {'blank': 2.0}, {'embedding_std': 0.0},
                  {'predicts': 'last', 'block_size': 18}, {'predicts': 'last', 'dims': (8,)},
                  {'predicts': 'last', 'columns': 2, 'block_size': 2, 'patch_size': 2},
                  {'predicts': 'last', 'block_size': 40, 'patch_size': 4}],
       'wavenet': [{'reads': 'future'}, {'block_size': 24}, {'n_embd': 15}, {'join': 1},
                   {'reads': 'causal', 'n_wave': 17}],
       'transformer': [{'n_head': 3}, {'n_head': 3, 'n_embd': 15}, {'smoothing': 1.0}, {'source_size': 0}, {'features': -1}],
       'highorder': [{'network': 'hi_order'}, {'features': 0}, {'segments': 0}, {'n': 1}, {'input_n': 1},
                     {'input_segments': 16}, {'centered': True, 'features': 8}, {'centered': True, 'features': 1},
                     {'initialization': 'zero'}, {'centered': True, 'features': 9, 'n_layer': 2, 'network': 'conv'},
                     {'network': 'conv', 'n_layer': 2}, {'kind': 'linear'}, {'kind': 'spline'}, {'kind': 'fourier', 'n': 4},
                     {'network': 'dual_convolution', 'features': 12}, {'network': 'transformer', 'n_head': 3},
                     {'network': 'tail_focus', 'features': 16}, {'network': 'mamba', 'dropout': 0.5}],
       'vit': [{'features': 0}, {'readout': 'last'}, {'n_head': 5}, {'kind': 'x'}],
       'convnet': [{'network': 'resnet19'}, {'stem': 'x'}, {'kind': 'x'}, {'network': 'tutorial', 'width': 8}],
       'clip': [{'n_head': 3}, {'text_embd': 15}, {'n_space': 0}, {'source_size': 0}, {'features': 0}, {'gelu': 'relu'},
                {'text_head': -1}, {'tower': 'resnet'}, {'tower': 'resnet18', 'source_size': 8},
                {'tower': 'resnet18', 'features': 8}],
       'dvae': [{'block_size': 10}, {'quantizer': 'soft'}, {'codes': 1}, {'anneal': 0}, {'restart': -1}, {'temperature': 0.0},
                {'kl': -1.0}],
       'fpt': [{'mode': 'xyz'}, {'trained': 'heads'}, {'trained': '+'}, {'readout': 'mean'}, {'readout': 'class'},
               {'kind': 'x'}, {'features': 0}, {'sees': 'x'}, {'n_head': 3}, {'trunk_arch': 'lstm'},
               {'shuffled': True}, {'mode': 'frt', 'trunk': 'some/where'}, {'trunk_dtype': 'float16'},
               {'mode': 'urt', 'trunk_dtype': 'bfloat16'}, {'trunk_arch': 'llama', 'trained': 'positions'},
               {'trunk_arch': 'llama', 'readout': 'class'}, {'shuffled': True, 'trunk': 'gpt2', 'mode': 'urt'},
               {'matrices': 'x'}, {'matrices': 'scaled'}, {'fresh': True},
               {'trunk': 'gpt2', 'shuffled': True, 'matrices': 'scaled'}],
       'dalle': [{'n_head': 3}, {'n_head': 8, 'rotary': True}, {'attention': 'row+diagonal'}, {'kernel': 2},
                 {'text_weight': 1.0}, {'caption_dropout': 1.0}, {'guidance': -1.0}]}
CASES = [(arch, change) for arch in ARCHS for change in [{}, *VARIANTS.get(arch, [])]]


def tiny_model(name, change):
    arch = load_arch(name)
    torch.manual_seed(0)
    return complete(arch.Model(dataclasses.replace(arch.Config.tiny(), **change))).eval().to(DEVICE)


@pytest.fixture(params=CASES, ids=lambda case: '-'.join([case[0], *map(str, case[1].values())]))
def case(request):
    return request.param


@pytest.fixture
def model(case):
    """The tiny Model of each file and variant."""
    return tiny_model(*case)


def example_batch(model, batch=6):
    """x and y as the model's data set gives them: tokens, with those of its memory in front, or the examples of a task."""
    c, modality, generator = model.config, model.modality, torch.Generator().manual_seed(1)
    integers = functools.partial(torch.randint, generator=generator)
    size = getattr(c, 'source_size', c.block_size)
    if modality in ('text', 'masked text'):
        x = integers(c.vocab_size, (batch, model.memory + c.block_size))
        y = x.flip(1)[:, -c.block_size:]
    elif modality == 'images':
        x = torch.randn(batch, c.channels, c.height, c.width, generator=generator)
    else:
        x = torch.randn(batch, size, c.features, generator=generator) if c.features else integers(c.vocab_size, (batch, size))
    if modality == 'patches':
        y = x
    elif modality in ('pairs', 'captions', 'drawings'):
        y = integers(c.vocab_size, (batch, c.block_size))
        if modality == 'drawings':
            y[:2, 3:] = -1          # shorter captions
    elif modality in ANSWERS:
        y = {'classify': integers(c.outputs, (batch,)), 'bits': integers(2, (batch, c.outputs)).float(),
             'regress': torch.randn(batch, generator=generator)}[c.kind]
    device = next(model.parameters()).device
    return x.to(device), y.to(device)


def read_by_step(model, x, y):
    """What step() reads: x; or of a model that draws, captions and then tokens of images."""
    return y.clamp(max=model.config.codes - 1) if model.modality == 'drawings' else x


def perturb(model, scale=0.1):
    """Moves every weight away from its initial value, so that a zero does not hide a part of the model from a test."""
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        if p.requires_grad:
            p.data += scale * torch.randn(p.shape, generator=generator).to(p.device)
    return model


def expected_loss(logits, y, kind):
    """From the definition; kind: of the task, 'captions', or None for a text model."""
    if kind == 'captions':
        p = logits[:, 0] @ logits[:, 1].T
        return -(p.log_softmax(0) + p.log_softmax(1)).diagonal().mean() / 2
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
    kind = c.kind if model.modality in ANSWERS else 'captions' if model.modality == 'captions' else None
    shape = {**dict.fromkeys(ANSWERS, lambda: (c.outputs,)), 'patches': lambda: x.shape[1:],
             'captions': lambda: (2, c.n_space), 'drawings': lambda: (c.block_size + c.source_size,)}.get(
                 model.modality, lambda: (1 if model.predicts == 'last' else c.block_size, c.vocab_size))()
    assert logits.shape == (6, *shape) and loss.shape == () and model(x)[1] is None
    coded = model.modality in ('patches', 'drawings')       # their losses: tests/models/test_dalle.py
    assert coded or (loss - expected_loss(logits, y, kind)).abs() < 1e-5
    assert torch.equal(x, given[0]) and torch.equal(y, given[1]), 'forward() changed its arguments'
    assert sum(p.numel() for p in model.parameters()) < 100_000, 'Config.tiny() must have under 100,000 parameters'
    if kind in (None, 'classify') and not coded:
        limit = math.log(shape[-1])
        assert abs(loss.item() - limit) < 0.5, f'the loss begins at {loss:.2f}, far from ln({shape[-1]}) = {limit:.2f}'
        y[:2] = -1
        torch.testing.assert_close(model(x, y)[1], expected_loss(logits, y, kind), msg='targets of -1 were scored')
    if model.modality in ('text', 'masked text'):
        for T in (1, 5):
            assert model(x[:, :T])[0].shape == (6, min(T, shape[0]), c.vocab_size), f'a text of {T} tokens'


def test_trainable_parameters_get_a_gradient_and_a_step_lowers_the_loss(model):
    if model.modality in (*ANSWERS, 'captions'):
        perturb(model)
    if model.modality == 'patches':     # outside of training its codes are whole numbers
        model.train()
    optimizer, = optim.build(model, 'adamw', 1e-3, (0.9, 0.95), 0.1)
    torch.manual_seed(0)
    before = model(*example_batch(model))[1]
    before.backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and bool(p.grad.abs().max() > 0)) == p.requires_grad, name
    optimizer.step()
    torch.manual_seed(0)
    assert model(*example_batch(model))[1] < before


@torch.no_grad()
def influence(read, x, vocab_size):
    """(outputs, T): how far the logits of read(x) move, at most, when one token of x changes."""
    before, moved = read(x), []
    for t in range(x.shape[1]):
        changed = x.clone()
        changed[:, t] = (x[:, t] + 1) % vocab_size if x.dtype == torch.int64 else x[:, t].flip(0)
        moved.append((read(changed) - before).abs().amax((0, -1)))
    return torch.stack(moved, -1).view(-1, x.shape[1])


def check_influence(model):
    """Every token has an influence, on the logits at its own position too, and none, not even by rounding, on those before it;
    unless the model declares leaks = True.  A bidirectional one sees both neighbours of a token, and not the token itself."""
    (x, y), V = example_batch(model), getattr(model.config, 'vocab_size', 0)
    moved = influence(model.infill if model.bidirectional else lambda x: model(x, y)[0], x, V)
    assert (moved.amax(0) > 1e-6).all(), 'a token is ignored'
    if model.modality in (*ANSWERS, 'captions') or model.predicts == 'last':
        return
    if model.modality == 'pairs':       # of the target, position k + 1 is the first that reads token k
        moved = influence(lambda y: model(x, y)[0], y, V)[1:, :-1]
    own = moved[:, -len(moved):]        # without the memory
    hidden, seen = own.triu(1).amax(1), own.diagonal()
    if model.bidirectional:
        hidden, seen = own.diagonal(), torch.cat([own.diagonal(1), own.diagonal(-1)])
    leaks = hidden.nonzero().flatten().tolist()
    assert bool(leaks) == model.leaks, f'leaks={model.leaks}: the logits at positions {leaks} moved with a hidden token'
    assert (seen > 1e-3).all(), 'the logits of a position ignore its own token'


def test_influence(model):
    """Also none from one example to another; -1 in a memory means that there is none, and in infill() an unknown token."""
    x, y = example_batch(perturb(model))
    if model.modality not in ('patches', 'drawings'):       # they round an example to codes
        check_influence(model)
    torch.testing.assert_close(model(x, y)[0][2:4], model(x[2:4], y[2:4])[0], atol=1e-5, rtol=1e-4)
    x[:, 0] = -1
    if model.memory:
        assert torch.equal(model(x)[0], model(x[:, model.memory:])[0])
    assert not model.bidirectional or model.infill(x).isfinite().all()


def test_it_is_saved_loaded_and_counted(model, tmp_path):
    """Its parameters are counted without memory: on the meta device, as compare.py does, and in build()."""
    torch.manual_seed(0)        # build() must not change the weights
    same = build(load_arch(type(model).__module__), dataclasses.asdict(model.config))
    assert all(torch.equal(p, q) for p, q in zip(same.parameters(), model.parameters(), strict=True))
    with torch.device('meta'):
        empty = type(model)(model.config)
    assert [(True, p.shape, p.requires_grad) for p in model.parameters()] == [(p.is_meta, p.shape, p.requires_grad)
                                                                              for p in empty.parameters()]
    save(perturb(model), tmp_path)
    again, _ = checkpoint.load_model(tmp_path)
    assert again.config == model.config and torch.equal(again(*example_batch(model))[0], model(*example_batch(model))[0])


def difference(given, expected):
    """The median error, as a fraction of the mean size: a jump of a piecewise polynomial moves few values, and those far."""
    return ((given.float() - expected).abs().median() / expected.abs().mean()).item()


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize('dtype, most', [('float64', 1e-3), ('bfloat16', 0.1), ('float16', 0.01), ('autocast', 0.1)])
def test_other_number_formats_agree_with_float32(model, dtype, most):
    """After .double(), .bfloat16(), .half() and under autocast.  float64 may differ by the error of float32."""
    x, y = example_batch(perturb(model))
    expected, loss = model(x, y)
    loss.backward()
    slope, autocast = gradient(model), dtype == 'autocast'
    model.zero_grad()
    kind = torch.bfloat16 if autocast else getattr(torch, dtype)
    if not autocast:
        x, y = (v.to(kind) if v.is_floating_point() else v for v in (x, y))
        model.to(kind)
    with torch.autocast(DEVICE, dtype=kind, enabled=autocast):
        logits, loss = model(x, y)
        if model.step:
            tokens = read_by_step(model, x, y)
            stepped, state = model.step(tokens[:, :3], model.init_state(6))
            stepped, state = model.step(tokens[:, 3:5].clamp(min=0), state)
    loss.backward()
    assert all(p.grad.dtype == p.dtype for p in model.parameters() if p.grad is not None)
    assert autocast or (logits.dtype == loss.dtype == kind and (not model.step or stepped.dtype == kind))
    assert difference(logits, expected) < most and difference(gradient(model), slope) < most


@pytest.fixture(scope='module')
def process_group():
    """Of this process alone."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def run_rank(rank, function, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    torch.save(function(rank), f'{folder}/found{rank}')
    dist.barrier()
    dist.destroy_process_group()


def in_two_processes(function, folder):
    """What function(rank) returns in each of two processes of one group."""
    torch.multiprocessing.spawn(run_rank, (function, folder), nprocs=2)
    return [torch.load(f'{folder}/found{rank}') for rank in range(2)]


@pytest.mark.parametrize('how', ['checkpointing', 'shard'])
def test_the_gradient_is_the_same(case, process_group, how):
    """With checkpointing, to the bit, and on shards, under dropout."""
    drops = hasattr(load_arch(case[0]).Config, 'dropout') and case[1].get('network') != 'mamba'
    change = case[1] | ({'dropout': 0.2} if drops else {})
    found, apply = [], shard.recompute if how == 'checkpointing' else lambda model: shard.split(model, torch.device(DEVICE), 1)
    for changed in (False, True):
        model = perturb(tiny_model(case[0], change)).train()
        if changed and how == 'shard' and case[0] in ('clip', 'convnet') and case[1].get('network') != 'tutorial':
            assert 'cannot split this model' in sentence(apply, model)
            return
        if changed:
            apply(model)
        marks = {kind: [name for name, _ in params] for kind, params in optim.groups(model).items()}
        torch.manual_seed(0)
        loss = model(*example_batch(model))[1]
        loss.backward()
        found.append((marks, loss, {name: shard.local(p.grad) for name, p in model.named_parameters() if p.requires_grad}))
    most = 1e-6 if how == 'shard' else 0        # the order in which gradients are added may differ
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1:], found[1][1:], atol=most, rtol=most, allow_subclasses=False)


@torch.no_grad()
def test_step_is_forward(model):
    """step() in pieces of any size gives the logits of forward(), and continues past the window."""
    if not model.step or model.modality not in ('text', 'masked text'):
        pytest.skip('no step(), or no text')
    (x, _), state = example_batch(perturb(model)), model.init_state(6)
    read, M = 0, model.memory
    whole = torch.cat([model(x[:, :M])[0], model(x)[0]], dim=1) if M else model(x)[0]
    if model.predicts == 'last':
        whole = torch.cat([model(x[:, :n])[0] for n in range(1, x.shape[1] + 1)], dim=1)
    for n in (1, 4, 1, 1, 2, 3, 1, 3, *((5, 9, 2) if M else ())):
        logits, state = model.step(x[:, read:read + n], state)
        read += n
        torch.testing.assert_close(logits, whole[:, read - 1], atol=1e-4, rtol=1e-4)
    assert read == x.shape[1]
    state, read = model.init_state(6), 0
    for n in (2, 3, 1, 10, *((7, 9) if M else ())):     # with a memory the second last piece is in two windows
        logits, state = model.step(x[:, read:read + n], state, every=True)
        torch.testing.assert_close(logits, whole[:, read:read + n], atol=1e-4, rtol=1e-4)
        read += n
    for i in range(2 * model.config.block_size):
        logits, state = model.step(x[:, i % read, None], state)
        assert logits.shape == (6, model.config.vocab_size) and logits.isfinite().all()


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


def gpu_error(make, *args):
    """The error, as text, if a tensor stays behind in what a command does with the model make(*args) on a GPU."""
    model = complete(make(*args))
    batch = example_batch(model)
    try:
        with FakeTensorMode() as mode:
            move = lambda t: mode.from_tensor(t).to('gpu')      # noqa: E731
            model._apply(move)
            x, y = map(move, batch)
            logits, loss = model(x, y)
            loss.backward()
            assert {t.device.type for t in (logits, loss, *(p.grad for p in model.parameters() if p.requires_grad))} == {'gpu'}
            if model.step:
                tokens = read_by_step(model, x, y)
                _, state = model.step(tokens[:, :3], model.init_state(len(x)))
                assert model.step(tokens[:, 3:5].clamp(min=0), state)[0].device.type == 'gpu'
            for optimizer in optim.build(model, 'muon', 1e-3, (0.9, 0.95), 0.1):
                optimizer.step()
    except Exception as e:
        return f'{type(e).__name__}: {e}'
    return ''


def test_nothing_is_left_on_the_cpu(case, gpu_process):
    error = gpu_process.submit(gpu_error, tiny_model, *case).result()
    if error.startswith('NotImplementedError'):         # nn.GRU, for example
        pytest.skip(f'torch does not know the shapes of an operation: {error[:100]}')
    assert not error


@pytest.mark.parametrize('arch', ARCHS)
def test_torch_compile_reads_the_forward_as_one_graph(arch):
    """A graph break would send each part of the model to the GPU on its own, with Python between them."""
    model = tiny_model(arch, {}).train()
    torch._dynamo.reset()
    with torch.random.fork_rng():
        batch = example_batch(model)
        found = torch._dynamo.explain(model)(*batch)
        if model.modality == 'text' and model.predicts == 'every' and not model.memory:     # of another size
            shorter = torch._dynamo.explain(model)(*(t[:, :9] for t in batch))
            assert shorter.graph_break_count == 0, shorter.break_reasons
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


# the files, and the contract itself -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('arch', ARCHS)
def test_model_file_stands_alone(arch):
    """It imports nothing of ours but model files at its head, and every setting has a default and a comment."""
    module, text = importlib.import_module(arch), (ROOT / f'{arch}.py').read_text(encoding='utf-8')
    assert not re.findall(r'^(?:import|from) (?:harness|train|race|views|extras)\b', text, re.M)
    comments = dict(re.findall(r'^ {4}(\w+): .*?#\s*(.*)$', inspect.getsource(module.Config), re.M))
    assert {f.name for f in dataclasses.fields(module.Config())} == comments.keys()


@pytest.mark.parametrize('arch, settings', [(arch, settings) for arch, each in BAD.items() for settings in each], ids=str)
def test_impossible_settings_are_named(arch, settings):
    arch = load_arch(arch)
    said, (name, value) = sentence(build, arch, dataclasses.asdict(arch.Config.tiny()) | settings), [*settings.items()][-1]
    assert name.removeprefix('input_') in said and str(value) in said


class Newcomer(nn.Module):
    """The least that a model file must define.  future: it reads one token too many.  on_cpu: it has a tensor, no buffer."""

    def __init__(self, config, future=False, on_cpu=False):
        super().__init__()
        self.config, self.future, self.scale = config, future, torch.ones(16) if on_cpu else 1
        self.wte, self.rnn = nn.Embedding(config.vocab_size, 16), nn.RNN(16, 16, batch_first=True)

    def forward(self, x, y=None):
        logits = self.rnn(self.wte(x.roll(-1, 1) if self.future else x))[0] * self.scale @ self.wte.weight.T
        return logits, None if y is None else nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)


def newcomer(*options):
    torch.manual_seed(0)
    return complete(Newcomer(importlib.import_module('model').Config.tiny(), *options))


def test_defaults_complete_a_model_and_replace_nothing():
    plain, own = newcomer(), complete(type('Own', (Newcomer,), {'memory': 3, 'step': lambda self, token, state: 'own'})(
        importlib.import_module('model').Config.tiny()))
    assert all(hasattr(plain, name) for name in contract_names()) and {'predicts', 'memory', 'step'} <= {*contract_names()}
    assert (plain.predicts, plain.memory, plain.leaks, plain.step, plain.metrics()) == ('every', 0, False, None, {})
    assert (plain.modality, own.memory, own.step(0, 0)) == ('text', 3, 'own')


def test_the_checks_find_what_they_look_for(gpu_process):
    check_influence(newcomer())
    with pytest.raises(AssertionError, match=r'leaks=False: the logits at positions \[0, 1, 2, .* moved'):
        check_influence(newcomer(True))
    assert not gpu_process.submit(gpu_error, newcomer).result()
    assert re.search(r'cpu|FakeTensor', gpu_process.submit(gpu_error, newcomer, False, True).result())
