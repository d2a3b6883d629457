"""
PACING on Shakespeare by character, with the parameters, window and tokens of shakespeare_gpt.py.

About 2 minutes on 2 cores.
"""

arch = 'pacing'
dataset = 'shakespeare_char'

predicts = 'every'
n_layer, n_embd = 3, 180                # 0.8 M parameters
block_size = 64
columns = 8                             # a grid of 8 x 8 tokens

batch_size = 12                         # 768 tokens a step
max_iters = 2000
learning_rate = 4e-3
min_lr = 4e-4
