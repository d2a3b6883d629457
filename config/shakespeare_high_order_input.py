"""The same with ReLU behind a high-order input; with one value a character, as here, that is a plain MLP on one-hot input."""

# The seed's: python examples/high_order_interpolation.py data.type=sequence net=large_standard net.hidden.width=1000
#   max_epochs=100 optimizer.lr=1e-4

arch = 'highorder'
dataset = 'shakespeare_char'

network = 'high_order_input'
features = 16
kind, input_n = 'discontinuous', 1     # a table of characters
n_layer, n_embd = 2, 500               # 0.8 M parameters
block_size = 64

batch_size = 12
max_iters = 2000
learning_rate = 3.2e-2             # the best of 2e-3 to 6.4e-2 after 600 steps
min_lr = 3.2e-4
