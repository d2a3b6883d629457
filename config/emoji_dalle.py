"""
DALL-E on emoji and their names: a transformer over the tokens of captions and pictures.  At most 8 minutes, after at most 5 for
the VAE, which is trained first, by config/emoji_dvae.py, if out/emoji_dvae is missing.

    python train.py config/emoji_dalle.py
    python sample.py out/emoji_dalle --start "smiling face with heart-shaped eyes" --num_samples 16 --out grid.png
"""

arch = 'dalle'
dataset = 'emoji'
patch = 4                               # that of the VAE
vae = 'out/emoji_dvae'

n_layer, n_head, n_embd = 4, 4, 128
dropout = 0.2                           # there are few pictures

batch_size = 32
max_iters = 4000
max_seconds = 480.0
learning_rate = 4e-3                    # for Muon
min_lr = 0.0
eval_interval = 250
eval_windows = 0                        # all of the validation split
