"""
GPT-2 with piecewise polynomials for the queries, keys, values and outputs of attention.

Original (https://github.com/jloveric/language-interpolation): python examples/high_order_interpolation.py data.type=sequence
net=transformer max_epochs=100 optimizer.lr=1e-3 batch_size=512 net.layer_type=continuous net.n=2 data.max_features=10
optimizer.patience=20 initialize.type=linear
"""

arch = 'highorder'
dataset = 'shakespeare_char'

network = 'transformer'
n_layer, n_head, n_embd = 4, 4, 100  # 0.8 M parameters
block_size = 64

batch_size = 12
max_iters = 2000
learning_rate = 8e-3
min_lr = 8e-4
