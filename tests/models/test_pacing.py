"""pacing.py against transformers' ConvNeXt V2, loops over the grid, and the plain forms of its two causal operations."""

import dataclasses

import pytest
import torch
from transformers import ConvNextV2Config, ConvNextV2Model

import pacing
from harness import ROOT, config


@torch.no_grad()
def test_convnext_v2():
    """With transformers' weights, the original model gives transformers' features."""
    torch.manual_seed(0)
    theirs = ConvNextV2Model(ConvNextV2Config(depths=[1, 2, 1], hidden_sizes=[12, 24, 40], num_stages=3)).eval()
    for p in theirs.parameters():
        p += 0.2 * torch.randn_like(p)
    ours = pacing.Picture(pacing.Config(predicts='last', block_size=64, columns=8, patch_size=8, depths=(1, 2, 1),
                                        dims=(12, 24, 40))).eval()
    names = {'embeddings.patch_embeddings': 'stem', 'embeddings.layernorm': 'stem_norm', 'encoder.stages': 'stages',
             '.layers': '', 'layernorm': 'norm', 'grn.weight': 'grn.gamma', 'grn.bias': 'grn.beta',
             'stages.1.downsampling_layer.0': 'shrink_norms.0', 'stages.1.downsampling_layer.1': 'shrinks.0',
             'stages.2.downsampling_layer.0': 'shrink_norms.1', 'stages.2.downsampling_layer.1': 'shrinks.1'}
    weights = {k: v for k, v in ours.state_dict().items() if k.startswith('readout')}
    for key, value in theirs.state_dict().items():
        for name, own in names.items():
            key = key.replace(name, own)
        weights[key] = value.flatten() if 'grn' in key else value
    ours.load_state_dict(weights)
    image = torch.randn(2, 3, 64, 64)
    expected = theirs(image).last_hidden_state
    assert expected.std() > 0.1 and (ours.features(image) - expected).abs().max() < 1e-4


def test_image_and_blank_windows():
    """The newest token is the patch in the upper left corner, missing ones are blank; in training also of whole windows."""
    torch.manual_seed(0)
    model = pacing.Model(dataclasses.replace(pacing.Config.tiny(), predicts='last', blank=1.0, embedding_std=1.0)).eval()
    assert 0.9 < model.lm_head.weight.std() < 1.1 and model.wpe.weight.std() < 0.03
    image = model.picture.image(model.embed(torch.tensor([[3, 1, 4, 1, 5, 8]])))
    expected = torch.zeros(1, 3, 16, 16)
    for age, token in enumerate([8, 5, 1, 4, 1, 3]):
        row, column = divmod(age, 4)
        expected[0, :, 4 * row:4 * row + 4, 4 * column:4 * column + 4] = \
            (model.wte.weight[token] + model.wpe.weight[age]).view(3, 4, 4)
    assert torch.equal(image, expected)
    x, lengths = torch.randint(9, (64, 16)), set()
    for i, row in enumerate(model.train().embed(x)):
        lengths.add(n := int((row.abs().sum(-1) > 0).sum()))
        torch.testing.assert_close(row[:n], model.eval().embed(x[i:i + 1, -n:])[0])
    assert len(lengths) > 8 and min(lengths) >= 1


def values_and_gradients(function, *inputs):
    """The result of a function and the gradients of a weighted sum of it, for float64 inputs."""
    inputs = [v.double().requires_grad_() for v in inputs]
    y = function(*inputs)
    return y, *torch.autograd.grad((y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum(), inputs)


@pytest.mark.parametrize(('columns', 'T'), [(5, 23), (1, 1), (8, 16), (3, 40)])
def test_causal_convolution(columns, T):
    """conv_plain against loops over the grid, and the fast form against conv_plain, with gradients."""
    torch.manual_seed(0)
    offsets, block = pacing.causal_offsets(columns), pacing.CausalBlock(3, 0.0, columns)
    x, weight, bias, seen = (torch.randn(*s) for s in ((2, T, 3), (3, len(offsets)), (3,), (2, block.reach, 3)))
    expected = torch.zeros(2, T, 3) + bias
    for t in range(T):
        for back in {up * columns - right for up in range(4) for right in range(-3, 4)}:
            if back >= 0:       # up rows above and right columns beside the token
                expected[:, t] += weight[:, offsets.index(back)] * (x[:, t - back] if back <= t else seen[:, t - back])
    torch.testing.assert_close(pacing.conv_plain(x, seen, weight, bias, offsets), expected)

    def fast(x, weight, bias):
        kernel = x.new_zeros(3, block.reach + 1).scatter(1, block.at.expand(3, -1), weight)
        return pacing.DepthwiseConv.apply(x, seen.double(), kernel, bias)
    plain = values_and_gradients(lambda x, w, b: pacing.conv_plain(x, seen.double(), w, b, offsets), x, weight, bias)
    torch.testing.assert_close(values_and_gradients(fast, x, weight, bias), plain)


@pytest.mark.parametrize('T', [14, 16, 3])
def test_causal_grn(T):
    """grn_plain token by token from its definition, and the fast form against grn_plain, with gradients."""
    torch.manual_seed(0)
    h, gamma, beta = torch.randn(2, T, 8), torch.randn(8), torch.randn(8)
    out, block = pacing.grn_plain(h, gamma, beta, 4), pacing.CausalBlock(2, 0.0, 4)
    for t in range(T):
        g = (h[:, :t // 4 * 4].square().sum(1) + 1e-6).sqrt()
        n = g / (g.mean(-1, keepdim=True) + 1e-6)
        torch.testing.assert_close(out[:, t], gamma * (h[:, t] * n) + beta + h[:, t])

    def fast(h, gamma, beta):
        del block.grn.gamma, block.grn.beta
        block.grn.gamma, block.grn.beta = gamma, beta
        return block.causal_grn(h, None)
    plain = values_and_gradients(lambda *v: pacing.grn_plain(*v, 4), h, gamma, beta)
    torch.testing.assert_close(values_and_gradients(fast, h, gamma, beta), plain)


@pytest.mark.parametrize('predicts', ['every', 'last'])
def test_the_124M_configs_are_as_large_as_gpt2(predicts):
    values = config.run_file(ROOT / 'config' / 'pacing_124M.py')
    values = {k: v for k, v in values.items() if k in pacing.Config.__dataclass_fields__}
    with torch.device('meta'):
        model = pacing.Model(pacing.Config(**values | {'predicts': predicts, 'vocab_size': 50257}))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(124_439_808, rel=0.005)
