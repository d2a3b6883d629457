"""Mamba on MNIST by pixel, with the parameters, pictures and tokens of mnist_pixels_gpt.py.  It takes longer than the GPT."""

arch = 'mamba'
dataset = 'mnist_pixels'

n_layer, n_embd = 7, 128                # 0.8 M parameters
block_size = 196

batch_size = 12
max_iters = 1500
learning_rate = 4e-3
min_lr = 4e-4
