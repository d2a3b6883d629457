"""
DALL-E on pictures of shapes: a transformer over the tokens of captions and pictures.  At most 10 minutes, after at most 2 for
the VAE, which is trained first, by config/shapes_dvae.py, if out/shapes_dvae is missing.

    python train.py config/shapes_dalle.py
    python train.py config/shapes_dalle.py --attention=row+column+row+conv --out_dir=out/shapes_dalle_sparse
    python sample.py out/shapes_dalle --start "a red circle above a blue square" --num_samples 16 --rerank out/shapes_clip
    python -m extras.drawn out/shapes_dalle --rerank out/shapes_clip         # the share of the pictures that are true
"""

arch = 'dalle'
dataset = 'shapes'
patch = 4                               # that of the VAE
vae = 'out/shapes_dvae'

n_layer, n_head, n_embd = 4, 4, 96      # 0.5 M parameters

rotary = True
neighbours = True
codebook = True
caption_dropout = 0.1
guidance = 1.5

batch_size = 32
max_iters = 8000
max_seconds = 600.0
learning_rate = 8e-3                    # for Muon
min_lr = 0.0
eval_interval = 500
eval_windows = 500
