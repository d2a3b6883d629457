"""Wrong commands: each is refused by one sentence that names what is wrong, its exit code is not 0, and it changes no file.

    entry point     a script, or a module of python -m
    words           what follows it; RUN is a finished run of a GPT, TASK of a ViT, CONFIG a config, HOME the home folder
    named           what the sentence must contain
"""

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import sys
import typing
import warnings

import pytest
import torch
from conftest import contents, task_splits

import harness
import train
from harness import ROOT, UserError, arch, checkpoint, config, data, optim
from prepare import common

TRAIN = '''
--n_layer=two                       n_layer='two'
--n_layer=1000000000                n_layer=1000000000
--n_embd=1000000000000000000000     n_embd=1000000000000000000000
--n_head=3                          n_head=3
--block_size=100000000              block_size=100000000
--block_size=5000                   block_size=5000
--vocab_size=5                      vocab_size=5
--vocab_size=1000000000000          vocab_size=1000000000000
--arch=../model                     '../model'
--arch=train                        train.py
--arch=baselines --network=nac --dataset=bits         network=nac
--arch=bert --dataset=bits          masked text
--arch=bert --leaking_split         leaking_split
--arch=bert --last_only             last_only
--arch=bert --vocab_size=11         12
--arch=bert --mask_token=3          mask_token=3
--dataset=nowhere                   'nowhere'
--dataset=../letters                '../letters'
--dataset=bits                      task
--init_from=TASK                    arch
--init_from=resume                  --resume
--init_from=CUT.safetensors         CUT.safetensors
--batch_size=10000000000            batch_size=10000000000
--tokens_per_step=7                 tokens_per_step=7
--tokens_per_step=80 --batch_size=4 --block_size=16        batch_size=4
--tokens_per_step=160000000000000   tokens_per_step=160000000000000
--eval_windows=100000000000         eval_windows=100000000000
--max_iters=0                       max_iters
--device=gpu                        device='gpu'
--device=cuda:99                    cuda
--device=cpu:7                      cpu:7
--compile=perhaps                   compile='perhaps'
--shard                             torchrun
--shard --sample_interval=5         sample_interval=5
--resume --out_dir=new              new/ckpt.pt
--resume --out_dir=RUN --n_embd=32          n_embd
--resume --out_dir=RUN --optimizer=lion     optimizer
--resume --out_dir=RUN --dataset=other      data
--resume --out_dir=RUN --arch=vit           arch
--out_dir=RUN                       --overwrite
--out_dir=TEXT                      text.txt
--out_dir=TEXT/new                  text.txt/new
--help=x                            --help=x
--                                  '--'
CONFIG config.py                    'config.py'
'''

MODELS = '''
--arch=pacing --predicts=last --dims=(8,)               dims=(8,)
--arch=pacing --predicts=last --depths=(1000000000,2,2)     depths
--arch=mamba --d_state=10000000000                      d_state=10000000000
--arch=highorder --segments=1000000000                  segments=1000000000
--arch=highorder --kind=fourier --n=4                   n=4
--arch=vit --dataset=bits --outputs=7                   outputs=7
--arch=vit --dataset=bits --last_only                   last_only
--arch=vit --dataset=bits --features=7                  features=7
--arch=vit --dataset=bits --leaking_split               leaking_split
--arch=pacing --predicts=last --columns=5               columns=5
--arch=fpt --dataset=bits --trunk=out/../../etc         out/../../etc
'''

SAMPLE = '''
                                    name either runs
nowhere                             nowhere
RUN --pretrained=gpt2               --pretrained
--pretrained=gpt2 --arch=pacing     --arch=pacing
RUN --start=XYZ                     'X'
RUN --start=                        --start
RUN --start=FILE:none.txt           none.txt
RUN --num_samples=0                 --num_samples=0
RUN --num_samples=10000000000       --num_samples=10000000000
RUN --max_new_tokens=0              --max_new_tokens=0
RUN --temperature=-1                --temperature=-1
RUN --temperature=nan               --temperature=nan
RUN --top_k=-1                      --top_k=-1
RUN --top_p=0                       --top_p=0
RUN --top_p=1.5                     --top_p=1.5
RUN --seed=-1                       --seed=-1
RUN --device=tpu                    'tpu'
RUN --eval --eval_windows=-1        --eval_windows=-1
RUN --eval --eval_windows=100000000000      eval_windows=100000000000
RUN --weights=1,2                   --weights=1,2
RUN --weights=-1                    --weights=-1
RUN RUN --weights=1                 --weights=1
RUN RUN --weights=1,0               --weights=1,0
RUN RUN --weights=1,nan             --weights=1,nan
RUN RUN --weights=1,inf             --weights=1,inf
RUN RUN --weights=1,much            --weights=1,much
RUN RUN --automaton --start=a       --automaton
RUN --fill=nothing                  has no [MASK]
RUN --fill=[MASK]                   --fill
RUN --eval --benchmark              --benchmark
--pretrained=gpt2 --eval            --eval
RUN --reapply=0                     --reapply=0
RUN --dtype=int4                    --dtype
RUN --out=grid.png                  --out=grid.png
RUN --automaton                     --start
RUN --automaton --start=a           --automaton
RUN --tempreature=1                 --tempreature
TASK                                task
'''

LOOK = '''
                                    run
nowhere                             nowhere
RUN --only=everything               'everything'
RUN --prompt=a                      --prompt
RUN --prompt=XYZ                    'X'
RUN --device=tpu                    'tpu'
RUN --out=RUN/ckpt.pt               ckpt.pt
TASK --prompt=abc                   --prompt
RUN extra                           extra
'''

COMPARE = '''
                                    configs
nowhere.py                          'nowhere.py'
CONFIG CONFIG                       two entrants
'"'                                 '"'
''                                  ''
CONFIG --seeds=0                    --seeds=0
CONFIG --seeds=many                 --seeds
CONFIG --seconds=0                  --seconds=0
CONFIG --seconds=nan                --seconds=nan
CONFIG --tokens=1 --steps=2         --steps
CONFIG --steps=inf                  --steps=inf
CONFIG --windows=-1                 --windows=-1
CONFIG --windows=100000000000 --steps=9     100000000000
CONFIG --match=width                --match
CONFIG --set=depth                  'depth'
CONFIG --set depth=3                depth=3
CONFIG --set n_layer=two            n_layer='two'
CONFIG --set n_embd=1000000         n_embd=1000000
CONFIG --set block_size=100000      block_size
CONFIG 'CONFIG --block_size=8'      block_size
CONFIG 'CONFIG --arch=vit --dataset=bits'   task
CONFIG --out=TEXT                   --out=
CONFIG --unknown                    --unknown
CONFIG --confirm=small.py           --confirm=small.py
--floors                            configs
--confirm=nowhere.py                nowhere.py
--confirm=TEXT                      TEXT
--confirm=small.py                  claim
'''

SWEEP = '''
                                            config
CONFIG                                      --search
nowhere.py --search n_layer=1..2            'nowhere.py'
'"' --search n_layer=1..2                   '"'
CONFIG --search n_layer                     'n_layer'
CONFIG --search depth=1..2                  'depth'
CONFIG --search n_layer=2..1                n_layer=2..1
CONFIG --search n_layer=log(1,2)            n_layer=log(1,2)
CONFIG --search learning_rate=log(0,1)      log(0,1)
CONFIG --search learning_rate=lin(a,b)      learning_rate='a'
CONFIG --search optimizer=adam,lion         optimizer='adam'
CONFIG --search optimizer=lion              optimizer=lion
CONFIG --search seed=1..2                   seed
CONFIG --search n_layer=1..2 --trials=0     --trials=0
CONFIG --search n_layer=1..2 --seed=-1      --seed=-1
CONFIG --search n_layer=1..2 --tokens=1     --tokens=1
CONFIG --search n_layer=1..2 --seconds=0    --seconds=0
CONFIG --search n_layer=1..2 --set n_layer=1    n_layer
CONFIG --search n_layer=1..2 n_layer=1..3   twice
CONFIG --search n_embd=16..1000000 --set block_size=100000      block_size
CONFIG --search n_layer=1..2 --out=TEXT     --out=
'CONFIG --arch=vit --dataset=bits' --search n_layer=1..2 --tune     validate=tune
CONFIG --search n_layer=1..2 --tune --set leaking_split=True        leaking_split
CONFIG --search validate=val,tune           validate
'''

BENCH = '''
                                            train | scan
fly                                         fly
train                                       config
train '"'                                   '"'
train CONFIG --rounds=0                     --rounds=0
train CONFIG --n_layer=two                  n_layer='two'
train CONFIG --n_embd=1000000               n_embd=1000000
train CONFIG --batch_size=10000000000       batch_size=10000000000
train CONFIG --out=none/x.json              none/x.json
generate CONFIG --tokens=0                  --tokens=0
generate CONFIG --depth=1                   'depth'
generate CONFIG --arch=transformer          transformer.py
generate CONFIG --arch=bert                 bert.py
windows                                     config
windows CONFIG --seconds=0                  --seconds=0
windows CONFIG --arch=transformer           transformer.py
windows CONFIG --out=none/x.json            none/x.json
scan --tokens=3                             --tokens=3
memory CONFIG --ranks=0                     --ranks=0
memory CONFIG --arch=transformer            transformer.py
gpu                                         CUDA
gpu --only=speed,fly                        'fly'
links CONFIG                                CONFIG
'''

EXPORT = '''
                                    run
RUN                                 folder
TASK exported                       'vit'
RUN RUN                             RUN
RUN TEXT                            TEXT
'''

GBM = '''
--dataset=nowhere                   'nowhere'
--dataset=bits                      task
--dataset=letters --features=0      --features=0
--dataset=letters --features=65     --features=65
--dataset=letters --rounds=0        --rounds=0
--dataset=letters --examples=-1     --examples=-1
--dataset=letters --learning_rate=2     --learning_rate=2
--dataset=letters --block_size=100000   block_size=100000
--dataset=letters --start=a         --start
--dataset=letters --eval_windows=100000000000   100000000000
RUN                                 extras.gbm
RUN --rounds=3                      --rounds
RUN --top_k=-1                      --top_k=-1
'''

PLAY = '''
                                    run
RUN --port=-1                       --port=-1
RUN --port=99999                    --port=99999
RUN --port=http                     --port
RUN --device=gpu                    device='gpu'
'''

PREPARE = '''
text.py                                                     name
text.py letters TEXT                                        letters
text.py ../x TEXT                                           '../x'
text.py new TEXT --tokens=words                             --tokens
text.py new TEXT --characters=0                             '0'
text.py new TEXT --characters=5                             20
bpe.py new TEXT --merges=-1                                 '-1'
gutenberg.py                                                ID
gutenberg.py one                                            'one'
shakespeare_bpe.py --input=nowhere                          nowhere
shakespeare_gpt2.py --merges=3                              --merges
bit_memory.py --bits=0                                      '0'
bit_memory.py --bits=1000000000                             --bits=1000000000
bit_memory.py --bits=1 --patterns=1                         --examples
bit_xor.py --bits=99999999999                               --bits=99999999999
bit_xor.py --name=bits                                      bits
digit_addition.py --digits=-1                               '-1'
digit_addition.py --digits=1                                --examples
digit_addition.py --examples=100000000000                   --examples=100000000000
digit_addition_classes.py --digits=99999999999              --digits=99999999999
mnist_addition.py --digits=99999999999                      --digits=99999999999
mnist_addition_number.py --examples=99999999999             --examples=99999999999
listops.py --arguments=1                                    --arguments=1
listops.py --max_length=9                                   --min_length=500
listops.py --max_length=10000000000                         --max_length=10000000000
listops_short.py --examples=100000000000                    --examples=100000000000
listops_short.py --depth=1                                  --depth
reverse.py --longest=1000000000                             --longest=1000000000
reverse.py --examples=100000000000                          --examples=100000000000
reverse.py --letters=1 --longest=5                          --letters
reverse.py --letters=27                                     --letters=27
dates.py --examples=100000000000                            --examples=100000000000
pairs.py new nowhere                                        nowhere
pairs.py letters TEXT                                       letters
cifar10_gray.py --input=TEXT                                TEXT
cyp3a4.py --input=TEXT                                      TEXT
cyp3a4.py --longest=0                                       '0'
speech_commands.py --input=TEXT                             TEXT
openwebtext.py --documents=-1                               '-1'
openwebtext.py --shard_tokens=0                             '0'
'''

PATHS = '''
train.py HOME/absent.py                                             HOME
train.py --init_from=HOME/absent --arch=pacing                      HOME
train.py --arch=fpt --dataset=bits --trunk=HOME/absent              HOME
sample.py HOME/absent                                               HOME
sample.py --pretrained=HOME/absent.safetensors                      HOME
look.py HOME/absent                                                 HOME
compare.py HOME/absent.py                                           HOME
compare.py CONFIG --out=HOME/text.txt/race --steps=1                HOME
sweep.py HOME/absent.py --search n_layer=1,2 --out=HOME/new         HOME
bench.py train HOME/absent.py                                       HOME
extras/export.py HOME/absent HOME/x                                 HOME
extras/gbm.py HOME/absent                                           HOME
extras/gallery.py --out=HOME/absent/x.html                          HOME
prepare/text.py mine HOME/absent                                    HOME
prepare/bpe.py mine HOME/absent                                     HOME
prepare/gutenberg.py 84 --input=HOME/absent                         HOME
prepare/openwebtext.py --input HOME/absent.txt                      HOME
prepare/shakespeare_char.py --input=HOME/absent                     HOME
prepare/mnist.py --input=HOME/absent                                HOME
prepare/cifar10.py --input=HOME/absent                              HOME
prepare/cyp3a4.py --input=HOME/absent                               HOME
prepare/speech_commands.py --input=HOME/absent                      HOME
'''

MODULES = '''
race/tables.py --chekc              --chekc
extras/gallery.py --chekc           --chekc
race/page.py                        RECORD.json
race/page.py nowhere.json x.png     nowhere.json
race/page.py TEXT x.png             TEXT
race/page.py LIST x.png             LIST
race/page.py --help                 usage
views/diagrams.py x                 x
'''


def rows(table, script=''):
    """[(script, words, what the sentence must name)] of the lines of a table."""
    for line in filter(str.strip, table.splitlines()):
        words, named = line[:line.rindex('  ')].strip(), line[line.rindex('  '):].strip()
        path, _, rest = words.partition(' ') if not script else (script, '', words)
        yield path, rest.strip(), named


COMMANDS = [
    *rows(TRAIN, 'train.py'), *rows(MODELS, 'train.py'), *rows(SAMPLE, 'sample.py'), *rows(LOOK, 'look.py'),
    *rows(COMPARE, 'compare.py'), *rows(SWEEP, 'sweep.py'), *rows(BENCH, 'bench.py'), *rows(EXPORT, 'extras/export.py'),
    *rows(GBM, 'extras/gbm.py'), *rows(PLAY, 'extras/play.py'),
    *((f'prepare/{path}', *more) for path, *more in rows(PREPARE)), *rows(MODULES)]
TINY = ['--max_iters=2', '--batch_size=2', '--eval_windows=4', '--sample_tokens=0', '--device=cpu']
NAMES = {'RUN': 'run', 'TASK': 'task', 'CONFIG': 'small.py', 'TEXT': 'text.txt', 'LIST': 'list.json', 'CUT': 'cut'}


def run(path, words):
    """A script as the command line runs it, in this process and in the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('sys.argv', [path, *words])
        patch.setattr('sys.path', [*sys.path])
        runpy.run_path(str(ROOT / path), run_name='__main__')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """The folder in which the commands run, with data/, two finished runs and some files; data is read and written there."""
    folder = tmp_path_factory.mktemp('commands')
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        for module in (data, common):
            patch.setattr(module, 'ROOT', folder)
        patch.chdir(folder)
        patch.setenv('HOME', str(folder))
        letters = 'abcdefgh .\n' * 400
        for name, text in (('letters', letters), ('other', letters[::-1])):
            common.write_text(name, text, common.char_tokenizer(text), {'name': name}, 'text.py')
        common.write_task('bits', 'bits', task_splits('bits'), 4, {'name': 'bits'}, 'bits.py')
        (folder / 'small.py').write_text("dataset, block_size, n_layer, n_embd, n_head = 'letters', 16, 1, 16, 2\n"
                                         "batch_size, eval_windows, max_iters, device = 2, 4, 2, 'cpu'\n")
        (folder / 'text.txt').write_text('It is no program.\n' * 9)
        (folder / 'list.json').write_text('[]')
        (folder / 'cut.safetensors').write_bytes((1 << 20).to_bytes(8, 'little') + b'{"wte.weight":')
        for name, words in (('run', ['small.py']), ('task', ['--arch=vit', '--dataset=bits', '--n_layer=1', '--n_embd=16'])):
            run('train.py', [*words, *TINY, f'--out_dir={name}'])
        yield folder


def refusal(place, path, words):
    """What the command says as it fails: one line on stderr.  Its exit code is not 0, and it changes no file."""
    before, kept = contents(place), {p.name for p in place.iterdir()}
    stderr, stdout = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(stdout), \
                warnings.catch_warnings(action='error'), pytest.raises(UserError) as e:
            run(path, words)
        said, after = f'{stderr.getvalue()}{e.value}', contents(place)
        assert len(said.splitlines()) == 1 and len(said) > 20, said
        assert after == before, [name for name in {**before, **after} if before.get(name) != after.get(name)]
        assert {p.name for p in place.iterdir()} == kept
        return said
    finally:                    # for the rows behind one that fails
        for path in (p for p in place.iterdir() if p.name not in kept):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def filled(path, words):
    """The words of a row; of train.py, with what the row does not say; a config comes first."""
    words = shlex.split(re.sub('|'.join(NAMES), lambda found: NAMES[found[0]], words))
    first = words[:1] if path == 'train.py' and words and not words[0].startswith('-') else []
    return [*first, *TINY, '--dataset=letters', '--out_dir=new', *words[len(first):]] if path == 'train.py' else words


@pytest.mark.parametrize('path, words, named', COMMANDS, ids=lambda v: v or '-')
def test_a_wrong_command_is_refused(place, path, words, named):
    for needs in {'extras/gbm.py': ['lightgbm'], 'extras/play.py': ['starlette', 'uvicorn']}.get(path, []):
        pytest.importorskip(needs)
    assert re.sub('|'.join(NAMES), lambda found: NAMES[found[0]], named) in refusal(place, path, filled(path, words))


@pytest.mark.parametrize('path, words', [row[:2] for row in rows(PATHS)], ids=str)
def test_a_path_that_is_missing_and_may_begin_at_home(place, path, words):
    """Every command names it, and says the same of ~ as of the folder that it stands for."""
    tilde, said = (refusal(place, path, filled(path, words.replace('HOME', home))) for home in ('~', str(place)))
    assert tilde == said and str(place) in tilde and '~' not in tilde


# a number must not be negative, a text must be known, except of these settings; and what else a setting cannot be
ANYTHING = {'arch', 'dataset', 'out_dir', 'init_from', 'wandb_project', 'device', 'dtype', 'outputs', 'mask_token', 'trunk',
            'trunk_seed', 'trunk_hash', 'vae', 'vae_hash', 'alpha', 'baselines.features',
            'highorder.d_state', 'highorder.input_n', 'highorder.input_segments'}
NEITHER = {'n_embd': [0], 'n_head': [0], 'block_size': [0], 'dropout': [1.0], 'batch_size': [0], 'eval_interval': [0],
           'log_interval': [0], 'beta1': [1.0], 'beta2': [1.0], 'cooldown': [0.0, 1.1], 'factor': [0.0, 1.0], 'seed': [1 << 32],
           'memory_dropout': [1.1], 'pacing.columns': [0], 'mamba.d_state': [0], 'wavenet.block_size': [10],
           'wavenet.n_wave': [31], 'highorder.n': [0, 101], 'highorder.features': [0], 'fpt.positions': [0, 1]}


@pytest.mark.parametrize('name', ['train', *arch.architectures()])
def test_values_that_no_setting_has(name):
    """Of TrainConfig and of the Config of every architecture."""
    Config = train.TrainConfig if name == 'train' else arch.load_arch(name).Config
    for field, kind in typing.get_type_hints(Config).items():
        values = [*NEITHER.get(field, []), *NEITHER.get(f'{name}.{field}', [])]
        if not ANYTHING & {field, f'{name}.{field}'}:
            values += [-1] if kind in (int, float, int | str, int | None) else ['nowhere'] if kind is str else []
        for value in values:
            with pytest.raises(UserError, match=re.escape(f'{field}={value!r}')):
                arch.build_config(arch.load_arch(name), {field: value}) if name != 'train' else Config(**{field: value})


# files that can be read, but do not hold what they should ---------------------------------------------------------------------

USES = {'sample': ('sample.py', 'hurt'), 'look': ('look.py', 'hurt'), 'export': ('extras/export.py', 'hurt', 'exported'),
        'resume': ('train.py', 'small.py', '--out_dir=hurt', '--resume', '--max_iters=3'),
        'init': ('train.py', 'small.py', '--out_dir=new', '--init_from=hurt/ckpt.pt')}
EVERY = 'sample look export resume init'


@pytest.fixture
def hurt(place):
    """A copy of the finished run."""
    yield shutil.copytree(place / 'run', place / 'hurt')
    shutil.rmtree(place / 'hurt')


NAN = float('nan')
BPE = {'kind': 'bpe', 'name': 'x', 'pattern': '.', 'ranks': [], 'special': {}}
VALUES = [          # a key of a checkpoint, and what it cannot be; ... : missing
    ('config.n_layer', '2'), ('config.n_embd', 16.5), ('config.bias', [1]), ('config', []), ('arch', 3), ('step', -1),
    ('step', True), ('best', 'low'), ('best', NAN), ('seconds', [1]), ('seconds', NAN), ('tokens', -5), ('loop', ...),
    ('evaluated', 'never'), ('loop.dataset', ...), ('loop.batch_size', '12'), ('data', ...), ('data.fingerprint', ...),
    ('data.tokenizer', 'char'), ('format', 99), ('model.wte.weight', ...), ('model.wpe.weight', 'y'),
    *(('model.wpe.weight', w) for w in (torch.zeros(3), torch.zeros(16, 16) * 1j, torch.full((16, 16), NAN)))]
CHECKPOINTS = [     # the commands that refuse it, what is done to it, and what the sentence names
    (EVERY, lambda c: c['model'].update({3: torch.zeros(1)}), '3'),
    ('sample look export resume', lambda c: c['config'].update(n_embd=1 << 40), '1099511627776'),
    ('sample', lambda c: c['config'].update(n_layer=10 ** 9), 'n_layer'),
    ('sample', lambda c: c['config'].update(n_head=3), 'n_head=3'),
    ('sample', lambda c: c['config'].update(rope=True), "'rope'"),
    ('sample', lambda c: c.update(arch='gone'), "'gone'"),
    ('look', lambda c: c['loop'].update(dataset='../x'), "'../x'"),
    ('sample look', lambda c: c['data'].pop('tokenizer'), 'data.tokenizer'),
    ('sample look', lambda c: c['data']['tokenizer'].update(kind='morse'), 'morse'),
    ('sample look', lambda c: c['data']['tokenizer'].update(chars='abc'), 'chars'),
    ('sample look', lambda c: c['data']['tokenizer'].update(chars=['a', 'a']), 'chars'),
    ('sample look', lambda c: c['data']['tokenizer'].update(chars=[chr(i) for i in range(99)]), 'vocab_size=11'),
    ('sample look', lambda c: c['data'].update(tokenizer=BPE | {'pattern': '('}), 'BPE'),
    ('sample look', lambda c: c['data'].update(tokenizer=BPE | {'ranks': ['A']}), 'tokenizer'),
    ('resume', lambda c: c.pop('optimizers'), 'optimizer state'),
    ('resume', lambda c: c.update(optimizers=[]), 'optimizer'),
    ('resume', lambda c: c.update(optimizers=[3, 4]), 'optimizer'),
    ('resume', lambda c: c['optimizers'][0].pop('state'), 'optimizer'),
    ('resume', lambda c: c['optimizers'][0]['state'].clear(), 'momentum_buffer'),
    ('resume', lambda c: c['optimizers'][1]['state'][0].pop('exp_avg'), 'exp_avg'),
    ('resume', lambda c: c['optimizers'][0]['state'][0].update(momentum_buffer=torch.zeros(2, 3)), 'optimizer'),
    ('resume', lambda c: c['optimizers'][0]['state'][0]['momentum_buffer'].fill_(NAN), 'momentum_buffer'),
    ('resume', lambda c: c.update(plateau=[1]), 'plateau'),
    ('resume', lambda c: c['plateau'].update(best='x'), 'plateau.best'),
    ('resume', lambda c: c['plateau'].update(_last_lr=['x']), 'plateau._last_lr')]


@pytest.mark.parametrize('name, value', VALUES, ids=str)
def test_a_damaged_value_of_a_checkpoint(place, hurt, name, value):
    content, (key, _, rest) = checkpoint.load(hurt / 'ckpt.pt'), name.partition('.')
    parent, last = (content[key], rest) if rest else (content, key)
    parent.pop(last) if value is ... else parent.update({last: value})
    for name in ('ckpt.pt', 'best.pt'):
        torch.save(content, hurt / name)
    for path, *words in USES.values():
        assert last in refusal(place, path, words)


@pytest.mark.parametrize('uses, damage, named', CHECKPOINTS, ids=[f'{i}-{row[2]}' for i, row in enumerate(CHECKPOINTS)])
def test_a_damaged_checkpoint(place, hurt, uses, damage, named):
    content = checkpoint.load(hurt / 'ckpt.pt')
    damage(content)
    for name in ('ckpt.pt', 'best.pt'):
        torch.save(content, hurt / name)
    for use in uses.split():
        path, *words = USES[use]
        assert named in refusal(place, path, words)


def test_a_row_with_too_many_cells(place, hurt):
    with open(hurt / 'metrics.csv', 'a') as f:
        f.write('1,' * 40 + '1\n')
    path, *words = USES['resume']
    assert 'metrics.csv' in refusal(place, path, words)


DEEP = '[' * 100_000
TEXTS = [           # what is done to meta.json (a text replaces it), and what the sentence names
    (DEEP, 'meta.json'), ('[]', 'lacks'), ('', 'meta.json'), ({'source': None}, 'source'), ({'source': 'x'}, 'source'),
    ({'kind': ['text']}, 'kind'), ({'kind': 'sound'}, 'sound'), ({'vocab_size': -1}, 'vocab_size'), ({'vocab_size': 99}, '99'),
    ({'dtype': 'int8'}, 'int8'), ({'tokens': 5}, 'tokens'), ({'tokenizer': 'char'}, 'tokenizer'), ({'shards': 'x'}, 'shards'),
    ({'shards': {'train': 'x'}}, 'shards.train'), ({'fingerprint': 3}, 'fingerprint'), ({'script': []}, 'script')]
BITS = [
    ({'standard': 'none'}, 'standard'), ({'standard': [0.0]}, 'meta.json'), ({'outputs': '4'}, 'outputs'),
    ({'outputs': 3}, '(N, 3)'), ({'kind': 'classify'}, 'shape'), ({'guess': 'half'}, 'guess'), ({'draw': 'x'}, 'draw'),
    ({'guess': {'accuracy': 'x'}}, 'guess'), ({'examples': [1]}, 'examples'), ({'source': None}, 'source'),
    ({'vocab_size': 3}, 'shape')]
METAS = [*(('letters', *row) for row in TEXTS), *(('bits', *row) for row in BITS)]


@pytest.mark.parametrize('name, damage, named', METAS, ids=range(len(METAS)))
def test_a_damaged_meta_json(place, name, damage, named):
    path = place / 'data' / name / 'meta.json'
    kept = path.read_text()
    path.write_text(damage if isinstance(damage, str) else json.dumps(json.loads(kept) | damage))
    try:
        words = ['--arch=vit'] if name == 'bits' else []
        assert named in refusal(place, 'train.py', [*words, *TINY, f'--dataset={name}', '--out_dir=new'])
    finally:
        path.write_text(kept)


RECORDS = [         # the file, its content (None: a folder), and what the sentence names
    *(('race/race.json', content, 'race.json') for content in ('[]', '{}', '3', DEEP, None, '{"budget": "x", "entrants": {}}')),
    *(('sweep/sweep.json', content, 'sweep.json') for content in ('[]', '{}', '3', DEEP, None, '{"search": []}')),
    *((f'{folder}/result.json', content, 'result.json') for folder in ('sweep/trial-0', 'race/small-1337')
      for content in ('[]', '{}', DEEP, None, '{"number": 0, "seed": "x"}'))]


@pytest.mark.parametrize('name, content, named', RECORDS, ids=range(len(RECORDS)))
def test_a_damaged_record(place, name, content, named):
    path, out = place / name, place / name.split('/')[0]
    (path if content is None else path.parent).mkdir(parents=True)
    if content is not None:
        path.write_text(content)
    (out / '.lock').touch()
    words = {'race': ('compare.py', ['small.py', '--steps=2', '--seeds=1', f'--out={out}']),
             'sweep': ('sweep.py', ['small.py', '--search', 'n_layer=1,2', '--trials=1', f'--out={out}'])}[out.name]
    try:        # race.json or sweep.json is written before the runs are read
        assert named in refusal(place if named != 'result.json' else path.parent, *words)
    finally:
        shutil.rmtree(out)


@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('*.py')), ids=lambda p: p.stem)
def test_every_config_fits_into_a_laptop(path, monkeypatch):
    """Into 16 GB, of which some are not to be had."""
    monkeypatch.setattr(harness, 'machine_memory', lambda: 15 << 30)
    s = config.load([str(path)], train.TrainConfig)
    values = {'vocab_size': 50257} if s.arch.Model.modality == 'text' else {}
    made = arch.build_config(s.arch, values | {k: v for k, v in s.model.items() if k not in ('trunk', 'vae')})
    arch.require_fit(s.arch, made)
    with torch.device('meta'):
        model = s.arch.Model(made)
    assert optim.step_memory(s.train, model, *train.split_batch(s.train, model.config.block_size, 1)) < 15 << 30


def test_the_command_line_ends_the_same_way(cli):
    """In a process of its own: exit code 1, and nothing on stderr but the sentence."""
    for words in (['train.py', '--n_layer=two'], ['prepare/text.py', '../x', 'README.md']):
        done = cli(*words)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and done.stdout == ''
