"""
256 characters at a resolution that falls with distance: 16 characters, 16 pairs, 16 groups of 4 and of 8, and one of 16.

Original (https://github.com/jloveric/language-interpolation): python examples/high_order_interpolation.py data.type=sequence
net=tail_focus max_epochs=100 optimizer.lr=1e-3 batch_size=8000 data.add_channel_dimension=true
"""

arch = 'highorder'
dataset = 'shakespeare_char'

network = 'tail_focus'
features = 16
n_layer, n_embd = 1, 58              # 0.8 M parameters
block_size = 256

batch_size = 3
max_iters = 2000
learning_rate = 4e-3
min_lr = 4e-4
