"""prepare/gutenberg.py: books of Project Gutenberg, from a server on this machine and from files at hand."""

import hashlib
import http.server
import re
import threading
import unicodedata
from pathlib import Path

import pytest

from harness import ROOT, UserError, data, files
from prepare import gutenberg

HORROR = 'THE DUNWICH HORROR\r\n\r\n\u201cYog-Sothoth is the gate,\u201d he said\u2014twice.\r\nNa\u00efve \u0153uvre.\r\n' * 9
DRACULA = 'Jonathan Harker\u2019s Journal\r\n\r\n_3 May. Bistritz._\u2014Left Munich at 8:35 P. M., on 1st May\u2026\r\n' * 9
GREEK = 'It is written: \u1f10\u03bd \u1f00\u03c1\u03c7\u1fc7, \u03b1\u0301 and \u20ac 5.\r\n' * 9
OLD = 'FRANKENSTEIN; or, the Modern Prometheus\r\n\r\nYou will rejoice to hear.\r\n' * 9


def cleaned(text):
    """What a data set holds of HORROR, DRACULA or OLD, written out by hand."""
    for old, new in {'\r\n': '\n', '\u201c': '"', '\u201d': '"', '\u2019': "'", '\u2014': '--', '\u2026': '...', '\u00ef': 'i',
                     '\u0153': 'oe'}.items():
        text = text.replace(old, new)
    return text.strip()


def ebook(text, title='The Dunwich Horror', start='*** START OF THE PROJECT GUTENBERG EBOOK {} ***',
          end='*** END OF THE PROJECT GUTENBERG EBOOK {} ***'):
    """A file as the site has it: a mark at the start, a header, the book, a licence; lines end as on Windows."""
    return (f'\ufeffThe Project Gutenberg eBook of {title}\r\n\r\nThis ebook is for the use of anyone anywhere.\r\n\r\n'
            f'Title: {title}\r\n\r\nAuthor: Somebody\r\n\r\n\r\n{start.format(title.upper())}\r\n\r\n\r\n\r\n{text}\r\n\r\n\r\n'
            f'{end.format(title.upper())}\r\n\r\n    *** START: FULL LICENSE ***\r\nUpdated editions will replace the previous '
            f'one\u2014the old editions will be renamed.\r\n').encode()


@pytest.fixture
def make(root):
    """Run prepare/gutenberg.py in this process; data/ is in an empty folder.  Returns the names of data/ that are new or
    changed."""
    def seen():
        return {p.parent.name: p.read_bytes() for p in (root / 'data').glob('*/meta.json')}

    def run(*words):
        old = seen()
        gutenberg.main([*map(str, words)])
        return [name for name, meta in sorted(seen().items()) if old.get(name) != meta]
    return run


@pytest.fixture
def shelf(tmp_path):
    """A folder of books at hand: shelf(name=content, ...) adds to it and returns it."""
    def add(**content):
        (tmp_path / 'shelf').mkdir(exist_ok=True)
        for name, raw in content.items():
            (tmp_path / 'shelf' / f'{name.replace("_", "-")}.txt').write_bytes(raw)
        return tmp_path / 'shelf'
    return add


@pytest.fixture
def site(root, monkeypatch):
    """The site, on this machine: .books, {number: content}, .waits, {number: an event to wait for}, .sent, {number: an event
    that is set once it is on its way}, .refuse (a status for every request), .stop_after (bytes, then the line is cut), and
    .log, (path, Range) of each request."""
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.setenv(name, '*')

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            s, wanted = self.server, self.headers['Range']
            s.log.append((self.path, wanted))
            numbers = re.fullmatch(r'/cache/epub/(\d+)/pg(\d+)\.txt', self.path)
            number = int(numbers[1])
            if s.refuse or number not in s.books or numbers[1] != numbers[2]:
                self.send_error(s.refuse or 404)
                return
            start = int(wanted[len('bytes='):-1]) if wanted else 0
            if number in s.waits and not s.waits[number].wait(20):
                self.send_error(504)
                return
            self.send_response(206 if wanted else 200)
            self.send_header('Content-Length', str(len(s.books[number]) - start))
            self.end_headers()
            self.wfile.write(s.books[number][start:][:s.stop_after])
            s.sent.get(number, threading.Event()).set()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as s:
        s.books, s.waits, s.sent, s.refuse, s.stop_after, s.log = {}, {}, {}, None, None, []
        s.url = f'http://127.0.0.1:{s.server_port}'
        assert gutenberg.URL.startswith('https://www.gutenberg.org/cache/epub/')
        monkeypatch.setattr(gutenberg, 'URL', gutenberg.URL.replace('https://www.gutenberg.org', s.url))
        threading.Thread(target=s.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
        yield s
        s.shutdown()


def said(call, *words):
    """What the UserError of call(*words) says, on one line."""
    with pytest.raises(UserError) as e:
        call(*words)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) > 20
    return str(e.value)


def read(name):
    """(the two texts of data/<name>, its meta.json)."""
    made = data.TextData(data.ROOT / 'data' / name)
    assert sorted(p.name for p in made.folder.iterdir()) == ['meta.json', 'train.bin', 'val.bin']
    return tuple(made.tokenizer.decode(made.tokens[split].tolist()) for split in ('train', 'val')), made.meta


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


# ---------------------------------------------------------------------------------------------------- a book


def test_a_book_from_a_file(make, shelf, capsys):
    raw = ebook(HORROR)
    assert make(50133, f'--input={shelf(pg50133=raw)}') == ['gutenberg_50133']
    texts, meta = read('gutenberg_50133')
    text = cleaned(HORROR) + '\n'
    assert ''.join(texts) == text and texts == data.halves(text)
    assert meta['tokenizer'] == {'kind': 'char', 'chars': sorted(set(text))} and meta['script'] == 'gutenberg.py'
    assert meta['source'] == {'name': 'The Dunwich Horror',
                              'books': [{'id': 50133, 'title': 'The Dunwich Horror', 'sha256': sha256(raw)}]}
    out = capsys.readouterr().out
    assert 'data/gutenberg_50133: ' in out and 'The Dunwich Horror' in out and 'ASCII' not in out


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
    assert ''.join(read('gutenberg_7')[0]) == cleaned(HORROR) + '\n'


def test_a_file_whose_header_is_gone(make, shelf):
    """The mark that some editors put at the start is then before the START line."""
    raw = ebook(HORROR).decode('utf-8-sig')
    make(7, f'--input={shelf(pg7=raw[raw.index("*** START"):].encode("utf-8-sig"))}')
    texts, meta = read('gutenberg_7')
    assert ''.join(texts) == cleaned(HORROR) + '\n' and meta['source']['name'] == 'book 7'


def test_what_only_looks_like_a_border_stays(make, shelf):
    """Stars, a START line within the book, and its own last words are the book's."""
    text = f'* * *\r\n\r\n***\r\nThe start of the story.\r\nEnd of the Project Gutenberg\r\n{HORROR}*** END OF CHAPTER ONE ***'
    make(7, f'--input={shelf(pg7=ebook(text))}')
    assert ''.join(read('gutenberg_7')[0]) == cleaned(text) + '\n'


def test_an_open_start_line_takes_no_line_of_the_book(make, shelf):
    text = 'A line.\r\n***\r\n' + HORROR
    make(7, f'--input={shelf(pg7=ebook(text, start="*** START OF THE PROJECT GUTENBERG EBOOK"))}')
    assert ''.join(read('gutenberg_7')[0]) == 'A line.\n***\n' + cleaned(HORROR) + '\n'


@pytest.mark.parametrize('raw, reason', [
    (HORROR.encode(), "has no line '*** START OF THE PROJECT GUTENBERG EBOOK', so it is not a whole book: put https://"),
    (b'', "has no line '*** START OF"),
    (ebook(HORROR, end='the file ends'), "has no line '*** END OF' behind its '*** START OF', so it is not a whole book: put "),
    (ebook(HORROR, start='*** END OF THE PROJECT GUTENBERG EBOOK ***', end='*** START OF THE PROJECT GUTENBERG EBOOK ***'),
     "has no line '*** END OF' behind"),
    (ebook(' \r\n'), 'has nothing between its START and END lines: leave book 7 out'),
    (ebook('caf\u00e9').decode().encode('utf-16'), 'is not utf-8 text (byte 0): --encoding=latin-1 reads'),
    (b'caf\xe9 ' + ebook(HORROR), 'is not utf-8 text (byte 3): --encoding=latin-1 reads'),
    (ebook('too short'), '10 characters are too few to train on'),
], ids=['no START', 'empty file', 'no END', 'END before START', 'nothing inside', 'UTF-16', 'latin-1', 'short'])
def test_a_file_that_will_not_do(make, shelf, root, raw, reason):
    folder = shelf(pg7=raw)
    sentence = said(make, 7, f'--input={folder}')
    assert reason in sentence and (str(folder / 'pg7.txt') in sentence or 'The Dunwich Horror' in sentence)
    assert not (root / 'data').exists()


@pytest.mark.parametrize('encoding', ['latin-1', 'cp1252'])
def test_a_book_in_another_encoding(make, shelf, encoding):
    text = 'Caf\u00e9, na\u00efve, 5\u00bd\u00b0\r\n' * 9 + ('\u201cQuoted\u201d' if encoding == 'cp1252' else '')
    folder = shelf(pg7=ebook(text).decode('utf-8-sig').replace('\u2014', '-').encode(encoding))
    assert 'is not utf-8 text' in said(make, 7, f'--input={folder}')
    make(7, f'--input={folder}', f'--encoding={encoding}')
    assert ''.join(read('gutenberg_7')[0]) == 'Cafe, naive, 5-1/2 deg.\n' * 9 + ('"Quoted"\n' if encoding == 'cp1252' else '')


# ---------------------------------------------------------------------------------------------------- ASCII


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


def test_letters_with_marks_become_the_letters_that_they_are_named_for():
    """Unicode's own names of the Latin letters of Europe are the reference: LATIN SMALL LETTER E WITH ACUTE is e."""
    letters = 0
    for code in (*range(0xc0, 0x180), *range(0x1e00, 0x1f00)):
        if named := re.fullmatch(r'LATIN (SMALL|CAPITAL) LETTER ([A-Z])( WITH .*)?', unicodedata.name(chr(code), '')):
            wanted = named[2].lower() if named[1] == 'SMALL' else named[2]
            if not re.search('HALF RING|MIDDLE DOT|LOOP', named[0]):        # more than a letter, or none of Europe's today
                assert gutenberg.to_ascii(chr(code)) == (wanted, 0), named[0]
                letters += 1
    assert letters > 350


def test_every_character_becomes_ascii_or_is_counted():
    for code in (*range(0x3000), *range(0xfb00, 0xfb07), 0x1f600):
        text, lost = gutenberg.to_ascii(chr(code) * 3)
        assert text.isascii() and lost in (0, 3)
        assert lost == 0 or text == '???'
        assert code >= 128 or text == chr(code) * 3


def test_what_has_no_ascii_form_is_counted_and_said(make, shelf, capsys):
    """A letter and the accents over it are lost once."""
    make(7, f'--input={shelf(pg7=ebook(GREEK))}')
    assert ''.join(read('gutenberg_7')[0]) == ('It is written: ?? ????, ? and ? 5.\n' * 9)
    assert "72 of 314 characters have no ASCII form and became '?': --no-ascii keeps them" in capsys.readouterr().out
    make(7, '--no-ascii', f'--input={shelf()}')
    assert ''.join(read('gutenberg_7')[0]) == GREEK.replace('\r\n', '\n') and 'ASCII' not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- several books


def test_the_order_is_that_of_the_numbers(make, site):
    """The first book comes last: it waits until the others, asked for at the same time, are on their way."""
    site.books = {1: ebook(HORROR), 2: ebook(DRACULA, 'Dracula'), 3: ebook(OLD, 'Frankenstein')}
    site.sent = {2: threading.Event(), 3: threading.Event()}
    site.waits = {1: site.sent[3], 3: site.sent[2]}
    assert make(1, 3, 2) == ['gutenberg_1_3_2']
    texts, meta = read('gutenberg_1_3_2')
    assert ''.join(texts) == '\n\n'.join(map(cleaned, (HORROR, OLD, DRACULA))) + '\n'
    assert texts == data.halves(''.join(texts))
    assert [b['id'] for b in meta['source']['books']] == [1, 3, 2]
    assert [b['sha256'] for b in meta['source']['books']] == [sha256(site.books[i]) for i in (1, 3, 2)]
    assert meta['source']['name'] == 'The Dunwich Horror and 2 more'


def test_books_to_validate_on_are_not_trained_on(make, shelf):
    """And what is only in them is in the vocabulary."""
    folder = shelf(pg1=ebook(HORROR), pg2=ebook(DRACULA, 'Dracula'), pg3=ebook(OLD, 'Frankenstein'))
    assert make(2, '--val', 3, 1, f'--input={folder}') == ['gutenberg_2_val_3_1']
    texts, meta = read('gutenberg_2_val_3_1')
    assert texts == (cleaned(DRACULA) + '\n', cleaned(OLD) + '\n\n' + cleaned(HORROR) + '\n')
    assert meta['tokens'] == {'train': len(texts[0]), 'val': len(texts[1])}
    assert set(texts[1]) - set(texts[0]) and meta['tokenizer']['chars'] == sorted(set(''.join(texts)))
    assert meta['source']['name'] == 'Dracula, validated on Frankenstein and 1 more'
    assert [b['id'] for b in meta['source']['books']] == [2, 3, 1]
    assert make(1, 2, '--val', 3, '--name=horror', f'--input={folder}') == ['horror']
    assert read('horror')[0] == (cleaned(HORROR) + '\n\n' + cleaned(DRACULA) + '\n', cleaned(OLD) + '\n')
    make(3, 2, '--val', 1, '--name=horror', f'--input={folder}')        # the same books, but another split
    assert read('horror')[0] == (cleaned(OLD) + '\n\n' + cleaned(DRACULA) + '\n', cleaned(HORROR) + '\n')


@pytest.mark.parametrize('words, n', [([5, 7, 5], 2), (['007', 7], 2), ([7, 5, '--val', 7], 2), ([5, '--val', 7, 7, 7], 3)])
def test_a_book_that_is_named_twice(make, site, words, n):
    book = 5 if words[0] == 5 and n == 2 else 7
    sentence = f'book {book} is named {n} times: a book is in one place only, to train on or behind --val'
    assert said(make, *words) == sentence and site.log == []


def test_it_is_said_which_books_the_last_tenth_is_of(make, shelf, capsys):
    folder = f'--input={shelf(pg1=ebook(HORROR * 15), pg2=ebook(DRACULA, "Dracula"), pg3=ebook(OLD[:40], "Frankenstein"))}'
    for words, titles in (((2, 3, 1), 'The Dunwich Horror'), ((1, 2, 3), 'The Dunwich Horror and Dracula and Frankenstein'),
                          ((2, 3), 'Dracula and Frankenstein'), ((1,), None), ((2, '--val', 1), None)):
        make(*words, folder)
        found = re.search('the last tenth, to validate on, is out of (.*)', capsys.readouterr().out)
        assert (found and found[1]) == titles, words


def test_one_book_that_cannot_be_had_leaves_nothing_half_made(make, site, root):
    site.books = {1: ebook(HORROR), 2: ebook(DRACULA)}
    make(1, 2, '--name=mine')
    before = read('mine')
    site.books[4] = ebook(OLD)
    assert 'of number 3' in said(make, 4, 3, 1, '--name=mine')
    assert 'of number 3' in said(make, 4, 3, 1, '--name=other')
    assert read('mine') == before and sorted(p.name for p in (root / 'data').iterdir()) == ['downloads', 'mine']
    asked = len(site.log)
    make(4, 1, '--name=mine')               # what came is kept
    assert len(site.log) == asked and sorted(p.name for p in files.DOWNLOADS.iterdir()) == ['pg1.txt', 'pg2.txt', 'pg4.txt']


def test_after_an_error_no_other_book_is_begun(make, shelf, monkeypatch):
    """Those that were begun at the same time as the one that fails are finished: they wait here until it has failed."""
    begun, failed = [], threading.Event()

    class Pool(gutenberg.ThreadPoolExecutor):
        def __exit__(self, *error):
            failed.set()
            return super().__exit__(*error)

    def fetch(number, folder):
        begun.append(number)
        if number > 1:
            assert failed.wait(20)
        return folder / f'pg{number}.txt'
    monkeypatch.setattr(gutenberg, 'ThreadPoolExecutor', Pool)
    monkeypatch.setattr(gutenberg, 'fetch', lambda number, folder: fetch(number, Path(folder)))
    assert 'pg1.txt cannot be read (No such file or directory)' in said(make, *range(1, 41), f'--input={shelf()}')
    assert sorted(begun) == list(range(1, 6))


def test_ctrl_c(make, shelf, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(gutenberg, 'fetch', interrupted)
    assert said(make, 1, f'--input={shelf()}') == 'stopped: the same command goes on with the books that are there'


# ---------------------------------------------------------------------------------------------------- where books are


def test_a_book_is_downloaded_once(make, site, root):
    site.books[84] = ebook(OLD, 'Frankenstein')
    make(84)
    assert site.log == [('/cache/epub/84/pg84.txt', None)]
    assert (files.DOWNLOADS / 'pg84.txt').read_bytes() == site.books[84]
    make(84, '--name=again')
    assert len(site.log) == 1 and read('again') == read('gutenberg_84')


def test_a_number_that_does_not_exist(make, site, root):
    assert said(make, 9999999) == 'Project Gutenberg has no text of number 9999999: there is no ' \
        f'{site.url}/cache/epub/9999999/pg9999999.txt (404)'
    assert sorted(p.name for p in (root / 'data').rglob('*')) == ['downloads']


def test_a_book_put_by_hand(make, site):
    """The sentence names the file and where to put it: done as it says, the script works though the site does not."""
    site.refuse = 503
    sentence = said(make, 84)
    assert sentence.startswith('book 84 could not be downloaded (503 ')
    url, path = re.search(r'put (\S+) by hand at (\S+)$', sentence).groups()
    assert url == f'{site.url}/cache/epub/84/pg84.txt' and Path(path).parent == files.DOWNLOADS
    Path(path).write_bytes(ebook(OLD))
    make(84)
    assert ''.join(read('gutenberg_84')[0]) == cleaned(OLD) + '\n'


def test_a_broken_download_goes_on(make, site):
    site.books[84] = ebook(OLD * 1000)
    site.stop_after = 300_000
    assert 'book 84 could not be downloaded (' in said(make, 84)
    have = (files.DOWNLOADS / 'pg84.txt.partial').stat().st_size
    assert 0 < have <= 300_000 and not (files.DOWNLOADS / 'pg84.txt').exists()
    site.stop_after = None
    make(84)
    assert site.log[1:] == [('/cache/epub/84/pg84.txt', f'bytes={have}-')]
    assert (files.DOWNLOADS / 'pg84.txt').read_bytes() == site.books[84]
    assert ''.join(read('gutenberg_84')[0]) == cleaned(OLD * 1000) + '\n'


def test_the_names_that_a_file_at_hand_may_have(make, shelf, site):
    """The site's own name goes before the others; nothing is downloaded."""
    for name, text in (('84', OLD), ('84_0', DRACULA), ('pg84', HORROR)):
        make(84, f'--input={shelf(**{name: ebook(text)})}')
        assert ''.join(read('gutenberg_84')[0]) == cleaned(text) + '\n'
    sentence = said(make, 84, 85, f'--input={shelf()}')
    assert sentence == f'--input={shelf()} holds no pg85.txt, 85-0.txt or 85.txt: put {site.url}/cache/epub/85/pg85.txt there'
    assert site.log == []


def test_an_input_that_is_no_folder(make, shelf):
    path = shelf(pg7=ebook(HORROR)) / 'pg7.txt'
    assert said(make, 7, f'--input={path}') == f'--input={path} is not a folder'


def test_a_file_that_cannot_be_read(make, shelf, monkeypatch):
    folder = shelf(pg7=ebook(HORROR))

    def denied(self):
        raise PermissionError(13, 'Permission denied', str(self))
    monkeypatch.setattr(Path, 'read_bytes', denied)
    assert said(gutenberg.main, ['7', f'--input={folder}']) == f'{folder / "pg7.txt"} cannot be read (Permission denied)'


# ---------------------------------------------------------------------------------------------------- what is asked for


def test_the_first_characters(make, shelf):
    """Of the whole, as it is in the data set: ASCII, books joined; and of the training books, if others are to validate on."""
    folder = f'--input={shelf(pg1=ebook(HORROR), pg2=ebook(DRACULA, "Dracula"))}'
    one, two = cleaned(HORROR), cleaned(DRACULA)
    make(1, '--characters=300', folder)
    texts, meta = read('gutenberg_1')
    assert texts == data.halves(one[:300]) and len(texts[1]) == 30
    assert meta['source']['name'] == 'The Dunwich Horror, first 300 characters'
    assert meta['tokenizer']['chars'] == sorted(set(one[:300]))
    make(1, '--characters=1000000', folder)
    texts, meta = read('gutenberg_1')
    assert ''.join(texts) == one + '\n' and meta['source']['name'] == 'The Dunwich Horror'
    make(1, 2, f'--characters={len(one) + 100}', folder)
    assert ''.join(read('gutenberg_1_2')[0]) == f'{one}\n\n{two}'[:len(one) + 100]
    make(1, '--val', 2, '--characters=300', folder)
    texts, meta = read('gutenberg_1_val_2')
    assert texts == (one[:300], two + '\n')
    assert meta['source']['name'] == 'The Dunwich Horror, first 300 characters, validated on Dracula'
    assert said(make, 1, 2, f'--characters={len(one) + 2}', folder) == \
        f'--characters={len(one) + 2} ends before book 2 begins: leave that one out'
    make(1, 2, f'--characters={len(one) + 3}', folder)
    assert ''.join(read('gutenberg_1_2')[0]) == f'{one}\n\n{two[0]}'


@pytest.mark.parametrize('words, reason', [
    ([], 'the following arguments are required: ID'),
    (['frankenstein'], "argument ID: 'frankenstein' is not a whole number from 1 on"),
    (['0'], "argument ID: '0' is not a whole number from 1 on"),
    (['-5'], "argument ID: '-5' is not a whole number from 1 on"),
    (['84.5'], "argument ID: '84.5' is not"),
    (['84', '--val', 'x'], "argument --val: 'x' is not a whole number from 1 on"),
    (['84', '--val'], 'argument --val: expected at least one argument'),
    (['84', '--characters=0'], "argument --characters: '0' is not a whole number from 1 on"),
    (['84', '--characters=-1'], "argument --characters: '-1' is not"),
    (['84', '--encoding=utf-9'], "argument --encoding: invalid choice: 'utf-9'"),
    (['84', '--name=a/b'], "'a/b' cannot name a data set"),
    (['84', '--input=absent'], '--input=absent is not a folder'),
    (['84', '--ascii'], 'unrecognized arguments: --ascii'),
])
def test_a_command_that_will_not_do(make, site, root, words, reason):
    sentence = said(make, *words)
    assert reason in sentence and site.log == [] and not (root / 'data').exists()
    assert '--help' in sentence or not sentence.startswith('argument ')


def test_the_command_line(tree, cli, shelf, monkeypatch):
    """From another folder."""
    folder = shelf(pg1=ebook(HORROR), pg2=ebook(DRACULA, 'Dracula'))
    done = cli(tree / 'prepare' / 'gutenberg.py', 1, '--val', 2, '--name=mine', '--input=shelf', cwd=folder.parent)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    monkeypatch.setattr(data, 'ROOT', tree)
    assert read('mine')[0] == (cleaned(HORROR) + '\n', cleaned(DRACULA) + '\n')


def test_no_data_set_of_the_scripts_own_name_is_made():
    """prepare/gutenberg.py wants numbers, so train.py --dataset=gutenberg does not run it."""
    assert not (ROOT / 'data' / 'gutenberg').exists()
    assert "there is no data set 'gutenberg': known are" in said(data.ensure, 'gutenberg')
