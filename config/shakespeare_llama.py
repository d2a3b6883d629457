"""Llama on Shakespeare by character: the parameters, window, tokens and optimizer of shakespeare_gpt.py."""

arch = 'llama'
dataset = 'shakespeare_char'

n_layer, n_head, n_embd = 4, 4, 128     # 0.8 M parameters
n_kv_head = 2                           # a block has as many as one of GPT: what the keys and values save is in the MLP
n_hidden = 384
block_size = 64

batch_size = 12                         # 768 tokens a step
max_iters = 2000
learning_rate = 4e-3                    # the best of a grid over 600 steps: docs/llama.md
min_lr = 4e-4
