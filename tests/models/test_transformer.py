"""transformer.py: against torch.nn.Transformer, its search against all targets, its causality and its padding."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn as nn

from tests.models.test_contract import perturb
from transformer import Config, Model

END = Config.tiny().vocab_size - 1


def build(**more):
    torch.manual_seed(0)
    return perturb(Model(replace(Config.tiny(), **more))).eval()


@pytest.fixture
def batch():
    """Sources of 9, 6, 1 and 9 tokens, targets of 12, 12, 8 and 1."""
    torch.manual_seed(1)
    source, y = torch.randint(END, (4, 9)), torch.randint(END + 1, (4, 12))
    for i, (s, t) in enumerate(((9, 12), (6, 12), (1, 8), (9, 1))):
        source[i, s:], y[i, t:] = -1, -1
    return source, y


def copy_weights(ours, theirs):
    """Into the layers of torch.nn.Transformer."""
    pairs = [(ours.attn, theirs.self_attn), *([(ours.cross, theirs.multihead_attn)] if hasattr(ours, 'cross') else [])]
    for a, b in pairs:
        for kind in ('weight', 'bias'):
            getattr(b, f'in_proj_{kind}').data = torch.cat([getattr(layer, kind) for layer in (a.query, a.key, a.value)])
        b.out_proj.load_state_dict(a.proj.state_dict())
    for a, b in (('ff.0', 'linear1'), ('ff.2', 'linear2'), ('ln_1', 'norm1'), ('ln_2', 'norm2'),
                 *([('ln_3', 'norm3')] if len(pairs) == 2 else [])):
        theirs.get_submodule(b).load_state_dict(ours.get_submodule(a).state_dict())


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors')
@torch.no_grad()
def test_it_is_the_transformer_of_torch(batch):
    model, (source, y) = build(), batch
    x, c = nn.functional.pad(torch.where(y < 0, END, y)[:, :-1], (1, 0), value=END), model.config
    theirs = nn.Transformer(c.n_embd, c.n_head, c.n_layer, c.n_layer, c.n_hidden, 0.0, batch_first=True).eval()
    theirs.encoder.norm = theirs.decoder.norm = None        # the paper has none
    for ours, layer in zip([*model.encoder, *model.decoder], [*theirs.encoder.layers, *theirs.decoder.layers], strict=True):
        copy_weights(ours, layer)
    padding = source < 0
    h = theirs(model.embed(model.source, source.clamp(min=0)), model.embed(model.target, x),
               tgt_mask=nn.Transformer.generate_square_subsequent_mask(12), src_key_padding_mask=padding,
               memory_key_padding_mask=padding)
    torch.testing.assert_close(model(source, y)[0], model.lm_head(h), atol=1e-5, rtol=1e-5)


def test_positions_by_their_formula():
    found = Model(Config.tiny()).positions
    for t, i in itertools.product((0, 1, 7), range(8)):
        angle = torch.tensor(t / 10000 ** (2 * i / 16))
        torch.testing.assert_close(found[t, 2 * i:2 * i + 2], torch.stack([angle.sin(), angle.cos()]))


def test_loss_is_the_mean_over_targets(batch):
    """Of the means over their tokens; label smoothing in training only."""
    model, (source, y) = build(smoothing=0.2), batch
    log_p = model(source, y)[0].log_softmax(-1)
    each = [-torch.stack([log_p[i, t, y[i, t]] for t in range(12) if y[i, t] >= 0]).mean() for i in range(4)]
    torch.testing.assert_close(model(source, y)[1], torch.stack(each).mean())
    smooth = [-torch.stack([0.8 * log_p[i, t, y[i, t]] + 0.2 * log_p[i, t].mean() for t in range(12) if y[i, t] >= 0]).mean()
              for i in range(4)]
    torch.testing.assert_close(model.train()(source, y)[1], torch.stack(smooth).mean())


@torch.no_grad()
def test_the_decoder_is_causal_and_sees_the_whole_source(batch):
    model, (source, y) = build(), batch
    before = model(source, y)[0]
    for k in (0, 6, 10):
        changed = y.clone()
        changed[:, k:] = (y[:, k:] + 1) % END
        after = model(source, changed)[0]
        assert torch.equal(before[:, :k + 1], after[:, :k + 1])
        assert not torch.allclose(before[:, k + 1], after[:, k + 1], atol=1e-3)
    torch.testing.assert_close(model(source)[0], before[:, :1])
    for s in range(9):
        changed = source.clone()
        changed[0, s] = (source[0, s] + 1) % END
        assert not torch.allclose(model(changed, y)[0][0, 0], before[0, 0], atol=1e-4)


@torch.no_grad()
def test_padding_changes_nothing(batch):
    model, (source, y) = build(), batch
    torch.testing.assert_close(model(source[1:2, :6], y[1:2])[0], model(source, y)[0][1:2])
    torch.testing.assert_close(model(source[2:3, :1], y[2:3, :8])[1], model(source[2:3], y[2:3])[1])


def score(model, source, target):
    """The mean log-probability of a target, its end included if it has one within block_size."""
    size = model.config.block_size
    end = model.config.vocab_size - 1
    y = [*target, end][:size]
    log_p = model(source, torch.tensor([y]))[0][0].log_softmax(-1)
    return sum(log_p[t, i].item() for t, i in enumerate(y)) / len(y)


@torch.no_grad()
def test_search_finds_the_likeliest_of_all_targets():
    """With beams for every prefix, a beam search is exhaustive; greedy decoding takes the likeliest token each time."""
    model = build(vocab_size=4, block_size=3, source_size=5)
    for p in model.parameters():
        p.data *= 1.5
    sources = torch.tensor([[0, 1, 2, 1, 0], [2, 2, -1, -1, -1], [1, -1, -1, -1, -1]])
    everything = [t for n in range(4) for t in itertools.product(range(3), repeat=n)]
    for row, found in zip(sources, model.decode(sources, beams=64).tolist(), strict=True):
        source = row[None, :int((row >= 0).sum())]
        best = max(everything, key=lambda target: score(model, source, target))
        assert [i for i in found if i >= 0] == [*best]
        greedy = []
        while len(greedy) < 3 and greedy[-1:] != [3]:
            greedy.append(model(source, torch.tensor([[*greedy, 0]]))[0][0, -1].argmax().item())
        assert [i for i in model.decode(source)[0].tolist() if i >= 0] == [i for i in greedy if i != 3]


@torch.no_grad()
def test_vectors_are_a_source(batch):
    model = build(features=5)
    source = torch.randn(4, 9, 5)
    assert not torch.allclose(model(source)[0], model(source.flip(1))[0], atol=1e-3)
    assert model.decode(source).shape[0] == 4


@pytest.mark.parametrize('settings, message', [
    ({'n_head': 3}, 'n_embd=16.*n_head=3'), ({'n_embd': 15, 'n_head': 3}, 'n_embd=15'), ({'smoothing': 1.0}, 'smoothing=1'),
    ({'source_size': 0}, 'source_size=0'), ({'features': -1}, 'features=-1')])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(Config.tiny(), **settings)
