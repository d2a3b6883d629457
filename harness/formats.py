"""Number formats of a model that generates: float32, bfloat16, and int8 weights on a CPU."""

import warnings

import torch
import torch.nn as nn

from harness import UserError, hub


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
        unit = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / self.STEPS
        x = x / unit
        high = x.round()
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            torch.stack([high, (x - high) * (2 * self.STEPS)]), 1.0, self.STEPS + 1, self.packed)
        y = torch.add(y[0], y[1], alpha=0.5 / self.STEPS) * unit
        return y if self.bias is None else y + self.bias


def cast(models, name, device):
    """Moves models to the device, in a format for generation.  Raises UserError if the device lacks it."""
    if name == 'int8' and (device.type != 'cpu' or not {'x86', 'fbgemm'} & {torch.backends.quantized.engine}):
        raise UserError(f'--dtype=int8 needs the matrix product of fbgemm, on an x86 CPU, and not device {device}: use float32')
    if name == 'bfloat16' and device.type == 'cuda' and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError('--dtype=bfloat16: this GPU does not support it: use float32')
    for model in models:
        model.to(device, torch.bfloat16 if name == 'bfloat16' else torch.float32)
        for module in [*model.modules()]:
            if name == 'int8':
                for child, layer in module.named_children():
                    if type(layer) is nn.Linear:
                        setattr(module, child, Int8Linear(layer))
            elif name == 'float32' and device.type == 'cpu' and type(module) is nn.Linear:
                # one row times a matrix is faster if the matrix is stored by its columns
                module.weight.data = module.weight.data.T.contiguous().T


def choose(name, pretrained, device):
    """(format, reason) of --dtype.  auto: of published weights, the stored one if it is faster here; of a run, float32."""
    if name != 'auto':
        return name, 'set by --dtype'
    if pretrained and device.type == 'cpu' and torch.backends.quantized.engine in ('x86', 'fbgemm') and hub.is_quantised(pretrained):
        return 'int8', 'the published weights are stored in at most 8 bits'
    if pretrained and device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False) and hub.stored(pretrained) == 'bfloat16':
        return 'bfloat16', 'the published weights are stored so'
    return 'float32', 'the default'
