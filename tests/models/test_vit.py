"""vit.py against transformers' ViT."""

import dataclasses
import re

import pytest
import torch

import vit
from harness import files
from tests.models.test_published import refused


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """(folder, model) of a small ViT of transformers."""
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
def test_published_weights_give_the_published_features(published):
    folder, theirs = published
    ours = vit.Model.from_pretrained(str(folder), n_head=4).eval()
    images = torch.randn(2, 3, 12, 12)
    expected = theirs(images).last_hidden_state
    torch.testing.assert_close(ours.trunk(patches(images, 4)), expected, atol=1e-4, rtol=1e-4)
    mean = vit.Model.from_pretrained(str(folder), n_head=4, readout='mean').eval()
    assert mean.cls is None and torch.equal(mean.wpe.weight, ours.wpe.weight[1:])


@torch.no_grad()
@pytest.mark.parametrize('side', [2, 5])
def test_positions_for_another_size_of_image(published, side):
    """Interpolated as transformers does, of published weights and of a model; with the class token and without."""
    folder, theirs = published
    images = torch.randn(2, 3, 4 * side, 4 * side)
    expected = theirs(images, interpolate_pos_encoding=True).last_hidden_state
    for readout in ('class', 'mean'):
        ours = vit.Model.from_pretrained(str(folder), block_size=side ** 2, readout=readout).eval()
        again = vit.Model.from_pretrained(str(folder), readout=readout)
        again = again.refined(dataclasses.replace(again.config, block_size=side ** 2)).eval()
        for p, q in zip(ours.h.parameters(), again.h.parameters(), strict=True):
            assert torch.equal(p, q)
        assert torch.equal(ours.wpe.weight, again.wpe.weight)
        if readout == 'class':
            torch.testing.assert_close(ours.trunk(patches(images, 4)), expected, atol=1e-4, rtol=1e-4)
        else:
            whole = vit.Model.from_pretrained(str(folder), block_size=side ** 2)
            assert torch.equal(ours.wpe.weight, whole.wpe.weight[1:])


def onnx_features(path, name, images):
    """What onnxruntime computes at the node output `name` of an ONNX file."""
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    model = onnx.load(path)
    if name not in [o.name for o in model.graph.output]:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return torch.tensor(session.run([name], {session.get_inputs()[0].name: images.numpy()})[0])


@torch.no_grad()
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('side', [3, 5])
def test_an_onnx_file_gives_the_features_of_onnxruntime(tmp_path, side):
    """Of a small DINOv2 that torch exports: its unnamed matrices, LayerScale, and positions for another size of image."""
    from transformers import Dinov2Config, Dinov2Model
    pytest.importorskip('onnx')
    torch.manual_seed(0)
    theirs = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, image_size=20, patch_size=4))
    for p in theirs.parameters():
        p += 0.2 * torch.randn(p.shape)
    images = torch.randn(2, 3, 4 * side, 4 * side)
    torch.onnx.export(theirs.eval(), (images,), tmp_path / 'a.onnx', dynamo=False, output_names=['h'])
    with pytest.raises(ValueError, match='n_head'):
        vit.Model.from_pretrained(str(tmp_path / 'a.onnx'))
    theirs.config.save_pretrained(tmp_path)
    ours = vit.Model.from_pretrained(str(tmp_path / 'a.onnx'), block_size=side ** 2).eval()
    torch.testing.assert_close(ours.trunk(patches(images, 4)), onnx_features(tmp_path / 'a.onnx', 'h', images), atol=1e-4,
                               rtol=1e-4)


@torch.no_grad()
def test_vit_s():
    """The published file, where it has been fetched."""
    if not (path := files.DOWNLOADS / 'vit-s' / 'vit_s_focus.onnx').exists():
        pytest.skip('vit-s has not been fetched')
    images, last = torch.randn(1, 3, 224, 224), '/backbone/layernorm/Add_1_output_0'
    ours = vit.Model.from_pretrained('vit-s', block_size=256).eval()
    assert (ours.trunk(patches(images, 14)) - onnx_features(path, last, images)).abs().max() < 1e-3


@pytest.mark.parametrize(('change', 'settings', 'message'), [
    (lambda w, c: None, {'block_size': 12}, 'from 9 patches to 12'), (lambda w, c: None, {'n_head': 2}, "'n_head': 4"),
    (lambda w, c: c.pop('num_attention_heads'), {}, '--n_head'),
    (lambda w, c: w.pop('encoder.layer.1.attention.attention.key.bias'), {}, r'h\.1\.attn\.c_attn\.bias is missing'),
    (lambda w, c: w.update({'encoder.layer.0.output.dense.weight': torch.zeros(3, 3)}), {}, r'c_proj\.weight is \(3, 3\)'),
    (lambda w, c: w.update({'embeddings.distillation_token': torch.zeros(1)}), {}, 'distillation_token'),
    (lambda w, c: w.pop('embeddings.position_embeddings'), {}, 'not the weights of a ViT'),
    (lambda w, c: c.update(model_type='deit'), {}, "model_type='deit'")])
def test_weights_that_do_not_fit_are_refused(published, tmp_path, change, settings, message):
    assert re.search(message, refused('vit', published[0], tmp_path, change, settings))


@pytest.mark.parametrize(('change', 'message'), [({'features': 0}, 'features=0'), ({'readout': 'last'}, "readout='last'"),
                                                 ({'n_head': 5}, 'n_head=5'), ({'kind': 'x'}, "kind='x'")])
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        vit.Config(**change)
