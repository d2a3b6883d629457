"""Pictures as texts of pixels: the palette, prepare/pixels.py, windows, a run from its data to its pictures, and bad input."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import sentence, tiny_run
from PIL import Image

import bert
import look
import model as gpt
import sample
import train
from extras import probe
from harness import SPLITS, data, log, palette
from harness.arch import complete
from harness.tokenizer import Tokenizer, same
from prepare import pixels
from prepare.common import write_images
from race import tables
from tests.harness.test_images import squares

W, H, T = 6, 4, 24
COLOURS = [[0, 0, 0], [90, 90, 90], [255, 0, 0], [255, 255, 255]]
SPEC = {'kind': 'palette', 'colours': COLOURS, 'width': W, 'height': H}


def write_pictures(shape=(2 * H, 2 * W, 3), counts=(60, 12, 12)):
    """data/pictures, whose left or right half is light, which is their class."""
    splits = squares(counts, shape, (1, 2))
    write_images('pictures', splits, {'name': 'made-up pictures'}, 'pictures.py', ['left', 'right'])
    return splits


@pytest.fixture
def made(prepare):
    """data/tiny: pictures of 6 x 4 pixels in 5 colours.  Returns the images that it was made from."""
    splits = write_pictures()
    prepare('pixels.py', 'tiny', 'pictures', f'--size={W}', '--colours=5')
    return splits


def test_palette():
    """Of tokens to a picture and back, as text, and the start, which is in no picture."""
    tokenizer, ids = Tokenizer(SPEC), np.random.default_rng(0).integers(4, size=T).tolist()
    picture = palette.picture(ids, SPEC)
    assert picture.shape == (H, W, 3) and palette.tokens(picture[None], SPEC)[0].tolist() == ids
    assert tokenizer.n_vocab == 4 and tokenizer.length == T and tokenizer.begin() == [4]
    lines = tokenizer.decode([4, *ids]).splitlines()
    assert len(lines) == H and all(len(line) == 2 * W for line in lines)
    assert tokenizer.token_bytes(2) == b'#ff0000'
    part = palette.picture([4, *ids[:9]], SPEC).reshape(T, 3)
    assert part[:9].tolist() == picture.reshape(T, 3)[:9].tolist() and (part[9:] == palette.UNKNOWN).all()
    other = SPEC | {'colours': [*COLOURS[:3], [255, 255, 254]]}
    assert same(SPEC, SPEC | {'width': H, 'height': W}) and not same(SPEC, other)


@pytest.mark.parametrize('change', [
    {'colours': [[0, 0, 0], [0, 0, 0]]}, {'colours': [[0, 0, 256], [0, 0, 0]]}, {'colours': [[0, 0], [1, 1]]}, {'width': 0},
    {'colours': ['ab']}, {'colours': [[0, 0, 0]]}, {'height': '4'}, {'colours': [[0.5, 0, 0], [0, 0, 0]]}])
def test_no_palette(change):
    with pytest.raises(ValueError, match=r'colours|pixels|height'):
        Tokenizer(SPEC | change)


def test_nearest_colour():
    rng = np.random.default_rng(0)
    pixels_, colours = rng.integers(256, size=(3000, 3), dtype=np.uint8), rng.integers(256, size=(40, 3), dtype=np.uint8)
    distance = np.square(pixels_[:, None].astype(int) - colours.astype(int)).sum(-1)
    assert np.array_equal(palette.nearest(pixels_, colours), distance.argmin(1))
    grey = SPEC | {'colours': [[v] * 3 for v in (0, 100, 200)], 'width': 2, 'height': 1}
    assert palette.tokens(np.array([[[[255, 0, 0], [0, 255, 0]]]], np.uint8), grey).tolist() == [[1, 1]]    # 76 and 150
    greys, primaries = grey | {'colours': [[v] * 3 for v in range(256)]}, 255 * np.eye(3, dtype=np.uint8)
    assert palette.tokens(primaries[None, None], greys).tolist() == [[76, 150, 29]]
    assert palette.tokens(np.array([[[[30], [190]]]], np.uint8), grey).tolist() == [[0, 2]]


@pytest.mark.parametrize('size', [(4, 6), (2, 3), (5, 4), (3, 5), (1, 1)])
def test_area_averages(size):
    """As the mean of the image enlarged to a common multiple of both sizes; the mean of the whole stays."""
    image = np.random.default_rng(0).integers(256, size=(2, 4, 6, 3)).astype(np.uint8)
    large = image.repeat(size[0], 1).repeat(size[1], 2).astype(float)               # (2, 4 * h, 6 * w, 3)
    expected = large.reshape(2, size[0], 4, size[1], 6, 3).mean((2, 4))
    assert np.abs(palette.resize(image, size[1], size[0]) - expected).max() <= 0.5 + 1e-9


def test_kmeans():
    """Clouds of colours give their centres; in general each colour is the mean of the pixels nearest to it."""
    rng, centres = np.random.default_rng(0), np.array([[20, 20, 20], [200, 30, 30], [40, 60, 220], [230, 230, 230]])
    clouds = (centres[rng.integers(4, size=4000)] + rng.integers(-9, 10, (4000, 3))).astype(np.uint8)
    assert np.abs(pixels.kmeans(clouds, 4).astype(int) - centres[[0, 2, 1, 3]]).max() <= 2
    some = rng.integers(256, size=(5000, 3), dtype=np.uint8)
    colours = pixels.kmeans(some, 9, rounds=500)
    own = np.square(some[:, None].astype(int) - colours.astype(int)).sum(-1).argmin(1)
    assert np.abs(np.stack([some[own == i].mean(0) for i in range(9)]) - colours).max() < 2.5
    assert np.array_equal(colours, pixels.kmeans(some, 9, rounds=500))
    few = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]], np.uint8)
    assert pixels.kmeans(few.repeat(5, 0), 3).tolist() == few.tolist()


def test_windows_are_pictures(made):
    """Those of the images, in order, for models that write pixels, fill them in or name classes; losses are over all pixels."""
    spec = (text := data.open_data('tiny')).tokenizer.spec
    expected = {s: palette.tokens(palette.resize(made[s]['x'], W, H), spec) for s in SPLITS}
    assert text.vocab_size == 6 and text.model_settings() == {'vocab_size': 6, 'block_size': T} and len(spec['colours']) == 5
    for step in range(30):
        starts = text.train_indices(8, T, 1, step)
        x, y = text.windows('train', starts, T)
        assert (starts % (T + 1) == 0).all() and np.array_equal(y, expected['train'][starts // (T + 1)])
        assert (x[:, 0] == 5).all() and torch.equal(x[:, 1:], y[:, :-1]) and (y < 5).all()
    assert np.array_equal(text.windows('val', text.val_indices(0, T), T)[1], expected['val'])
    assert text.val_indices(3, T).tolist() == [0, 6 * (T + 1), 11 * (T + 1)] and len(text.val_indices(99, T)) == 12
    memory, _ = text.windows('val', text.val_indices(3, T), T, before=7)
    assert (memory[:, :7] == -1).all() and (memory[:, 7] == 5).all(), 'the picture before is no context'
    masked, model = data.open_data('tiny', modality='masked text'), bert.Model(bert.Config(block_size=T, vocab_size=7))
    assert masked.model_settings() == {'vocab_size': 7, 'block_size': T}
    x, y = masked.batch('val', masked.val_indices(0, T), model)
    assert np.array_equal(torch.where(y >= 0, y, x), expected['val']) and (x == 6).sum() > 20 and (x != 5).all()
    task = data.open_data('tiny', modality='task')
    for split in SPLITS:
        x, y = task.examples(split, np.arange(len(made[split]['y'])))
        assert np.array_equal(x[:, 1:], expected[split][:, :-1]) and (x[:, 0] == 5).all()
        assert y.tolist() == made[split]['y'].tolist()
    assert task.model_settings() == {'block_size': T, 'vocab_size': 6, 'features': 0, 'outputs': 2, 'kind': 'classify'}
    assert len({d.fingerprint for d in (text, masked, task)}) == 1
    x, y = text.windows('val', text.val_indices(3, T), T)
    found = text.total([text.score(torch.zeros(3, T, 6), x, y)])        # all 6 tokens have the same chance
    assert found['val_loss'] == pytest.approx(np.log(6)) and found['bits_per_dimension'] == pytest.approx(np.log2(6))
    assert 'val_loss_full' not in found and '2.585' in text.format_metrics(found)
    # a ninth of the training pictures can validate, and no picture is cut
    whole, at = text.tokens['train'].tolist(), 53 * (T + 1)
    for modality in ('text', 'masked text'):
        tune = data.open_data('tiny', modality=modality, validate='tune')
        assert [tune.tokens[split].tolist() for split in ('train', 'val')] == [whole[:at], whole[at:]]
        assert len(whole) == 60 * (T + 1) and len(tune.val_indices(0, T)) == 7


def test_no_picture_is_in_two_splits(prepare, capsys):
    splits = write_pictures(counts=(30, 12, 12))
    for split in ('val', 'test'):
        splits[split]['x'][:3] = splits['train']['x'][5:8]
    write_images('twice', splits, {'name': 'made-up pictures'}, 'pictures.py', ['left', 'right'])
    prepare('pixels.py', 'few', 'twice', '--grey=4', f'--size={W}')
    assert 'left out' in capsys.readouterr().out
    task = data.open_data('few', modality='task')
    seen = {split: {row.tobytes() for row in task.splits[split][0]} for split in SPLITS}
    assert not seen['train'] & (seen['val'] | seen['test']) and len(task.splits['test'][0]) == 9
    assert task.splits['test'][1].tolist() == splits['test']['y'][3:].tolist()
    assert data.open_data('few').tokenizer.spec['colours'] == [[0] * 3, [85] * 3, [170] * 3, [255] * 3]


def test_damaged_data(made):
    folder = data.local('tiny')
    meta, tokens = json.loads((folder / 'meta.json').read_text()), (folder / 'train.bin').read_bytes()
    spec = meta['tokenizer']
    for name, change, words in (
            ('meta.json', {'tokenizer': spec | {'width': W + 1}}, 'pictures of 28 pixels'), ('val_y.npy', b'', 'val_y.npy'),
            ('meta.json', {'tokenizer': spec | {'colours': COLOURS}}, 'vocab_size=6'), ('test.bin', b'', 'test.bin'),
            ('meta.json', {'tokenizer': spec | {'colours': 7}}, 'colours'), ('meta.json', {'labels': None}, 'without classes'),
            ('train.bin', tokens[2:] + tokens[:2], 'train.bin is not made of pictures')):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(change if isinstance(change, bytes) else json.dumps(meta | change).encode())
        assert words in sentence(data.open_data, 'tiny', False, 'task')
        (folder / name).write_bytes(whole)
    (folder / 'test.bin').unlink()
    assert data.open_data('tiny'), 'a language model does not read it'


@pytest.mark.parametrize(('words', 'part'), [
    (['new', 'pictures', '--colours=1'], '--colours=1'), (['new', 'pictures', '--grey=257'], '--grey=257'),
    (['new', 'pictures', '--colours=4000'], '--colours=4000'), (['new', 'pictures', '--size=13'], '--size=13'),
    (['new', 'pictures', '--grey=8', '--colours=8'], '--grey'), (['new', 'absent'], 'absent'), (['tiny', 'pictures'], 'tiny'),
    (['new', 'tiny'], 'tiny has no images'), (['../new', 'pictures'], '../new'), (['new', 'pictures', '--size=0'], '--size')])
def test_bad_arguments(made, prepare, words, part):
    if words[-1] == '--colours=4000':       # more than the few pictures have
        write_pictures(shape=(2, 2, 1))
    assert part in sentence(prepare, 'pixels.py', *words) and not data.local('new').exists()


@pytest.fixture
def run(made, tmp_path):
    tiny_run('tiny', tmp_path / 'run', '--max_iters=10', f'--block_size={T}', '--sample_tokens=3')
    return tmp_path / 'run'


def test_a_run(run, capsys):
    """Its log, a sample in the terminal, completions that keep what was given, dreams, pictures, and the second stage."""
    assert 'bits_per_dimension' in log.read(run / 'metrics.csv')[-1]
    spec, half = data.open_data('tiny').tokenizer.spec, run / 'half.png'
    Image.fromarray(palette.picture(range(5), spec)[:2].repeat(3, 0).repeat(3, 1)).save(half)       # 18 x 6 pixels: 2 of 4 rows
    (given,) = palette.tokens(np.asarray(Image.open(half).resize((W, 2), Image.NEAREST))[None], spec)
    capsys.readouterr()
    sample.main([str(run), '--start', f'FILE:{half}', '--num_samples=3', '--out', str(run / 'grid.png'), '--device=cpu'])
    assert '3 pictures' in (printed := capsys.readouterr().out) and str(run / 'grid.png') in printed
    grid, scale = np.asarray(Image.open(run / 'grid.png')), palette.SIDE // W
    middles = palette.GAP + scale // 2 + scale * np.arange(W)
    cells = [grid[np.ix_(middles[:H], middles + i * (W * scale + palette.GAP))] for i in range(4)]
    assert all(palette.tokens(cell[None, :2], spec).ravel().tolist() == given.tolist() for cell in cells)
    assert (cells[0][2:] == palette.UNKNOWN).all()
    assert all({tuple(c) for c in cell.reshape(T, 3).tolist()} <= {*map(tuple, spec['colours'])} for cell in cells[1:])
    sample.main([str(run), '--eval', '--device=cpu'])
    assert 'val_loss (bits)' in (printed := capsys.readouterr().out) and 'val_loss_full (nats)' not in printed
    sample.main([str(run), '--num_samples=5', '--device=cpu'])
    assert str(run / 'sample.png') in capsys.readouterr().out and Image.open(run / 'sample.png').size[0] > 3 * W * scale
    look.main([str(run), '--device=cpu'])
    assert {p.stem for p in (run / 'look').iterdir()} == {'completions', 'surprise', 'pixels', 'influence', 'attention'}
    assert 'left out' not in capsys.readouterr().out
    probe.main([str(run), '--device=cpu'])
    record = json.loads((run / 'probe.json').read_text())
    found = record['probe']
    assert re.findall(r'\| 1 +\| +([\d.]+%) \| +([\d.]+%) \|', tables.short(record)) == [
        (f'{found["trained"][1]:.1%}', f'{found["untrained"][1]:.1%}')]
    assert len(found['trained']) == len(found['untrained']) == 3 and (run / 'probe.png').exists()
    assert found['chance'] == 0.5 and found['pixels'] == 1 and min(found['trained'][1:]) > 0.8
    train.main(['--arch=fpt', '--dataset=tiny', f'--trunk={run}', '--mode=upt', '--keep_embedding=True', '--dropout=0.0',
                f'--out_dir={run}_fpt', '--max_iters=2', '--batch_size=4', '--device=cpu', '--eval_windows=4'])
    assert json.loads((run.parent / 'run_fpt' / 'test.json').read_text())['examples'] == 12
    look.main([f'{run}_fpt', '--only=wrong,confusion', '--device=cpu'])


@pytest.mark.parametrize('arch, more, shown', [
    ('pacing', [f'--columns={W}'], 'picture'), ('bert', [], 'pixels'), ('wavenet', [f'--join={T}'], 'surprise')])
def test_other_models(made, tmp_path, arch, more, shown):
    """Each makes pictures, or fills them in, and has its pictures and a probe."""
    made = tiny_run('tiny', tmp_path, f'--arch={arch}', '--max_iters=2', *more, without=['block_size', 'n_head'])
    assert made['config']['block_size'] == T
    look.main([str(tmp_path), '--device=cpu', f'--only={shown}'])
    assert (tmp_path / 'look' / f'{shown}.png').exists()
    if arch == 'bert':
        assert 'completions' in sentence(look.main, [str(tmp_path), '--device=cpu', '--only=completions'])
        Image.new('RGB', (W, 2)).save(half := tmp_path / 'half.png')
        for words in ([], ['--automaton', f'--start=FILE:{half}'], ['--fill=[MASK]']):
            assert f'python look.py {tmp_path}' in sentence(sample.main, [str(tmp_path), '--device=cpu', *words])
    probe.main([str(tmp_path), '--examples=12', '--device=cpu'])


def test_completing_keeps_what_is_given():
    """Also with a model that recomputes its window, and no more pixels are made than are missing."""
    model = complete(gpt.Model(gpt.Config(block_size=T, vocab_size=5, n_layer=1, n_head=1, n_embd=8))).eval()
    starts = [[4], [4, 1, 2, 3], [4] + [1] * 23]
    made = list(sample.continuations(model, starts, 999, 1.0, 0, 1.0, 4, 0, longest=T))
    assert [len(ids) for ids in made] == [24, 21, 1] and max(map(max, made)) < 4


@pytest.mark.parametrize(('words', 'part'), [
    (['--start=text'], 'pixels'), (['--start=FILE:whole.png'], 'whole.png has 12 x 8'), (['--start=FILE:no.png'], 'no.png'),
    (['--start=FILE:flat.png'], '0 of the 4'), (['--start=FILE:absent.png'], 'absent.png'),
    (['--start=FILE:broken.png'], 'broken.png'), (['--start=FILE:half.png', '--out=absent/grid.png'], 'absent/grid.png')])
def test_bad_starts(run, monkeypatch, words, part):
    monkeypatch.chdir(run)
    rng = np.random.default_rng(0)
    for name, shape in (('whole', (8, 12, 3)), ('flat', (1, 40, 3)), ('half', (4, 12, 3))):
        Image.fromarray(rng.integers(256, size=shape, dtype=np.uint8)).save(f'{name}.png')
    raw = (run / 'half.png').read_bytes()
    (run / 'broken.png').write_bytes(raw[:len(raw) // 2])
    (run / 'no.png').write_text('no picture')
    assert part in sentence(sample.main, [str(run), '--device=cpu', *words])


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'I;16', '1', 'CMYK'])
def test_modes_of_a_start(tmp_path, mode):
    image = Image.fromarray(np.full((4, 12, 3), 255, np.uint8))
    image = Image.fromarray(np.full((4, 12), 90 << 8, np.uint16)) if mode == 'I;16' else image.convert(mode)
    image.save(path := tmp_path / ('half.tif' if mode == 'CMYK' else 'half.png'))
    assert palette.read(path, SPEC) == [1 if mode == 'I;16' else 3] * 2 * W


def test_a_palette_of_another_run(run, prepare, tmp_path):
    """Weights are not continued, mixed, or fine-tuned on other colours, though there are as many."""
    prepare('pixels.py', 'other', 'pictures', f'--size={W}', '--grey=5')
    tiny_run('other', tmp_path / 'other', '--max_iters=1', f'--block_size={T}')
    for words, part in (([f'--init_from={run}'], 'another tokenizer'),
                        (['--arch=fpt', f'--trunk={run}', '--mode=upt', '--keep_embedding=True'], 'keep_embedding')):
        assert part in sentence(train.main, ['--dataset=other', f'--out_dir={tmp_path}/new', '--device=cpu', *words])
    assert 'different tokenizers' in sentence(sample.main, [str(run), str(tmp_path / 'other'), '--device=cpu'])
    shutil.rmtree(data.local('tiny'))
    for command in (look, probe):
        assert 'tiny' in sentence(command.main, [str(run), '--device=cpu'])


@pytest.mark.parametrize(('words', 'part'), [
    (['--block_size=16'], f'block_size={T}'), (['--leaking_split=True'], 'leaking_split'), (['--last_only=True'], 'last_only'),
    (['--arch=pacing', '--predicts=last', f'--block_size={T}', f'--columns={W}', '--patch_size=8', '--depths=(1,)',
      '--dims=(8,)'], "predicts='last'")])
def test_bad_settings(made, tmp_path, words, part):
    assert part in sentence(train.main, ['--dataset=tiny', f'--out_dir={tmp_path}/run', '--dry_run', '--device=cpu', *words])
