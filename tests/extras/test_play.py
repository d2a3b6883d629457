"""The page of extras/play.py: its server, by requests, and its four parts, in a headless Chromium."""

import base64
import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import json
import math
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import sentence, tiny_train
from PIL import Image

import train
from harness import ROOT, checkpoint
from harness.arch import architectures, complete, load_arch
from harness.generate import continuations
from harness.tokenizer import Tokenizer
from prepare import common
from tests.harness.test_captions import go as train_on_images
from tests.harness.test_captions import module_root  # noqa: F401 (a fixture)
from views import attention

uvicorn = pytest.importorskip('uvicorn', reason='extras/play.py needs starlette and uvicorn: pip install starlette uvicorn')
pytest.importorskip('starlette', reason='extras/play.py needs starlette and uvicorn: pip install starlette uvicorn')
from extras import play, play_parts

ARCHS = 'gpt', 'pacing', 'mamba'                # the first runs of the page, in this order
TASK, BROKEN, GONE, UNKNOWN, HOSTILE = 3, 4, 5, 6, 7
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


@pytest.fixture(scope='module')
def digits():
    """data/<name>: images of 8 x 8 in four patches; which half or corner is bright is the class."""
    name, rng, splits = f'tests_digits_{os.getpid()}', np.random.default_rng(0), {}
    for split, n in (('train', 80), ('val', 20), ('test', 20)):
        y = np.arange(n) % 4
        x = rng.integers(0, 60, (n, 4, 16))
        x[np.arange(n), y] += 190
        splits[split] = x.astype(np.uint8), y.astype(np.uint8)
    common.write_task(name, 'classify', splits, 4, {'name': 'bright corners'}, 'digits.py', labels=['<b>one</b>', *'234'],
                     draw={'as': 'image', 'height': 8, 'width': 8, 'channels': 1, 'patch': 4})
    yield name
    shutil.rmtree(ROOT / 'data' / name)


@pytest.fixture(scope='module')
def runs(dataset, digits, tmp_path_factory):
    """Three architectures, a ViT, one that is cut in two, gone, of an unknown architecture, and with a hostile name."""
    out, more = tmp_path_factory.mktemp('play'), ['--max_iters=6', '--log_interval=2', '--eval_interval=3', '--sample_tokens=0']
    for name, arch in zip(ARCHS, ('model', 'pacing', 'mamba'), strict=True):
        _, *words = tiny_train(dataset, out / name, f'--arch={arch}', *more)
        train.main([w for w in words if 'n_head' not in w or arch == 'model'])
    train.main([w for w in tiny_train(digits, out / 'vit', '--arch=vit', *more)[1:] if 'block_size' not in w])
    hostile = '<img src=x onerror=alert(1)>&"\'..'
    for name in ('broken', 'unknown', hostile):
        shutil.copytree(out / 'gpt', out / name)
    (out / 'broken' / 'best.pt').write_bytes((out / 'gpt' / 'best.pt').read_bytes()[:9000])
    torch.save(torch.load(out / 'gpt' / 'best.pt', weights_only=True) | {'arch': 'nowhere'}, out / 'unknown' / 'best.pt')
    return [out / name for name in (*ARCHS, 'vit', 'broken', 'gone', 'unknown', hostile)]


@contextlib.contextmanager
def served(runs):
    """A server of the page in a thread: .runs, .port, .app, and .post(part, settings) -> the lines of the answer."""
    listener = play.listen(0)
    site = SimpleNamespace(runs=[play_parts.Run(path, torch.device('cpu')) for path in runs], port=listener.getsockname()[1])
    server = play.server(site.runs, listener)
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
    thread.start()
    site.app, site.url = server.config.app, f'http://127.0.0.1:{site.port}/'
    site.post = lambda part, **settings: [json.loads(line) for line in asked(site, part, settings)[1].splitlines()]
    yield site
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope='module')
def site(runs):
    with served(runs) as site:
        yield site


def request(site, path, body=None, method='POST', **headers):
    """The answer to a request, to be read."""
    connection = http.client.HTTPConnection('127.0.0.1', site.port, timeout=60)
    usual = {'Connection': 'close'} | ({'Content-Type': 'application/json'} if method == 'POST' else {})
    connection.request(method, f'/{path}', json.dumps(body) if isinstance(body, dict) else body,
                       usual | {k.replace('_', '-'): v for k, v in headers.items()})
    return connection.getresponse()


def asked(site, *what, **more):
    answer = request(site, *what, **more)
    return answer.status, answer.read().decode()


def data_url(content):
    return 'data:image/png;base64,' + base64.b64encode(content).decode()


def image(width=20, height=20):
    """A data URL of a picture whose left upper quarter is bright."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:height // 2, :width // 2] = 250
    f = io.BytesIO()
    Image.fromarray(pixels).save(f, 'PNG')
    return data_url(f.getvalue())


def pixels_of(url):
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(',')[2]))))


def request_of(**settings):
    return play.parse(json.dumps({'runs': [0], **settings}), [None])[1]


def test_runs_say_what_they_are_and_what_is_wrong(site):
    about = json.loads(asked(site, 'runs', method='GET')[1])['runs']
    assert [run['name'] for run in about] == [str(run.name) for run in site.runs]
    assert [(run['arch'], run['step']) for run in about[:3]] == [('model', 6), ('pacing', 6), ('mamba', 6)]
    assert [run['parts'] for run in about[:3]] == [['write', 'see', 'watch']] * 3
    assert about[TASK]['parts'] == ['draw', 'watch'] and about[TASK]['reads'] == 'image'
    for i, said in ((BROKEN, 'truncated'), (GONE, 'No such file'), (UNKNOWN, "'nowhere'")):
        assert said in about[i]['error'] and about[i]['parts'] == ['watch']


@pytest.mark.parametrize('i', range(len(ARCHS)), ids=ARCHS)
def test_write_is_what_sample_writes(site, i):
    """Token for token, with the probabilities of the model; and it goes on from any token."""
    model, content = checkpoint.load_model(site.runs[i].name)
    tokenizer = checkpoint.tokenizer(content, '')
    found = site.post('write', runs=[i], text='abc d', count=30, temperature=0.9, top_k=7, top_p=0.95, seed=5)
    assert found[0]['step'] == 6 and 'speed' in found[-2] and found[-1] == {'run': i, 'done': True}
    tokens, start = [item for item in found if 'token' in item], tokenizer.encode('abc d')
    expected = list(next(iter(continuations(model, [start], 30, 0.9, 7, 0.95, tokenizer.n_vocab, 5))))
    assert [item['token'] for item in tokens] == expected
    assert ''.join(item['text'] for item in tokens) == tokenizer.decode(expected)
    with torch.no_grad():
        p = model(torch.tensor([start]))[0][0, -1].softmax(-1)
    assert tokens[0]['bits'] == pytest.approx(-math.log2(p[expected[0]]), abs=2e-3)
    best, (others, _, chances) = p.topk(10), zip(*tokens[0]['others'], strict=True)
    assert [*others] == best.indices.tolist() and chances == pytest.approx(best.values.tolist(), abs=1e-4)
    again = site.post('write', runs=[i], text='abc d', ids=expected[:9], count=4, temperature=0)
    greedy = list(next(iter(continuations(model, [start + expected[:9]], 4, 0, 0, 1, tokenizer.n_vocab, 0))))
    assert [item['token'] for item in again if 'token' in item] == greedy


def test_stress(site):
    """200 requests, 8 at once, from runs of three architectures: each gets what it gets alone, and memory does not grow."""
    def ask(seed):
        runs = [seed % 2, 2]
        found = site.post('write', runs=runs, text='a', count=3, seed=seed % 20, temperature=1)
        return [[item['token'] for item in found if item['run'] == i and 'token' in item] for i in runs]

    used, statm = [], Path('/proc/self/statm')
    alone = [ask(seed) for seed in range(20)]
    assert len({str(row) for row in alone}) > 15
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert [*pool.map(ask, range(100))] == [alone[seed % 20] for seed in range(100)]
            used.append(int(statm.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') if statm.exists() else 0)
    assert used[1] - used[0] < 16 << 20
    wait(lambda: not site.app.state.answering)


def wait(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_answers_at_once_are_bounded_and_a_closed_connection_ends_one(site, monkeypatch):
    steps, model = [], site.runs[0].load().model
    monkeypatch.setattr(model, 'step', lambda *args, real=model.step: steps.append(1) or real(*args))
    monkeypatch.setattr(play, 'STREAMS', 1)         # answers at once
    with request(site, 'write', {'runs': [0], 'text': 'a', 'count': 2000}) as answer:
        while b'"token"' not in answer.readline():
            assert site.app.state.answering
        assert asked(site, 'write', {'runs': [0], 'text': 'a'})[0] == 503
    wait(lambda: not site.app.state.answering)
    assert 0 < len(steps) < 1900


def test_a_server_that_ends_ends_its_answers(runs, capsys):
    """Without an error, after the token that is computed."""
    with served(runs[:1]) as site:
        answer = request(site, 'write', {'runs': [0], 'count': 2000})
        assert b'"step"' in answer.readline()
    assert len(answer.read().splitlines()) < 1900 and capsys.readouterr().err == ''


@pytest.mark.parametrize('status, named, path, body, headers', [
    (413, '524,288', 'write', {'runs': [0], 'text': 'a' * 1_000_000}, {}), (404, "'steal'", 'steal', {'runs': [0]}, {}),
    (400, 'host', 'write', {'runs': [0]}, {'Host': 'rebinding.example'}),
    (415, 'json', 'write', '{"runs": [0]}', {'Content_Type': 'text/plain'}),
    *((403, 'own', 'write', {'runs': [0]}, {'Origin': o}) for o in ('http://elsewhere.example', 'http://127.0.0.1:1', 'null')),
    *((400, named, 'write', body, {}) for named, body in (
        ('JSON', '{"runs": [0'), ('JSON', '[' * 100_000), ('runs', '[]'),
        ('temperature=nan', '{"runs": [0], "temperature": NaN}'))),
    *((400, named, 'write', {'runs': runs}, {}) for named, runs in (
        ('runs', ['../../etc/passwd']), ('runs', [-1]), ('0 to 7', [8]), ('different', [0, 0]), ('at least one', []))),
    *((400, named, 'write', {'runs': [0], **settings}, {}) for named, settings in (
        ('30,000 characters', {'text': 'a' * 30_000}), ("'path'", {'path': '/etc'}), ('count=0', {'count': 0}),
        ('count=1,000,000,000 must be 1 to 2,000', {'count': 10 ** 9}), ('top_k=-1 must be 0 to 1,000,000', {'top_k': -1}),
        ('count', {'count': 1.5}), ('temperature', {'temperature': 'x'}), ('temperature=11', {'temperature': 11}),
        ('top_p=0', {'top_p': 0}), ('4,294,967,295', {'seed': 10 ** 400}), ('3,000', {'ids': [0] * 3000}))),
    *((200, named, 'write', {'runs': [run], **settings}, {}) for named, run, settings in (
        ('token 11 is not one of the 11', 0, {'ids': [11]}), ("no token for 'é'", 0, {'text': 'é'}),
        ('no part', TASK, {'text': 'a'}), ('truncated', BROKEN, {}), ('no checkpoint', GONE, {'last': True}))),
    *((200, named, 'see', {'runs': [run], **settings}, {}) for named, run, settings in (
        ("'nowhere'", UNKNOWN, {}), ('1 token', 0, {'text': 'a'}), ('1,001', 0, {'text': 'a' * 1001}))),
    *((200, named, 'draw', {'runs': [TASK], **settings}, {}) for named, settings in (
        ('there is no image', {}), ('no image that can be read', {'image': data_url(b'It is none.')}),
        ('3000 x 3000', {'image': image(3000, 3000)}), ('damaged', {'image': 'data:image/png;base64,A'}))),
], ids=lambda v: str(v)[:30])
def test_a_wrong_request_is_refused(site, status, named, path, body, headers):
    found, said = asked(site, path, body, **headers)
    assert found == status and named in said.replace('\\u00e9', 'é') and 'Traceback' not in said


def test_the_page_is_alone(site):
    """It names no other host, its policy lets it load nothing else, and no other file can be got."""
    answer = request(site, '', method='GET')
    page, policy = answer.read().decode(), answer.headers['Content-Security-Policy']
    assert "default-src 'none'" in policy and 'unsafe' not in policy and answer.headers['X-Content-Type-Options'] == 'nosniff'
    assert not [w for w in ('innerHTML', 'outerHTML', 'insertAdjacentHTML', 'document.write', 'eval(') if w in page]
    assert page.replace('http://www.w3.org/2000/svg', '').count('://') == 0
    for path in ('../README.md', '%2e%2e/%2e%2e/etc/passwd', 'out/ckpt.pt', 'write'):
        assert asked(site, path, method='GET')[0] in (404, 405), path


def test_a_checkpoint_that_changes_is_read_again(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / 'run')
    run, path = play_parts.Run(tmp_path / 'run', torch.device('cpu')), tmp_path / 'run' / 'best.pt'
    assert run.about()['step'] == 6 and run.load() is run.load()
    torch.save(torch.load(path, weights_only=True) | {'step': 7}, path)
    assert run.about()['step'] == 7
    path.write_bytes(b'no longer')
    assert 'ckpt.pt' in run.about()['error']
    path.unlink()
    assert run.about()['step'] == 6             # ckpt.pt
    (tmp_path / 'run' / 'ckpt.pt').unlink()
    assert 'no checkpoint' in run.about()['error']


@pytest.mark.parametrize('i', range(len(ARCHS)), ids=ARCHS)
def test_what_is_seen_of_a_text(site, i):
    """Its loss by brute force; an influence of earlier tokens only; attention where there is any, and PACING's pictures."""
    from views.behaviour import influence
    model, content = checkpoint.load_model(site.runs[i].name)
    ids, found = checkpoint.tokenizer(content, '').encode('abc d. gh'), site.post('see', runs=[i], text='abc d. gh')
    with torch.no_grad():
        log_p = model(torch.tensor([ids]))[0][0].log_softmax(-1)
    first, *bits = (item['bits'] for item in found if 'read' in item)
    assert first is None and bits == pytest.approx([-log_p[t, ids[t + 1]].item() / math.log(2) for t in range(8)], abs=1e-3)
    assert ''.join(item['read'] for item in found if 'read' in item) == 'abc d. gh'
    matrix = np.array([item['influence'] for item in found if 'influence' in item]).T
    assert matrix == pytest.approx(influence(model, torch.tensor([ids])), abs=1e-3) and np.triu(matrix, 1).max() < 1e-6
    maps = [item for item in found if 'attention' in item]
    assert [item['heads'] for item in maps] == ([[2, 2]] if ARCHS[i] == 'gpt' else [])
    for item in maps:
        packed = np.frombuffer(base64.b64decode(item['attention']), np.uint8).reshape(4, 9, 9)
        assert np.abs((packed / 255) ** 2 - np.concatenate(attention.attention_maps(model, torch.tensor([ids])))).max() < 5e-3
    assert [item['picture'] for item in found if 'picture' in item] == ['picture', 'kernels'] * (ARCHS[i] == 'pacing')
    assert found[1]['state'] == {'gpt': 2 * 2 * 16 * 16 * 4}.get(ARCHS[i], found[1]['state']) and found[1]['state'] > 0


TEXT_MODELS = [name for name in architectures() if load_arch(name).Model.modality in ('text', 'masked text', 'pairs')]


def loaded(name, **change):
    """What Run.load() returns, of a tiny model of any architecture."""
    arch = load_arch(name)
    torch.manual_seed(0)
    model = complete(arch.Model(dataclasses.replace(arch.Config.tiny(), **change))).eval()
    tokenizer = Tokenizer({'kind': 'char', 'chars': [*'abcdefghij .\n']})
    return SimpleNamespace(model=model, tokenizer=tokenizer, dataset=None, content={
        'arch': name, 'step': 0, 'data': {}, 'loop': {'dataset': 'none', 'patch': 4}})


@torch.no_grad()
@pytest.mark.parametrize('name, change', [*((name, {}) for name in TEXT_MODELS), ('pacing', {'predicts': 'last'})], ids=str)
def test_any_architecture_has_its_parts(name, change):
    """Those that its contract allows, for texts below and above its window."""
    run = loaded(name, **change)
    parts = play_parts.use_of(run)['parts']
    assert parts == {'text': ['write', 'see'], 'masked text': ['see'], 'pairs': ['write']}[run.model.modality]
    longest = run.model.config.source_size if run.model.modality == 'pairs' else 40
    for text in ('ab', ('abc. ' * 20)[:longest]):
        if 'write' in parts:
            found = [*play_parts.write(run, request_of(text=text, count=3))]
            assert len([item for item in found if item.get('text')]) <= (3 if 'see' in parts else run.model.config.block_size)
        if 'see' in parts:
            found = [*play_parts.see(run, request_of(text=text))]
            assert [item['read'] for item in found if 'read' in item] == [*text]
            place = next(item for item in found if 'first' in item)
            influence = [item['influence'] for item in found if 'influence' in item]
            assert place['first'] + place['size'] == len(text) and len(influence) == place['size']
            assert np.isfinite(influence).all()
            if name in ('model', 'bert', 'llama'):
                assert next(item['heads'] for item in found if 'attention' in item) == [run.model.config.n_head] * 2


@torch.no_grad()
@pytest.mark.parametrize('given', [True, False])
def test_pictures_of_pixels_are_completed(given):
    run = loaded('model', vocab_size=3, block_size=16)
    run.tokenizer = Tokenizer({'kind': 'palette', 'colours': [[0, 0, 0], [250, 250, 250]], 'width': 4, 'height': 4})
    assert play_parts.use_of(run)['parts'] == ['draw']
    found = [*play_parts.complete(run, request_of(image=image() if given else ''))]
    made = [pixels_of(url) for url in found[-1]['images']]
    assert len(made) == play_parts.COMPLETED and all(one.shape == (4, 4, 3) and set(one.ravel()) <= {0, 250} for one in made)
    assert sum('progress' in item for item in found) == (8 if given else 16)
    if given:       # the upper half is that of the image
        assert all((one[:2, :2] == 250).all() and not one[:2, 2:].any() for one in made)


def test_published_weights_have_no_curves(monkeypatch):
    run, calls = loaded('model'), []
    monkeypatch.setattr(play_parts, 'load_pretrained', lambda *words: (calls.append(words), ([run.model], run.tokenizer))[1])
    published = play_parts.Run('gpt2', torch.device('cpu'), pretrained=True)
    about = [published.about() for _ in range(2)][1]
    assert (about['parts'], about['arch'], about['step']) == (['write', 'see'], 'model', None) and calls == [('gpt2', None)]


def test_an_image_is_answered_as_the_model_does(site):
    found, run = site.post('draw', runs=[TASK], image=image()), site.runs[TASK].load()
    mean, deviation = run.dataset.standard
    x = torch.zeros(1, 4, 16)
    x[:, 0] = 250
    with torch.no_grad():
        p = run.model((x - mean) / deviation)[0][0].softmax(-1)
    answers = next(item['answers'] for item in found if 'answers' in item)
    assert [q for _, q in answers] == pytest.approx(sorted(p.tolist(), reverse=True), abs=0.02)
    assert answers[0][0] == ['<b>one</b>', *'234'][p.argmax()]
    assert next(item['patch'] for item in found if 'image' in item) == 4


@pytest.fixture(scope='module')
def image_runs(module_root):  # noqa: F811
    """{name of an architecture: a Run on data/shapes, or of pixels}."""
    found = {}
    for arch, *more in (('dvae', '--codes=9'), ('dalle', f'--vae={module_root / "dvae"}'), ('clip',), ('transformer',)):
        without = ['block_size', 'n_head'] if arch == 'dvae' else ['block_size']
        train_on_images(arch, module_root / arch, '--max_iters=2', *more, without=without)
        found[arch] = play_parts.Run(module_root / arch, torch.device('cpu'))
    return found


@torch.no_grad()
@pytest.mark.parametrize('arch, reads, instant', [
    ('dvae', 'image', True), ('dalle', 'caption', False), ('clip', 'image and captions', True),
    ('transformer', 'image', False)])
def test_images_and_captions(image_runs, arch, reads, instant):
    run, about = image_runs[arch], image_runs[arch].about()
    assert (about['parts'], about['reads'], about['instant']) == (['draw', 'watch'], reads, instant)
    found = [*play.respond('draw', run, request_of(image=image(50, 40), captions='a red circle\n\na blue square', seed=3))]
    assert not [item for item in found if 'error' in item]
    merged = {key: value for item in found for key, value in item.items()}
    if arch == 'clip':
        assert sum(p for _, p in merged['answers']) == pytest.approx(1, abs=1e-3) and len(merged['answers']) == 2
    elif arch == 'transformer':
        assert isinstance(merged['caption'], str)
    else:
        count = {'dvae': 1, 'dalle': play_parts.IMAGES}[arch]
        assert [pixels_of(url).shape[:2] for url in merged['images']] == [(32, 32)] * count
    if arch == 'dalle':
        assert merged['progress'] == 1
        for captions, said in (('', '0 captions'), ('a\n' * 21, '21 captions')):       # a choice has fewer
            assert said in [*play.respond('draw', run, request_of(captions=captions))][-1]['error']


def test_curves(runs, tmp_path):
    """From metrics.csv as it grows; a row that is not whole is left out, and a damaged file is named."""
    shutil.copytree(runs[0], tmp_path / 'run')
    run, path = play_parts.Run(tmp_path / 'run', torch.device('cpu')), tmp_path / 'run' / 'metrics.csv'
    found = play_parts.watch(run)
    assert [row[0] for row in found['rows']] == [0, 2, 3, 4, 6] and found['spent'] == 1 and found['left'] is None
    assert found['best'] == pytest.approx(min(row[4] for row in found['rows'] if row[4] is not None))
    text = path.read_text()
    path.write_text(text[:text.rindex('\n6,')] + '\n6,1')
    halfway = play_parts.watch(run)
    assert [row[0] for row in halfway['rows']] == [0, 2, 3, 4] and halfway['spent'] == pytest.approx(4 / 6)
    assert halfway['left'] == pytest.approx(halfway['last']['seconds'] / 2)
    path.write_text(text + 'x\n')
    assert 'metrics.csv is damaged' in play_parts.watch(run)['error']
    path.write_text(text.splitlines()[0] + '\n' + ''.join(f'{i},{i},{i},,,,nan\n' for i in range(5000)))
    assert len(play_parts.watch(run)['rows']) == play_parts.POINTS
    path.unlink()
    assert 'metrics.csv' in play_parts.watch(run)['error']


def test_a_port_in_use_and_a_package_that_is_missing(monkeypatch):
    with play.listen(0) as taken:
        port = taken.getsockname()[1]
        assert f'--port={port}' in sentence(play.main, ['out/x', f'--port={port}'])
    monkeypatch.setitem(sys.modules, 'starlette', None)
    assert 'pip install starlette uvicorn' in sentence(play.main, ['out/x'])


@pytest.fixture(scope='module')
def browser():
    sync_api = pytest.importorskip('playwright.sync_api', reason='the tests of the page need the package playwright')
    if CHROMIUM is None:
        pytest.skip('the tests of the page need Chromium: apt-get install chromium')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def open_part(browser, site):
    """open_part(name) -> the page at that part.  At the end, no script may have failed or been blocked."""
    context, wrong = browser.new_context(viewport={'width': 390, 'height': 844}), []
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.on('console', lambda message: wrong.append(message.text) if message.type == 'error' else None)
    page.on('dialog', lambda dialog: wrong.append(dialog.message))

    def start(name):
        page.goto(site.url)
        page.locator('.chip').first.wait_for()
        page.locator(f'nav button[data-part={name}]').click()
        return page
    yield start
    assert page.evaluate('document.documentElement.scrollWidth') <= 390     # readable on a phone
    context.close()
    assert not [s for s in wrong if 'status of 400' not in s]           # that of a request that is refused


def idle(page):
    page.wait_for_function("() => document.getElementById('stop').hidden && document.getElementById('stop2').hidden")


def go(page, **settings):
    """Fill in these settings, press the button, and wait for the whole answer."""
    for name, value in settings.items():
        page.fill(f'#{name}', value)
    page.click('#go')
    idle(page)


def lengths(cards):
    return [card.locator('.t').count() for card in cards.all()]


def test_write_in_a_browser(open_part, site):
    """Side by side; the likeliest tokens, and going on from one; stop; hostile names and wrong settings are shown as text."""
    page = open_part('write')
    cards = page.locator('#written .card')
    assert cards.count() == 4 and page.locator('.chip.broken').count() == 3 and page.locator('img').count() == 0
    assert page.locator('.chip b').all_inner_texts()[-1] == site.runs[HOSTILE].name
    go(page, text='abc ', count='12')
    tokens = cards.nth(0).locator('.t')
    before = tokens.all_text_contents()
    expected = site.post('write', runs=[0], text='abc ', count=12, top_k=50)
    assert before == [item['text'] for item in expected if 'text' in item]
    tokens.nth(5).hover()
    choices = page.locator('#others button')
    choices.nth(9).wait_for()
    other = expected[6]['others'][3]
    assert choices.count() == 10 and other[0] == [i for i in expected if 'token' in i][5]['others'][3][0]
    choices.nth(3).click()
    idle(page)
    after = tokens.all_text_contents()
    assert after[:5] == before[:5] and after[5] == other[1] and lengths(cards) == [18, 12, 12, 12]      # the others stay
    page.fill('#count', '2000')
    page.click('#go')
    tokens.nth(3).wait_for()
    page.click('#stop')
    idle(page)
    wait(lambda: not site.app.state.answering)
    assert tokens.count() < 2000
    go(page, text='<b>é</b>')
    bad = page.locator('#written .bad').first
    assert bad.is_visible() and "'<'" in bad.inner_text() and page.locator('#written b').count() == 0
    go(page, count='0')
    assert 'count=0' in page.locator('#message:not([hidden])').inner_text()


def test_a_run_that_goes_and_comes_back_in_a_browser(open_part, site):
    folder = Path(site.runs[0].name)
    away = folder.rename(folder.with_name('away'))
    page = open_part('write')
    cards = page.locator('#written .card')
    assert cards.count() == 3 and 'No such file' in page.locator('.chip').first.inner_text()
    away.rename(folder)
    page.locator('nav button[data-part=write]').click()
    cards.nth(3).wait_for()
    go(page, count='3')
    assert lengths(cards) == [3, 3, 3, 3]
    folder.rename(away)
    go(page)
    assert cards.first.get_by_text('No such file').is_visible() and lengths(cards) == [0, 3, 3, 3]
    page.locator('nav button[data-part=write]').click()
    page.wait_for_function("() => document.querySelectorAll('#written .card').length === 3")
    away.rename(folder)


def test_see_in_a_browser(open_part):
    page = open_part('see')
    go(page, text='abc d. gh ab')
    assert page.locator('#seen .card').nth(1).locator('details').count() == 2 and page.locator('#race polyline').count() == 4
    page.locator('#modes label', has_text='influence').click()

    def heat(card):
        return [float(v) for v in page.eval_on_selector_all(f'#seen .card:nth-child({card}) .t',
                                                            'all => all.map(s => s.style.getPropertyValue("--h"))')]
    page.locator('#seen .card:nth-child(2) .t').nth(6).hover()          # the same token in all runs
    for card in (1, 2, 3):
        assert all(v > 0 for v in heat(card)[5:7]) and not any(heat(card)[7:])
    page.locator('#modes label', has_text='attention').click()
    page.locator('#seen .card:nth-child(1) .t').nth(6).hover()
    assert all(v > 0 for v in heat(1)[:7]) and not any(heat(1)[7:]) and not any(heat(2))
    assert page.locator('#seen .card:nth-child(1) select').count() == 2


def test_draw_in_a_browser(open_part, tmp_path):
    page = open_part('draw')
    page.locator('#pad').drag_to(page.locator('#pad'), source_position={'x': 40, 'y': 40}, target_position={'x': 90, 'y': 90})
    page.locator('#asked .answer').nth(3).wait_for()
    assert sorted(page.locator('#asked .answer span:first-child').all_inner_texts()) == sorted(['<b>one</b>', *'234'])
    assert page.locator('#asked .seen line').count() == 2               # the edges of four patches
    page.click('#clear')                                                # and what was said of the picture
    assert page.locator('#asked .answer').count() == 0
    drop = """(at, [content, name]) => {
        const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), data = new DataTransfer();
        data.items.add(new File([bytes], name, {type: 'image/png'}));
        return ['dragover', 'drop'].map(type => at.dispatchEvent(
            new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true})));
    }"""
    for place in ('#pad', '#asked'):        # a browser leaves the page for a file that is dropped beside the square
        assert page.locator(place).evaluate(drop, [image().split(',')[1], 'corner.png']) == [False, False]
        page.locator('#asked .answer').nth(3).wait_for()
        page.click('#clear')
    (tmp_path / 'none.png').write_text('It is no image.')
    page.set_input_files('#file', tmp_path / 'none.png')
    page.locator('#message:not([hidden])').wait_for()
    assert 'none.png is no image' in page.locator('#message').inner_text()


def test_watch_in_a_browser(open_part, site):
    page = open_part('watch')
    page.locator('#watched .card').first.get_by_text('a sample of step 6').wait_for()      # samples arrive in any order
    page.locator('#loss polyline').nth(13).wait_for(state='attached')
    assert page.locator('#loss polyline').count() == 14                 # of seven runs; one is gone
    path = Path(site.runs[0].name) / 'metrics.csv'
    text, row = path.read_text(), {'step': 9, 'tokens': 999, 'seconds': 1, 'grad_norm': 7.25}
    try:
        path.write_text(text + ','.join(str(row.get(name, '')) for name in text.splitlines()[0].split(',')) + '\n')
        page.locator('#watched .card:nth-child(1) dd', has_text='7.25').wait_for()
    finally:
        path.write_text(text)
    held = []       # a poll that ends when another part is open, in which a run may be that has no curves
    page.route('**/watch', lambda route: held.append(route))
    with page.expect_request('**/watch'):
        pass
    page.locator('nav button[data-part=write]').click()
    page.evaluate("cards.watch.length = 0; say('a sentence')")
    held[0].continue_()
    page.wait_for_function('() => !polling')
    assert page.locator('#message').inner_text() == 'a sentence'
