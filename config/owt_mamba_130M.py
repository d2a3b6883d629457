"""Mamba at the size of the published mamba-130m, with GPT-2's tokens and the recipe of owt_gpt.py.  For GPUs."""

arch = 'mamba'
dataset = 'openwebtext'

n_layer, n_embd = 24, 768               # 129.1 M parameters
block_size = 1024

batch_size = 8
tokens_per_step = 131072
max_iters = 2000
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 200
eval_windows = 256
