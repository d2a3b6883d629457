"""PACING against GPT and Llama at equal tokens on a text that nothing was chosen on.  See docs/pacing.md."""

claim = 'PACING has a lower loss than GPT and Llama at equal parameters and tokens, on speeches'
entrants = ['results/tune_speeches_pacing.json', 'results/tune_speeches_gpt.json', 'results/tune_speeches_llama.json']
metric, margin = 'val_loss', 0.02           # nats
tokens = 1_536_000
seeds = [4001, 4002, 4003, 4004, 4005, 4006]
