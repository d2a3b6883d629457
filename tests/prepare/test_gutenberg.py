"""prepare/gutenberg.py: books of Project Gutenberg, from a server on this machine and from local files."""

import re
import threading
import unicodedata

import pytest
from conftest import sentence, text_of

from harness import files
from prepare import gutenberg
from prepare.common import split_text

HORROR = 'THE DUNWICH HORROR\r\n\r\n\u201cYog-Sothoth is the gate,\u201d he said\u2014twice.\r\nNa\u00efve \u0153uvre.\r\n' * 9
DRACULA = 'Jonathan Harker\u2019s Journal\r\n\r\n_3 May. Bistritz._\u2014Left Munich at 8:35 P. M., on 1st May\u2026\r\n' * 9
GREEK = 'It is written: \u1f10\u03bd \u1f00\u03c1\u03c7\u1fc7, \u03b1\u0301 and \u20ac 5.\r\n' * 9
OLD = 'FRANKENSTEIN; or, the Modern Prometheus\r\n\r\nYou will rejoice to hear.\r\n' * 9


def cleaned(text):
    """HORROR, DRACULA or OLD as they are in a data set, independently of gutenberg.py."""
    for old, new in {'\r\n': '\n', '\u201c': '"', '\u201d': '"', '\u2019': "'", '\u2014': '--', '\u2026': '...', '\u00ef': 'i',
                     '\u0153': 'oe'}.items():
        text = text.replace(old, new)
    return text.strip()


def ebook(text, title='The Dunwich Horror', start='*** START OF THE PROJECT GUTENBERG EBOOK {} ***',
          end='*** END OF THE PROJECT GUTENBERG EBOOK {} ***'):
    """A file of the site: byte order mark, header, book, licence, with line ends of Windows."""
    return (f'\ufeffThe Project Gutenberg eBook of {title}\r\n\r\nThis ebook is for the use of anyone anywhere.\r\n\r\n'
            f'Title: {title}\r\n\r\nAuthor: Somebody\r\n\r\n\r\n{start.format(title.upper())}\r\n\r\n\r\n\r\n{text}\r\n\r\n\r\n'
            f'{end.format(title.upper())}\r\n\r\n    *** START: FULL LICENSE ***\r\nUpdated editions will replace the previous '
            f'one\u2014the old editions will be renamed.\r\n').encode()


@pytest.fixture
def make(root):
    """Run prepare/gutenberg.py in this process, replacing data sets; data/ is in an empty folder."""
    return lambda *words: gutenberg.main([*map(str, words), '--overwrite'])


@pytest.fixture
def site(root, serve, monkeypatch):
    """The site: .books, {number: content}, .waits, {number: an event to wait for}, .sent, {number: an event that is set when it
    is sent}, .refuse (a status for every request)."""
    def do_GET(request):
        s = request.server
        number = int(re.fullmatch(r'/cache/epub/(\d+)/pg\1\.txt', request.path)[1])
        if s.refuse or number not in s.books or (number in s.waits and not s.waits[number].wait(20)):
            request.send_error(s.refuse or 404)
            return
        request.send_response(200)
        request.send_header('Content-Length', str(len(s.books[number])))
        request.end_headers()
        request.wfile.write(s.books[number])
        s.sent.get(number, threading.Event()).set()
    s = serve(do_GET)
    s.books, s.waits, s.sent, s.refuse = {}, {}, {}, None
    assert gutenberg.URL.startswith('https://www.gutenberg.org/cache/epub/')
    monkeypatch.setattr(gutenberg, 'URL', gutenberg.URL.replace('https://www.gutenberg.org', s.url))
    return s


@pytest.fixture
def shelf(tmp_path):
    """A local folder of books: shelf(name=content, ...) adds to it and returns it."""
    def add(**content):
        (tmp_path / 'shelf').mkdir(exist_ok=True)
        for name, raw in content.items():
            (tmp_path / 'shelf' / f'{name.replace("_", "-")}.txt').write_bytes(raw)
        return tmp_path / 'shelf'
    return add


# a book -----------------------------------------------------------------------------------------------------------------

def test_a_book_from_a_file(make, shelf, capsys):
    folder = shelf(pg50133=ebook(HORROR))
    make(50133, f'--input={folder}')
    texts, meta = text_of('gutenberg_50133')
    text = cleaned(HORROR) + '\n'
    assert texts == split_text(text) and meta['script'] == 'gutenberg.py'
    assert meta['tokenizer'] == {'kind': 'char', 'chars': sorted(set(text))}
    book = {'id': 50133, 'title': 'The Dunwich Horror', 'sha256': files.digest(folder / 'pg50133.txt')}
    assert meta['source'] == {'name': 'The Dunwich Horror', 'books': [book]} and 'ASCII' not in capsys.readouterr().out
    with pytest.raises(SystemExit, match='data/gutenberg_50133 already exists'):
        gutenberg.main(['50133', f'--input={folder}'])


@pytest.mark.parametrize('start, end', [
    ('*** START OF THIS PROJECT GUTENBERG EBOOK {} ***', '*** END OF THIS PROJECT GUTENBERG EBOOK {} ***'),
    ('***START OF THE PROJECT GUTENBERG EBOOK {}***', '        ***END OF THE PROJECT GUTENBERG EBOOK {}***'),
    ('*** START OF THIS PROJECT GUTENBERG ETEXT, {}', '*** END OF THIS PROJECT GUTENBERG ETEXT, {}'),
    ('*** Start of this Project Gutenberg eBook {} ***  ', '*** End of the Project Gutenberg eBook {} ***'),
    ('*** START OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK {} ***',
     '*** END OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK {} ***'),
    ('*** START OF THE PROJECT GUTENBERG EBOOK {}:\r\nA TALE,\r\nIN THREE LINES ***',
     '*** END OF THE PROJECT GUTENBERG EBOOK\r\n{} ***'),
    ('*** START OF THE PROJECT GUTENBERG EBOOK {} ***',
     "End of Project Gutenberg's The Dunwich Horror, by H. P. Lovecraft\r\n\r\n*** END OF THIS PROJECT GUTENBERG EBOOK {} ***"),
    ('*** START OF THE PROJECT GUTENBERG EBOOK {} ***', 'End of the Project Gutenberg EBook of The Dunwich Horror, by\r\n'
     'H. P. Lovecraft\r\n\r\n\r\n*** END OF THIS PROJECT GUTENBERG EBOOK {} ***'),
], ids=['this', 'no blanks', 'etext, open', 'mixed case', 'copyrighted', 'title of three lines', 'last words', 'longer'])
def test_the_lines_around_a_book(make, shelf, start, end):
    make(7, f'--input={shelf(pg7=ebook(HORROR, start=start, end=end))}')
    assert ''.join(text_of('gutenberg_7')[0]) == cleaned(HORROR) + '\n'


CREDITS = [     # at the head of books of the site
    'Produced by David Widger', 'This eBook was produced by Greg Weeks.', '_Transcribed from the 1894 edition by David Price_',
    'E-text prepared by Al Haines\r\nand the team (https://www.pgdp.net)\r\n\r\n\r\n[Transcriber\'s Note: a\r\n\r\nb.]',
    'Produced by A\r\n\r\n(This file was produced from images)', 'TRANSCRIBER\u2019S NOTES:\r\n\r\nErrors are\r\ncorrected.',
    'Transcriber\'s note: errors\r\nare corrected.']
LOOKALIKE = f'* * *\r\n\r\n***\r\nThe start of the story.\r\nEnd of the Project Gutenberg\r\n{HORROR}*** END OF CHAPTER ONE ***'


@pytest.mark.parametrize('raw, text', [
    ('\ufeff***'.encode() + ebook(HORROR).partition(b'***')[2], HORROR),
    (ebook(LOOKALIKE), LOOKALIKE), *((ebook(f'{credit}\r\n\r\n\r\n{HORROR}'), HORROR) for credit in CREDITS),
    (ebook(f'It was produced by me.\r\n{HORROR}'), f'It was produced by me.\r\n{HORROR}'),
    (ebook('A line.\r\n***\r\n' + HORROR, start='*** START OF THE PROJECT GUTENBERG EBOOK'), 'A line.\r\n***\r\n' + HORROR),
])
def test_the_book_is_what_is_left(make, shelf, raw, text):
    make(7, f'--input={shelf(pg7=raw)}')
    assert ''.join(text_of('gutenberg_7')[0]) == cleaned(text) + '\n'


@pytest.mark.parametrize('raw, reason', [
    (HORROR.encode(), "no line '*** START OF THE PROJECT GUTENBERG EBOOK'"), (b'', "no line '*** START OF"),
    (ebook(HORROR, end='the file ends'), "no line '*** END OF'"),
    (ebook(HORROR, start='*** END OF THE PROJECT GUTENBERG EBOOK ***', end='*** START OF THE PROJECT GUTENBERG EBOOK ***'),
     "no line '*** END OF'"),
    (ebook(' \r\n'), 'no text between its START and END lines'), (ebook('too short'), '10 characters'),
    (ebook('caf\u00e9').decode().encode('utf-16'), 'UTF-16'), (b'caf\xe9 ' + ebook(HORROR), 'byte 3'),
], ids=['no START', 'empty file', 'no END', 'END before START', 'no text', 'short', 'UTF-16', 'latin-1'])
def test_bad_files(make, shelf, root, raw, reason):
    folder = shelf(pg7=raw)
    printed = sentence(make, 7, f'--input={folder}')
    assert reason in printed and (str(folder / 'pg7.txt') in printed or 'The Dunwich Horror' in printed)
    assert not (root / 'data').exists()


@pytest.mark.parametrize('encoding', ['latin-1', 'cp1252'])
def test_a_book_in_another_encoding(make, shelf, encoding):
    text = 'Caf\u00e9, na\u00efve, 5\u00bd\u00b0\r\n' * 9 + ('\u201cQuoted\u201d' if encoding == 'cp1252' else '')
    folder = shelf(pg7=ebook(text).decode('utf-8-sig').replace('\u2014', '-').encode(encoding))
    make(7, f'--input={folder}', f'--encoding={encoding}')
    assert ''.join(text_of('gutenberg_7')[0]) == 'Cafe, naive, 5-1/2 deg.\n' * 9 + '"Quoted"\n' * (encoding == 'cp1252')


# ASCII ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('text, ascii', [
    ('plain ASCII\tstays\n~', 'plain ASCII\tstays\n~'),
    ('\u201cDon\u2019t,\u201d \u2018he\u2019 \u201elow\u201c \u00abOui\u00bb', '"Don\'t," \'he\' "low" "Oui"'),
    ('one\u2014two\u2013three\u2010four\u2011five \u2e3a', 'one--two-three-four-five ----'),
    ('\u2026 \u2033 6\u2032 \u00b4', '... " 6\' \''),
    ('\u00c6neid, \u0153uvre, \ufb01ne \ufb02ag, Stra\u00dfe, \u017fo', 'AEneid, oeuvre, fine flag, Strasse, so'),
    ('e\u0301te\u0301 = \u00e9t\u00e9, \u01fd, S\u00f8ren, \u0141\u00f3d\u017a', 'ete = ete, ae, Soren, Lodz'),
    ('\u00a35, 5\u00bd, \u00bd, 30\u00b0, 3\u00b75, x\u00b2, \u00a7 1, \u00a9',
     'L5, 5-1/2, 1/2, 30 deg., 3.5, x2, Sec. 1, (C)'),
    ('a\u00a0b\u2009c\u3000d\u00ade\u200bf\ufeffg\u2028h', 'a b c defg\nh'),
    ('\u00bfQu\u00e9? \u00a1No!', '?Que? !No!'),
])
def test_ascii(text, ascii):
    assert gutenberg.to_ascii(text) == (ascii, 0)


def test_letters_with_accents_lose_them():
    """Against Unicode's names of the Latin letters of Europe: LATIN SMALL LETTER E WITH ACUTE is e."""
    letters = 0
    for code in (*range(0xc0, 0x180), *range(0x1e00, 0x1f00)):
        if named := re.fullmatch(r'LATIN (SMALL|CAPITAL) LETTER ([A-Z])( WITH .*)?', unicodedata.name(chr(code), '')):
            letter = named[2].lower() if named[1] == 'SMALL' else named[2]
            if not re.search('HALF RING|MIDDLE DOT|LOOP', named[0]):        # other characters
                assert gutenberg.to_ascii(chr(code)) == (letter, 0), named[0]
                letters += 1
    assert letters > 350


def test_characters_without_an_ascii_form_are_counted(make, shelf, capsys):
    """A letter and its accents count once."""
    make(7, f'--input={shelf(pg7=ebook(GREEK))}')
    assert ''.join(text_of('gutenberg_7')[0]) == ('It is written: ?? ????, ? and ? 5.\n' * 9)
    assert '72 of 314 characters' in capsys.readouterr().out
    make(7, '--no-ascii', f'--input={shelf()}')
    assert ''.join(text_of('gutenberg_7')[0]) == GREEK.replace('\r\n', '\n') and 'ASCII' not in capsys.readouterr().out


# several books ----------------------------------------------------------------------------------------------------------

def test_downloads_keep_the_order_of_the_numbers(make, site):
    """The first book arrives last: it waits until the others, requested in parallel, are sent.  Downloads are kept."""
    site.books = {1: ebook(HORROR), 2: ebook(DRACULA, 'Dracula'), 3: ebook(OLD, 'Frankenstein')}
    site.sent = {2: threading.Event(), 3: threading.Event()}
    site.waits = {1: site.sent[3], 3: site.sent[2]}
    make(1, 3, 2)
    texts, meta = text_of('gutenberg_1_3_2')
    assert texts == split_text('\n\n'.join(map(cleaned, (HORROR, OLD, DRACULA))) + '\n')
    assert [(b['id'], b['sha256']) for b in meta['source']['books']] == \
        [(i, files.digest(files.DOWNLOADS / f'pg{i}.txt')) for i in (1, 3, 2)]
    assert meta['source']['name'] == 'The Dunwich Horror and 2 more'
    make(1, 3, 2, '--name=again')
    assert len(site.log) == 3 and text_of('again') == (texts, meta)


def test_books_for_validation_are_not_trained_on(make, shelf):
    """Their characters are in the vocabulary."""
    folder = shelf(pg1=ebook(HORROR), pg2=ebook(DRACULA, 'Dracula'), pg3=ebook(OLD, 'Frankenstein'))
    make(2, '--val', 3, 1, f'--input={folder}')
    texts, meta = text_of('gutenberg_2_val_3_1')
    assert texts == (cleaned(DRACULA) + '\n', cleaned(OLD) + '\n\n' + cleaned(HORROR) + '\n')
    assert set(texts[1]) - set(texts[0]) and meta['tokenizer']['chars'] == sorted(set(''.join(texts)))
    assert meta['source']['name'] == 'Dracula, validated on Frankenstein and 1 more'
    assert 'pg85.txt, 85-0.txt or 85.txt' in sentence(make, 85, f'--input={folder}')
    make(1, 2, '--val', 3, '--name=horror', f'--input={folder}')
    assert text_of('horror')[0] == (cleaned(HORROR) + '\n\n' + cleaned(DRACULA) + '\n', cleaned(OLD) + '\n')


def test_a_book_that_does_not_exist(make, site, root):
    """The old data set stays, and the other downloads are kept."""
    site.books = {1: ebook(HORROR), 2: ebook(DRACULA)}
    make(1, 2, '--name=mine')
    before = text_of('mine')
    site.books |= {4: ebook(OLD), 5: ebook(HORROR + ' ')}
    assert 'book 1 and book 5 have the same text' in sentence(make, 1, 2, '--val', 5, '--name=mine')
    printed = sentence(make, 4, 3, 1, '--name=mine')
    assert f'{site.url}/cache/epub/3/pg3.txt (404)' in printed and text_of('mine') == before
    assert sorted(p.name for p in files.DOWNLOADS.iterdir()) == ['pg1.txt', 'pg2.txt', 'pg4.txt', 'pg5.txt']


def test_the_first_characters(make, shelf):
    """Of the training books, joined, in ASCII; books after --val are whole."""
    folder = f'--input={shelf(pg1=ebook(HORROR), pg2=ebook(DRACULA, "Dracula"))}'
    one, two = cleaned(HORROR), cleaned(DRACULA)
    for words, texts, name in (
            ((1, '--characters=300'), split_text(one[:300]), 'The Dunwich Horror, first 300 characters'),
            ((1, '--characters=1000000'), split_text(one + '\n'), 'The Dunwich Horror'),
            ((1, 2, f'--characters={len(one) + 3}'), split_text(f'{one}\n\n{two[0]}'),
             f'The Dunwich Horror and 1 more, first {len(one) + 3} characters'),
            ((1, '--val', 2, '--characters=300'), (one[:300], two + '\n'),
             'The Dunwich Horror, first 300 characters, validated on Dracula')):
        make(*words, '--name=mine', folder)
        found, meta = text_of('mine')
        assert found == texts and meta['source']['name'] == name
    assert 'book 2' in sentence(make, 1, 2, f'--characters={len(one) + 2}', folder)


@pytest.mark.parametrize('words, reason', [
    ([], 'required: ID'), (['frankenstein'], "argument ID: 'frankenstein'"), (['0'], "argument ID: '0'"),
    (['84.5'], "argument ID: '84.5'"), (['84', '--val', 'x'], "argument --val: 'x'"), (['84', '--val'], 'argument --val'),
    (['84', '--characters=0'], "argument --characters: '0'"), (['84', '--encoding=utf-9'], "'utf-9'"),
    (['84', '--name=a/b'], "'a/b'"), (['84', '--input=absent'], '--input=absent'), (['84', '--ascii'], '--ascii'),
    ([5, 7, 5], 'book 5 is named 2 times'), (['007', 7], 'book 7 is named 2 times'), ([5, '--val', 7, 7, 7], 'named 3 times'),
])
def test_bad_arguments(make, site, root, words, reason):
    assert reason in sentence(make, *words) and site.log == [] and not (root / 'data').exists()
