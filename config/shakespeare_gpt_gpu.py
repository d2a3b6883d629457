"""nanoGPT's recipe for one GPU: GPT on Shakespeare by character.  Its published best validation loss is 1.4697."""

arch = 'model'
dataset = 'shakespeare_char'

n_layer, n_head, n_embd = 6, 6, 384     # 10.7 M parameters
block_size = 256
dropout = 0.2
bias = False

batch_size = 64                         # 16,384 tokens a step
max_iters = 5000
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 1e-4
beta2 = 0.99
