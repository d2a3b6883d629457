"""PACING's pictures, read back from the figures, against the model itself."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_look import CONFIGS, ODD, V, build, drawn, pixels, tokens

import pacing
from views import behaviour

CAUSAL = replace(pacing.Config.tiny(), n_layer=1, vocab_size=V)


def one_tap(offset, **change):
    """One block, whose GRN does nothing yet, with one weight in kernel 5; and the distances at which tokens have influence."""
    model = build(replace(CAUSAL, **change), spared=['gamma'])
    weight = model.picture.blocks[0].dwconv.weight
    weight.data.zero_()
    weight.data[5, 0, pacing.causal_offsets(model.config.columns).index(offset)] = 0.75
    return model, distances(model)


def distances(model):
    T = model.config.block_size
    matrix = behaviour.influence(model, tokens(2, T))
    assert (np.triu(matrix, 1) == 0).all()
    return {d for d in range(T) if np.diagonal(matrix, -d).max() > 0}


@pytest.mark.parametrize('columns', [8, 10])
def test_the_receptive_field_is_the_kernel(columns):
    """Rows of 7 tokens, with gaps between them."""
    found = distances(build(replace(CAUSAL, columns=columns, block_size=40), spared=['gamma']))
    assert found == set(pacing.causal_offsets(columns)) and len(found) == 25


@pytest.mark.parametrize('up, right', [(0, -2), (1, 0), (2, 3), (3, -1)])
def test_weights_are_drawn_where_they_have_influence(up, right):
    model, found = one_tap(up * 8 - right, columns=8, block_size=32)
    assert found == {0, up * 8 - right}
    kernels = dict(pacing.pictures(model, tokens(1, 32), ['x'] * 32))['kernels'].axes
    grid = pixels(kernels[5])
    assert grid.shape == (4, 7) and grid[3 - up, 3 + right] == 0.75 and np.isnan(grid[3, 4:]).all()
    grid[3 - up, 3 + right] = grid[3, 3] = np.nan       # the identity of the start is subtracted at the token itself
    assert np.nansum(np.abs(grid)) == 0 and pixels(kernels[4])[3, 3] == -1


def labels_on(ax, columns, size):
    """[(row, column, text)] of the labels, in the order in which they were drawn."""
    cells = [tuple(int((p + 0.5) // size) for p in reversed(t.get_position())) for t in ax.texts]
    return [(*cell, t.get_text()) for cell, t in zip(cells, ax.texts, strict=True)]


def test_the_picture_is_in_reading_order():
    """A token has one colour wherever it is, and the end of the last row is white."""
    model, x = build(CONFIGS['pacing']), torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
    ax, *_ = drawn(pacing.pictures(model, x, list('314159265\n')))['picture'].axes
    image = pixels(ax)
    assert image.shape == (3, 4, 3) and (image[2, 2:] == 1).all()
    colours = image.reshape(-1, 3)[:10]
    for i in range(10):
        for j in range(10):
            assert np.allclose(colours[i], colours[j]) == (x[0, i] == x[0, j]), (i, j)
    assert labels_on(ax, 4, 1) == [(*divmod(i, 4), c) for i, c in enumerate('314159265⏎')]


def test_the_picture_of_the_original_form():
    """A patch for each token, the newest in the upper left corner; the rest is blank."""
    model, ids = build(CONFIGS['last']), [3, 1, 4, 8, 5, 9]
    model.wpe.weight.data.zero_()
    model.wte.weight.data[:] = torch.arange(V)[:, None]
    figures = dict(pacing.pictures(model, torch.tensor([ids]), list('31 859')))
    ax, *_ = figures['picture'].axes
    cells = np.array([9, 5, 8, 4, 1, 3] + [0] * 10).reshape(4, 4) / 9
    assert pixels(ax) == pytest.approx(cells.repeat(4, 0).repeat(4, 1)[:, :, None].repeat(3, 2))
    assert labels_on(ax, 4, 4) == [(*divmod(i, 4), c) for i, c in enumerate('958␣13')]
    kernels = model.picture.stages[0][0].dwconv.weight[:, 0].detach().numpy()
    for ax, kernel in zip(figures['kernels'].axes, kernels, strict=False):
        assert np.array_equal(pixels(ax), kernel)


@pytest.mark.parametrize('kind', ['pacing', 'last'])
def test_odd_characters_on_a_picture(kind):
    model = build(replace(CONFIGS[kind], block_size=32, vocab_size=len(ODD)))
    with warnings.catch_warnings(action='error'):
        drawn(pacing.pictures(model, torch.arange(len(ODD))[None], ODD))


def test_a_network_of_no_blocks():
    assert list(pacing.pictures(build(replace(CONFIGS['pacing'], n_layer=0)), tokens(1, 5), list('abcde'))) != []
