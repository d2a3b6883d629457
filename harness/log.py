"""The log of a run: metrics.csv and loss.png, and on request TensorBoard and Weights & Biases."""

import csv
import io
import secrets
import sys
import time
from pathlib import Path

from harness import UserError
from harness.files import atomic

COLUMNS = ('step', 'tokens', 'seconds', 'lr', 'grad_norm', 'tokens_per_second', 'train_loss', 'val_loss', 'val_loss_full',
           'accuracy', 'accuracy_full', 'memory')


class Heartbeat:
    """Prints progress at most every `every` seconds where there is no progress bar, because stderr is no terminal."""

    def __init__(self, active=True, every=20):
        self.active, self.every = active and not sys.stderr.isatty(), every
        self.last = time.monotonic()

    def __call__(self, line):
        if self.active and time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            print(line, flush=True)


def markdown(headers, rows):
    """A Markdown table with aligned columns, which is also readable in a terminal."""
    widths = [max(2, *(len(r[i]) for r in [headers, *rows])) for i in range(len(headers))]      # '-:' aligns to the right
    pad = [str.ljust] + [str.rjust] * (len(headers) - 1)
    lines = [[f(c, w) for f, c, w in zip(pad, row, widths, strict=True)] for row in (headers, *rows)]
    lines.insert(1, ['-' * widths[0], *('-' * (w - 1) + ':' for w in widths[1:])])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


class Log:
    """Rows of numbers by step.  from_step: the step from which a run is resumed, or None.  Later rows, which a killed run
    logged after its last checkpoint, are dropped."""

    def __init__(self, folder, from_step, more, cfg, settings):
        """more: the columns of the data and the model, after COLUMNS.  settings: of the run, for Weights & Biases."""
        self.path, self.from_step, self.cfg, self.settings = Path(folder) / 'metrics.csv', from_step, cfg, settings
        self.rows, self.board, self.wandb = [], None, None
        if from_step is not None and self.path.exists():
            try:
                self.rows = [r for r in read(self.path) if r['step'] <= from_step]
            except (ValueError, KeyError):      # UnicodeDecodeError is a ValueError
                raise UserError(f'{self.path} is damaged: move it away, and --resume starts a new one') from None
        self.columns = list(dict.fromkeys([*COLUMNS, *more, *(name for row in self.rows for name in row)]))
        self.write_all()

    def write_all(self):
        with atomic(self.path, 'w') as f:
            writer = csv.DictWriter(f, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def track(self, out_dir):
        """Logs to TensorBoard and Weights & Biases, too, if cfg says so.  out_dir: where metrics.csv is from now on; the id of
        the run on Weights & Biases is kept beside it."""
        self.path = out_dir / 'metrics.csv'
        if self.cfg.tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(out_dir, purge_step=None if self.from_step is None else self.from_step + 1)
        if self.cfg.wandb_log:
            import wandb
            kept = out_dir / 'wandb_id'
            if not kept.exists():
                with atomic(kept, 'w') as f:
                    f.write(secrets.token_hex(8))
            self.wandb = wandb.init(project=self.cfg.wandb_project, name=out_dir.resolve().name, id=kept.read_text().strip(),
                                    resume='allow', config=self.settings)
        for row in self.rows if self.from_step is None else ():
            self.send(**row)

    def write(self, step, **values):
        """Appends a row; a column without a value stays empty.  A second row of a step completes the first, as when a run is
        resumed and evaluates the step at which it was stopped."""
        row, again = {'step': step, **values}, self.rows and self.rows[-1]['step'] == step
        line = io.StringIO()
        csv.DictWriter(line, self.columns).writerow(row)
        try:
            if again:
                self.rows[-1] |= row
                self.write_all()
            else:
                self.rows.append(row)
                with open(self.path, 'r+', encoding='utf-8', newline='') as f:      # 'a' would make a file that was removed
                    f.seek(0, io.SEEK_END)
                    f.write(line.getvalue())
        except OSError as e:
            resumable = self.path.with_name('ckpt.pt').exists()
            raise UserError(f'{self.path} could not be written ({e.strerror}): ' + (
                'free some space, then --resume continues from the last checkpoint' if resumable else 'start the run again')
            ) from None
        self.send(**row)

    def send(self, step, **values):
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def close(self):
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()

    def plot(self, title):
        """loss.png beside metrics.csv: training and validation loss against tokens."""
        import matplotlib
        matplotlib.use('Agg')
        import matplotlib.pyplot as plt
        from matplotlib.ticker import EngFormatter
        fig, ax = plt.subplots(figsize=(7, 4), layout='constrained')
        for name, style in (('train_loss', {'color': '#9db7d5', 'lw': 1}),
                            ('val_loss', {'color': '#c2452d', 'lw': 2, 'marker': 'o', 'ms': 4}),
                            ('val_loss_full', {'color': '#c2452d', 'lw': 1, 'ls': '--'})):
            points = [(r['tokens'], r[name]) for r in self.rows if r.get(name) is not None]
            if points:
                label = name.replace('_', ' ') + (f', last {points[-1][1]:.3f}' if name != 'train_loss' else '')
                ax.plot(*zip(*points, strict=True), label=label, **style)
        ax.set(xlabel='tokens', ylabel='cross-entropy (nats)')
        ax.set_title(title, parse_math=False)
        ax.xaxis.set_major_formatter(EngFormatter(sep=' '))
        ax.grid(alpha=0.3)
        ax.spines[['top', 'right']].set_visible(False)
        ax.legend(frameon=False)
        try:
            with atomic(self.path.with_name('loss.png')) as f:
                fig.savefig(f, format='png', dpi=120)
        except OSError as e:
            raise UserError(f'loss.png could not be written ({e.strerror}): the run has ended without it') from None
        plt.close(fig)


def read(path):
    """The rows of a metrics.csv as dicts of numbers, without empty cells and without an incomplete last line."""
    rows = []
    text = Path(path).read_text(encoding='utf-8')
    for row in csv.DictReader(io.StringIO(text[:text.rfind('\n') + 1])):
        if None in row:
            raise ValueError(f'{path}: a row has more cells than the head')
        rows.append({k: (int if k in ('step', 'tokens') else float)(v) for k, v in row.items() if v})
    return rows
