"""Number formats of a model that generates: float32, bfloat16, and int8 weights on a CPU."""

import warnings

import torch
import torch.nn as nn

from harness import UserError, hub
from harness.device import number_format

LEAST = 2 ** 18        # weights of a matrix: a smaller one is as fast in float32


class Int8Linear(nn.Module):
    """nn.Linear with weights of 8 bits and a scale per output, by fbgemm's matrix product of integers.

    Its other factor may have 7 bits, too few for activations.  Because a product reads all weights whatever the number of rows,
    each row is given as two: its 7 most significant bits, and the 7 after them."""

    STEPS = 63      # of 7 bits; a sum of two products of 7 and 8 bits fits into 16, which is how AVX2 adds them

    def __init__(self, layer):
        super().__init__()
        weight = layer.weight.detach().float()
        scales, zeros = (weight.abs().amax(1) / 127).clamp(min=1e-30), torch.zeros(len(weight), dtype=torch.int64)
        with warnings.catch_warnings(action='ignore'):      # that torch will replace this function
            packed = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        self.packed, self.bias = torch.ops.quantized.linear_prepack(packed, None), layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @property
    def weight(self):
        """The rounded weights, for a model that uses them in another way."""
        with warnings.catch_warnings(action='ignore'):
            return torch.ops.quantized.linear_unpack(self.packed)[0].dequantize()

    def forward(self, x):
        unit = x.abs().amax(-1, keepdim=True).div_(self.STEPS).clamp_(min=1e-30)
        x = x / unit                                                                        # from -63 to 63
        high = x.round()
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            torch.stack([high, (x - high).mul_(2 * self.STEPS)]), 1.0, self.STEPS + 1, self.packed)
        y = torch.add(y[0], y[1], alpha=0.5 / self.STEPS)
        return y * unit if self.bias is None else torch.addcmul(self.bias, y, unit)


def has_int8(device):
    return device.type == 'cpu' and torch.backends.quantized.engine in ('x86', 'fbgemm')


def cast(models, name, device):
    """Moves models to the device, in a format for generation.  Raises UserError if the device lacks it."""
    if name == 'int8' and not has_int8(device):
        raise UserError(f'--dtype=int8 needs the matrix products of fbgemm, on an x86 CPU, which device {device} has not: use '
                        f'float32')
    if name == 'bfloat16' and device.type == 'cuda':
        number_format(device, name)
    for model in models:
        model.to(device, torch.bfloat16 if name == 'bfloat16' else torch.float32)
        for module, child, layer in large([model]) if name == 'int8' else ():
            setattr(module, child, Int8Linear(layer))
        for layer in model.modules():
            if type(layer) is nn.Linear and name != 'bfloat16' and device.type == 'cpu':
                layer.weight.data = layer.weight.data.T.contiguous().T      # a row times a matrix is faster by columns


def large(models):
    """The matrices of models that int8 changes: (module, name of the layer in it, layer)."""
    return [(module, name, layer) for model in models for module in model.modules() for name, layer in module.named_children()
            if type(layer) is nn.Linear and layer.weight.numel() >= LEAST]


def choose(name, models, pretrained, device):
    """(format, reason) for --dtype.  auto: float32, except that published weights keep 8 bits on a CPU and bfloat16 on a GPU
    that has it.  pretrained: their name, or None.  Raises UserError for an int8 that would change nothing."""
    if name == 'int8' and not large(models):
        raise UserError(f'--dtype=int8 changes matrices of at least {LEAST:,} weights, smaller ones being as fast in float32, '
                        f'and here is none: leave it out')
    if name == 'auto' and pretrained:
        stored = hub.stored(pretrained)
        if stored == 'int8' and has_int8(device) and large(models):
            return stored, 'the published weights have at most 8 bits'
        if stored == 'bfloat16' and number_format(device)[0] == torch.bfloat16:
            return stored, 'the published weights are stored so'
    return ('float32', 'the default') if name == 'auto' else (name, 'set by --dtype')
