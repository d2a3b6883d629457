"""
OpenWebText, or any pile of documents, in the tokens of GPT-2's BPE: data/openwebtext.

    python prepare/openwebtext.py [--documents=250000] [--input FILE ...] [--name=openwebtext] [--shard_tokens=100000000]

Documents come from the Hugging Face hub (8 million), or from files at hand: .parquet with a column text, .jsonl with a
field "text", .txt with documents separated by <|endoftext|>. Each is followed by one <|endoftext|>; what looks like one inside
a document is text. All become training text but the end of the first shard: its last tenth, at most 1,000,000 tokens.

Run again, it goes on where it was stopped or killed, and makes the same files.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

import numpy as np
import requests
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, data, files
from harness.tokenizer import Tokenizer, gpt2_spec

HUB, DATASET = 'https://huggingface.co', 'Skylion007/openwebtext'
END = '<|endoftext|>'
VAL_TOKENS = 1_000_000
BATCH = 256, 1_000_000      # as many documents, or characters, a worker takes at once
SAVE_EVERY = 32             # batches

# ---------------------------------------------------------------------------------------------------- documents


def on_the_hub():
    """The parquet files of the data set, in order: [{'name', 'url', 'sha256'}, ...]."""
    errors = []
    for branch in 'main', 'refs%2Fconvert%2Fparquet':
        try:
            answer = requests.get(f'{HUB}/api/datasets/{DATASET}/tree/{branch}?recursive=true', timeout=20)
            answer.raise_for_status()
            if found := [{'name': f['path'], 'url': f'{HUB}/datasets/{DATASET}/resolve/{branch}/{f["path"]}',
                          'sha256': f.get('lfs', {}).get('oid')} for f in answer.json() if f['path'].endswith('.parquet')]:
                return sorted(found, key=lambda f: f['name'])
            errors.append(f'there is no .parquet in {branch}')
        except (OSError, LookupError, TypeError, AttributeError) as e:
            errors.append(' '.join(str(e).split())[:120])
    raise UserError(f'the files of {HUB}/datasets/{DATASET} cannot be found ({"; ".join(errors)}): get its .parquet files '
                    f'elsewhere, and name them with --input FILE ...')


def fetch(file):
    """The path of a file, downloaded if it is not at hand.  Its SHA-256 is noted, and must be the one that was noted before."""
    path = Path(file['name'])
    if 'url' in file:
        name = f'{DATASET.replace("/", "--")}/{path.name}'
        try:
            path = files.download(file['url'], name, file['sha256'])
        except OSError as e:
            raise files.must_put_by_hand(file['name'], name, file['url'], [e]) from None
    sha256 = files.digest(path)
    if file['sha256'] not in (None, sha256):
        raise UserError(f'{path} has changed since this run began: put the old file there, or remove the unfinished data set')
    file['sha256'] = sha256
    return path


def documents(path):
    """The documents of one file, one after the other: the file is never in memory as a whole."""
    if path.suffix == '.parquet':
        yield from rows(path)
    elif path.suffix == '.jsonl':
        with open(path, 'rb') as f:
            for number, line in enumerate(f, 1):
                try:
                    if line.strip():
                        yield checked(json.loads(line)['text'])
                except (ValueError, LookupError, TypeError, RecursionError):
                    raise UserError(f'{path}, line {number}, is not JSON with a text in the field "text"') from None
    else:
        with open(path, encoding='utf-8-sig') as f:
            tail = ''
            try:
                while block := f.read(max(1 << 20, len(tail))):     # more and more, or one long document takes forever
                    *whole, tail = (tail + block).split(END)
                    yield from filter(str.strip, whole)
            except UnicodeDecodeError:
                raise UserError(f'{path} is not UTF-8 text: convert it first') from None
            yield from filter(str.strip, [tail])


def rows(path):
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f'reading {path} takes pyarrow, which is not installed: pip install pyarrow') from None
    try:
        with ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as f:     # else it comes to hold the whole file
            if 'text' not in f.schema_arrow.names:
                raise UserError(f'{path} has no column text: it has {", ".join(f.schema_arrow.names)}')
            for batch in f.iter_batches(BATCH[0], columns=['text']):
                yield from map(checked, batch.column(0).to_pylist())
    except TypeError:
        raise UserError(f'{path}: its column text holds something else than text') from None
    except (ArrowException, OSError) as e:
        raise UserError(f'{path} cannot be read as parquet ({" ".join(str(e).split())[:120]})') from None


def checked(text):
    if not isinstance(text, str):
        raise TypeError
    return text


def batches(state):
    """(documents, the place behind them) from the state's place on; a place is the file, the row in it, documents so far."""
    first, row, done = state['place']
    limit = state['asked']['documents'] or sys.maxsize
    for i in range(first, len(state['files'])):
        if done == limit:
            return
        batch, size = [], 0
        for text in islice(documents(fetch(state['files'][i])), row, row + limit - done):
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


# ---------------------------------------------------------------------------------------------------- tokens


def begin(spec):
    """In each worker: Ctrl-C is for the main process to handle, and without that one there is nothing to do."""
    global tokenizer
    tokenizer = Tokenizer(spec)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def encode(texts):
    """The tokens of documents, as the bytes of uint16."""
    ids = []
    for text in texts:
        try:
            ids += tokenizer.bpe.encode_ordinary(text)
        except BaseException as e:      # tiktoken's panic is not an Exception, and cannot be sent to another process
            raise ValueError(f'{text[:40]!r} ..., {len(text):,} characters ({e})') from None
        ids.append(tokenizer.spec['special'][END])
    return np.array(ids, dtype=np.uint16).tobytes()


def encoded(batches, spec):
    """(tokens, place) of each batch in order, by all cores; no more is read ahead than keeps them busy."""
    workers, waiting = os.cpu_count() or 1, deque()
    context = multiprocessing.get_context('fork' if sys.platform == 'linux' else None)      # elsewhere it is not safe
    pool = ProcessPoolExecutor(workers, context, begin, (spec,))
    try:
        pool.submit(int).result()       # forks the workers, before there are other threads in this process
        while True:
            while len(waiting) <= 2 * workers and (batch := next(batches, None)):
                waiting.append((pool.submit(encode, batch[0]), batch[1]))
            if not waiting:
                return
            future, place = waiting.popleft()
            try:
                yield np.frombuffer(future.result(), np.uint16), place
            except ValueError as e:
                raise UserError(f'tiktoken cannot encode the document {e}: take it out') from None
    except BrokenProcessPool:
        raise UserError('a worker process was killed, for want of memory perhaps: run again to go on') from None
    finally:
        pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------------------- shards


def begun(work, asked):
    """The state of the run that was stopped, with the shards cut to what it tells of, or that of a new run."""
    if not (work / 'state.json').exists():
        shutil.rmtree(work, ignore_errors=True)
        sources = [{'name': path, 'sha256': None} for path, _ in asked['input']] if asked['input'] else on_the_hub()
        return {'asked': asked, 'files': sources, 'place': [0, 0, 0], 'counts': [0], 'val': 0}
    state = json.loads((work / 'state.json').read_text(encoding='utf-8'))
    if other := [k for k in asked if asked[k] != state['asked'][k]]:
        raise UserError(f'{work} holds the beginning of a run with another {" and ".join(other)} '
                        f'({json.dumps({k: state["asked"][k] for k in other})}): finish that one, or remove the folder')
    shards = {work / data.shard('train', i): 2 * count for i, count in enumerate(state['counts'])}
    for path in {*work.iterdir(), *shards} - {work / 'state.json', work / 'val.bin'}:
        if path not in shards:
            path.unlink()       # a shard that was begun after the state was saved, a file that was not written to its end
        elif not path.exists() or path.stat().st_size < shards[path]:
            raise UserError(f'{path} is shorter than it was when this run was stopped: remove {work} to begin anew')
        else:
            os.truncate(path, shards[path])
    print(f'going on behind {state["place"][2]:,} documents, {sum(state["counts"]):,} tokens')
    return state


def save(work, state):
    """What the state tells of is on the disk before it is told."""
    with open(work / data.shard('train', len(state['counts']) - 1), 'ab') as f:
        os.fsync(f.fileno())
    with files.atomic(work / 'state.json', 'w') as f:
        json.dump(state, f)


def write(work, state, spec):
    """Append all documents from the state's place on to the shards."""
    counts, size, end = state['counts'], state['asked']['shard_tokens'], spec['special'][END]
    with tqdm(unit=' tokens', unit_scale=True, initial=sum(counts), disable=None) as bar:
        for number, (tokens, place) in enumerate(encoded(batches(state), spec), 1):
            bar.set_postfix_str(f'{place[2]:,} documents', refresh=False)
            bar.update(len(tokens))
            while True:
                room = size - counts[-1]
                if len(counts) == 1 and room < len(tokens):     # its end is for validation: no document goes on behind it
                    room = int(np.flatnonzero(np.append(end, tokens[:room]) == end)[-1])
                work.mkdir(parents=True, exist_ok=True)
                with open(work / data.shard('train', len(counts) - 1), 'ab') as f:
                    f.write(tokens[:room].tobytes())
                    counts[-1] += len(tokens[:room])
                    if room >= len(tokens):
                        break
                    f.flush()
                    os.fsync(f.fileno())
                tqdm.write(f'{data.shard("train", len(counts) - 1)} is full: {sum(counts):,} tokens of {place[2]:,} documents')
                counts.append(0)
                tokens = tokens[room:]
            state['place'] = place
            if number % SAVE_EVERY == 0:
                save(work, state)
    if not state['place'][2]:
        raise UserError(f'there are no documents in {", ".join(Path(f["name"]).name for f in state["files"])[:200]}')


def finish(work, folder, state, spec):
    """Take the validation text from the first shard, tell of all in meta.json, and give the folder its name."""
    counts, first = state['counts'], work / data.shard('train', 0)
    if not state['val']:
        span = min(counts[0] // 10, VAL_TOKENS)
        tail = np.fromfile(first, np.uint16, span + 1, offset=2 * (counts[0] - span - 1)) if span else np.zeros(0)
        borders = np.flatnonzero(tail[:-1] == spec['special'][END])
        if not len(borders):
            raise UserError(f'no document begins in the {span:,} tokens at the end of the first shard, of {counts[0]:,}, that '
                            f'are for validation: more documents or a larger --shard_tokens are needed')
        state['val'] = span - int(borders[0])
        with files.atomic(work / 'val.bin') as f:
            f.write(tail[-state['val']:].tobytes())
        counts[0] -= state['val']
        save(work, state)
        os.truncate(first, 2 * counts[0])       # at the next start, if this is not reached
    read = [{'name': Path(f['name']).name, 'sha256': f['sha256']} for f in state['files'][:state['place'][0] + 1]]
    many = f'{read[0]["name"]} and {len(read) - 1} more' if len(read) > 1 else read[0]['name']
    source = {'name': f'{many if state["asked"]["input"] else "OpenWebText"}, {state["place"][2]:,} documents', 'files': read}
    tokens = {'train': sum(counts), 'val': state['val']}
    hashes = [files.digest(work / name) for name in [data.shard('train', i) for i in range(len(counts))] + ['val.bin']]
    meta = data.describe(tokens, hashes, 'uint16', spec, source, Path(__file__).name, shards={'train': counts})
    with files.atomic(work / 'meta.json', 'w') as f:
        json.dump(meta, f)
    os.replace(work, folder)
    (folder / 'state.json').unlink()
    print(f'data/{folder.name}: {tokens["train"]:,} tokens to train in {len(counts)} shards, {tokens["val"]:,} to validate, '
          f'{source["name"]}{" (--documents=0 takes all)" if state["place"][2] == state["asked"]["documents"] else ""}, '
          f'fingerprint {meta["fingerprint"]}')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--documents', type=int, default=250_000, help='how many to take, from the first on; 0: all')
    parser.add_argument('--input', nargs='+', metavar='FILE', default=[], help='files at hand, instead of the download')
    parser.add_argument('--name', default='openwebtext', help='the data set becomes data/<name>')
    parser.add_argument('--shard_tokens', type=int, default=100_000_000, help='tokens in a file')
    args = parser.parse_args(argv)
    data.check_name(args.name)
    if args.documents < 0 or args.shard_tokens < 1:
        raise UserError('--documents takes 0 or more, --shard_tokens 1 or more')
    for path in args.input:
        if Path(path).suffix not in ('.parquet', '.jsonl', '.txt'):
            raise UserError(f'--input {path}: documents are read from .parquet, .jsonl and .txt')
        if not Path(path).is_file():
            raise UserError(f'there is no file {path}')
    folder = data.ROOT / 'data' / args.name
    work = folder.with_name(f'{args.name}.unfinished')
    if folder.exists():
        raise UserError(f'{folder} is there already: remove it to make it anew')
    asked = {'documents': args.documents, 'shard_tokens': args.shard_tokens,
             'input': [[str(Path(p).resolve()), os.path.getsize(p)] for p in args.input]}
    try:
        state, spec = begun(work, asked), gpt2_spec()
        if not state['val']:
            write(work, state, spec)
        finish(work, folder, state, spec)
    except KeyboardInterrupt:
        raise UserError('stopped: the same command goes on from where it was saved last') from None
    except OSError as e:
        raise UserError(f'{work} cannot be made ({e})') from None


if __name__ == '__main__':
    main()
