"""What a frozen trunk that was trained on text owes to its training, on bit memory.  Repeated with
fresh seeds and trunks.  See docs/fpt.md."""

claim = 'On bit memory, a frozen trunk that was trained on text is more accurate than its controls'
entrants = [f'results/tune_fpt_memory_{trunk}.json' for trunk in (
    'pretrained', 'pretrained_fresh', 'shuffled', 'shuffled_fresh', 'scaled', 'scaled_fresh', 'initial', 'initial_fresh', 'upt',
    'urt')]
metric, margin = 'accuracy', 0.01           # one point
steps = 2000                                # of 16 examples
seeds = [11, 12, 13, 14, 15]                # and as many trunks, out/gpt-11 to out/gpt-15
