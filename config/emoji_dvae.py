"""The first stage of DALL-E on emoji: a discrete VAE, 64 tokens of a codebook of 512 for a picture."""

arch = 'dvae'
dataset = 'emoji'
patch = 4                               # 8 x 8 patches, a token each
augment = 'crop'

codes, n_layer, n_embd = 512, 2, 96
kl, anneal = 0.2, 500

batch_size = 32
max_iters = 4000
max_seconds = 300.0
optimizer = 'adamw'
learning_rate = 3e-3
min_lr = 0.0
weight_decay = 0.01
eval_interval = 250
eval_windows = 0                        # all of the validation split
