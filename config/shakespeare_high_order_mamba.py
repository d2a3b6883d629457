"""
Mamba with piecewise polynomials for projections.  About 2 minutes on 2 cores.

Original (https://github.com/jloveric/language-interpolation): python examples/high_order_interpolation.py data.type=sequence
net=mamba optimizer.lr=1e-4 data.max_features=16 batch_size=16 net.n_layer=2 net.n=3 net.segments=2 net.hidden_layers=0
"""

arch = 'highorder'
dataset = 'shakespeare_char'

network = 'mamba'
n_layer, n_embd = 3, 112             # 0.8 M parameters
block_size = 64

batch_size = 12
max_iters = 1000
learning_rate = 8e-3
min_lr = 8e-4
