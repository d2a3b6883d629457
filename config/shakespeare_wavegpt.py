"""WaveGPT on Shakespeare by character, at the sizes of its original, with a memory of the 64 characters before the window."""

arch = 'wavenet'
dataset = 'shakespeare_char'

reads = 'memory'                        # as the original README describes; its code reads the window itself
n_layer, n_head, n_embd = 4, 4, 128
block_size = 64
join = 4                                # 64 -> 16 -> 4 -> 1
dropout = 0.2
bias = False

batch_size = 12
max_iters = 2000
learning_rate = 4e-3
min_lr = 4e-4
