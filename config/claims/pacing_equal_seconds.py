"""PACING against GPT and Llama at equal seconds on tiny Shakespeare: compare.py --confirm, on a quiet machine."""

claim = 'PACING has a lower loss than GPT and Llama at equal parameters and seconds of training'
entrants = ['results/tune_pacing.json', 'results/tune_gpt.json', 'results/tune_llama.json']
metric, margin = 'val_loss', 0.02           # nats
seconds = 120
seeds = [5001, 5002, 5003, 5004, 5005, 5006, 5007, 5008]
