"""CLIP on CIFAR-10, whose classes become captions by the prompts of harness/captions.py."""

arch = 'clip'
dataset = 'cifar10_images'
augment = 'flip+crop'

n_layer, n_head, n_embd = 4, 4, 128
text_layer, n_space = 2, 64

batch_size = 128
max_iters = 3000
learning_rate = 3e-3
min_lr = 0.0
eval_interval = 250
