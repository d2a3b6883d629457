"""Speedrun: a val_loss of 1.4697 or less on tiny Shakespeare, in minutes on two CPU cores.  See docs/speedrun.md."""

arch = 'llama'
dataset = 'shakespeare_char'

n_layer, n_head, n_embd = 6, 6, 384     # 10.7 M parameters, as in nanoGPT's recipe: shakespeare_gpt_gpu.py
n_hidden = 1024
block_size = 256
short_conv = 4
dropout = 0.2

batch_size = 16                         # 4,096 tokens a step
max_iters = 2000                        # 8.2 M tokens, eight epochs
learning_rate = 4e-3
min_lr = 0.0
eval_interval = 100_000                 # the validation text is read at the end, all of it
eval_windows = 0
