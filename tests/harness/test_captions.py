"""harness/captions.py: what models of images and captions read, their metrics, and runs from their data to their pictures."""

import functools
import json
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import names, resumes, script, sentence, tiny_run
from PIL import Image

import clip
import look
import sample
import train
import transformer
from extras import truth, zeroshot
from harness import checkpoint, data, device
from harness.captions import PROMPTS, RECALLS, encode_image
from harness.files import read_image
from prepare import common, shapes
from race import tables
from tests.models.test_clip import published  # noqa: F401
from tests.models.test_vit import patches


@pytest.fixture(scope='module')
def module_root(tmp_path_factory):
    """An empty folder in which this process looks for data/, with data/shapes and data/shapes_classes in patches of 8."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp('captions')
        for module in (data, common):
            patch.setattr(module, 'ROOT', folder)
        script('prepare/shapes.py', '--examples=120')
        script('prepare/shapes_classes.py', '--examples=180')
        yield folder


def go(arch, out_dir, *more, without=('block_size',)):
    return tiny_run('shapes', out_dir, f'--arch={arch}', '--patch=8', '--schedule=constant', '--eval_windows=0', *more,
                    without=without)


@pytest.fixture(scope='module')
def runs(module_root):
    """{name of an architecture: the folder of a run on data/shapes}."""
    for arch in ('clip', 'transformer'):
        go(arch, module_root / arch, '--max_iters=10')
    return {arch: module_root / arch for arch in ('clip', 'transformer')}


@pytest.fixture
def image(tmp_path, module_root):
    """A picture of another size, with transparent parts."""
    pixels = np.full((40, 60, 4), 255, np.uint8)
    pixels[10:20, 20:30] = 220, 40, 40, 255
    pixels[:5] = 0
    Image.fromarray(pixels, 'RGBA').save(tmp_path / 'picture.png')
    return tmp_path / 'picture.png'


def test_images_and_captions(module_root):
    for modality in ('pairs', 'captions'):
        found = data.open_data('shapes', modality=modality, patch=8)
        x, y = found.batch('val', np.arange(5), None)
        images = torch.from_numpy(np.array(found.splits['val'][0][:5])).permute(0, 3, 1, 2).float()
        mean, deviation = (torch.tensor(v)[:, None, None] for v in found.meta['standard'])
        torch.testing.assert_close(x, patches((images - mean) / deviation, 8), atol=1e-4, rtol=1e-4)
        assert ((y == found.vocab_size - 1).sum(1) == 1).all() and (y >= 0).any(0).all()
        assert found.model_settings() == {'vocab_size': found.vocab_size, 'block_size': found.captions['train'].shape[1],
                                          'source_size': 16, 'features': 192}
    assert sorted(found.train_indices(120, 1, 0, 0)) == [*range(120)], 'an image is twice in a batch'
    # classes become captions
    found = data.open_data('shapes_classes', modality='captions', patch=8)
    labels, (x, rows) = found.meta['labels'], found.splits['train']
    y = np.load(found.folder / 'train_y.npy')
    assert len(x) == len(y) == 180
    for i in (0, 1, 7, 179):
        assert found.text(rows[i]) == PROMPTS[i % len(PROMPTS)].format(labels[y[i]])


def test_recall_by_its_definition(module_root, monkeypatch):
    """Of images whose captions occur several times, in any division into batches; a tie is no success."""
    found, generator = data.open_data('shapes', modality='captions', patch=8), torch.Generator().manual_seed(0)
    rows = torch.from_numpy(found.captions['train'][[0, 1, 2, 0, 3, 4, 2, 0, 5, 6]].astype(np.int64))
    output = F.normalize(torch.randn(10, 2, 4, generator=generator), dim=-1)
    texts = [tuple(row.tolist()) for row in rows]
    output[:, 1] = output[[texts.index(text) for text in texts], 1]
    logits, unique = output[:, 0] @ output[:, 1].T, sorted(set(texts))
    of_text = {text: logits[:, texts.index(text)] for text in unique}
    ranks = {'caption': [sum(of_text[other][i] > of_text[text][i] for other in unique) for i, text in enumerate(texts)],
             'image': [min(sum((of_text[text][j] > of_text[text][i]).item() for j in range(10) if texts[j] != text)
                           for i in range(10) if texts[i] == text) for text in unique]}
    for parts in ([slice(10)], [slice(3), slice(3, 10)]):
        metrics = found.total([found.score(output[part], None, rows[part]) for part in parts])
        for name, rank in ranks.items():
            for k in (1, 5):
                assert metrics[f'{name}_at_{k}'] == pytest.approx(np.mean([r < k for r in rank])), (name, k)
    own = torch.arange(10)
    assert metrics['val_loss'] == pytest.approx(((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2).item())
    assert 0 < metrics['image_at_1'] < 1 and metrics['accuracy'] == metrics['caption_at_1']
    score = found.score(output[:1].expand(10, -1, -1), None, rows)
    assert {k: v for k, v in found.total([score]).items() if k != 'val_loss'} == dict.fromkeys(['accuracy', *RECALLS], 0)
    monkeypatch.setattr('harness.machine_memory', lambda: 3999)
    assert '10 images' in sentence(found.total, [score])


@pytest.mark.parametrize('arch', ['clip', 'transformer'])
def test_a_run(runs, module_root, arch):
    found = json.loads((runs[arch] / 'test.json').read_text())
    assert found['examples'] == 24 and {'accuracy', 'test_loss', 'chance'} <= found.keys()
    assert found['parts'].keys() == {'seen', 'held out'} and all('test_loss' in part for part in found['parts'].values())
    resumes(functools.partial(go, arch), module_root / f'two_{arch}', runs[arch])
    # the metrics do not depend on the batch
    model, _ = checkpoint.load_model(runs[arch])
    found, machine = data.open_data('shapes', modality=model.modality, patch=8), device.setup('cpu', 'float32', False)
    one, two = (train.evaluate(model, found, found.val_indices(0, 1), size, machine) for size in (5, 12))
    assert one == pytest.approx(two, rel=1e-5)


def test_an_image_of_colours_for_a_model_of_greys(tmp_path):
    Image.new('RGB', (8, 8), (200, 90, 12)).save(tmp_path / 'x.png')
    content = {'data': {'shape': (4, 4, 1), 'standard': [[0.0], [1.0]]}, 'loop': {'patch': 4}}
    x, pixels = encode_image(tmp_path / 'x.png', content)
    assert x.shape == (1, 1, 16) and (x == 101).all() and (pixels == 101).all()             # the mean: 302 / 3


def test_labels_get_probabilities(runs, image, capsys):
    sample.main([str(runs['clip']), f'--image={image}', '--labels=a red circle, a blue square,red'])
    percent, labels = zip(*re.findall(r'^ *([\d.]+)% +(.+)$', capsys.readouterr().out, re.M), strict=True)
    assert labels == ('a red circle', 'a blue square', 'red') and sum(map(float, percent)) == pytest.approx(100, abs=0.2)
    sample.main([str(runs['clip']), f'--image={image}', f'--image={image}', '--labels=a red circle'])
    assert capsys.readouterr().out == f'{image}\n100.0%  a red circle\n' * 2
    sample.main([str(runs['clip']), f'--image={image}', '--labels=a red, blue and white circle;red'])
    assert capsys.readouterr().out.count('%') == 2


def test_captions_are_written_and_pictures_are_drawn(runs, image, capsys, monkeypatch):
    for beams in (1, 3):
        sample.main([str(runs['transformer']), f'--image={image}', f'--image={image}', f'--beams={beams}'])
    assert len(capsys.readouterr().out.splitlines()) == 4
    look.main([str(runs['clip'])])
    assert names(runs['clip'] / 'look') == ['pairs.png', 'similarity.png']
    look.main([str(runs['transformer'])])
    look.main([str(runs['transformer']), f'--image={image}', f'--out={image.parent}'])
    for folder in (runs['transformer'] / 'look', image.parent):
        assert (folder / 'cross_attention.png').stat().st_size > 5000
    model, content = checkpoint.load_model(runs['transformer'])
    endless = torch.ones(1, model.config.block_size, dtype=torch.int64)         # it never writes the end of a caption
    monkeypatch.setattr(transformer.Model, 'decode', lambda *_: endless)
    args = look.arguments([str(runs['transformer'])])
    _, target, _, words = look.pair_of(model, checkpoint.tokenizer(content, None), data.data_of(content), args, content)
    assert target.shape[1] == len(words) == model.config.block_size


@pytest.mark.parametrize('arch, words, said', [
    ('clip', '', '--image'), ('clip', '--image=picture.png', '--labels'), ('clip', '--labels=a', '--image'),
    ('clip', '--image=picture.png --labels=', '--labels'), ('clip', '--image=picture.png --labels=a,,b', '--labels'),
    ('clip', f'--image=picture.png --labels={"red" * 99}', 'red.*tokens'), ('clip', '--image=no.png --labels=a', 'no.png'),
    ('clip', '--image=picture.png --labels=a --start=a', '--start'),
    ('clip', '--image=cut.png --labels=a', 'cut.png'),
    ('clip', '--image=picture.png --labels=a --eval', '--eval'), ('transformer', '--start=a', '--start'),
    ('transformer', '', '--image'),
    ('clip', '--image=notes.txt --labels=a', 'notes.txt'), ('transformer', '--image=picture.png --labels=a', '--labels'),
    ('transformer', '--image=cut.png', 'cut.png'), ('transformer', '--image=picture.png --benchmark', '--benchmark')])
def test_bad_input(runs, image, monkeypatch, arch, words, said):
    monkeypatch.chdir(image.parent)
    (image.parent / 'notes.txt').write_text('no image')
    (image.parent / 'cut.png').write_bytes(image.read_bytes()[:80])
    assert re.search(said, sentence(sample.main, [str(runs[arch]), *words.split()]))


def test_bad_settings(runs, image, module_root, tmp_path):
    for arch, more, said in (('clip', ['--patch=7'], 'patch=7'), ('clip', ['--block_size=3'], 'block_size=3'),
                             ('model', [], 'without classes'), ('vit', [], 'without classes')):
        assert said in sentence(go, arch, tmp_path / 'x', '--dry_run', *more)
    for arch, word, said in (('clip', '--prompt=a', '--prompt'), ('clip', f'--image={image}', '--image'),
                             ('transformer', '--prompt=a', '--image')):
        assert said in sentence(look.main, [str(runs[arch]), word])


def test_the_captions_of_another_tokenizer(runs, module_root, tmp_path):
    """Weights are not trained on with other tokens, though there are as many."""
    shutil.copytree(module_root / 'data' / 'shapes', folder := module_root / 'data' / 'other')
    meta = json.loads((folder / 'meta.json').read_text())
    meta['tokenizer']['ranks'][-2:] = meta['tokenizer']['ranks'][:-3:-1]
    (folder / 'meta.json').write_text(json.dumps(meta))
    for arch, run in runs.items():
        words = '--max_iters=1', f'--init_from={run}'
        assert 'another tokenizer' in sentence(go, arch, tmp_path / 'x', *words, '--dataset=other')
        assert go(arch, tmp_path / arch, *words)['step'] == 1


def test_truth(runs, capsys):
    truth.main(args := [str(runs['transformer'])])
    record = json.loads((runs['transformer'] / 'truth.json').read_text())
    found = record['truth']
    assert f'| held out | {found["held out"]["true"]:.1%}' in tables.short(record) and record['command'].endswith(args[0])
    assert found['held out']['pictures'] == found['seen']['pictures'] == 12 and 0 <= found['seen']['true'] <= 1
    assert 'clip' in sentence(truth.main, [str(runs['clip'])])


def test_zero_shot_and_few_shot(runs, tmp_path, capsys):
    command = [str(runs['clip']), '--dataset=shapes_classes', '--prompts=a {};a small {}', '--shots=1,2,99', '--draws=2']
    zeroshot.main(command)
    record = json.loads((runs['clip'] / 'zeroshot_shapes_classes.json').read_text())
    found, printed = record['zeroshot'], capsys.readouterr().out
    rows = {line.split('|')[1].strip(): line for line in tables.short(record).splitlines() if '|' in line}
    for name, row in (("zero-shot, 'a {}'", found['prompt']), ('linear probe, 2 of each class', found['few_shot']['2'])):
        assert re.findall(r'[\d.]+%', rows[name]) == [f'{v:.1%}' for v in row.values()] and rows[name] in printed
    assert found['classes'] == {'named in training': 15, 'never named': 3} and [*found['few_shot']] == ['1', '2']
    assert 'left out: 99' in printed
    model, content = checkpoint.load_model(runs['clip'])
    classes = data.open_data('shapes_classes', modality='images')
    (x, y), (test, truth) = ((zeroshot.image_vectors(model, x, content), y)
                             for x, y in (classes.splits[split] for split in ('train', 'test')))
    right = np.mean([zeroshot.probe(x[rows], torch.from_numpy(y[rows]).long(), 18, test).numpy() == truth
                     for rows in zeroshot.choices(y, [2], 2)[2]], 0)            # from the vectors of all images
    never = [classes.meta['labels'].index(' '.join(kind)) for kind in shapes.HELD_OUT]
    assert found['few_shot']['2']['never named'] == pytest.approx(right[np.isin(truth, never)].mean(), abs=1e-6)
    assert found['few_shot']['2']['named in training'] == pytest.approx(right[~np.isin(truth, never)].mean(), abs=1e-6)
    tested = json.loads((runs['clip'] / 'test.json').read_text())          # what train.py found on the same split
    assert {k: found['recall'][k] for k in RECALLS} == pytest.approx({k: tested[k] for k in RECALLS})
    assert '| the caption of an image' in printed and found['recall']['images'] == tested['examples']
    for more, said in ((['--prompts=a'], '--prompts'), (['--prompts='], '--prompts'), (['--names=a,b'], '--names=a,b'),
                       (['--shots=0'], '--shots=0')):
        assert said in sentence(zeroshot.main, [*command, *more])
    zeroshot.main(command[:1])
    alone = json.loads((runs['clip'] / 'recall.json').read_text())
    assert alone['zeroshot']['recall'] == found['recall'] and tables.short(alone).startswith('| recall, ')
    assert '--shots has no effect' in sentence(zeroshot.main, [command[0], '--shots=1'])
    assert 'transformer' in sentence(zeroshot.main, [str(runs['transformer']), *command[1:]])
    content = checkpoint.load(runs['clip'] / 'best.pt')
    checkpoint.save(moved := tmp_path / 'moved.pt', content | {'data': content['data'] | {'fingerprint': '0'}})
    assert 'data/shapes, which ' in sentence(zeroshot.main, [str(moved), *command[1:]]) and names(tmp_path) == ['moved.pt']


def test_a_probe_separates_what_can_be_separated():
    torch.manual_seed(0)
    centers, y = F.normalize(torch.randn(5, 8), dim=1), torch.arange(200) % 5
    x = F.normalize(centers[y] + 0.05 * torch.randn(200, 8), dim=1)
    assert torch.equal(zeroshot.probe(x[:50], y[:50], 5, x), y)
    chosen = zeroshot.choices(y.numpy(), [1, 3, 41], 2)
    assert [*chosen] == [1, 3] and all((y[rows].bincount() == 3).all() for rows in chosen[3])


def test_published_weights_choose_a_label(published, image, capsys):     # noqa: F811
    """With the tokenizer beside them, and the standardisation of CLIP."""
    import tokenizers
    from tokenizers.processors import TemplateProcessing
    folder, theirs = published
    letters = {c: i for i, c in enumerate('abcdefghijklmnopqrstuvwxyz0123456789?!<>')}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token='?'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split('', 'isolated')
    tokenizer.post_processor = TemplateProcessing(single='< $A >', special_tokens=[('<', 38), ('>', 39)])
    tokenizer.save(str(folder / 'tokenizer.json'))
    labels = ['a?cat', 'dog']
    sample.main(['--pretrained', str(folder), f'--image={image}', f'--labels={",".join(labels)}'])
    found = [float(line.split('%')[0]) for line in capsys.readouterr().out.splitlines()]
    pixels = torch.from_numpy(read_image(image, (12, 12))).permute(2, 0, 1) / 255
    mean, deviation = (torch.tensor(v)[:, None, None] for v in clip.Model.published_pixels)
    ids = [tokenizer.encode(text).ids for text in labels]
    ids = torch.tensor([row + [39] * (7 - len(row)) for row in ids])
    expected = theirs(input_ids=ids, pixel_values=((pixels - mean) / deviation)[None]).logits_per_image.softmax(1)
    assert found == pytest.approx((100 * expected[0]).tolist(), abs=0.1)
