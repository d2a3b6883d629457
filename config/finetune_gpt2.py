"""Fine-tune the published GPT-2 on Shakespeare: a few steps at a low, constant learning rate."""

arch = 'model'
dataset = 'shakespeare_gpt2'
init_from = 'gpt2'                      # or gpt2-medium, gpt2-large, gpt2-xl, owner/name on the hub, a .safetensors file

batch_size = 1
tokens_per_step = 32768                 # 32 windows of 1024
max_iters = 20
optimizer = 'adamw'
schedule = 'constant'
learning_rate = 3e-5
warmup_iters = 0
eval_interval = 5
eval_windows = 32
