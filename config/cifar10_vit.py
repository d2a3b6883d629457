"""
A Vision Transformer on CIFAR-10, in patches of 4 x 4: 1.3 M parameters, 20 epochs.  The larger ones are for a GPU.

    python train.py config/cifar10_vit.py
    python train.py config/cifar10_vit.py --n_layer=6 --n_head=8 --n_embd=400 --out_dir=out/cifar10_vit_12M          # 11.6 M
    python train.py config/cifar10_vit.py --n_layer=12 --n_head=12 --n_embd=792 --max_iters=7030 --out_dir=out/cifar10_vit_90M
"""

arch = 'vit'
dataset = 'cifar10_images'
patch = 4
augment = 'flip+crop'

n_layer, n_head, n_embd = 4, 4, 160

batch_size = 64
max_iters = 14_060                      # 20 epochs of 45,000 images
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.05
eval_interval = 703                     # an epoch
eval_windows = 0                        # all of the validation split
