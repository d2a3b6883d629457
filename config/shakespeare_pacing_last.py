"""
PACING as in its original code, small: an image of 64 x 64 pixels, one prediction per window.

About 9 minutes on 2 cores.
"""

arch = 'pacing'
dataset = 'shakespeare_char'

predicts = 'last'
block_size = 64
columns = 8                             # 8 x 8 patches ...
patch_size = 8                          # ... of 3 x 8 x 8 pixels
depths = (2, 2, 2)
dims = (48, 96, 128)

batch_size = 64                         # each window has one target, against 64 with predicts = 'every'
max_iters = 2000
learning_rate = 4e-3
min_lr = 4e-4
