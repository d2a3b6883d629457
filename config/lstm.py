"""
An LSTM on any task: a baseline for frozen transformers.

    python train.py config/lstm.py --dataset=mnist
"""

arch = 'baselines'
network = 'lstm'
dataset = 'bit_xor'

batch_size = 16
max_iters = 3000
optimizer = 'adamw'
learning_rate = 3e-3
min_lr = 0.0
weight_decay = 0.0
eval_interval = 250
