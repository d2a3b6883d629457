"""
Write a run's weights in the format of the Hugging Face hub, for transformers to load:

    python -m extras.export out/shakespeare_gpt exported/
"""

import json
from pathlib import Path

import safetensors.torch

from harness import Arguments, UserError, checkpoint, command
from harness.files import atomic


def main(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('run', help='the folder of a run (its best checkpoint), or a checkpoint file')
    parser.add_argument('folder', help='where config.json and model.safetensors are written')
    args = parser.parse_args(argv)
    path, folder = checkpoint.find(args.run), Path(args.folder)
    model, content = checkpoint.load_model(path)
    if not model.to_hub:
        raise UserError(f"arch '{content['arch']}' has no counterpart on the hub: it defines no to_hub()")
    if folder.resolve() == path.resolve().parent or any((folder / name).exists() for name in ('ckpt.pt', 'best.pt')):
        raise UserError(f'{folder} holds a run, whose config.json would be replaced: choose another folder')
    try:
        hub_config, weights = model.to_hub()
    except ValueError as e:
        raise UserError(f'{args.run} has no counterpart on the hub: {e}') from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / 'model.safetensors') as f:
            f.write(safetensors.torch.save(weights, metadata={'format': 'pt'}))
        with atomic(folder / 'config.json', 'w') as f:
            json.dump(hub_config, f, indent=1)
        if (content['data'].get('tokenizer') or {}).get('kind') == 'tokenizers':
            with atomic(folder / 'tokenizer.json', 'w') as f:
                f.write(content['data']['tokenizer']['json'])
    except OSError as e:
        raise UserError(f'{folder} cannot be written ({e.strerror}): choose another folder') from None
    parameters = sum(p.numel() for p in model.parameters())
    added = sum(w.numel() for w in weights.values()) - parameters
    print(f'{folder}/: config.json and model.safetensors, {parameters:,} parameters' +
          f' and {added:,} zeros for the biases that transformers expects and this model does not have' * (added > 0))


if __name__ == '__main__':
    command(main)
