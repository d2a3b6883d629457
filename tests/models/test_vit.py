"""vit.py against transformers' ViT."""

import dataclasses

import pytest
import torch

import vit
from harness import files
from tests.models.test_published import patches, theirs


@pytest.mark.parametrize('side', [2, 3, 5])
def test_positions_for_each_size_of_image(tmp_path, side):
    """Interpolated as transformers does, of published weights and of a model; with the class token and without."""
    model = theirs('ViTModel', tmp_path, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
                   image_size=12, patch_size=4)
    folder, images = str(tmp_path), torch.randn(2, 3, 4 * side, 4 * side)
    classed, mean = models = [vit.Model.from_pretrained(folder, block_size=side ** 2, readout=readout, n_head=4).eval()
                              for readout in ('class', 'mean')]
    expected = model(images, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(classed.trunk(patches(images, 4)), expected, atol=1e-4, rtol=1e-4)
    assert mean.cls is None and torch.equal(mean.wpe.weight, classed.wpe.weight[1:])
    for ours in models:
        again = vit.Model.from_pretrained(folder, readout=ours.config.readout)
        again = again.refined(dataclasses.replace(again.config, block_size=side ** 2))
        pairs = zip((ours.wpe.weight, *ours.h.parameters()), (again.wpe.weight, *again.h.parameters()), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)


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
    pytest.importorskip('onnx')
    model = theirs('Dinov2Model', tmp_path / 'hub', hidden_size=16, num_hidden_layers=2, num_attention_heads=4, image_size=20,
                   patch_size=4)
    images = torch.randn(2, 3, 4 * side, 4 * side)
    torch.onnx.export(model, (images,), tmp_path / 'a.onnx', dynamo=False, output_names=['h'])
    with pytest.raises(ValueError, match='n_head'):
        vit.Model.from_pretrained(str(tmp_path / 'a.onnx'))
    model.config.save_pretrained(tmp_path)
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
