"""bench.py: windows, its record, table and picture; gpu, all of whose stages run here on the CPU; memory."""

import json
import math
import re

import pytest
import torch
from conftest import TINY, printed, sentence, train_here

import bench
import train
from extras import gpu
from harness import config, formats
from race import page, tables


@pytest.mark.parametrize('memory, longest', [(2 ** 40, 512), (2 ** 20, 128)])
def test_the_cost_of_a_token_by_window(race_configs, tmp_path, monkeypatch, memory, longest):
    """Of a GPT with 1 layer of 16 channels, whose cache is 2 x 16 numbers per token, and of a PACING, whose state is constant.
    With little memory, the windows that would not fit are left out, and the output says so."""
    monkeypatch.setattr(bench, 'WINDOWS', (32, 128, 512))
    monkeypatch.setattr(bench, 'machine_memory', lambda: memory)
    out, configs = tmp_path / 'windows.json', [str(race_configs / f'{name}.py') for name in ('gpt', 'pic')]
    shown = printed(bench.main, ['windows', *configs, f'--out={out}'])
    record = json.loads(out.read_text())
    rows = {(r['name'], r['kind']): r for r in record['costs']}
    assert [*rows] == [(name, kind) for name in ('gpt', 'pic') for kind in ('forward', 'training', 'generation')]
    assert rows['gpt', 'training']['windows'] == [w for w in bench.WINDOWS if w <= longest]
    assert ('gpt, window 512: training is left out' in shown) == (longest < 512)
    gpt, pic = rows['gpt', 'generation'], rows['pic', 'generation']
    assert all(b >= 4 * 2 * 16 for b in gpt['bytes']) and pic['bytes'][-1] < pic['bytes'][0] / 2
    assert all(s > 0 for r in rows.values() for s in r['seconds'])
    time, _ = tables.costs(record)
    assert time[1][1][:2] == ['gpt', 'training'] and ('-' in time[1][1]) == (longest < 512)
    assert 'KiB per token' in tables.short(record) and record['machine'] in tables.short(record)
    page.main([str(out), str(tmp_path / 'windows.png')])
    assert (tmp_path / 'windows.png').read_bytes()[1:4] == b'PNG'


def test_a_cost_that_grows_too_fast_is_not_measured(monkeypatch):
    monkeypatch.setattr(bench, 'machine_memory', lambda: 1e6)
    row = {'kind': 'forward', 'windows': [64, 256], 'seconds': [0.01, 0.02], 'bytes': [100, 100]}      # x 8: 5.12 s, then 41 s
    assert bench.affordable(row, 1024, 41) and not bench.affordable(row, 1024, 40)
    assert not bench.affordable(row, 4096, 1000)            # 1024 was left out
    assert not bench.affordable(row | {'bytes': [100, 1000]}, 1024, 1000)
    assert bench.affordable(row | {'kind': 'generation'}, 1024, 1)


def test_all_stages(dataset, tmp_path, monkeypatch):
    """float16 fails on a CPU: its reason is kept, and it alone is measured again."""
    def run(stages=tuple(gpu.STAGES)):
        return gpu.run(plan, stages, path, 'python bench.py gpu')
    monkeypatch.setattr(gpu.processes, 'train', lambda words, folder, *more: train_here(
        [*words, *['--resume'] * (folder / 'ckpt.pt').exists()], folder))
    monkeypatch.setattr(torch, 'compile', lambda model: model)
    words = 'config/shakespeare_gpt.py', f'--dataset={dataset.name}', '--n_head=2', *TINY, '--max_iters=9'
    path, rows = tmp_path / 'gpu_x.json', {'GPT': ' '.join(['config/shakespeare_gpt.py', *TINY, '--n_head=2'])}
    plan = gpu.Plan('cpu', words, rows, steps=4, rounds=2, seconds=0.2, contract='test_shapes_and_loss and (wavenet or llama)')
    assert sentence(run).startswith(f'{path} holds the errors of formats, float16: ')
    record = json.loads(path.read_text())
    found = record['gpu']
    assert found.keys() == gpu.STAGES.keys() and record['command'] and 'torch' in record['machine']
    assert found['contract']['tests']['passed'] >= 2 and found['contract']['tests']['failed'] == []
    assert 'float32 and bfloat16' in found['formats'].pop('float16')['error'] and len(found['formats']) == 3
    for row in (*found['formats'].values(), found['recipe']['nanoGPT']):
        assert 1 < row['val_loss'] < 3 and row['tokens_per_second'] > 0
    assert found['resume']['weights'].items() >= {'steps': [4, 4], 'largest difference': 0.0}.items()
    assert max(found['ranks']['gradients'][name] for name in ('DDP', 'shards')) < 1e-6
    for stage in ('speed', 'compiled'):
        row = found[stage]['GPT']
        assert row['tflops'] > 0 and row['mfu'] is None and row['parameters'] > 1000 and row['block_size'] == 16
    shown = tables.short(record)
    assert '| GPT ' in shown and '- resume, weights: steps [4, 4], largest difference 0' in shown and record['machine'] in shown
    tried = []
    monkeypatch.setattr(gpu, 'losses', lambda plan, *words: {'tried': tried.append(words)})
    run()
    assert len(tried) == 1 and '--dtype=float16' in tried[0]
    path.write_text('[]')
    assert 'gpu_x.json is no record' in sentence(run)


@pytest.mark.parametrize('name', gpu.ROWS)
def test_the_rows_are_of_the_sizes_that_they_name(name):
    s = config.load(bench.split_words(gpu.ROWS[name]), train.TrainConfig)
    with torch.device('meta'):
        model = s.arch.Model(s.arch.Config(**{'vocab_size': 65} | s.model))
    expected = {'124 M': 124.4e6, '129 M': 129e6, 'recipe': 10.7e6}[name.rpartition(', ')[2]]
    assert abs(math.log(sum(p.numel() for p in model.parameters()) / expected)) < 0.2
    assert train.split_batch(s.train, model.config.block_size, 1)[0] == 1


def test_every_measurement_has_a_record(race_configs, tmp_path, monkeypatch):
    """Mamba's scan, a layer of piecewise polynomials, and generation in each format."""
    monkeypatch.setattr(bench, 'SCANS', ((1, 8, 16, 4), (2, 4, 16, 4)))
    monkeypatch.setattr(bench, 'LAYERS', ((4, 5, 2, 8, False), (4, 5, 2, 8, True), (5, 5, 3, 2, True)))
    for words, column, rows in ((['scan', '--rounds=1'], 'plain, ms', 2), (['links', '--rounds=1'], 'gathered, MiB', 3),
                                (['generate', race_configs / 'gpt.py', '--tokens=3'], 'float32', 2)):
        shown = printed(bench.main, [*words, f'--out={tmp_path}/x.json'])
        record = json.loads((tmp_path / 'x.json').read_text())
        assert len(record['rows']) == rows and all(row[column] > 0 for row in record['rows'])
        assert record['command'] == f'python bench.py {" ".join(map(str, words))}'
        table = tables.short(record).split('\n\n')[0]
        assert table in shown and re.fullmatch(r'(\| -+:? )(\| -+: )+\|', table.splitlines()[1])   # ':' alone is no Markdown
    assert {'as trained', 'int8'} <= record['rows'][1].keys() or not formats.has_int8(torch.device('cpu'))


def test_memory_of_a_step(race_configs, tmp_path):
    """16 bytes a parameter, and 2 for its copy; checkpointing keeps less of a window; a part of it on each rank."""
    size = ['--n_layer=8', '--n_embd=512', '--block_size=512']
    shown = printed(bench.main, ['memory', race_configs / 'gpt.py', *size, '--ranks=4', '--out', tmp_path / 'memory.json'])
    record = json.loads((tmp_path / 'memory.json').read_text())
    assert tables.short(record).startswith(shown.strip()) and 'memory.json' not in record['command']
    plain, again = record['rows']
    assert [row['checkpointing'] for row in (plain, again)] == ['no', 'yes']
    states, copies, window, one, each = (plain[k] for k in plain if k.endswith('GiB'))
    N = again['parameters']
    assert states == 16 * N / 2 ** 30 and each < one == states + copies + window
    assert copies == pytest.approx(states / 8, abs=0.006) and 0 <= again['copies, GiB'] < copies
    assert 0 < again['a window, GiB'] < window / 2
    expected = 6 * (N - 512 * 512) + 12 * 8 * 512 * 512       # and of attention
    assert plain['GFLOPs a token'] == again['GFLOPs a token'] == pytest.approx(expected / 1e9, rel=0.03)
