"""GPT-2 small from scratch on OpenWebText's first 250,000 documents, about one epoch.  For GPUs."""

arch = 'model'
dataset = 'openwebtext'

n_layer, n_head, n_embd = 12, 12, 768   # 124.4 M parameters
block_size = 1024
gelu = 'tanh'                           # as GPT-2

batch_size = 16
tokens_per_step = 131072                # 128 windows, as in WaveGPT's original code, split over the ranks
max_iters = 2000
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 200
eval_windows = 256
