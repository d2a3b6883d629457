"""A single hidden layer memorises 120,000 characters: of what it is asked, all was trained on (leaking_split)."""

# The seed's: python examples/high_order_interpolation.py data.type=sequence net=large_single_layer net.hidden.width=200
#   max_epochs=100 optimizer.lr=1e-4 batch_size=1000
# The data: python prepare/gutenberg.py 50133 --name=book --characters=120000 (The Dunwich Horror), or any other book by
#   python prepare/text.py book FILE --characters=120000

arch = 'highorder'
dataset = 'book'
leaking_split = True

network = 'high_order'
features = 16
n_layer, n_embd = 1, 250
block_size = 64

optimizer = 'lion'
learning_rate = 1e-2
min_lr = 0
batch_size = 16
max_iters = 5300                    # 50 epochs
