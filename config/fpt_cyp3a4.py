"""A frozen GPT-2 on molecules: does one, written as a SMILES string, inhibit the enzyme CYP3A4?  For a GPU."""

arch = 'fpt'
dataset = 'cyp3a4'
trunk = 'gpt2'
dropout = 0.1

batch_size = 16
max_iters = 50_000
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.0
eval_interval = 500
stop_after = 10
