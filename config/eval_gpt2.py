"""What the published GPT-2 scores on Shakespeare without having been trained on it: --init_from=gpt2-xl and so on."""

arch = 'model'
dataset = 'shakespeare_gpt2'
init_from = 'gpt2'
eval_only = True
batch_size = 4
eval_windows = 0                        # the whole validation text
