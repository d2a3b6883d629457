"""
OpenWebText, or any other documents, in the tokens of GPT-2's BPE: data/openwebtext.

    python prepare/openwebtext.py [--documents=250000] [--input FILE ...] [--name=openwebtext] [--shard_tokens=100000000]

Documents come from the Hugging Face hub (8 million), or from local files: .parquet with a column text, .jsonl with a field
"text", .txt with documents separated by <|endoftext|>. Each document is followed by one <|endoftext|>; one inside a document is
encoded as plain text. The last tenth of the first shard, at most 1,000,000 tokens, is the validation text.

All CPU cores encode, in constant memory. If the script is stopped or killed, the same command resumes after the last complete
shard and writes the same files.
"""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import requests
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command, files
from harness.tokenizer import Tokenizer, gpt2_spec
from prepare.common import Parser, data_folder, fetch, natural, positive, summarize, text_meta

HUB, DATASET = 'https://huggingface.co', 'Skylion007/openwebtext'
END = '<|endoftext|>'
VAL_TOKENS = 1_000_000
BATCH = 256, 1_000_000      # at most this many documents, or characters, are encoded at once

# documents ----------------------------------------------------------------------------------------------------------------


def list_hub():
    """The parquet files of the data set in order: [{'name', 'url', 'sha256'}, ...].  Raises UserError."""
    errors = []
    for branch in 'main', 'refs%2Fconvert%2Fparquet':
        try:
            answer = requests.get(f'{HUB}/api/datasets/{DATASET}/tree/{branch}?recursive=true', timeout=20)
            answer.raise_for_status()
            if found := [{'name': f['path'], 'url': f'{HUB}/datasets/{DATASET}/resolve/{branch}/{f["path"]}',
                          'sha256': f.get('lfs', {}).get('oid')} for f in answer.json() if f['path'].endswith('.parquet')]:
                return sorted(found, key=lambda f: f['name'])
            errors.append(f'no .parquet in {branch}')
        except (OSError, LookupError, TypeError, AttributeError) as e:
            errors.append(' '.join(str(e).split())[:120])
    raise UserError(f'the files of {HUB}/datasets/{DATASET} cannot be listed ({"; ".join(errors)}): download its .parquet '
                    f'files yourself and name them with --input FILE ...')


def open_source(file):
    """The path of a local or downloaded file.  Records its SHA-256; raises UserError if it is another than recorded before."""
    path = Path(file['name'])
    if 'url' in file:
        path = fetch(path.name, file['url'], f'{DATASET.replace("/", "--")}/{path.name}', file['sha256'])
    sha256 = files.digest(path)
    if file['sha256'] not in (None, sha256):
        raise UserError(f'{path} has changed since this run began: restore it, or remove the unfinished data set')
    file['sha256'] = sha256
    return path


def read_documents(path):
    """Yields the documents of a file, without reading it into memory as a whole.  Raises UserError."""
    count = 0
    try:
        for text in {'.parquet': read_parquet, '.jsonl': read_jsonl, '.txt': read_txt}[path.suffix](path):
            if not isinstance(text, str):
                raise ValueError(f'{text!r:.40} is no text')
            yield text
            count += 1
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as e:        # pyarrow's errors are among these
        raise UserError(f'{path} cannot be read as {path.suffix} with documents in "text" (after {count} documents: '
                        f'{" ".join(str(e).split())[:120]})') from None


def read_parquet(path):
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f'reading {path} requires pyarrow: pip install pyarrow') from None
    with ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as f:     # by default, the whole file ends up in memory
        for batch in f.iter_batches(BATCH[0], columns=['text']):
            yield from batch.column('text').to_pylist()


def read_jsonl(path):
    with open(path, 'rb') as f:
        yield from (json.loads(line)['text'] for line in f if line.strip())


def read_txt(path):
    with open(path, encoding='utf-8-sig') as f:
        tail = ''
        while block := f.read(max(1 << 20, len(tail))):     # growing blocks, or a long document takes quadratic time
            if block.count('\0') > len(block) // 4:
                raise ValueError('it is UTF-16')
            *complete, tail = (tail + block).split(END)
            yield from filter(str.strip, complete)
        yield from filter(str.strip, [tail])


def batches(sources, place, limit):
    """Yields (documents, the place after them) from a place on.  A place is (file, row, documents so far)."""
    start, row, done = place
    for i in range(start, len(sources)):
        if done == limit:
            return
        batch, size = [], 0
        for text in islice(read_documents(open_source(sources[i])), row, row + limit - done):
            batch.append(text)
            size += len(text)
            if len(batch) == BATCH[0] or size >= BATCH[1]:
                row, done = row + len(batch), done + len(batch)
                yield batch, [i, row, done]
                batch, size = [], 0
        if batch:
            done += len(batch)
            yield batch, [i, row + len(batch), done]
        row = 0


def encode(tokenizer, text):
    """The tokens of a document."""
    try:
        return [*tokenizer.bpe.encode_ordinary(text), tokenizer.spec['special'][END]]
    except BaseException as e:      # a panic of tiktoken is no Exception
        raise UserError(f'tiktoken cannot encode the document {text[:40]!r} ..., {len(text):,} characters ({e}): remove '
                        f'it') from None


# shards -------------------------------------------------------------------------------------------------------------------
#
# state.json has the 'place' of the first batch that is not completely in the finished shards, and how many of its tokens are
# ('skip'). It is written when a shard is finished; what a killed run has written after that is overwritten.


def shard_name(i):
    return f'train_{i:04d}.bin'


def load_state(work, arguments):
    """The state of the unfinished run in the folder `work`, else of a new one.  Raises UserError if it had other arguments."""
    if not (work / 'state.json').exists():
        shutil.rmtree(work, ignore_errors=True)
        sources = [{'name': path, 'sha256': files.digest(path)} for path, _ in arguments['input']]
        for i, source in enumerate(sources):
            if twin := next((s['name'] for s in sources[:i] if s['sha256'] == source['sha256']), None):
                raise UserError(f'--input: {twin} and {source["name"]} are the same, but no validation text may be trained on: '
                                f'omit one')
        return {'arguments': arguments, 'files': sources or list_hub(), 'place': [0, 0, 0], 'skip': 0, 'counts': [], 'val': 0}
    state = json.loads((work / 'state.json').read_text(encoding='utf-8'))
    if state.get('arguments') != arguments:
        raise UserError(f'{work} is an unfinished run with other arguments ({json.dumps(state.get("arguments"))[:200]}): '
                        f'finish that run, or remove the folder')
    for i, count in enumerate(state['counts']):
        path = work / shard_name(i)
        if not path.exists() or path.stat().st_size != 2 * count:
            raise UserError(f'{path} has changed since this run was stopped: remove {work} to start again')
    print(f'resuming after {sum(state["counts"]) + state["val"]:,} tokens')
    return state


def write_shards(work, state, spec):
    """Encode all documents from the state's place on into shards.  Every shard but the first and the last is full; the first
    consists of whole documents, because its end is the validation text."""
    counts, arguments, end, tokenizer = state['counts'], state['arguments'], spec['special'][END], Tokenizer(spec)
    work.mkdir(parents=True, exist_ok=True)
    for path in {*work.iterdir()} - {work / name for name in (*map(shard_name, range(len(counts))), 'val.bin', 'state.json')}:
        path.unlink()       # left by a killed run
    written = 0
    with tqdm(unit=' tokens', unit_scale=True, initial=sum(counts), disable=None) as bar, \
            ThreadPoolExecutor(os.cpu_count()) as pool:         # tiktoken releases Python's lock
        for texts, place in batches(state['files'], state['place'], arguments['documents'] or sys.maxsize):
            tokens = np.array([*chain(*pool.map(partial(encode, tokenizer), texts))][state['skip']:], np.uint16)
            while True:
                room = arguments['shard_tokens'] - written
                if not counts and room < len(tokens):       # up to the last end of a document
                    room = int(np.flatnonzero(np.append(end, tokens[:room]) == end)[-1])
                part, tokens = tokens[:room], tokens[room:]
                with open(work / shard_name(len(counts)), 'ab') as f:
                    f.write(part.tobytes())
                written += len(part)
                bar.update(len(part))
                if not len(tokens):
                    break
                state['skip'] += room
                finish_shard(work, state, written, end)
                written = 0
            state.update(place=place, skip=0)
            bar.set_postfix_str(f'{place[2]:,} documents', refresh=False)
    if not state['place'][2]:
        raise UserError(f'there are no documents in {summarize([Path(f["name"]).name for f in state["files"]])}')
    if written:
        finish_shard(work, state, written, end)


def finish_shard(work, state, count, end):
    """Flush a shard of `count` tokens to disk, move the end of the first one to val.bin, and save the state."""
    path = work / shard_name(len(state['counts']))
    if not state['counts']:
        span = min(count // 10, VAL_TOKENS)
        tail = np.fromfile(path, np.uint16, span + 1, offset=2 * (count - span - 1)) if span else np.zeros(1)
        borders = np.flatnonzero(tail[:-1] == end)
        if not len(borders):
            raise UserError(f'no document begins in the last {span:,} of the {count:,} tokens of the first shard, which are '
                            f'for validation: more documents or a larger --shard_tokens are needed')
        state['val'] = span - int(borders[0])
        with files.atomic(work / 'val.bin') as f:
            f.write(tail[-state['val']:].tobytes())
        count -= state['val']
    with open(path, 'r+b') as f:
        f.truncate(2 * count)
        os.fsync(f.fileno())
    state['counts'].append(count)
    with files.atomic(work / 'state.json', 'w') as f:
        json.dump(state, f)


def publish(work, folder, state, spec):
    """Write meta.json and give the folder its name."""
    names = [*map(shard_name, range(len(state['counts']))), 'val.bin']
    sources = [{'name': Path(f['name']).name, 'sha256': f['sha256']} for f in state['files'][:state['place'][0] + 1]]
    documents, local = state['place'][2], state['arguments']['input']
    title = summarize([f['name'] for f in sources]) if local else 'OpenWebText'
    tokens = {'train': sum(state['counts']), 'val': state['val']}
    meta = text_meta(tokens, [files.digest(work / name) for name in names], 'uint16', spec,
                     {'name': f'{title}, {documents:,} documents', 'files': sources}, Path(__file__).name,
                     shards={'train': state['counts']})
    with files.atomic(work / 'meta.json', 'w') as f:
        json.dump(meta, f)
    if folder.exists():
        (folder / 'meta.json').unlink(missing_ok=True)      # a half-deleted folder is no data set
        shutil.rmtree(folder)
    os.replace(work, folder)
    (folder / 'state.json').unlink()
    more = ' (--documents=0 uses all)' if documents == state['arguments']['documents'] else ''
    print(f'data/{folder.name}: {tokens["train"]:,} training tokens in {len(state["counts"])} shards, {tokens["val"]:,} '
          f'validation tokens, {meta["source"]["name"]}{more}, fingerprint {meta["fingerprint"]}')


def main(argv):
    parser = Parser(__doc__)
    parser.add_argument('--documents', type=natural, default=250_000, help='use only this many, from the start; 0: all')
    parser.add_argument('--input', nargs='+', metavar='FILE', default=[], help='local files, instead of the download')
    parser.add_argument('--name', default='openwebtext', help='the data set becomes data/<name>')
    parser.add_argument('--shard_tokens', type=positive, default=100_000_000, help='tokens per file')
    args = parser.parse_args(argv)
    for path in map(Path, args.input):
        if path.suffix not in ('.parquet', '.jsonl', '.txt') or not path.is_file():
            raise UserError(f'--input {path} must be an existing .parquet, .jsonl or .txt file')
    folder = data_folder(args.name)
    work = folder.with_name(f'{args.name}.unfinished')
    arguments = {'documents': args.documents, 'shard_tokens': args.shard_tokens,
                 'input': [[str(Path(p).resolve()), os.path.getsize(p)] for p in args.input]}
    try:
        state, spec = load_state(work, arguments), gpt2_spec()
        write_shards(work, state, spec)
        publish(work, folder, state, spec)
    except OSError as e:
        raise UserError(f'{work} cannot be made ({e})') from None


if __name__ == '__main__':
    command(main, 'stopped: run the same command to resume')
