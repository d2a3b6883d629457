"""
A GPT that was trained on Shakespeare, frozen, classifies digits in patches of 4 x 4.

The trunk is trained first, by config/shakespeare_gpt.py, if out/shakespeare_gpt is missing.

    python train.py config/fpt_mnist.py
    python train.py config/fpt_mnist.py --trunk=gpt2 --trained=input+norms+output     # the original's 59,146 trained weights
    python train.py config/fpt_mnist.py --trunk=vit                                   # the original's V-FPT
    python train.py config/fpt_mnist.py --trunk=smollm2                               # a Llama; or minilm, vit-s
"""

arch = 'fpt'
dataset = 'mnist'
trunk = 'out/shakespeare_gpt'
dropout = 0.1

batch_size = 16
max_iters = 3000
optimizer = 'adamw'
learning_rate = 1e-2
min_lr = 0.0
weight_decay = 0.0
eval_interval = 250
