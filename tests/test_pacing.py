"""pacing.py against transformers' ConvNeXt V2, against its own definition cell by cell, and against finite differences."""

import torch
from transformers import ConvNextV2Config, ConvNextV2Model

import pacing


def test_convnext_v2():
    """The seed's picture, given transformers' weights, gives transformers' features."""
    torch.manual_seed(0)
    theirs = ConvNextV2Model(ConvNextV2Config(depths=[1, 2, 1], hidden_sizes=[12, 24, 40], num_stages=3)).eval()
    for p in theirs.parameters():
        p.data += 0.2 * torch.randn_like(p)
    ours = pacing.Picture(pacing.Config(predicts='last', block_size=64, columns=8, patch_size=8, depths=(1, 2, 1),
                                        dims=(12, 24, 40))).eval()
    weights = {}
    for key, value in theirs.state_dict().items():
        key = key.replace('embeddings.patch_embeddings', 'stem').replace('embeddings.layernorm', 'stem_norm')
        key = key.replace('encoder.stages', 'stages').replace('.layers', '').replace('layernorm', 'norm')
        key = key.replace('grn.weight', 'grn.gamma').replace('grn.bias', 'grn.beta')
        for i in (1, 2):
            key = key.replace(f'stages.{i}.downsampling_layer.0', f'shrink_norms.{i - 1}')
            key = key.replace(f'stages.{i}.downsampling_layer.1', f'shrinks.{i - 1}')
        weights[key] = value.flatten() if 'grn' in key else value
    weights |= {k: v for k, v in ours.state_dict().items() if k.startswith('readout')}
    ours.load_state_dict(weights)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(image).last_hidden_state
        assert expected.std() > 0.1
        assert (ours.cells(image) - expected).abs().max() < 1e-4


def test_the_image():
    """Pixel by pixel: the newest token is the patch in the upper left corner, and what is missing is blank."""
    config = pacing.Config(predicts='last', block_size=16, columns=4, patch_size=4, vocab_size=9, depths=(1,), dims=(8,),
                           blank=0.0)
    model = pacing.Model(config).eval()
    x = torch.tensor([[3, 1, 4, 1, 5, 8]])
    image = model.picture.image(model.look(x))
    assert image.shape == (1, 3, 16, 16)
    expected = torch.zeros_like(image)
    for age, token in enumerate([8, 5, 1, 4, 1, 3]):
        patch = (model.wte.weight[token] + model.wpe.weight[age]).view(3, 4, 4)
        row, column = divmod(age, 4)
        expected[0, :, 4 * row:4 * row + 4, 4 * column:4 * column + 4] = patch
    assert torch.equal(image, expected)


def test_blank_windows_look_like_short_prompts():
    torch.manual_seed(0)
    model = pacing.Model(pacing.Config(predicts='last', block_size=16, columns=4, patch_size=4, depths=(1,), dims=(8,),
                                       blank=1.0))
    x = torch.randint(65, (64, 16))
    h = model.train().look(x)
    lengths = set()
    for i, row in enumerate(h):
        n = int((row.abs().sum(-1) > 0).sum())
        lengths.add(n)
        torch.testing.assert_close(row[:n], model.eval().look(x[i:i + 1, -n:])[0])
    assert len(lengths) > 8 and max(lengths) <= 16 and min(lengths) >= 1


def test_taps_of_a_7_x_7_kernel():
    assert pacing.taps(16) == [0, 1, 2, 3, *range(13, 20), *range(29, 36), *range(45, 52)]
    assert pacing.taps(1) == [0, 1, 2, 3, 4, 5, 6]


def test_the_causal_convolution_is_a_picture_s():
    """Against loops over the picture: dr rows up and dc columns right of cell t is cell t - dr * W + dc."""
    torch.manual_seed(0)
    W, T, C = 5, 23, 3
    block = pacing.CausalBlock(C, 0.0, W)
    kernel = {}
    for weight, back in zip(block.dwconv.weight[:, 0].T, pacing.taps(W), strict=True):
        kernel[back] = weight
    x = torch.randn(2, T, C)
    expected = torch.zeros(2, T, C)
    for t in range(T):
        for back in {dr * W - dc for dr in range(4) for dc in range(-3, 4)}:
            if 0 <= back <= t:
                expected[:, t] += kernel[back] * x[:, t - back]
    dense = torch.zeros(C, block.reach + 1)
    dense[:, block.at] = block.dwconv.weight[:, 0]
    y = pacing.DepthwiseConv.apply(x, torch.zeros(2, block.reach, C), dense, block.dwconv.bias)
    torch.testing.assert_close(y, expected + block.dwconv.bias)


def test_gradient_of_the_depthwise_convolution():
    torch.manual_seed(0)
    for T, K in ((1, 4), (16, 3), (21, 9)):
        x, seen, kernel, bias = (torch.randn(*s, dtype=torch.double) for s in ((2, T, 3), (2, K - 1, 3), (3, K), (3,)))
        x, kernel, bias = (t.requires_grad_() for t in (x, kernel, bias))
        assert torch.autograd.gradcheck(pacing.DepthwiseConv.apply, (x, seen, kernel, bias))


def test_gradient_of_the_norm():
    torch.manual_seed(0)
    x, gamma, beta, above, row = (torch.randn(*s, dtype=torch.double) for s in ((2, 3, 4, 5), (5,), (5,), (2, 5), (2, 5)))
    x, gamma, beta = (t.requires_grad_() for t in (x, gamma, beta))

    def out(x, gamma, beta):
        return pacing.RowwiseGRN.apply(x, gamma, beta, above.square(), row.square())[0]
    assert torch.autograd.gradcheck(out, (x, gamma, beta))


def test_the_norm_is_over_the_rows_above():
    """GRN of a cell, from its definition: the norm of each channel over all rows above the cell's own."""
    torch.manual_seed(0)
    W, T = 4, 14
    block = pacing.CausalBlock(2, 0.0, W)
    block.grn.gamma.data.normal_()
    block.grn.beta.data.normal_()
    h = torch.randn(2, T, 8)
    out = block.respond(h, None)
    for t in range(T):
        energy = h[:, :t // W * W].square().sum(1) + 1e-6
        g = energy.sqrt()
        n = g / (g.mean(-1, keepdim=True) + 1e-6)
        torch.testing.assert_close(out[:, t], block.grn.gamma * (h[:, t] * n) + block.grn.beta + h[:, t])


def test_parameters_of_the_124M_configs():
    """Within 0.5 % of GPT-2's 124,439,808, both ways of looking."""
    from harness import ROOT, config
    values = config.run_file(ROOT / 'config' / 'pacing_124M.py')
    values = {k: v for k, v in values.items() if k in pacing.Config.__dataclass_fields__}
    for predicts in ('every', 'last'):
        with torch.device('meta'):
            model = pacing.Model(pacing.Config(**values | {'predicts': predicts, 'vocab_size': 50257}))
        assert abs(sum(p.numel() for p in model.parameters()) / 124_439_808 - 1) < 0.005
