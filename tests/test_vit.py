"""vit.py against transformers' ViT."""

import pytest
import torch

import vit


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """(folder, transformers' model) of a small ViT with weights at which nothing is hidden."""
    from transformers import ViTConfig, ViTModel
    folder = tmp_path_factory.mktemp('vit')
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=12,
                               patch_size=4, num_channels=3)).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape)
    model.save_pretrained(folder)
    return folder, model


def patches(images, size):
    """(B, C, H, W) -> (B, T, C * P * P), by a loop."""
    B, _, H, W = images.shape
    rows = [images[:, :, i:i + size, j:j + size].reshape(B, -1) for i in range(0, H, size) for j in range(0, W, size)]
    return torch.stack(rows, dim=1)


@torch.no_grad()
def test_it_is_transformers_vit(published):
    folder, theirs = published
    ours = vit.Model.from_pretrained(str(folder), n_head=4).eval()
    images = torch.randn(2, 3, 12, 12)
    expected = theirs(images).last_hidden_state
    torch.testing.assert_close(ours.trunk(patches(images, 4)), expected, atol=1e-4, rtol=1e-4)
    assert (expected - ours.trunk(patches(images, 4))).abs().max() < 1e-4 < expected.abs().max()


def test_settings_that_contradict_the_weights(published):
    folder, _ = published
    with pytest.raises(ValueError, match=r'has \{.block_size.: 9\}, which cannot be set to {.block_size.: 16\}'):
        vit.Model.from_pretrained(str(folder), block_size=16)


def test_weights_that_are_no_vits(tmp_path):
    import safetensors.torch

    import model as gpt
    safetensors.torch.save_file({k: v.contiguous() for k, v in gpt.Model(gpt.Config.tiny()).to_hub()[1].items()},
                                tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match='these are not the weights of a ViT'):
        vit.Model.from_pretrained(str(tmp_path))


def test_it_sees_both_sides():
    torch.manual_seed(0)
    model = vit.Model(vit.Config.tiny()).eval()
    x = torch.randn(1, 9, 4)
    changed = x.clone()
    changed[:, -1] += 1
    assert not torch.allclose(model.trunk(x)[:, 1], model.trunk(changed)[:, 1], atol=1e-7)


@pytest.mark.parametrize(('change', 'said'), [
    ({'features': 0}, 'reads patches of numbers'), ({'readout': 'last'}, "readout='last' is unknown: class and mean are"),
    ({'n_head': 5}, 'is not divisible'), ({'kind': 'x'}, "kind='x' is unknown")])
def test_settings_that_cannot_be(change, said):
    with pytest.raises(ValueError, match=said):
        vit.Config(**change)
