"""GPT on Shakespeare by character: nanoGPT's CPU model and tokens, with a stronger optimizer. About 2 minutes on 2 cores."""

arch = 'model'
dataset = 'shakespeare_char'

n_layer, n_head, n_embd = 4, 4, 128     # 0.8 M parameters
block_size = 64
bias = False

batch_size = 12                         # 768 tokens a step
max_iters = 2000
learning_rate = 4e-3                    # Muon's; AdamW's 1e-3 is what nanoGPT took
min_lr = 4e-4
