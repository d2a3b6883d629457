"""
Speedrun: a val_loss of 1.4697 or less on tiny Shakespeare, in minutes on two CPU cores.  See docs/speedrun.md.

Two networks, trained side by side on one core each; the mean of their probabilities is what counts:

    OMP_NUM_THREADS=1 python train.py config/speedrun.py --seed=1 --out_dir=out/speedrun_1
    OMP_NUM_THREADS=1 python train.py config/speedrun.py --seed=2 --out_dir=out/speedrun_2
    python sample.py out/speedrun_1 out/speedrun_2 --eval --eval_windows=0
"""

arch = 'llama'
dataset = 'shakespeare_char'

n_layer, n_head, n_embd = 6, 6, 384     # 10.7 M parameters, as in nanoGPT's recipe: shakespeare_gpt_gpu.py
n_hidden = 1024
block_size = 256
short_conv = 4
dropout = 0.1

batch_size = 16                         # 4,096 tokens a step
max_iters = 1200                        # 4.9 M tokens, five epochs
learning_rate = 4e-3
min_lr = 0.0
eval_interval = 100_000                 # the validation text is read at the end, all of it
eval_windows = 0
