"""WaveGPT against a GPT of its size at equal tokens on a text that nothing was chosen on.  See docs/wavegpt.md."""

claim = 'WaveGPT has a lower loss than GPT at equal parameters and tokens, on speeches'
entrants = ['results/tune_speeches_wavegpt.json', 'results/tune_speeches_gpt_144.json']
metric, margin = 'val_loss', 0.02           # nats
tokens = 1_536_000
seeds = [6001, 6002, 6003, 6004, 6005, 6006]
