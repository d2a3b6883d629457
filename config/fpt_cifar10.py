"""
A frozen GPT-2 on colour images in patches of 4 x 4.  For a GPU.

    python train.py config/fpt_cifar10.py
    python train.py config/fpt_cifar10.py --dataset=cifar10_gray        # grey, one pixel a token
"""

arch = 'fpt'
dataset = 'cifar10'
trunk = 'gpt2'
dropout = 0.1

batch_size = 16
max_iters = 100_000
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.0
eval_interval = 1000
stop_after = 10
