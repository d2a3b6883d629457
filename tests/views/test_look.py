"""look.py: measurements against brute force, figures read back, and the command line."""

import math
import re
import struct
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import sentence, tiny_train

import look
import model as gpt
import pacing
import train
from harness import checkpoint, data, device
from harness.arch import complete
from harness.tokenizer import Tokenizer
from views import attention, behaviour
from views import tasks as task_views

plt = behaviour.plt
V = 11                                      # characters of the test data of conftest.py
CONFIGS = {'gpt': gpt.Config(block_size=16, vocab_size=V, n_layer=2, n_head=2, n_embd=16),
           'pacing': replace(pacing.Config.tiny(), vocab_size=V),
           'last': replace(pacing.Config.tiny(), vocab_size=V, predicts='last')}
each_kind = pytest.mark.parametrize('kind', CONFIGS)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


def build(config, spared=()):
    """A model in which no parameter is 0 by initialisation, except those whose names end in `spared`."""
    torch.manual_seed(0)
    model = complete((gpt if isinstance(config, gpt.Config) else pacing).Model(config)).eval()
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
        assert behaviour.png(figure).startswith(b'\x89PNG')
    return figures


def pixels(ax):
    """The image on an axes, nan where it is masked."""
    return np.ma.filled(ax.images[0].get_array(), np.nan)


def texts(ax):
    return [t.get_text() for t in ax.texts]


# influence ----------------------------------------------------------------------------------------------------------------

class Offsets(nn.Module):
    """The logits at t are a sum of random tables, one for each offset, of the token `offset` places before t."""
    predicts, bidirectional = 'every', False

    def __init__(self, *offsets, size=9):
        super().__init__()
        self.config, self.offsets = SimpleNamespace(block_size=size, vocab_size=V), offsets
        self.table = torch.randn(len(offsets), V, V, generator=torch.Generator().manual_seed(3))

    def forward(self, x):
        T, logits = x.shape[1], torch.zeros(*x.shape, V)
        for table, offset in zip(self.table, self.offsets, strict=True):
            out = torch.arange(max(0, offset), min(T, T + offset))
            logits[:, out] += table[x[:, out - offset]]
        return logits, None


def test_influence_by_brute_force():
    """The mean over windows and tries of half the L1 distance, for the replacements that were made, one token at a time."""
    calls = []

    class Recorded(Offsets):
        def forward(self, x):
            calls.append(x.clone())
            return super().forward(x)
    model, x = Offsets(0, 3), tokens(2, 9)
    matrix = behaviour.influence(Recorded(0, 3), x, tries=3)
    before, *changed = calls
    assert torch.equal(before, x.repeat(3, 1)) and len(changed) == 9
    for s, new in enumerate(changed):
        assert torch.equal(new != before, (torch.arange(9) == s).expand(6, 9))
        for t in range(9):
            p, q = (model(z)[0][:, t].softmax(-1) for z in (before, new))
            assert matrix[t, s] == pytest.approx(((p - q).abs().sum(-1) / 2).mean().item(), abs=1e-6)
    expected = np.eye(9) + np.eye(9, k=-3)
    assert np.array_equal(matrix > 0, expected > 0) and matrix[expected > 0].min() > 0.01


def test_influence_is_one_where_all_the_mass_moves():
    class Certain(Offsets):
        def forward(self, x):
            return 1e4 * nn.functional.one_hot(x, V).float(), None
    for x in (tokens(3, 9), torch.full((3, 9), 4)):         # also where the text has no other token
        assert np.array_equal(behaviour.influence(Certain(), x), np.eye(9))


@pytest.mark.parametrize('offsets, bidirectional, title', [
    ((0, 3), False, 'depends on 4 of 9 tokens back; no influence from later tokens'),
    ((0, -1), False, r'depends on 1 of 9 tokens back; LEAK of ([\d.]+) from later tokens'),
    ((1, 3, -1, -3), True, 'depends on 3 tokens before and 3 after; no influence from itself'),
    ((0, 1), True, r'depends on 1 tokens before and 0 after; LEAK of ([\d.]+) from itself')])
def test_a_leak_is_shown(offsets, bidirectional, title):
    matrix = behaviour.influence(Offsets(*offsets), tokens(2, 9))
    figure = behaviour.draw_influence(matrix, bidirectional=bidirectional)
    left, right, *_ = figure.axes
    found = re.fullmatch(title, right.get_title())
    assert found, right.get_title()
    if found.groups():
        assert float(found[1]) == pytest.approx(matrix.diagonal(0 if bidirectional else 1).max(), rel=0.05)
        assert pixels(left)[2, 2 if bidirectional else 3] > 1e-4
    curve = right.lines[0].get_ydata()          # of distance - 1
    assert curve == pytest.approx([max(np.diagonal(matrix, -d).mean(), 1e-9) for d in range(bidirectional, 9)])
    if bidirectional:
        assert right.lines[1].get_ydata()[2] == pytest.approx(max(np.diagonal(matrix, 3).mean(), 1e-9))
    assert any('threshold' in t.get_text() and '1e-6' in t.get_text() for t in right.get_legend().texts)
    assert 'line' in figure.legends[0].texts[0].get_text()


@each_kind
def test_architectures_depend_on_the_past_only(kind):
    matrix = behaviour.influence(build(CONFIGS[kind]), tokens(4, 16))
    assert matrix.shape == ((1, 16) if kind == 'last' else (16, 16)) and matrix.max() <= 1
    assert (np.triu(matrix, 16 - len(matrix) + 1) == 0).all() and (matrix[np.tril_indices(len(matrix), 0, 16)] > 0).all()
    title = behaviour.draw_influence(matrix).axes[1].get_title()
    assert title == 'depends on 16 of 16 tokens back; no influence from later tokens'


def test_a_single_output_is_drawn_newest_first():
    right = behaviour.draw_influence(np.array([[0.0, 0.0, 0.25, 0.5]])).axes[1]
    assert right.lines[0].get_ydata()[:2].tolist() == [0.5, 0.25] and right.get_title().startswith('depends on 2 of 4')


# loss by context and surprise ---------------------------------------------------------------------------------------------

@torch.no_grad()
@each_kind
def test_losses_by_position_by_brute_force(kind, monkeypatch):
    monkeypatch.setattr(behaviour, 'LOGITS', 3 * 12 * V)        # batches of 3, and one left over
    model, x, y = build(CONFIGS[kind]), tokens(7, 12), tokens(7, 12, seed=2)
    found = behaviour.losses_by_position(model, x, y)
    assert list(found) == ([1, 2, 4, 8, 12] if kind == 'last' else list(range(1, 13)))
    for n, losses in found.items():
        end, start = (12, 12 - n) if kind == 'last' else (n, 0)
        expected = [-model(row[None, start:end])[0][0, -1].log_softmax(-1)[target[end - 1]].item()
                    for row, target in zip(x, y, strict=True)]
        assert losses == pytest.approx(expected, abs=1e-4), n


@each_kind
def test_losses_by_position_are_those_of_training(dataset, kind):
    model, text = build(CONFIGS[kind]), data.TextData(dataset)
    starts = text.val_indices(21, 16)
    scores = train.evaluate(model, text, starts, 4, device.setup('cpu', 'float32', False))
    found = behaviour.losses_by_position(model.eval(), *text.windows('val', starts, 16))
    assert found[16].mean() == pytest.approx(scores['val_loss_full'], rel=1e-5)
    assert kind == 'last' or np.mean(list(found.values())) == pytest.approx(scores['val_loss'], rel=1e-5)


def test_context_is_drawn_with_its_standard_error():
    ax, = behaviour.draw_context({4: np.array([1.0, 2.0]), 1: np.array([3.0, 4.0]), 2: np.array([2.0, 2.0])}).axes
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 4] and ax.lines[0].get_ydata().tolist() == [3.5, 2, 1.5]
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(3.5 + 0.5 / math.sqrt(2)) and '3.50 after 1 token, 1.50 after 4' in ax.get_title()
    assert 'standard error' in ax.get_legend().texts[1].get_text()


@torch.no_grad()
@pytest.mark.parametrize('length, first', [(10, 1), (40, 5), (40, 20)])
@each_kind
def test_surprise_by_brute_force(kind, length, first, monkeypatch):
    monkeypatch.setattr(behaviour, 'LOGITS', 3 * 16 * V)
    model, ids = build(CONFIGS[kind]), tokens(length).tolist()
    expected = [-model(torch.tensor([ids[max(0, i - 16):i]]))[0][0, -1].log_softmax(-1)[ids[i]].item() / math.log(2)
                for i in range(first, length)]
    assert behaviour.surprise(model, ids, first) == pytest.approx(expected, abs=1e-4)


def layout(ax):
    """The characters on the axes as lines, and the colour value below each."""
    grid, rows = pixels(ax), {}
    for t in ax.texts:
        column, row = map(int, t.get_position())
        rows.setdefault(row, {})[column] = t.get_text()
    return [''.join(rows.get(r, {}).get(c, ' ') for c in range(grid.shape[1])).rstrip() for r in range(len(grid))], grid


def test_surprise_is_drawn_line_by_line():
    """A token of several characters has one colour, also across a line break; a token without a prediction has none."""
    n = np.nan
    ax, *_ = behaviour.draw_surprise(['ab', 'c\nd', 'e', '\n', '\n', 'f'], [n, 2, 3, 4, 5, 6]).axes
    lines, grid = layout(ax)
    assert lines == ['abc⏎', 'de⏎', '⏎', 'f']
    assert np.array_equal(grid, [[n, n, 2, 2], [2, 3, 4, n], [5, n, n, n], [6, n, n, n]], equal_nan=True)
    assert '4.00 bits per token (grey: no prediction)' in ax.get_title() and len(ax.patches) == 2


@pytest.mark.parametrize('text, longest, lines', [
    ('abcdefghij' * 9 + '\n' + 'k' * 5, 80, ['abcdefghij' * 8, 'abcdefghij⏎', 'kkkkk']),
    ('abcdefg', 3, ['abc', 'def', 'g']), ('abc\r\nde\r\nf', 80, ['abc·⏎', 'de·⏎', 'f']), ('ab\n', 80, ['ab⏎'])])
def test_lines_are_wrapped(text, longest, lines):
    found, grid = layout(behaviour.draw_surprise(list(text), range(len(text)), longest).axes[0])
    assert found == lines and np.nanmax(grid) == len(text) - 1


ODD = [*'$x_$ ^{\\a}%\t\x00\x1b\x7f\xa0\u200b~&#"<', '$\\frac$', '\ufffd', '\n', 'é']


def test_odd_characters_are_drawn_as_they_are():
    """No mathtext, and nothing that the font lacks (a warning)."""
    with warnings.catch_warnings(action='error'):
        figure = behaviour.draw_surprise(ODD, range(len(ODD)))
        model = build(replace(CONFIGS['gpt'], block_size=32, vocab_size=len(ODD)))
        drawn([('surprise', figure), *attention.attention(model, torch.arange(len(ODD))[None], ODD)])
    assert layout(figure.axes[0])[0] == [''.join(c if c.isprintable() else '·' for c in ''.join(ODD[:-2])) + '⏎', 'é']


# attention ----------------------------------------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize('length', [16, 5, 3])
def test_attention_is_what_the_model_computes(length):
    """The weights in the figure give each layer's output from its values."""
    model, x = build(CONFIGS['gpt']), tokens(1, length)
    calls = []
    for block in model.h:
        block.attn.register_forward_hook(lambda module, args, output: calls.append((module, args[0], output)))
    labels = [chr(97 + i) for i in range(length)]
    (_, figure), = attention.attention(model, x, labels)
    assert len(calls) == 2 and all(len(block.attn._forward_hooks) == 1 for block in model.h)    # its own hooks are removed
    *panels, bar = figure.axes
    assert bar.get_ylabel() == 'attention weight'
    for layer, (module, h, output) in enumerate(calls):
        row = panels[2 * layer:2 * layer + 2]
        weights = torch.tensor(np.stack([pixels(ax) for ax in row]))                            # (H, T, T)
        assert [ax.get_title() for ax in row] == [f'layer {layer + 1}, head {i}' for i in (1, 2)]
        assert [t.get_text() for t in row[0].get_xticklabels()] == [t.get_text() for t in row[0].get_yticklabels()] == labels
        assert texts(row[0]) == ([f'{w:.2f}' for w in weights[0].flatten()] if length <= 4 else [])
        assert (weights.triu(1) == 0).all() and (weights.sum(-1) - 1).abs().max() < 1e-5
        assert weights[:, -1].max() - weights[:, -1].min() > 0.02           # else any weights would pass below
        v = module.c_attn(h)[0, :, 32:].view(length, 2, 8).transpose(0, 1)                      # (H, T, D)
        again = module.c_proj((weights @ v).transpose(0, 1).reshape(length, 16))
        torch.testing.assert_close(again, output[0], atol=1e-4, rtol=1e-4)


# tasks --------------------------------------------------------------------------------------------------------------------

def test_the_constant_answer_is_that_of_chance(task_data):
    for kind, metric in (('classify', 'accuracy'), ('bits', 'accuracy'), ('regress', 'error')):
        task = data.open_data(task_data(kind).name)
        answer, (y, val) = task.chance_answer(metric), (task.splits[s][1][:] for s in ('train', 'val'))
        if kind == 'classify':
            score = (val == int(answer.removeprefix('always '))).mean()
        elif kind == 'regress':
            score = np.abs(val - float(answer.removeprefix('always '))).mean()
        else:
            assert 'more frequent value of each bit' in answer
            score = (val == (y.mean(0) > 0.5)).mean()
        assert task.chance()[metric] == pytest.approx(score)
        assert f'({answer}: ' in task.format_metrics({'val_loss': 1.0, metric: 0.5})


def test_wrong_bits_are_drawn():
    _, ax = plt.subplots()
    expected, given = np.array([1, 0, 1, 0], bool), np.array([1, 1, 0, 0], bool)
    task_views.draw_answer_bits(ax, expected, given)
    assert texts(ax) == list('11011000')
    assert (pixels(ax)[0] != pixels(ax)[1]).any(-1).tolist() == [False, True, True, False]
    expected = np.zeros(1000, bool)
    task_views.draw_answer_bits(ax, expected, np.arange(1000) == 321)
    assert ax.get_xlabel() == 'bits 321 to 360' and (ax.images[-1].get_array()[1, 1] != ax.images[-1].get_array()[0, 1]).any()


@torch.no_grad()
def test_gaze_has_one_scale_for_all_layers():
    import vit
    torch.manual_seed(0)
    model = complete(vit.Model(replace(vit.Config.tiny(), block_size=6, features=16, outputs=3, kind='classify'))).eval()
    x = torch.rand(1, 6, 16)
    draw = {'as': 'image', 'height': 8, 'width': 12, 'channels': 1, 'patch': 4}
    task = SimpleNamespace(meta={'draw': draw}, splits={'val': (x.numpy(), None)})
    _, *panels, bar = task_views.draw_gaze(model, x, task, 0).axes
    T = 6 + (getattr(model, 'cls', None) is not None)
    for ax, maps in zip(panels, attention.attention_maps(model, x), strict=True):
        overlay = ax.images[1]
        assert overlay.norm.vmin == 0 and overlay.norm.vmax == panels[0].images[1].norm.vmax >= 4 / T
        assert np.allclose(overlay.get_array().ravel(), maps.mean(0)[0 if T == 7 else -1][-6:])
    assert any(f'1/{T}, uniform' in t.get_text() for t in bar.get_yticklabels())


# all pictures of a model --------------------------------------------------------------------------------------------------

CHARS = sorted({*'abcdefgh .\n'})


def pictures(model, prompt, own=lambda *_: (), only=None):
    tokenizer = Tokenizer({'kind': 'char', 'chars': CHARS})
    ids = tokenizer.encode(prompt)
    return dict(look.choose(look.text_views(model, tokenizer, ids), lambda: own(*look.window_of(model, tokenizer, ids)), only))


def test_pictures_are_chosen_by_name():
    """A model file's own pictures get the end of the text; what is not chosen is not drawn."""
    calls = []

    def own(x, labels):
        calls.append((x.tolist(), labels))
        yield 'mine', plt.figure()
        yield 'more', plt.figure()
    model, prompt = build(CONFIGS['gpt']), 'abc d.\nefgh ab ab gh fe dc ba ab'
    assert list(pictures(model, prompt, own)) == ['influence', 'surprise', 'attention', 'mine', 'more']
    assert calls == [([[CHARS.index(c) for c in prompt[-16:]]], list(prompt[-16:]))]
    assert list(pictures(model, prompt, own, ['surprise', 'influence'])) == ['surprise', 'influence'] and len(calls) == 1
    assert list(pictures(model, prompt, own, ['more'])) == ['more']
    said = sentence(pictures, model, prompt, own, ['surprise', 'nosuch'])
    assert "'nosuch'" in said and 'influence, surprise, attention, mine, more' in said


def test_a_prompt_is_drawn_whole():
    ax, *_ = pictures(build(CONFIGS['gpt']), 'ab\ncd ef\ngh')['surprise'].axes
    lines, grid = layout(ax)
    assert lines == ['ab⏎', 'cd ef⏎', 'gh'] and np.isnan(grid[0, 0]) and grid[0, 1] > 0


def test_the_shortest_window():
    figures = drawn(pictures(build(replace(CONFIGS['gpt'], block_size=1)), 'ab').items())
    assert figures.keys() == {'influence', 'surprise', 'attention'}


# the command line ---------------------------------------------------------------------------------------------------------

WORDS = {'gpt': [], 'pacing': ['--arch=pacing', '--columns=4'],
         'last': ['--arch=pacing', '--predicts=last', '--columns=4', '--patch_size=4', '--depths=(1,1)', '--dims=(8,16)'],
         'centered': ['--arch=highorder', '--features=5', '--centered'], 'bert': ['--arch=bert']}
EDGES, PICTURE = ['links', 'segments', 'refinement'], ['picture', 'kernels']


@pytest.fixture(scope='module')
def runs(dataset, tmp_path_factory):
    """{kind: the folder of a finished run}."""
    folder = tmp_path_factory.mktemp('look') / 'lr$_$2'         # no mathematics
    for kind, words in WORDS.items():
        train.main([w for w in tiny_train(dataset, folder / kind, *words, '--max_iters=5', '--sample_tokens=0')[1:]
                    if kind in ('gpt', 'bert') or 'n_head' not in w])
    return {kind: folder / kind for kind in WORDS}


def written(folder):
    """The names of the PNGs in a folder, each of a reasonable size and with more than one colour."""
    for path in folder.iterdir():
        width, height = struct.unpack('>II', path.read_bytes()[16:24])
        image = plt.imread(path)            # raises if it is truncated
        assert 300 < width < 4000 and 100 < height < 4000 and image.shape[:2] == (height, width), path
        assert image[:, :, :3].std() > 0.01, path
    return {path.stem for path in folder.iterdir()}


@pytest.mark.parametrize('kind, own', [('gpt', ['attention']), ('pacing', PICTURE), ('last', PICTURE), ('centered', EDGES),
                                       ('bert', ['attention'])])
def test_all_pictures_of_a_run(runs, capsys, monkeypatch, kind, own):
    monkeypatch.setattr(look, 'CONTEXT', 1 << 12)
    with warnings.catch_warnings(action='error', category=UserWarning):
        look.main([str(runs[kind])])
    names = [n for n in ('influence', 'context', 'surprise', *own) if n != 'context' or kind not in ('centered', 'bert')]
    printed = capsys.readouterr().out.splitlines()
    assert written(runs[kind] / 'look') == set(names)
    assert [line for line in printed if line.endswith('.png')] == [str(runs[kind] / 'look' / f'{n}.png') for n in names]
    assert any('context.png was left out' in line for line in printed) == (kind in ('centered', 'bert'))


def test_the_checkpoint_is_named(runs, tmp_path, monkeypatch, capsys):
    """Its step is in the titles, and step 0 is an untrained network."""
    titles, real = [], behaviour.png
    monkeypatch.setattr(behaviour, 'png', lambda figure: titles.append(figure.get_suptitle()) or real(figure))
    content = checkpoint.load(runs['gpt'] / 'ckpt.pt')
    for step in (5, 0):
        checkpoint.save(tmp_path / 'best.pt', {k: v for k, v in content.items() if k != 'format'} | {'step': step})
        look.main([str(tmp_path), '--prompt=abc d', '--only=attention.png'])
        assert ('step 0: this network is untrained' in capsys.readouterr().out) == (step == 0)
        assert titles[-1].startswith(f'{tmp_path.name}, step {step}: attention')


def test_help_imports_no_plots(cli):
    code = 'import sys, look, sample\nfor command in (look, sample):\n  try: command.main(["--help"])\n' \
           '  except SystemExit: pass\n'
    assert cli('-c', code + 'print("matplotlib" in sys.modules)').stdout.endswith('False\n')


def test_a_prompt_needs_no_data(runs, dataset, tmp_path, monkeypatch, capsys):
    """Neither missing data nor other data of that name is used: the loss would be that of another text."""
    out = ['--out', str(tmp_path / 'deep' / 'er')]
    monkeypatch.setattr(data, 'ROOT', tmp_path)
    meta, fingerprint = (dataset / 'meta.json').read_text(), data.read_meta(dataset)['fingerprint']
    for prompt in ('ab', 'abc d\nefgh'):
        said = sentence(look.main, [str(runs['gpt']), *out])
        assert f'data/{dataset.name} is missing or is not' in said and '--prompt' in said
        look.main([str(runs['gpt'] / 'ckpt.pt'), '--prompt', prompt, *out])
        assert written(tmp_path / 'deep' / 'er') == {'influence', 'surprise', 'attention'}
        assert f'context.png was left out: data/{dataset.name}' in capsys.readouterr().out
        (tmp_path / 'data' / dataset.name).mkdir(parents=True, exist_ok=True)
        for file in dataset.iterdir():
            (tmp_path / 'data' / dataset.name / file.name).write_bytes(file.read_bytes())
        (tmp_path / 'data' / dataset.name / 'meta.json').write_text(meta.replace(fingerprint, fingerprint[::-1]))


@pytest.mark.parametrize('words, said', [
    (['--prompt=a'], '--prompt has 1 token'), (['--prompt='], '--prompt has 0 tokens'), (['--prompt=abcZ'], "no token for 'Z'"),
    (['--device=tpu'], "device='tpu'"), (['--nosuch'], '--nosuch'), (['--out', __file__], 'cannot be written'),
    (['--only=influence,nosuch'], "--only: there is no picture 'nosuch'")])
def test_bad_commands(runs, tmp_path, words, said):
    assert said in sentence(look.main, [str(runs['gpt']), '--out', str(tmp_path / 'out'), *words])
    assert not (tmp_path / 'out').exists()
