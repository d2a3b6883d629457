"""fpt.py: what is trained by name and number, trunks of every origin, and what a checkpoint holds of them."""

import dataclasses
import json
import shutil

import pytest
import safetensors.torch
import torch
from conftest import sentence

import fpt
import model as gpt
import vit
from harness import checkpoint, config, optim

NORMS = ['ln_1.weight', 'ln_1.bias', 'ln_2.weight', 'ln_2.bias']
MNIST = {'block_size': 64, 'features': 16, 'outputs': 10, 'kind': 'classify'}


def tiny(**change):
    torch.manual_seed(0)
    return fpt.Model(dataclasses.replace(fpt.Config.tiny(), **change))


def trained(model):
    return [n for n, p in model.named_parameters() if p.requires_grad]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder of a run of a small GPT."""
    folder = tmp_path_factory.mktemp('trunk')
    torch.manual_seed(3)
    model = gpt.Model(dataclasses.replace(gpt.Config.tiny(), bias=False))
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape)
    checkpoint.save(folder / 'ckpt.pt', {'arch': 'model', 'config': dataclasses.asdict(model.config), 'step': 1,
                                         'model': model.state_dict(), 'data': {}})
    return folder


# what is trained ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('mode', ['fpt', 'frt'])
def test_frozen_modes_train_input_output_positions_and_norms(mode):
    assert sorted(trained(tiny(mode=mode))) == sorted([
        'input.weight', 'input.bias', 'output.weight', 'output.bias', 'wpe.weight', 'ln_f.weight', 'ln_f.bias',
        *(f'h.{i}.{n}' for i in range(2) for n in NORMS)])


@pytest.mark.parametrize('mode', ['urt', 'upt'])
def test_unfrozen_modes_train_all(mode):
    model = tiny(mode=mode)
    assert trained(model) == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize(('part', 'names'), [
    ('input', ['input.weight', 'input.bias']), ('output', ['output.weight', 'output.bias']), ('positions', ['wpe.weight']),
    ('norms', [*(f'h.{i}.{n}' for i in range(2) for n in NORMS), 'ln_f.weight', 'ln_f.bias']),
    ('attention', [f'h.{i}.attn.{layer}.{n}' for i in range(2) for layer in ('c_attn', 'c_proj') for n in ('weight', 'bias')]),
    ('feed_forward', [f'h.{i}.mlp.{layer}.{n}' for i in range(2) for layer in ('c_fc', 'c_proj') for n in ('weight', 'bias')])])
def test_each_part_has_its_own_switch(part, names):
    assert sorted(trained(tiny(trained=part))) == sorted(names)


def test_the_seeds_count_on_mnist():
    """59,146 trained weights on gpt2 with positions frozen; random weights of its shape need no download."""
    c = fpt.Config(**MNIST, trunk='gpt2', mode='frt', trained='input+norms+output')
    with torch.device('meta'):
        model = fpt.Model(c)
        whole = fpt.Model(dataclasses.replace(c, trained=''))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 59_146
    assert sum(p.numel() for p in whole.parameters() if p.requires_grad) == 59_146 + 64 * 768
    assert (model.config.n_layer, model.config.n_head, model.config.n_embd) == (12, 12, 768)


def test_frozen_weights_stay_and_have_no_optimizer_memory():
    model = tiny(dropout=0.1)
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer, = optim.build(model, 'adamw', 1e-2, (0.9, 0.95), 0.1)
    x, y = torch.randn(4, 2, 5), torch.randint(2, (4, 5)).float()
    for _ in range(3):
        model(x, y)[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(trained(model))
    assert len(optimizer.state) == len(trained(model))


def test_a_frozen_gpt_answers_as_its_blocks_do(run):
    """Against the trunk's own code: GPT's blocks, positions and norm around two layers of ours."""
    model, trunk = tiny(trunk=str(run)).eval(), checkpoint.load_model(run)[0]
    x = torch.randn(3, 2, 5)
    h = model.input(x) + trunk.wpe.weight[:2]
    for block in trunk.h:
        h = block(h)
    torch.testing.assert_close(model(x)[0], model.output(trunk.ln_f(h)[:, -1]))


# trunks ---------------------------------------------------------------------------------------------------------------------

def test_a_trunk_of_ours_tells_its_shape(run):
    c = tiny(trunk=str(run), n_layer=7, n_embd=64).config
    assert (c.n_layer, c.n_embd, c.n_head, c.bias, c.positions, c.sees) == (2, 16, 2, False, 16, 'back')


def test_random_trunks_are_those_of_the_seed():
    a, b = tiny(), tiny()
    assert a.config.trunk_seed == 0 and torch.equal(a.h[0].attn.c_attn.weight, b.h[0].attn.c_attn.weight)
    other = tiny(trunk_seed=5)
    assert other.config.trunk_hash != a.config.trunk_hash
    assert not torch.equal(a.h[0].attn.c_attn.weight, other.h[0].attn.c_attn.weight)


def test_more_positions_than_the_trunk_knows(run):
    long = {'block_size': 20, 'trunk': str(run)}
    model = tiny(**long)
    known = checkpoint.load_model(run)[0].wpe.weight
    assert torch.equal(model.wpe.weight[:16], known) and 0.1 < model.wpe.weight[16:].std() / known.std() < 3
    with pytest.raises(ValueError, match='the trunk knows 16 positions and an example has 20: train positions'):
        tiny(**long, trained='input+output')


def hub_folder(folder, seed=0):
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, vocab_size=11)).save_pretrained(folder)
    return folder


def test_a_gpt2_and_a_vit_in_the_hubs_format(tmp_path):
    from transformers import ViTConfig, ViTModel
    model = tiny(trunk=str(hub_folder(tmp_path / 'gpt')))
    assert (model.config.sees, model.config.gelu, model.config.positions) == ('back', 'tanh', 16)
    ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=8,
                       patch_size=2)).save_pretrained(tmp_path / 'vit')
    last, first = (tiny(trunk=str(tmp_path / 'vit'), readout=r).eval() for r in ('last', 'class'))
    trunk = vit.Model.from_pretrained(str(tmp_path / 'vit'))
    assert last.config.sees == 'both' and last.h[0].ln_1.eps == 1e-12
    assert torch.equal(last.wpe.weight, trunk.wpe.weight[1:3]) and torch.equal(first.wpe.weight, trunk.wpe.weight[:3])
    assert torch.equal(first.cls, trunk.cls) and last.cls is None
    x = torch.randn(3, 2, 5)
    h = torch.cat([trunk.cls.expand(3, -1, -1), first.input(x)], dim=1) + trunk.wpe.weight[:3]
    for block in trunk.h:
        h = block(h)
    torch.testing.assert_close(first(x)[0], first.output(trunk.ln_f(h)[:, 0]))


def test_a_shuffled_trunk_has_the_same_numbers_in_other_places(run, tmp_path):
    plain, shuffled = tiny(trunk=str(run)), tiny(trunk=str(run), shuffled=True)
    for (name, p), q in zip(plain.h.named_parameters(), shuffled.h.parameters(), strict=True):
        assert torch.equal(p, q) == (p.dim() == 1), name
        assert torch.equal(p.flatten().sort().values, q.flatten().sort().values)
    assert torch.equal(plain.wpe.weight, shuffled.wpe.weight)
    save(shuffled, tmp_path)
    x = torch.randn(3, 2, 5)
    assert torch.equal(checkpoint.load_model(tmp_path)[0](x)[0], shuffled.eval()(x)[0])


# checkpoints ----------------------------------------------------------------------------------------------------------------

def save(model, folder):
    checkpoint.save(folder / 'ckpt.pt', {'arch': 'fpt', 'config': dataclasses.asdict(model.config), 'step': 1,
                                         'model': model.state_dict(), 'data': {}})


def test_a_checkpoint_holds_what_was_trained_and_the_name_of_the_rest(run, tmp_path):
    model = tiny(trunk=str(run))
    save(model, tmp_path)
    content = checkpoint.load(tmp_path / 'ckpt.pt')
    assert sorted(content['model']) == sorted(trained(model))
    assert content['config']['trunk'] == str(run) and len(content['config']['trunk_hash']) == 16


def test_untrained_new_layers_are_kept(run, tmp_path):
    model = tiny(trunk=str(run), trained='norms')
    save(model, tmp_path)
    torch.manual_seed(99)
    x = torch.randn(3, 2, 5)
    assert torch.equal(checkpoint.load_model(tmp_path)[0](x)[0], model.eval()(x)[0])


def test_a_trunk_that_is_gone_or_another(run, tmp_path):
    trunk, folder = tmp_path / 'trunk', tmp_path / 'run'
    shutil.copytree(run, trunk)
    folder.mkdir()
    save(tiny(trunk=str(trunk)), folder)
    content = checkpoint.load(trunk / 'ckpt.pt')
    content['model']['h.0.attn.c_proj.weight'][0, 0] += 1
    checkpoint.save(trunk / 'ckpt.pt', content)
    assert 'is no longer what this run was trained with' in sentence(checkpoint.load_model, folder)
    shutil.rmtree(trunk)
    assert 'neither a checkpoint or file at hand nor a model on the hub' in sentence(checkpoint.load_model, folder)


def test_a_trunk_that_was_trained_throughout_is_not_asked_for_again(run, tmp_path):
    trunk, folder = tmp_path / 'trunk', tmp_path / 'run'
    shutil.copytree(run, trunk)
    folder.mkdir()
    model = tiny(trunk=str(trunk), mode='upt')
    save(model, folder)
    shutil.rmtree(trunk)
    x = torch.randn(3, 2, 5)
    assert torch.equal(checkpoint.load_model(folder)[0](x)[0], model.eval()(x)[0])


# bad input ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('change', 'said'), [
    ({'mode': 'xyz'}, "mode='xyz' is unknown: fpt, frt, upt, urt are"), ({'trained': 'heads'}, "there is no part 'heads'"),
    ({'readout': 'mean'}, "readout='mean' is unknown"), ({'features': 0}, 'one of the two must be above 0'),
    ({'readout': 'class'}, 'a GPT has no class token'), ({'kind': 'x'}, "kind='x' is unknown"),
    ({'trunk': 'some/where', 'mode': 'frt'}, 'its shape is not known here'),
    ({'trunk': 'no_such_trunk'}, "'no_such_trunk' is neither a checkpoint or file at hand nor a model on the hub"),
    ({'n_head': 3}, 'n_embd=16 is not divisible by n_head=3')])
def test_settings_that_cannot_be(change, said):
    values = {k: v for k, v in (dataclasses.asdict(fpt.Config.tiny()) | change).items() if k != 'bias'}
    assert said in sentence(config.build_model, fpt, values)


def test_weights_of_another_shape(tmp_path):
    folder = hub_folder(tmp_path / 'gpt')
    weights = safetensors.torch.load_file(folder / 'model.safetensors')
    weights['transformer.h.1.mlp.c_fc.weight'] = torch.zeros(16, 48)
    safetensors.torch.save_file(weights, folder / 'model.safetensors')
    values = dataclasses.asdict(fpt.Config.tiny()) | {'trunk': str(folder)}
    assert 'h.1.mlp.c_fc.weight is (48, 16), and not (64, 16)' in sentence(config.build_model, fpt, values)


def test_a_trunk_that_is_no_gpt(tmp_path):
    import mamba
    model = mamba.Model(mamba.Config.tiny())
    checkpoint.save(tmp_path / 'ckpt.pt', {'arch': 'mamba', 'config': dataclasses.asdict(model.config), 'step': 1,
                                           'model': model.state_dict(), 'data': {}})
    values = dataclasses.asdict(fpt.Config.tiny()) | {'trunk': str(tmp_path)}
    assert "is of arch 'mamba': a GPT (model) or a ViT (vit) is wanted" in sentence(config.build_model, fpt, values)


def test_a_hub_that_cannot_be_reached(monkeypatch, root):
    from harness import hub
    monkeypatch.setattr(hub, 'HUB', 'http://127.0.0.1:9')
    values = dataclasses.asdict(fpt.Config.tiny()) | {'trunk': 'gpt2'}
    said = sentence(config.build_model, fpt, values)
    assert 'put http://127.0.0.1:9/openai-community/gpt2/resolve/main/config.json by hand at' in said


def test_json_of_a_config_is_plain(run):
    json.dumps(dataclasses.asdict(tiny(trunk=str(run)).config))
