"""Image-GPT at a small size: GPT on MNIST by pixel, 14 x 14 in 8 greys.  See docs/imagegpt.md."""

arch = 'model'
dataset = 'mnist_pixels'

n_layer, n_head, n_embd = 4, 4, 128     # 0.8 M parameters
block_size = 196                        # a picture
bias = False

batch_size = 12                         # 2,352 pixels a step
max_iters = 1500
learning_rate = 4e-3                    # not tuned: that of shakespeare_gpt.py
min_lr = 4e-4
