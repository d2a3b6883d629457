"""extras/abilities.py: a table and a picture of rivals by tasks, on tiny networks, and what it refuses."""

import json

import pytest
from conftest import printed, sentence, train_here

pytest.importorskip('optuna', reason='sweep.py searches with it')
import sweep
from extras import abilities
from race import tables

SMALL = ['config/shakespeare_gpt.py --n_layer=1 --n_embd=16', 'config/shakespeare_mamba.py --n_layer=1 --n_embd=8']


def test_rivals_by_tasks(prepare, tmp_path, monkeypatch):
    """Every cell is the test accuracy of the trial with the lowest validation loss; a second command adds a rival."""
    for task in ('copying', 'parity'):
        prepare(f'{task}.py', '--length=8', '--examples=100', f'--name=tiny_{task}')
    trained = []
    monkeypatch.setattr(sweep, 'train', lambda words, folder, *_: trained.append(folder.name) or train_here(words, folder))
    words = ['--tasks=tiny_copying,tiny_parity', '--rates=1e-3,1e-2', '--steps=3', '--examples=100', f'--out={tmp_path}']
    shown = [printed(abilities.main, [*rivals, *words]) for rivals in (SMALL[:1], SMALL)][1]
    assert len(trained) == 8 and (tmp_path / 'abilities.png').exists()
    record = json.loads((tmp_path / 'abilities.json').read_text())
    assert [r['name'] for r in record['rivals']] == SMALL and record['abilities']['tiny_parity']['trained'] == 8
    for rival in record['rivals']:
        for task, cell in rival['tasks'].items():
            folder = tmp_path / f'{task}-{abilities.slug(rival["name"])}'
            best = min(json.loads((folder / 'results.json').read_text())['trials'], key=lambda t: t['val_loss'])
            parts = json.loads((folder / f'trial-{best["number"]}' / 'test.json').read_text())['parts']
            assert [*parts] == ['2', '4', '8', '12', '16']
            assert cell['accuracy'] == {n: part['accuracy'] for n, part in parts.items()}
            assert (cell['rate'], cell['val_loss']) == (best['values']['learning_rate'], best['val_loss'])
            both = ', '.join(f'{100 * parts[n]["accuracy"]:.0f}' for n in ('8', '16'))
            assert f' {both} |' in shown.partition(f'| {rival["name"]}')[2].partition('\n')[0]
    assert '| chance' in tables.short(record) and record['machine'] in tables.short(record)


@pytest.mark.parametrize('words, part', [
    (['--steps=0'], '--steps=0'), (['config/shakespeare_gpt.py --block_size=64'], '--block_size=64'),
    (['--tasks=absent'], 'absent'), (['--rates=0.1'], 'learning_rate'), (['--rates=0,1'], '--rates=0,1'),
    (['--rates=1,1'], 'different')])
def test_bad_words(words, part, prepare, tmp_path):
    prepare('parity.py', '--length=16', '--examples=20')
    assert part in sentence(abilities.main, ['--tasks=parity', f'--out={tmp_path}', *words])
