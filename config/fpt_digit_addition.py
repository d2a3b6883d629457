"""
A frozen GPT on the sum of ten digits, one digit a token, predicted as a number.

    python train.py config/fpt_digit_addition.py
    python train.py config/fpt_digit_addition.py --dataset=digit_addition_classes       # as one of 91 classes
"""

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
