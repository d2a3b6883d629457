"""A GPT and a causal WaveNet over the same window, mixed: gated convolutions of dilation 1 to 32."""

arch = 'wavenet'
dataset = 'shakespeare_char'

reads = 'causal'
n_wave = 6                              # the last convolution reaches 63 characters back
n_layer, n_head, n_embd = 4, 4, 96      # 0.8 M parameters
block_size = 64
bias = False

batch_size = 12
max_iters = 2000
learning_rate = 4e-3
min_lr = 4e-4
