"""PACING against GPT and Llama at equal tokens, 2,000 steps on tiny Shakespeare: compare.py --confirm.  See docs/racing.md."""

claim = 'PACING has a lower loss than GPT and Llama at equal parameters and tokens'
entrants = ['results/tune_pacing.json', 'results/tune_gpt.json', 'results/tune_llama.json']
metric, margin = 'val_loss', 0.02           # nats
tokens = 1_536_000
seeds = [2001, 2002, 2003, 2004, 2005]
