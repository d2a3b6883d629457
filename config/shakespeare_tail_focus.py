"""256 characters, the older the coarser: 16 as they are, 16 pairs, 16 fours, 16 eights, 16 sixteens."""

# The seed's: python examples/high_order_interpolation.py data.type=sequence net=tail_focus max_epochs=100
#   optimizer.lr=1e-3 batch_size=8000 data.add_channel_dimension=true

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
