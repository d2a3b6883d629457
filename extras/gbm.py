"""
Boosted trees on the text that the neural models are trained on: LightGBM (pip install lightgbm) predicts the next token from
the last 16.

    python -m extras.gbm --dataset=shakespeare_char
    python -m extras.gbm out/gbm_shakespeare_char --start "What did they say?" --max_new_tokens 300 --temperature 0.8 --top_k 50

- Each of the last tokens is a categorical feature, and each token of the vocabulary is a class: a round grows a tree for each.
- The loss is that of the token after each validation window of --block_size, so it is comparable with train.py's val_loss_full.
- The number of rounds is fixed in advance: nothing is chosen on the validation text.
- The same command grows the same trees, on any number of threads (OMP_NUM_THREADS).

Source: "Early experiments with lightgbm", https://github.com/jloveric/language-interpolation

N examples   F features: the last tokens   V vocabulary
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from harness import Arguments, UserError, command, data
from harness.files import atomic, digest
from harness.generate import sample_token
from harness.tokenizer import Tokenizer
from sample import prompt

try:
    import lightgbm as lgb
except (ImportError, OSError) as e:         # OSError: the OpenMP library that it needs is missing
    raise UserError(f'extras/gbm.py needs lightgbm, which cannot be imported ({e}): pip install lightgbm') from None

MOST = 512          # tokens of a vocabulary
FLOOR = 1e-6        # added to every probability: LightGBM gives an unseen token almost none, a loss of 34 nats or more


def arguments(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('run', nargs='?', help='the folder of a trained model, to generate a text (default: train a model)')
    parser.add_argument('--seed', type=int, default=1337, help='of the examples and the trees, or of the text')
    add = parser.add_argument_group('training').add_argument
    training = [
        add('--dataset', default='shakespeare_char', help='data/<dataset>, made by prepare/<dataset>.py if it is missing'),
        add('--features', type=int, default=16, help='how many of the last tokens the trees read (default 16)'),
        add('--examples', type=int, default=500_000, help='random windows of training text (default 500000; 0: all)'),
        add('--rounds', type=int, default=50, help='of one tree for each token of the vocabulary (default 50)'),
        add('--learning_rate', type=float, default=0.1, help='the weight of a tree (default 0.1)'),
        add('--block_size', type=int, default=64, help='the window of the runs to be compared (default 64)'),
        add('--eval_windows', type=int, default=1024, help='validation windows (default 1024; 0: all that fit side by side)'),
        add('--out', help='the folder for the model (default out/gbm_<dataset>)'),
        add('--overwrite', action='store_true', help='replace the model in --out')]
    add = parser.add_argument_group('generation').add_argument
    sampling = [
        add('--start', type=str, help='the text to continue, or FILE:path (default: a line break)'),
        add('--max_new_tokens', type=int, default=300),
        add('--temperature', type=float, default=0.8, help='0: greedy'),
        add('--top_k', type=int, default=50, help='sample from the k most likely tokens (0: all)')]
    args = parser.parse_args(argv)
    for a in training if args.run else sampling:
        if getattr(args, a.dest) != a.default:
            raise UserError(f'--{a.dest} is for training, and {args.run} is trained: leave one of them out' if args.run else
                            f'--{a.dest} is for generation: name a trained model, such as out/gbm_{args.dataset}')
    for name, ok, expected in (
            ('seed', 0 <= args.seed < 2 ** 31, '0 or more and less than 2 ** 31'),
            ('features', 1 <= args.features <= args.block_size, f'at least 1 and at most --block_size={args.block_size}'),
            ('examples', args.examples >= 0, '0 or more'), ('rounds', args.rounds > 0, 'at least 1'),
            ('learning_rate', 0 < args.learning_rate <= 1, 'above 0 and at most 1'),
            ('eval_windows', args.eval_windows >= 0, '0 or more'), ('max_new_tokens', args.max_new_tokens > 0, 'at least 1'),
            ('temperature', args.temperature >= 0, '0 or more'), ('top_k', args.top_k >= 0, '0 or more')):
        if not ok:
            raise UserError(f'--{name}={getattr(args, name)} must be {expected}')
    return args


def judge(p, y):
    """(loss in nats per token, accuracy) of probabilities p (N, V) for the targets y (N,), after FLOOR is added to p."""
    p = (p + FLOOR) / (1 + FLOOR * p.shape[1])
    return float(-np.log(p[np.arange(len(y)), y]).mean()), float((p.argmax(1) == y).mean())


def train(args):
    text = data.TextData(data.ensure(args.dataset))
    if 'answers' in text.meta:
        raise UserError(f'data/{args.dataset} is made of examples with answers, not of one text: choose another dataset')
    V, F, out = text.vocab_size, args.features, Path(args.out or f'out/gbm_{args.dataset}')
    if not 2 <= V <= MOST:
        raise UserError(f'data/{args.dataset} has a vocabulary of {V:,} tokens, and a round grows a tree for each: choose one '
                        f'of 2 to {MOST}, such as characters (python prepare/text.py NAME FILE --tokens=char)')
    if not args.overwrite and any((out / name).exists() for name in ('model.txt', 'meta.json')):
        raise UserError(f'{out} already holds a model: --overwrite replaces it, --out=... keeps it')
    windows = text.val_indices(args.eval_windows, args.block_size)       # raises if the text is too short
    out.mkdir(parents=True, exist_ok=True)                              # fail before the work, not after
    starts = np.arange(len(text.tokens['train']) - F)
    if 0 < args.examples < len(starts):
        starts = np.sort(np.random.default_rng(args.seed).choice(len(starts), args.examples, replace=False))
    x, y = (t.numpy() for t in text.windows('train', starts, F))           # (N, F) both
    y = y[:, -1]
    print(f'LightGBM {lgb.__version__}: {args.rounds} rounds of {V} trees, {len(x):,} examples of {F} tokens; text: '
          f'{text.meta["source"]["name"]}', flush=True)
    params = {'objective': 'multiclass', 'num_class': V, 'learning_rate': args.learning_rate, 'max_bin': MOST,
              'seed': args.seed, 'deterministic': True, 'force_row_wise': True, 'verbose': -1}
    began = time.perf_counter()
    with tqdm(total=args.rounds, unit='round', leave=False, disable=None) as bar:
        booster = lgb.train(params, lgb.Dataset(x, y, categorical_feature=list(range(F))), args.rounds,
                            callbacks=[lambda _: bar.update()])
    seconds = time.perf_counter() - began
    x, targets = (t.numpy() for t in text.windows('val', windows, args.block_size))
    loss, accuracy = judge(booster.predict(x[:, -F:]), targets[:, -1])
    base, frequent = judge(np.tile(np.bincount(y, minlength=V) / len(y), (len(x), 1)), targets[:, -1])
    meta = {'dataset': args.dataset, 'fingerprint': text.fingerprint, 'tokenizer': text.tokenizer.spec, 'features': F,
            'examples': len(y), 'rounds': args.rounds, 'learning_rate': args.learning_rate, 'seed': args.seed,
            'block_size': args.block_size, 'eval_windows': len(windows), 'val_loss_full': loss, 'accuracy_full': accuracy}
    # model.txt is renamed before meta.json, whose hash tells whether they belong together
    with atomic(out / 'meta.json', 'w') as described, atomic(out / 'model.txt', 'w') as f:
        f.write(booster.model_to_string())
        f.flush()
        json.dump(meta | {'sha256': digest(f.name)}, described, indent=1)
    print(f'val_loss_full {loss:.4f}, accuracy {accuracy:.3f}, on {len(windows):,} windows of {args.block_size} tokens\n'
          f'(token frequencies alone: {base:.4f}, {frequent:.3f}); {seconds:.0f} s; written to {out}/')


def load(folder):
    """(booster, tokenizer) from a folder that train() has written.  Raises UserError."""
    path, described = Path(folder) / 'model.txt', Path(folder) / 'meta.json'
    try:
        meta = json.loads(described.read_text(encoding='utf-8'))
        tokenizer = Tokenizer(meta['tokenizer'])
        if digest(path) != meta['sha256']:          # LightGBM accepts a truncated model, or crashes
            raise ValueError('model.txt is not the model that meta.json describes')
        booster = lgb.Booster(model_file=path)
        if booster.num_model_per_iteration() != tokenizer.n_vocab:
            raise ValueError('the tokenizer does not fit model.txt')
    except OSError as e:
        raise UserError(f'there is no model of extras/gbm.py in {folder} ({Path(e.filename).name}: {e.strerror}): train one by '
                        f'python -m extras.gbm --dataset=...') from None
    except (ValueError, KeyError, TypeError, AttributeError, lgb.basic.LightGBMError) as e:
        raise UserError(f'{folder} is damaged ({type(e).__name__}: {e}): train it again with --overwrite') from None
    return booster, tokenizer


def continuation(booster, ids, count, temperature, top_k, generator):
    """Yields `count` token ids that continue the list ids, each sampled given the F tokens before it."""
    F = booster.num_feature()
    ids = [-1] * F + ids                # a negative category is a missing value
    for _ in range(count):
        p = booster.predict(np.array([ids[-F:]]))                       # (1, V)
        ids.append(int(sample_token(torch.from_numpy(p).log(), temperature, top_k, 1.0, generator=generator)))
        yield ids[-1]


def main(argv):
    args = arguments(argv)
    if not args.run:
        try:
            return train(args)
        except KeyboardInterrupt:
            raise UserError('stopped, nothing was written: fewer --examples or --rounds are faster') from None
        except OSError as e:
            path = e.filename2 or e.filename or 'the model'
            raise UserError(f'{path} could not be written ({e.strerror}): choose another --out') from None
    booster, tokenizer = load(args.run)
    start = prompt(args.start, tokenizer)
    print(tokenizer.decode(start), end='', flush=True)
    ids = continuation(booster, start, args.max_new_tokens, args.temperature, args.top_k,
                       torch.Generator().manual_seed(args.seed))
    for piece in tokenizer.stream(ids):
        print(piece, end='', flush=True)
    print()


if __name__ == '__main__':
    command(main)
