"""model.py against transformers' GPT-2, in both directions, and the key-value cache."""

import functools
import http.server
import json
import threading

import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import model as gpt
from harness import UserError, files, hub


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
    """(a GPT2LMHeadModel whose weights are all away from their initial values, the folder it was saved in)."""
    torch.manual_seed(0)
    published = GPT2LMHeadModel(GPT2Config(vocab_size=131, n_positions=48, n_embd=32, n_layer=3, n_head=4)).eval()
    for p in published.parameters():
        p.data += 0.2 * torch.randn_like(p)
    folder = tmp_path_factory.mktemp('published')
    published.save_pretrained(folder)
    return published, folder


def ids(length=48):
    return torch.randint(131, (2, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_published_weights_give_the_published_logits(theirs):
    published, folder = theirs
    ours = gpt.Model.from_pretrained(str(folder)).eval()
    assert (ours(ids())[0] - published(ids()).logits).abs().max() < 1e-4
    by_file = gpt.Model.from_pretrained(str(folder / 'model.safetensors')).eval()
    assert torch.equal(ours(ids())[0], by_file(ids())[0])


@torch.no_grad()
def test_a_shorter_window_crops_the_positions(theirs):
    published, folder = theirs
    ours = gpt.Model.from_pretrained(str(folder), block_size=20, dropout=0.5).eval()
    assert ours.config.block_size == 20 and ours.config.dropout == 0.5
    assert (ours(ids(20))[0] - published(ids(20)).logits).abs().max() < 1e-4


def test_weights_that_do_not_fit_are_refused(theirs, tmp_path):
    _, folder = theirs
    with pytest.raises(ValueError, match='n_layer'):
        gpt.Model.from_pretrained(str(folder), n_layer=5)
    safetensors.torch.save_file({'a': torch.zeros(2)}, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match='not the weights of a GPT-2'):
        gpt.Model.from_pretrained(str(tmp_path))
    weights = safetensors.torch.load_file(folder / 'model.safetensors')
    weights['transformer.h.1.mlp.c_fc.weight'] = torch.zeros(32, 64)
    safetensors.torch.save_file(weights, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    with pytest.raises(ValueError, match=r'h\.1\.mlp\.c_fc\.weight'):
        gpt.Model.from_pretrained(str(tmp_path))
    (tmp_path / 'model.safetensors').write_bytes(b'cut short')
    with pytest.raises(UserError, match='truncated'):
        gpt.Model.from_pretrained(str(tmp_path))


@torch.no_grad()
@pytest.mark.parametrize('change', [{}, {'bias': False}, {'gelu': 'tanh'}], ids=str)
def test_export_is_loaded_by_transformers(tmp_path, change):
    torch.manual_seed(1)
    ours = gpt.Model(gpt.Config(vocab_size=131, block_size=48, n_embd=32, n_layer=3, n_head=4, **change)).eval()
    for p in ours.parameters():
        p.data += 0.2 * torch.randn_like(p)
    described, weights = ours.to_hub()
    safetensors.torch.save_file(weights, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    (tmp_path / 'config.json').write_text(json.dumps(described))
    published = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert (ours(ids())[0] - published(ids()).logits).abs().max() < 1e-4
    if ours.config.bias:
        again = gpt.Model.from_pretrained(str(tmp_path)).eval()
        assert torch.equal(again(ids())[0], ours(ids())[0])


def test_from_the_hub_by_name(theirs, tmp_path, monkeypatch):
    """A server of the same layout: config.json and model.safetensors under owner/name/resolve/main; an old model that
    has only pytorch_model.bin; a name that is not there."""
    published, folder = theirs
    for name in ('owner/new', 'owner/old'):
        (tmp_path / name / 'resolve').mkdir(parents=True)
        (tmp_path / name / 'resolve/main').mkdir()
        (tmp_path / name / 'resolve/main/config.json').write_text((folder / 'config.json').read_text())
    (tmp_path / 'owner/new/resolve/main/model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes())
    torch.save(published.state_dict(), tmp_path / 'owner/old/resolve/main/pytorch_model.bin')
    handler = functools.partial(type('Quiet', (http.server.SimpleHTTPRequestHandler,), {'log_message': lambda *a: None}),
                                directory=tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(hub, 'HUB', f'http://127.0.0.1:{server.server_port}')
        monkeypatch.setattr(files, 'DOWNLOADS', tmp_path / 'downloads')
        with torch.no_grad():
            for name in ('owner/new', 'owner/old'):
                ours = gpt.Model.from_pretrained(name).eval()
                assert (ours(ids())[0] - published(ids()).logits).abs().max() < 1e-4
        with pytest.raises(UserError, match="no model 'owner/none'"):
            gpt.Model.from_pretrained('owner/none')
        server.shutdown()
    with pytest.raises(UserError, match=r'put .*owner/gone/resolve/main/config.json by hand'):
        gpt.Model.from_pretrained('owner/gone')


@torch.no_grad()
def test_a_full_cache_reads_the_latter_half_again():
    """step() past the window: the documented rule, spelled out with forward()."""
    torch.manual_seed(0)
    model = gpt.Model(gpt.Config.tiny()).eval()     # a window of 16
    x = torch.randint(17, (2, 41))
    state, window = model.init_state(2), x[:, :0]
    for i in range(x.shape[1]):
        logits, state = model.step(x[:, i:i + 1], state)
        window = torch.cat([window, x[:, i:i + 1]], 1)
        if window.shape[1] > 16:
            window = window[:, -8:]
        torch.testing.assert_close(logits, model(window)[0][:, -1], atol=1e-5, rtol=1e-4)
    logits, _ = model.step(x, model.init_state(2))      # a prompt longer than the window: its end
    torch.testing.assert_close(logits, model(x[:, -16:])[0][:, -1], atol=1e-5, rtol=1e-4)
