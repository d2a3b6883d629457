"""
One high-order convolution of two vectors, applied four times, reduces 16 characters to one vector.

Original (https://github.com/jloveric/language-interpolation): python examples/high_order_interpolation.py data.type=sequence
net=dual_convolution max_epochs=100 optimizer.lr=1e-5 batch_size=32 net.layer_type=continuous net.n=3 net.segments=16
data.max_features=10 net.embedding_dimension=128 net.hidden_width=1024 net.normalize=maxabs initialize.type=linear
"""

arch = 'highorder'
dataset = 'shakespeare_char'

network = 'dual_convolution'
features = 16
n_layer, n_embd = 1, 280             # 0.8 M parameters
block_size = 64

batch_size = 12
max_iters = 1000
learning_rate = 4e-3
min_lr = 4e-4
