"""
GPT-2 behind a high-order layer over the last 4 characters (the original reads one: --features=1).

Original (https://github.com/jloveric/language-interpolation): python examples/high_order_interpolation.py data.type=sequence
net=transformer max_epochs=100 optimizer.lr=1e-4 batch_size=16 net.layer_type=continuous net.n=3 data.max_features=20
net.segments=2 net.model_type=high_order_input_transformer optimizer=lion
"""

arch = 'highorder'
dataset = 'shakespeare_char'

network = 'high_order_input_transformer'
features = 4
n_layer, n_head, n_embd = 4, 4, 124  # 0.8 M parameters
block_size = 64

batch_size = 12
max_iters = 2000
learning_rate = 4e-3
min_lr = 4e-4
