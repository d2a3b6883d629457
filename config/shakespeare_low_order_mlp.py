"""
A bag of characters: the mean of 16 embeddings, and an MLP with ReLU.

Original (https://github.com/jloveric/language-interpolation): python examples/high_order_interpolation.py data.type=sequence
net=large_standard net.hidden.width=1000 max_epochs=100 optimizer.lr=1e-4 net.model_type=low_order_mlp
"""

arch = 'highorder'
dataset = 'shakespeare_char'

network = 'low_order_mlp'
features = 16
n_layer, n_embd = 2, 832             # 0.8 M parameters
block_size = 64

batch_size = 12
max_iters = 2000
learning_rate = 4e-3
min_lr = 4e-4
