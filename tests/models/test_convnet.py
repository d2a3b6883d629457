"""convnet.py against torchvision's and transformers' ResNets."""

import re
import sys

import pytest
import torch

import convnet
from tests.models.test_published import refused

COUNTS = {'resnet18': 11_689_512, 'resnet34': 21_797_672, 'resnet50': 25_557_032, 'resnet101': 44_549_160,
          'resnet152': 60_192_808}      # parameters with 1,000 outputs


def test_parameters():
    """The tutorial's, from its own layers; ResNets as published, on the meta device."""
    with torch.device('meta'):
        assert sum(p.numel() for p in convnet.Model(convnet.Config(network='tutorial')).parameters()) == 62_006
        for name, count in COUNTS.items():
            model = convnet.Model(convnet.Config(network=name, stem='imagenet', outputs=1000))
            assert sum(p.numel() for p in model.parameters()) == count
            assert model(torch.empty(1, 3, 64, 64))[0].shape == (1, 1000)


def torchvision_models():
    """torchvision.models, which is no requirement: a build without its operators stops transformers from being imported.  These
    operators for detection are declared here if they are missing; no ResNet uses them."""
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for _ in range(20):
        try:
            return pytest.importorskip('torchvision.models'), library
        except RuntimeError as e:
            library.define(f'{re.search("operator torchvision::(.+) does not exist", str(e))[1]}(Tensor x) -> Tensor')
            for name in [name for name in sys.modules if name.startswith('torchvision')]:
                del sys.modules[name]


@torch.no_grad()
@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_weight_for_weight_with_torchvision(name):
    models, _library = torchvision_models()
    theirs = getattr(models, name)(num_classes=7).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = convnet.Model(convnet.Config(network=name, stem='imagenet', outputs=7)).eval()
    ours.net.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x)[0], theirs(x))


@pytest.fixture(scope='module', params=['basic', 'bottleneck'])
def published(request, tmp_path_factory):
    """(folder, model) of a narrow ResNet-18 or ResNet-50 of transformers."""
    from transformers import ResNetConfig, ResNetForImageClassification
    basic = request.param == 'basic'
    folder = tmp_path_factory.mktemp('resnet')
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(
        embedding_size=8, hidden_sizes=[(8 if basic else 32) << i for i in range(4)], depths=[2] * 4 if basic else [3, 4, 6, 3],
        layer_type=request.param, num_labels=5)).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value += 0.1 * torch.rand(value.shape) if 'running_var' in name else 0.1 * torch.randn(value.shape)
    model.save_pretrained(folder)
    return folder, model


@torch.no_grad()
def test_published_weights_give_the_published_logits(published):
    folder, theirs = published
    x = torch.randn(2, 3, 64, 64)
    expected = theirs(x).logits
    torch.testing.assert_close(convnet.Model.from_pretrained(str(folder)).eval()(x)[0], expected, atol=1e-4, rtol=1e-4)
    other = convnet.Model.from_pretrained(str(folder), outputs=3).eval()        # with an output layer of its own
    features = theirs.resnet(x).pooler_output.flatten(1)
    torch.testing.assert_close(other.net.features(x), features, atol=1e-4, rtol=1e-4)
    assert other(x)[0].shape == (2, 3)


@pytest.mark.parametrize(('change', 'settings', 'message'), [
    (lambda w, c: None, {'network': 'resnet101'}, "'network': 'resnet"), (lambda w, c: None, {'stem': 'cifar'}, 'imagenet'),
    (lambda w, c: c.update(hidden_act='gelu'), {}, "hidden_act='gelu'"), (lambda w, c: c.update(model_type='vit'), {}, "'vit'"),
    (lambda w, c: c.update(downsample_in_first_stage=True), {}, 'downsample_in_first_stage=True'),
    (lambda w, c: w.pop('resnet.encoder.stages.1.layers.0.layer.1.normalization.running_mean'), {}, r'bn2\.running_mean'),
    (lambda w, c: [w.pop(k) for k in list(w) if 'stages.3' in k], {}, 'not the weights of one of resnet18')])
def test_weights_that_do_not_fit_are_refused(published, tmp_path, change, settings, message):
    assert re.search(message, refused('convnet', published[0], tmp_path, change, settings))


@pytest.mark.parametrize(('change', 'message'), [
    ({'network': 'resnet19'}, "network='resnet19'"), ({'stem': 'x'}, "stem='x'"), ({'kind': 'x'}, "kind='x'"),
    ({'network': 'tutorial', 'width': 8}, 'width=8')])
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        convnet.Config(**change)
