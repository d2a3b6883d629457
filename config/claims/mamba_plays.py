"""Mamba against PACING at equal tokens on a text that no claim has read.  See docs/mamba.md."""

claim = 'Mamba has a lower loss than PACING at equal parameters and tokens, on 37 plays of Shakespeare'
entrants = ['results/tune_plays_mamba.json', 'results/tune_plays_pacing.json']
metric, margin = 'val_loss', 0.02           # nats
tokens = 1_536_000
seeds = [7001, 7002, 7003, 7004, 7005]
