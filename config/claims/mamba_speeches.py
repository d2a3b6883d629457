"""Mamba against Llama at equal tokens on a text that nothing was chosen on.  See docs/mamba.md."""

claim = 'Mamba has a lower loss than Llama at equal parameters and tokens, on speeches'
entrants = ['results/tune_speeches_mamba.json', 'results/tune_speeches_llama.json']
metric, margin = 'val_loss', 0.02           # nats
tokens = 1_536_000
seeds = [5001, 5002, 5003, 5004, 5005]
