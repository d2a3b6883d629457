"""
BERT: a transformer that reads a text in both directions, trained to fill in masked tokens.

- Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv 1810.04805): from_pretrained() gives the
  published hidden states and logits
- no position is hidden from another, so a token that is to be predicted must be hidden itself: of each window 15 % of the
  tokens are to be predicted, and of these 80 % are replaced by the token [MASK], 10 % by a random token, and 10 % are kept
  (MaskedText in harness/data.py; the paper's section 3.1)
- so it is no language model: its loss is that of a blank with both sides known, and it cannot continue a text
- post-norm: each residual sum is normalised, as in Vaswani et al. 2017; GPT-2 and ViT normalise the input of each branch
- the paper's second objective, whether two sentences follow each other, is left out, as in RoBERTa; its token types are kept

B batch   T tokens in the window   C channels (n_embd)   V vocabulary, with [MASK]
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import model as gpt


@dataclass
class Config:                   # BERT base: 512, 30522, 12, 12, 768
    bias = True                 # for model.py's attention; not a setting

    block_size: int = 64        # tokens in the window
    vocab_size: int = 66        # size of the vocabulary, with [MASK]
    mask_token: int = -1        # the token [MASK] (-1: the last of the vocabulary)
    n_layer: int = 4            # blocks
    n_head: int = 4             # attention heads per block
    n_embd: int = 128           # channels
    n_hidden: int = 0           # channels inside the MLP (0: 4 * n_embd)
    n_types: int = 2            # token types: which of two sentences a token belongs to
    dropout: float = 0.0        # on embeddings, attention weights and residual branches
    gelu: str = 'none'          # 'none' is exact, as in BERT; 'tanh' is an approximation
    eps: float = 1e-12          # epsilon of LayerNorm
    tied: bool = True           # the output layer is the token embedding

    @classmethod
    def tiny(cls):
        return cls(block_size=16, vocab_size=17, n_layer=2, n_head=2, n_embd=16)

    def __post_init__(self):
        self.n_hidden = self.n_hidden or 4 * self.n_embd
        self.mask_token = self.vocab_size - 1 if self.mask_token < 0 else self.mask_token
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} must be divisible by n_head={self.n_head}')
        if self.mask_token >= self.vocab_size:
            raise ValueError(f'mask_token={self.mask_token} must be below vocab_size={self.vocab_size}')
        if self.n_hidden < 1 or self.n_types < 1 or self.eps < 0:
            raise ValueError(f'n_hidden={self.n_hidden} and n_types={self.n_types} must be at least 1, and eps={self.eps} at '
                             f'least 0')
        gpt.check_gelu(self.gelu)


class SelfAttention(gpt.SelfAttention):
    causal = False


class MLP(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.gelu = config.gelu
        self.c_fc = nn.Linear(config.n_embd, config.n_hidden)
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd)
        self.dropout = gpt.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate=self.gelu)))


class Block(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.attn = SelfAttention(config)
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.eps)
        self.mlp = MLP(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.eps)

    def forward(self, x):
        x = self.ln_1(x + self.attn(x))
        return self.ln_2(x + self.mlp(x))                                                   # (B, T, C)


class Head(nn.Module):
    """(..., C) -> logits (..., V): a dense layer in front of the output layer."""

    def __init__(self, config):
        super().__init__()
        self.gelu = config.gelu
        self.dense = nn.Linear(config.n_embd, config.n_embd)
        self.ln = nn.LayerNorm(config.n_embd, eps=config.eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, h):
        return self.lm_head(self.ln(F.gelu(self.dense(h), approximate=self.gelu)))


class Model(nn.Module):
    predicts = 'every'
    modality = 'masked text'
    bidirectional = True
    model_types = 'bert',

    def __init__(self, config: Config, head=True):
        """head=False: without the layers that predict tokens; trunk() is then all that it computes."""
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.types = nn.Embedding(config.n_types, config.n_embd)
        self.ln = nn.LayerNorm(config.n_embd, eps=config.eps)
        self.drop = gpt.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.head = Head(config) if head else None
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)
        if head and config.tied:
            self.head.lm_head.weight = self.wte.weight

    def trunk(self, x, types=None):
        """x: (B, T) tokens.  types: (B, T), of each token (default: 0).  Returns the last hidden states (B, T, C)."""
        types = torch.zeros_like(x) if types is None else types
        h = self.wte(x) + self.types(types) + self.wpe.weight[:x.shape[1]]
        h = self.drop(self.ln(h))                                                           # (B, T, C)
        for block in self.h:
            h = block(h)
        return h

    def forward(self, x, y=None, types=None):
        """x: (B, T) int64, T <= block_size.  y: (B, T), the token that belongs at each position; -1 is not scored.
        Returns logits (B, T, V), of the token at each position, and the mean cross-entropy in nats (None without y)."""
        if self.head is None:
            raise ValueError('this BERT is an encoder alone: use trunk()')
        logits = self.head(self.trunk(x, types))                                            # (B, T, V)
        if y is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)

    def infill(self, x):
        """x: (B, n) tokens of a text of any length, -1 where one is unknown.  Returns logits (B, n, V): each token in turn is
        masked, and predicted from the block_size tokens around it."""
        (B, n), T, mask = x.shape, min(x.shape[1], self.config.block_size), self.config.mask_token
        at = torch.arange(n, device=x.device)
        start = (at - T // 2).clamp(0, n - T)                                               # of the window of each token
        windows = torch.where(x < 0, mask, x)[:, start[:, None] + at[:T]]                   # (B, n, T)
        windows[:, at, at - start] = mask
        windows, own = windows.flatten(0, 1), (at - start).repeat(B)                        # (B * n, T), (B * n,)
        rows = max(1, (1 << 14) // T)
        hidden = [self.trunk(w)[torch.arange(len(w), device=x.device), i]
                  for w, i in zip(windows.split(rows), own.split(rows), strict=True)]
        return self.head(torch.cat(hidden)).view(B, n, -1)

    # published weights ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name, head=True, **settings):
        """A model with published weights: any BERT on the hub, such as google-bert/bert-base-uncased, a local folder or
        .safetensors file, or minilm.  head=False: the encoder alone; minilm and other models of sentences have no more.
        settings: fields of Config; a smaller block_size crops the positions.  Without a tokenizer.json beside the weights, set
        mask_token (103 for bert-base-uncased), or the last token of the vocabulary is taken for [MASK].
        Raises ValueError if the weights are not a BERT's, lack the head, or contradict a setting."""
        from harness import hub
        described, weights = hub.load(name)
        hub.check_config('bert.py', described, model_type=[*cls.model_types], hidden_act=[*ACTIVATIONS],
                         num_attention_heads=int, layer_norm_eps=float, position_embedding_type=[None, 'absolute'],
                         is_decoder=[False], add_cross_attention=[False], pruned_heads=[None, {}])
        weights = {rename(k): v.float() for k, v in weights.items()}
        if not {'wte.weight', 'wpe.weight', 'types.weight', 'h.0.attn.query.weight', 'h.0.mlp.c_fc.weight'} <= weights.keys():
            raise ValueError('these are not the weights of a BERT')
        n_head = described.get('num_attention_heads', 12) if described else settings.get('n_head')
        if not n_head:
            raise ValueError('the weights do not show n_head: put the config.json of the model beside them, or set n_head')
        vocab_size, n_embd = weights['wte.weight'].shape
        published = {
            'vocab_size': vocab_size, 'n_embd': n_embd, 'n_head': n_head, 'n_types': len(weights['types.weight']),
            'n_layer': len([k for k in weights if k.endswith('.mlp.c_fc.weight')]),
            'n_hidden': len(weights['h.0.mlp.c_fc.weight']), 'gelu': ACTIVATIONS[described.get('hidden_act', 'gelu')],
            'eps': described.get('layer_norm_eps', 1e-12),
            'tied': hub.is_tied(described, weights, 'head.lm_head.weight', 'wte.weight')}
        hub.check_config('bert.py', described, max_position_embeddings=[len(weights['wpe.weight'])],
                         **{theirs: [published[ours]] for theirs, ours in SETTINGS.items()})
        T = len(weights['wpe.weight'])
        if (block_size := settings.get('block_size', T)) > T:
            raise ValueError(f'block_size={block_size} is above the {T} positions of the published model')
        mask_token = settings.get('mask_token', hub.token_id(name, '[MASK]', -1))
        model = cls(Config(**hub.merge(published, settings | {'block_size': block_size, 'mask_token': mask_token})), head)
        weights['wpe.weight'] = weights['wpe.weight'][:block_size]
        for i in range(model.config.n_layer):
            for kind in ('weight', 'bias'):
                parts = [weights.pop(f'h.{i}.attn.{part}.{kind}', None) for part in ('query', 'key', 'value')]
                if all(p is not None for p in parts):
                    weights[f'h.{i}.attn.c_attn.{kind}'] = torch.cat(parts)
        if head and 'head.dense.weight' not in weights:
            raise ValueError('these weights have no layers that predict tokens (cls.predictions.*): they are an encoder alone, '
                             'which head=False loads in Python')
        if model.config.tied:
            weights['head.lm_head.weight'] = weights['wte.weight']
        if 'head.bias' in weights:                          # of old files, and of tied layers
            weights.setdefault('head.lm_head.bias', weights.pop('head.bias'))
        return hub.fill(model, weights, unused=['pooler.*', 'cls.seq_relationship.*', 'classifier.*', 'qa_outputs.*',
                                                'embeddings.position_ids', *([] if head else ['head.*'])])


# the names of transformers: ours
SETTINGS = {'vocab_size': 'vocab_size', 'hidden_size': 'n_embd', 'num_hidden_layers': 'n_layer',
            'intermediate_size': 'n_hidden', 'type_vocab_size': 'n_types'}
ACTIVATIONS = {'gelu': 'none', 'gelu_python': 'none', 'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh', 'gelu_fast': 'tanh'}
WEIGHTS = {'Norm.gamma': 'Norm.weight', 'Norm.beta': 'Norm.bias', 'embeddings.word_embeddings': 'wte',
           'embeddings.position_embeddings': 'wpe', 'embeddings.token_type_embeddings': 'types', 'embeddings.LayerNorm': 'ln',
           'encoder.layer.': 'h.',
           'attention.self.': 'attn.', 'attention.output.dense': 'attn.c_proj', 'attention.output.LayerNorm': 'ln_1',
           'intermediate.dense': 'mlp.c_fc', 'output.dense': 'mlp.c_proj', 'output.LayerNorm': 'ln_2',
           'cls.predictions.transform.LayerNorm': 'head.ln', 'cls.predictions.transform.': 'head.',
           'cls.predictions.decoder': 'head.lm_head', 'cls.predictions.': 'head.'}     # in this order


def rename(name):
    """The name of a published weight in this file."""
    name = name.removeprefix('bert.')
    for theirs, ours in WEIGHTS.items():
        name = name.replace(theirs, ours)
    return name
