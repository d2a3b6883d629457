"""
Books of Project Gutenberg by their numbers, one token per character: data/gutenberg_<numbers>.

    python prepare/gutenberg.py 50133                                       # The Dunwich Horror
    python prepare/gutenberg.py 84 345 --val 50133 --name=horror            # train on two books, validate on a third
    python prepare/gutenberg.py 50133 --input=FOLDER --characters=120000    # local files, the first 120,000 characters

A book is a file pgID.txt, ID-0.txt or ID.txt in the folder --input, or a download to data/downloads. The header and the
licence, outside of the START and END lines, are removed, and so are credits and notes of the transcriber at the head. Books
after --val are the validation text; without --val, it is the last tenth.
"""

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

from harness import UserError, command, files
from prepare import common
from prepare.common import char_tokenizer, check_distinct, check_new, positive, read_text, split_text, summarize, truncate

URL = 'https://www.gutenberg.org/cache/epub/{0}/pg{0}.txt'
SEP = '\n\n'        # between two books
WORKERS = 4         # parallel downloads: the site asks robots for restraint

# The lines have 'THE' or 'THIS', 'EBOOK' or 'ETEXT', and optional spaces; a long title continues on the next lines. A line
# before END, such as 'End of Project Gutenberg's Frankenstein, by Mary Shelley', is not part of the book either.
OF = r' OF (?:TH(?:E|IS) )?(?:COPYRIGHTED )?PROJECT GUTENBERG'
START = re.compile(rf'^ *\*\*\* ?START{OF}(?:[^*\n]*(?:\n[^*\n]+){{0,3}}\*\*\* *$)?.*\n?', re.M | re.I)
END = re.compile(rf'(?:^ *End{OF}(?:.*\n){{1,6}}?)?^ *\*\*\* ?END{OF}', re.M | re.I)

# First paragraphs that are not of the book: 'Produced by ...', or a note of the transcriber, in brackets or below a heading
NOTE = r"Transcriber['\u2019s]*\ notes?\b"
CREDITS = re.compile(rf"""\A(?:\s*[*_(]*(?: \[{NOTE}[^\]]*\] | (?: {NOTE}(?:[ :._*]*\n[ \n]*\n)? |
                     (?:This\ )?(?:e-?text\ |e-?book\ |file\ )?(?:was\ )?
                     (?:produced|prepared|transcribed|scanned|digiti[sz]ed)\ (?:by|from)\b ).*(?:\n.*\S.*)* ))+""", re.X | re.I)

# ASCII for characters that Unicode's compatibility decomposition (NFKD) leaves as they are. Libraries know more scripts, but
# their tables change, and with them fingerprints; NFKD is guaranteed never to change.
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
    """(the text in ASCII, the number of characters without an ASCII form, which become '?')."""
    text = re.sub('(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])', '-', text)      # 5\u00bd becomes 5-1/2, not 51/2
    forms, lost = {}, 0
    for c, n in Counter(text).items():
        # Accents and zero-width marks are removed
        form = ''.join(FORMS.get(d, d) for d in FORMS.get(c) or unicodedata.normalize('NFKD', c)
                       if unicodedata.category(d) not in ('Mn', 'Me', 'Cf'))
        forms[ord(c)] = form if form.isascii() else '?'
        lost += 0 if form.isascii() else n
    return text.translate(forms), lost


def find(number, folder):
    """The path of a book's file, in a local folder or downloaded."""
    name, url = f'pg{number}.txt', URL.format(number)
    if folder:
        names = name, f'{number}-0.txt', f'{number}.txt'
        for path in (Path(folder) / n for n in names):
            if path.is_file():
                return path
        raise UserError(f'--input={folder} contains no {", ".join(names[:-1])} or {names[-1]}: put {url} there')
    try:
        return files.download(url, name)
    except OSError as e:
        if isinstance(e, requests.HTTPError) and e.response.status_code == 404:
            raise UserError(f'Project Gutenberg has no text with the number {number}: there is no {url} (404)') from None
        raise files.must_put_by_hand(f'book {number}', name, url, [e]) from None


def book(number, folder, encoding, keep):
    """(text, number of characters that became '?', {'id', 'title', 'sha256'}); the hash is that of the file."""
    path = find(number, folder)
    text = read_text(path, encoding, 'try --encoding=latin-1 for an old book')
    start = START.search(text)
    end = start and END.search(text, start.end())
    if not end:
        line = "'*** END OF' after its '*** START OF'" if start else "'*** START OF THE PROJECT GUTENBERG EBOOK'"
        raise UserError(f'{path} has no line {line}, so it is incomplete: replace it with {URL.format(number)}')
    title = re.search(r'^Title: *(.*\S)', text[:start.start()], re.M)
    text = CREDITS.sub('', text[start.end():end.start()]).strip()
    if not text:
        raise UserError(f'{path} has no text between its START and END lines: omit book {number}')
    meta = {'id': number, 'title': title[1] if title else f'book {number}', 'sha256': files.digest(path)}
    return *((text, 0) if keep else to_ascii(text)), meta


def main(argv):
    parser = common.Parser(__doc__)
    parser.add_argument('ids', nargs='+', type=positive, metavar='ID', help='numbers of the books')
    parser.add_argument('--val', nargs='+', type=positive, metavar='ID', default=[], help='further books, for validation')
    parser.add_argument('--name', help='the data set becomes data/<name>; train on it with --dataset=<name>')
    parser.add_argument('--input', metavar='FOLDER', help='folder with the books, instead of the download')
    parser.add_argument('--characters', type=positive, help='use only this many characters for training, from the start')
    parser.add_argument('--no-ascii', action='store_true', help='keep quotes, dashes and accents')
    parser.add_argument('--encoding', choices=('utf-8', 'latin-1', 'cp1252'), default='utf-8', help='of the files')
    args = parser.parse_args(argv)
    ids, n = args.ids + args.val, len(args.ids)
    for number, count in Counter(ids).items():
        if count > 1:
            raise UserError(f'book {number} is named {count} times: name it once, for training or after --val')
    name = args.name or '_'.join(map(str, ('gutenberg', *args.ids, *(('val', *args.val) if args.val else ()))))
    check_new(name, args.overwrite)
    if args.input and not Path(args.input).is_dir():
        raise UserError(f'--input={args.input} is not a folder')
    with ThreadPoolExecutor(WORKERS) as pool:       # map() keeps the order, and after an error no further book is started
        found = pool.map(lambda number: book(number, args.input, args.encoding, args.no_ascii), ids)
        texts, lost, books = zip(*tqdm(found, total=len(ids), unit=' books', leave=False, disable=None), strict=True)
    if sum(lost):
        print(f"{sum(lost):,} of {sum(map(len, texts)):,} characters have no ASCII form and became '?': --no-ascii keeps them")
    check_distinct((f'book {number}', text) for number, text in zip(ids, texts, strict=True))
    titles = [b['title'] for b in books]
    text, title = truncate(SEP.join(texts[:n]) + '\n', summarize(titles[:n]), args.characters)
    ends = [*accumulate(len(t) + len(SEP) for t in texts[:n])]
    if len(text) <= ends[-1] - len(texts[n - 1]) - len(SEP):
        raise UserError(f'--characters={args.characters} ends before book {ids[n - 1]} begins: omit that book')
    val = SEP.join(texts[n:]) + '\n' if args.val else None
    if args.val:
        title += f', validated on {summarize(titles[n:])}'
    elif n > 1:
        tail = [t for t, end in zip(titles, ends, strict=True) if end > len(split_text(text)[0])]
        print(f'the validation text, the last tenth, is from {" and ".join(tail)}')
    common.write_text(name, text, char_tokenizer(text, val or ''), {'name': title, 'books': books}, Path(__file__).name, val)


if __name__ == '__main__':
    command(main, 'stopped: run the same command to resume; downloaded books are kept')
