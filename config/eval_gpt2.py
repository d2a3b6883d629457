"""The loss of the published GPT-2 on Shakespeare, without training on it; also with --init_from=gpt2-xl and the like."""

arch = 'model'
dataset = 'shakespeare_gpt2'
init_from = 'gpt2'
eval_only = True
batch_size = 4
eval_windows = 0                        # the whole validation text
