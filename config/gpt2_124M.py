"""
GPT-2 small from scratch on Shakespeare's BPE tokens: the model that PACING was compared with.  For GPUs.

The original trained both models for one epoch of 12,120 windows of 1024 tokens, on the last position alone:
    --optimizer=adamw --learning_rate=2e-4 --schedule=constant --warmup_iters=0 --beta2=0.999 --weight_decay=0 --batch_size=2
    --tokens_per_step=8192 --max_iters=1515 --predicts=last
"""

arch = 'model'
dataset = 'shakespeare_gpt2'

n_layer, n_head, n_embd = 12, 12, 768   # 124.4 M parameters
block_size = 1024
gelu = 'tanh'                           # as GPT-2

batch_size = 8
tokens_per_step = 65536                 # 64 windows, split over any number of ranks that divides them
max_iters = 1000
learning_rate = 1e-3
min_lr = 1e-4
eval_windows = 128
dropout = 0.1                           # against overfitting: 1.4 M tokens for 124 M parameters
