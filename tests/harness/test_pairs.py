"""harness/pairs.py and its prepare scripts: what is written and read, and a run from its data to its pictures."""

import datetime
import json
import re

import numpy as np
import pytest
import torch
from conftest import resumes, sentence, tiny_run

import look
import sample
import train
from harness import SPLITS, data, device
from transformer import Config, Model


@pytest.fixture
def reverse(prepare):
    prepare('reverse.py', '--letters=4', '--longest=5', '--examples=300')
    return data.open_data('reverse')


def texts(pairs):
    """The pairs of each split."""
    return [[(pairs.text(s), pairs.text(t)) for s, t in zip(*pairs.splits[split], strict=True)] for split in SPLITS]


def test_reverse(reverse):
    assert [len(pairs) for pairs in texts(reverse)] == [300, 30, 30]
    found = [pair for pairs in texts(reverse) for pair in pairs]
    assert all(t == s[::-1] for s, t in found) and len({s for s, _ in found}) == 360
    assert reverse.model_settings() == {'vocab_size': 5, 'source_size': 5, 'block_size': 6}


def test_dates(prepare):
    """A day is in one split; with dots the day comes first, with slashes the month."""
    prepare('dates.py', '--examples=400')
    splits = texts(data.open_data('dates'))
    assert sum(len({t for _, t in pairs}) for pairs in splits) == len({t for pairs in splits for _, t in pairs})
    for source, target in splits[0]:
        date = datetime.date.fromisoformat(target)
        digits = [int(n) for n in re.findall(r'\d+', source)]
        assert {date.year, date.day} <= {*digits} and (f'{date:%b}'.lower() in source.lower() or date.month in digits), source
        if '.' in source or ('/' in source and not source.startswith(str(date.year))):
            assert digits[:2] == [date.day, date.month][::1 if '.' in source else -1]


def test_batches(reverse):
    """Every step has pairs of similar lengths, all are drawn equally often, and a batch is as long as its longest."""
    counts, waste, rank = np.zeros(300, int), [], np.argsort(reverse.order)
    for step in range(400):
        indices = reverse.train_indices(8, 6, 1, step)
        counts[indices] += 1
        assert np.ptp(rank[indices]) < 200, 'the shortest and the longest pairs are in one step'
        source, y = reverse.batch('train', indices, None)
        assert ((y == 4).sum(1) == 1).all() and (source[:, 0] >= 0).all()
        assert (source >= 0).any(0).all() and (y >= 0).any(0).all()
        waste.append((y < 0).float().mean().item())
    assert np.array_equal(reverse.train_indices(8, 6, 1, 399), indices)
    assert counts.min() > 0 and counts.std() < 1.5 * counts.mean() ** 0.5 and np.mean(waste) < 0.15


def test_scores(reverse):
    """Teacher-forced accuracy is that of greedy decoding; the loss is that of each token."""
    torch.manual_seed(0)
    model = Model(Config(**reverse.model_settings(), n_embd=32))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(120):
        model(*reverse.batch('train', reverse.train_indices(64, 6, 0, step), model))[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    indices, right, losses = reverse.val_indices(0, 6), [], []
    made = model.eval().decode(reverse.batch('val', indices, model)[0])
    for s, t, ids in zip(*map(torch.tensor, reverse.splits['val']), made, strict=True):
        s, t, ids = (row[row >= 0].long() for row in (s, t, ids))
        right.append(torch.equal(ids, t[:-1]))
        losses += (-model(s[None], t[None])[0][0].log_softmax(-1)[range(len(t)), t]).tolist()
    found = train.evaluate(model, reverse, indices, 7, device.setup('cpu', 'float32', False))
    assert found['accuracy'] == pytest.approx(np.mean(right)) and 0 < np.mean(right) < 1
    assert found['val_loss'] == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_run(prepare, tmp_path, capsys):
    """Training, resuming to the same weights, the test split, a source to write, a picture."""
    prepare('reverse.py', '--letters=3', '--longest=3', '--examples=20')

    def run(folder, *more):
        tiny_run('reverse', folder, '--arch=transformer', '--dropout=0.1', '--schedule=constant', *more, without=['block_size'])
    run(one := tmp_path / 'one', '--max_iters=10')
    assert (printed := capsys.readouterr().out).count(' -> ') == 2 and 'whole targets right' in printed
    found = json.loads((one / 'test.json').read_text())
    assert found['examples'] == 2 and {'accuracy', 'test_loss', 'chance'} <= found.keys()
    resumes(run, tmp_path / 'two', one)
    capsys.readouterr()
    for beams in (1, 3):
        sample.main([str(one), '--start=ab', '--start=c', f'--beams={beams}'])
    assert len(capsys.readouterr().out.splitlines()) == 4
    for words in ([], ['--prompt=ab']):
        look.main([str(one), *words])
    assert (one / 'look' / 'cross_attention.png').stat().st_size > 5000
    for words, said in (([], '--start'), (['--start=abca'], '4 tokens'), (['--fill=[MASK]'], '--start'),
                        (['--start=a', '--beams=1000000000'], '--beams=1000000000')):
        assert said in sentence(sample.main, [str(one), *words])


def test_own_pairs(prepare, root, capsys):
    """All targets of a source are in one split, and repeated pairs are used once."""
    lines = [f'{"ab" * (i % 7 + 1)}{i}\t{i}' for i in range(40)] + ['x0\ty', 'x0\tz', 'x0\ty', '']
    (root / 'pairs.tsv').write_text('\n'.join(lines))
    prepare('pairs.py', 'mine', root / 'pairs.tsv')
    found = [{*pairs} for pairs in texts(data.open_data('mine'))]
    assert set().union(*found) == {tuple(line.split('\t')) for line in lines[:-2]} and sum(map(len, found)) == 42
    assert {('x0', 'y'), ('x0', 'z')} in [{p for p in part if p[0] == 'x0'} for part in found]
    assert '1 pairs occur more than once' in capsys.readouterr().out


@pytest.mark.parametrize('line, said', [
    ('abc', 'line 21 has 1 columns'), ('a\tb\tc', 'line 21 has 3 columns'), ('\tb', 'line 21 has an empty source'),
    ('a\t ', 'line 21 has an empty target'), ('a\t' + 'b' * 201, 'line 21 has 201 characters.*--longest=200')])
def test_bad_lines(refused, root, line, said):
    (root / 'bad.tsv').write_text('\n'.join([*(f'{i}\t{i}' for i in range(20)), line]))
    assert re.search(said, refused('prepare/pairs.py', 'bad', root / 'bad.tsv')) and not (root / 'data' / 'bad').exists()


def test_bad_data(reverse, refused, root):
    (root / 'few.tsv').write_text('a\tb\nc\td')
    for script, words, said in (('pairs', ['few', root / 'few.tsv'], '2 different sources'),
                                ('dates', ['--examples=80000'], '--examples=80000')):
        assert said in refused(f'prepare/{script}.py', *words)
    for words, said in ((['--arch=model'], 'shakespeare_char'), (['--arch=transformer', '--block_size=9'], 'block_size=9'),
                        (['--arch=transformer', '--leaking_split'], 'leaking_split')):
        assert said in sentence(train.main, ['--dataset=reverse', '--out_dir=out/x', '--dry_run', '--device=cpu', *words])
    rows = np.load(path := reverse.folder / 'val_target.npy')
    for broken in (rows[1:], rows + 9, rows.astype(np.int64)):
        np.save(path, broken)
        assert 'val_target.npy' in sentence(data.open_data, 'reverse')
