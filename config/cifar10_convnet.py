"""
The small convolutional network of PyTorch's tutorial on CIFAR-10: 62,006 parameters, 20 epochs.

    python train.py config/cifar10_convnet.py
    python compare.py config/cifar10_convnet.py config/cifar10_resnet18.py config/cifar10_vit.py --steps=14060  # equal epochs
"""

arch = 'convnet'
dataset = 'cifar10_images'
network = 'tutorial'
augment = 'flip+crop'

batch_size = 64
max_iters = 14_060                      # 20 epochs of 45,000 images
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.05
eval_interval = 703                     # an epoch
eval_windows = 0                        # all of the validation split
