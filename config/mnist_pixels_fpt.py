"""
Image-GPT's second stage: the GPT that was trained on pixels is fine-tuned to name the digit.

The trunk is trained first, by config/mnist_pixels_gpt.py, if out/mnist_pixels_gpt is missing.

    python train.py config/mnist_pixels_fpt.py                                      # all weights are trained
    python train.py config/mnist_pixels_fpt.py --mode=urt --keep_embedding=False --out_dir=out/pixels_urt      # from scratch
    python train.py config/mnist_pixels_fpt.py --mode=fpt --out_dir=out/pixels_frozen                           # frozen blocks
"""

arch = 'fpt'
dataset = 'mnist_pixels'
trunk = 'out/mnist_pixels_gpt'
mode = 'upt'
keep_embedding = True
dropout = 0.1

batch_size = 16
max_iters = 2000
optimizer = 'adamw'
learning_rate = 1e-3
min_lr = 0.0
weight_decay = 0.01
eval_interval = 250
