"""
ResNet-18 on CIFAR-10: 11.2 M parameters, 20 epochs.  For a GPU.

    python train.py config/cifar10_resnet18.py
    python train.py config/cifar10_resnet18.py --network=resnet152 --max_iters=7030 --out_dir=out/cifar10_resnet152    # 58.2 M
    python train.py config/cifar10_resnet18.py --stem=imagenet --out_dir=out/cifar10_resnet18_imagenet  # made for 224 pixels
    python train.py config/cifar10_resnet18.py --n_embd=16 --out_dir=out/cifar10_resnet18_narrow    # 0.7 M, for a CPU
"""

arch = 'convnet'
dataset = 'cifar10_images'
network = 'resnet18'
stem = 'cifar'
augment = 'flip+crop'

batch_size = 64
max_iters = 14_060                      # 20 epochs of 45,000 images
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.05
eval_interval = 703                     # an epoch
eval_windows = 0                        # all of the validation split
