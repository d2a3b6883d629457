"""
Write a run's weights in the format of the Hugging Face hub, for transformers to load:

    python export.py out/shakespeare_gpt exported/
"""

import json
from pathlib import Path

import safetensors.torch

from harness import UserError, checkpoint, config
from harness.files import atomic

if __name__ == '__main__':
    parser = config.Arguments(description=__doc__)
    parser.add_argument('run', help='the folder of a run (its best checkpoint), or a checkpoint file')
    parser.add_argument('folder', help='where config.json and model.safetensors are written')
    args = parser.parse_args()
    model, content = checkpoint.load_model(args.run)
    if not hasattr(model, 'to_hub'):
        raise UserError(f"arch '{content['arch']}' has no counterpart on the hub: it defines no to_hub()")
    described, weights = model.to_hub()
    folder = Path(args.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / 'model.safetensors') as f:
            f.write(safetensors.torch.save(weights, metadata={'format': 'pt'}))
        with atomic(folder / 'config.json', 'w') as f:
            json.dump(described, f, indent=1)
    except OSError as e:
        raise UserError(f'{folder} cannot be written ({e.strerror}): name another folder') from None
    print(f'{folder}/: config.json and model.safetensors ({sum(w.numel() for w in weights.values()):,} numbers)')
