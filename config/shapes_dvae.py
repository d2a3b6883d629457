"""The first stage of DALL-E: a discrete VAE, 64 tokens of a codebook of 512 for a picture of shapes."""

arch = 'dvae'
dataset = 'shapes'
patch = 4                               # 8 x 8 patches, a token each

codes, n_layer, n_embd = 512, 2, 64
quantizer = 'vq'
restart = 50
local = True                            # seven patches of ten are black: they have one token

batch_size = 32
max_iters = 2000
max_seconds = 100.0
optimizer = 'adamw'
learning_rate = 3e-3
min_lr = 0.0
weight_decay = 0.01
eval_interval = 500
eval_windows = 500
