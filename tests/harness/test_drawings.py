"""harness/drawings.py: images from patches and back, and runs of the two stages of DALL-E from their data to their pictures."""

import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import names, script, sentence
from PIL import Image

import look
import sample
import views.drawings
from extras import drawn
from harness import checkpoint, data, log
from harness.drawings import draw, ranker, set_guidance, to_images
from prepare import shapes
from tests.harness.test_captions import go, module_root  # noqa: F401 (a fixture)
from views.drawings import strips


@pytest.fixture(scope='module')
def runs(module_root):  # noqa: F811
    """{name of an architecture: the folder of a run on data/shapes}."""
    folders = {arch: module_root / arch for arch in ('dvae', 'dalle', 'clip')}
    more = {'dvae': ['--codes=9'], 'dalle': [f'--vae={folders["dvae"]}'], 'clip': []}
    for arch, folder in folders.items():
        go(arch, folder, '--max_iters=6', *more[arch], without=['block_size', 'n_head'])
    return folders


def test_patches_become_images_again_and_losses(module_root):  # noqa: F811
    found = data.open_data('shapes', modality='patches', patch=8)
    x, y = found.batch('val', np.arange(7), None)
    assert x is y and found.model_settings() == {'block_size': 16, 'features': 192}
    assert np.array_equal(to_images(x, found.meta, 8), found.splits['val'][0][:7])
    metrics = found.total([found.score(x[part] + 0.1, x[part], y[part]) for part in (slice(4), slice(4, 7))])
    plain = np.mean([(0.1 * deviation / 255) ** 2 for deviation in found.meta['standard'][1]])
    assert metrics == pytest.approx({'val_loss': 0.01, 'psnr': -10 * math.log10(plain)}, rel=1e-4)
    found = data.open_data('shapes', modality='drawings', patch=8)
    T, y = found.model_settings()['block_size'], torch.tensor([[1, 2, -1], [3, -1, -1]])
    losses = torch.zeros(2, T + 16)
    losses[:, :3], losses[:, T:] = torch.tensor([[1.0, 2, 0], [6, 0, 0]]), 0.5
    assert found.total([found.score(losses, None, y)]) == {'val_loss': 0.5, 'image_loss': 0.5, 'text_loss': 3.0}


def test_runs_end_with_their_pictures(runs):
    assert (runs['dvae'] / 'rebuilt.png').stat().st_size > 2000 and (runs['dalle'] / 'samples.png').stat().st_size > 2000
    assert {'psnr', 'perplexity'} <= log.read(runs['dvae'] / 'metrics.csv')[-1].keys()
    for arch, files in (('dvae', ['codes.png', 'rebuilt.png']), ('dalle', ['samples.png'])):
        look.main([str(runs[arch])])
        assert names(runs[arch] / 'look') == files


def test_images_are_drawn_and_ranked(runs, tmp_path, capsys, monkeypatch):
    path, shown = tmp_path / 'grid.png', []
    monkeypatch.setattr(views.drawings, 'strips', lambda *args: shown.extend(zip(*args, strict=True)) or strips(*args))
    (tmp_path / 'caption.txt').write_text('a red\ncircle\n')
    sample.main([str(runs['dalle']), f'--start=FILE:{tmp_path}/caption.txt', '--start=a blue square', '--num_samples=3',
                 f'--out={path}', f'--rerank={runs["clip"]}'])
    assert [text for _, text in shown] == ['a red circle', 'a blue square']
    assert capsys.readouterr().out == f'{path}\n' and path.stat().st_size > 2000
    for row, text in shown:                                                         # the best first
        scores = ranker([text] * 3, runs['clip'], (32, 32, 3), 'cpu')(np.stack(list(row))).tolist()
        assert scores == sorted(scores, reverse=True) and len(set(scores)) > 1
    model, content = checkpoint.load_model(runs['dalle'])
    y = torch.tensor([[1, 2], [3, 4], [1, 2]])
    one, two = (draw(model, rows, content['data'], 8, seed=seed) for rows, seed in ((y, 0), (y[1:], 1)))
    set_guidance(model, 1000.0)         # after two steps a caption hardly matters
    assert not np.array_equal(draw(model, y, content['data'], 8), one)
    set_guidance(model, 1.0)
    assert one.shape == (3, 32, 32, 3) and one.dtype == np.uint8
    assert np.array_equal(one[1:], two) and not np.array_equal(one[0], one[2])      # by its seed, not by its neighbours
    three, alone = (ranker(texts, runs['clip'], (32, 32, 3), 'cpu') for texts in (
        ['a red circle', 'a blue square', 'a red circle'], ['a blue square']))
    torch.testing.assert_close(three(one)[1:2], alone(one[1:2]))


def test_what_is_true_is_counted(runs, monkeypatch, capsys):
    """Of a model that draws the pictures of the data set."""
    found = data.open_data('shapes', modality='drawings', patch=8)
    monkeypatch.setattr(drawn, 'draw', lambda model, y, *_, top_p, seed: np.concatenate([
        found.splits['test'][0][[list(map(found.text, found.captions['test'])).index(found.text(row))]] for row in y]))
    drawn.main([str(runs['dalle']), '--captions=2', '--samples=2', '--guidance=3', f'--rerank={runs["clip"]}'])
    record = json.loads((runs['dalle'] / 'drawn.json').read_text())
    assert (record['guidance'], record['top_p']) == (3, 0.9)
    assert {row['part'] for row in record['groups']} == {'seen', 'held out'}
    assert all(row['true'] == row['reranked'] == 1 for row in record['groups'])
    assert all(row['floor'] < 1 for row in record['groups'] if row['captions'] > 1)
    assert 'seen, 1 shape: of ' in capsys.readouterr().out
    model, plain = checkpoint.load_model(runs['dalle'])[0].vae, data.open_data('shapes', modality='patches', patch=8)
    assert record['codebook']['pictures'] == len(plain.splits['test'][0])
    x, _ = plain.examples('test', np.arange(record['codebook']['pictures']))
    expected = plain.total([plain.score(model(x)[0], x, x)])['psnr']
    assert record['codebook']['psnr'] == pytest.approx(expected, abs=0.5)           # it rounds and clips the values of pixels
    judged, real = [], drawn.rebuild
    monkeypatch.setattr(drawn, 'rebuild', lambda model, own, indices: judged.append([*indices]) or real(model, own, indices))
    monkeypatch.setattr(drawn, 'PICTURES', 2)
    drawn.codebook(checkpoint.load_model(runs['dalle'])[0], found)
    assert judged == [[0, len(x) - 1]]                  # of all parts of the test split
    assert record['codebook']['perplexity'] == pytest.approx(model.metrics()['perplexity'], rel=1e-6)
    assert [shapes.count(text) for text in ('a red circle', 'a small red circle above a blue square')] == [1, 2]


@pytest.mark.parametrize('arch, more, said', [
    ('dalle', [], '--start'), ('dalle', ['--start='], '--start is empty'), ('dalle', ['--start=a', '--eval'], '--eval'),
    ('dalle', ['--start=' + 'a red circle ' * 20], 'a red circle.*tokens'), ('dvae', ['--start=a'], 'writes no text'),
    ('dalle', ['--start=a', '--rerank=dvae'], "arch='dvae'"), ('dalle', ['--start=a', '--rerank=nowhere'], 'nowhere'),
    ('dalle', ['--start=FILE:nowhere.txt'], 'nowhere.txt'),
    ('dalle', ['--start=a', '--out=/nowhere/x.png'], '/nowhere'), ('dalle', ['--start=a', '--guidance=-1'], 'guidance=-1'),
    ('dalle', ['--start=a', '--guidance=inf'], 'guidance=inf'), ('dalle', ['--start=a', '--guidance=nan'], 'guidance=nan'),
    ('dalle', ['--start=a', '--num_samples=10000000000'], 'num_samples'),
    ('clip', ['--rerank=x', '--labels=a'], '--rerank')])
def test_bad_input(runs, monkeypatch, arch, more, said):
    monkeypatch.chdir(runs['dvae'].parent)
    if '--rerank' in ''.join(more):         # it is refused before anything is drawn
        monkeypatch.delattr(sample, 'draw')
    assert re.search(said, sentence(sample.main, [str(runs[arch]), *more]))


def test_bad_settings(runs, module_root, tmp_path):  # noqa: F811
    script('prepare/shapes.py', '--examples=60', '--name=others')
    for more, said in (([f'--vae={tmp_path}/gone'], f'cannot be loaded.*{tmp_path}/gone'),
                       ([f'--vae={runs["clip"]}'], "arch='clip'"),
                       ([f'--vae={runs["dvae"]}', '--patch=4'], 'block_size=16.*64'),
                       ([f'--vae={runs["dvae"]}', '--dataset=others'], 'other images than those of data/others'),
                       (['--dataset=shapes', '--text_weight=2'], 'text_weight=2')):
        assert re.search(said, sentence(go, 'dalle', tmp_path / 'x', '--dry_run', *more, without=['block_size', 'n_head']))
    (tmp_path / 'wide').mkdir()
    for i in range(12):
        Image.new('RGB', (16, 8), (20 * i, 0, 0)).save(tmp_path / 'wide' / f'{i}.png')
    script('prepare/pictures.py', 'wide', str(tmp_path), '--classes')
    assert '16 x 8 pixels' in sentence(data.open_data, 'wide', modality='patches', patch=4)
    for command, words, said in ((look, ['dalle', '--prompt=a'], '--prompt'), (drawn, ['dvae'], 'draws no images'),
                                 (drawn, ['dalle', '--captions=0'], '--captions=0'),
                                 (drawn, ['dalle', '--temperature=nan'], '--temperature=nan')):
        assert said in sentence(command.main, [str(runs[words[0]]), *words[1:]])
