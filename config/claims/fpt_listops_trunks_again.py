"""What a frozen trunk that was trained on text owes to its training, on short ListOps.  Repeated with
fresh seeds and trunks.  See docs/fpt.md."""

claim = 'On short ListOps, a frozen trunk that was trained on text is more accurate than its controls'
entrants = [f'results/tune_fpt_listops_{trunk}.json' for trunk in ('pretrained', 'shuffled', 'scaled', 'frt', 'upt', 'urt')]
metric, margin = 'accuracy', 0.01           # one point
steps = 600                                 # of 16 examples
seeds = [11, 12, 13, 14, 15]                # and as many trunks, out/gpt-11 to out/gpt-15
