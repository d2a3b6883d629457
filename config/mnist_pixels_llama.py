"""Llama on MNIST by pixel, with the parameters, pictures and tokens of mnist_pixels_gpt.py."""

arch = 'llama'
dataset = 'mnist_pixels'

n_layer, n_head, n_embd = 4, 4, 128     # 0.8 M parameters
n_kv_head = 2
n_hidden = 384
block_size = 196

batch_size = 12
max_iters = 1500
learning_rate = 4e-3
min_lr = 4e-4
