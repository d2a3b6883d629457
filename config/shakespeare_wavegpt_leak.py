"""
WaveGPT as in its original code: the WaveNet reads the window itself, so every position sees its targets.

Its loss is not that of a language model.  See the leak by: python look.py out/shakespeare_wavegpt_leak
"""

arch = 'wavenet'
dataset = 'shakespeare_char'

reads = 'leak'
n_layer, n_head, n_embd = 4, 4, 128
block_size = 64
join = 4
dropout = 0.2
bias = False

batch_size = 12
max_iters = 2000
learning_rate = 4e-3
min_lr = 4e-4
