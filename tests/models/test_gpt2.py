"""model.py against transformers' GPT-2 in both directions, its attention and cache, and how published weights are fetched."""

import argparse
import dataclasses
import http.server
import json
import math
import shutil
import threading

import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import model as gpt
from harness import UserError, checkpoint

SHAPE = {'vocab_size': 131, 'n_embd': 32, 'n_layer': 3, 'n_head': 4}
IDS = torch.randint(131, (2, 48), generator=torch.Generator().manual_seed(3))


def perturbed(model):
    torch.manual_seed(0)
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model.eval()


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """(a GPT2LMHeadModel, the folder that it is saved in)."""
    model, folder = perturbed(GPT2LMHeadModel(GPT2Config(n_positions=48, **SHAPE))), tmp_path_factory.mktemp('published')
    model.save_pretrained(folder)
    return model, folder


def same_logits(ours, theirs, ids=IDS):
    with torch.no_grad():
        return (ours.eval()(ids)[0] - theirs(ids).logits).abs().max() < 1e-4


@pytest.mark.parametrize(('causal', 'past'), [(True, 0), (True, 3), (False, 0)])
def test_attention_is_the_fused_one(causal, past):
    """Values and gradients of SelfAttention, with the definition in place of torch's fused function."""
    torch.manual_seed(0)
    layer, x = gpt.SelfAttention(gpt.Config.tiny()).double(), torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    layer.causal = causal
    q, k, v = layer.c_attn(x).view(2, 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
    expected = layer.c_proj(gpt.attention(q[:, :, past:], k, v, causal).transpose(1, 2).flatten(2))
    cache = tuple(torch.zeros(2, 2, 16, 8, dtype=torch.float64) for _ in range(2)) if past else None
    if past:
        layer(x[:, :past].detach(), cache)
        with torch.no_grad():
            torch.testing.assert_close(layer(x[:, past:], cache, past), expected)
        return
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), x), torch.autograd.grad(expected.square().sum(), x))


def test_published_weights_give_the_published_logits(published, tmp_path):
    theirs, folder = published
    assert same_logits(gpt.Model.from_pretrained(str(folder)), theirs)
    assert same_logits(gpt.Model.from_pretrained(str(folder / 'model.safetensors')), theirs)
    short = gpt.Model.from_pretrained(str(folder), block_size=20, dropout=0.5)
    assert (short.config.block_size, short.config.dropout) == (20, 0.5) and same_logits(short, theirs, IDS[:, :20])
    theirs.save_pretrained(tmp_path, max_shard_size='50KB')
    assert len(list(tmp_path.glob('*.safetensors'))) > 1
    assert same_logits(gpt.Model.from_pretrained(str(tmp_path)), theirs)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda w, c: w.update({'transformer.h.1.mlp.c_fc.weight': torch.zeros(32, 64)}), r'h\.1\.mlp\.c_fc\.weight is \(64, 32\)'),
    (lambda w, c: w.pop('transformer.h.2.ln_2.bias'), r'h\.2\.ln_2\.bias is missing'),
    (lambda w, c: w.update({'score.weight': torch.zeros(2)}), r'score\.weight has no place'),
    (lambda w, c: w.pop('transformer.wte.weight'), 'not the weights of a GPT-2'),
    (lambda w, c: w['transformer.ln_f.bias'].fill_(math.nan), r'ln_f\.bias holds NaN'),
    (lambda w, c: w['transformer.h.0.ln_1.bias'].fill_(math.inf), r'h\.0\.ln_1\.bias holds NaN or infinite'),
    (lambda w, c: w.update({k: v.to(torch.complex64) for k, v in w.items()}), 'is complex64'),
    (lambda w, c: w.update({'transformer.wpe.weight': w['transformer.wpe.weight'].to(torch.int8)}), r'wpe\.weight is int8'),
    (lambda w, c: c.update(n_layer=5), 'n_layer=5'), (lambda w, c: c.update(n_head=0), 'n_head=0'),
    (lambda w, c: c.update(n_head='four'), "n_head='four'"), (lambda w, c: c.update(layer_norm_epsilon=None), 'epsilon=None'),
    (lambda w, c: c.update(tie_word_embeddings=False), r'lm_head\.weight is missing'),
    (lambda w, c: c.update(quantization_config={'bits': 4}), "quantization_config={'bits': 4}"),
    (lambda w, c: c.pop('n_head'), '--n_head'), (lambda w, c: c.clear(), '--n_head')])
def test_weights_that_do_not_fit_are_refused(published, tmp_path, change, message):
    weights = safetensors.torch.load_file(published[1] / 'model.safetensors')
    described = json.loads((published[1] / 'config.json').read_text())
    weights['transformer.h.0.attn.bias'] = torch.ones(1, 1, 48, 48)     # a causal mask, which old files have
    change(weights, described)
    safetensors.torch.save_file(weights, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(described))
    with pytest.raises(ValueError, match=message):
        gpt.Model.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(('settings', 'message'), [
    ({'n_layer': 5}, r"'n_layer': 3.*'n_layer': 5"), ({'n_head': 2}, "'n_head': 4"), ({'gelu': 'none'}, "'gelu': 'tanh'"),
    ({'eps': 1e-3}, "'eps': 1e-05"), ({'tied': False}, "'tied': True"), ({'block_size': 49}, 'block_size=49 .* 48 positions')])
def test_settings_that_contradict_the_weights_are_refused(published, settings, message):
    with pytest.raises(ValueError, match=message):
        gpt.Model.from_pretrained(str(published[1]), **settings)


def test_without_config_the_heads_are_given(published, tmp_path):
    theirs, folder = published
    shutil.copy(folder / 'model.safetensors', tmp_path)
    assert same_logits(gpt.Model.from_pretrained(str(tmp_path), n_head=4), theirs)


def test_an_output_layer_that_is_not_the_embedding(tmp_path):
    """Whether config.json says so or not, as in transformers."""
    theirs = perturbed(GPT2LMHeadModel(GPT2Config(n_positions=48, tie_word_embeddings=False, **SHAPE)))
    theirs.save_pretrained(tmp_path)
    for tied in (False, True):
        described = json.loads((tmp_path / 'config.json').read_text())
        (tmp_path / 'config.json').write_text(json.dumps(described | {'tie_word_embeddings': tied}))
        ours = gpt.Model.from_pretrained(str(tmp_path))
        assert not ours.config.tied and same_logits(ours, theirs)


@pytest.mark.parametrize(('wrap', 'message'), [
    (lambda w: {'model': w, 'optimizer': {'state': {}}, 'step': 3}, None), (lambda w: {'state_dict': w, 'epoch': 2.5}, None),
    (lambda w: w | {'step': 3}, 'holds 0 .*step is a int'),
    (lambda w: {'model': w, 'ema': w}, 'holds 2 .*model is a .*ema is a'), (lambda w: [w], 'holds 0 .*it is a list'),
    (lambda w: {'step': 3}, 'holds 0 .*step is a int'),
    (lambda w: {**w, 'args': argparse.Namespace(lr=1)}, 'holds argparse.Namespace')])
def test_pickles(published, tmp_path, wrap, message):
    """A state_dict, alone or in a training checkpoint."""
    theirs, folder = published
    shutil.copy(folder / 'config.json', tmp_path)
    torch.save(wrap(theirs.state_dict()), tmp_path / 'pytorch_model.bin')
    for name in (tmp_path, tmp_path / 'pytorch_model.bin'):
        assert not checkpoint.is_ours(name)
        if message:
            with pytest.raises(UserError, match=message):
                gpt.Model.from_pretrained(str(name))
        else:
            assert same_logits(gpt.Model.from_pretrained(str(name)), theirs)


@pytest.mark.parametrize('change', [{}, {'bias': False}, {'gelu': 'tanh'}, {'tied': False, 'eps': 0.1}], ids=str)
def test_export_is_loaded_by_transformers(tmp_path, change):
    ours = perturbed(gpt.Model(gpt.Config(block_size=48, **SHAPE, **change)))
    described, weights = ours.to_hub()
    safetensors.torch.save_file(weights, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    (tmp_path / 'config.json').write_text(json.dumps(described))
    assert same_logits(ours, GPT2LMHeadModel.from_pretrained(tmp_path).eval())
    again = gpt.Model.from_pretrained(str(tmp_path)).eval()
    torch.testing.assert_close(again(IDS)[0], ours(IDS)[0])
    assert dataclasses.replace(again.config, bias=ours.config.bias) == ours.config      # transformers has a bias everywhere


def point_to(url, monkeypatch):
    """Sets the address of the hub, as the environment variable HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', url)
    template = url + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr('huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE', template)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server with the headers of the Hugging Face hub, in its place.  Yields its folder, files at owner/name/file."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            path = tmp_path / f'served{self.path.replace("/resolve/main", "")}'
            self.send_response(200 if path.exists() else 404)
            if path.exists():
                self.send_header('ETag', f'"{path.name}"')
            else:
                self.send_header('X-Error-Code', 'EntryNotFound' if path.parent.exists() else 'RepoNotFound')
            self.send_header('X-Repo-Commit', '0' * 40)
            self.send_header('Content-Length', str(path.stat().st_size if path.exists() else 0))
            self.end_headers()
            return path

        def do_GET(self):
            if (path := self.do_HEAD()).exists():
                self.wfile.write(path.read_bytes())

        def log_message(self, *args):
            pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_to(f'http://127.0.0.1:{server.server_port}', monkeypatch)
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'cache'))
        yield tmp_path / 'served' / 'owner'
        server.shutdown()


def test_weights_from_the_hub(published, hub, monkeypatch):
    """A model with safetensors, an old one with a pickle only, one that does not exist; then from the cache, offline."""
    theirs, folder = published
    for name in ('new', 'old'):
        (hub / name).mkdir(parents=True)
        (hub / name / 'config.json').write_bytes((folder / 'config.json').read_bytes())
    (hub / 'new' / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes())
    torch.save(theirs.state_dict(), hub / 'old' / 'pytorch_model.bin')
    for name in ('owner/new', 'owner/old'):
        assert same_logits(gpt.Model.from_pretrained(name), theirs)
    with pytest.raises(UserError, match="no model 'owner/none'"):
        gpt.Model.from_pretrained('owner/none')
    point_to('http://127.0.0.1:9', monkeypatch)
    assert same_logits(gpt.Model.from_pretrained('owner/new'), theirs)
    with pytest.raises(UserError, match=r'download http\S*/owner/gone/resolve/main/config.json .*pass that folder') as e:
        gpt.Model.from_pretrained('owner/gone')
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(('file', 'content', 'message'), [
    ('model.safetensors', b'cut short', 'truncated'), ('pytorch_model.bin', b'cut short', 'truncated'),
    ('config.json', b'[1', 'not a valid JSON'), ('README.md', b'', 'has no weights'),
    ('model.safetensors.index.json', b'{"weight_map": []}', 'weight_map'),
    ('model.safetensors.index.json', b'{"weight_map": {"a": "gone.safetensors"}}', 'gone.safetensors')])
def test_broken_files_are_named(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        gpt.Model.from_pretrained(str(tmp_path))


@torch.no_grad()
def test_a_full_cache_reads_the_last_half_again():
    """step() past the window: the documented rule, with forward()."""
    torch.manual_seed(0)
    model, x = gpt.Model(gpt.Config.tiny()).eval(), torch.randint(17, (2, 41))      # a window of 16
    state, window = model.init_state(2), x[:, :0]
    for i in range(x.shape[1]):
        logits, state = model.step(x[:, i:i + 1], state)
        window = torch.cat([window, x[:, i:i + 1]], 1)
        window = window[:, -8:] if window.shape[1] > 16 else window
        torch.testing.assert_close(logits, model(window)[0][:, -1], atol=1e-5, rtol=1e-4)
    logits, _ = model.step(x, model.init_state(2))      # a prompt longer than the window: its end
    torch.testing.assert_close(logits, model(x[:, -16:])[0][:, -1], atol=1e-5, rtol=1e-4)
