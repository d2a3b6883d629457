"""The Transformer of 2017 writes dates as ISO 8601.  About 3 minutes on 2 cores."""

arch = 'transformer'
dataset = 'dates'

n_layer, n_head, n_embd = 2, 4, 64      # 0.24 M parameters

batch_size = 64
max_iters = 1500
learning_rate = 4e-3                    # for Muon
min_lr = 0.0
eval_interval = 250
eval_windows = 0                        # all of the validation split
