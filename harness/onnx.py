"""ONNX, a network as a graph: the weights, under the names that they had in PyTorch.  The package onnx reads the file."""

import torch

from harness import UserError
from harness.gguf import package


def load(path):
    """{name: tensor} of a file that torch.onnx.export wrote.  Raises UserError.

    The exporter folds constants: the matrix of an nn.Linear is stored transposed and has no name but 'onnx::MatMul_17'.  Such a
    tensor is named after the node that reads it: /encoder/layer.0/mlp/fc1/MatMul reads encoder.layer.0.mlp.fc1.weight."""
    onnx = package('onnx', f'{path}, an ONNX file,')
    try:
        graph = onnx.load(path).graph
        # a copy, since the arrays cannot be written to
        weights = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    except Exception as e:          # damaged files raise many types, some of them of the package protobuf
        raise UserError(f'{path} is truncated, or no ONNX file that the package onnx can read '
                        f'({" ".join(str(e).split())[:100]}): download it again') from None
    for node in graph.node:
        for name in node.input:
            if '::' in name and name in weights:
                place, value = node.name.strip('/').replace('/', '.'), weights.pop(name)
                is_matrix = node.op_type == 'MatMul'
                weights[place.removesuffix('MatMul') + 'weight' if is_matrix else place] = value.T if is_matrix else value
    if not weights:
        raise UserError(f'{path} is truncated, or no ONNX file with weights: download it again')
    return weights
