"""harness/images.py: what is written and read, augmentation, and runs of models that read images in different ways."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import names, resumes, sentence

import compare
import look
import train
from harness import SPLITS, data, images
from prepare.common import char_tokenizer, write_images

SOURCE = {'name': 'squares'}


def squares(counts=(60, 20, 20), shape=(16, 16, 3), grid=(2, 2)):
    """Images that can be learned: one part of a grid is bright, which is the class and the caption."""
    rng, splits, (h, w) = np.random.default_rng(0), {}, np.floor_divide(shape[:2], grid)
    for split, n in zip(SPLITS, counts, strict=True):
        x, y = rng.integers(0, 100, (n, *shape), dtype=np.uint8), np.arange(n) % np.prod(grid)
        for image, k in zip(x, y, strict=True):
            down, right = k // grid[1] * h, k % grid[1] * w
            image[down:down + h, right:right + w] += 150
        splits[split] = {'x': x, 'y': y, 'captions': [f'corner {k}' for k in y]}
    return splits


@pytest.fixture
def folder(root):
    write_images('squares', squares(), SOURCE, 'squares.py', [*'0123'], char_tokenizer('corner 0123'), parts={'first': (0, 5)})
    return root / 'data' / 'squares'


def test_images_and_patches(folder):
    """Both standardised by channel with the moments of the training split; patches against the definition."""
    x, splits = squares()['val']['x'], squares()
    whole, cut = (data.open_data('squares', modality=m, patch=4) for m in ('images', 'task'))
    mean, std = (f(splits['train']['x'].astype(float), axis=(0, 1, 2)) for f in (np.mean, np.std))
    found, y = whole.examples('val', [3, 0])
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), (x[[3, 0]] - mean) / std, rtol=1e-5, atol=1e-6)
    assert y.tolist() == splits['val']['y'][[3, 0]].tolist()
    patches, _ = cut.examples('val', [3, 0])
    expected = [found[:, :, i:i + 4, j:j + 4].flatten(1) for i in range(0, 16, 4) for j in range(0, 16, 4)]
    assert torch.equal(patches, torch.stack(expected, 1))
    assert whole.model_settings() == {'channels': 3, 'height': 16, 'width': 16, 'outputs': 4, 'kind': 'classify'}
    assert cut.model_settings() == {'block_size': 16, 'vocab_size': 0, 'features': 48, 'outputs': 4, 'kind': 'classify'}
    assert whole.fingerprint == cut.fingerprint and whole.parts['first'].tolist() == [0, 1, 2, 3, 4]
    assert [whole.text(row) for row in whole.captions['val']] == splits['val']['captions']
    write_images('wide', squares(shape=(8, 16, 3)), SOURCE, 'squares.py', tokenizer=char_tokenizer('corner 0123'))
    assert data.open_data('wide', modality='captions', patch=4).model_settings()['rows'] == 2


def test_augmentation(folder):
    """Shifted and mirrored copies, anew in each step; on average half are mirrored and all shifts occur."""
    x = np.random.default_rng(0).integers(1, 256, (300, 16, 16, 1), dtype=np.uint8)
    keys = [(1, 2, i) for i in range(300)]
    flipped, cropped, both = (images.augment(x, how, keys) for how in ('flip', 'crop', 'flip+crop'))
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, x, strict=True)]
    assert 0.4 < np.mean(mirrored) < 0.6
    assert all(m or np.array_equal(a, b) for m, a, b in zip(mirrored, flipped, x, strict=True))
    shifts = set()
    for a, b, whole, m in zip(cropped, both, x, mirrored, strict=True):
        one, two = (np.pad(image, ((2, 2), (2, 2), (0, 0)), 'edge') for image in (whole, whole[:, ::-1] if m else whole))
        (i, j), = [(i, j) for i in range(5) for j in range(5) if np.array_equal(a, one[i:i + 16, j:j + 16])]
        assert np.array_equal(b, two[i:i + 16, j:j + 16])
        shifts.add((i, j))
    assert len(shifts) == 25
    found, cfg = data.open_data('squares', modality='images'), SimpleNamespace(seed=1, augment='flip+crop')
    one, same, other = (found.train_batch(np.arange(40), None, cfg, step)[0] for step in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


QUICK = ['--dataset=squares', '--batch_size=8', '--eval_interval=5', '--warmup_iters=2', '--device=cpu', '--augment=flip+crop',
         '--schedule=constant', '--dtype=float32']


@pytest.mark.parametrize('words', [['--arch=convnet', '--n_embd=4'], ['--arch=convnet', '--network=tutorial'],
                                   ['--arch=vit', '--patch=8', '--n_layer=1', '--n_head=2', '--n_embd=16']], ids=str)
def test_a_run(folder, tmp_path, words):
    """Training; resuming to the same weights, running statistics too; test split; pictures."""
    def run(folder, *more):
        train.main([*words, *QUICK, f'--out_dir={folder}', *more])
    run(one := tmp_path / 'one', '--max_iters=10')
    assert {'accuracy', 'test_loss'} <= json.loads((one / 'test.json').read_text()).keys()
    resumes(run, tmp_path / 'two', one)
    look.main([str(one)])
    drawn = names(one / 'look')
    assert {'trained.png', 'confusion.png', 'wrong.png'} <= {*drawn} and ('gaze.png' in drawn) == ('--arch=vit' in words)


def test_what_does_not_fit_is_refused(folder, tmp_path):
    write_images('named', squares(), SOURCE, 'x.py', tokenizer=char_tokenizer('corner 0123'))
    sides = {split: {'x': part['x'], 'captions': ['bright'] * len(part['x'])} for split, part in squares().items()}
    sides['train']['captions'][7] = 'Left of it'
    write_images('sides', sides, SOURCE, 'x.py', tokenizer=char_tokenizer('bright Left of it'))
    for words, said in (('vit --patch=5', 'patch=5'), ('convnet --height=8', 'height=8'), ('convnet --augment=turn', 'augment'),
                        ('convnet --dataset=named', 'without classes'), ('clip --dataset=sides', 'say left or right')):
        more = f'--out_dir={tmp_path}/x --dry_run --arch={words}'.split()
        assert said in sentence(train.main, [*QUICK, *more])
    for name, change in (('val_x', lambda a: a[:, :8]), ('val_x', lambda a: a.astype(int)), ('train_y', lambda a: a + 1),
                         ('test_captions', lambda a: a + 9), ('test_y', lambda a: a[:-1])):
        path = folder / f'{name}.npy'
        whole = np.load(path)
        np.save(path, change(whole))
        assert name[:5] in sentence(data.open_data, 'squares')
        np.save(path, whole)
    # a race in tokens: a patch is one for ViT, and an image for a ResNet
    (tmp_path / 'a.py').write_text("arch, n_embd = 'convnet', 4\n")
    (tmp_path / 'b.py').write_text("arch, patch, n_layer, n_head, n_embd = 'vit', 8, 1, 2, 16\n")
    both = [f'{tmp_path}/a.py', f'{tmp_path}/b.py', f'--out={tmp_path}/race', '--set', 'dataset=squares']
    assert '--steps' in sentence(compare.main, [*both, '--tokens=1e5'])
