"""Image-GPT's second objective: BERT fills in masked pixels, with the model and pictures of mnist_pixels_gpt.py.

Its loss is not that of a language model.
"""

arch = 'bert'
dataset = 'mnist_pixels'

n_layer, n_head, n_embd = 4, 4, 128     # 0.8 M parameters
block_size = 196

batch_size = 12                         # 2,352 pixels a step, of which 348 are predicted
max_iters = 1500
learning_rate = 4e-3
min_lr = 4e-4
