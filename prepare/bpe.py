"""
A data set of your own text in the tokens of a byte pair encoding that is trained on it: data/<name>.

    python prepare/bpe.py NAME FILE_OR_FOLDER ... [--merges=1024]

Files and folders are read as by text.py. The last tenth of the text is the validation text; the merges are learned from the
rest. Sennrich et al. 2016 (arXiv 1508.07909), on bytes as in GPT-2 (Radford et al. 2019).
"""

import heapq
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import regex
from tiktoken_ext.openai_public import r50k_pat_str
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from harness.tokenizer import bpe_spec
from prepare.common import natural, split_text, write_text
from prepare.text import read, source_of, text_parser

END = '<|endoftext|>'


def train(text, count):
    """The merges of a text, in order: at most `count` pairs of ids, where ids 0 .. 255 are the bytes and 256 + k is merge k.

    Each merge is the most frequent pair after the merges before it; ties go to the lowest ids. No merge crosses the word
    borders of GPT-2's pattern. There are fewer than `count` merges if every word has become one token.

    No two merges produce the same bytes: how earlier merges encode some bytes depends on these bytes alone, as long as no merge
    crosses their border, so only one pair of adjacent tokens can form them. Therefore tiktoken, which looks up the bytes of a
    token and not pairs, encodes exactly as this list of pairs does."""
    found = Counter(m.group() for part in text.split(END) for m in regex.finditer(r50k_pat_str, part))
    words = [(list(word.encode()), n) for word, n in found.items()]
    counts, where = Counter(), defaultdict(set)     # per pair: its frequency, and the words that contain it (or once did)
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
            if counts[best] != -n:          # outdated: the heap also has the pair with its present count
                continue
            new, change = 256 + len(merges), Counter()
            merges.append(best)
            for i in where.pop(best):
                old, n = words[i]
                ids = merge(old, best, new)
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


def merge(ids, pair, new):
    """The ids with each occurrence of the pair, from left to right, replaced by `new`."""
    out, i = [], 0
    while i < len(ids):
        if ids[i] == pair[0] and i + 1 < len(ids) and ids[i + 1] == pair[1]:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def train_tokenizer(name, text, count):
    """The specification of a BPE with at most `count` merges, trained on the training part of a text."""
    merges = train(split_text(text)[0], count)
    if len(merges) < count:
        print(f'the text has only {len(merges):,} merges, not {count:,}: each of its words is one token then')
    return spec(name, merges)


def spec(name, merges):
    """The specification of the BPE with these merges."""
    tokens = [bytes([b]) for b in range(256)]
    for a, b in merges:
        tokens.append(tokens[a] + tokens[b])
    return bpe_spec(name, r50k_pat_str, {token: i for i, token in enumerate(tokens)}, {END: len(tokens)})


def main(argv):
    parser = text_parser(__doc__)
    parser.add_argument('--merges', type=natural, default=1024, help='tokens to learn in addition to the 256 bytes')
    args = parser.parse_args(argv)
    text, name = read(args.paths)
    write_text(args.name, text, train_tokenizer(args.name, text, args.merges), source_of(name, text), Path(__file__).name)


if __name__ == '__main__':
    command(main)
