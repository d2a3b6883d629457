"""
PACING at the size of GPT-2 small, within 0.5 %, in both ways of looking: --predicts=every (124.1 M) or last (124.9 M).
For GPUs.

The seed: predicts = 'last' over the 256 newest tokens (--block_size=256 --columns=16), depths (3, 3, 20, 3), and the
recipe that stands in gpt2_124M.py. Of its 124.75 M parameters 12.6 M made rows of output that nothing read; here only the
row that is needed is computed, and they are spent on six more blocks.
"""

arch = 'pacing'
dataset = 'shakespeare_gpt2'

predicts = 'every'
block_size = 1024
columns = 32                            # a picture of 32 x 32 cells

n_layer, n_embd = 18, 768               # predicts = 'every'

patch_size = 16                         # predicts = 'last': an image of 512 x 512 pixels
depths = (3, 3, 26, 3)
dims = (128, 256, 512, 1024)

batch_size = 8
tokens_per_step = 65536
max_iters = 1000
learning_rate = 1e-3
min_lr = 1e-4
eval_windows = 128
dropout = 0.1
