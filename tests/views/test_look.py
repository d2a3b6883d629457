"""look.py: measurements against brute force, figures read back, and the command line."""

import math
import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, names, printed, sentence

import highorder
import look
import model as gpt
import pacing
import train
import vit
import wavenet
from harness import checkpoint, data
from harness.arch import complete
from harness.tokenizer import Tokenizer
from tests.models.test_contract import perturb
from views import attention, behaviour
from views import tasks as task_views

plt = behaviour.plt
V = 11                                      # characters of the test data of conftest.py
CONFIGS = {'gpt': gpt.Config(block_size=16, vocab_size=V, n_layer=2, n_head=2, n_embd=16),
           'pacing': replace(pacing.Config.tiny(), vocab_size=V), 'wavenet': replace(wavenet.Config.tiny(), vocab_size=V),
           'last': replace(pacing.Config.tiny(), vocab_size=V, predicts='last'),
           'centered': replace(highorder.Config.tiny(), vocab_size=V, centered=True, features=7)}
ODD = [*'$x_$ ^{\\a}%\t\x00\x1b\x7f\xa0\u200b~&#"<', '$\\frac$', '\ufffd', 'é']     # mathtext, or without a shape


@pytest.fixture(autouse=True)
def strict():
    """No gradients, and no warnings of matplotlib."""
    with torch.no_grad(), warnings.catch_warnings(action='error', category=UserWarning):
        yield
    plt.close('all')


def build(kind, **change):
    torch.manual_seed(0)
    config = replace(CONFIGS[kind], **change)
    return perturb(complete(vars(__import__(type(config).__module__))['Model'](config)).eval(), 0.2)


def tokens(*shape, seed=1):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def pixels(ax):
    return np.ma.filled(ax.images[0].get_array(), np.nan)


def test_influence_by_brute_force():
    """The mean over windows and tries of half the L1 distance, for the replacements that were made, one token at a time."""
    model, x, calls = build('gpt'), tokens(2, 9), []
    hook = model.register_forward_pre_hook(lambda module, args: calls.append(args[0].clone()))
    matrix = behaviour.influence(model, x, tries=3)
    hook.remove()
    before, *changed = calls
    assert torch.equal(before, x.repeat(3, 1)) and len(changed) == 9
    for s, new in enumerate(changed):
        assert torch.equal(new != before, (torch.arange(9) == s).expand(6, 9))
        p, q = (model(z)[0].softmax(-1) for z in (before, new))
        assert matrix[:, s] == pytest.approx(((p - q).abs().sum(-1) / 2).mean(0).numpy(), abs=1e-6)


@pytest.mark.parametrize('kind', CONFIGS)
def test_what_a_prediction_depends_on(kind):
    """All that came before, or of an automaton three tokens on either side; the first output is at the last input."""
    model = build(kind)
    matrix = behaviour.influence(model, tokens(4, model.memory + 16))
    n, T = {'last': (1, 16), 'wavenet': (16, 32)}.get(kind, (16, 16))
    t, s = np.arange(n)[:, None] + T - n, np.arange(T)
    assert np.array_equal(matrix > 1e-6, (abs(s - t) <= 3) & (s != t) if kind == 'centered' else s <= t) and matrix.max() <= 1
    if n == T:
        later = behaviour.influence(model, tokens(4, T), first=5)
        assert later.shape == (T - 5, T - 5) and np.array_equal(later > 1e-6, matrix[5:, 5:] > 1e-6)


def test_pictures_are_measured_in_their_middle_at_their_own_positions(monkeypatch):
    monkeypatch.setattr(behaviour, 'SPAN', 4)
    model, x = build('gpt'), tokens(1, 16)
    for pictures, part, first in ((False, x[:, -4:], 0), (True, x[:, :10], 6)):
        found = behaviour.excerpt(model, x, pictures)
        assert torch.equal(found[0], part) and found[1] == first


@pytest.mark.parametrize('outputs, offsets, bidirectional, title', [
    (9, (0, 3), False, 'depends on 4 of 9 tokens back; no influence'), (1, (0, 8), False, 'depends on 9 of 9 tokens back; no'),
    (4, (0, 3, -1), False, 'depends on 4 of 9 tokens back; LEAK of 0.25 '),
    (9, (1, 3, -1, -3), True, 'depends on 3 tokens before and 3 after; no influence'),
    (9, (0, 1), True, 'depends on 1 tokens before and 0 after; LEAK of 0.5 ')])
def test_a_leak_is_shown(outputs, offsets, bidirectional, title):
    """offsets: how many tokens before a position those are that have an influence there."""
    matrix = sum(np.eye(outputs, 9, 9 - outputs - offset) / (2 + i) for i, offset in enumerate(offsets))
    left, right, *_ = behaviour.draw_influence(matrix, bidirectional=bidirectional).axes
    assert right.get_title().startswith(title) and pixels(left) == pytest.approx(np.maximum(matrix, 1e-9))
    for line, back in zip(right.lines[:1 + bidirectional], (range(bidirectional, 9), range(-1, -9, -1)), strict=False):
        assert line.get_ydata() == pytest.approx([max(np.diagonal(matrix, 9 - outputs - d).mean(), 1e-9) for d in back])


@pytest.mark.parametrize('kind', CONFIGS)
def test_losses_by_position_and_surprise_by_brute_force(kind, monkeypatch):
    """Given the window before each token, and the memory before that; or its neighbours on both sides."""
    monkeypatch.setattr(behaviour, 'LOGITS', 3 * 16 * V)        # batches of 3, and one left over
    model, ids = build(kind), tokens(45)
    x, y, M = tokens(7, model.memory + 12), tokens(7, 12, seed=2), model.memory
    found = {} if kind == 'centered' else behaviour.losses_by_position(model, x, y)
    assert list(found) == {'last': [1, 2, 4, 8, 12], 'centered': []}.get(kind, list(range(1, 13)))
    for n, losses in found.items():
        end, start = (12, 12 - n) if kind == 'last' else (n, 0)
        log_p = [model(row[None, start:M + end])[0][0, -1].log_softmax(-1) for row in x]
        assert losses == pytest.approx([-p[target[end - 1]].item() for p, target in zip(log_p, y, strict=True)], abs=1e-4), n
    def logits(t):
        if kind == 'centered':
            return model.net(ids.where(torch.arange(45) != t, (ids + 3) % V)[None])[0, t]
        return model(ids[None, max(0, t - 16 - (M if t >= 16 + M else 0)):t])[0][0, -1]
    expected = [-logits(t).log_softmax(-1)[ids[t]].item() / math.log(2) for t in range(4, 45)]
    assert behaviour.surprise(model, ids.tolist(), 4) == pytest.approx(expected, abs=1e-4)


def test_context_is_drawn_with_its_standard_error():
    ax, = behaviour.draw_context({4: np.array([1.0, 2.0]), 1: np.array([3.0, 4.0]), 2: np.array([2.0, 2.0])}).axes
    assert ax.lines[0].get_xydata().tolist() == [[1, 3.5], [2, 2], [4, 1.5]]
    assert ax.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(3.5 + 0.5 / math.sqrt(2))


@pytest.mark.parametrize('length', [16, 3])
def test_attention_is_what_the_model_computes(length):
    """The weights in the figure give each layer's output from its values."""
    model, calls = build('gpt'), []
    for block in model.h:
        block.attn.register_forward_hook(lambda module, args, output: calls.append((module, args[0], output)))
    (_, figure), = attention.attention(model, tokens(1, length), ODD[-length:])
    assert len(calls) == 2 and all(len(block.attn._forward_hooks) == 1 for block in model.h)    # its own hooks are removed
    for layer, (module, h, output) in enumerate(calls):
        weights = torch.tensor(np.stack([pixels(ax) for ax in figure.axes[2 * layer:2 * layer + 2]]))       # (H, T, T)
        assert (weights.triu(1) == 0).all() and (weights.sum(-1) - 1).abs().max() < 1e-5
        assert weights[:, -1].max() - weights[:, -1].min() > 0.02           # else any weights would pass below
        v = module.c_attn(h)[0, :, 32:].view(length, 2, 8).transpose(0, 1)                      # (H, T, D)
        again = module.c_proj((weights @ v).transpose(0, 1).reshape(length, 16))
        torch.testing.assert_close(again, output[0], atol=1e-4, rtol=1e-4)
    assert behaviour.png(figure)


def layout(ax):
    """The characters on the axes as lines, and the colour value below each."""
    grid, letters = pixels(ax), {tuple(map(int, t.get_position())): t.get_text() for t in ax.texts}
    return [''.join(letters.get((c, r), ' ') for c in range(grid.shape[1])).rstrip() for r in range(len(grid))], grid


def test_surprise_is_drawn_line_by_line():
    """A token of several characters has one colour, also across a line break; a token without a prediction has none."""
    n = np.nan
    ax = behaviour.draw_surprise(['ab', 'c\nd', 'e', '\n', '\n', 'f'], [n, 2, 3, 4, 5, 6]).axes[0]
    lines, grid = layout(ax)
    assert lines == ['abc⏎', 'de⏎', '⏎', 'f'] and '4.00 bits' in ax.get_title()
    assert np.array_equal(grid, [[n, n, 2, 2], [2, 3, 4, n], [5, n, n, n], [6, n, n, n]], equal_nan=True)
    lines, grid = layout(behaviour.draw_surprise([*'abcde\nfg'], range(8), longest=3).axes[0])
    assert lines == ['abc', 'de⏎', 'fg'] and np.nanmax(grid) == 7
    odd = behaviour.draw_surprise(ODD, range(len(ODD)))
    assert layout(odd.axes[0])[0] == [''.join(c if c.isprintable() else '·' for c in ''.join(ODD))] and behaviour.png(odd)


@pytest.mark.parametrize('up, right', [(0, -2), (2, 3)])
def test_weights_of_pacing_are_drawn_where_they_have_influence(up, right):
    """One block, whose GRN does nothing, with one weight in kernel 5."""
    model, back = build('pacing', n_layer=1, columns=8, block_size=32), up * 8 - right
    block = model.picture.blocks[0]
    block.grn.gamma.zero_()
    block.dwconv.weight.zero_()
    block.dwconv.weight[5, 0, pacing.causal_offsets(8).index(back)] = 0.75
    matrix = behaviour.influence(model, tokens(2, 32))
    assert {d for d in range(32) if np.diagonal(matrix, -d).max() > 0} == {0, back}
    (_, picture), (_, figure) = pacing.pictures(model, tokens(1, len(ODD)), ODD)
    grid = pixels(figure.axes[5])
    assert grid.shape == (4, 7) and grid[3 - up, 3 + right] == 0.75 and np.isnan(grid[3, 4:]).all()
    grid[3 - up, 3 + right] = grid[3, 3] = np.nan       # the identity of the start is subtracted at the token itself
    assert np.nansum(np.abs(grid)) == 0 and pixels(figure.axes[4])[3, 3] == -1 and behaviour.png(picture)


def test_the_image_of_pacing():
    """In reading order, a token has one colour wherever it is, and the end of the last row is white.  Of the original: a patch
    for each token, the newest in the upper left corner, and the rest is blank.  A network of no blocks has no kernels."""
    def read(figure, size):
        cells = [(*(int((p + 0.5) // size) for p in reversed(t.get_position())), t.get_text()) for t in figure.axes[0].texts]
        return pixels(figure.axes[0])[::size, ::size], cells
    x = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
    (_, figure), = pacing.pictures(build('pacing', n_layer=0), x, list('314159265\n'))
    image, labels = read(figure, 1)
    colours = image.reshape(-1, 3)[:10]
    assert image.shape == (3, 4, 3) and (image[2, 2:] == 1).all()
    assert np.array_equal(np.isclose(colours[:, None], colours).all(-1), x[0][:, None] == x[0])
    assert labels == [(*divmod(i, 4), c) for i, c in enumerate('314159265⏎')]
    model = build('last')
    model.wpe.weight.zero_()
    model.wte.weight[:] = torch.arange(V)[:, None]
    (_, figure), (_, kernels) = pacing.pictures(model, torch.tensor([[3, 1, 4, 8, 5, 9]]), list('31 859'))
    image, labels = read(figure, 4)
    assert image[..., 0].ravel() * 9 == pytest.approx([9, 5, 8, 4, 1, 3] + [0] * 10)
    assert labels == [(*divmod(i, 4), c) for i, c in enumerate('958␣13')]
    assert np.array_equal(pixels(kernels.axes[5]), model.picture.stages[0][0].dwconv.weight[5, 0])


def test_pictures_of_answers():
    """Wrong bits; a row of the confusion matrix for each true class; the gaze of the positions that give the answer."""
    _, ax = plt.subplots()
    task_views.draw_answer_bits(ax, np.array([1, 0, 1, 0], bool), np.array([1, 1, 0, 0], bool))
    assert [t.get_text() for t in ax.texts] == list('11011000')
    assert (pixels(ax)[0] != pixels(ax)[1]).any(-1).tolist() == [False, True, True, False]
    task_views.draw_answer_bits(ax, np.zeros(1000, bool), np.arange(1000) == 321)
    assert ax.get_xlabel() == 'bits 321 to 360'
    figure = task_views.draw_confusion(np.array([1, 1, 0, 0]), np.array([0, 0, 0, 0]), SimpleNamespace(outputs=2, meta={}), '')
    assert pixels(figure.axes[0]).tolist() == [[0.5, 0.5], [0, 0]]
    x, draw = torch.rand(1, 6, 16), {'as': 'image', 'height': 8, 'width': 12, 'channels': 1, 'patch': 4}
    task = SimpleNamespace(draw=draw, splits={'val': (x.numpy(), None)})
    for readout in ('class', 'mean'):
        model = perturb(complete(vit.Model(replace(vit.Config.tiny(), block_size=6, features=16, readout=readout)))).eval()
        _, *panels, _ = task_views.draw_gaze(model, x, task, 0).axes
        for ax, maps in zip(panels, attention.attention_maps(model, x), strict=True):
            assert np.allclose(ax.images[1].get_array().ravel(),
                               maps.mean(0)[0, 1:] if readout == 'class' else maps.mean((0, 1)))
            assert ax.images[1].norm.vmax == panels[0].images[1].norm.vmax     # one scale


@pytest.mark.parametrize('options', [{}, {'is_causal': True}, {'scale': 0.3}, {'attn_mask': torch.ones(5, 5).bool().tril(1)},
                                     {'attn_mask': torch.arange(25.0).view(5, 5)}, {'enable_gqa': True}], ids=str)
def test_attention_weights_of_any_call(options):
    """Those that scaled_dot_product_attention sums the values by, as the recorder sees them."""
    q, k, v = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    k, v = (k[:, :2], v[:, :2]) if 'enable_gqa' in options else (k, v)
    with attention.Recorder() as recorder:
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    weights, = recorder.maps
    assert weights @ v[0].repeat_interleave(4 // v.shape[1], 0).numpy() == pytest.approx(y[0].numpy(), abs=1e-5)


def test_pictures_are_of_the_given_text():
    """A model file's own pictures get its end; the first token has no prediction."""
    chars, text, model = sorted({*'abcdefgh .\n'}), 'abc d.\nefgh ab ab gh fe dc ba ab', build('gpt')
    tokenizer = Tokenizer({'kind': 'char', 'chars': chars})
    x, labels = look.window_of(model, tokenizer, ids := tokenizer.encode(text))
    assert x.tolist() == [[chars.index(c) for c in text[-16:]]] and labels == list(text[-16:])
    lines, grid = layout(next(look.text_views(model, tokenizer, ids)['surprise']())[1].axes[0])
    assert lines == ['abc d.⏎', text[7:]] and np.isnan(grid[0, 0])
    assert grid[0, 1:7].tolist() + grid[1, :25].tolist() == pytest.approx(behaviour.surprise(model, ids).tolist())


RUNS = {        # settings of a run, what is drawn of it, and the pictures
    'gpt': ('--n_head=2', [], ['influence', 'context', 'surprise', 'attention']),
    'llama': ('--arch=llama --n_head=2', ['--only=attention'], ['attention']),
    'bert': ('--arch=bert --n_head=2', ['--only=attention,influence'], ['attention', 'influence']),
    'pacing': ('--arch=pacing --columns=4', ['--only=kernels,picture'], ['picture', 'kernels']),
    'centered': ('--arch=highorder --features=5 --centered', ['--only=segments.png,influence'], ['segments', 'influence'])}


@pytest.fixture(scope='module')
def runs(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp('look') / 'lr$_$2'         # no mathematics
    with torch.enable_grad():
        for kind, (words, *_) in RUNS.items():
            train.main([f'--dataset={dataset.name}', f'--out_dir={folder / kind}', *TINY, *words.split(), '--max_iters=5'])
    return {kind: folder / kind for kind in RUNS}


@pytest.mark.parametrize('kind', RUNS)
def test_pictures_of_a_run(runs, monkeypatch, kind):
    _, only, stems = RUNS[kind]
    monkeypatch.setattr(look, 'CONTEXT', 1 << 12)
    shown = printed(look.main, [runs[kind], *only])
    paths = [runs[kind] / 'look' / f'{stem}.png' for stem in stems]
    assert shown.splitlines()[-len(stems):] == list(map(str, paths)) and sorted(paths) == sorted(paths[0].parent.iterdir())
    for path in paths:
        image = plt.imread(path)            # raises if it is truncated
        assert 100 < image.shape[0] < 4000 and 300 < image.shape[1] < 4000 and image[:, :, :3].std() > 0.01, path
    if kind == 'centered':
        assert "'context'" in sentence(look.main, [str(runs[kind]), '--only=context'])


def test_a_prompt_needs_no_data(runs, dataset, root):
    """Missing data and other data of that name are not used: the loss would be that of another text."""
    run, folder, fingerprint = str(runs['gpt']), root / 'data' / dataset.name, data.read_meta(dataset)['fingerprint']
    missing = sentence(look.main, [run])
    shutil.copytree(dataset, folder)
    (folder / 'meta.json').write_text((dataset / 'meta.json').read_text().replace(fingerprint, fingerprint[::-1]))
    assert f'data/{dataset.name} is missing or is not' in missing == sentence(look.main, [run]) and '--prompt' in missing
    content = checkpoint.load(runs['gpt'] / 'ckpt.pt')
    checkpoint.save(root / 'best.pt', {k: v for k, v in content.items() if k != 'format'} | {'step': 0})
    shown = printed(look.main, [root / 'best.pt', '--prompt=ab', '--out', root / 'deep' / 'er'])
    assert names(root / 'deep' / 'er') == ['attention.png', 'influence.png', 'surprise.png']
    assert f'context.png was left out: data/{dataset.name}' in shown and 'step 0: this network is untrained' in shown
