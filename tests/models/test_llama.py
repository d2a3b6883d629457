"""llama.py: its window and its cache; and GGUF files, against the package gguf."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import byte_letters, sentence

import llama
import sample
from harness import gguf as reader
from harness import hub
from harness.generate import generate
from harness.tokenizer import Tokenizer, published_spec
from tests.models.test_published import FAMILIES, same, theirs

SHAPE = next(f.shape for f in FAMILIES if f.arch == 'llama') | {'num_hidden_layers': 3}


@torch.no_grad()
def test_a_long_text_is_read_through_a_sliding_window(tmp_path):
    """As transformers' Mistral does, whose window is given; and step() gives the same logits in pieces of any size."""
    model = theirs('MistralForCausalLM', tmp_path, **SHAPE, sliding_window=8)
    described = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(described | {'model_type': 'llama'}))
    ours, ids = llama.Model.from_pretrained(str(tmp_path), block_size=8), torch.randint(31, (2, 48))
    assert same(ours, model, ids)
    check_pieces(ours, ids)
    torch.manual_seed(0)
    check_pieces(llama.Model(llama.Config(block_size=8, n_layer=2, n_embd=32, n_hidden=64, short_conv=4)).eval(), ids)


def check_pieces(ours, ids):
    whole = ours(ids)[0]
    for pieces in ([1] * 48, [5, 1, 1, 1, 1, 3, 30, 1, 5], [8, 8, 7, 1, 9, 1, 14], [20, 28], [47, 1], [2, 46]):
        state, read = ours.init_state(2), 0
        for n in pieces:
            logits, state = ours.step(ids[:, read:read + n], state)
            read += n
            torch.testing.assert_close(logits, whole[:, read - 1], atol=1e-5, rtol=1e-4)
    assert read == 48


@torch.no_grad()
def test_a_token_costs_the_same_everywhere():
    """A step copies no cache: what it allocates is smaller than half of one."""
    model = llama.Model(llama.Config(block_size=4096, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)).eval()
    new = torch.zeros(1, 1, dtype=torch.long)
    _, state = model.step(new.expand(1, 5000), model.init_state(1))
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
    """weights: of transformers' Llama.  kinds: names of the quantisations, each for every len(kinds)th matrix.
    Returns the weights as the package gguf dequantises them, in the order of transformers."""
    gguf = pytest.importorskip('gguf')
    writer, written = gguf.GGUFWriter(path, architecture), {}
    metadata = {'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': 'smollm', 'tokenizer.ggml.tokens': TOKENS,
                'tokenizer.ggml.token_type': [3] + [1] * (len(TOKENS) - 1), 'tokenizer.ggml.merges': MERGES, **METADATA, **more}
    add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    for key, value in metadata.items():
        if key not in drop:
            add[type(value)](key, value)
    for i, (key, value) in enumerate(weights.items()):
        parts, value = key.removeprefix('model.').split('.'), value.numpy()
        swapped = parts[-2] in ('q_proj', 'k_proj')         # the reordering of llama.cpp's convert_hf_to_gguf.py
        if swapped:
            value = value.reshape(-1, 2, 4, 32).swapaxes(1, 2).reshape(value.shape)
        name = (f'blk.{parts[1]}.' if parts[0] == 'layers' else '') + GGUF_NAMES[parts[-2]] + '.weight'
        kind = gguf.GGMLQuantizationType[kinds[i % len(kinds)] if value.ndim == 2 else 'F32']
        data = gguf.quantize(np.ascontiguousarray(value), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        value = gguf.dequantize(data, kind)
        written[key] = torch.tensor(value.reshape(-1, 4, 2, 32).swapaxes(1, 2).reshape(value.shape) if swapped else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


@pytest.fixture(scope='module')
def packed(tmp_path_factory):
    """(a GGUF file, the model of transformers that has the weights in it)."""
    folder = tmp_path_factory.mktemp('gguf')
    model = theirs('LlamaForCausalLM', folder, **SHAPE | {'vocab_size': len(TOKENS)}, rms_norm_eps=0.25,
                   rope_parameters={'rope_type': 'default', 'rope_theta': 500.0})
    model.load_state_dict(write_gguf(folder / 'tiny.gguf', model.state_dict(), ['Q8_0', 'Q4_1', 'F16', 'F32', 'BF16']))
    return folder / 'tiny.gguf', model


def test_a_gguf_has_the_weights_that_gguf_dequantises(packed, tmp_path):
    ours = llama.Model.from_pretrained(str(packed[0]))
    assert ours.config.rope_layout == 'interleaved' and ours.config.block_size == 48 and not ours.config.tied
    assert same(ours, packed[1])
    write_gguf(tmp_path / 'x.gguf', packed[1].state_dict(), ['Q8_0', 'Q4_1'])
    assert [hub.stored(str(path)) for path in (packed[0], tmp_path / 'x.gguf')] == ['float32', 'int8']


def test_the_tokenizer_of_a_gguf_and_a_sample(packed, capsys, tmp_path):
    """Digits are alone, a special token is one, bytes of an incomplete character wait; sample.py needs no other file."""
    tokenizer, pieces = Tokenizer(published_spec(str(packed[0]))), ['hello', '\u0120hello', '1', '2', '<|end|>']
    assert tokenizer.n_vocab == len(TOKENS)
    assert tokenizer.encode('hello hello12<|end|>') == [TOKENS.index(piece) for piece in pieces]
    text = "hell' \n é 日本<|end|> hello"
    assert ''.join(tokenizer.stream(tokenizer.encode(text))) == text

    packed[1].save_pretrained(tmp_path)
    (tmp_path / 'tokenizer.json').write_text(reader.tokenizer_json(packed[0]))
    model, start = llama.Model.from_pretrained(str(packed[0])).eval(), tokenizer.encode('hello')
    ids = [int(i) for i in generate(model, torch.tensor([start]), 5, temperature=0)]
    for name in packed[0], tmp_path:
        sample.main(['--pretrained', str(name), '--start=hello', '--temperature=0', '--max_new_tokens=5', '--device=cpu'])
        assert capsys.readouterr().out == tokenizer.decode(start + ids) + '\n'


def broken(content, path):
    path.write_bytes(content)
    reader.read.cache_clear()
    return sentence(sample.main, ['--pretrained', str(path), '--start=hello', '--max_new_tokens=2'])


def test_broken_gguf_files(packed, tmp_path, monkeypatch):
    """Truncated ones, ones of an unknown quantisation, and whole ones without the package that reads them."""
    whole, path = packed[0].read_bytes(), tmp_path / 'broken.gguf'
    for end in (0, 3, 20, 200, 5000, len(whole) // 2, len(whole) - 1000):
        assert 'truncated' in broken(whole[:end], path), end
    at = whole.index(b'token_embd.weight') + len('token_embd.weight') + 4 + 8 + 8
    for kind, named in ((9, ('token_embd.weight', 'Q8_1')), (77, ('truncated', '77'))):
        said = broken(whole[:at] + kind.to_bytes(4, 'little') + whole[at + 4:] + b' ' * 99999, path)
        assert all(name in said for name in named)
    monkeypatch.setitem(sys.modules, 'gguf', None)
    assert 'pip install gguf' in broken(whole, path) and 'none.gguf' in sentence(hub.load, 'none.gguf')


@pytest.mark.parametrize('change, message', [
    ({'architecture': 'phi3'}, "'phi3'"), ({'llama.expert_count': 8}, 'llama.expert_count=8'),
    ({'llama.rope.dimension_count': 4}, 'head_dim=4'), ({'llama.attention.value_length': 4}, 'llama.attention.value_length=4'),
    ({'llama.block_count': 7}, 'num_hidden_layers=7'), ({'tokenizer.ggml.model': 'llama'}, "tokenizer 'llama'"),
    ({'tokenizer.ggml.pre': 'dbrx'}, "'dbrx'"), ({'tokenizer.ggml.merges': ['q zz']}, 'zz'),
    ({'drop': ['tokenizer.ggml.merges']}, "tokenizer 'gpt2'")])
def test_what_a_gguf_asks_for_is_refused(packed, tmp_path, change, message):
    path = tmp_path / 'other.gguf'
    write_gguf(path, packed[1].state_dict(), ['F32'], **change)
    assert message in broken(path.read_bytes(), path)
