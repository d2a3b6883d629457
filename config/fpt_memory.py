# Five patterns of 1,000 bits, then one of them with half of its bits masked: which was it?  Guessing scores 75 %.
#
#   python train.py config/fpt_memory.py
arch = 'fpt'
dataset = 'bit_memory'
trunk = 'out/shakespeare_gpt'
dropout = 0.0

batch_size = 16
max_iters = 3000
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.0
eval_interval = 250
