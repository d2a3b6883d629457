"""
Two high-order convolutions of stride 4 over 16 characters.

Original (https://github.com/jloveric/language-interpolation): python examples/high_order_interpolation.py data.type=sequence
net=conv max_epochs=100 optimizer.lr=1e-4 batch_size=1000 data.add_channel_dimension=true
"""

arch = 'highorder'
dataset = 'shakespeare_char'

network = 'conv'
features = 16
n_layer, n_embd = 2, 240             # 0.8 M parameters
block_size = 64

batch_size = 12
max_iters = 2000
learning_rate = 4e-3
min_lr = 4e-4
