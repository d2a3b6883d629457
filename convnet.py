"""
Convolutional networks that classify images: the small one of PyTorch's tutorial, and ResNet-18 to ResNet-152.

- LeCun et al. 1998 is where two convolutions with pooling, then three layers of a perceptron, come from; this one has ReLU and
  62,006 parameters: https://pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
- He et al. 2015, "Deep Residual Learning" (arXiv 1512.03385); the stride of a bottleneck is in its 3 x 3 convolution, as in
  torchvision, whose names of the weights these are: model.net.load_state_dict() takes its weights as they are
- the stem for photographs of 224 pixels shrinks them four times, the one for CIFAR's 32 pixels not at all (section 4.2)
- each residual branch starts at zero (Goyal et al. 2017, arXiv 1706.02677, section 5.1), so that an untrained deep network is a
  shallow one, also in eval mode, where batch norm does not yet know any statistics
- batch norm makes the examples of a forward pass depend on each other in training.  Those of all processes are normalised
  together, so that a step is the same on one and on many; a step in several micro-steps is not that of one larger batch

B batch   C channels   H, W height and width   O outputs
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from vit import check_kind, task_loss

# blocks in each of the four stages, and whether they are bottlenecks
RESNETS = {'resnet18': ((2, 2, 2, 2), False), 'resnet34': ((3, 4, 6, 3), False), 'resnet50': ((3, 4, 6, 3), True),
           'resnet101': ((3, 4, 23, 3), True), 'resnet152': ((3, 8, 36, 3), True)}
STEMS = 'imagenet', 'cifar'


@dataclass
class Config:
    network: str = 'resnet18'   # tutorial (62,006 parameters), resnet18, resnet34, resnet50, resnet101 or resnet152
    stem: str = 'cifar'         # of a ResNet: imagenet (7 x 7, stride 2, max-pool: for 224 pixels) or cifar (3 x 3: for 32)
    n_embd: int = 64            # of a ResNet: channels of the first stage; each next one has twice as many
    channels: int = 3           # of an image
    height: int = 32            # of an image, in pixels
    width: int = 32             # of an image, in pixels
    outputs: int = 10           # classes, bits, or 1 for regression
    kind: str = 'classify'      # type of task: classify, bits or regress (see task_loss)

    block_size = 1              # an image counts as one token

    @classmethod
    def tiny(cls):
        return cls(n_embd=4, height=8, width=8, outputs=5)

    def __post_init__(self):
        if self.network not in ('tutorial', *RESNETS):
            raise ValueError(f"unknown network='{self.network}': choose tutorial, {', '.join(RESNETS)}")
        if self.stem not in STEMS:
            raise ValueError(f"unknown stem='{self.stem}': choose imagenet or cifar")
        for name in ('channels', 'height', 'width'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be at least 1')
        if self.network == 'tutorial' and min(self.height, self.width) < 16:
            raise ValueError(f'height={self.height} and width={self.width} must be at least 16 for network=tutorial, which has '
                             f'no padding')
        check_kind(self.kind)


class Tutorial(nn.Module):
    """conv 5 x 5, pool, conv 5 x 5, pool, and three Linear layers."""

    def __init__(self, config):
        super().__init__()
        self.conv1 = nn.Conv2d(config.channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        h, w = (((n - 4) // 2 - 4) // 2 for n in (config.height, config.width))
        self.fc1 = nn.Linear(16 * h * w, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, config.outputs)

    def forward(self, x):
        """x: (B, C, H, W).  Returns (B, O)."""
        x = F.max_pool2d(self.conv1(x).relu(), 2)           # (B, 6, (H - 4) / 2, (W - 4) / 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)           # (B, 16, h, w)
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())


class Sum(torch.autograd.Function):
    """The sum of a tensor over all processes.  Its gradient is that of the sum of their losses, as DDP expects."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return Sum.apply(grad)


class BatchNorm(nn.BatchNorm2d):
    """Over the examples of all processes, in training; torch's SyncBatchNorm does the same on GPUs only."""

    def forward(self, x):
        """x: (B, C, H, W), with as many examples in each process.  Returns the same shape."""
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if self.training and world * x.numel() == x.shape[1]:
            from harness import UserError
            raise UserError('batch norm would make one example of 1 x 1 pixels 0, so nothing is learned: choose a batch_size '
                            '(and tokens_per_step) of at least 2 examples, or larger images')
        if world == 1 or not self.training:
            return super().forward(x)
        h = x.to(self.running_mean.dtype)               # autocast's formats are too coarse for sums
        mean = Sum.apply(h.mean((0, 2, 3)) / world)
        h = h - mean[:, None, None]
        var, n = Sum.apply(h.square().mean((0, 2, 3)) / world), world * x.numel() // x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        h = h * (self.weight * (var + self.eps).rsqrt())[:, None, None] + self.bias[:, None, None]
        return h.to(x.dtype)


def conv(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Block(nn.Module):
    """x + branch(x), then ReLU.  The branch: two 3 x 3 convolutions, or as a bottleneck 1 x 1, 3 x 3, and 1 x 1 to four times
    the channels.  Where the shape changes, x passes a 1 x 1 convolution, too (He et al. 2015, figures 2 and 5)."""

    def __init__(self, inputs, channels, stride, bottleneck):
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        self.conv1 = conv(inputs, channels, 1 if bottleneck else 3, 1 if bottleneck else stride)
        self.bn1 = BatchNorm(channels)
        self.conv2 = conv(channels, channels, 3, stride if bottleneck else 1)
        self.bn2 = BatchNorm(channels)
        if bottleneck:
            self.conv3 = conv(channels, outputs, 1)
            self.bn3 = BatchNorm(outputs)
        self.bottleneck = bottleneck
        nn.init.zeros_((self.bn3 if bottleneck else self.bn2).weight)
        changes = stride != 1 or inputs != outputs
        self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), BatchNorm(outputs)) if changes else None

    def forward(self, x):
        """x: (B, C, H, W).  Returns (B, outputs, H / stride, W / stride)."""
        h = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.bottleneck:
            h = self.bn3(self.conv3(h.relu()))
        return (h + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):

    def __init__(self, config):
        super().__init__()
        (depths, bottleneck), C = RESNETS[config.network], config.n_embd
        imagenet = config.stem == 'imagenet'
        self.conv1 = conv(config.channels, C, 7, 2) if imagenet else conv(config.channels, C, 3)
        self.bn1 = BatchNorm(C)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity()
        inputs = C
        for i, depth in enumerate(depths):
            channels, blocks = C << i, []
            for k in range(depth):
                blocks.append(Block(inputs, channels, 2 if i and not k else 1, bottleneck))
                inputs = channels * (4 if bottleneck else 1)
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, config.outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def features(self, x):
        """x: (B, C, H, W).  Returns (B, channels of the last stage), the mean over all places."""
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x.mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


class Model(nn.Module):
    predicts, modality = 'task', 'images'
    model_types = 'resnet',

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.net = Tutorial(config) if config.network == 'tutorial' else ResNet(config)

    def forward(self, x, y=None):
        """x: (B, C, H, W) float.  y: see task_loss().  Returns logits (B, O) and the mean loss (None without y)."""
        logits = self.net(x)
        return logits, None if y is None else task_loss(logits, y, self.config.kind)

    @classmethod
    def from_pretrained(cls, name, **settings):
        """A ResNet with published weights in the format of transformers: a name on the hub, such as microsoft/resnet-50, or a
        local folder or .safetensors file.  settings: fields of Config; with as many outputs as published the output layer is
        that of the weights, else it is new.  Raises ValueError if the weights are not a ResNet's, or contradict a setting."""
        from harness import hub
        described, weights = hub.load(name)
        weights = {k.removeprefix('resnet.'): v for k, v in weights.items() if not k.endswith('num_batches_tracked')}
        depths = []
        while blocks := {k.split('.')[4] for k in weights if k.startswith(f'encoder.stages.{len(depths)}.layers.')}:
            depths.append(len(blocks))
        stem = weights.get('embedder.embedder.convolution.weight')                      # (n_embd, channels, 7, 7)
        bottleneck = 'encoder.stages.0.layers.0.layer.2.convolution.weight' in weights
        network = next((name for name, shape in RESNETS.items() if shape == (tuple(depths), bottleneck)), None)
        if stem is None or network is None:
            raise ValueError(f'these are not the weights of one of {", ".join(RESNETS)} (blocks {depths})')
        C = len(stem)
        hub.check_config('convnet.py', described, model_type=['resnet'], hidden_act=['relu'], downsample_in_first_stage=[False],
                         downsample_in_bottleneck=[False], embedding_size=[C], depths=[depths],
                         hidden_sizes=[[(C << i) * (4 if bottleneck else 1) for i in range(4)]])
        new = ['*.num_batches_tracked']
        head = weights.get('classifier.1.weight')
        if head is None or settings.setdefault('outputs', len(head)) != len(head):
            new, weights = [*new, 'net.fc.*'], {k: v for k, v in weights.items() if not k.startswith('classifier.')}
        published = {'network': network, 'stem': 'imagenet', 'n_embd': C, 'channels': stem.shape[1]}
        return hub.fill(cls(Config(**{'height': 224, 'width': 224} | hub.merge(published, settings))),
                        {our_name(k): v for k, v in weights.items()}, new)


def our_name(name):
    """The name of a weight here, from its name in transformers."""
    part = {'convolution': 'conv', 'normalization': 'bn'}
    match name.split('.'):
        case ['embedder', 'embedder', kind, what]:
            return f'net.{part[kind]}1.{what}'
        case ['encoder', 'stages', stage, 'layers', block, 'shortcut', kind, what]:
            return f'net.layer{int(stage) + 1}.{block}.downsample.{"01"[kind == "normalization"]}.{what}'
        case ['encoder', 'stages', stage, 'layers', block, 'layer', i, kind, what]:
            return f'net.layer{int(stage) + 1}.{block}.{part[kind]}{int(i) + 1}.{what}'
        case ['classifier', '1', what]:
            return f'net.fc.{what}'
    return name
