"""
The ReLU counterpart of shakespeare_high_order.py: with one value per character, an MLP on one-hot input.

Original (https://github.com/jloveric/language-interpolation): python examples/high_order_interpolation.py data.type=sequence
net=large_standard net.hidden.width=1000 max_epochs=100 optimizer.lr=1e-4
"""

arch = 'highorder'
dataset = 'shakespeare_char'

network = 'high_order_input'
features = 16
kind, input_n = 'discontinuous', 1     # a table with one value per character
n_layer, n_embd = 2, 500               # 0.8 M parameters
block_size = 64

batch_size = 12
max_iters = 2000
learning_rate = 3.2e-2             # the best of 2e-3 to 6.4e-2 after 600 steps
min_lr = 3.2e-4
