"""
PACING: predict the next token by looking at the text as an image.

The tokens are laid out on a grid in reading order, and a ConvNeXt V2 reads the grid as an image.
Original: "Words Are Worth 16x16 Pixels", https://github.com/aveygo/WordsAreWorth16x16Pixels

- predicts = 'every' (default): every token predicts its successor from the tokens before it in reading order.  A 7 x 7 kernel
  keeps the 25 offsets that look back (fewer with fewer than 7 columns), and GRN takes its norm over the rows above.  One window
  gives T targets, as in a GPT.
- predicts = 'last': the original model.  Each embedding is a patch of 3-colour pixels, a hierarchical ConvNeXt V2 sees the
  whole image, and only the token after the window is predicted.
- The blocks are those of ConvNeXt V2 (Woo et al. 2023, arXiv 2301.00808), and agree with those of transformers.
- The two causal operations are defined in plain code (conv_plain, grn_plain); their fast forms are at the end of the file.

B batch   T tokens in the window   C channels   F hidden channels (4C)   H, W rows and columns of the grid   V vocabulary
R largest offset of a kernel   K length of the kernel on the flat text (R + 1)   P side of a patch in pixels
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
    vocab_size: int = 65        # size of the vocabulary
    predicts: str = 'every'     # predict after 'every' token (causal image), or after the 'last' one only (original model)
    columns: int = 16           # tokens in a row of the grid
    dropout: float = 0.0        # on the embeddings and on the residual branch of every block
    embedding_std: float = 0.02     # initial standard deviation of the token embedding, which is the output layer (original: 1)
    # predicts = 'every': one position per token, all blocks at one resolution
    n_layer: int = 3            # blocks
    n_embd: int = 180           # channels
    # predicts = 'last': an embedding is a patch of 3 * patch_size ** 2 values; the stem divides the sides of the image by 4,
    # each later stage by 2
    patch_size: int = 8         # side of a token's patch in pixels
    depths: tuple[int, ...] = (2, 2, 2)     # blocks in each stage
    dims: tuple[int, ...] = (48, 96, 128)   # channels in each stage
    blank: float = 0.1          # fraction of training windows whose older part is blank, as it is for a short prompt

    @classmethod
    def tiny(cls):
        return cls(block_size=16, vocab_size=17, columns=4, n_layer=2, n_embd=16, patch_size=4, depths=(1, 1), dims=(8, 16))

    def __post_init__(self):
        if self.predicts not in ('every', 'last'):
            raise ValueError(f"unknown predicts='{self.predicts}': choose 'every' or 'last'")
        if min(self.columns, self.patch_size, *self.depths, *self.dims) < 1:
            raise ValueError(f'columns={self.columns}, patch_size={self.patch_size}, depths={self.depths} and dims={self.dims} '
                             f'must all be at least 1')
        if self.embedding_std <= 0:
            raise ValueError(f'embedding_std={self.embedding_std} must be above 0')
        if not 0 <= self.blank <= 1:
            raise ValueError(f'blank={self.blank} must be between 0 and 1')
        if self.predicts == 'every':
            return
        rows, rest = divmod(self.block_size, self.columns)
        if rest or len(self.depths) != len(self.dims) or not self.dims:
            raise ValueError(f'block_size={self.block_size} must be a multiple of columns={self.columns}, and depths='
                             f'{self.depths} and dims={self.dims} must have the same length')
        shrink = 4 * 2 ** (len(self.dims) - 1)      # the stem merges 4 x 4 pixels, each later stage 2 x 2 positions
        if rows * self.patch_size % shrink or self.columns * self.patch_size % shrink:
            raise ValueError(f'an image of {rows * self.patch_size} x {self.columns * self.patch_size} pixels cannot be shrunk '
                             f'by {shrink} in {len(self.dims)} stages: change block_size, columns, patch_size or dims')
        positions = rows * self.columns * self.patch_size ** 2 // shrink ** 2
        if 3 * self.patch_size ** 2 % positions:
            raise ValueError(f'an embedding of 3 x {self.patch_size} x {self.patch_size} values cannot be read in equal parts '
                             f'from the {positions} positions of the last stage: add a stage or change patch_size')


# the parts of ConvNeXt V2 ---------------------------------------------------------------------------------------------------

class GRN(nn.Module):
    """Global Response Normalization (section 4): amplifies the channels whose norm over the image is above average."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.gamma.no_weight_decay = self.beta.no_weight_decay = True

    def forward(self, x, norm):
        """x: (..., F).  norm: the norm of each channel over the image, broadcastable to x."""
        n = norm / (norm.mean(-1, keepdim=True) + 1e-6)
        factor = (1 + self.gamma * n).to(torch.promote_types(x.dtype, self.gamma.dtype))
        return torch.addcmul(self.beta, x, factor)                  # gamma * (x * n) + beta + x, in one pass over x


class Block(nn.Module):
    """The block of ConvNeXt V2 on a whole image: (B, C, H, W) -> (B, C, H, W)."""

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
        dtype = torch.promote_types(h.dtype, torch.float32)                         # a sum of many squares
        h = self.grn(h, torch.linalg.vector_norm(h, dim=(1, 2), keepdim=True, dtype=dtype))
        return x + self.dropout(self.pwconv2(h)).permute(0, 3, 1, 2)


# predicts = 'every': two causal operations, in plain code -------------------------------------------------------------------

def causal_offsets(columns, size=7):
    """How far back, in tokens, each element of a size x size kernel looks, for the elements at or before the token itself.

    dr rows up and dc columns right is dr * columns - dc tokens back.  The image is the flat text, so a kernel that reaches over
    the right edge of the grid continues on the next row, and no padding is needed at the edges."""
    reach = size // 2
    back = {dr * columns - dc for dr in range(reach + 1) for dc in range(-reach, reach + 1)}
    return sorted(b for b in back if b >= 0)


def conv_plain(x, seen, weight, bias, offsets):
    """Causal depthwise convolution:  y[t] = bias + sum over k of weight[k] * x[t - offsets[k]].

    x: (B, T, C).  seen: (B, R, C), the tokens before x, R = offsets[-1].  weight: (C, len(offsets)).  bias: (C,)."""
    T, R = x.shape[1], seen.shape[1]
    longer = torch.cat([seen, x], dim=1)                                            # (B, R + T, C)
    y = bias.expand_as(x)
    for k, back in enumerate(offsets):
        y = y + weight[:, k] * longer[:, R - back:R - back + T]
    return y


def grn_plain(x, gamma, beta, columns):
    """Causal GRN: the tokens of a row are normalized by the norm over all rows above; in the first row, where nothing is above,
    n is about 1 in every channel.

    x: (B, T, F), from the start of a text.  gamma, beta: (F,).  Rows, because norms up to each token would be as large as x."""
    rows = []
    for start in range(0, x.shape[1], columns):
        row, energy = x[:, start:start + columns], x[:, :start].square().sum(1, keepdim=True)      # (B, W, F), (B, 1, F)
        norm = (energy + 1e-6).sqrt()
        n = norm / (norm.mean(-1, keepdim=True) + 1e-6)
        rows.append(gamma * (row * n) + beta + row)
    return torch.cat(rows, dim=1)


class CausalBlock(Block):
    """The same block on a text: (B, T, C) -> (B, T, C)."""

    def __init__(self, channels, dropout, columns):
        super().__init__(channels, dropout)
        offsets = causal_offsets(columns)
        self.columns, self.reach = columns, offsets[-1]
        self.dwconv = nn.Conv1d(channels, channels, kernel_size=len(offsets), groups=channels)    # see forward
        self.register_buffer('at', self.reach - torch.tensor(offsets), persistent=False)    # index of each offset in the kernel

    def forward(self, x, state=None):
        """state: see Model.init_state; updated in place."""
        (B, T, C), R = x.shape, self.reach
        seen = x.new_zeros(B, R, C) if state is None else state['inputs']
        with torch.autocast(x.device.type, enabled=False):      # few products per value: lower precision gains nothing
            kernel = x.new_zeros(C, R + 1).scatter(1, self.at.expand(C, -1), self.dwconv.weight[:, 0])
            h = DepthwiseConv.apply(x, seen, kernel, self.dwconv.bias)              # conv_plain: (B, T, C)
        h = F.gelu(self.pwconv1(self.norm(h)))                                      # (B, T, F)
        h = self.causal_grn(h, state)                                               # grn_plain: (B, T, F)
        if state is not None:
            state['inputs'] = torch.cat([seen, x], dim=1)[:, T:]
        return x + self.dropout(self.pwconv2(h))

    def causal_grn(self, h, state):
        """grn_plain for tokens that begin anywhere in a row; the energy of the earlier tokens is in the state."""
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
            # identity plus a weak random mixture of the earlier tokens, which learned faster in our trials than noise alone
            nn.init.normal_(block.dwconv.weight, std=0.3 / math.sqrt(block.dwconv.kernel_size[0]))
            block.dwconv.weight.data[:, :, 0] += 1
            for bias in (block.dwconv.bias, block.pwconv1.bias, block.pwconv2.bias):
                nn.init.zeros_(bias)

    def forward(self, x, states=None):
        for i, block in enumerate(self.blocks):
            x = block(x, states and states[i])
        return self.norm(x)


# predicts = 'last': the original model --------------------------------------------------------------------------------------

class Picture(nn.Module):
    """(B, T, E) embeddings, newest first, E = 3 * P * P -> (B, 1, E), the predicted embedding of the next token."""

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
        positions = rows * config.columns * P * P // (4 * 2 ** (len(dims) - 1)) ** 2
        self.readout = nn.Linear(dims[-1], 3 * P * P // positions)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def image(self, x):
        """(B, T, E) -> (B, 3, H * P, W * P): the first embedding is the upper left patch, missing ones are blank."""
        (B, T, _), P, W, H = x.shape, self.config.patch_size, self.config.columns, self.rows
        x = F.pad(x, (0, 0, 0, H * W - T)).view(B, H, W, 3, P, P)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(B, 3, H * P, W * P)

    def features(self, image):
        """(B, 3, H * P, W * P) -> (B, C, H', W'): ConvNeXt V2 without its head."""
        h = channels_last(self.stem_norm, self.stem(image))                         # (B, C, H * P / 4, W * P / 4)
        for i, blocks in enumerate(self.stages):
            if i:
                h = self.shrinks[i - 1](channels_last(self.shrink_norms[i - 1], h))     # (B, C', half, half)
            for block in blocks:
                h = block(h)
        return h

    def forward(self, x):
        h = self.norm(self.features(self.image(x)).permute(0, 2, 3, 1))             # (B, H', W', C)
        return self.readout(h).flatten(1)[:, None]      # each position gives an equal part of the embedding: (B, 1, E)


def channels_last(norm, x):
    """A LayerNorm over the channels of (B, C, H, W)."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# the model ------------------------------------------------------------------------------------------------------------------

class Model(nn.Module):
    adjustable = ('block_size', 'dropout', 'blank', 'embedding_std')     # the last is of the initial weights

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.predicts = config, config.predicts
        every = config.predicts == 'every'
        channels = config.n_embd if every else 3 * config.patch_size ** 2
        self.wte = nn.Embedding(config.vocab_size, channels)
        # the causal image knows a position by what lies before it, so it works at any length; the original needs positions
        self.wpe = None if every else nn.Embedding(config.block_size, channels)
        self.drop = nn.Dropout(config.dropout)
        self.picture = CausalPicture(config) if every else Picture(config)
        self.lm_head = nn.Linear(channels, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        nn.init.normal_(self.wte.weight, std=config.embedding_std)
        if not every:
            nn.init.normal_(self.wpe.weight, std=0.02)
            self.init_state = self.step = None      # every new token shifts the whole image: nothing can be cached

    def embed(self, x):
        """(B, T) tokens -> (B, T, C), the input of the network.  With predicts = 'last' the newest token comes first, positions
        count from it, and in training a fraction `blank` of the windows is cut to a random length."""
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
        """x: (B, T) int64; T <= block_size if predicts = 'last'.  y: (B, T), the token after each; -1 is not scored.
        Returns logits (B, T, V), or (B, 1, V) if predicts = 'last', and the mean cross-entropy in nats (None without y)."""
        logits = self.lm_head(self.picture(self.embed(x)))                          # (B, T or 1, V)
        if y is None:
            return logits, None
        y = y[:, -logits.shape[1]:]
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)

    # generation -------------------------------------------------------------------------------------------------------------

    def init_state(self, batch_size):
        """The state of step() before the first token.  Per block: the last R inputs of the convolution, the column of the next
        token, and the energy (sum of squares) of the rows above and of the current row."""
        C, like = self.config.n_embd, self.wte.weight
        return [{'inputs': like.new_zeros(batch_size, block.reach, C), 'column': 0,
                 'above': like.new_zeros(batch_size, 4 * C), 'row': like.new_zeros(batch_size, 4 * C)}
                for block in self.picture.blocks]

    def step(self, token, state, every=False):
        """token: (B, n), the next n tokens of each text.  Returns the logits of the token after them (B, V), or with `every` of
        the token after each (B, n, V), and the state.  The cost per token does not depend on the length of the
        text, and there is no limit to that length."""
        h = self.picture(self.embed(token), state)                                  # (B, n, C)
        return self.lm_head(h if every else h[:, -1]), state


@torch.no_grad()
def pictures(model, x, labels):
    """Yields (name, matplotlib figure) for look.py: the text as the network sees it, and the kernels of the first block.
    x: (1, T) tokens.  labels: their text."""
    from views.images import image_grid, kernel_grid
    h, columns = model.embed(x)[0].float().cpu(), model.config.columns              # (T, C)
    if model.config.predicts == 'last':
        image = model.picture.image(h[None])[0].permute(1, 2, 0)                    # (H * P, W * P, 3)
        yield 'picture', image_grid(image.numpy(), labels[::-1], columns, model.config.patch_size,
                                    'the input image: one patch per token, the newest in the upper left corner\n'
                                    'the values of an embedding are the red, green and blue of its pixels')
        yield 'kernels', kernel_grid(model.picture.stages[0][0].dwconv.weight[:, 0].cpu().numpy(), 'kernels of the first block')
        return
    h = h - h.mean(0)
    colours = h @ torch.linalg.svd(h, full_matrices=False).Vh[:3].T                 # (T, up to 3)
    colours = F.pad(colours / (colours.std(0, correction=0) + 1e-9), (0, 3 - colours.shape[1]))
    image = F.pad(colours, (0, 0, 0, -len(h) % columns), value=math.nan).view(-1, columns, 3)
    yield 'picture', image_grid(image.numpy(), labels, columns, 1,
                                'the input image: one pixel per token, in reading order\nred, green, blue: the first three '
                                'principal components of the embeddings,\nso tokens of similar colour have similar embeddings')
    if not model.picture.blocks:
        return
    offsets, weight, reach = causal_offsets(columns), model.picture.blocks[0].dwconv.weight[:, 0].clone(), 3
    weight[:, 0] -= 1                                                               # see CausalPicture: the initial identity
    kernels = weight.new_full((len(weight), reach + 1, 2 * reach + 1), math.nan)
    for up, right in itertools.product(range(reach + 1), range(-reach, reach + 1)):
        if (back := up * columns - right) in offsets:
            kernels[:, reach - up, reach + right] = weight[:, offsets.index(back)]
    yield 'kernels', kernel_grid(kernels.float().cpu().numpy(), 'kernels of the first block minus the identity that they start '
                                 'from (a 1 at the token itself)\nbottom row: the token (centre) and those before it, then the '
                                 f'rows above; initial noise: {0.3 / math.sqrt(len(offsets)):.2f}')


# the fast forms -------------------------------------------------------------------------------------------------------------
#
# Gradient of the convolution.  On the flat text y[t] = bias + sum over k of kernel[k] x[t + k], where x begins R tokens before
# y, and kernel has zeros between the offsets.  Its gradient, dkernel[k] = sum over t of dy[t] x[t + k], is slow in torch (CPU).
# Here: cut dy into N pieces of L, and x into N pieces of L + R that begin with them.  One matrix product per channel gives
# M[i, j] = sum over pieces of dy[i] x[j], and dkernel[k] is the sum of the diagonal j - i = k.  For L = 3 and R = 3:
#
#           j  0 1 2 3 4 5
#     i = 0    a b c d . .        dkernel = [sum of a, sum of b, sum of c, sum of d]
#     i = 1    . a b c d .        In memory each row begins L + R after the one above, and its `a` L + R + 1 after the `a`
#     i = 2    . . a b c d        above: as_strided reads the diagonals as the columns of an (L, K) matrix.

class DepthwiseConv(torch.autograd.Function):
    """conv_plain with a dense kernel.  x: (B, T, C), seen: (B, R, C), kernel: (C, K), bias: (C,) -> (B, T, C).

    Chosen by measurements on CPUs.  A GPU runs the same code, without a loop; nobody has measured another there."""

    @staticmethod
    def forward(ctx, x, seen, kernel, bias):
        longer = torch.cat([seen.mT, x.mT], dim=2)                                  # (B, C, R + T)
        ctx.save_for_backward(longer, kernel)
        return F.conv1d(longer, kernel[:, None], bias, groups=len(kernel)).mT       # (B, T, C)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (x, kernel), dy = ctx.saved_tensors, dy.mT.contiguous()                     # (B, C, R + T), (C, K), (B, C, T)
        (B, C, T), K = dy.shape, kernel.shape[1]
        R, L = K - 1, 16
        N = -(-T // L)
        dx = F.conv1d(F.pad(dy, (0, R)), kernel.flip(1)[:, None], groups=C).mT      # (B, T, C)
        dbias = dy.sum((0, 2))
        dy, x = F.pad(dy, (0, N * L - T)), F.pad(x, (0, N * L - T))
        dy = dy.view(B, C, N, L).permute(1, 3, 0, 2).reshape(C, L, B * N)
        x = x.unfold(2, L + R, L).permute(1, 0, 2, 3).reshape(C, B * N, L + R)
        products = dy @ x                                                           # (C, L, L + R)
        return dx, None, products.as_strided((C, L, K), (L * (L + R), L + R + 1, 1)).sum(1), dbias


# Gradient of GRN, with fewer passes over x than autograd takes.  For row h, with sums over the W tokens of a row:
#
#     energy[h] = sum x[h]^2     above[h] = sum over h' < h of energy[h']     norm = sqrt(above + eps)     n = norm / mean(norm)
#     y = x (1 + gamma n) + beta
#
#     dgamma = sum over h of n sum(dy x)     dn = gamma sum(dy x)     dnorm = (dn - mean(dn n)) / mean(norm)
#     dabove = dnorm / (2 norm)     denergy[h] = sum over h' > h of dabove[h']     dx = dy (1 + gamma n) + 2 x denergy

class RowwiseGRN(torch.autograd.Function):
    """grn_plain on rows.  x: (B, H, W, F), gamma and beta: (F,).  above, row: (B, F), the energy of all rows before x, and of
    the tokens of x's first row that were read before (x has zeros in their place).  Both are zero at the start of a text.
    Returns the result (B, H, W, F), the energy above the last row, and that of the last row, both without gradient."""

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
        denergy = dabove.flip(1).cumsum(1).flip(1) - dabove
        dx = (dy * factor).addcmul_(x, (2 * denergy)[:, :, None].to(x.dtype))
        return dx, (dfactor * n).sum((0, 1)), dy.sum((0, 1, 2), dtype=norm.dtype), None, None
