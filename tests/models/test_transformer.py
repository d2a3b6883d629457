"""transformer.py: against torch.nn.Transformer, its loss and its padding, and its search against all targets."""

import itertools

import pytest
import torch
import torch.nn as nn

from tests.models.test_contract import perturb, tiny_model
from transformer import Config

END = Config.tiny().vocab_size - 1


def build(**more):
    return perturb(tiny_model('transformer', more))


@pytest.fixture
def batch():
    """Sources of 9, 6, 1 and 9 tokens, targets of 12, 12, 8 and 1."""
    torch.manual_seed(1)
    source, y = torch.randint(END, (4, 9)), torch.randint(END + 1, (4, 12))
    return (source.where(torch.arange(9) < torch.tensor([9, 6, 1, 9])[:, None], -1),
            y.where(torch.arange(12) < torch.tensor([12, 12, 8, 1])[:, None], -1))


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
    for t, i in itertools.product((0, 1, 7), range(8)):         # the positions by their formula
        angle = torch.tensor(t / 10000 ** (2 * i / 16))
        torch.testing.assert_close(model.positions[t, 2 * i:2 * i + 2], torch.stack([angle.sin(), angle.cos()]))


def test_loss_and_padding(batch):
    """The loss is the mean over targets of the means over their tokens; label smoothing in training only."""
    model, (source, y) = build(smoothing=0.2), batch
    log_p = model(source, y)[0].log_softmax(-1)
    for share, training in ((0, False), (0.2, True)):
        each = [-torch.stack([(1 - share) * log_p[i, t, y[i, t]] + share * log_p[i, t].mean()
                              for t in range(12) if y[i, t] >= 0]).mean() for i in range(4)]
        torch.testing.assert_close(model.train(training)(source, y)[1], torch.stack(each).mean())

    model.eval()        # padding changes nothing
    torch.testing.assert_close(model(source[1:2, :6], y[1:2])[0], model(source, y)[0][1:2])
    torch.testing.assert_close(model(source[2:3, :1], y[2:3, :8])[1], model(source[2:3], y[2:3])[1])
    torch.testing.assert_close(model(source)[0], model(source, y)[0][:, :1])        # without a target


def score(model, source, target):
    """The mean log-probability of a target, its end included if it has one within block_size."""
    y = [*target, model.config.vocab_size - 1][:model.config.block_size]
    log_p = model(source, torch.tensor([y]))[0][0].log_softmax(-1)
    return sum(log_p[t, i].item() for t, i in enumerate(y)) / len(y)


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
