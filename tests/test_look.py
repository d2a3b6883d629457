"""look.py: what is measured, against brute force; what is drawn, read back from the figures; and its command line."""

import math
import struct
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import tiny_train

import look
import model as gpt
import pacing
import parts
import train
from harness import CENTERED, UserError, checkpoint, data, device
from harness.tokenizer import Tokenizer

plt = look.plt
V = 11                                      # characters of the made-up language of conftest.py
CONFIGS = {'gpt': gpt.Config(block_size=16, vocab_size=V, n_layer=2, n_head=2, n_embd=16),
           'pacing': replace(pacing.Config.tiny(), vocab_size=V),
           'last': replace(pacing.Config.tiny(), vocab_size=V, predicts='last')}
WORDS = {'gpt': [], 'pacing': ['--arch=pacing', '--columns=4'],
         'last': ['--arch=pacing', '--predicts=last', '--columns=4', '--patch_size=4', '--depths=(1,1)', '--dims=(8,16)'],
         'links': ['--arch=highorder', '--features=4'], 'centered': ['--arch=highorder', '--features=5', '--centered']}
LINKS = ['links', 'segments', 'refinement']
each_kind = pytest.mark.parametrize('kind', CONFIGS)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


def build(config, spared=()):
    """A model of tiny size, with weights at which nothing is 0 by initialisation but the parameters of `spared` names."""
    torch.manual_seed(0)
    model = (gpt if isinstance(config, gpt.Config) else pacing).Model(config).eval()
    for name, p in model.named_parameters():
        if not name.endswith(tuple(spared)):
            p.data += 0.2 * torch.randn_like(p)
    return model


def tokens(*shape, vocab_size=V, seed=1):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def drawn(figures):
    """{name: figure}, each of which can be written as a PNG."""
    figures = dict(figures)
    for figure in figures.values():
        assert look.png(figure).startswith(b'\x89PNG')
    return figures


def shown(ax):
    """The image on an axes, nan where nothing is."""
    return np.ma.filled(ax.images[0].get_array(), np.nan)


class Looks(nn.Module):
    """Made up: the distribution at t is drawn at random for each token that stands `back` places before it, and mixed."""
    predicts = 'every'

    def __init__(self, *back, size=9):
        super().__init__()
        self.config = SimpleNamespace(block_size=size, vocab_size=V)
        self.back = back
        self.table = torch.randn(len(back), V, V, generator=torch.Generator().manual_seed(3))

    def forward(self, x):
        T, logits = x.shape[1], torch.zeros(*x.shape, V)
        for table, back in zip(self.table, self.back, strict=True):
            out = torch.arange(max(0, back), min(T, T + back))
            logits[:, out] += table[x[:, out - back]]
        return logits, None


# who sees whom ----------------------------------------------------------------------------------------------------------------

def test_influence_is_where_the_model_looks():
    """Token t and the third before it, and nothing else, not by a rounding error."""
    matrix = look.influence(Looks(0, 3), tokens(2, 9))
    expected = np.eye(9, k=0) + np.eye(9, k=-3)
    assert np.array_equal(matrix > 0, expected > 0) and matrix.max() <= 1 and matrix[expected > 0].min() > 0.01
    right = look.draw_influence(matrix, 'made up').axes[1]
    assert right.get_title() == 'sees 4 of 9 tokens back; nothing from later ones'
    seen = right.lines[0].get_ydata()
    assert seen[3] == pytest.approx(np.diagonal(matrix, -3).mean()) and max(seen[1], seen[2], seen[4]) < 1e-8


def test_influence_of_a_model_that_sees_both_sides():
    """Colour right of the diagonal is as it should be, but for the token that is predicted."""
    matrix = look.influence(Looks(0, 2, -2, -4), tokens(2, 9))
    right = look.draw_influence(matrix, 'made up', centered=True).axes[1]
    assert right.get_title() == 'sees 3 before and 3 after; nothing from the one between'
    before, after = (line.get_ydata() for line in right.lines)
    assert before[2] == pytest.approx(np.diagonal(matrix, -2).mean())
    assert after[2] == pytest.approx(np.diagonal(matrix, 4).mean())
    matrix = look.influence(Looks(0, -1), tokens(2, 9))
    said = look.draw_influence(matrix, 'made up', centered=True).axes[1].get_title()
    assert said == f'sees 1 before and 0 after; LEAKS: {np.diagonal(matrix, 1).max():.2g} from the one between'


def test_a_leak_is_told():
    matrix = look.influence(Looks(0, -1), tokens(2, 9))
    assert np.array_equal(matrix > 0, (np.eye(9) + np.eye(9, k=1)) > 0)
    left, right, *_ = look.draw_influence(matrix, 'made up').axes
    assert 'LEAKS' in right.get_title() and f'{matrix[:, 1:].diagonal().max():.2g}' in right.get_title()
    assert shown(left)[2, 3] > 1e-4             # there is colour right of the diagonal


class Certain(Looks):
    """The next token is the one `back` places before, beyond doubt."""

    def forward(self, x):
        return 1e4 * nn.functional.one_hot(x.roll(self.back[0], 1), V).float(), None


def test_influence_is_a_total_variation_distance():
    """All the mass moves: 1.  So every replacement is another token, and the distance is that of distributions."""
    matrix = look.influence(Certain(0), tokens(3, 9))
    assert np.array_equal(matrix, np.eye(9))
    same = torch.full((3, 9), 4)                # where the text has no other token to offer
    assert np.array_equal(look.influence(Certain(0), same), np.eye(9))


def test_influence_by_definition():
    """Mean over windows and tries of half the L1 distance, with the replacements that were made, one token at a time."""
    asked, model = [], Looks(0, 2)

    class Spied(Looks):
        def forward(self, x):
            asked.append(x.clone())
            return super().forward(x)
    x = tokens(2, 9)
    matrix = look.influence(Spied(0, 2), x, tries=3)
    before, *changed = asked
    assert torch.equal(before, x.repeat(3, 1)) and len(changed) == 9
    for s, new in enumerate(changed):
        assert torch.equal(new != before, (torch.arange(9) == s).expand(6, 9))
        for t in range(9):
            p, q = (model(z)[0][:, t].softmax(-1) for z in (before, new))
            assert matrix[t, s] == pytest.approx(((p - q).abs().sum(-1) / 2).mean().item(), abs=1e-6)


@each_kind
def test_influence_of_the_architectures(kind):
    matrix = look.influence(build(CONFIGS[kind]), tokens(4, 16))
    assert matrix.min() >= 0 and matrix.max() <= 1
    title = look.draw_influence(matrix, kind).axes[1].get_title()
    assert title == 'sees 16 of 16 tokens back; nothing from later ones'
    if kind == 'last':
        assert matrix.shape == (1, 16) and matrix.min() > 0
    else:
        assert matrix.shape == (16, 16)
        assert (np.triu(matrix, 1) == 0).all() and (matrix[np.tril_indices(16)] > 0).all()


def test_influence_of_a_model_that_predicts_the_last_is_drawn_newest_first():
    matrix = np.array([[0.0, 0.0, 0.25, 0.5]])
    right = look.draw_influence(matrix, 'made up').axes[1]
    assert right.lines[0].get_ydata()[:2].tolist() == [0.5, 0.25] and right.get_title().startswith('sees 2 of 4 tokens back')


@pytest.mark.parametrize('columns', [8, 10])
def test_the_receptive_field_of_pacing_can_be_read_off(columns):
    """One block whose GRN does nothing yet sees the taps of its kernel: rows of 7, with gaps between."""
    config = replace(pacing.Config.tiny(), n_layer=1, columns=columns, block_size=40, vocab_size=V)
    matrix = look.influence(build(config, spared=['gamma']), tokens(2, 40))
    distances = {d for d in range(40) if np.diagonal(matrix, -d).max() > 0}
    assert distances == set(pacing.taps(columns)) and len(distances) == 25
    assert all((np.diagonal(matrix, -d) > 0).all() for d in distances) and (np.triu(matrix, 1) == 0).all()


# what context is worth, and the surprise --------------------------------------------------------------------------------------

def losses(model, x, y):
    """Of each text alone, -log p(y) one position at a time: (N, T), or (N, 1) of a model that predicts the last."""
    rows = []
    for i in range(len(x)):
        log_p = model(x[i:i + 1])[0][0].log_softmax(-1)
        rows.append([-log_p[t, target].item() for t, target in enumerate(y[i, -len(log_p):])])
    return np.array(rows)


@torch.no_grad()
@each_kind
def test_losses_by_position(kind, monkeypatch):
    monkeypatch.setattr(look, 'LOGITS', 3 * 12 * 17)        # two batches and a part of one
    model, x, y = build(CONFIGS[kind]), tokens(7, 12), tokens(7, 12, seed=2)
    found = look.losses_by_position(model, x, y)
    if kind == 'last':      # what it makes of the last n tokens
        expected = {n: losses(model, x[:, -n:], y)[:, 0] for n in (1, 2, 4, 8, 12)}
    else:
        expected = dict(enumerate(losses(model, x, y).T, 1))
    assert found.keys() == expected.keys()
    for n in expected:
        assert found[n].shape == (7,) and found[n] == pytest.approx(expected[n], abs=1e-4), n


@each_kind
def test_losses_by_position_are_those_of_validation(dataset, kind):
    model, text = build(CONFIGS[kind]), data.TextData(dataset)
    machine = device.Machine(torch.device('cpu'), torch.float32, False, 0, 0, 1)
    starts = text.val_starts(21, 16)
    scores = train.evaluate(model, text, starts, 16, 4, machine)
    found = look.losses_by_position(model.eval(), *text.rows('val', starts, 16))
    assert found[16].mean() == pytest.approx(scores['val_loss_full'], rel=1e-5)
    if kind == 'last':
        assert list(found) == [1, 2, 4, 8, 16] and scores['val_loss'] == scores['val_loss_full']
    else:
        assert np.mean(list(found.values())) == pytest.approx(scores['val_loss'], rel=1e-5)


def test_context_is_drawn_as_it_is():
    found = {4: np.array([1.0, 2.0]), 1: np.array([3.0, 4.0]), 2: np.array([2.0, 2.0])}
    ax, = look.draw_context(found, 'made up').axes
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 4] and ax.lines[0].get_ydata().tolist() == [3.5, 2, 1.5]
    assert ax.get_title() == 'made up: 3.50 after 1 token, 1.50 after 4'


@torch.no_grad()
@pytest.mark.parametrize('length, first', [(10, 1), (40, 1), (40, 5), (40, 20)])
@each_kind
def test_surprise(kind, length, first, monkeypatch):
    """Token by token, each by the 16 before it or as many as there are; groups of 3 do not end where the window does."""
    monkeypatch.setattr(look, 'LOGITS', 3 * 16 * 17)
    model, ids = build(CONFIGS[kind]), tokens(length).tolist()
    expected = [-model(torch.tensor([ids[max(0, i - 16):i]]))[0][0, -1].log_softmax(-1)[ids[i]].item() / math.log(2)
                for i in range(first, length)]
    assert look.surprise(model, ids, first) == pytest.approx(expected, abs=1e-4)


def laid_out(ax):
    """The characters on the axes as lines, and the colour value below each."""
    grid, rows = shown(ax), {}
    for t in ax.texts:
        column, row = int(t.get_position()[0]), int(t.get_position()[1])
        rows.setdefault(row, {})[column] = t.get_text()
    lines = [''.join(rows.get(r, {}).get(c, ' ') for c in range(grid.shape[1])).rstrip() for r in range(len(grid))]
    return lines, grid


def test_surprise_is_drawn_line_by_line():
    """A token of several characters has one colour, also over the end of a line."""
    ax, *_ = look.draw_surprise(['ab', 'c\nd', 'e', '\n', '\n', 'f'], [1, 2, 3, 4, 5, 6], 'made up').axes
    lines, grid = laid_out(ax)
    assert lines == ['abc⏎', 'de⏎', '⏎', 'f']
    n = np.nan
    assert np.array_equal(grid, [[1, 1, 2, 2], [2, 3, 4, n], [5, n, n, n], [6, n, n, n]], equal_nan=True)
    assert ax.get_title() == 'made up: 3.50 bits a token'


def test_long_lines_are_wrapped():
    text = 'abcdefghij' * 9 + '\n' + 'k' * 5
    lines, grid = laid_out(look.draw_surprise(list(text), range(len(text)), 'made up').axes[0])
    assert lines == [text[:80], text[80:90] + '⏎', 'kkkkk'] and grid.shape == (3, 80)
    assert grid[1, 10] == 90 and grid[2, 4] == len(text) - 1
    lines, _ = laid_out(look.draw_surprise(list('abcdefg'), range(7), 'made up', longest=3).axes[0])
    assert lines == ['abc', 'def', 'g']


def test_a_line_of_windows_ends_once():
    """The carriage return before the line break must not push it into a line of its own."""
    text = 'abc\r\nde\r\nf'
    assert laid_out(look.draw_surprise(list(text), range(len(text)), 'made up').axes[0])[0] == ['abc·⏎', 'de·⏎', 'f']


ODD = [*'$x_$ ^{\\a}%\t\x00\x1b\x7f\xa0\u200b~&#"<', '$\\frac$', '\ufffd', '\n', 'é']


def test_odd_characters_are_drawn():
    """No mathtext, and nothing that the font cannot show (a warning on the user's screen)."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        figure = look.draw_surprise(ODD, range(len(ODD)), 'made up')
        look.png(figure)
    lines, _ = laid_out(figure.axes[0])
    assert lines[0] == ''.join(c if c.isprintable() else '·' for c in ''.join(ODD[:-2])) + '⏎' and lines[1] == 'é'


@pytest.mark.parametrize('kind', ['pacing', 'last'])
def test_odd_characters_on_a_picture(kind):
    model = build(replace(CONFIGS[kind], block_size=32, vocab_size=len(ODD)))
    draw = parts.causal_picture if kind == 'pacing' else parts.seed_picture
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        drawn(draw(model, torch.arange(len(ODD))[None], ODD))


# what a model is made of ------------------------------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize('length', [16, 5])
def test_attention_is_what_the_model_uses(length):
    """The weights read from the picture give each layer's output from its values."""
    model, x = build(CONFIGS['gpt']), tokens(1, length)
    calls = []
    for block in model.h:
        block.attn.register_forward_hook(lambda module, args, output: calls.append((module, args[0], output)))
    (name, figure), = parts.attention(model, x, ['x'] * length)
    assert name == 'attention' and len(calls) == 2
    assert all(len(block.attn._forward_hooks) == 1 for block in model.h)        # none but that of this test
    axes = np.array(figure.axes).reshape(2, 2)
    for layer, (module, h, output) in enumerate(calls):
        weights = torch.tensor(np.stack([shown(ax) ** 2 for ax in axes[layer]]))                # (H, T, T)
        assert [ax.get_title() for ax in axes[layer]] == [f'layer {layer + 1}, head {i}' for i in (1, 2)]
        assert (weights.triu(1) == 0).all() and (weights.sum(-1) - 1).abs().max() < 1e-5
        assert (weights[:, -1].max() - weights[:, -1].min()) > 0.05         # else any weights would do below
        v = module.c_attn(h)[0, :, 32:].view(length, 2, 8).transpose(0, 1)                      # (H, T, D)
        again = module.c_proj((weights @ v).transpose(0, 1).reshape(length, 16))
        torch.testing.assert_close(again, output[0], atol=1e-4, rtol=1e-4)


def labels_on(ax, columns, size):
    """[(row, column, text)] of the labels, in the order in which they were written."""
    cells = [tuple(int((p + 0.5) // size) for p in reversed(t.get_position())) for t in ax.texts]
    assert all(c < columns for _, c in cells)
    return [(*cell, t.get_text()) for cell, t in zip(cells, ax.texts, strict=True)]


@pytest.mark.parametrize('up, right', [(0, 0), (0, -2), (1, 0), (2, 3), (3, -1)])
def test_kernels_are_drawn_where_they_look(up, right):
    """One tap alone: its place in the drawing, with the cell in the middle of the bottom row, is that of the token that the
    model is then seen to look at."""
    W, T = 8, 32
    model = build(replace(pacing.Config.tiny(), n_layer=1, columns=W, block_size=T, vocab_size=V), spared=['gamma'])
    back = up * W - right
    weight = model.picture.blocks[0].dwconv.weight
    weight.data.zero_()
    weight.data[5, 0, pacing.taps(W).index(back)] = 0.75
    matrix = look.influence(model, tokens(2, T))
    assert {d for d in range(T) if np.diagonal(matrix, -d).max() > 0} == {0, back}
    kernels = dict(parts.causal_picture(model, tokens(1, T), ['x'] * T))['kernels'].axes
    grid = shown(kernels[5])
    assert grid.shape == (4, 7) and grid[3 - up, 3 + right] == 0.75 and np.nansum(np.abs(grid)) == 0.75
    assert np.isnan(grid[3, 4:]).all() and np.isnan(grid).sum() == 3        # what is right of the cell is not seen
    assert np.nansum(np.abs(shown(kernels[4]))) == 0


def test_the_causal_picture():
    """In reading order; a token has one colour wherever it stands, and the last row is filled up with white."""
    model, x = build(CONFIGS['pacing']), torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
    left, right, *_ = drawn(parts.causal_picture(model, x, list('314159265\n')))['picture'].axes
    image = shown(left)
    assert image.shape == (3, 4, 3) and (image[2, 2:] == 1).all()
    colours = image.reshape(-1, 3)[:10]
    for i in range(10):
        for j in range(10):
            assert np.allclose(colours[i], colours[j]) == (x[0, i] == x[0, j]), (i, j)
    assert labels_on(right, 4, 1) == [(*divmod(i, 4), c) for i, c in enumerate('314159265⏎')]


def test_the_picture_of_the_seed():
    """A patch a token, the newest in the upper left corner, so the labels run backwards; the rest is blank."""
    model, ids = build(CONFIGS['last']), [3, 1, 4, 8, 5, 9]
    model.wpe.weight.data.zero_()
    model.wte.weight.data[:] = torch.arange(V)[:, None]
    left, right, *_ = drawn(parts.seed_picture(model, torch.tensor([ids]), list('31 859')))['picture'].axes
    cells = np.array([9, 5, 8, 4, 1, 3] + [0] * 10).reshape(4, 4) / 9
    assert shown(left) == pytest.approx(cells.repeat(4, 0).repeat(4, 1)[:, :, None].repeat(3, 2))
    assert labels_on(right, 4, 4) == [(*divmod(i, 4), c) for i, c in enumerate('958␣13')]


def test_the_kernels_of_the_seed():
    model = build(CONFIGS['last'])
    axes = dict(parts.seed_picture(model, tokens(1, 16), ['x'] * 16))['kernels'].axes
    for ax, kernel in zip(axes, model.picture.stages[0][0].dwconv.weight[:, 0].detach().numpy(), strict=False):
        assert np.array_equal(shown(ax), kernel)
    assert [len(ax.images) for ax in axes[:12]] == [1] * 8 + [0] * 4


# all together -----------------------------------------------------------------------------------------------------------------

CHARS = sorted({*'abcdefgh .\n'})


def pictures(model, prompt, arch=gpt, name='run'):
    tokenizer = Tokenizer({'kind': 'char', 'chars': CHARS})
    return dict(look.pictures(model, arch, name, tokenizer, tokenizer.encode(prompt)))


@pytest.mark.parametrize('prompt', ['abc d', 'abc d.\nefgh ab ab gh fe dc ba ab'])
def test_an_architecture_draws_its_own(monkeypatch, prompt):
    """Its pictures(model, x, labels) is shown the end of the text, as much as a window takes, beside what it has of others."""
    told = []

    def own(model, x, labels):
        told.append((x.tolist(), labels))
        yield 'mine', plt.figure()
        yield 'more', plt.figure()
    monkeypatch.setattr(gpt, 'pictures', own, raising=False)
    names = list(pictures(build(CONFIGS['gpt']), prompt))
    assert names == ['influence', 'surprise', 'attention', 'mine', 'more']
    assert told == [([[CHARS.index(c) for c in prompt[-16:]]], list(prompt[-16:]))]


def test_a_prompt_is_drawn_whole():
    """All of it but the first token, which nothing comes before, on as many lines as it has."""
    lines, _ = laid_out(pictures(build(CONFIGS['gpt']), 'ab\ncd ef\ngh')['surprise'].axes[0])
    assert lines == ['b⏎', 'cd ef⏎', 'gh']


def test_the_name_of_the_run_is_not_mathematics():
    for name, figure in pictures(build(CONFIGS['gpt']), 'abc d', name='lr$_$2').items():
        assert look.png(figure), name


def test_a_network_of_no_blocks():
    """n_layer=0 trains, as the loop's own baseline, and has no kernels to show."""
    assert 'picture' in pictures(build(replace(CONFIGS['pacing'], n_layer=0)), 'abc d', pacing)


def test_the_shortest_windows():
    figures = drawn(pictures(build(replace(CONFIGS['gpt'], block_size=1)), 'ab').items())
    assert figures.keys() == {'influence', 'surprise', 'attention'}


# the command line -------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def runs(dataset, tmp_path_factory):
    """{kind: the folder of a finished run}."""
    folder = tmp_path_factory.mktemp('look')
    for kind, words in WORDS.items():
        train.main([w for w in tiny_train(dataset, folder / kind, *words, '--max_iters=5', '--sample_tokens=0')[1:]
                    if kind == 'gpt' or 'n_head' not in w])
    return {kind: folder / kind for kind in WORDS}


def written(folder):
    """The names of the PNGs in a folder, each of a size to look at, with more than one colour, and nothing else there."""
    names = set()
    for path in folder.iterdir():
        width, height = struct.unpack('>II', path.read_bytes()[16:24])
        assert 300 < width < 4000 and 100 < height < 4000, (path, width, height)
        pixels = plt.imread(path)           # raises if it is cut short
        assert pixels.shape[:2] == (height, width) and pixels[:, :, :3].std() > 0.01, path
        names.add(path.name)
    return names


@pytest.mark.parametrize('kind, parts', [('gpt', ['attention']), ('pacing', ['picture', 'kernels']),
                                         ('last', ['picture', 'kernels']), ('links', LINKS), ('centered', LINKS)])
def test_what_is_written(runs, cli, kind, parts):
    done = cli('look.py', runs[kind])
    assert done.returncode == 0, done.stderr
    assert 'Warning' not in done.stderr, done.stderr
    names = [f'{n}.png' for n in ('influence', 'context', 'surprise', *parts) if kind != 'centered' or n != 'context']
    assert written(runs[kind] / 'look') == set(names)
    said = [f'context.png was left out: {CENTERED}'] * (kind == 'centered')
    assert done.stdout.splitlines() == [*(str(runs[kind] / 'look' / n) for n in names), *said]


def test_a_text_of_one_s_own(runs, dataset, tree, cli, refused):
    """Where the data set is gone nothing else can be looked at, and what context is worth cannot be told."""
    said = refused('look.py', runs['gpt'], cwd=tree)
    assert f'data/{dataset.name} is not here' in said and '--prompt' in said
    done = cli('look.py', runs['gpt'] / 'ckpt.pt', '--prompt', 'abc d\nefgh', '--out', tree / 'deep' / 'er', cwd=tree)
    assert done.returncode == 0, done.stderr
    assert written(tree / 'deep' / 'er') == {'influence.png', 'surprise.png', 'attention.png'}
    assert f'context.png was left out: data/{dataset.name} is not what the run was trained on' in done.stdout


def test_another_data_set_of_that_name(runs, dataset, tmp_path, monkeypatch, capsys):
    """Is taken for none: its loss would be that of another text."""
    meta, fingerprint = (dataset / 'meta.json').read_text(), checkpoint.load(runs['gpt'] / 'ckpt.pt')['data']['fingerprint']
    assert meta.count(fingerprint) == 1
    (tmp_path / 'data' / dataset.name).mkdir(parents=True)
    (tmp_path / 'data' / dataset.name / 'meta.json').write_text(meta.replace(fingerprint, fingerprint[::-1]))
    monkeypatch.setattr(look, 'ROOT', tmp_path)
    with pytest.raises(UserError, match=r'is not what the run was trained on: prepare it, or say --prompt'):
        look.main([str(runs['gpt']), '--out', str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()
    look.main([str(runs['gpt']), '--prompt', 'abc d', '--out', str(tmp_path / 'out')])
    assert written(tmp_path / 'out') == {'influence.png', 'surprise.png', 'attention.png'}
    assert 'context.png was left out' in capsys.readouterr().out


def test_a_short_text_of_links(runs, tree, cli):
    done = cli('look.py', runs['links'] / 'ckpt.pt', '--prompt', 'ab', '--out', tree / 'out', cwd=tree)
    assert done.returncode == 0 and 'Warning' not in done.stderr, done.stderr
    assert written(tree / 'out') == {f'{n}.png' for n in ('influence', 'surprise', *LINKS)}


@pytest.mark.parametrize('prompt, said', [('a', '--prompt has 1 token: at least 2 are needed'), ('abcZ', "no token for 'Z'")])
def test_a_prompt_that_cannot_be_looked_at(runs, refused, tmp_path, prompt, said):
    assert said in refused('look.py', runs['gpt'], '--prompt', prompt, '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_run_that_is_not_there(refused, tmp_path):
    assert f'there is no checkpoint {tmp_path / "absent"}' in refused('look.py', tmp_path / 'absent')


@pytest.mark.parametrize('words, said', [(['--prompt', ''], '--prompt has 0 tokens'), (['--device', 'tpu'], "device='tpu'"),
                                         (['--nosuch'], '--nosuch'), (['--out', __file__], 'cannot be written')])
def test_refused_in_a_sentence(runs, words, said):
    with pytest.raises(UserError) as e:
        look.main([str(runs['gpt']), *words])
    assert said in str(e.value) and len(str(e.value).splitlines()) == 1
