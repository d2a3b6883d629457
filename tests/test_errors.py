"""What goes wrong ends in one sentence that says what to do, and costs nothing that was there before."""

import contextlib
import csv
import io
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import begin, contents, script, tiny_train, until

import train
from harness import ROOT, UserError, checkpoint, config

CONSTANT = '--schedule=constant'        # the rate of a step depends on the step alone


def words_of(dataset, out_dir, *more):
    """tiny_train() for an architecture without heads."""
    return [w for w in tiny_train(dataset, out_dir, *more) if not w.startswith('--n_head')]


@pytest.fixture(scope='module')
def finished(dataset, tmp_path_factory):
    """The folder of a run of 10 steps.  Look, do not touch: `run` is a copy."""
    out_dir = tmp_path_factory.mktemp('finished') / 'run'
    train.main(tiny_train(dataset, out_dir, '--max_iters=10', CONSTANT)[1:])
    return out_dir


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / 'run')


def finite(path):
    return all(t.isfinite().all() for t in checkpoint.load(path)['model'].values())


@pytest.mark.parametrize('words, said', [
    (['train.py', '--max_itres=5'], "did you mean 'max_iters'?"), (['sample.py', 'no/such'], 'there is no checkpoint no/such'),
    (['compare.py', 'config/no.py'], "cannot read the config file 'config/no.py'"), (['look.py', 'no/such'], 'there is no'),
    (['export.py', 'no/such', 'folder'], 'there is no checkpoint'), (['bench.py', 'train'], 'name at least one config'),
], ids=lambda v: v[0] if isinstance(v, list) else '')
def test_the_command_line(refused, words, said):
    """Exit code 1 and one line on stderr, as the system sees it.  The others fail in this process, where they are quick."""
    assert said in refused(*words, cwd=ROOT)


# settings ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words, said', [
    (['--max_itres=5'], ["unknown setting 'max_itres'", "did you mean 'max_iters'?"]),
    (['--max_iters=abc'], ["max_iters='abc'", 'int is wanted']),
    (['--max_iters=5', 'config/shakespeare_gpt.py'], ['config/shakespeare_gpt.py', 'config file comes first']),
    (['config/shakespear_gpt.py'], ["'config/shakespear_gpt.py'", 'did you mean config/shakespeare_gpt.py?']),
    (['--arch=paceing'], ["no architecture 'paceing'", "did you mean 'pacing'?"]),
    (['--arch=train'], ['train.py is not an architecture', 'it lacks']),
    (['--dataset=nosuch'], ["'nosuch'", 'shakespeare_char']),
])
def test_settings(refused, words, said):
    sentence = refused('train.py', *words)
    assert all(s in sentence for s in said), sentence


@pytest.mark.parametrize('words, said', [
    (['--device=tpu'], ["device='tpu'", 'cuda:N']),
    (['--dtype=int8'], ["dtype='int8'", 'bfloat16']),
    (['--seed=-1'], ['seed=-1 must not be negative']),
    (['--seed=20260731120000'], ['seed=20260731120000', 'below 2 ** 32']),
    (['--beta1=1'], ['beta1=1.0', 'below 1']),
    (['--optimizer=adam'], ["optimizer='adam'", 'adamw, muon, lion, sgd']),
    (['--optimizer=adam', '--dry_run'], ["optimizer='adam'", 'adamw, muon, lion, sgd']),
    (['--tokens_per_step=100'], ['tokens_per_step=100', ' 16 ', '96 or 112']),
    (['--tokens_per_step=80'], ['tokens_per_step=80', '5 windows of 16', 'batch_size=4']),
    (['--n_embd=18', '--n_head=4'], ['n_embd=18 is not divisible by n_head=4']),
    (['--block_size=0'], ['block_size=0 must be at least 1']),
    (['--block_size=5000'], ['block_size=5000', 'take a smaller block_size']),
    (['--vocab_size=5'], ['vocab_size=5', 'at least as many']),
    (['--init_from=nosuch'], ["'nosuch'", 'neither a checkpoint']),
    (['--init_from=no/such/ckpt.pt'], ['no/such/ckpt.pt', 'neither a checkpoint']),
])
def test_settings_that_the_data_or_the_model_refuses(refused, dataset, tmp_path, words, said):
    sentence = refused(*tiny_train(dataset, tmp_path / 'run', *words))
    assert all(s in sentence for s in said), sentence
    assert not (tmp_path / 'run').exists()


def test_an_impossible_picture(refused, dataset, tmp_path):
    for word, said in (('--columns=5', 'block_size=16 must be whole rows of columns=5'), ('--patch_size=0', 'patch_size=0'),
                       ('--dims=1.5,2,2', 'dims=1.5 is of the wrong type')):
        sentence = refused(*words_of(dataset, tmp_path / 'run', '--arch=pacing', '--predicts=last', word))
        assert said in sentence, sentence


@pytest.mark.parametrize('text, said', [
    ('max_itres = 5', "did you mean 'max_iters'?"),
    ('max_iters = "five"', 'int is wanted, this is str'),
    ('max_iters = 5\nlearning_rate = 1 / 0', 'mine.py, line 2: ZeroDivisionError'),
    ('max_iters = 5\n\nlearning_rate =', 'mine.py, line 3: this is not Python'),
])
def test_config_files(refused, tmp_path, text, said):
    (tmp_path / 'mine.py').write_text(text)
    assert said in refused('train.py', tmp_path / 'mine.py')


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """An empty folder in which this process looks for model files."""
    monkeypatch.setattr(config, 'ROOT', tmp_path)
    return tmp_path


NO_FORWARD = """
from dataclasses import dataclass
import torch.nn as nn
@dataclass
class Config:
    @classmethod
    def tiny(cls): return cls()
class Model(nn.Module): pass
"""


@pytest.mark.parametrize('text, said', [
    ('', ['it lacks a dataclass Config and a class Model']), (NO_FORWARD, ['it lacks a class Model with a forward']),
    ('import torch\nimport no_such_module\n', ['cannot be imported', 'line 2: ModuleNotFoundError', 'no_such_module']),
    ('class Model(:\n', ['cannot be imported', 'line 1: this is not Python']),
    ('raise SystemExit(0)\n', ['cannot be imported', 'line 1: SystemExit']),
], ids=['empty', 'no-forward', 'import', 'syntax', 'exit'])
def test_model_files(refused, beside, monkeypatch, text, said):
    (beside / 'mine.py').write_text(text)
    monkeypatch.setitem(sys.modules, 'mine', None)      # so that it is gone afterwards, whatever comes
    del sys.modules['mine']
    sentence = refused('train.py', '--arch=mine')
    assert 'mine.py' in sentence and all(s in sentence for s in said), sentence


def test_a_stray_file_beside_train_does_no_harm(refused, beside):
    shutil.copy(ROOT / 'model.py', beside)
    (beside / 'latin.py').write_bytes(b'# caf\xe9\n')
    (beside / 'folder.py').mkdir()
    sentence = refused('train.py', '--arch=nosuch')
    assert "there is no architecture 'nosuch'" in sentence and 'known are model' in sentence, sentence


# a run's folder -----------------------------------------------------------------------------------------------------------

def test_a_folder_that_holds_a_run_is_left_alone(refused, dataset, run):
    before = contents(run)
    sentence = refused(*tiny_train(dataset, run, '--max_iters=20'))
    assert all(s in sentence for s in (str(run), '--resume', '--overwrite', '--out_dir')), sentence
    assert contents(run) == before


@pytest.mark.parametrize('flag', ['--dry_run', '--eval_only'])
def test_what_writes_nothing_needs_no_folder_of_its_own(dataset, run, flag):
    before = contents(run)
    train.main(tiny_train(dataset, run, flag)[1:])
    assert contents(run) == before


def test_a_missing_package_is_told_before_a_run_is_replaced(refused, dataset, run, monkeypatch):
    before = contents(run)
    for name, flag in (('wandb', '--wandb_log'), ('tensorboard', '--tensorboard')):
        monkeypatch.setitem(sys.modules, name, None)        # as if it were not installed
        sentence = refused(*tiny_train(dataset, run, '--overwrite', flag))
        assert f'pip install {name}' in sentence, sentence
        assert contents(run) == before


def test_a_folder_that_cannot_be_made(refused, dataset, tmp_path):
    (tmp_path / 'file').write_text('mine')
    for out_dir in (tmp_path / 'file', tmp_path / 'file' / 'run'):
        sentence = refused(*tiny_train(dataset, out_dir))
        assert str(out_dir) in sentence and 'choose another --out_dir' in sentence, sentence
    assert contents(tmp_path) == {'file': b'mine'}


def test_resume_without_a_checkpoint(refused, dataset, tmp_path):
    sentence = refused(*tiny_train(dataset, tmp_path / 'run', '--resume'))
    assert f'there is no checkpoint {tmp_path / "run" / "ckpt.pt"}' in sentence
    assert not (tmp_path / 'run').exists()


def test_resume_from_the_best(refused, dataset, run):
    """best.pt holds the weights alone."""
    shutil.copy(run / 'best.pt', run / 'ckpt.pt')
    before = contents(run)
    sentence = refused(*tiny_train(dataset, run, '--resume'))
    assert 'no state of an optimizer' in sentence and f'--init_from={run / "ckpt.pt"}' in sentence, sentence
    assert contents(run) == before


@pytest.mark.parametrize('words, said', [
    (['--arch=pacing', '--columns=4'], 'its arch is model, this run has pacing'),
    (['--n_layer=3'], 'its n_layer is 2, this run has 3'),
    (['--block_size=8'], 'its block_size is 16, this run has 8'),
    (['--optimizer=sgd'], 'its optimizer is muon, this run has sgd'),
    (['other data'], 'its data is '),
], ids=['arch', 'layers', 'window', 'optimizer', 'data'])
def test_resume_of_another_run(refused, dataset, other_data, run, words, said):
    before = contents(run)
    words = [f'--dataset={other_data}'] if words == ['other data'] else words
    sentence = refused(*words_of(dataset, run, '--resume', *words))
    assert 'ckpt.pt cannot be resumed' in sentence and said in sentence, sentence
    assert contents(run) == before


def test_init_from_another_architecture(refused, dataset, finished, tmp_path):
    words = words_of(dataset, tmp_path / 'run', '--arch=pacing', '--columns=4', f'--init_from={finished}')
    sentence = refused(*words)
    assert f"{finished / 'best.pt'} holds an arch 'model', this run is of 'pacing'" in sentence
    assert not (tmp_path / 'run').exists()


# checkpoints --------------------------------------------------------------------------------------------------------------

class Code:
    """Pickled, it is a call that makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


def write_cut(path, marker):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def write_code(path, marker):
    torch.save({**checkpoint.load(path), 'step': Code(marker)}, path)


def write_old_code(path, marker):
    """As torch wrote files before 1.6: a plain pickle."""
    torch.save({**checkpoint.load(path), 'step': Code(marker)}, path, _use_new_zipfile_serialization=False)


def write_other(path, marker):
    torch.save({**checkpoint.load(path), 'arch': 'gone'}, path)


DAMAGE = [(write_cut, ['truncated or not a checkpoint', 'take another one']), (write_code, ['would run code', 'was not run']),
          (write_old_code, ['not a checkpoint', 'take another one']), (write_other, ["no architecture 'gone'"])]


@pytest.mark.parametrize('damage, said', DAMAGE, ids=lambda v: getattr(v, '__name__', ''))
def test_a_checkpoint_that_cannot_be_read(refused, run, tmp_path, damage, said):
    marker = tmp_path / 'marker'
    damage(run / 'best.pt', marker)
    sentence = refused('sample.py', run)
    assert all(s in sentence for s in [*said, 'gone' if damage is write_other else str(run / 'best.pt')]), sentence
    assert not marker.exists()
    if damage in (write_code, write_old_code):          # it is code indeed
        torch.load(run / 'best.pt', weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize('damage, said', DAMAGE[:3], ids=lambda v: getattr(v, '__name__', ''))
@pytest.mark.parametrize('how', ['resume', 'init_from'])
def test_training_from_a_checkpoint_that_cannot_be_read(refused, dataset, run, tmp_path, damage, said, how):
    marker = tmp_path / 'marker'
    damage(run / 'ckpt.pt', marker)
    before = contents(run)
    words = ['--resume'] if how == 'resume' else [f'--init_from={run / "ckpt.pt"}', f'--out_dir={tmp_path / "new"}']
    sentence = refused(*tiny_train(dataset, run, *words))
    assert all(s in sentence for s in [*said, str(run / 'ckpt.pt')]), sentence
    assert contents(run) == before and not marker.exists() and not (tmp_path / 'new').exists()


def test_weights_of_another_kind(refused, dataset, tmp_path):
    """A .safetensors file that is cut off."""
    (tmp_path / 'cut.safetensors').write_bytes((1 << 20).to_bytes(8, 'little') + b'{"wte.weight":')
    sentence = refused(*tiny_train(dataset, tmp_path / 'run', f'--init_from={tmp_path / "cut.safetensors"}'))
    assert 'cut.safetensors is truncated' in sentence


@pytest.mark.parametrize('change, said', [
    (lambda c: c.pop('config'), 'it lacks config'), (lambda c: c.update(arch=['model']), 'it lacks arch'),
    (lambda c: c.update(model=None), 'it lacks model'), (lambda c: c.update(format=99), 'is of format 99'),
    (lambda c: c['model'].pop('wte.weight'), 'holds another model.* "wte.weight"'),
    (lambda c: c['config'].update(n_embd=24), 'holds another model.* 24'),
    (lambda c: c['config'].update(n_head=3), 'not divisible'),
    (lambda c: c['config'].update(rope=True), "model.py has no setting 'rope'"),
])
def test_a_checkpoint_of_other_content(finished, tmp_path, change, said):
    content = checkpoint.load(finished / 'best.pt')
    change(content)
    torch.save(content, tmp_path / 'best.pt')
    with pytest.raises(UserError, match=said) as e:
        checkpoint.load_model(tmp_path)
    assert '\n' not in str(e.value)


def test_every_damaged_byte_of_a_weight_is_noticed(finished, tmp_path):
    """A copy can be damaged without being shorter: torch would read it as it is."""
    content = (finished / 'best.pt').read_bytes()
    weights = checkpoint.load(finished / 'best.pt')['model']['h.0.mlp.c_fc.weight'].numpy().tobytes()
    at = content.index(weights)
    for where in (at, at + len(weights) // 2, at + len(weights) - 1):
        damaged = bytearray(content)
        damaged[where] ^= 1
        (tmp_path / 'best.pt').write_bytes(damaged)
        torch.load(tmp_path / 'best.pt')
        with pytest.raises(UserError, match='truncated or not a checkpoint'):
            checkpoint.load(tmp_path / 'best.pt')


@pytest.mark.parametrize('share', [0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_checkpoint_cut_anywhere(finished, tmp_path, share):
    content = (finished / 'ckpt.pt').read_bytes()
    (tmp_path / 'ckpt.pt').write_bytes(content[:int(share * len(content))])
    with pytest.raises(UserError, match='truncated or not a checkpoint'):
        checkpoint.load(tmp_path / 'ckpt.pt')


# what happens while a run goes on -----------------------------------------------------------------------------------------

def filling(kilobytes, words):
    """Train on a disk that takes no file longer than so many kilobytes.  Returns (the sentence of its end, what it printed)."""
    resource, shown = pytest.importorskip('resource'), io.StringIO()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, hard))
    try:
        with pytest.raises(UserError) as e, contextlib.redirect_stdout(shown):
            train.main(words[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return str(e.value), shown.getvalue()


@pytest.mark.parametrize('kilobytes', [4, 60])
def test_a_disk_that_fills_while_a_checkpoint_is_written(dataset, run, kilobytes, capfd):
    """4: from the first block on, where torch adds an error of its own; 60: in the middle."""
    before = contents(run)
    assert len(before['ckpt.pt']) > 1024 * kilobytes > 2 * len(before['metrics.csv'])
    words = tiny_train(dataset, run, '--resume', '--max_iters=20', '--learning_rate=0', '--min_lr=0')   # no better best.pt
    sentence, shown = filling(kilobytes, words)
    assert all(s in sentence for s in ('ckpt.pt could not be written', 'too large', 'free some space', '--out_dir')), sentence
    assert '\n' not in sentence and capfd.readouterr().err == ''        # torch itself prints nothing beside
    assert 'resumed at step 10' in shown
    after = contents(run)
    assert after.keys() == before.keys()                                # no part of a file is left
    assert all(after[name] == before[name] for name in ('ckpt.pt', 'best.pt'))
    assert checkpoint.load(run / 'ckpt.pt')['step'] == 10


def test_a_disk_that_fills_while_a_row_is_logged(dataset, run):
    before = contents(run)
    words = tiny_train(dataset, run, '--resume', '--max_iters=1000', '--log_interval=1', '--eval_interval=100000')
    sentence, _ = filling(4, words)
    assert all(s in sentence for s in ('metrics.csv could not be written', 'too large', '--resume')), sentence
    assert '\n' not in sentence and contents(run)['ckpt.pt'] == before['ckpt.pt']
    train.main(tiny_train(dataset, run, '--resume', '--max_iters=12')[1:])      # there is space again
    steps = metrics(run)[0]
    assert steps[-1] == 12 and steps == sorted(set(steps))


def test_a_loss_that_is_not_a_number(refused, dataset, run):
    before = contents(run)
    sentence = refused(*tiny_train(dataset, run, '--resume', '--max_iters=40', '--learning_rate=1e30', '--grad_clip=0',
                                   '--log_interval=1', CONSTANT))
    assert re.search(r'became (nan|inf) at step 1[1-4]\b', sentence) and 'smaller learning_rate' in sentence, sentence
    assert contents(run)['ckpt.pt'] == before['ckpt.pt'] and contents(run)['best.pt'] == before['best.pt']
    assert finite(run / 'ckpt.pt') and finite(run / 'best.pt')


def test_a_validation_loss_that_is_not_a_number(refused, dataset, tmp_path):
    """The weights are finite still, but nothing can be computed with them: they do not replace better ones."""
    sentence = refused(*tiny_train(dataset, tmp_path / 'run', '--learning_rate=1e38', '--optimizer=lion', '--eval_interval=1',
                                   '--log_interval=1', CONSTANT))
    assert 'became nan at step 1:' in sentence and 'smaller learning_rate' in sentence, sentence
    assert checkpoint.load(tmp_path / 'run' / 'ckpt.pt')['step'] == 0


def test_weights_that_are_not_numbers_are_not_saved(finished, tmp_path):
    """Whatever the loss says."""
    content = checkpoint.load(finished / 'best.pt')
    checkpoint.save(tmp_path / 'ckpt.pt', content)
    before = contents(tmp_path)
    for value in (float('nan'), float('inf')):
        content['model']['ln_f.weight'][3] = value
        with pytest.raises(UserError, match=r'at step \d+ the weights of ln_f.weight are not finite'):
            checkpoint.save(tmp_path / 'ckpt.pt', content)
    assert contents(tmp_path) == before and finite(tmp_path / 'ckpt.pt')


def metrics(out_dir):
    """(steps, rows) of metrics.csv."""
    with open(out_dir / 'metrics.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    return [int(r['step']) for r in rows], rows


def test_killed_at_any_moment(dataset, tmp_path, capsys):
    """Four times, twice of these when a checkpoint is seen being written; in the end all is as if nothing had happened."""
    out_dir, last = tmp_path / 'run', -1
    words = [*tiny_train(dataset, out_dir)[1:], '--n_embd=64', '--eval_interval=1', '--log_interval=1', CONSTANT]
    ckpt = out_dir / 'ckpt.pt'
    for i in range(4):
        stale, began = set(out_dir.glob('.*.partial')), ckpt.stat().st_mtime_ns if i else 0
        process = begin(train.main, [*words, '--max_iters=1000000', *(['--resume'] if i else [])])
        until(lambda began=began: ckpt.exists() and ckpt.stat().st_mtime_ns != began, process)
        assert not any(p.exists() for p in stale)               # those of the killed process are gone
        if i % 2:
            time.sleep(torch.rand(()).item() * 0.2)
        else:
            until(lambda: list(out_dir.glob('.ckpt.pt.*.partial')), process)
        process.kill()
        process.join()
        step = checkpoint.load(ckpt)['step']
        assert step >= last and metrics(out_dir)[0][-1] >= step     # a row is written before its checkpoint
        last = step
    (out_dir / '.best.pt.1.partial').write_bytes(b'half')
    train.main([*words, f'--max_iters={last + 3}', '--resume'])
    assert f'resumed at step {last}' in capsys.readouterr().out
    assert not list(out_dir.glob('.*'))
    steps, rows = metrics(out_dir)
    assert steps == list(range(last + 4))
    train.main([*words, f'--max_iters={last + 3}', '--eval_interval=1000000', f'--out_dir={tmp_path / "whole"}'])
    assert metrics(tmp_path / 'whole')[1][-1]['val_loss'] == rows[-1]['val_loss']


# generation ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words, said', [
    (['--start', 'abcX'], ["no token for 'X'", 'no others']),
    (['--start', ''], ['--start is empty']),
    (['--start', 'FILE:no/such.txt'], ['no/such.txt', 'No such file']),
    (['--top_k=-1'], ['--top_k=-1', '0 or more']),
    (['--top_p=0'], ['--top_p=0', 'above 0']),
    (['--temperature=-1'], ['--temperature=-1', '0 or more']),
    (['--seed=99999999999999999999'], ['--seed=99999999999999999999', 'less than 2 ** 63']),
    (['--device=cuda:99'], ['cuda:99', '--device=cpu']),
    (['--pretrained', 'gpt2'], ['name either run', '--pretrained gpt2']),
])
def test_sampling(refused, finished, words, said):
    sentence = refused('sample.py', finished, *words)
    assert all(s in sentence for s in said), sentence


def test_sampling_from_nothing(refused, tmp_path):
    (tmp_path / 'empty').mkdir()
    assert 'holds no checkpoint (best.pt or ckpt.pt)' in refused('sample.py', tmp_path / 'empty')
    assert 'there is no checkpoint' in refused('sample.py', tmp_path / 'nosuch')


def test_a_reader_that_has_seen_enough(finished):
    """As in python sample.py ... | head -1"""
    process = subprocess.Popen([sys.executable, 'sample.py', str(finished), '--max_new_tokens=100000'], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait() == 0


def test_the_coldest_temperature_takes_the_likeliest(finished, capsys):
    coldest, cold = ((script('sample.py', finished, '--max_new_tokens=20', f'--temperature={t}'), capsys.readouterr().out)[1]
                     for t in ('1e-42', '0'))
    assert coldest == cold and len(cold) > 20


def test_export_into_what_is_no_folder(refused, finished, tmp_path):
    (tmp_path / 'file').write_text('mine')
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'folder'):
        assert f'{folder} cannot be written' in refused('export.py', finished, folder)


@pytest.mark.parametrize('name', ['/absolute', '../up', 'a/../../up', '..', '', 'a b'])
def test_a_name_of_data_leads_nowhere_else(refused, dataset, tmp_path, monkeypatch, name):
    """--dataset, or a checkpoint's, is joined to prepare/ and run: one that leaves the folder is refused, whoever says it."""
    evil = tmp_path / 'absolute.py'
    evil.write_text(f'open({str(tmp_path / "owned")!r}, "w")')
    name = str(tmp_path / 'absolute') if name == '/absolute' else name
    assert 'cannot name a data set' in refused('train.py', f'--dataset={name}', '--max_iters=1', f'--out_dir={tmp_path / "run"}')
    assert not (tmp_path / 'owned').exists()


def test_a_checkpoint_that_is_looked_at_runs_nothing(refused, task_data, tmp_path):
    """look.py on a checkpoint of a task names what to prepare, and prepares nothing; its data set's name leads nowhere else."""
    task = task_data('bits').name
    train.main(['--arch=vit', f'--dataset={task}', f'--out_dir={tmp_path / "run"}', '--max_iters=1', '--n_layer=1',
                '--n_embd=16', '--n_head=2', '--eval_windows=8', '--device=cpu'])
    content = checkpoint.load(tmp_path / 'run' / 'best.pt')
    (tmp_path / 'evil.py').write_text(f'open({str(tmp_path / "owned")!r}, "w")')
    for name, said in ((str(tmp_path / 'evil'), 'cannot name a data set'), ('digit_addition_classes_not_here', 'is missing')):
        content['loop']['dataset'] = name
        checkpoint.save(tmp_path / 'run' / 'best.pt', {k: v for k, v in content.items() if k != 'format'})
        assert said in refused('look.py', tmp_path / 'run')
    assert not (tmp_path / 'owned').exists()
