"""
A frozen GPT on nested lists of operators and digits, such as [MAX 4 [MIN 2 3 ] 1 ] (ListOps of the Long Range Arena).

    python train.py config/fpt_listops.py --dataset=listops_short       # up to 60 tokens, which fit the small trunk
    python train.py config/fpt_listops.py --trunk=gpt2                  # 500 to 2,000 tokens, for a GPU
"""

arch = 'fpt'
dataset = 'listops'
trunk = 'out/shakespeare_gpt'
dropout = 0.1

batch_size = 16
max_iters = 5000
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.0
eval_interval = 250
