"""GPT on Shakespeare by character: nanoGPT's CPU model and tokens, with Muon.  About 2 minutes on 2 cores."""

arch = 'model'
dataset = 'shakespeare_char'

n_layer, n_head, n_embd = 4, 4, 128     # 0.8 M parameters
block_size = 64
bias = False

batch_size = 12                         # 768 tokens a step
max_iters = 2000
learning_rate = 4e-3                    # for Muon; nanoGPT uses AdamW at 1e-3
min_lr = 4e-4
