"""README.md, docs/ and notebooks/: tables agree with records, commands and links lead somewhere, and code runs."""

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import itertools
import json
import re
import shlex
import statistics
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, printed, script

import train
from harness import ROOT, arch, config
from harness.files import digest
from prepare import common
from race import statistics as race_statistics
from race import tables
from tests.models import test_contract
from tests.race import test_report
from views import diagrams

PAGES = {p.relative_to(ROOT).as_posix(): p.read_text(encoding='utf-8')
         for p in [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]}
RECORDS = {path: json.loads(path.read_text(encoding='utf-8')) for path in sorted((ROOT / 'results').glob('*.json'))}
COMMANDS = [line for text in PAGES.values() for line in re.findall(r'^ {4}((?:python|torchrun) .*)$', text, re.M)]
BLOCKS = [(page, code) for page, text in PAGES.items() for code in re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)]
GRU = next(code for page, code in BLOCKS if 'nn.GRU' in code)


def test_readme_is_short_and_links_to_every_page():
    readme = PAGES['README.md']
    assert len(readme.splitlines()) <= 250 and len(readme.encode()) <= 20_000
    assert PAGES.keys() - {'README.md'} <= set(re.findall(r'\]\((docs/\w+\.md)', readme))


def test_diagrams_and_tables_are_current_and_tables_stand_behind_their_command():
    """Shortly behind it, and it names configs that exist; costs by window are those of every architecture of texts."""
    texts = {name for name in arch.architectures() if arch.load_arch(name).Model.modality in ('text', 'masked text')}
    for draw in diagrams.DIAGRAMS:
        path = ROOT / 'docs' / 'img' / f'{draw.__name__}.svg'
        assert path.read_text(encoding='utf-8') == draw(), f'{path.name}: run python -m views.diagrams'
    for name, page in PAGES.items():
        assert tables.refreshed(page, ROOT) == page, f'{name}: run python -m race.tables'
    for path, record in RECORDS.items():
        command = record['command'].replace("'", '"')
        found = [text[:m.start()] for text in PAGES.values() for m in tables.MARK.finditer(text)
                 if f'results/{path.name}' in m[2].split()]
        assert any(command in before[-4000:] for before in found), path.name
        assert all((ROOT / name).is_file() for name in re.findall(r'config/\w+\.py', command)), path.name
        assert {r['arch'] for r in record.get('costs', [])} in (set(), texts), path.name


def test_expected_losses_agree_with_their_records():
    rows = re.findall(r'^\| (config/\w+)\.py \| .*? \| (.*?) \| (.*?) \| (\d+) \| \[.*?\]\((results/.*?)\) \|$',
                      PAGES['README.md'], re.M)
    assert len(rows) > 5
    for name, loss, full, seconds, path in rows:
        runs = next(e['runs'] for e in RECORDS[ROOT / path]['entrants'] if e['name'] == name.removeprefix('config/'))
        for shown, values in ((loss, [r['val_loss'] for r in runs]), (full, [r['val_loss_full'] for r in runs])):
            assert shown == f'{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}', name
        assert int(seconds) == round(statistics.mean(r['seconds'] for r in runs)), name


def test_losses_of_the_speedrun_are_those_of_its_logs():
    rows = re.findall(r'^\| (.*) \| \[\w+\]\(\.\./(results/speedrun/\w+\.log)\) \|$', PAGES['docs/speedrun.md'], re.M)
    assert sorted(ROOT / path for _, path in rows) == sorted((ROOT / 'results' / 'speedrun').iterdir())
    for row, path in rows:
        log, losses = (ROOT / path).read_text(encoding='utf-8'), re.findall(r'\b1\.\d{4}\b', row)
        assert re.search(rf'(val|\| mixture +\| +\|) +{losses[0]}', log) and all(v in log for v in losses), row
        for tokens, minutes in re.findall(r'\| ([\d.]+) M \| ([\d.]+) ', row):
            count, seconds = re.search(r'steps, ([\d,]+) tokens, (\d+) s', log).groups()
            assert (f'{int(count.replace(",", "")) / 1e6:.1f}', f'{int(seconds) / 60:.1f}') == (tokens, minutes)


@pytest.fixture(scope='module')
def differences():
    """{(|difference|, p)} of all pairs of entrants in all races, as pages write them."""
    pairs = [pair for record in RECORDS.values() for pair in itertools.combinations(record.get('entrants', []), 2)]
    metrics = ('val_loss', 'val_loss_full', *race_statistics.TASK_METRICS)
    return {(race_statistics.format_difference(metric, abs(found[0])), f'{found[1]:.2g}')
            for first, e in pairs for metric in metrics
            if (found := race_statistics.difference({'entrants': [first]}, e, metric))}


@pytest.mark.parametrize('page', PAGES)
def test_differences_in_words_are_those_of_records(page, differences):
    """Each p-value outside of generated tables, and the signed difference, or the one 'above' or 'below', before it."""
    before, prose = 0, re.sub(r'<!-- results/.*?<!-- end -->', '', PAGES[page], flags=re.S)
    for p in re.finditer(r'\bp\s([\d.]+(?:e-\d+)?)(?=[):;,])', prose):
        said = re.findall(r'[+-](\d\.\d{3})|(\d\.\d{3})\s(?:above|below)|[+-](\d+\.\d points)', prose[before:p.start()][-160:])
        difference = ''.join(said[-1]) if said else None
        assert any(q == p[1] and difference in (None, d) for d, q in differences), f'{difference} (p {p[1]})'
        before = p.end()


def verdicts_of(line, record):
    """What is wrong with a line that calls a verdict of this record confirmed; empty if nothing is."""
    if 'verdicts' not in record:
        return 'its record is no confirmed race'
    known = {f'confirmed: {v["word"]}, ' + race_statistics.format_interval(race_statistics.main_metric(record), v)
             for v in race_statistics.confirmed(record) if 'p' in v}
    said = re.findall(r'confirmed: \w+, [^;|()]*?\[.*?\]', line)
    wrong = [s for s in said if s.replace(f'`{race_statistics.main_metric(record)}` ', '') not in known]
    return f'{wrong or line[:80]} is none of {sorted(known)}' if wrong or not said else ''


def test_verdicts_are_those_of_their_records():
    """A verdict is explored, without a word of a confirmed one; or confirmed, and its line names the record of that race."""
    found = PAGES['README.md'].split('## What we found')[1].split('\n## ')[0]
    rows = re.findall(r'^\| .* \| (\S.*?) \| (\[.*) \|$', found, re.M)
    assert len(rows) > 8
    for verdict, evidence in rows:
        assert verdict.startswith(('explored: ', 'confirmed: ')), verdict
        word = re.search(r'\b(better|worse|equivalent|undecided|wins?|survives?|beats?)\b', verdict)
        assert verdict[0] == 'c' or not word, verdict
        assert verdict[0] == 'e' or 'results/' in evidence, verdict
    for name, text in PAGES.items():
        for line in (line for line in text.splitlines() if re.search(r'(?<!not )\bconfirmed: ', line, re.I)):
            paths = re.findall(r'results/\w+\.json', line)
            assert len(paths) == 1, f'{name}: {line[:80]} names no record'
            assert not (wrong := verdicts_of(line, RECORDS[ROOT / paths[0]])), f'{name}: {wrong}'
    for path, record in RECORDS.items():
        if protocol := record.get('protocol'):
            assert record['verdicts'] == race_statistics.confirmed(record)
            for file, sha256 in {protocol['path']: protocol['sha256'], **protocol['entrants']}.items():
                assert digest(ROOT / file) == sha256, f'{file} was changed after {path.name}'


def test_a_confirmed_word_needs_its_record():
    base = {s: 1.5 + s / 10 for s in range(5)}
    rival = test_report.entrant('pic', {s: v - 0.1 + s % 2 / 100 for s, v in base.items()})
    protocol = {'metric': 'val_loss', 'margin': 0.01, 'seeds': [*base]}
    record = test_report.record(test_report.entrant('gpt', base), rival, protocol=protocol, verdicts=[])
    interval = race_statistics.format_interval('val_loss', race_statistics.confirmed(record)[0])
    for line in (f'| confirmed: better, {interval} |', f'confirmed: better, `val_loss` {interval}'):
        assert not verdicts_of(line, record)
    for line in (f'confirmed: worse, {interval}', 'confirmed: better', 'confirmed: better, -0.200 [-0.250, -0.150]'):
        assert 'is none of' in verdicts_of(line, record)
    assert 'no confirmed race' in verdicts_of(f'confirmed: better, {interval}', test_report.record())


def anchors(text):
    headings = re.findall(r'^#+ (.*)$', re.sub(r'^```.*?^```', '', text, flags=re.M | re.S), re.M)
    return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in headings}


@pytest.mark.parametrize('page', PAGES)
def test_named_files_and_links_exist(page):
    named = r'\b(?:config|prepare|assets|tests|harness|results)/\w+(?:/\w+)?\.(?:py|png|json)'
    for name in set(re.findall(named, PAGES[page])) - {'config/NAME.py'}:
        assert (ROOT / name).is_file(), name
    for name in set(re.findall(r'`(\w+\.py)`', PAGES[page])) - {'gru.py', 'NAME.py'}:
        assert [*ROOT.glob(name), *(ROOT / 'config').glob(name)], name
    for target in re.findall(r'\]\((?!https://)([^)\s]+)\)', PAGES[page]):
        path, _, anchor = target.partition('#')
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.is_file() and (not anchor or anchor in anchors(file.read_text(encoding='utf-8'))), target


@pytest.mark.parametrize('line', sorted({re.split(r'\s+# ', line)[0] for line in COMMANDS}))
def test_options_in_commands_exist(line):
    if module := re.search(r'python -m ([\w.]+)', line):
        assert importlib.util.find_spec(module[1]), line
        return
    words = shlex.split(line)
    if '-c' in words:
        compile(words[words.index('-c') + 1], line, 'exec')
        return
    at = next(i for i, w in enumerate(words) if w.endswith('.py'))
    script, words = words[at], words[at + 1:]
    if '--arch=gru' in words or 'config/NAME.py' in words:
        return
    for entrant in [words] if script == 'train.py' else [shlex.split(w) for w in words if w.startswith('config/')]:
        config.load(entrant, train.TrainConfig)
    if script.startswith('prepare/'):
        known = (ROOT / script).read_text(encoding='utf-8')
        known += ''.join((ROOT / 'prepare' / f'{m}.py').read_text(encoding='utf-8')
                         for m in {'common', *re.findall(r'from prepare\.(\w+) import', known)})
        assert all(f"'--{option}'" in known for option in re.findall(r'--([a-z]+)', line)), line
    elif script not in ('train.py', 'bench.py'):
        importlib.import_module(Path(script).stem).arguments(words)


def test_page_on_architectures_has_the_whole_contract():
    page = PAGES['docs/architectures.md']
    names = {name for contract in (arch.ModelContract, arch.DataContract)
             for name in {**vars(contract), **contract.__annotations__} if not name.startswith('_')}
    names |= {f.name for f in dataclasses.fields(arch.Architecture)} - {'name'} | {'no_weight_decay', 'matrix'}
    assert not {name for name in names if not re.search(rf'`[^`]*\b{name}\b[^`]*`', page)}


@pytest.mark.parametrize(('page', 'code'), BLOCKS, ids=[f'{page}-{i}' for i, (page, _) in enumerate(BLOCKS)])
def test_code_prints_what_its_comments_say(page, code, root):
    expected = re.findall(r'^ *print\(.*\) +# (.*)$', code, re.M)
    shown = printed(lambda _: exec(compile(code, page, 'exec'), {'__name__': 'example'}), [])
    assert shown.splitlines()[:len(expected)] == expected


def test_gru_of_readme_trains_and_keeps_the_contract(dataset, tmp_path, monkeypatch):
    (tmp_path / 'gru.py').write_text(GRU, encoding='utf-8')
    monkeypatch.setattr(arch, 'ROOT', tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = [w for w in TINY if 'n_layer' not in w]
    train.main(['--arch=gru', f'--dataset={dataset.name}', f'--out_dir={tmp_path / "run"}', *words, '--max_iters=20'])
    gru, held = arch.load_arch('gru'), 0
    for name, test in vars(test_contract).items():
        needs = inspect.signature(test).parameters.keys() if name.startswith('test_') else {'another'}
        if needs <= {'model', 'text_model', 'tmp_path'}:
            torch.manual_seed(0)
            model = arch.complete(gru.Model(gru.Config.tiny())).eval()
            with contextlib.suppress(pytest.skip.Exception):
                test(**{need: tmp_path if need == 'tmp_path' else model for need in needs})
                held += len(needs) > 0
    assert held > 3


FEW = {'STEPS': 2, 'EVERY': 2}
SMALL = ['--n_layer=1', '--n_embd=16', '--device=cpu']
VIT = [*SMALL, '--n_head=2']

# {notebook: its parameters here, beside OUT, and the commands that make its data}
NOTEBOOKS = {
    'text': (FEW | {'DATASET': 'letters', 'SHAPE': [*SMALL, '--block_size=16', '--batch_size=2']}, []),
    'pictures': (FEW | {'SHAPES': {'convnet': ['--network=tutorial', '--device=cpu'], 'vit': [*VIT, '--patch=8']}},
                 [('prepare/shapes_classes.py', '--examples=180')]),
    'tasks': (FEW | {'SHAPES': {'baselines': ['--network=lstm', '--n_embd=16', '--device=cpu'], 'vit': VIT}},
              [('prepare/bit_xor.py', '--bits=4')])}


@pytest.mark.parametrize('name', sorted(NOTEBOOKS.keys() | {path.stem for path in (ROOT / 'notebooks').glob('*.ipynb')}))
def test_a_notebook_runs_from_top_to_bottom_and_has_no_outputs(name, root, tmp_path, monkeypatch):
    notebook = json.loads((ROOT / 'notebooks' / f'{name}.ipynb').read_text(encoding='utf-8'))
    parameters, commands = NOTEBOOKS[name]
    for command in commands:
        script(*command)
    letters = 'abcdefgh .\n' * 400
    common.write_text('letters', letters, common.char_tokenizer(letters), {'name': 'letters'}, 'text.py')
    monkeypatch.chdir(ROOT / 'notebooks')
    monkeypatch.setattr('sys.path', [*sys.path])
    cells, names, marked = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code'], {'__name__': name}, 0
    for cell in cells:
        assert not cell['outputs'] and cell['execution_count'] is None
        exec(compile(''.join(cell['source']), f'{name}.ipynb', 'exec'), names)
        if cell['metadata'].get('tags') == ['parameters']:
            assert parameters.keys() <= names.keys()
            names |= parameters | {'OUT': tmp_path / 'out'}
            marked += 1
    assert marked == 1
