"""A frozen GPT-2 on one-second recordings of 35 words, in tokens of 80 samples.  For a GPU."""

arch = 'fpt'
dataset = 'speech_commands'
trunk = 'gpt2'
dropout = 0.1

batch_size = 16
max_iters = 100_000
optimizer = 'adamw'
learning_rate = 1e-4
min_lr = 0.0
weight_decay = 0.0
eval_interval = 1000
stop_after = 10
