"""Errors end in one sentence that says what to do, and destroy nothing that was there before."""

import contextlib
import io
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import contents, script, tiny_train

import train
from harness import ROOT, UserError, arch, checkpoint, log

CONSTANT = '--schedule=constant'        # the rate of a step depends on the step alone


def words_of(dataset, out_dir, *more):
    return [w for w in tiny_train(dataset, out_dir, *more) if '--arch=pacing' not in more or not w.startswith('--n_head')]


def check(sentence, *expected):
    assert all(s in sentence for s in expected) and '\n' not in sentence, sentence


@pytest.fixture(scope='module')
def finished(dataset, tmp_path_factory):
    """The folder of a run of 10 steps, to read only: `run` is a copy."""
    out_dir = tmp_path_factory.mktemp('finished') / 'run'
    train.main(tiny_train(dataset, out_dir, '--max_iters=10', CONSTANT)[1:])
    return out_dir


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / 'run')


def test_an_error_as_the_system_sees_it(refused):
    """Exit code 1 and one line on stderr."""
    assert "'max_iters'" in refused('train.py', '--max_itres=5', cwd=ROOT)


@pytest.mark.parametrize('words, expected', [
    (['sample.py', 'no/such'], 'no/such'), (['compare.py', 'config/no.py'], "'config/no.py'"), (['compare.py', '"'], 'quot'),
    (['look.py', 'no/such'], 'no/such'), (['bench.py', 'train'], 'config'), (['bench.py', 'train', '"'], 'quot'),
    (['bench.py', 'train', 'config/lstm.py', '--rounds=0'], '--rounds=0'), (['bench.py', 'scan', '--foo'], '--foo'),
    (['bench.py', 'links', 'foo'], 'foo'), (['bench.py', 'generate', 'config/shakespeare_gpt.py', '--tokens=0'], '--tokens=0'),
    (['bench.py', 'train', 'config/lstm.py', '--out=no/such/file.json'], '--out=no/such/file.json'),
    (['train.py', '--arch=fpt', '--positions=0', '--dry_run', '--dataset=TASK'], 'positions=0'),
], ids=lambda v: v[0] if isinstance(v, list) else '')
def test_errors_of_other_commands(refused, task_data, words, expected):
    assert expected in refused(*(w.replace('TASK', task_data('bits').name) for w in words))


# settings -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words, expected', [
    ('--device=tpu', ["'tpu'", 'cuda:N']), ('--device=cpu:7', ["'cpu:7'", 'cuda:N']), ('--compile=no', ["'no'"]),
    ('--dtype=int8', ["'int8'", 'bfloat16']),
    ('--seed=-1', ['seed=-1', '0']), ('--seed=20260731120000', ['seed=20260731120000', '2 ** 32']),
    ('--beta1=1', ['beta1=1.0', '1']), ('--optimizer=adam', ["optimizer='adam'", 'adamw, muon, lion, sgd']),
    ('--schedule=plato', ["'plato'", 'plateau']), ('--factor=1.0', ['factor=1.0', '1']), ('--factor=0', ['factor=0.0', '0']),
    ('--patience=-1', ['patience=-1', '0']), ('--cooldown=0', ['cooldown=0.0']), ('--memory_dropout=2', ['memory_dropout=2.0']),
    ('--warmup_iters=all', ["'all'", "'auto'"]), ('--batch_size=0', ['batch_size=0', '1']),
    ('--max_iters=0', ['max_iters', 'max_seconds']), ('--tokens_per_step=100', ['tokens_per_step=100', ' 16 ', '96 or 112']),
    ('--tokens_per_step=80', ['tokens_per_step=80', '5 windows of 16', 'batch_size=4']),
    ('--n_head=3', ['n_embd=16', 'n_head=3']), ('--block_size=5000', ['block_size=5000']),
    ('--vocab_size=5', ['vocab_size=5', '11']), ('--dataset=nosuch', ["'nosuch'"]), ('--init_from=nosuch', ["'nosuch'"]),
    ('--init_from=no/such/ckpt.pt', ['no/such/ckpt.pt']), ('--arch=vit', ['vit.py', 'task', 'text', 'bit_xor']),
    ('--arch=pacing --predicts=last --columns=5', ['block_size=16', 'columns=5']),
])
def test_bad_settings(refused, dataset, tmp_path, words, expected):
    check(refused(*words_of(dataset, tmp_path / 'run', '--max_iters=1', *words.split())), *expected)
    assert not (tmp_path / 'run').exists()


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """An empty folder in which this process looks for model files."""
    monkeypatch.setattr(arch, 'ROOT', tmp_path)
    monkeypatch.setitem(sys.modules, 'mine', None)      # so that it is removed at the end
    del sys.modules['mine']
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


@pytest.mark.parametrize('text, expected', [
    ('', ['a dataclass Config and a class Model']), (NO_FORWARD, ['a class Model with forward']),
    ('import torch\nimport no_such_module\n', ['line 2: ModuleNotFoundError', 'no_such_module']),
    ('class Model(:\n', ['line 1: ']), ('raise SystemExit(0)\n', ['line 1: SystemExit']),
], ids=['empty', 'no-forward', 'import', 'syntax', 'exit'])
def test_bad_model_files(refused, beside, text, expected):
    (beside / 'mine.py').write_text(text)
    check(refused('train.py', '--arch=mine'), 'mine.py', *expected)


def test_other_files_beside_train_are_no_architectures(refused, beside):
    shutil.copy(ROOT / 'model.py', beside)
    (beside / 'latin.py').write_bytes(b'# caf\xe9\n')
    (beside / 'folder.py').mkdir()
    assert refused('train.py', '--arch=nosuch').endswith('choose from model')


@pytest.mark.parametrize('name', ['/absolute', '../up', 'a/../../up', '..', '', 'a b'])
def test_the_name_of_a_data_set_cannot_leave_its_folder(refused, tmp_path, name):
    """--dataset is joined to prepare/ and run."""
    (tmp_path / 'absolute.py').write_text(f'open({str(tmp_path / "owned")!r}, "w")')
    name = str(tmp_path / 'absolute') if name == '/absolute' else name
    check(refused('train.py', f'--dataset={name}', '--max_iters=1', f'--out_dir={tmp_path / "run"}'), f"'{name}'", 'data set')
    assert not (tmp_path / 'owned').exists()


# the folder of a run ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words, expected', [
    ('--max_iters=20', ['run', '--resume', '--overwrite', '--out_dir']),
    ('--overwrite --wandb_log', ['pip install wandb']), ('--overwrite --tensorboard', ['pip install tensorboard']),
    ('--resume --arch=pacing --columns=4', ['its arch is model, this run has pacing']),
    ('--resume --n_layer=3', ['its n_layer is 2, this run has 3']),
    ('--resume --block_size=8', ['its block_size is 16, this run has 8']),
    ('--resume --optimizer=sgd', ['its optimizer is muon, this run has sgd']), ('--resume --dataset=OTHER', ['its data is ']),
    ('--out_dir=NEW --arch=pacing --columns=4 --init_from=RUN', ["best.pt", "'model'", "'pacing'"]),
    ('--out_dir=NEW --resume', ['NEW/ckpt.pt']), ('--out_dir=FILE', ['FILE', '--out_dir']),
    ('--out_dir=FILE/run', ['FILE/run', '--out_dir']),
])
def test_a_run_that_cannot_start_changes_nothing(refused, dataset, other_data, run, tmp_path, monkeypatch, words, expected):
    for name in ('wandb', 'tensorboard'):
        monkeypatch.setitem(sys.modules, name, None)        # as if it were not installed
    (tmp_path / 'FILE').write_text('mine')
    before = contents(tmp_path)
    for name, path in (('OTHER', other_data), ('NEW', tmp_path / 'NEW'), ('FILE', tmp_path / 'FILE'), ('RUN', run)):
        words = words.replace(name, str(path))
    check(refused(*words_of(dataset, run, *words.split())), *expected)
    assert contents(tmp_path) == before


def test_resume_from_best(refused, dataset, run):
    """best.pt has weights only."""
    shutil.copy(run / 'best.pt', run / 'ckpt.pt')
    check(refused(*tiny_train(dataset, run, '--resume')), 'no optimizer state', f'--init_from={run / "ckpt.pt"}')


# checkpoints --------------------------------------------------------------------------------------------------------------

class Code:
    """Pickled, it is a call that makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


def write_cut(path, marker):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def write_code(path, marker, **more):
    torch.save({**checkpoint.load(path), 'step': Code(marker)}, path, **more)


def write_old_code(path, marker):
    """The format of torch before 1.6: a plain pickle."""
    write_code(path, marker, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize('damage', [write_cut, write_code, write_old_code])
def test_a_bad_checkpoint_is_refused_and_runs_nothing(refused, dataset, run, tmp_path, damage):
    marker = tmp_path / 'marker'
    for name in ('best.pt', 'ckpt.pt'):
        damage(run / name, marker)
    before = contents(run)
    for words in (['sample.py', run], tiny_train(dataset, run, '--resume'),
                  tiny_train(dataset, tmp_path / 'new', f'--init_from={run / "ckpt.pt"}')):
        check(refused(*words), str(run), 'not a checkpoint')
    assert contents(run) == before and not marker.exists() and not (tmp_path / 'new').exists()
    if damage is not write_cut:
        torch.load(run / 'best.pt', weights_only=False)     # it is code indeed
        assert marker.exists()


def test_a_truncated_safetensors_file(refused, dataset, tmp_path):
    (tmp_path / 'cut.safetensors').write_bytes((1 << 20).to_bytes(8, 'little') + b'{"wte.weight":')
    check(refused(*tiny_train(dataset, tmp_path / 'run', f'--init_from={tmp_path / "cut.safetensors"}')), 'cut.safetensors')


@pytest.mark.parametrize('change, expected', [
    (lambda c: c.pop('config'), 'config'), (lambda c: c.update(arch=['model']), 'arch'),
    (lambda c: c.update(model=None), 'model'),
    (lambda c: c.update(format=99), '99'), (lambda c: c['model'].pop('wte.weight'), '"wte.weight"'),
    (lambda c: c['config'].update(n_embd=24), '24'), (lambda c: c['config'].update(n_head=3), 'n_head=3'),
    (lambda c: c['config'].update(rope=True), "'rope'"), (lambda c: c.update(arch='gone'), "'gone'"),
])
def test_a_checkpoint_with_other_content(finished, tmp_path, change, expected):
    content = checkpoint.load(finished / 'best.pt')
    change(content)
    torch.save(content, tmp_path / 'best.pt')
    with pytest.raises(UserError) as e:
        checkpoint.load_model(tmp_path)
    check(str(e.value), expected)


def test_every_damaged_or_missing_byte_is_noticed(finished, tmp_path):
    """torch itself would load a file with a damaged weight."""
    path, content = tmp_path / 'best.pt', (finished / 'best.pt').read_bytes()
    weights = checkpoint.load(finished / 'best.pt')['model']['h.0.mlp.c_fc.weight'].numpy().tobytes()
    at = content.index(weights)
    for where in (at, at + len(weights) // 2, at + len(weights) - 1):
        path.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1:])
        torch.load(path)
        with pytest.raises(UserError, match='not a checkpoint'):
            checkpoint.load(path)
    for fraction in (0, 0.01, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[:int(fraction * len(content))])
        with pytest.raises(UserError, match='not a checkpoint'):
            checkpoint.load(path)


def test_looking_at_a_checkpoint_prepares_no_data(refused, task_data, tmp_path):
    out = tmp_path / 'run'
    train.main(['--arch=vit', f'--dataset={task_data("bits").name}', f'--out_dir={out}', '--max_iters=1', '--n_layer=1',
                '--n_embd=16', '--n_head=2', '--eval_windows=8', '--device=cpu'])
    content = checkpoint.load(out / 'best.pt')
    (tmp_path / 'evil.py').write_text(f'open({str(tmp_path / "owned")!r}, "w")')
    for name in (str(tmp_path / 'evil'), 'digit_addition_classes_not_here'):
        content['loop']['dataset'] = name
        checkpoint.save(out / 'best.pt', {k: v for k, v in content.items() if k != 'format'})
        assert name in refused('look.py', out)
    assert not (tmp_path / 'owned').exists()


# during a run -------------------------------------------------------------------------------------------------------------

def fill_disk(kilobytes, words):
    """Trains on a disk that accepts no longer file.  Returns (the sentence at the end, stdout)."""
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
def test_a_full_disk_keeps_the_checkpoint(dataset, run, kilobytes, capfd):
    """4: from the first block on, where torch raises an error of its own; 60: in the middle."""
    before = contents(run)
    assert len(before['ckpt.pt']) > 1024 * kilobytes > 2 * len(before['metrics.csv'])
    words = tiny_train(dataset, run, '--resume', '--max_iters=20', '--learning_rate=0', '--min_lr=0')   # no better best.pt
    sentence, shown = fill_disk(kilobytes, words)
    check(sentence, 'ckpt.pt could not be written', 'too large', '--out_dir')
    assert capfd.readouterr().err == '' and 'resumed at step 10' in shown
    after = contents(run)
    assert after.keys() == before.keys() and all(after[name] == before[name] for name in ('ckpt.pt', 'best.pt'))


def test_a_full_disk_while_a_row_is_logged(dataset, run):
    before = contents(run)
    words = tiny_train(dataset, run, '--resume', '--max_iters=1000', '--log_interval=1', '--eval_interval=100000')
    check(fill_disk(4, words)[0], 'metrics.csv could not be written', 'too large', '--resume')
    assert contents(run)['ckpt.pt'] == before['ckpt.pt']
    train.main(tiny_train(dataset, run, '--resume', '--max_iters=12')[1:])      # there is space again
    steps = [r['step'] for r in log.read(run / 'metrics.csv')]
    assert steps[-1] == 12 and steps == sorted(set(steps))


def test_weights_that_are_not_finite_are_not_saved(finished, tmp_path):
    content = checkpoint.load(finished / 'best.pt')
    checkpoint.save(tmp_path / 'ckpt.pt', content)
    before = contents(tmp_path)
    for value in (float('nan'), float('inf')):
        content['model']['ln_f.weight'][3] = value
        with pytest.raises(UserError, match=r'at step \d+ .*ln_f.weight'):
            checkpoint.save(tmp_path / 'ckpt.pt', content)
    assert contents(tmp_path) == before


# generation ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('words, expected', [
    (['--start', 'abcX'], "'X'"), (['--start', ''], '--start'), (['--start', 'FILE:no/such.txt'], 'no/such.txt'),
    (['--top_k=-1'], '--top_k=-1'), (['--top_p=0'], '--top_p=0'), (['--temperature=-1'], '--temperature=-1'),
    (['--seed=99999999999999999999'], '--seed=99999999999999999999'), (['--device=cuda:99'], 'cuda:99'),
    (['--pretrained', 'gpt2'], '--pretrained'),
])
def test_bad_options_of_sample(refused, finished, words, expected):
    assert expected in refused('sample.py', finished, *words)


def test_sampling_from_nothing(refused, tmp_path):
    (tmp_path / 'empty').mkdir()
    check(refused('sample.py', tmp_path / 'empty'), 'best.pt', 'ckpt.pt')


def test_a_closed_pipe_ends_sample_silently(finished):
    """As in python sample.py ... | head -1"""
    process = subprocess.Popen([sys.executable, 'sample.py', str(finished), '--max_new_tokens=100000'], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait() == 0


def test_a_prompt_file_of_an_editor_on_windows(finished, tmp_path, capsys):
    (tmp_path / 'prompt.txt').write_text('\ufeffabc', encoding='utf-8')
    script('sample.py', finished, '--start', f'FILE:{tmp_path / "prompt.txt"}', '--max_new_tokens=1')
    assert capsys.readouterr().out.startswith('abc')


def test_the_coldest_temperature_is_greedy(finished, capsys):
    coldest, cold = ((script('sample.py', finished, '--max_new_tokens=20', f'--temperature={t}'), capsys.readouterr().out)[1]
                     for t in ('1e-42', '0'))
    assert coldest == cold and len(cold) > 20
