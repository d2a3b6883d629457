"""
Mamba on Shakespeare by character, with the parameters, window and tokens of shakespeare_gpt.py.

About 6 minutes on 2 cores.
"""

arch = 'mamba'
dataset = 'shakespeare_char'

n_layer, n_embd = 7, 128                # 0.8 M parameters: a block has half of those of a GPT block
block_size = 64

batch_size = 12
max_iters = 2000
learning_rate = 4e-3
min_lr = 4e-4
