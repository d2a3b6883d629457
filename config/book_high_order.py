"""
An MLP with one hidden layer of edge functions memorises 120,000 characters of a book.

With leaking_split the validation windows are part of the training text: the loss measures memory, not language.  The data set
`book`, from Project Gutenberg or from a file of yours:

    python prepare/gutenberg.py 50133 --name=book --characters=120000
    python prepare/text.py book FILE --characters=120000

Original (https://github.com/jloveric/language-interpolation): python examples/high_order_interpolation.py data.type=sequence
net=large_single_layer net.hidden.width=200 max_epochs=100 optimizer.lr=1e-4 batch_size=1000
"""

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
