"""PACING on MNIST by pixel, with the parameters, pictures and tokens of mnist_pixels_gpt.py.  Its grid is the picture."""

arch = 'pacing'
dataset = 'mnist_pixels'

predicts = 'every'
n_layer, n_embd = 3, 180                # 0.8 M parameters
block_size = 196
columns = 14                            # the width of a picture

batch_size = 12
max_iters = 1500
learning_rate = 4e-3
min_lr = 4e-4
