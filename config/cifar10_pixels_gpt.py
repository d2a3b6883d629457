"""Image-GPT on CIFAR-10 by pixel: 16 x 16 in a palette of 512 colours."""

arch = 'model'
dataset = 'cifar10_pixels'

n_layer, n_head, n_embd = 6, 4, 128     # 1.3 M parameters
block_size = 256                        # a picture
bias = False

batch_size = 16
max_iters = 5000
learning_rate = 4e-3                    # not tuned
min_lr = 4e-4
