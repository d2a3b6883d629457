"""fpt.py: which parameters are trained, trunks of every origin, and what a checkpoint holds of them."""

import dataclasses
import json
import re
import shutil
import sys

import pytest
import safetensors.torch
import torch
import torch.nn as nn
from conftest import printed, save, sentence
from torch.utils.flop_counter import FlopCounterMode

import bench
import dalle
import fpt
import mamba
import train
import vit
from harness import ROOT, checkpoint, files, optim
from harness import gguf as reader
from harness.arch import build, load_arch
from tests.models.test_gpt2 import point_to
from tests.models.test_llama import SHAPE, write_gguf
from tests.models.test_published import theirs

NORMS = [f'{n}.{p}' for n in ('h.0.ln_1', 'h.0.ln_2', 'h.1.ln_1', 'h.1.ln_2', 'ln_f') for p in ('weight', 'bias')]
NEW = ['input.weight', 'input.bias', 'output.weight', 'output.bias']


def tiny(**change):
    torch.manual_seed(0)
    return fpt.Model(dataclasses.replace(fpt.Config.tiny(), **change)).eval()


def trained(model):
    return [n for n, p in model.named_parameters() if p.requires_grad]


@pytest.fixture
def x():
    return torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder of a run of a small GPT."""
    folder = tmp_path_factory.mktemp('trunk')
    other_run('model', folder, bias=False)
    return folder


QK_NORM = {'qk_norm': True, 'n_kv_head': 1}


def other_run(arch, folder, **change):
    """The trunk of a small run of a model file, saved in the folder."""
    torch.manual_seed(3)
    module = load_arch(arch)
    trunk = module.Model(dataclasses.replace(module.Config.tiny(), **change)).eval()
    for p in trunk.parameters():
        p.data += 0.1 * torch.randn(p.shape)
    save(trunk, folder)
    return trunk


def read_out(model, trunk, h, position):
    """The output layer behind the trunk's own blocks.  h: (B, T, C), the input of the first block."""
    for block in trunk.h:
        h = block(h)
    return model.output(trunk.ln_f(h)[:, position])


# trained parameters -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('change', 'names'), [
    ({'mode': 'fpt'}, r'(input|output|wpe|.*ln_\w)\.'), ({'mode': 'frt'}, r'(input|output|wpe|.*ln_\w)\.'),
    ({'mode': 'urt'}, ''), ({'mode': 'upt'}, ''), ({'trained': 'input'}, r'input\.'), ({'trained': 'norms'}, r'.*ln_\w\.'),
    ({'trained': 'output+positions'}, r'(output|wpe)\.'), ({'trained': 'attention'}, r'h\.\d\.attn\.c_(attn|proj)\.'),
    ({'trained': 'feed_forward'}, r'h\.\d\.mlp\.c_(fc|proj)\.')])
def test_which_parameters_are_trained(change, names):
    model = tiny(**change)
    assert trained(model) == [n for n, _ in model.named_parameters() if re.match(names, n)] != []


def test_original_count_on_mnist():
    """59,146 trained weights on gpt2 with frozen positions; random weights of its shape are not downloaded."""
    c = fpt.Config(block_size=64, features=16, outputs=10, trunk='gpt2', mode='frt', trained='input+norms+output')
    with torch.device('meta'):
        models = [fpt.Model(c), fpt.Model(dataclasses.replace(c, trained=''))]
    assert [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in models] == [59_146, 59_146 + 64 * 768]


def test_frozen_weights_stay_and_have_no_optimizer_state(x):
    model = tiny(dropout=0.1).train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer, = optim.build(model, 'adamw', 1e-2, (0.9, 0.95), 0.1)
    for _ in range(3):
        model(x, torch.ones(3, 5))[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == set(trained(model))
    assert len(optimizer.state) == len(trained(model))


def linear(model, *patterns):
    """The linear layers whose names contain one of the patterns: (name, multiplications of a forward pass)."""
    return [(name, (3 if name == 'output' else 6) * m.weight.numel()) for name, m in model.named_modules()
            if isinstance(m, nn.Linear) and any(p in name for p in patterns)]


ALL = 'h.', 'output'


@pytest.mark.parametrize(('arch', 'parts', 'weights', 'inputs'), [
    *((arch, parts, weights, inputs) for arch in fpt.TRUNKS for parts, weights, inputs in [
        ('output', ['output'], []), ('', ['input', 'output'], ALL)]),
    ('model', 'norms+output', ['output'], ALL), ('model', 'input', ['input'], ALL), ('model', 'norms', [], ALL),
    ('model', 'feed_forward', ['mlp'], ['0.mlp.c_proj', 'h.1', 'output']),
    ('model', 'attention', ['attn'], ['0.attn.c_proj', 'mlp', 'h.1', 'output']),
    ('model', '+'.join(fpt.PARTS), ['input', *ALL], ALL)])
def test_the_backward_pass_computes_only_what_is_trained(arch, parts, weights, inputs, x):
    """The products for the gradients of a layer's weight and input only if a part needs them; with the output, nothing kept."""
    model = tiny(trunk_arch=arch, trained=parts)
    kept = []
    model.ln_f.register_forward_hook(lambda module, args, output: kept.append(output.requires_grad))
    with FlopCounterMode(display=False):
        loss = model(x, torch.ones(3, 5))[1]
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    found = sum(n for op, n in counter.get_flop_counts()['Global'].items() if str(op) in ('aten.mm', 'aten.addmm'))
    assert found == 2 * sum(n for _, n in linear(model, *weights) + linear(model, *inputs)) and kept == [parts != 'output']
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_what_is_trained_is_printed(task_data):
    """Of a Llama: it has no positions."""
    shown = printed(train.main, ['--arch=fpt', f'--dataset={task_data("bits").name}', '--trunk_arch=llama', '--n_embd=16',
                                 '--n_layer=1', '--dry_run', '--device=cpu'])
    assert 'of which 196 are trained (input 80, h 32, ln_f 16, output 68)' in shown


@pytest.mark.parametrize('arch', fpt.TRUNKS)
def test_bfloat16(arch, tmp_path, x):
    """Frozen matrices in bfloat16, which has 8 bits; all else, and all gradients, in float32."""
    other_run(arch, tmp_path / 'trunk', **(QK_NORM if arch == 'llama' else {}))
    whole, half = (tiny(trunk=str(tmp_path / 'trunk'), features=5, trunk_dtype=kind) for kind in ('float32', 'bfloat16'))
    assert half.config.trunk_hash == whole.config.trunk_hash
    matrices = {p for m in half.h.modules() if isinstance(m, nn.Linear) for p in m.parameters()}
    assert {p.dtype for p in matrices} == {torch.bfloat16} and len(matrices) >= 8
    assert {p.dtype for p in half.parameters() if p not in matrices} == {torch.float32}
    (expected, _), (found, low) = (m(x, torch.ones(3, 5)) for m in (whole, half))
    low.backward()
    assert 0 < (found - expected).abs().max() < 2 ** -5 * expected.abs().max() and found.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in half.parameters() if p.requires_grad)
    save(half, tmp_path / 'run')
    assert torch.equal(checkpoint.load_model(tmp_path / 'run')[0](x)[0], found)
    with torch.device('meta'):
        assert optim.memory(half, 'adamw') == optim.memory(fpt.Model(half.config), 'adamw') < optim.memory(whole, 'adamw')


@pytest.mark.parametrize('kind', ['float32', 'bfloat16'])
def test_resume_is_exact(kind, run, task_data, tmp_path):
    """Also with dropout in the trunk."""
    words = ['--arch=fpt', f'--dataset={task_data("bits").name}', f'--trunk={run}', f'--trunk_dtype={kind}', '--dropout=0.1',
             '--schedule=constant', '--eval_interval=2', '--eval_windows=8', '--warmup_iters=0', '--dtype=float32']
    for out, *more in (['whole', '--max_iters=4'], ['part', '--max_iters=2'], ['part', '--max_iters=4', '--resume']):
        printed(train.main, [*words, f'--out_dir={tmp_path / out}', *more])
    whole, part = (checkpoint.load(tmp_path / name / 'ckpt.pt')['model'] for name in ('whole', 'part'))
    assert whole.keys() == part.keys() and all(torch.equal(whole[k], part[k]) for k in whole)


@pytest.mark.parametrize('mode', ['fpt', 'upt'])
def test_a_short_convolution_is_a_part_of_attention(mode, tmp_path, x):
    other_run('model', tmp_path / 'trunk', short_conv=3)
    model = tiny(trunk=str(tmp_path / 'trunk'), features=5, mode=mode)
    assert (mode == 'upt') == all(p.requires_grad for p in model.parameters()) == (not model.frozen_names)
    model.h[0].short_conv.conv.weight.data += mode == 'upt'
    save(model, tmp_path / 'run')
    assert torch.equal(checkpoint.load_model(tmp_path / 'run')[0](x)[0], model(x)[0])


def test_bench_of_a_task(run, task_data, tmp_path):
    """On the examples of its data set.  A record has every time, not only their median."""
    (tmp_path / 'small.py').write_text(f"arch, dataset, trunk = 'fpt', '{task_data('bits').name}', '{run}'\n")
    shown = printed(bench.main, ['train', str(tmp_path / 'small.py'), '--rounds=3', f'--out={tmp_path / "speed.json"}',
                                 '--batch_size=2', '--device=cpu'])
    assert 'small' in shown and '2 x 3' in shown
    record = json.loads((tmp_path / 'speed.json').read_text())
    row, = record['speeds']
    assert len(row['times']) == 3 and sorted(row['times'])[1] == row['seconds'] and 'commit' in record


# trunks ---------------------------------------------------------------------------------------------------------------------

def test_keep_embedding(run, tmp_path):
    """The input layer begins as the trunk's, and with all parts frozen answers as the trunk itself; a checkpoint holds it."""
    shape = {'trunk': str(run), 'vocab_size': 17, 'features': 0, 'keep_embedding': True}
    model, trunk, x = tiny(**shape), checkpoint.load_model(run)[0], torch.tensor([[3, 16], [0, 5]])
    torch.testing.assert_close(model(x)[0], read_out(model, trunk, trunk.wte(x) + trunk.wpe.weight[:2], -1))
    model.input.weight.data += 1
    save(model, tmp_path)
    torch.testing.assert_close(checkpoint.load_model(tmp_path)[0](x)[0], model(x)[0])
    for change, words in (({'vocab_size': 18}, '17 tokens.*vocab_size=18'), ({'trunk': 'random'}, 'trunk=random'),
                          ({'mode': 'urt'}, 'mode=urt'), ({'vocab_size': 0, 'features': 5}, 'vocab_size=0')):
        with pytest.raises(ValueError, match=words):
            tiny(**shape | change)
    for arch, name, more in (('llama', 'embed_tokens', 0), ('bert', 'wte', 1)):         # [MASK] is the last token of a BERT
        other = other_run(arch, tmp_path / arch)
        model = tiny(**shape | {'trunk': str(tmp_path / arch), 'vocab_size': other.config.vocab_size - more})
        assert torch.equal(model.input.weight, getattr(other, name).weight[:model.config.vocab_size])


def test_trunk_of_a_run(run, tmp_path, x):
    """Its shape, whatever the config has, and the answer of its own blocks between two new layers."""
    model, trunk = tiny(trunk=str(run), n_layer=7, n_embd=64), checkpoint.load_model(run)[0]
    c = model.config
    assert (c.n_layer, c.n_embd, c.n_head, c.bias, c.positions, c.sees) == (2, 16, 2, False, 16, 'back')
    torch.testing.assert_close(model(x)[0], read_out(model, trunk, model.input(x) + trunk.wpe.weight[:2], -1))
    random = tiny(trunk=str(run), mode='frt')
    assert all(getattr(random.config, k) == getattr(c, k) for k in (*fpt.SHAPE, 'positions', 'sees'))
    long = tiny(trunk=str(run), block_size=20)          # positions beyond those of the trunk are new
    assert torch.equal(long.wpe.weight[:16], trunk.wpe.weight) and long.wpe.weight[16:].std() > 0
    save(mamba.Model(mamba.Config.tiny()), tmp_path)
    for change, words in (({'trunk': str(tmp_path)}, "arch='mamba'"), ({'trunk': 'no_such'}, "'no_such'"),
                          ({'trunk_arch': 'llama', 'shape': {'n_kv_heads': 2}}, "'n_kv_heads'.* arch=llama"),
                          ({'block_size': 20, 'trained': 'input+output'}, '16 positions .* 20 tokens')):
        assert re.search(words, refused(**change))


@pytest.mark.parametrize('change', [{}, QK_NORM, {'rope_layout': 'interleaved', 'head_dim': 6, 'rope_base': 50.0}], ids=str)
def test_a_llama(tmp_path, x, change):
    """It adds no positions: those are in its attention; its window slides over longer examples."""
    trunk = other_run('llama', tmp_path / 'trunk', **change)
    model = tiny(trunk=str(tmp_path / 'trunk'))
    torch.testing.assert_close(model(x)[0], model.output(trunk.trunk(model.input(x))[:, -1]))
    gains = [n for n, p in model.named_parameters() if 'norm' in n]
    assert model.wpe is None and len(gains) == (8 if change == QK_NORM else 4)
    assert {*trained(model)} == {*NEW, *gains, 'ln_f.weight'} and model.config.positions == trunk.config.block_size
    long = tiny(trunk=str(tmp_path / 'trunk'), block_size=20, trained='input+output')
    y = torch.randn(3, 20, 5)
    torch.testing.assert_close(long(y)[0], long.output(trunk.trunk(long.input(y))[:, -1]))


def test_a_bert(tmp_path, x):
    """Its positions, no grid, with the embedding of token type 0, the norm of its embeddings, and post-norm blocks."""
    trunk = other_run('bert', tmp_path / 'trunk', n_hidden=24)
    model = tiny(trunk=str(tmp_path / 'trunk'), block_size=4)
    y = torch.randn(3, 4, 5)
    h = trunk.ln(model.input(y) + trunk.wpe.weight[:4] + trunk.types.weight[0])
    for block in trunk.h:
        h = block(h)
    torch.testing.assert_close(model(y)[0], model.output(h[:, -1]))
    assert {*trained(model)} == {*NEW, *NORMS[:-2], 'ln.weight', 'ln.bias', 'wpe.weight'} and model.config.sees == 'both'


@pytest.mark.parametrize(('arch', 'change'), [('model', {'bias': False}), ('llama', QK_NORM), ('bert', {'n_hidden': 24})])
def test_modes_and_their_checkpoints(arch, change, tmp_path, x):
    """Random weights need the shape only, a checkpoint of frozen ones needs the same trunk, and one of trained ones nothing."""
    folder = tmp_path / 'trunk'
    trunk = other_run(arch, folder, **change)
    models = {mode: tiny(trunk=str(folder), mode=mode) for mode in fpt.MODES} | {
        'shuffled': tiny(trunk=str(folder), shuffled=True), 'norms': tiny(trunk=str(folder), trained='norms'),
        'scaled': tiny(trunk=str(folder), matrices='scaled'), 'initial': tiny(trunk=str(folder), matrices='initial'),
        'fresh': tiny(trunk=str(folder), fresh=True), 'none': tiny(trunk=str(folder), matrices='initial', fresh=True)}
    shapes = {tuple((n, p.shape) for n, p in m.named_parameters()) for m in models.values()}
    assert len(shapes) == 1 and all(m.config.shape == models['fpt'].config.shape for m in models.values())
    with torch.device('meta'):          # as a race builds it, for its size
        assert tiny(trunk=str(folder), matrices='scaled').wpe is None or arch != 'llama'
    torch.manual_seed(99)
    for name, model in models.items():
        frozen = set() if name[0] == 'u' else {n for n, p in model.named_parameters() if not p.requires_grad} - {*NEW}
        assert {*model.state_dict()} == {n for n, _ in model.named_parameters()} - frozen
        save(model, tmp_path / name)
        again, content = checkpoint.load_model(tmp_path / name)
        assert torch.equal(again(x)[0], model(x)[0])
        assert len(content['config']['trunk_hash']) == 16 and json.dumps(content['config'])
    for p, q in zip(models['fpt'].h.parameters(), models['shuffled'].h.parameters(), strict=True):
        assert torch.equal(p, q) == (p.dim() == 1) and torch.equal(p.flatten().sort().values, q.flatten().sort().values)
    assert arch == 'llama' or torch.equal(models['fpt'].wpe.weight, models['shuffled'].wpe.weight)
    rows = zip(*([*models[name].named_parameters()] for name in ('fpt', 'frt', 'scaled', 'initial', 'fresh', 'none')),
               strict=True)
    for (name, p), (_, random), (_, scaled), (_, initial), (_, fresh), (_, none) in rows:
        assert torch.equal(none, random)            # everything replaced is a random trunk
        if name not in NEW:
            matrix = p.dim() > 1 and name != 'wpe.weight'
            assert torch.equal(initial, random if matrix else p) and torch.equal(fresh, p if matrix else random)
            torch.testing.assert_close(scaled, random * (p.std() / random.std()) if matrix else p)
    blocks = getattr(trunk, fpt.TRUNKS[arch].blocks)
    assert all(torch.equal(p, q) for p, q in zip(blocks.parameters(), models['upt'].h.parameters(), strict=True))
    next(p for p in blocks.parameters() if p.dim() == 2).data[0, 0] += 1
    save(trunk, folder)
    assert f"trunk='{folder}' has changed" in sentence(checkpoint.load_model, tmp_path / 'fpt')
    shutil.rmtree(folder)
    assert str(folder) in sentence(checkpoint.load_model, tmp_path / 'fpt')
    for name in ('frt', 'upt', 'urt'):
        assert torch.equal(checkpoint.load_model(tmp_path / name)[0](x)[0], models[name](x)[0])


@pytest.mark.parametrize('name', fpt.PUBLISHED)
def test_shapes_of_published_trunks(name):
    """Random weights of each; and the named shape is that of the weights, where these have been fetched already."""
    config = dataclasses.replace(fpt.Config.tiny(), trunk=name)
    with torch.device('meta'):
        model, random = (fpt.Model(dataclasses.replace(config, mode=mode)) for mode in ('fpt', 'frt'))
    assert model.config.shape == random.config.shape and len(model.h) == model.config.n_layer
    if (files.DOWNLOADS / name).exists():
        assert dataclasses.replace(fpt.shape_of(fpt.pretrained_trunk(name), config), trunk_seed=0) == dataclasses.replace(
            model.config, trunk_seed=0)


def test_random_trunks_depend_on_their_seed():
    a, b, c = tiny(), tiny(), tiny(trunk_seed=5)
    assert a.config.trunk_seed == 0 and a.config.trunk_hash == b.config.trunk_hash != c.config.trunk_hash
    assert torch.equal(a.h[0].attn.c_attn.weight, b.h[0].attn.c_attn.weight)
    assert not torch.equal(a.h[0].attn.c_attn.weight, c.h[0].attn.c_attn.weight)


def test_trunks_in_the_format_of_the_hub(tmp_path, x):
    """Of which random weights need the shape only."""
    theirs('GPT2LMHeadModel', tmp_path / 'gpt', n_layer=2, n_head=2, n_embd=16, n_positions=16, vocab_size=11)
    theirs('ViTModel', tmp_path / 'vit', hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
           image_size=8, patch_size=2, layer_norm_eps=0.1)
    trunk = vit.Model.from_pretrained(str(tmp_path / 'vit'))
    last, front = (tiny(trunk=str(tmp_path / 'vit'), readout=r) for r in ('last', 'class'))
    torch.testing.assert_close(last(x)[0], read_out(last, trunk, last.input(x) + trunk.wpe.weight[1:3], -1))
    h = torch.cat([trunk.cls.expand(3, -1, -1), front.input(x)], dim=1) + trunk.wpe.weight[:3]
    torch.testing.assert_close(front(x)[0], read_out(front, trunk, h, 0))
    resized = vit.Model.from_pretrained(str(tmp_path / 'vit'), block_size=9).wpe.weight         # the task has images of 3 x 3
    last, front = (tiny(trunk=str(tmp_path / 'vit'), readout=r, block_size=9) for r in ('last', 'class'))
    assert torch.equal(front.wpe.weight, resized) and torch.equal(last.wpe.weight, resized[1:])
    for name, expected in (('gpt', ('back', 'tanh', 16, 1e-5)), ('vit', ('both', 'none', 17, 0.1))):
        frozen, random = models = [tiny(trunk=str(tmp_path / name), mode=mode) for mode in ('fpt', 'frt')]
        assert all((m.config.sees, m.config.gelu, m.config.positions, m.h[0].ln_1.eps) == expected for m in models)
        assert all(getattr(random.config, field) == getattr(frozen.config, field) for field in fpt.SHAPE)
        assert not torch.equal(random.h[0].attn.c_attn.weight, frozen.h[0].attn.c_attn.weight)
        save(random, tmp_path / f'{name}_run')
        (tmp_path / name).rename(tmp_path / f'{name}_moved')
        assert torch.equal(checkpoint.load_model(tmp_path / f'{name}_run')[0](x)[0], random(x)[0])
    weights = safetensors.torch.load_file(tmp_path / 'gpt_moved' / 'model.safetensors')
    weights['transformer.h.1.mlp.c_fc.weight'] = torch.zeros(16, 48)
    safetensors.torch.save_file(weights, tmp_path / 'gpt_moved' / 'model.safetensors')
    assert all(s in refused(trunk=str(tmp_path / 'gpt_moved')) for s in ('h.1.mlp.c_fc.weight', '(48, 16)', '(64, 16)'))


def test_positions_of_a_vit(tmp_path):
    """Frozen ones that are interpolated are in the hash: a checkpoint from before holds none, and would change its function."""
    save(vit.Model(vit.Config.tiny()), tmp_path)
    trained, frozen, whole = (tiny(trunk=str(tmp_path), block_size=n, trained=parts).config.trunk_hash for n, parts in (
        (4, ''), (4, 'input+output'), (9, 'input+output')))
    assert trained == whole != frozen
    model = vit.Model(dataclasses.replace(vit.Config.tiny(), readout='mean'))           # without a class token
    save(model, tmp_path)
    assert torch.equal(tiny(trunk=str(tmp_path), block_size=9).wpe.weight, model.wpe.weight)
    assert 'readout=class' in refused(trunk=str(tmp_path), readout='class')


@pytest.mark.parametrize('trunk, expected', [
    ('out/shakespeare_gpt', True), ('out/a,b=1.5-c', True), ('gpt2', False), ('random', False), ('/tmp/out/x', False),
    ('out/', False), ('out/..', False), ('out/../x', False), ('out/x/y', False), ('out/x;y', False), ('out/x\n', False)])
def test_needs_names_folders_of_out(trunk, expected):
    assert fpt.needs({'trunk': trunk}) == dalle.needs({'vae': trunk}) == [trunk] * expected and fpt.needs({}) == dalle.needs({})


def test_labels():
    """Of the modes, and of each entrant of a record."""
    modes = [{}, {'mode': 'frt'}, {'shuffled': True}, {'sees': 'both'}, {'sees': 'both', 'mode': 'frt'}, {'trunk_arch': 'vit'},
             {'trunk_arch': 'llama', 'shuffled': True}, {'matrices': 'scaled', 'fresh': True},
             {'trunk_arch': 'bert', 'sees': 'both', 'mode': 'frt'}]
    assert [load_arch('fpt').label(s) for s in modes] == ['FPT', 'FRT', 'FPT, shuffled', 'V-FPT', 'FRT', 'V-FPT',
                                                          'FPT, llama, shuffled', 'FPT, scaled, fresh', 'FRT, bert']
    entrants = json.loads((ROOT / 'results/fpt_mnist.json').read_text())['entrants']
    assert [fpt.label(e['settings']) for e in entrants if e['arch'] == 'fpt'] == ['FPT', 'FRT', 'FPT, shuffled', 'UPT', 'URT']


# checkpoints ----------------------------------------------------------------------------------------------------------------

def test_loading_trains_no_trunk(monkeypatch, tmp_path):
    """A checkpoint names its trunk: what is missing is an error, and neither a script nor a training is started."""
    model = tiny()
    model.config = dataclasses.replace(model.config, trunk='out/shakespeare_gpt_missing')
    save(model, tmp_path)
    for name in ('subprocess.Popen', 'os.system', 'os.fork', 'os.posix_spawn', 'runpy.run_path'):
        monkeypatch.setattr(name, lambda *args, name=name, **more: pytest.fail(name))
    assert 'out/shakespeare_gpt_missing' in sentence(checkpoint.load_model, tmp_path)


# bad input ------------------------------------------------------------------------------------------------------------------

def refused(**change):
    return sentence(build, load_arch('fpt'), {**dataclasses.asdict(fpt.Config.tiny()), **change})


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """make(suffix, architecture or weights) -> the content of a GGUF of a Llama, or of an ONNX file of no more than weights."""
    folder = tmp_path_factory.mktemp('whole')
    weights = theirs('LlamaForCausalLM', folder, **SHAPE | {'vocab_size': 300}).state_dict()

    def make(suffix, kind):
        if suffix == 'gguf':
            write_gguf(folder / 'a', weights, ['F32'], architecture=kind or 'llama')
        else:
            onnx = pytest.importorskip('onnx')
            tensors = [onnx.numpy_helper.from_array(torch.zeros(shape).numpy().astype(dtype), name)
                       for name, (shape, dtype) in kind.items()]
            onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], 'graph', [], [], tensors)), folder / 'a')
        return (folder / 'a').read_bytes()
    return make


VIT = {'embeddings.cls_token': ((1, 1, 16), 'float32'), 'embeddings.position_embeddings': ((1, 5, 16), 'float32'),
       'embeddings.patch_embeddings.projection.weight': ((16, 1, 2, 2), 'float32')}
INT8 = VIT | {'embeddings.cls_token': ((1, 1, 16), 'int8')}


@pytest.mark.parametrize(('suffix', 'kind', 'change', 'missing', 'words'), [
    *((suffix, kind, change, '', ['truncated']) for suffix, kind in (('gguf', ''), ('onnx', VIT)) for change in (
        lambda c: c[:len(c) // 2], lambda c: c[:-9], lambda c: b'', lambda c: b'a text' * 99)),
    ('gguf', 'phi3', None, '', ["'phi3'", 'llama, qwen3']), ('gguf', '', None, 'gguf', ['pip install gguf']),
    ('onnx', VIT, None, 'onnx', ['pip install onnx']),
    ('onnx', {'conv1.weight': ((6, 3, 5, 5), 'float32')}, None, '', ['not the weights of a ViT', 'of a Llama']),
    ('onnx', INT8, None, '', ['cls is int8'])])
def test_a_trunk_that_cannot_be_read(whole, suffix, kind, change, missing, words, tmp_path, monkeypatch):
    path, content = tmp_path / f'this.{suffix}', whole(suffix, kind)
    assert 'this.' in refused(trunk=str(path))          # there is no such file
    path.write_bytes(change(content) if change else content)
    reader.read.cache_clear()
    if suffix == 'onnx':
        (tmp_path / 'config.json').write_text('{"model_type": "vit", "num_attention_heads": 2}' if kind is INT8 else '{}')
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    message = refused(trunk=str(path))
    assert all(word in message for word in ['this.', *words]), message


def test_hub_that_cannot_be_reached(monkeypatch, root):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(root / 'cache'))
    point_to('http://127.0.0.1:9', monkeypatch)
    assert 'http://127.0.0.1:9/openai-community/gpt2/resolve/main/config.json' in refused(trunk='gpt2')
