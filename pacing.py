"""
PACING: predict the next token by looking at the text as a picture.

Each token is a cell of a picture, the cells are laid out in reading order, and a ConvNeXt V2 looks at it.
                                                                       seed: "Words Are Worth 16x16 Pixels" (Aveygo)
Two ways of looking:

- predicts = 'every' (default): every cell predicts its successor, and sees only what comes before it in reading order.
  Of a 7 x 7 kernel the 25 taps remain that look back, and GRN takes its norm over the rows above. A picture gives as
  many targets as it has cells, as a GPT's window does.
- predicts = 'last': the seed's own. Each embedding is a patch of 3-colour pixels, a hierarchical ConvNeXt V2 sees the
  whole image, and only the token after the window is predicted.

The blocks are those of ConvNeXt V2 (Woo et al. 2023, arXiv 2301.00808), to the weight.

B batch   T tokens in the window   C channels   F hidden channels (4C)   H, W rows and columns of cells   V vocabulary
R how many cells back the furthest tap lies   K kernel length on the flat text (R + 1)   P pixels in a patch's side
"""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    block_size: int = 256       # tokens in the window
    vocab_size: int = 65        # tokens that exist
    predicts: str = 'every'     # 'every' token of the window (the causal picture), or the 'last' alone (the seed's)
    columns: int = 16           # tokens in a row of the picture
    dropout: float = 0.0        # on the embeddings, and on the branch of every block
    # predicts = 'every': a cell a token, all blocks at one resolution
    n_layer: int = 3            # blocks
    n_embd: int = 180           # channels
    # predicts = 'last': an embedding is a patch of 3 * patch_size ** 2 numbers; each stage halves the picture's sides
    patch_size: int = 8         # pixels in a token's side
    depths: tuple[int, ...] = (2, 2, 2)     # blocks in each stage
    dims: tuple[int, ...] = (48, 96, 128)   # channels in each stage
    blank: float = 0.1          # the share of training windows whose older part is left blank, as a short prompt's is

    @classmethod
    def tiny(cls):
        return cls(block_size=16, vocab_size=17, columns=4, n_layer=2, n_embd=16, patch_size=4, depths=(1, 1), dims=(8, 16))

    def __post_init__(self):
        if self.predicts not in ('every', 'last'):
            raise ValueError(f"predicts='{self.predicts}' is unknown: 'every' and 'last' are")
        if min(self.columns, self.patch_size, *self.depths, *self.dims) < 1:
            raise ValueError(f'columns={self.columns}, patch_size={self.patch_size}, depths={self.depths} and dims={self.dims} '
                             f'must all be at least 1')
        if not 0 <= self.blank <= 1:
            raise ValueError(f'blank={self.blank} must be a share, from 0 to 1')
        if self.predicts == 'every':
            return
        rows, left = divmod(self.block_size, self.columns)
        if left or len(self.depths) != len(self.dims) or not self.dims:
            raise ValueError(f'block_size={self.block_size} must be whole rows of columns={self.columns} tokens, and depths='
                             f'{self.depths} and dims={self.dims} equally many stages')
        shrink = 4 * 2 ** (len(self.dims) - 1)      # the stem takes 4 x 4 pixels together, each later stage 2 x 2 cells
        if rows * self.patch_size % shrink or self.columns * self.patch_size % shrink:
            raise ValueError(f'a picture of {rows * self.patch_size} x {self.columns * self.patch_size} pixels cannot be '
                             f'shrunk by {shrink} in {len(self.dims)} stages: change block_size, columns, patch_size or dims')
        cells = rows * self.columns * self.patch_size ** 2 // shrink ** 2
        if 3 * self.patch_size ** 2 % cells:
            raise ValueError(f'an embedding of 3 x {self.patch_size} x {self.patch_size} numbers cannot be read out in equal '
                             f'shares from the {cells} cells of the last stage: add a stage or change patch_size')


# the parts of ConvNeXt V2 ---------------------------------------------------------------------------------------------

class GRN(nn.Module):
    """Global Response Normalization (section 3.3): a channel is strengthened where its norm over the picture is larger
    than the other channels' are."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.gamma.no_weight_decay = self.beta.no_weight_decay = True

    def forward(self, x, norm):
        """x: (..., F).  norm: the norm of each channel over the picture, broadcast against x."""
        n = norm / (norm.mean(-1, keepdim=True) + 1e-6)
        return torch.addcmul(self.beta, x, 1 + self.gamma * n)      # gamma * (x * n) + beta + x, in one pass over x


class Block(nn.Module):
    """ConvNeXt V2's block, on a whole picture: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels, dropout):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.grn = GRN(4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        h = self.dwconv(x).permute(0, 2, 3, 1)                                      # (B, H, W, C)
        h = F.gelu(self.pwconv1(self.norm(h)))                                      # (B, H, W, F)
        h = self.grn(h, torch.linalg.vector_norm(h.float(), dim=(1, 2), keepdim=True))
        return x + self.dropout(self.pwconv2(h)).permute(0, 3, 1, 2)


# predicts = 'every': the picture in which a cell sees only what comes before it ------------------------------------------

def taps(columns, size=7):
    """How many tokens back each tap of a size x size kernel looks, for the taps at or before the token itself.

    The tap dr rows up and dc columns right is dr * columns - dc tokens back: on the flat text the end of one row is
    the neighbour of the start of the next, and nothing is lost at the picture's edge."""
    reach = size // 2
    back = {dr * columns - dc for dr in range(reach + 1) for dc in range(-reach, reach + 1)}
    return sorted(b for b in back if b >= 0)


class DepthwiseConv(torch.autograd.Function):
    """conv1d with a kernel for each channel; torch's own gradient of the kernel is what takes the time on a CPU.

    x: (B, T, C), seen: the R cells before it (B, R, C), kernel: (C, K), bias: (C,) -> (B, T, C)."""

    @staticmethod
    def forward(ctx, x, seen, kernel, bias):
        before = torch.cat([seen.mT, x.mT], dim=2)                                  # (B, C, R + T)
        ctx.save_for_backward(before, kernel)
        return F.conv1d(before, kernel[:, None], bias, groups=len(kernel)).mT       # (B, T, C)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (x, kernel), dy = ctx.saved_tensors, dy.mT.contiguous()                     # (B, C, R + T), (C, K), (B, C, T)
        (B, C, T), K = dy.shape, kernel.shape[1]
        R, L = K - 1, 16
        dx = F.conv1d(F.pad(dy, (0, R)), kernel.flip(1)[:, None], groups=C).mT      # (B, T, C)
        dbias = dy.sum((0, 2))
        # dkernel[k] = sum over t of dy[t] x[t + k]. Cut the text into N pieces of L: one matrix product a channel gives
        # all dy[i] x[j] inside the pieces, and its diagonals j - i = k are what is wanted.
        N = -(-T // L)
        dy, x = F.pad(dy, (0, N * L - T)), F.pad(x, (0, N * L - T))
        dy = dy.view(B, C, N, L).permute(1, 3, 0, 2).reshape(C, L, B * N)
        x = x.unfold(2, L + R, L).permute(1, 0, 2, 3).reshape(C, B * N, L + R)
        products = F.pad(dy @ x, (0, 1))                                            # (C, L, L + R + 1)
        return dx, None, products.as_strided((C, L, K), (L * (L + R + 1), L + R + 2, 1)).sum(1), dbias


class RowwiseGRN(torch.autograd.Function):
    """GRN in which the cells of a row see the norm over the rows above; in the first row all channels weigh the same.

    x: (B, H, W, F), gamma and beta: (F,).  above, row: (B, F), the energy (sum of squares) of all rows before x, and of
    what x's first row has already had: zeros at the start of a text.  Returns the result (B, H, W, F), and the energy
    above the last row and of the last row.  By hand, since autograd takes more passes over x."""

    @staticmethod
    def forward(ctx, x, gamma, beta, above, row):
        energy = x.square().sum(2, dtype=torch.promote_types(x.dtype, torch.float32))       # (B, H, F)
        energy[:, 0] += row
        above = torch.cat([above[:, None], energy[:, :-1]], dim=1).cumsum(1)        # (B, H, F)
        norm = (above + 1e-6).sqrt_()
        mean = norm.mean(-1, keepdim=True) + 1e-6
        n = norm / mean
        factor = (1 + gamma * n)[:, :, None].to(x.dtype)                            # (B, H, 1, F)
        ctx.save_for_backward(x, gamma, norm, mean, n, factor)
        above, row = above[:, -1], energy[:, -1]
        ctx.mark_non_differentiable(above, row)
        return torch.addcmul(beta.to(x.dtype), x, factor), above, row

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, *_):
        x, gamma, norm, mean, n, factor = ctx.saved_tensors
        dfactor = (dy * x).sum(2, dtype=norm.dtype)                                 # (B, H, F)
        dn = dfactor * gamma
        dnorm = (dn - (dn * n).mean(-1, keepdim=True)) / mean
        dabove = dnorm / (2 * norm)
        # a row's energy is in the norm of all rows below it
        denergy = dabove.flip(1).cumsum(1).flip(1) - dabove
        dx = (dy * factor).addcmul_(x, (2 * denergy)[:, :, None].to(x.dtype))
        return dx, (dfactor * n).sum((0, 1)), dy.sum((0, 1, 2), dtype=norm.dtype), None, None


class CausalBlock(Block):
    """The same block on a text: (B, T, C) -> (B, T, C).  Its 7 x 7 kernel keeps the taps that look back."""

    def __init__(self, channels, dropout, columns):
        super().__init__(channels, dropout)
        back = taps(columns)
        self.columns, self.reach = columns, back[-1]
        self.dwconv = nn.Conv1d(channels, channels, kernel_size=len(back), groups=channels)
        self.register_buffer('at', self.reach - torch.tensor(back), persistent=False)   # where the taps are in the kernel

    def forward(self, x, state=None):
        """state: what step() carries along (see Model.init_state); it is brought up to date."""
        (B, T, C), R = x.shape, self.reach
        seen = x.new_zeros(B, R, C) if state is None else state['cells']
        # in float32 under autocast too: there is nothing to gain in 25 products a number
        with torch.autocast(x.device.type, enabled=False):
            kernel = x.new_zeros(C, R + 1).scatter(1, self.at.expand(C, -1), self.dwconv.weight[:, 0])
            h = DepthwiseConv.apply(x, seen, kernel, self.dwconv.bias)              # (B, T, C)
        h = F.gelu(self.pwconv1(self.norm(h)))                                      # (B, T, F)
        h = self.respond(h, state)
        if state is not None:
            state['cells'] = torch.cat([seen, x], dim=1)[:, T:]
        return x + self.dropout(self.pwconv2(h))

    def respond(self, h, state):
        """GRN by the norm over the rows above.  It changes from row to row only, so it is cheap; a norm up to each cell would
        be one more number for every hidden one."""
        (B, T, F_), W = h.shape, self.columns
        column, above, row = (state['column'], state['above'], state['row']) if state else (0, *h.new_zeros(2, B, F_))
        end = (column + T) % W
        rows = (F.pad(h, (0, 0, column, -end % W)) if column or end else h).view(B, -1, W, F_)      # (B, H, W, F)
        rows, above, row = RowwiseGRN.apply(rows, self.grn.gamma, self.grn.beta, above, row)
        if state:
            state.update(column=end, above=above + row if end == 0 else above, row=row if end else torch.zeros_like(row))
        return rows.view(B, -1, F_)[:, column:column + T]


class CausalPicture(nn.Module):
    """(B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.blocks = nn.ModuleList([CausalBlock(config.n_embd, config.dropout, config.columns)
                                     for _ in range(config.n_layer)])
        self.norm = nn.LayerNorm(config.n_embd)
        for block in self.blocks:
            nn.init.normal_(block.pwconv1.weight, std=0.02)
            nn.init.normal_(block.pwconv2.weight, std=0.02 / math.sqrt(config.n_layer))
            # a cell begins as itself and a faint blur of what is before it: learns much faster than from noise alone
            nn.init.normal_(block.dwconv.weight, std=0.3 / math.sqrt(block.dwconv.kernel_size[0]))
            block.dwconv.weight.data[:, :, 0] += 1
            for bias in (block.dwconv.bias, block.pwconv1.bias, block.pwconv2.bias):
                nn.init.zeros_(bias)

    def forward(self, x, states=None):
        for i, block in enumerate(self.blocks):
            x = block(x, states and states[i])
        return self.norm(x)


# predicts = 'last': the seed's picture ----------------------------------------------------------------------------------

class Picture(nn.Module):
    """The seed's network: (B, T, E) embeddings, E = 3 * P * P -> (B, 1, E), the embedding of the token to come."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        rows, P, dims = config.block_size // config.columns, config.patch_size, config.dims
        self.rows = rows
        self.stem = nn.Conv2d(3, dims[0], kernel_size=4, stride=4)
        self.stem_norm = nn.LayerNorm(dims[0], eps=1e-6)
        self.stages = nn.ModuleList([nn.ModuleList([Block(dim, config.dropout) for _ in range(depth)])
                                     for depth, dim in zip(config.depths, dims, strict=True)])
        self.shrink_norms = nn.ModuleList([nn.LayerNorm(dim, eps=1e-6) for dim in dims[:-1]])
        self.shrinks = nn.ModuleList([nn.Conv2d(a, b, kernel_size=2, stride=2)
                                      for a, b in itertools.pairwise(dims)])
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        cells = rows * config.columns * P * P // (4 * 2 ** (len(dims) - 1)) ** 2
        self.readout = nn.Linear(dims[-1], 3 * P * P // cells)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def image(self, x):
        """(B, T, E) -> (B, 3, H * P, W * P), the newest token in the upper left corner, the rest blank."""
        (B, T, _), P, W, H = x.shape, self.config.patch_size, self.config.columns, self.rows
        x = F.pad(x, (0, 0, 0, H * W - T)).view(B, H, W, 3, P, P)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(B, 3, H * P, W * P)

    def cells(self, image):
        """(B, 3, H * P, W * P) -> (B, C, ., .): ConvNeXt V2 without its head."""
        h = channels_last(self.stem_norm, self.stem(image))                         # (B, C, H * P / 4, W * P / 4)
        for i, blocks in enumerate(self.stages):
            if i:
                h = self.shrinks[i - 1](channels_last(self.shrink_norms[i - 1], h))     # (B, C', half, half)
            for block in blocks:
                h = block(h)
        return h

    def forward(self, x):
        h = self.norm(self.cells(self.image(x)).permute(0, 2, 3, 1))                # (B, ., ., C)
        return self.readout(h).flatten(1)[:, None]      # each cell gives an equal share of the row: (B, 1, E)


def channels_last(norm, x):
    """A LayerNorm over the channels of (B, C, H, W)."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Model(nn.Module):

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.predicts = config, config.predicts
        every = config.predicts == 'every'
        channels = config.n_embd if every else 3 * config.patch_size ** 2
        self.wte = nn.Embedding(config.vocab_size, channels)
        # the causal picture knows where a cell is by what lies before it, and can be of any length; the seed's counts
        self.wpe = None if every else nn.Embedding(config.block_size, channels)
        self.drop = nn.Dropout(config.dropout)
        self.picture = CausalPicture(config) if every else Picture(config)
        self.lm_head = nn.Linear(channels, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        for embedding in (self.wte, self.wpe):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.02)
        if not every:
            self.init_state = self.step = None      # a new token moves every pixel: nothing can be kept

    def look(self, x):
        """x: (B, T) tokens.  Returns what the network sees, (B, T, C): for the seed's picture newest first, with
        positions counted from the newest, and in training now and then blank where the older part would be."""
        h = self.wte(x)                                                             # (B, T, C)
        if self.wpe is not None:
            h = h.flip(1) + self.wpe.weight[:x.shape[1]]
            if self.training and self.config.blank:
                (B, T), device = x.shape, x.device
                shown = torch.where(torch.rand(B, 1, device=device) < self.config.blank,
                                    torch.randint(1, T + 1, (B, 1), device=device), T)
                h = h * (torch.arange(T, device=device) < shown)[:, :, None]
        return self.drop(h)

    def forward(self, x, y=None):
        """x: (B, T) int64, T <= block_size.  y: (B, T), the token after each, -1 where it is not scored.
        Returns logits (B, T, V), or (B, 1, V) if predicts = 'last', and the mean cross-entropy in nats (None without y)."""
        logits = self.lm_head(self.picture(self.look(x)))                           # (B, T or 1, V)
        if y is None:
            return logits, None
        y = y[:, -logits.shape[1]:]
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)

    # generation -------------------------------------------------------------------------------------------------------

    def init_state(self, batch_size):
        """What step() carries along for batch_size texts: per block the cells within reach, and the energy of the rows
        above and of the row begun."""
        C, like = self.config.n_embd, self.wte.weight
        return [{'cells': like.new_zeros(batch_size, block.reach, C), 'column': 0,
                 'above': like.new_zeros(batch_size, 4 * C), 'row': like.new_zeros(batch_size, 4 * C)}
                for block in self.picture.blocks]

    def step(self, token, state):
        """token: (B, n), the next n tokens of each text.  Returns the logits (B, V) of the token after them, and state.
        Costs the same for every token, however long the text is: the window does not end."""
        h = self.picture(self.look(token), state)                                   # (B, n, C)
        return self.lm_head(h[:, -1]), state
