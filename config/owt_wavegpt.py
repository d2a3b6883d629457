"""WaveGPT at the size of GPT-2 small, with a memory of 1024 tokens and the recipe of owt_gpt.py.  For GPUs."""

arch = 'wavenet'
dataset = 'openwebtext'

reads = 'memory'
n_layer, n_head, n_embd = 12, 12, 768   # 136.3 M parameters, 11.8 M of them the WaveNet's
block_size = 1024
join = 4                                # 1024 -> 256 -> 64 -> 16 -> 4 -> 1
gelu = 'tanh'

batch_size = 16
tokens_per_step = 131072
max_iters = 2000
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 200
eval_windows = 256
