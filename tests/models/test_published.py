"""Published weights: every field of transformers' configs is honoured or refused by name.  A family is a line of FAMILIES."""

import dataclasses

import pytest
import torch
import transformers

from harness.arch import load_arch

SAME = 1e-4         # of logits near 1


@dataclasses.dataclass
class Family:
    """An architecture of ours and its counterpart in transformers."""
    arch: str               # the model file
    theirs: str             # the class in transformers
    shape: dict             # settings of a tiny model
    other: dict             # other values for fields that VALUES does not know: a list for each
    refused: set            # fields that must be refused; any other field must be honoured
    compare: object         # compare(ours, theirs) -> the two outputs on one input

    @property
    def config(self):
        return getattr(transformers, self.theirs).config_class


def logits(ours, theirs):
    x = torch.randint(31, (2, 12), generator=torch.Generator().manual_seed(0))
    return ours(x)[0], theirs(x).logits


def features(ours, theirs):
    images = torch.randn(2, theirs.config.num_channels, *[theirs.config.image_size] * 2)
    P = theirs.config.patch_size
    patches = images.unfold(2, P, P).unfold(3, P, P).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return ours.trunk(patches), theirs(images).last_hidden_state


FAMILIES = [
    Family('model', 'GPT2LMHeadModel', {'vocab_size': 31, 'n_embd': 16, 'n_layer': 2, 'n_head': 4, 'n_positions': 12},
           {'activation_function': ['relu', 'silu', 'gelu', 'gelu_pytorch_tanh', 'gelu_fast', 'quick_gelu'],
            'n_inner': [32, 64], 'summary_type': ['mean'], 'summary_activation': ['tanh']},
           {'n_inner', 'activation_function', 'scale_attn_weights', 'scale_attn_by_inverse_layer_idx', 'add_cross_attention'},
           logits),
    Family('mamba', 'MambaForCausalLM', {'vocab_size': 31, 'hidden_size': 16, 'num_hidden_layers': 2, 'state_size': 4},
           {'hidden_act': ['relu', 'gelu'], 'time_step_init_scheme': ['constant'], 'time_step_rank': [3, 'auto']},
           {'hidden_act', 'use_bias', 'use_conv_bias'}, logits),
    Family('vit', 'ViTModel', {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 64,
                               'image_size': 12, 'patch_size': 4},
           {'hidden_act': ['relu', 'gelu_new', 'quick_gelu'], 'intermediate_size': [32], 'pooler_act': ['relu'],
            'pooler_output_size': [8]},
           {'hidden_act', 'hidden_size', 'intermediate_size', 'qkv_bias'}, features),
    Family('vit', 'Dinov2Model', {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'image_size': 12,
                                  'patch_size': 4},
           {'hidden_act': ['relu', 'gelu_new', 'quick_gelu'], 'mlp_ratio': [2], '_out_features': [['stem']],
            '_out_indices': [[0]]},
           {'hidden_act', 'hidden_size', 'mlp_ratio', 'qkv_bias', 'use_swiglu_ffn'}, features),
    Family('bert', 'BertForMaskedLM', {'vocab_size': 31, 'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 4,
                                       'intermediate_size': 64, 'max_position_embeddings': 12},
           {'hidden_act': ['relu', 'gelu_new', 'quick_gelu'], 'intermediate_size': [32], 'classifier_dropout': [0.5],
            'add_cross_attention': [False]},       # transformers refuses it without is_decoder
           {'hidden_act', 'is_decoder'}, logits),
]
VALUES = {      # for fields of all families
    'transformers_version': ['4.0.0'], 'architectures': [['Other']], 'dtype': ['float64'], 'problem_type': ['regression'],
    'id2label': [{0: 'a'}], 'label2id': [{'a': 0}], 'bos_token_id': [1], 'eos_token_id': [1], 'pad_token_id': [1],
    'chunk_size_feed_forward': [1], 'layer_norm_epsilon': [0.1], 'layer_norm_eps': [0.1]}


def changes(family):
    """(field, another value) for every field of the config class."""
    config = family.config(**family.shape)
    for field in dataclasses.fields(config):
        was = getattr(config, field.name)
        simple = {bool: lambda v: [not v], int: lambda v: [2 * v], float: lambda v: [v / 2 or 0.1]}
        values = (family.other | VALUES).get(field.name) or simple[type(was)](was)      # KeyError: a new field needs a value
        for value in values:
            if value != was:
                yield field.name, value


CASES = [(family, *change) for family in FAMILIES for change in [('', None), *changes(family)]]


@torch.no_grad()
@pytest.mark.parametrize(('family', 'field', 'value'), CASES, ids=lambda v: v.arch if isinstance(v, Family) else str(v))
def test_a_setting_is_honoured_or_refused(family, field, value, tmp_path):
    """Of a model with random weights.  '': the shape alone."""
    torch.manual_seed(0)
    theirs = getattr(transformers, family.theirs)(family.config(**family.shape | ({field: value} if field else {})))
    for p in theirs.parameters():
        p.data += 0.3 * torch.randn_like(p)
    theirs.save_pretrained(tmp_path)
    Model = load_arch(family.arch).Model
    try:
        ours = Model.from_pretrained(str(tmp_path)).eval()
    except ValueError as e:
        assert field in family.refused and any(f'config.json has {name}=' in str(e) for name in family.refused)
        return
    theirs.config.return_dict = True
    a, b = family.compare(ours, theirs.float().eval())
    assert a.abs().mean() > 0.1 and (a - b).abs().max() < SAME
