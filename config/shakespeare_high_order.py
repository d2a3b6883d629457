"""
An MLP of edge functions (piecewise polynomials) over the last 16 characters of Shakespeare.

Original (https://github.com/jloveric/language-interpolation): python examples/high_order_interpolation.py data.type=sequence
net=large_double_layer max_epochs=100 net.hidden.width=250 optimizer.lr=1e-5
"""

arch = 'highorder'
dataset = 'shakespeare_char'

network = 'high_order'
features = 16
n_layer, n_embd = 2, 352             # 0.8 M parameters
block_size = 64

batch_size = 12
max_iters = 2000
learning_rate = 3.2e-2             # the best of 2e-3 to 6.4e-2 after 600 steps
min_lr = 3.2e-4
