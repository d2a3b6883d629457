"""
CYP3A4_Veith: does a molecule inhibit CYP3A4, the enzyme that metabolizes half of all drugs? data/cyp3a4.

    python prepare/cyp3a4.py [--input=FILE] [--characters] [--longest=256] [--seed=0] [--name=NAME]

- The input is a .tab, .tsv or .csv table with the columns Drug, a molecule as SMILES, and Y, 1 for an inhibitor, else 0.
- A token is an atom, such as C, Br, [nH] or [C@@H], a bond, a parenthesis, or a ring number such as 1 or %12; with
  --characters, a character. The vocabulary is that of the training split: 0 is padding in front of shorter molecules, 1 an
  unknown token. Molecules longer than --longest tokens are truncated.
- The split is by scaffold if RDKit is installed: molecules with the same ring systems and linkers (Bemis and Murcko 1996) are
  in one split, and the most frequent scaffolds in the training split, so the test molecules are of unseen kinds. Without RDKit
  the split is random, which is easier. meta.json's "split" records which it was.
"""

import csv
import re
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import UserError, command, files
from prepare.common import SPLITS, fetch, positive, task_parser, write_task

URL = 'https://dataverse.harvard.edu/api/access/datafile/4259582'
PUBLISHED = 12_328      # molecules
TOKEN = re.compile(r'\[[^\]]*\]|Br|Cl|%\d\d|@@|.', re.S)
SPECIAL = ['<padding>', '<unknown>']
CLASSES = {'0': 0, '0.0': 0, '1': 1, '1.0': 1}


def table(path):
    """[(line number, SMILES, class)] of all molecules.  Raises UserError."""
    rows = []
    try:
        with open(path, encoding='utf-8-sig') as f:
            lines = f.read().split('\n')
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f'{path} cannot be read as a table in UTF-8 ({e})') from None
    for number, line in enumerate(lines, 1):
        try:        # line by line, so that a quote which is not closed swallows no other molecules
            (fields,) = csv.reader([line], delimiter=',' if Path(path).suffix.lower() == '.csv' else '\t', strict=True)
        except csv.Error as e:
            raise UserError(f'{path}, line {number}: {e}, such as a quote that is not closed: fix or remove it') from None
        if number == 1:
            names = fields
            if missing := [name for name in ('Drug', 'Y') if name not in names]:
                raise UserError(f'{path} has no column {" and ".join(missing)} in its first line: use the tab-separated table '
                                f'at {URL}')
        elif fields:
            row = dict(zip(names, fields, strict=False))      # a line may be too short
            # Dataverse doubles backslashes (a bond), which no SMILES has
            smiles, y = row.get('Drug', '').strip().replace('\\\\', '\\'), row.get('Y', '').strip()
            if not smiles:
                raise UserError(f'{path}, line {number}, has no SMILES in the column Drug: fix or remove it')
            if y not in CLASSES:
                raise UserError(f'{path}, line {number}: Y={y!r:.40} must be 0 or 1')
            rows.append((number, smiles, CLASSES[y]))
    return rows


def groups(rows, path, seed):
    """(groups of row indices that stay in one split, in the order in which they fill the splits; 'scaffold' or 'random')."""
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem.Scaffolds import MurckoScaffold
    except ImportError:
        print('RDKit is not installed (pip install rdkit): the split is random, not by scaffold')
        return np.random.default_rng(seed).permutation(len(rows))[:, None].tolist(), 'random'
    RDLogger.DisableLog('rdApp.*')      # it would print its own messages to stderr
    found = {}
    for i, (line, smiles, _) in enumerate(tqdm(rows, unit=' molecules', leave=False, disable=None)):
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            raise UserError(f'{path}, line {line}: RDKit cannot read the SMILES {smiles:.60}: fix or remove it')
        found.setdefault(MurckoScaffold.MurckoScaffoldSmiles(mol=molecule), []).append(i)
    return sorted(found.values(), key=len, reverse=True), 'scaffold'


def fill(groups, n):
    """{split: row indices} with 80, 10 and 10 % of n molecules, as far as whole groups allow."""
    parts = {split: [] for split in SPLITS}
    for group in groups:
        limits = (('train', 8 * n), ('val', n), ('test', 10 * n))
        parts[next(split for split, tenths in limits if 10 * (len(parts[split]) + len(group)) <= tenths)] += group
    return parts


def main(argv):
    parser = task_parser(__doc__, __file__)
    parser.add_argument('--input', metavar='FILE', help='a local table, .tab, .tsv or .csv, instead of the download')
    parser.add_argument('--characters', action='store_true', help='one token per character')
    parser.add_argument('--longest', type=positive, default=256, help='maximum tokens of a molecule')
    args = parser.parse_args(argv)
    path = args.input or fetch('CYP3A4_Veith', URL, 'cyp3a4_veith.tab')
    rows = table(path)
    molecules = [list(smiles) if args.characters else TOKEN.findall(smiles) for _, smiles, _ in rows]
    found, kind = groups(rows, path, args.seed)
    parts = fill(found, len(rows))
    if kind == 'scaffold' and (empty := [split for split in SPLITS if rows and not parts[split]]):
        raise UserError(f'{path}: {len(found[0])} of {len(rows)} molecules have the same scaffold, or no ring and thus '
                        f'none, so the {empty[0]} split is empty: add molecules with other ring systems')
    vocabulary = SPECIAL + sorted({token for i in parts['train'] for token in molecules[i]})
    ids = {token: i for i, token in enumerate(vocabulary)}
    if long := sum(len(tokens) > args.longest for tokens in molecules):
        print(f'{long:,} of {len(rows):,} molecules have more than {args.longest} tokens and are truncated')
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


if __name__ == '__main__':
    command(main)
