"""The Transformer of 2017 writes captions of pictures of shapes."""

arch = 'transformer'
dataset = 'shapes'

n_layer, n_head, n_embd = 2, 4, 64

batch_size = 64
max_iters = 1500
learning_rate = 4e-3                    # for Muon
min_lr = 0.0
eval_interval = 250
eval_windows = 0                        # all of the validation split
