# The sum of ten digits, each a token, as a number; --dataset=digit_addition_classes has it as one of 91 classes.
#
#   python train.py config/fpt_digit_addition.py
arch = 'fpt'
dataset = 'digit_addition'
trunk = 'out/shakespeare_gpt'
dropout = 0.0

batch_size = 16
max_iters = 3000
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.0
eval_interval = 250
