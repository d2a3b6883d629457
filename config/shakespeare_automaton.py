"""
A cellular automaton of characters: each is predicted from five on either side.  See sample.py --automaton.

Original (https://github.com/jloveric/language-interpolation): python examples/language_cellular_automata.py net.features=11
data.type=centered
"""

arch = 'highorder'
dataset = 'shakespeare_char'

network = 'high_order'
centered = True
features = 11
n_layer, n_embd = 1, 256
block_size = 64

batch_size = 12
max_iters = 1000
learning_rate = 4e-3
min_lr = 4e-4
