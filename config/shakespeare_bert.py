"""BERT on Shakespeare by character: GPT's model and windows, trained to fill in masked characters.  Its loss is not that of a
language model.  See sample.py --fill."""

arch = 'bert'
dataset = 'shakespeare_char'

n_layer, n_head, n_embd = 4, 4, 128     # 0.8 M parameters
block_size = 64

batch_size = 12                         # 768 tokens a step, of which 120 are predicted
max_iters = 2000
learning_rate = 4e-3
min_lr = 4e-4
