"""convnet.py against torchvision's and transformers' ResNets."""

import re
import sys

import pytest
import torch
from conftest import sentence

import convnet
from tests.models.test_published import same, theirs

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


def test_one_example_that_batch_norm_would_make_zero():
    model, x = convnet.Model(convnet.Config.tiny()), torch.randn(1, 3, 8, 8)
    assert 'batch_size' in sentence(model, x)
    assert model(torch.cat([x, x]))[0].shape == (2, 5) and model.eval()(x)[0].shape == (1, 5)


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


@pytest.mark.parametrize('name', ['resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152'])
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


@pytest.mark.parametrize('kind, width, depths', [('basic', 8, [2, 2, 2, 2]), ('bottleneck', 32, [3, 4, 6, 3])])
def test_published_weights_give_the_published_logits(tmp_path, kind, width, depths):
    model = theirs('ResNetForImageClassification', tmp_path, layer_type=kind, embedding_size=8, depths=depths, num_labels=5,
                   hidden_sizes=[width << i for i in range(4)])
    x = torch.randn(2, 3, 64, 64)
    assert same(convnet.Model.from_pretrained(str(tmp_path)), model, x)
    other = convnet.Model.from_pretrained(str(tmp_path), outputs=3).eval()      # with an output layer of its own
    torch.testing.assert_close(other.net.features(x), model.resnet(x).pooler_output.flatten(1), atol=1e-4, rtol=1e-4)
    assert other(x)[0].shape == (2, 3)
