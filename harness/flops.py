"""Floating-point operations of what really runs, counted by torch: those of matrix products and convolutions."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def convolution_backward(dy, x, w, *args, out_shape=None):
    """Each gradient costs what the convolution did.  torch 2.13 overlooks the groups, and counts a depthwise
    convolution's as many times too high as it has channels."""
    transposed, mask = args[4], args[-1]
    return sum(mask[:2]) * conv_flop_count(x, w, dy, transposed=transposed)


def count(step):
    """Calls step() and returns the FLOPs of all that ran in it, on whatever device.

    Attention is computed in its plain form, as two matrix products, since torch does not count the fused one of a CPU."""
    mended = {torch.ops.aten.convolution_backward: convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=mended) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()
