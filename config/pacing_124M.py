"""
PACING at the size of GPT-2 small, within 0.5 %: --predicts=every (124.1 M) or last (124.9 M).  For GPUs.

Original (https://github.com/aveygo/WordsAreWorth16x16Pixels): predicts = 'last' over the 256 newest tokens (--block_size=256
--columns=16), depths (3, 3, 20, 3), and the recipe in gpt2_124M.py.  Of its 124.75 M parameters, 12.6 M compute rows of
output that are never read; here that row alone is computed, and six more blocks take their place.
"""

arch = 'pacing'
dataset = 'shakespeare_gpt2'

predicts = 'every'
block_size = 1024
columns = 32                            # a grid of 32 x 32 tokens

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
