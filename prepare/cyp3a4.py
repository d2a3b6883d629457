"""
CYP3A4_Veith: does a molecule inhibit the enzyme that breaks down half of all drugs? data/cyp3a4.

    python prepare/cyp3a4.py [--input=FILE] [--characters] [--longest=256] [--seed=0] [--name=NAME]

- The table is read from .tab or .tsv, or .csv: its columns Drug, a molecule as SMILES, and Y, 1 for an inhibitor, else 0.
- A token is an atom in brackets, [nH] or [C@@H], another atom (Br and Cl have two letters), a bond, a branch's parenthesis,
  or the number of a ring (%12 has two digits); --characters takes characters. The vocabulary is that of the training
  split: 0 stands in front of what is shorter than the longest, 1 for what is not in the vocabulary. Of what is longer than
  --longest, the start is kept.
- Split by scaffold if RDKit is installed: molecules whose rings and what links them are the same (Bemis and Murcko 1996) are
  in one split, the commonest scaffolds in the training split, so that those to test on are of kinds that were not seen.
  Without RDKit the split is random, which is easier. meta.json's "split" says which it was.
"""

import csv
import re
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, files
from harness.tasks import SPLITS, write_task
from prepare.bit_memory import options
from prepare.text import positive

URL = 'https://dataverse.harvard.edu/api/access/datafile/4259582'
PUBLISHED = 12_328      # molecules
TOKEN = re.compile(r'\[[^\]]*\]|Br|Cl|%\d\d|@@|.', re.S)
SPECIAL = ['<padding>', '<unknown>']
CLASSES = {'0': 0, '0.0': 0, '1': 1, '1.0': 1}


def table(path):
    """[(line in the file, SMILES, class)] of all molecules.  Raises UserError."""
    rows = []
    try:
        with open(path, encoding='utf-8-sig', newline='') as f:
            reader = csv.DictReader(f, delimiter=',' if Path(path).suffix == '.csv' else '\t')
            if missing := [name for name in ('Drug', 'Y') if name not in (reader.fieldnames or ())]:
                raise UserError(f'{path} has no column {" and ".join(missing)} in its first line: {URL} has Drug and Y, with a '
                                f'tab between them; remove what is something else')
            for row in reader:
                # Dataverse's tables may have each backslash, a bond, twice, which no SMILES has
                smiles, y = (row['Drug'] or '').strip().replace('\\\\', '\\'), (row['Y'] or '').strip()
                if not smiles:
                    raise UserError(f'{path}, line {reader.line_num}, has no SMILES in the column Drug: mend it or take it out')
                if y not in CLASSES:
                    raise UserError(f'{path}, line {reader.line_num}, has the Y {y!r:.40}, which is to be 0 or 1: mend it or '
                                    f'take it out')
                rows.append((reader.line_num, smiles, CLASSES[y]))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UserError(f'{path} cannot be read as a table in UTF-8 ({e})') from None
    return rows


def groups(rows, path, seed):
    """(lists of molecules, by their places in rows, none of which may be torn apart, in the order in which the splits are to
    be filled; 'scaffold' or 'random')."""
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem.Scaffolds import MurckoScaffold
    except ImportError:
        print('RDKit is not installed (pip install rdkit): the split is random, not by scaffold')
        return np.random.default_rng(seed).permutation(len(rows))[:, None].tolist(), 'random'
    RDLogger.DisableLog('rdApp.*')      # it says more, and on stderr
    found = {}
    for i, (line, smiles, _) in enumerate(tqdm(rows, unit=' molecules', leave=False, disable=None)):
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            raise UserError(f'{path}, line {line}, has a SMILES that RDKit cannot read, {smiles:.60}: mend it or take it out')
        found.setdefault(MurckoScaffold.MurckoScaffoldSmiles(mol=molecule), []).append(i)
    return sorted(found.values(), key=len, reverse=True), 'scaffold'


def fill(groups, n):
    """{split: places} with 80, 10 and 10 % of n molecules, as nearly as whole groups give it."""
    parts = {split: [] for split in SPLITS}
    for group in groups:
        room = (('train', 8 * n), ('val', n), ('test', 10 * n))
        parts[next(split for split, tenths in room if 10 * (len(parts[split]) + len(group)) <= tenths)] += group
    return parts


if __name__ == '__main__':
    parser = options(__doc__, __file__)
    parser.add_argument('--input', metavar='FILE', help='a table at hand, .tab, .tsv or .csv, instead of the download')
    parser.add_argument('--characters', action='store_true', help='a token is a character')
    parser.add_argument('--longest', type=positive, default=256, help='tokens of a molecule')
    args = parser.parse_args()
    path = args.input
    if path is None:
        try:
            path = files.download(URL, 'cyp3a4_veith.tab')
        except OSError as e:
            raise files.must_put_by_hand('CYP3A4_Veith', 'cyp3a4_veith.tab', URL, [e]) from None
    rows = table(path)
    molecules = [list(smiles) if args.characters else TOKEN.findall(smiles) for _, smiles, _ in rows]
    found, kind = groups(rows, path, args.seed)
    parts = fill(found, len(rows))
    vocabulary = SPECIAL + sorted({token for i in parts['train'] for token in molecules[i]})
    ids = {token: i for i, token in enumerate(vocabulary)}
    if long := sum(len(tokens) > args.longest for tokens in molecules):
        print(f'{long:,} of {len(rows):,} molecules have more than {args.longest} tokens: their ends are cut off')
    x = np.zeros((len(rows), min(args.longest, max(map(len, molecules), default=0))), np.uint16)
    for row, tokens in zip(x, molecules, strict=True):
        tokens = [ids.get(token, 1) for token in tokens[:len(row)]]
        row[len(row) - len(tokens):] = tokens
    y = np.array([y for _, _, y in rows], np.uint8)
    name = f'{Path(path).name}, {len(rows):,}' if args.input else f'CYP3A4_Veith, {len(rows):,} of {PUBLISHED:,} published'
    source = {'name': f'{name} molecules, {kind} split', 'sha256': files.digest(path)}
    write_task(args.name, 'classify', {split: (x[part], y[part]) for split, part in parts.items()}, 2, source,
               Path(__file__).name, vocab_size=len(vocabulary), labels=['no inhibitor', 'inhibitor'], split=kind,
               draw={'as': 'text', 'tokens': vocabulary})
