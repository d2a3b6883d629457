"""Wrong commands: each is refused by one sentence that names what is wrong, its exit code is not 0, and it changes no file.

    entry point     a script, or a module of python -m
    words           what follows it; RUN is a finished run of a GPT, TASK of a ViT, CONFIG a config, ~ the home folder
    named           what the sentence must contain

A cell of a table is "words => named", or "words ... --a=1 b" for two commands: of "words --a=1", the sentence names a and
then 1, and of "words b", b.  Cells are separated by |.
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

TABLES = {          # what stands before each command, and its table
'train.py ': '''
... --n_layer=two --n_layer=1000000000 --n_embd=1000000000000000000000 --n_head=3 --vocab_size=5 --vocab_size=1000000000000
... --block_size=100000000 --block_size=5000 --batch_size=10000000000 --tokens_per_step=7 --tokens_per_step=160000000000000
... --eval_windows=100000000000 --max_iters=0 --device=gpu --device=cuda:99 --device=cpu:7 --compile=perhaps --help=x
... --out_dir=TEXT --out_dir=TEXT/new | --tokens_per_step=80 --block_size=16 ... --batch_size=4
--shard ... --sample_interval=5 | --resume --out_dir=RUN ... --n_embd=32 --optimizer=lion --arch=vit
--arch=bert ... --leaking_split --last_only --mask_token=3 | --arch=baselines --dataset=bits ... --network=nac
--arch=pacing --predicts=last ... --dims=(8,) --columns=5 | --arch=mamba ... --d_state=10000000000
--arch=highorder ... --segments=1000000000 | --arch=highorder --kind=fourier ... --n=4
--arch=vit --dataset=bits ... --outputs=7 --last_only --features=7 --leaking_split
--arch=pacing --predicts=last --depths=(1000000000,2,2) => depths
--arch=fpt --dataset=bits --trunk=out/../../etc => out/../../etc | --arch=../model => '../model' | --arch=train => train.py
--arch=bert --dataset=bits => masked text | --arch=bert --vocab_size=11 => 12 | --dataset=nowhere => 'nowhere'
--dataset=../letters => '../letters' | --dataset=bits => task | --init_from=TASK => arch
--init_from=CUT.safetensors => CUT.safetensors | --init_from=resume => --resume
--shard => torchrun | --resume --out_dir=new => new/ckpt.pt
--resume --out_dir=RUN --validate=train => validate
--resume --out_dir=RUN --dataset=other => data | --out_dir=RUN => --overwrite | -- => '--' | CONFIG config.py => 'config.py'
''', 'sample.py ': '''
RUN ... --num_samples=0 --num_samples=10000000000 --max_new_tokens=0 --temperature=-1 --temperature=nan --seed=-1 --top_k=-1
RUN ... --top_p=0 --top_p=1.5 --start= --fill=nothing --reapply=0 --weights=1,2 --weights=-1 --device=tpu --dtype=int4
RUN ... --out=grid.png --tempreature=1 --pretrained=gpt2
RUN RUN ... --weights=1 --weights=1,0 --weights=1,nan --weights=1,inf --weights=1,much
RUN ... --beams=2 --rerank=x --image=x.png --labels=a --reapply=2 --arch=pacing --guidance=2 --eval_windows=5
RUN --benchmark ... --seed=1 --reapply=2 | RUN --draft=RUN ... --num_samples=2 --eval | RUN RUN --draft=RUN => one run
RUN --draft=nowhere => nowhere | RUN --draft= => --draft | RUN --eval ... --start=a --num_samples=2 --max_new_tokens=5
RUN --eval ... --eval_windows=-1 --eval_windows=100000000000 --benchmark | RUN --start=a ... --automaton
RUN RUN --start=a ... --automaton | --pretrained=gpt2 ... --arch=pacing --eval | => name either runs | nowhere => nowhere
RUN --start=XYZ => 'X' | RUN --start=FILE:none.txt => none.txt | RUN --fill=[MASK] => --fill | RUN --automaton => --start
TASK => task
''', 'look.py ': '''
... nowhere | RUN ... extra --only=everything --device=tpu | => run | RUN --prompt=a => --prompt | RUN --prompt=XYZ => 'X'
RUN --out=RUN/ckpt.pt => ckpt.pt | TASK --prompt=abc => --prompt
''', 'compare.py ': '''
... nowhere.py
CONFIG ... --seeds=0 --seeds=many --seconds=0 --seconds=nan --steps=inf --windows=-1 --windows=100000000000 --match=width
CONFIG ... --out=TEXT --unknown --confirm=small.py | CONFIG --set ... depth=3 n_layer=two n_embd=1000000 | => configs
CONFIG --set=depth => 'depth' | CONFIG --set block_size=100000 => block_size | CONFIG --tokens=1 --steps=2 => --steps
CONFIG CONFIG => two entrants | '"' => '"' | '' => '' | CONFIG 'CONFIG --block_size=8' => block_size
CONFIG 'CONFIG --arch=vit --dataset=bits' => task | --floors => configs | --confirm=nowhere.py => nowhere.py
--confirm=TEXT => TEXT | --confirm=small.py => claim
''', 'sweep.py ': '''
CONFIG --search ... n_layer=2..1 n_layer=log(1,2) learning_rate=log(0,1) optimizer=lion seed=1..2 validate=val,tune
CONFIG --search n_layer=1..2 ... --trials=0 --seed=-1 --tokens=1 --seconds=0 --out=TEXT | => config | CONFIG => --search
nowhere.py --search n_layer=1..2 => 'nowhere.py' | '"' --search n_layer=1..2 => '"' | CONFIG --search n_layer => 'n_layer'
CONFIG --search depth=1..2 => 'depth' | CONFIG --search learning_rate=lin(a,b) => learning_rate='a'
CONFIG --search optimizer=adam,lion => optimizer='adam' | CONFIG --search n_layer=1..2 --set n_layer=1 => n_layer
CONFIG --search n_layer=1..2 n_layer=1..3 => twice | CONFIG --search n_embd=16..1000000 --set block_size=100000 => block_size
'CONFIG --arch=vit --dataset=bits' --search n_layer=1..2 --tune => validate=tune
CONFIG --search n_layer=1..2 --tune --set leaking_split=True => leaking_split
''', 'bench.py ': '''
draft RUN ... nowhere |
... fly | train CONFIG ... --rounds=0 --n_layer=two --n_embd=1000000 --batch_size=10000000000 --out=none/x.json
generate CONFIG ... --tokens=0 | windows CONFIG ... --seconds=0 --out=none/x.json | scan ... --tokens=3
memory CONFIG ... --ranks=0 | gpu ... --only=speed,fly | links ... CONFIG | => train | train => config | train '"' => '"'
generate CONFIG --depth=1 => 'depth' | generate CONFIG --arch=transformer => transformer.py
generate CONFIG --arch=bert => bert.py | windows => config | windows CONFIG --arch=transformer => transformer.py
memory CONFIG --arch=transformer => transformer.py | gpu => CUDA
''', 'extras/export.py ': '''
RUN ... RUN TEXT | => run | RUN => folder | TASK exported => 'vit'
''', 'extras/gbm.py ': '''
--dataset=letters ... --features=0 --features=65 --rounds=0 --examples=-1 --learning_rate=2 --block_size=100000 --start=a
--dataset=letters ... --eval_windows=100000000000 | RUN ... --top_k=-1 | --dataset=nowhere => 'nowhere' | --dataset=bits => task
RUN => extras.gbm | RUN --rounds=3 => --rounds
''', 'extras/play.py ': '''
RUN ... --port=-1 --port=99999 --port=http --device=gpu | => run
''', 'prepare/': '''
text.py new TEXT ... --tokens=words --characters=0 --characters=5 | bpe.py new TEXT ... --merges=-1 | gutenberg.py ... one
shakespeare_gpt2.py ... --merges=3 | bit_memory.py ... --bits=0 --bits=1000000000 | bit_xor.py ... --bits=99999999999
digit_addition.py ... --digits=-1 --examples=100000000000 | digit_addition_classes.py ... --digits=99999999999
mnist_addition.py ... --digits=99999999999 | mnist_addition_number.py ... --examples=99999999999
listops.py ... --arguments=1 --max_length=9 --max_length=10000000000 | listops_short.py ... --examples=100000000000
reverse.py ... --longest=1000000000 --examples=100000000000 --letters=27 | dates.py ... --examples=100000000000
pairs.py new ... nowhere | cyp3a4.py ... --longest=0 | openwebtext.py ... --documents=-1 --shard_tokens=0 | text.py => name
text.py letters TEXT => letters | text.py ../x TEXT => '../x' | gutenberg.py => ID
shakespeare_bpe.py --input=nowhere => nowhere | bit_memory.py --bits=1 --patterns=1 => --examples
bit_xor.py --name=bits => bits | digit_addition.py --digits=1 => --examples | listops_short.py --depth=1 => --depth
reverse.py --letters=1 --longest=5 => --letters | pairs.py letters TEXT => letters | cifar10_gray.py --input=TEXT => TEXT
cyp3a4.py --input=TEXT => TEXT | speech_commands.py --input=TEXT => TEXT
''', '': '''
race/tables.py ... --chekc | extras/gallery.py ... --chekc | views/diagrams.py ... x | race/page.py => RECORD.json
race/page.py nowhere.json x.png => nowhere.json | race/page.py TEXT x.png => TEXT | race/page.py LIST x.png => LIST
race/page.py --help => usage | extras/gallery.py --out=TEXT/x.html => choose another file by --out
train.py ~/absent.py => ~ | train.py --init_from=~/absent --arch=pacing => ~
sample.py --pretrained=~/absent.safetensors => ~ | train.py --arch=fpt --dataset=bits --trunk=~/absent => ~
sample.py ~/absent => ~ | look.py ~/absent => ~ | compare.py ~/absent.py => ~
compare.py CONFIG --out=~/text.txt/race --steps=1 => ~ | sweep.py ~/absent.py --search n_layer=1,2 --out=~/new => ~
bench.py train ~/absent.py => ~ | extras/export.py ~/absent ~/x => ~ | extras/gbm.py ~/absent => ~
extras/gallery.py --out=~/absent/x.html => ~ | prepare/text.py mine ~/absent => ~ | prepare/bpe.py mine ~/absent => ~
prepare/gutenberg.py 84 --input=~/absent => ~ | prepare/openwebtext.py --input ~/absent.txt => ~
prepare/shakespeare_char.py --input=~/absent => ~ | prepare/mnist.py --input=~/absent => ~
prepare/cifar10.py --input=~/absent => ~ | prepare/cyp3a4.py --input=~/absent => ~
prepare/speech_commands.py --input=~/absent => ~
'''}


def rows(table, before):
    """[(script, words, what the sentence must name, in this order)] of a table, with what stands before each command."""
    for cell in re.split(r' \| |\n', table.strip()):
        (alone, _, named), (words, _, options) = cell.partition('=> '), cell.partition('... ')
        several = [(words + option, option.lstrip('-').split('=', 1)) for option in options.split()]
        for command, parts in several or [(alone, [named])]:
            script, _, rest = f'{before}{command}'.strip().partition(' ')
            yield script, rest, parts


COMMANDS = [row for before, table in TABLES.items() for row in rows(table, before)]
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
    before, kept, stderr = contents(place), {p.name for p in place.iterdir()}, io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()), \
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


def with_names(words):
    return re.sub('|'.join(NAMES), lambda found: NAMES[found[0]], words)


def filled(path, words):
    """The words of a row; of train.py, with what the row does not say; a config comes first."""
    words = shlex.split(with_names(words))
    first = words[:1] if path == 'train.py' and words and not words[0].startswith('-') else []
    return [*first, *TINY, '--dataset=letters', '--out_dir=new', *words[len(first):]] if path == 'train.py' else words


@pytest.mark.parametrize('path, words, named', COMMANDS, ids=lambda v: v or '-')
def test_a_wrong_command_is_refused(place, path, words, named):
    """It says the same of ~ as of the folder that it stands for."""
    for needs in {'extras/gbm.py': ['lightgbm'], 'extras/play.py': ['starlette', 'uvicorn']}.get(path, []):
        pytest.importorskip(needs)
    said = refusal(place, path, filled(path, words))
    assert re.search('.*'.join(re.escape(with_names(part).replace('~', str(place))) for part in named), said), said
    if '~' in words:
        assert '~' not in said and said == refusal(place, path, filled(path, words.replace('~', str(place))))


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
    Config = train.TrainConfig if name == 'train' else arch.load_arch(name).Config
    for field, kind in typing.get_type_hints(Config).items():
        values = [*NEITHER.get(field, []), *NEITHER.get(f'{name}.{field}', [])]
        if not ANYTHING & {field, f'{name}.{field}'}:
            values += [-1] if kind in (int, float, int | str, int | None) else ['nowhere'] if kind is str else []
        for value in values:
            with pytest.raises(UserError, match=re.escape(f'{field}={value!r}')):
                arch.build_config(arch.load_arch(name), {field: value}) if name != 'train' else Config(**{field: value})


USES = {'sample': ('sample.py', 'hurt'), 'look': ('look.py', 'hurt'), 'export': ('extras/export.py', 'hurt', 'exported'),
        'resume': ('train.py', 'small.py', '--out_dir=hurt', '--resume', '--max_iters=3'),
        'init': ('train.py', 'small.py', '--out_dir=new', '--init_from=hurt/ckpt.pt')}


@pytest.fixture
def hurt(place):
    yield shutil.copytree(place / 'run', place / 'hurt')
    shutil.rmtree(place / 'hurt')


NAN = float('nan')
BPE = {'kind': 'bpe', 'name': 'x', 'pattern': '.', 'ranks': [], 'special': {}}
CHECKPOINTS = [     # the commands that refuse it, the place, what is there (... : nothing), and what the sentence names
    *((' '.join(USES), where, value, where.partition('/')[2] or where) for where, value in (
        ('config/n_layer', '2'), ('config/n_embd', 16.5), ('config/bias', [1]), ('config', []), ('arch', 3), ('step', -1),
        ('step', True), ('best', 'low'), ('best', NAN), ('seconds', [1]), ('seconds', NAN), ('tokens', -5), ('loop', ...),
        ('evaluated', 'never'), ('loop/dataset', ...), ('loop/batch_size', '12'), ('data', ...), ('data/fingerprint', ...),
        ('data/tokenizer', 'char'), ('format', 99), ('model/3', torch.zeros(1)), ('model/wte.weight', ...),
        *(('model/wpe.weight', w) for w in ('y', torch.zeros(3), torch.zeros(16, 16) * 1j, torch.full((16, 16), NAN))))),
    ('sample look export resume', 'config/n_embd', 1 << 40, '1099511627776'), ('sample', 'config/n_layer', 10 ** 9, 'n_layer'),
    ('sample', 'config/n_head', 3, 'n_head=3'), ('sample', 'config/rope', True, "'rope'"), ('sample', 'arch', 'gone', "'gone'"),
    ('look', 'loop/dataset', '../x', "'../x'"), ('sample look', 'data/tokenizer', ..., 'data.tokenizer'),
    ('sample look', 'data/tokenizer/kind', 'morse', 'morse'), ('sample look', 'data/tokenizer/chars', 'abc', 'chars'),
    ('sample look', 'data/tokenizer/chars', ['a', 'a'], 'chars'),
    ('sample look', 'data/tokenizer/chars', [chr(i) for i in range(99)], 'vocab_size=11'),
    ('sample look', 'data/tokenizer', BPE | {'pattern': '('}, 'BPE'),
    ('sample look', 'data/tokenizer', BPE | {'ranks': ['A']}, 'tokenizer'),
    ('resume', 'optimizers', ..., 'optimizer state'), ('resume', 'optimizers', [], 'optimizer'),
    ('resume', 'optimizers', [3, 4], 'optimizer'), ('resume', 'optimizers/0/state', ..., 'optimizer'),
    ('resume', 'optimizers/0/state', {}, 'momentum_buffer'), ('resume', 'optimizers/1/state/0/exp_avg', ..., 'exp_avg'),
    ('resume', 'optimizers/0/state/0/momentum_buffer', torch.zeros(2, 3), 'optimizer'),
    ('resume', 'optimizers/0/state/0/momentum_buffer', torch.full((48, 16), NAN), 'momentum_buffer'),
    ('resume', 'plateau', [1], 'plateau'), ('resume', 'plateau/best', 'x', 'plateau.best'),
    ('resume', 'plateau/_last_lr', ['x'], 'plateau._last_lr')]


@pytest.mark.parametrize('uses, where, value, named', CHECKPOINTS, ids=[f'{i}-{row[1]}' for i, row in enumerate(CHECKPOINTS)])
def test_a_damaged_checkpoint(place, hurt, uses, where, value, named):
    content = damaged = checkpoint.load(hurt / 'ckpt.pt')
    *keys, last = (int(key) if key.isdigit() else key for key in where.split('/'))
    for key in keys:
        damaged = damaged[key]
    damaged.pop(last) if value is ... else damaged.update({last: value})
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
