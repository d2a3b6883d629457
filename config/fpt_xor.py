"""
A GPT that was trained on Shakespeare, frozen, computes the exclusive or of two patterns of 5 bits.

The trunk is trained first, by config/shakespeare_gpt.py, if out/shakespeare_gpt is missing.

    python train.py config/fpt_xor.py
    python train.py config/fpt_xor.py --mode=frt            # a random trunk
    python train.py config/fpt_xor.py --trunk=gpt2          # the published GPT-2
"""

arch = 'fpt'
dataset = 'bit_xor'
trunk = 'out/shakespeare_gpt'
dropout = 0.0

batch_size = 32
max_iters = 3000
optimizer = 'adamw'
learning_rate = 1e-2
min_lr = 0.0
weight_decay = 0.0
eval_interval = 250
