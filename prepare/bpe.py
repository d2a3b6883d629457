"""
Any text of your own in the tokens of a byte pair encoding that is trained on it: data/<name>.

    python prepare/bpe.py NAME FILE_OR_FOLDER ... [--merges=1024]

Folders are searched for *.txt and *.md, in the order of their names. The last tenth of the whole is the validation text; the
merges are learned from the rest. Sennrich et al. 2016 (arXiv 1508.07909), over bytes as in GPT-2 (Radford et al. 2019).
"""

import argparse
import hashlib
import heapq
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import regex
from tiktoken_ext.openai_public import r50k_pat_str
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, data
from harness.tokenizer import bpe_spec
from prepare.text import read

END = '<|endoftext|>'


def train(text, count):
    """The merges of a text, in the order in which they are made: at most `count` pairs of ids, where the ids 0 .. 255 are the
    bytes and 256 + k is the k-th merge.

    Each is the pair that is most frequent after all merges before it, the one of the lowest ids among equals; no merge reaches
    over the borders that GPT-2's pattern cuts a text at. Fewer than `count` come back when every word has become one token.

    No two merges make the same bytes: what the earlier merges make of some bytes that no merge reaches out of depends on
    these bytes alone, so two tokens that were ever neighbors are the only two that their joined bytes are made of. Hence
    tiktoken, which looks for the bytes of a token and knows of no pairs, encodes as the list of pairs does."""
    found = Counter(m.group() for part in text.split(END) for m in regex.finditer(r50k_pat_str, part))
    words = [(list(word.encode()), n) for word, n in found.items()]
    counts, where = Counter(), defaultdict(set)     # of each pair: how often it occurs, and in which words (or once did)
    for i, (ids, n) in enumerate(words):
        for pair in pairwise(ids):
            counts[pair] += n
            where[pair].add(i)
    heap = [(-n, pair) for pair, n in counts.items()]
    heapq.heapify(heap)
    merges = []
    with tqdm(total=count, unit=' merges', leave=False, disable=None) as bar:
        while heap and len(merges) < count:
            n, best = heapq.heappop(heap)
            if counts[best] != -n:          # its count has changed since: the heap holds it with the new one, too
                continue
            new, change = 256 + len(merges), Counter()
            merges.append(best)
            for i in where.pop(best):
                old, n = words[i]
                ids = merged(old, best, new)
                words[i] = ids, n
                for pair in pairwise(old):
                    change[pair] -= n
                for pair in pairwise(ids):
                    change[pair] += n
                    if new in pair:
                        where[pair].add(i)
            for pair, n in change.items():
                if n:
                    counts[pair] += n
                    if counts[pair]:
                        heapq.heappush(heap, (-counts[pair], pair))
            bar.update()
    return merges


def merged(ids, pair, new):
    """The ids with `new` for each occurrence of the pair, from left to right."""
    out, i = [], 0
    while i < len(ids):
        if ids[i] == pair[0] and i + 1 < len(ids) and ids[i + 1] == pair[1]:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def spec(name, text, count):
    """The tokenizer that is trained on the part of the text that is for training, as plain data; see harness/tokenizer.py."""
    if count < 0:
        raise UserError(f'--merges={count} is less than none: 0 or more can be asked for')
    tokens, merges = [bytes([b]) for b in range(256)], train(data.halves(text)[0], count)
    for a, b in merges:
        tokens.append(tokens[a] + tokens[b])
    if len(merges) < count:
        print(f'the text has {len(merges):,} merges only, not {count:,}: each of its words is one token then')
    return bpe_spec(name, r50k_pat_str, {token: i for i, token in enumerate(tokens)}, {END: len(tokens)})


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='the data set becomes data/<name>; train on it with --dataset=<name>')
    parser.add_argument('paths', nargs='+', metavar='FILE_OR_FOLDER')
    parser.add_argument('--merges', type=int, default=1024, help='tokens to learn beside the 256 bytes')
    args = parser.parse_args()
    data.check_name(args.name)
    text, names = read(args.paths)
    source = {'name': names[0] if len(names) == 1 else f'{names[0]} and {len(names) - 1} more',
              'sha256': hashlib.sha256(text.encode()).hexdigest()}
    data.write_text(args.name, text, spec(args.name, text, args.merges), source, Path(__file__).name)
