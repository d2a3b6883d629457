"""A GPT and a causal WaveNet over the same picture, with the parameters, pictures and tokens of mnist_pixels_gpt.py.

Nothing comes before a picture, so a WaveNet that reads the window before has nothing to read: reads = 'causal'.
"""

arch = 'wavenet'
dataset = 'mnist_pixels'

reads = 'causal'
n_wave = 8                              # the last convolution reaches the whole picture
n_layer, n_head, n_embd = 4, 4, 92      # 0.8 M parameters
block_size = 196
bias = False

batch_size = 12
max_iters = 1500
learning_rate = 4e-3
min_lr = 4e-4
