"""bench.py windows: its record, its table and its picture, and what is left out."""

import json

import pytest
from conftest import printed

import bench
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
