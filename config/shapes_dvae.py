"""The first stage of DALL-E: a discrete VAE, 64 tokens of a codebook of 128 for a picture of shapes."""

arch = 'dvae'
dataset = 'shapes'
patch = 4                               # 8 x 8 patches, a token each

codes, n_layer, n_embd = 128, 2, 64
kl, anneal = 2.0, 2000

batch_size = 32
max_iters = 4000
max_seconds = 240.0
optimizer = 'adamw'
learning_rate = 3e-3
min_lr = 0.0
weight_decay = 0.01
eval_interval = 500
eval_windows = 500
