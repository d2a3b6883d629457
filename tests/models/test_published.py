"""Published weights, against transformers in both directions: what is in its files is honoured, or refused by name."""

import dataclasses
import json
import math
import re
from collections import namedtuple

import pytest
import safetensors.torch
import torch
import transformers

from harness.arch import load_arch
from tests.models.test_contract import VARIANTS, perturb, tiny_model

IDS = torch.randint(17, (2, 12), generator=torch.Generator().manual_seed(0))


def theirs(kind, folder, **settings):
    """A random model of transformers, which is also saved in the folder."""
    kind = getattr(transformers, kind)
    torch.manual_seed(0)
    model = perturb(kind(kind.config_class(**settings)), 0.3).eval()
    for buffer in (b for name, b in model.named_buffers() if 'running' in name):        # of batch norm
        buffer += 0.1 * torch.rand(buffer.shape)
    model.save_pretrained(folder)
    model.config.return_dict = True
    return model.float()


def logits(ours, theirs, x):
    return ours(x)[0], theirs(x).logits


def typed(ours, theirs, x):
    return ours(x, types=x % 2)[0], theirs(x, token_type_ids=x % 2).logits


def patches(images, size):
    """(B, C, H, W) -> (B, T, C * P * P), by a loop."""
    rows, columns = (range(0, n - size + 1, size) for n in images.shape[2:])
    return torch.stack([images[:, :, i:i + size, j:j + size].flatten(1) for i in rows for j in columns], dim=1)


def pictures(config):
    """(images, their patches) for a model of transformers with this config."""
    images = torch.randn(2, config.num_channels, *[config.image_size] * 2)
    return images, patches(images, config.patch_size)


def features(ours, theirs, _):
    images, cut = pictures(theirs.config)
    return ours.trunk(cut), theirs(images).last_hidden_state


def similarities(ours, theirs, x):
    images, cut = pictures(theirs.config.vision_config)
    end = theirs.config.text_config.eos_token_id
    y = torch.cat([x.masked_fill(x == end, 0)[:, 1:], torch.full((len(x), 1), end)], 1)     # captions that it ends
    output = ours(cut, y)[0]
    return output[:, 0] @ output[:, 1].T, theirs(input_ids=y, pixel_values=images).logits_per_image


def classes(ours, theirs, _):
    return logits(ours, theirs, torch.randn(2, theirs.config.num_channels, 32, 32))


@torch.no_grad()
def same(ours, theirs, x=IDS, compare=logits):
    """Whether both give one output, which is not nearly 0."""
    a, b = compare(ours.eval(), theirs, x)
    return a.abs().mean() > 0.1 and (a - b).abs().max() < 1e-4


# a model file and the class in transformers; the shape of a tiny model; for fields that VALUES does not know, lists of other
# values; the fields that must be refused, while any other must be honoured; compare(ours, theirs, x) -> the two outputs
Family = namedtuple('Family', 'arch theirs shape other refused compare', defaults=[logits])
LLAMA3 = {'rope_type': 'llama3', 'rope_theta': 500.0, 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
          'original_max_position_embeddings': 32}
ROPES = [{'rope_type': 'default', 'rope_theta': 100.0}, LLAMA3,
         *({'rope_type': kind, 'rope_theta': 100.0, 'factor': 2.0} for kind in ('linear', 'dynamic', 'yarn'))]
SIZES = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 4}
WIDE, PATCHES = {**SIZES, 'intermediate_size': 64}, {'image_size': 12, 'patch_size': 4}
FAMILIES = [
    Family('model', 'GPT2LMHeadModel', {'vocab_size': 31, 'n_embd': 16, 'n_layer': 2, 'n_head': 4, 'n_positions': 12},
           {'activation_function': ['relu', 'silu', 'gelu', 'gelu_pytorch_tanh', 'gelu_fast', 'quick_gelu'],
            'n_inner': [32, 64], 'summary_type': ['mean'], 'summary_activation': ['tanh']},
           {'n_inner', 'activation_function', 'scale_attn_weights', 'scale_attn_by_inverse_layer_idx', 'add_cross_attention'}),
    Family('llama', 'LlamaForCausalLM',
           {**WIDE, 'hidden_size': 32, 'vocab_size': 31, 'num_key_value_heads': 2, 'max_position_embeddings': 48},
           {'rope_parameters': ROPES, 'num_key_value_heads': [1, 4], 'head_dim': [12]},
           {'hidden_act', 'attention_bias', 'mlp_bias', 'attention_dropout', 'rope_parameters', 'rope_type'}),
    Family('mamba', 'MambaForCausalLM', {'vocab_size': 31, 'hidden_size': 16, 'num_hidden_layers': 2, 'state_size': 4},
           {'time_step_init_scheme': ['constant'], 'time_step_rank': [3, 'auto']}, {'hidden_act', 'use_bias', 'use_conv_bias'}),
    Family('vit', 'ViTModel', WIDE | PATCHES, {'pooler_act': ['relu'], 'pooler_output_size': [8]},
           {'hidden_act', 'hidden_size', 'intermediate_size', 'qkv_bias'}, features),
    Family('vit', 'Dinov2Model', SIZES | PATCHES, {'mlp_ratio': [2]},
           {'hidden_act', 'hidden_size', 'mlp_ratio', 'qkv_bias', 'use_swiglu_ffn'}, features),
    Family('bert', 'BertForMaskedLM', {**WIDE, 'vocab_size': 31, 'max_position_embeddings': 12},
           {'classifier_dropout': [0.5], 'add_cross_attention': [False]},       # transformers refuses it without is_decoder
           {'hidden_act', 'is_decoder'}, typed),
    Family('clip', 'CLIPModel',
           {'text_config': {**WIDE, 'vocab_size': 31, 'max_position_embeddings': 12, 'eos_token_id': 30},
            'vision_config': WIDE | PATCHES, 'projection_dim': 8},
           {}, {'hidden_act', 'hidden_size', 'intermediate_size', 'layer_norm_eps'}, similarities),
    Family('convnet', 'ResNetForImageClassification',
           {'embedding_size': 8, 'hidden_sizes': [8, 16, 32, 64], 'depths': [3, 4, 6, 3], 'layer_type': 'basic'},
           {'hidden_sizes': [[8, 16, 32, 32]], 'depths': [[2, 2, 2, 2]], 'layer_type': ['bottleneck']},
           {'embedding_size', 'hidden_sizes', 'layer_type', 'hidden_act', 'downsample_in_first_stage',
            'downsample_in_bottleneck'}, classes),
]
VALUES = {      # for fields of all families
    'transformers_version': ['4.0.0'], 'architectures': [['Other']], 'dtype': ['float64'], 'problem_type': ['regression'],
    'id2label': [{0: 'a'}], 'label2id': [{'a': 0}], 'bos_token_id': [1], 'eos_token_id': [1], 'pad_token_id': [1],
    'chunk_size_feed_forward': [1], 'layer_norm_epsilon': [0.1], 'layer_norm_eps': [0.1], 'rms_norm_eps': [0.1],
    'hidden_act': ['relu', 'gelu', 'gelu_new', 'quick_gelu'], 'intermediate_size': [32], '_out_features': [['stem']],
    '_out_indices': [[0]]}


def changes(family, config=None, known=()):
    """(field, another value) for every field of the config class; of a config in it, 'outer.field', those that it has not."""
    config = config or getattr(transformers, family.theirs).config_class(**family.shape)
    names = {field.name for field in dataclasses.fields(config)}
    for field in (field for field in dataclasses.fields(config) if field.name not in known):
        was = getattr(config, field.name)
        if dataclasses.is_dataclass(was):
            yield from ((f'{field.name}.{name}', value) for name, value in changes(family, was, names))
            continue
        simple = {bool: lambda v: [not v], int: lambda v: [2 * v], float: lambda v: [v / 2 or 0.1]}
        values = (family.other | VALUES).get(field.name) or simple[type(was)](was)      # KeyError: a new field needs a value
        for value in values:
            if value != was:
                yield field.name, value


@pytest.mark.parametrize('family, field, value', [(family, *change) for family in FAMILIES
                                                  for change in [('', None), *changes(family)]],
                         ids=lambda v: v.arch if isinstance(v, Family) else str(v)[:30])
def test_a_setting_is_honoured_or_refused(family, field, value, tmp_path):
    """Of a model with random weights.  '': the shape alone."""
    outer, _, field = field.rpartition('.')
    change = {field: value} if field else {}
    model = theirs(family.theirs, tmp_path, **family.shape | ({outer: family.shape[outer] | change} if outer else change))
    try:
        ours = load_arch(family.arch).Model.from_pretrained(str(tmp_path))
    except ValueError as e:
        assert field in family.refused and any(f'config.json has {name}=' in str(e) for name in family.refused)
    else:
        assert same(ours, model, compare=family.compare)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """{arch: (a tiny model of transformers, its folder)}, of the first family of each."""
    folder = tmp_path_factory.mktemp('published')
    return {f.arch: (theirs(f.theirs, folder / f.arch, **f.shape), folder / f.arch) for f in reversed(FAMILIES)}


def refusal(published, arch, folder, change=lambda weights, described: None, update=(), **settings):
    """What from_pretrained() says of the tiny model of transformers with other settings, in a copy of which config.json is
    updated and change(weights, config.json) called."""
    weights = safetensors.torch.load_file(published[arch][1] / 'model.safetensors')
    described = json.loads((published[arch][1] / 'config.json').read_text()) | dict(update)
    change(weights, described)
    safetensors.torch.save_file(weights, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(described))
    with pytest.raises(ValueError) as e:
        load_arch(arch).Model.from_pretrained(str(folder), **settings)
    return str(e.value)


CONFIGS = {     # what the weights contradict, or the architecture does not compute
    'model': {'n_head': [0, 'four'], 'layer_norm_epsilon': [None], 'quantization_config': [{'bits': 4}]},
    'llama': {'num_attention_heads': [0, '4'], 'num_key_value_heads': [4], 'head_dim': [4], 'partial_rotary_factor': [0.5],
              'model_type': ['mistral']},
    'mamba': {'model_type': ['falcon_mamba']},
    'bert': {'model_type': ['roberta'], 'position_embedding_type': ['relative_key'], 'pruned_heads': [{'1': [0]}],
             'add_cross_attention': [True], 'max_position_embeddings': [24]}}


def test_a_config_json_that_does_not_fit_is_refused(published, tmp_path):
    for family in (f for f in FAMILIES if f.arch in CONFIGS):
        sizes = {k: [2 * v] for k, v in family.shape.items() if 'head' not in k and k != 'max_position_embeddings'}
        for key, value in ((key, value) for key, values in (sizes | CONFIGS[family.arch]).items() for value in values):
            assert f'{key}={value!r}' in refusal(published, family.arch, tmp_path, update={key: value}), (family.arch, key)


@pytest.mark.parametrize('arch, settings', [
    *((arch, {'n_layer': 5}) for arch in CONFIGS), ('llama', {'rope_base': 77.0}),
    *(('model', change) for change in ({'n_head': 2}, {'gelu': 'none'}, {'eps': 1e-3}, {'tied': False}))], ids=str)
def test_settings_that_contradict_the_weights_are_refused(published, tmp_path, arch, settings):
    (name, value), = settings.items()
    said = refusal(published, arch, tmp_path, **settings)
    assert said.count(f"'{name}': ") == 2 and f"'{name}': {value!r}" in said       # also the published value


MISFITS = {     # {arch: [(settings, or what changes the weights and config.json, what the error must name)]}
    'bert': [(lambda w, c: c.update(num_attention_heads=5), 'n_head=5')],
    'model': [
        (lambda w, c: c.pop('n_head'), '--n_head'),
        *((lambda w, c, v=v: w['transformer.ln_f.bias'].fill_(v), 'ln_f.bias holds NaN') for v in (math.nan, math.inf)),
        (lambda w, c: w.update({'transformer.h.1.mlp.c_fc.weight': torch.ones(16, 32)}), r'c_fc.weight is \(32, 16\) .*\(64, '),
        *((lambda w, c, v=v: w.update({'transformer.wpe.weight': v}), f'wpe.weight is {name}') for name, v in (
            ('complex64', torch.ones(12, 16, dtype=torch.complex64)), ('int8', torch.ones(12, 16, dtype=torch.int8))))],
    'llama': [
        (lambda w, c: c.update(rope_parameters={'rope_type': 'llama3', 'factor': 2.0}), 'rope_type='),
        (lambda w, c: c.update(rope_scaling={'type': 'linear', 'factor': c.pop('rope_parameters') and 2.0}), 'rope_type=')],
    'vit': [
        ({'block_size': 12}, 'from 9 patches to 12'), ({'n_head': 2}, "'n_head': 4"),
        (lambda w, c: c.pop('num_attention_heads'), '--n_head'), (lambda w, c: c.update(model_type='deit'), "='deit'"),
        (lambda w, c: w.pop('encoder.layer.1.attention.attention.key.bias'), r'h\.1\.attn\.c_attn\.bias is missing'),
        (lambda w, c: w.update({'encoder.layer.0.output.dense.weight': torch.zeros(3, 3)}), r'c_proj\.weight is \(3, 3\)'),
        (lambda w, c: w.update({'embeddings.distillation_token': torch.zeros(1)}), 'distillation_token'),
        (lambda w, c: w.pop('embeddings.position_embeddings'), 'not the weights of a ViT')],
    'clip': [
        ({'n_head': 2}, "'n_head': 4"), ({'text_layer': 4}, "'text_layer': 2"), ({'tower': 'resnet50'}, "'tower': 'vit'"),
        (lambda w, c: c.update(model_type='siglip'), "'siglip'"), (lambda w, c: c.update(projection_dim=2), 'projection_dim=2'),
        (lambda w, c: c['vision_config'].update(hidden_act='relu'), "hidden_act='relu'"),
        (lambda w, c: c['text_config'].update(hidden_act='gelu'), "hidden_act='gelu'"),
        (lambda w, c: c.update(text_config_dict={'layer_norm_eps': 1e-3}), 'layer_norm_eps=0.001'),
        (lambda w, c: c['vision_config'].update(intermediate_size=32), 'intermediate_size=32'),
        (lambda w, c: c['text_config'].update(num_hidden_layers=3), 'num_hidden_layers=3'),
        (lambda w, c: w.pop('text_model.encoder.layers.1.self_attn.k_proj.bias'), r'text\.h\.1\.attn\.c_attn\.bias is missing'),
        (lambda w, c: [w.update({k.replace('vision_model.', 'visual.'): w.pop(k)}) for k in [*w]], 'CLIP with a ViT')],
    'convnet': [
        ({'network': 'resnet101'}, "'network': 'resnet34"), ({'stem': 'cifar'}, 'imagenet'),
        (lambda w, c: c.update(model_type='vit'), "'vit'"), (lambda w, c: c.update(hidden_act='gelu'), "hidden_act='gelu'"),
        (lambda w, c: c.update(downsample_in_first_stage=True), 'downsample_in_first_stage=True'),
        (lambda w, c: w.pop('resnet.encoder.stages.1.layers.0.layer.1.normalization.running_mean'), r'bn2\.running_mean'),
        (lambda w, c: [w.pop(k) for k in list(w) if 'stages.3' in k], 'not the weights of one of resnet18')]}


@pytest.mark.parametrize('arch, change, message', [(arch, *row) for arch, rows in MISFITS.items() for row in rows])
def test_files_that_do_not_fit_are_refused(published, tmp_path, arch, change, message):
    said = refusal(published, arch, tmp_path, **(change if isinstance(change, dict) else {'change': change}))
    assert re.search(message, said)


@pytest.mark.parametrize('arch', CONFIGS)
def test_other_weights_are_refused(published, tmp_path, arch):
    assert 'not the weights of a' in refusal(published, arch, tmp_path, lambda w, c: w.clear())
    assert 'other.bias has no place' in refusal(published, arch, tmp_path, lambda w, c: w.update({'other.bias': IDS}))
    key = {'model': 'h.1.mlp.c_proj.bias', 'llama': 'layers.1.mlp.down_proj.weight', 'mamba': 'layers.1.mixer.D',
           'bert': 'layer.1.output.dense.bias'}[arch]
    said = refusal(published, arch, tmp_path, lambda w, c: w.pop(next(k for k in w if k.endswith(key))))
    assert f'{key.replace("layer.1.output.dense", "h.1.mlp.c_proj")} is missing' in said
    assert '--n_head' in refusal(published, 'clip', tmp_path, lambda w, c: c.clear(), text_head=4)
    if arch in ('model', 'llama'):
        assert 'lm_head.weight is missing' in refusal(published, arch, tmp_path, lambda w, c: w.pop('lm_head.weight', None),
                                                      {'tie_word_embeddings': False})


@pytest.mark.parametrize('arch', ['model', 'bert'])
def test_a_smaller_window_has_fewer_positions(published, tmp_path, arch):
    short = load_arch(arch).Model.from_pretrained(str(published[arch][1]), block_size=8, dropout=0.5)
    assert (short.config.block_size, short.config.dropout) == (8, 0.5) and same(short, published[arch][0], IDS[:, :8])
    assert re.search(r'block_size=999 .* \d+ positions', refusal(published, arch, tmp_path, block_size=999))


@pytest.mark.parametrize('family, settings, change', [
    *((family, {'tie_word_embeddings': False}, lambda c: c.update(tie_word_embeddings=True)) for family in FAMILIES[:2]),
    (FAMILIES[1], {'rope_parameters': LLAMA3}, lambda c: c.update(rope_theta=c['rope_parameters'].pop('rope_theta'),
                                                                  rope_scaling=c.pop('rope_parameters')))])
def test_a_config_json_may_be_wrong_or_old(family, settings, change, tmp_path):
    """An output layer that is not the embedding, whatever is said, as in transformers; and old names of rotary settings."""
    model = theirs(family.theirs, tmp_path, **family.shape, **settings)
    change(described := json.loads((tmp_path / 'config.json').read_text()))
    (tmp_path / 'config.json').write_text(json.dumps(described))
    ours = load_arch(family.arch).Model.from_pretrained(str(tmp_path))
    assert not ours.config.tied and same(ours, model)


EXPORTS = [('model', change) for change in ({}, {'bias': False}, {'gelu': 'tanh'}, {'tied': False, 'eps': 0.1})] + [
    ('llama', change) for change in ({}, *(v for v in VARIANTS['llama'] if 'short_conv' not in v),
                                     {'rope_layout': 'interleaved', 'head_dim': 12},
                                     {'n_kv_head': 1, 'rope_base': 100.0, 'eps': 0.1})]


@pytest.mark.parametrize('arch, change', EXPORTS, ids=str)
def test_an_export_is_read_by_transformers_and_by_us(tmp_path, arch, change):
    ours = perturb(tiny_model(arch, change), 0.3)
    described, weights = ours.to_hub()
    safetensors.torch.save_file(weights, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    (tmp_path / 'config.json').write_text(json.dumps(described))
    assert same(ours, model := transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval())
    assert same(type(ours).from_pretrained(str(tmp_path)), model)
