"""
Books of Project Gutenberg by their numbers, a token a character: data/gutenberg_<numbers>.

    python prepare/gutenberg.py 50133                                       # The Dunwich Horror
    python prepare/gutenberg.py 84 345 --val 50133 --name=horror            # train on two books, validate on a third
    python prepare/gutenberg.py 50133 --input=FOLDER --characters=120000    # from files at hand, the first 120,000 characters

A book is taken from --input, as pgID.txt, ID-0.txt or ID.txt, or else from data/downloads, where it is downloaded to. What
is outside of its START and END lines, header and licence, is left out. The books behind --val are the validation text, and
none of them is trained on; without --val it is the last tenth of the whole.
"""

import hashlib
import re
import sys
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import requests
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, data, files
from harness.config import Arguments
from prepare.text import first, positive, several

URL = 'https://www.gutenberg.org/cache/epub/{0}/pg{0}.txt'
SEP = '\n\n'        # between two books
AT_ONCE = 4         # downloads: the site asks robots to be gentle

# 'THE' or 'THIS', 'EBOOK' or 'ETEXT', with and without blanks; a long title goes on in the next lines. Before the END line
# there may be another that is not the book's: 'End of Project Gutenberg's Frankenstein, by Mary Shelley'.
OF = r' OF (?:TH(?:E|IS) )?(?:COPYRIGHTED )?PROJECT GUTENBERG'
START = re.compile(rf'^ *\*\*\* ?START{OF}(?:[^*\n]*(?:\n[^*\n]+){{0,3}}\*\*\* *$)?.*\n?', re.M | re.I)
END = re.compile(rf'(?:^ *End{OF}(?:.*\n){{1,6}}?)?^ *\*\*\* ?END{OF}', re.M | re.I)

# What Unicode's compatibility decomposition (NFKD) has no ASCII for. A library would know more scripts, but makes a dash a
# hyphen and a pound GBP, and its tables change; NFKD is promised never to, so a book keeps its fingerprint.
FORMS = {c: form for form, characters in {
    "'": '\u2018\u2019\u201a\u201b\u2039\u203a\u2032\u02bc\u00b4',          # single quotes, prime, modifier, acute accent
    '"': '\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033',                      # double quotes, guillemets, double prime
    '-': '\u2010\u2012\u2013\u2212', '--': '\u2014\u2015', '----': '\u2e3a',    # hyphens and dashes
    'ae': '\u00e6', 'AE': '\u00c6', 'oe': '\u0153', 'OE': '\u0152', 'ss': '\u00df', 'SS': '\u1e9e',
    'th': '\u00fe', 'Th': '\u00de', 'd': '\u00f0\u0111', 'D': '\u00d0\u0110', 'h': '\u0127', 'H': '\u0126',
    'l': '\u0142', 'L': '\u0141\u00a3', 'o': '\u00f8', 'O': '\u00d8', 't': '\u0167', 'T': '\u0166', 'i': '\u0131',
    '/': '\u2044', ' deg.': '\u00b0', 'x': '\u00d7', '*': '\u2022', '+': '\u2020', '?': '\u00bf', '!': '\u00a1',
    '.': '\u00b7', 'Sec.': '\u00a7', '(C)': '\u00a9', '\n': '\u2028\u2029'}.items() for c in characters}


def to_ascii(text):
    """(the text in ASCII, how many of its characters have no ASCII form and have become '?')."""
    text = re.sub('(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])', '-', text)      # five and a half is 5-1/2, and not 51/2
    forms, lost = {}, 0
    for c, n in Counter(text).items():
        # Accents and marks of no width go
        form = ''.join(FORMS.get(d, d) for d in FORMS.get(c) or unicodedata.normalize('NFKD', c)
                       if unicodedata.category(d) not in ('Mn', 'Me', 'Cf'))
        forms[ord(c)] = form if form.isascii() else '?'
        lost += 0 if form.isascii() else n
    return text.translate(forms), lost


def fetch(number, folder):
    """The path of a book's file, downloaded if no folder is given and it is not there."""
    name, url = f'pg{number}.txt', URL.format(number)
    if folder:
        names = name, f'{number}-0.txt', f'{number}.txt'
        for path in (Path(folder) / n for n in names):
            if path.is_file():
                return path
        raise UserError(f'--input={folder} holds no {", ".join(names[:-1])} or {names[-1]}: put {url} there')
    try:
        return files.download(url, name)
    except OSError as e:
        if isinstance(e, requests.HTTPError) and e.response.status_code == 404:
            raise UserError(f'Project Gutenberg has no text of number {number}: there is no {url} (404)') from None
        raise files.must_put_by_hand(f'book {number}', name, url, [e]) from None


def book(number, folder, encoding, keep):
    """(the text, how many characters of it were lost, {'id', 'title', 'sha256'}); the hash is that of the file."""
    path = fetch(number, folder)
    try:
        raw = path.read_bytes()
        text = raw.decode('utf-8-sig' if encoding == 'utf-8' else encoding).replace('\r\n', '\n').replace('\r', '\n')
    except UnicodeDecodeError as e:
        raise UserError(f'{path} is not {encoding} text (byte {e.start}): --encoding=latin-1 reads many an old book') from None
    except OSError as e:
        raise UserError(f'{path} cannot be read ({e.strerror})') from None
    start = START.search(text)
    end = start and END.search(text, start.end())
    if not end:
        line = "'*** END OF' behind its '*** START OF'" if start else "'*** START OF THE PROJECT GUTENBERG EBOOK'"
        raise UserError(f'{path} has no line {line}, so it is not a whole book: put {URL.format(number)} in its place')
    title = re.search(r'^Title: *(.*\S)', text[:start.start()], re.M)
    text = text[start.end():end.start()].strip()
    if not text:
        raise UserError(f'{path} has nothing between its START and END lines: leave book {number} out')
    about = {'id': number, 'title': title[1] if title else f'book {number}', 'sha256': hashlib.sha256(raw).hexdigest()}
    return *((text, 0) if keep else to_ascii(text)), about


def main(argv=None):
    parser = Arguments(description=__doc__)
    parser.add_argument('ids', nargs='+', type=positive, metavar='ID', help='the number of a book')
    parser.add_argument('--val', nargs='+', type=positive, metavar='ID', default=[], help='further books, to validate on')
    parser.add_argument('--name', help='the data set becomes data/<name>; train on it with --dataset=<name>')
    parser.add_argument('--input', metavar='FOLDER', help='where the books are, instead of the download')
    parser.add_argument('--characters', type=positive, help='take only so many, from the start; books behind --val are whole')
    parser.add_argument('--no-ascii', action='store_true', help='keep quotes, dashes and accents as they are')
    parser.add_argument('--encoding', choices=('utf-8', 'latin-1', 'cp1252'), default='utf-8', help='of the files')
    args = parser.parse_args(argv)
    ids = args.ids + args.val
    for number, n in Counter(ids).items():
        if n > 1:
            raise UserError(f'book {number} is named {n} times: a book is in one place only, to train on or behind --val')
    name = args.name or '_'.join(map(str, ('gutenberg', *args.ids, *(('val', *args.val) if args.val else ()))))
    data.check_name(name)
    if args.input and not Path(args.input).is_dir():
        raise UserError(f'--input={args.input} is not a folder')
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:       # map() keeps the order; after an error it begins no other book
            found = pool.map(lambda number: book(number, args.input, args.encoding, args.no_ascii), ids)
            texts, lost, about = zip(*tqdm(found, total=len(ids), unit=' books', leave=False, disable=None), strict=True)
    except KeyboardInterrupt:
        raise UserError('stopped: the same command goes on with the books that are there') from None
    if sum(lost):
        print(f"{sum(lost):,} of {sum(map(len, texts)):,} characters have no ASCII form and became '?': --no-ascii keeps them")
    many, titles = len(args.ids), [a['title'] for a in about]
    text, what = first(SEP.join(texts[:many]) + '\n', several(titles[:many]), args.characters)
    val = SEP.join(texts[many:]) + '\n' if args.val else None
    ends = [0, *accumulate(len(t) + len(SEP) for t in texts[:many])]
    if len(text) <= ends[-2]:
        raise UserError(f'--characters={args.characters} ends before book {ids[many - 1]} begins: leave that one out')
    if args.val:
        what += f', validated on {several(titles[many:])}'
    elif many > 1:
        tail = [t for t, end in zip(titles, ends[1:], strict=True) if end > len(data.halves(text)[0])]
        print(f'the last tenth, to validate on, is out of {" and ".join(tail)}')
    chars = sorted({*text, *(val or '')})
    data.write_text(name, text, {'kind': 'char', 'chars': chars}, {'name': what, 'books': about}, Path(__file__).name, val)


if __name__ == '__main__':
    main()
