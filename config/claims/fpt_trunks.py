"""What a frozen trunk that was trained on text owes to its training, on the whole of MNIST.  See docs/fpt.md."""

claim = 'On MNIST, a frozen trunk that was trained on text is more accurate than its controls'
entrants = [f'results/tune_fpt_mnist_{trunk}.json' for trunk in (
    'pretrained', 'pretrained_fresh', 'shuffled', 'shuffled_fresh', 'scaled', 'scaled_fresh', 'initial', 'initial_fresh', 'upt',
    'urt')]
metric, margin = 'accuracy', 0.01           # one point
steps = 1000                                # of 32 pictures
seeds = [1, 2, 3, 4, 5, 6]                  # and as many trunks, out/gpt-1 to out/gpt-6
