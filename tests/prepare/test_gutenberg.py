"""prepare/gutenberg.py: books of Project Gutenberg, from a server on this machine and from local files."""

import re
import threading
import unicodedata

import pytest
from conftest import send, sentence, text_of

from harness import files
from prepare import gutenberg
from prepare.common import split_text

HORROR = 'THE DUNWICH HORROR\r\n\r\n\u201cYog-Sothoth is the gate,\u201d he said\u2014twice.\r\nNa\u00efve \u0153uvre.\r\n' * 9
DRACULA = 'Jonathan Harker\u2019s Journal\r\n\r\n_3 May. Bistritz._\u2014Left Munich at 8:35 P. M., on 1st May\u2026\r\n' * 9
OLD = 'FRANKENSTEIN; or, the Modern Prometheus\r\n\r\nYou will rejoice to hear.\r\n' * 9
HEAD, TAIL = '*** START OF THE PROJECT GUTENBERG EBOOK {} ***', '*** END OF THE PROJECT GUTENBERG EBOOK {} ***'


def cleaned(text):
    """HORROR, DRACULA or OLD as they are in a data set, independently of gutenberg.py."""
    for old, new in {'\r\n': '\n', '\u201c': '"', '\u201d': '"', '\u2019': "'", '\u2014': '--', '\u2026': '...', '\u00ef': 'i',
                     '\u0153': 'oe'}.items():
        text = text.replace(old, new)
    return text.strip()


def ebook(text, title='The Dunwich Horror', start=HEAD, end=TAIL):
    """A file of the site: byte order mark, header, book, licence, with line ends of Windows."""
    return (f'\ufeffThe Project Gutenberg eBook of {title}\r\n\r\nThis ebook is for the use of anyone anywhere.\r\n\r\n'
            f'Title: {title}\r\n\r\nAuthor: Somebody\r\n\r\n\r\n{start.format(title.upper())}\r\n\r\n\r\n\r\n{text}\r\n\r\n\r\n'
            f'{end.format(title.upper())}\r\n\r\n    *** START: FULL LICENSE ***\r\nUpdated editions will replace the previous '
            f'one\u2014the old editions will be renamed.\r\n').encode()


@pytest.fixture
def make(root):
    """Run prepare/gutenberg.py, replacing data sets.  files: {name: content} of local ones, which are then its --input."""
    def run(*words, **files):
        for name, raw in files.items():
            (root / 'shelf').mkdir(exist_ok=True)
            (root / 'shelf' / f'{name}.txt').write_bytes(raw)
        gutenberg.main([*map(str, words), '--overwrite', *[f'--input={root / "shelf"}'] * bool(files)])
    return run


@pytest.fixture
def site(root, serve, monkeypatch):
    """The site: .books, {number: content}; .after, {number: another one, that must be sent before it}."""
    def do_GET(request):
        number = int(re.fullmatch(r'/cache/epub/(\d+)/pg\1\.txt', request.path)[1])
        assert number not in s.after or sent[s.after[number]].wait(20)
        send(request, s.books.get(number))
        sent[number].set()
    sent = {number: threading.Event() for number in range(9)}
    s = serve(do_GET)
    s.books, s.after = {}, {}
    assert gutenberg.URL.startswith('https://www.gutenberg.org/cache/epub/')
    monkeypatch.setattr(gutenberg, 'URL', gutenberg.URL.replace('https://www.gutenberg.org', s.url))
    return s


def test_a_book_from_a_file(make, root, capsys):
    make(50133, pg50133=ebook(HORROR))
    texts, meta = text_of('gutenberg_50133')
    text = cleaned(HORROR) + '\n'
    assert texts == split_text(text) and meta['script'] == 'gutenberg.py'
    assert meta['tokenizer'] == {'kind': 'char', 'chars': sorted(set(text))}
    book = {'id': 50133, 'title': 'The Dunwich Horror', 'sha256': files.digest(root / 'shelf' / 'pg50133.txt')}
    assert meta['source'] == {'name': 'The Dunwich Horror', 'books': [book]} and 'ASCII' not in capsys.readouterr().out
    greek = 'It is written: \u1f10\u03bd \u1f00\u03c1\u03c7\u1fc7, \u03b1\u0301 and \u20ac 5.\r\n' * 9
    make(7, pg7=ebook(greek))       # a letter and its accents count once
    assert ''.join(text_of('gutenberg_7')[0]) == 'It is written: ?? ????, ? and ? 5.\n' * 9
    assert '72 of 314 characters' in capsys.readouterr().out
    make(7, '--no-ascii', pg7=ebook(greek))
    assert ''.join(text_of('gutenberg_7')[0]) == greek.replace('\r\n', '\n') and 'ASCII' not in capsys.readouterr().out
    latin = '\u201cCaf\u00e9\u201d, na\u00efve, 5\u00bd\u00b0\r\n' * 9
    make(7, '--encoding=cp1252', pg7=ebook(latin).decode('utf-8-sig').encode('cp1252'))
    assert ''.join(text_of('gutenberg_7')[0]) == '"Cafe", naive, 5-1/2 deg.\n' * 9


LINES = [       # around books of the site
    ('*** START OF THIS PROJECT GUTENBERG EBOOK {} ***', '*** END OF THIS PROJECT GUTENBERG EBOOK {} ***'),
    ('***START OF THE PROJECT GUTENBERG EBOOK {}***', '        ***END OF THE PROJECT GUTENBERG EBOOK {}***'),
    ('*** START OF THIS PROJECT GUTENBERG ETEXT, {}', '*** END OF THIS PROJECT GUTENBERG ETEXT, {}'),
    ('*** Start of this Project Gutenberg eBook {} ***  ', '*** End of the Project Gutenberg eBook {} ***'),
    ('*** START OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK {} ***', '*** END OF COPYRIGHTED PROJECT GUTENBERG EBOOK {} ***'),
    ('*** START OF THE PROJECT GUTENBERG EBOOK {}:\r\nA TALE,\r\nIN THREE LINES ***',
     '*** END OF THE PROJECT GUTENBERG EBOOK\r\n{} ***'),
    (HEAD, f"End of Project Gutenberg's The Dunwich Horror, by H. P. Lovecraft\r\n\r\n{TAIL}"),
    (HEAD, f'End of the Project Gutenberg EBook of The Dunwich Horror, by\r\nH. P. Lovecraft\r\n\r\n\r\n{TAIL}')]
CREDITS = [     # at the head of books of the site
    'Produced by David Widger', 'This eBook was produced by Greg Weeks.', '_Transcribed from the 1894 edition by David Price_',
    'E-text prepared by Al Haines\r\nand the team (https://www.pgdp.net)\r\n\r\n\r\n[Transcriber\'s Note: a\r\n\r\nb.]',
    'Produced by A\r\n\r\n(This file was produced from images)', 'TRANSCRIBER\u2019S NOTES:\r\n\r\nErrors are\r\ncorrected.',
    'Transcriber\'s note: errors\r\nare corrected.']
LOOKALIKE = f'* * *\r\n\r\n***\r\nThe start of the story.\r\nEnd of the Project Gutenberg\r\n{HORROR}*** END OF CHAPTER ONE ***'


@pytest.mark.parametrize('raw, text', [
    *((ebook(HORROR, start=start, end=end), HORROR) for start, end in LINES),
    *((ebook(f'{credit}\r\n\r\n\r\n{HORROR}'), HORROR) for credit in CREDITS),
    ('\ufeff***'.encode() + ebook(HORROR).partition(b'***')[2], HORROR), (ebook(LOOKALIKE), LOOKALIKE),
    (ebook(f'It was produced by me.\r\n{HORROR}'), f'It was produced by me.\r\n{HORROR}'),
    (ebook('A line.\r\n***\r\n' + HORROR, start='*** START OF THE PROJECT GUTENBERG EBOOK'), 'A line.\r\n***\r\n' + HORROR),
], ids=range(19))
def test_the_book_is_what_is_left(make, raw, text):
    make(7, pg7=raw)
    assert ''.join(text_of('gutenberg_7')[0]) == cleaned(text) + '\n'


@pytest.mark.parametrize('raw, reason', [
    (b'', '*** START OF'), (HORROR.encode(), '*** START OF'), (ebook(HORROR).partition(b'*** END')[0], '*** END OF'),
    (ebook(HORROR, start=TAIL, end=HEAD), '*** END OF'), (ebook(' \r\n'), 'no text'), (ebook('too short'), '10 characters'),
    (ebook('caf\u00e9').decode().encode('utf-16'), 'UTF-16'), (b'caf\xe9 ' + ebook(HORROR), 'byte 3')], ids=range(8))
def test_bad_files(make, root, raw, reason):
    printed = sentence(lambda: make(7, pg7=raw))
    assert reason in printed and (str(root / 'shelf' / 'pg7.txt') in printed or 'The Dunwich Horror' in printed)
    assert not (root / 'data').exists()


def test_ascii():
    for text, ascii in {
            'plain ASCII\tstays\n~': 'plain ASCII\tstays\n~', '\u2026 \u2033 6\u2032 \u00b4': '... " 6\' \'',
            '\u201cDon\u2019t,\u201d \u2018he\u2019 \u201elow\u201c \u00abOui\u00bb': '"Don\'t," \'he\' "low" "Oui"',
            'one\u2014two\u2013three\u2010four\u2011five \u2e3a': 'one--two-three-four-five ----',
            '\u00c6neid, \u0153uvre, \ufb01ne \ufb02ag, Stra\u00dfe, \u017fo': 'AEneid, oeuvre, fine flag, Strasse, so',
            'e\u0301te\u0301 = \u00e9t\u00e9, \u01fd, S\u00f8ren, \u0141\u00f3d\u017a': 'ete = ete, ae, Soren, Lodz',
            '\u00a35, 5\u00bd, \u00bd, 30\u00b0, 3\u00b75, x\u00b2': 'L5, 5-1/2, 1/2, 30 deg., 3.5, x2',
            'a\u00a0b\u2009c\u3000d\u00ade\u200bf\ufeffg\u2028h': 'a b c defg\nh',
            '\u00bfQu\u00e9? \u00a1No!': '?Que? !No!'}.items():
        assert gutenberg.to_ascii(text) == (ascii, 0)
    found = {}      # Unicode's names of the Latin letters of Europe: LATIN SMALL LETTER E WITH ACUTE is e
    for code in (*range(0xc0, 0x180), *range(0x1e00, 0x1f00)):
        named = re.fullmatch(r'LATIN (SMALL|CAPITAL) LETTER ([A-Z])( WITH .*)?', unicodedata.name(chr(code), ''))
        if named and not re.search('HALF RING|MIDDLE DOT|LOOP', named[0]):      # these are other characters
            found[chr(code)] = named[2].lower() if named[1] == 'SMALL' else named[2]
    assert len(found) > 350 and {c: gutenberg.to_ascii(c) for c in found} == {c: (letter, 0) for c, letter in found.items()}


def test_downloads_keep_the_order_of_the_numbers(make, site):
    """The first book arrives last: it waits until the others, requested in parallel, are sent.  Downloads are kept."""
    site.books, site.after = {1: ebook(HORROR), 2: ebook(DRACULA, 'Dracula'), 3: ebook(OLD, 'Frankenstein')}, {1: 3, 3: 2}
    make(1, 3, 2)
    texts, meta = text_of('gutenberg_1_3_2')
    assert texts == split_text('\n\n'.join(map(cleaned, (HORROR, OLD, DRACULA))) + '\n')
    assert [(b['id'], b['sha256']) for b in meta['source']['books']] == \
        [(i, files.digest(files.DOWNLOADS / f'pg{i}.txt')) for i in (1, 3, 2)]
    assert meta['source']['name'] == 'The Dunwich Horror and 2 more'
    make(1, 3, 2, '--name=again')
    assert len(site.log) == 3 and text_of('again') == (texts, meta)
    site.books |= {4: ebook(OLD), 5: ebook(HORROR + ' ')}
    assert 'book 1 and book 5' in sentence(make, 1, 2, '--val', 5, '--name=again')
    assert f'{site.url}/cache/epub/8/pg8.txt (404)' in sentence(make, 4, 8, 1, '--name=again')      # the old data set stays
    assert text_of('again') == (texts, meta) and len([*files.DOWNLOADS.iterdir()]) == 5


def test_books_for_validation_and_the_first_characters(make):
    """Books after --val are whole, not trained on, and in the vocabulary; --characters cuts the others, joined, in ASCII."""
    shelf = {'pg1': ebook(HORROR), 'pg2': ebook(DRACULA, 'Dracula'), '3-0': ebook(OLD, 'Frankenstein')}
    one, two, three = map(cleaned, (HORROR, DRACULA, OLD))
    for words, texts, name in (
            ((2, '--val', 3, 1), (two + '\n', f'{three}\n\n{one}\n'), 'Dracula, validated on Frankenstein and 1 more'),
            ((3, 2, '--val', 1), (f'{three}\n\n{two}\n', one + '\n'),
             'Frankenstein and 1 more, validated on The Dunwich Horror'),
            ((1, '--characters=300'), split_text(one[:300]), 'The Dunwich Horror, first 300 characters'),
            ((1, '--characters=1000000'), split_text(one + '\n'), 'The Dunwich Horror'),
            ((1, 2, f'--characters={len(one) + 3}'), split_text(f'{one}\n\n{two[0]}'),
             f'The Dunwich Horror and 1 more, first {len(one) + 3} characters'),
            ((1, '--val', 2, '--characters=300'), (one[:300], two + '\n'),
             'The Dunwich Horror, first 300 characters, validated on Dracula')):
        make(*words, '--name=mine', **shelf)
        found, meta = text_of('mine')
        assert found == texts and meta['source']['name'] == name and meta['tokenizer']['chars'] == sorted(set(''.join(texts)))
    make(2, '--val', 3, 1, **shelf)
    assert text_of('gutenberg_2_val_3_1')[1]['source']['name'].startswith('Dracula')
    assert 'book 2' in sentence(lambda: make(1, 2, f'--characters={len(one) + 2}', **shelf))
    assert 'pg85.txt, 85-0.txt or 85.txt' in sentence(lambda: make(85, **shelf))


def test_bad_arguments(make, site, root):
    for words, reason in ((['84.5'], "'84.5'"), (['84', '--val', 'x'], "'x'"), (['84', '--input=absent'], 'absent'),
                          (['007', 7], 'book 7 is named 2'), ([5, '--val', 7, 7, 7], 'named 3')):
        assert reason in sentence(make, *words) and site.log == [] and not (root / 'data').exists()
