"""
A frozen GPT on the sum of ten digits, one image a token, predicted as one of 91 classes.

    python train.py config/fpt_mnist_addition.py
    python train.py config/fpt_mnist_addition.py --dataset=mnist_addition_number        # as a number
"""

arch = 'fpt'
dataset = 'mnist_addition'
trunk = 'out/shakespeare_gpt'
dropout = 0.1

batch_size = 16
max_iters = 5000
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.0
eval_interval = 250
