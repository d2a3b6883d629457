"""The control of PACING's claim: GPT and Llama with a causal convolution of 4 before attention.  See docs/pacing.md."""

claim = 'PACING has a lower loss than GPT and Llama with a short convolution, at equal parameters and tokens'
entrants = ['results/tune_pacing.json', 'results/tune_gpt_conv.json', 'results/tune_llama_conv.json']
metric, margin = 'val_loss', 0.02           # nats
tokens = 1_536_000
seeds = [3001, 3002, 3003, 3004, 3005]
