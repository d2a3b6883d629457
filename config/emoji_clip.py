"""CLIP on emoji and their names."""

arch = 'clip'
dataset = 'emoji'
patch = 8                               # 16 patches of a picture
augment = 'crop'

n_layer, n_head, n_embd = 3, 4, 96
text_layer, n_space = 2, 64
dropout = 0.2                           # there are few pictures

batch_size = 128
max_iters = 300
learning_rate = 2e-3
min_lr = 0.0
eval_interval = 50
eval_windows = 0                        # all of the validation split
