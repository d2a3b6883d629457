"""
A neural accumulator, whose only operation is addition, on the sum of ten digits: a baseline for frozen transformers.

    python train.py config/nac.py
    python train.py config/nac.py --dataset=mnist_addition_number
"""

arch = 'baselines'
network = 'nac'
kind = 'regress'
dataset = 'digit_addition'

batch_size = 16
max_iters = 3000
optimizer = 'adamw'
learning_rate = 3e-3
min_lr = 0.0
weight_decay = 0.0
eval_interval = 250
