# Five patterns of 1,000 bits, then one of them with half of its bits masked: which was it?  Guessing scores 75 %.
#
# 1,000 bits want a trunk of 1,000 channels or so, such as gpt2; the small one, of 128, can hold patterns of 50:
#
#   python train.py config/fpt_memory.py --trunk=gpt2
#   python prepare/bit_memory.py --bits=50 --examples=20000 --name=bit_memory_50
#   python train.py config/fpt_memory.py --dataset=bit_memory_50
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
