"""
A frozen GPT on bit memory: five patterns of bits, then one of them with half of its bits masked; recall it.

Half of the bits are visible in the query, so chance is 75 %.  Patterns of 1,000 bits need a trunk about as wide, such as
gpt2; the small one, of width 128, can hold 50:

    python train.py config/fpt_memory.py --trunk=gpt2
    python prepare/bit_memory.py --bits=50 --examples=20000 --name=bit_memory_50
    python train.py config/fpt_memory.py --dataset=bit_memory_50
"""

arch = 'fpt'
dataset = 'bit_memory'
trunk = 'out/shakespeare_gpt'
dropout = 0.0

batch_size = 16
max_iters = 3000
optimizer = 'adamw'
learning_rate = 1e-2
min_lr = 0.0
weight_decay = 0.0
eval_interval = 250
