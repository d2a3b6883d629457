"""A Vision Transformer, from scratch, on digits in patches of 4 x 4."""

arch = 'vit'
dataset = 'mnist'

batch_size = 16
max_iters = 3000
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.1
eval_interval = 250
