"""model.py: its attention and cache; and the files that published weights are read from, on this machine and from the hub."""

import argparse
import dataclasses
import itertools
import re
import shutil

import pytest
import torch
from conftest import save, sentence

import model as gpt
from extras import export
from harness import checkpoint
from tests.models.test_published import FAMILIES, same, theirs


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """(a tiny GPT-2 of transformers, the folder that it is saved in)."""
    folder = tmp_path_factory.mktemp('published')
    return theirs('GPT2LMHeadModel', folder, **FAMILIES[0].shape), folder


@pytest.mark.parametrize('causal, past', [(True, 0), (True, 3), (False, 0)])
def test_attention_is_the_fused_one(causal, past):
    """Values and gradients of SelfAttention, with the definition in place of torch's fused function."""
    torch.manual_seed(0)
    layer, x = gpt.SelfAttention(gpt.Config.tiny()).double(), torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    layer.causal = causal
    q, k, v = layer.c_attn(x).view(2, 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
    expected = layer.c_proj(gpt.attention(q[:, :, past:], k, v, causal).transpose(1, 2).flatten(2))
    if past:
        cache = tuple(torch.zeros(2, 2, 16, 8, dtype=torch.float64) for _ in range(2))
        with torch.no_grad():
            layer(x[:, :past], cache)
            torch.testing.assert_close(layer(x[:, past:], cache, past), expected)
    else:
        found = layer(x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x) for y in (found, expected)))


@pytest.mark.parametrize('heads', [4, 2])
@pytest.mark.parametrize('seen', ['all', 'earlier', 1, 20])
def test_attention_of_a_few_examples_at_a_time_is_the_fused_one(heads, seen):
    """In bfloat16, which trains by the formula on a CPU, of 16 and 4 examples: shared heads, a mask for all or for each."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(20, n, 256, 8, dtype=torch.bfloat16, requires_grad=True) for n in (4, heads, heads))
    mask = None
    if isinstance(seen, int):
        mask = torch.rand(seen, 1, 256, 256) < 0.7
        mask[..., 0] = True
    found = gpt.fast_attention(q, k, v, seen == 'earlier', mask)
    assert 'Cat' in type(found.grad_fn).__name__        # it is the formula, in pieces
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*exact, attn_mask=mask, is_causal=seen == 'earlier',
                                                                enable_gqa=True)
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.02)
    weight = torch.randn_like(expected)
    torch.autograd.backward((found, expected), (weight.bfloat16(), weight))
    for x, y in zip((q, k, v), exact, strict=True):
        assert (x.grad - y.grad).norm() < 0.02 * y.grad.norm()


def test_dropout_scales_what_it_keeps():
    """The fraction of zeros, the factor of the rest, the same mask in the gradient, and none in evaluation.  The weights of a
    query in attention sum to 1 without it; with it, on average."""
    torch.manual_seed(0)
    layer, x = gpt.Dropout(0.2), torch.ones(1001, 999, requires_grad=True)
    y = layer(x)
    assert abs((y == 0).float().mean() - 0.2) < 2e-3
    assert abs((y.view(-1)[1:] * y.view(-1)[:-1]).mean() - 1) < 5e-3        # neighbours are independent
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1.25))
    y.sum().backward()
    assert torch.equal(x.grad, y) and layer.eval()(x) is x
    assert [gpt.drop(x, p).sum().item() for p in (0.0, 1.0)] == [x.numel(), 0.0]
    q, k, v = torch.randn(8, 2, 64, 8, requires_grad=True), torch.randn(8, 2, 64, 8), torch.ones(8, 2, 64, 8)
    sums = gpt.fast_attention(q, k, v, dropout=0.3)
    assert abs(sums.mean() - 1) < 0.02 and sums.std() > 0.05
    torch.testing.assert_close(gpt.fast_attention(q, k, v), v)


@torch.no_grad()
@pytest.mark.parametrize('short_conv', [0, 4])
def test_a_full_cache_reads_the_last_half_again(short_conv):
    """step() past the window: the documented rule, with forward()."""
    torch.manual_seed(0)
    config = dataclasses.replace(gpt.Config.tiny(), short_conv=short_conv)
    model, x = gpt.Model(config).eval(), torch.randint(17, (2, 41))                 # a window of 16
    state, window = model.init_state(2), x[:, :0]
    for i in range(x.shape[1]):
        logits, state = model.step(x[:, i:i + 1], state)
        window = torch.cat([window, x[:, i:i + 1]], 1)
        window = window[:, -8:] if window.shape[1] > 16 else window
        torch.testing.assert_close(logits, model(window)[0][:, -1], atol=1e-5, rtol=1e-4)
    logits, _ = model.step(x, model.init_state(2))      # a prompt longer than the window: its end
    torch.testing.assert_close(logits, model(x[:, -16:])[0][:, -1], atol=1e-5, rtol=1e-4)


def test_a_short_convolution(tmp_path):
    """It is the documented sum; all other weights start as they do without it; transformers has no such model."""
    x, tokens = torch.randn(2, 9, 3), torch.randint(17, (2, 16))
    layer, expected = gpt.ShortConv(3, 4), x.clone()
    for t, k in itertools.product(range(9), range(4)):
        if t >= k:      # the last weight of a Conv1d is that of the token itself
            expected[:, t] += layer.conv.weight[:, 0, 3 - k] * x[:, t - k]
    torch.testing.assert_close(layer(x), expected)
    models = []
    for width in (0, 4):
        torch.manual_seed(0)
        models.append(gpt.Model(dataclasses.replace(gpt.Config.tiny(), short_conv=width)).eval())
    plain, convolved = (m.state_dict() for m in models)
    assert {k for k in convolved if k not in plain} == {f'h.{i}.short_conv.conv.weight' for i in range(2)}
    assert all(torch.equal(v, convolved[k]) for k, v in plain.items())
    assert not torch.allclose(models[0](tokens)[0], models[1](tokens)[0])
    save(models[1], tmp_path)
    assert 'short_conv=4' in sentence(export.main, [str(tmp_path), str(tmp_path / 'exported')])


def test_safetensors_alone_or_in_parts(published, tmp_path):
    model, folder = published
    assert same(gpt.Model.from_pretrained(str(folder / 'model.safetensors')), model)
    model.save_pretrained(tmp_path / 'parts', max_shard_size='10KB')
    assert len([*(tmp_path / 'parts').glob('*.safetensors')]) > 1
    assert same(gpt.Model.from_pretrained(str(tmp_path / 'parts')), model)
    shutil.copy(folder / 'model.safetensors', tmp_path)
    assert same(gpt.Model.from_pretrained(str(tmp_path), n_head=4), model)      # without config.json


@pytest.mark.parametrize('wrap, message', [
    (lambda w: {'model': w, 'optimizer': {'state': {}}, 'step': 3}, None), (lambda w: {'state_dict': w, 'epoch': 2.5}, None),
    (lambda w: w | {'step': 3}, 'holds 0 .*step is a int'), (lambda w: [w], 'holds 0 .*it is a list'),
    (lambda w: {'model': w, 'ema': w}, 'holds 2 .*model is a .*ema is a'),
    (lambda w: {**w, 'args': argparse.Namespace(lr=1)}, 'holds argparse.Namespace')])
def test_pickles(published, tmp_path, wrap, message):
    """A state_dict, alone or in a training checkpoint; of other objects nothing is loaded."""
    shutil.copy(published[1] / 'config.json', tmp_path)
    torch.save(wrap(published[0].state_dict()), tmp_path / 'pytorch_model.bin')
    for name in (tmp_path, tmp_path / 'pytorch_model.bin'):
        assert not checkpoint.is_ours(name)
        if message:
            assert re.search(message, sentence(gpt.Model.from_pretrained, str(name)))
        else:
            assert same(gpt.Model.from_pretrained(str(name)), published[0])


@pytest.mark.parametrize('file, content, message', [
    ('model.safetensors', b'cut short', 'truncated'), ('pytorch_model.bin', b'cut short', 'truncated'),
    ('config.json', b'[1', 'not a valid JSON'), ('README.md', b'', 'has no weights'),
    ('model.safetensors.index.json', b'{"weight_map": []}', 'weight_map'),
    ('model.safetensors.index.json', b'{"weight_map": {"a": "gone.safetensors"}}', 'gone.safetensors')])
def test_broken_files_are_named(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    assert message in sentence(gpt.Model.from_pretrained, str(tmp_path))


# the hub ----------------------------------------------------------------------------------------------------------------------

def point_to(url, monkeypatch):
    """Sets the address of the hub, as the environment variable HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', url)
    template = url + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr('huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE', template)


def test_weights_from_the_hub(published, tmp_path, serve, monkeypatch):
    """A model with safetensors, an old one with a pickle only, one that does not exist; then from the cache, offline."""
    model, folder = published
    shutil.copytree(folder, tmp_path / 'owner' / 'new')
    shutil.copytree(folder, tmp_path / 'owner' / 'old', ignore=shutil.ignore_patterns('*.safetensors'))
    torch.save(model.state_dict(), tmp_path / 'owner' / 'old' / 'pytorch_model.bin')

    def answer(request):
        """With the headers of the Hugging Face hub."""
        path = tmp_path / request.path.replace('/resolve/main', '')[1:]
        content = path.read_bytes() if path.is_file() else b''
        request.send_response(200 if content else 404)
        request.send_header(*(('ETag', f'"{path.name}"') if content else
                              ('X-Error-Code', 'EntryNotFound' if path.parent.exists() else 'RepoNotFound')))
        request.send_header('X-Repo-Commit', '0' * 40)
        request.send_header('Content-Length', str(len(content)))
        request.end_headers()
        if request.command == 'GET':
            request.wfile.write(content)
    server = serve(answer)
    server.RequestHandlerClass.do_HEAD = server.RequestHandlerClass.do_GET
    point_to(server.url, monkeypatch)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'cache'))
    for name in ('owner/new', 'owner/old'):
        assert same(gpt.Model.from_pretrained(name), model)
    assert "no model 'owner/none'" in sentence(gpt.Model.from_pretrained, 'owner/none')
    point_to('http://127.0.0.1:9', monkeypatch)
    assert same(gpt.Model.from_pretrained('owner/new'), model)
    said = sentence(gpt.Model.from_pretrained, 'owner/gone')
    assert re.search(r'download http\S*/owner/gone/resolve/main/config.json .*pass that folder', said)
