"""GGUF, the format of llama.cpp: metadata, weights and tokenizer in one file.  The package gguf reads and dequantises it."""

import functools
import importlib

import numpy as np
import torch

from harness import UserError
from harness.tokenizer import library

# tokenizer.ggml.pre -> the patterns that split a text in turn, before the merges (llama.cpp, src/llama-vocab.cpp)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
         r'|\s+')
PATTERNS = {'gpt-2': [GPT2], 'smollm': [r'\p{N}', GPT2], 'qwen2': [QWEN2]}
SPECIAL, USER_DEFINED = 3, 4        # tokenizer.ggml.token_type

# the names of llama.cpp: those of transformers
SETTINGS = {'context_length': 'max_position_embeddings', 'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
            'rope.freq_base': 'rope_theta', 'vocab_size': 'vocab_size', 'embedding_length': 'hidden_size',
            'feed_forward_length': 'intermediate_size', 'block_count': 'num_hidden_layers',
            'attention.head_count': 'num_attention_heads', 'attention.head_count_kv': 'num_key_value_heads',
            'attention.key_length': 'head_dim', 'attention.value_length': 'head_dim', 'rope.dimension_count': 'head_dim'}
TENSORS = {'token_embd': 'embed_tokens', 'output_norm': 'norm', 'output': 'lm_head', 'attn_norm': 'input_layernorm',
           'ffn_norm': 'post_attention_layernorm', 'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj',
           'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj', 'attn_q_norm': 'self_attn.q_norm',
           'attn_k_norm': 'self_attn.k_norm', 'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj', 'ffn_down': 'mlp.down_proj'}


def package(name, what):
    """An optional package.  Raises UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f'{what} needs the package {name}: pip install {name}') from None


@functools.lru_cache(1)
def read(path):
    """(metadata, tensors as the package gguf represents them, on disk) of a file.  Raises UserError."""
    if not path.is_file():
        raise UserError(f'there is no file {path}')
    gguf = package('gguf', f'{path}, a GGUF file,')
    try:
        reader = gguf.GGUFReader(path)
        return {key: field.contents() for key, field in reader.fields.items()}, reader.tensors
    except (ValueError, LookupError, TypeError, OSError) as e:      # whatever the bytes of a broken file lead to
        raise UserError(f'{path} is truncated, or no GGUF file that the package gguf can read '
                        f'({" ".join(str(e).split())[:100]}): download it again, or choose another quantisation') from None


def load(path):
    """(settings, {name: float32 tensor}) of a file, both in the names of transformers; the settings are those of a config.json,
    and rope_layout.  Raises UserError, also for a setting whose name is not known here."""
    (metadata, tensors), gguf, weights = read(path), package('gguf', f'{path}, a GGUF file,'), {}
    kind = metadata.get('general.architecture')
    # llama.cpp's converter reorders the rows of q and k of a Llama, so that the pairs to rotate are interleaved
    described = {'model_type': kind, 'rope_layout': 'interleaved' if kind == 'llama' else 'half',
                 'tie_word_embeddings': all(t.name != 'output.weight' for t in tensors)}
    for key, value in metadata.items():
        name = SETTINGS.get(key.removeprefix(f'{kind}.'))
        if key.startswith(f'{kind}.') and (name is None or described.setdefault(name, value) != value):
            raise UserError(f"{path} is a '{kind}' with {key}={value!r}, which no architecture here computes: choose another")
    for t in tensors:
        *block, name, end = t.name.removeprefix('blk.').split('.')      # blk.3.attn_q.weight: layers.3.self_attn.q_proj.weight
        try:
            with np.errstate(all='ignore'):         # scales that are not finite, in a damaged file
                value = torch.tensor(gguf.dequantize(t.data, t.tensor_type))
        except NotImplementedError:
            raise UserError(f'{path}: {t.name} has the quantisation {t.tensor_type.name}, which the package gguf cannot '
                            f'dequantise: choose a file with another, such as Q8_0') from None
        weights['.'.join([*(['layers'] if block else []), *block, TENSORS.get(name, name), end])] = value
    return described, weights


def tokenizer_json(path):
    """The tokenizer of a file, in the format of tokenizer.json.  Raises UserError."""
    library()
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    found = {k.removeprefix('tokenizer.ggml.'): v for k, v in read(path)[0].items()}
    model, pre = found.get('model'), found.get('pre')
    if model != 'gpt2' or pre not in PATTERNS or 'tokens' not in found or 'merges' not in found:
        raise UserError(f"{path} has the tokenizer '{model}' with the pre-tokenizer '{pre}', but only 'gpt2' with "
                        f'{", ".join(PATTERNS)} can be read: choose another file, or its original on the hub')
    merges = [tuple(merge.split(' ', 1)) for merge in found['merges']]
    try:
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(found['tokens'])}, merges))
    except Exception as e:              # the package tokenizers raises no other type
        raise UserError(f'{path} has a tokenizer that does not fit together ({e}): download it again') from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(Regex(pattern), 'isolated') for pattern in PATTERNS[pre]),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=kind == SPECIAL, normalized=False) for token, kind in
                          zip(found['tokens'], found.get('token_type', ()), strict=False) if kind in (SPECIAL, USER_DEFINED)])
    return tokenizer.to_str()
