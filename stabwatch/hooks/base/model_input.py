"""What the model was called with, as far as the loss is compared with it: token ids, rows of numbers, attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stabwatch.hooks.base.tensors import tensors_in

AHEAD = 2
"""Positions by which targets may be ahead of their inputs: one is right for a language model."""
SHORTEST = AHEAD + 2
SEQUENCES = 16
"""Most sequences of a call that are compared with their targets."""
MOST_ROWS, MOST_COLUMNS = 256, 1024
"""Samples and columns that are compared with the targets."""
FEWEST_ROWS = 16
FEWEST_DIFFER = 8
"""Fewest samples whose target is not the most frequent one: a rare feature may fit a single rare target."""


WANTED = ("label", "target")
"""In the names of arguments that are no inputs, but what the model computes its loss with."""
READERS = 4
"""Most tensors of tokens that are read by embeddings of one model."""
LONGEST = 64
"""Members of a list that are searched for indices."""


def _is_whole(x: Tensor) -> bool:
    """Has it whole numbers?"""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _is_tokens(x: Tensor) -> bool:
    """Can it be token ids (batch, tokens)?"""
    return not x.is_nested and x.dim() == 2 and _is_whole(x) and len(x) > 0 and x.shape[1] >= SHORTEST


HIDDEN = -1e3
"""Added to a score, it hides a token: a bias of the distance is smaller."""


def _most(shown: Tensor) -> Tensor:
    """bool (): are most of these true?"""
    return shown.float().mean() > 0.5


@torch.no_grad()
def _shows_the_next(mask: Tensor, tokens: int) -> Tensor:
    """bool (): does a mask of `scaled_dot_product_attention` let most tokens see the one after them?"""
    after = mask.detach().expand(*mask.shape[:-2], tokens, tokens).diagonal(1, -2, -1)
    return _most(after if after.dtype == torch.bool else after > HIDDEN)


def _end_tokens(model: nn.Module | None) -> tuple[int, ...]:
    """Tokens that end a text, of a model in the manner of transformers."""
    named = getattr(getattr(model, "config", None), "eos_token_id", None)
    return tuple(x for x in (named if isinstance(named, list | tuple) else [named]) if isinstance(x, int))


def _width(ids: Tensor | None, target: Tensor) -> int | None:
    """Targets of each sequence of tokens, where all but the last ones have one; else None."""
    if ids is None or target.device != ids.device or target.numel() % len(ids):
        return None
    width = target.numel() // len(ids)
    return width if ids.shape[1] - AHEAD <= width <= ids.shape[1] else None


_SEQUENTIAL = (nn.RNNBase, nn.MultiheadAttention)


class ModelInput:
    """The inputs of the model's last call in a measured step, and which kind of attention it used since.

    ids: int (batch, tokens), or None: what an embedding reads, where that is seen; models also shift their inputs, or
    are called with the targets. later: what other embeddings read after that, as a decoder's does. rows: numbers
    (batch, columns), or None. open: calls of attention over the whole sequence without a mask, and of recurrent layers
    in both directions; causal: calls with a causal one, and of recurrent layers that say a text of other inputs;
    masked: for each call with a mask, bool () on its device: does that leave later tokens to be seen? indices: one of
    the inputs has whole numbers; several: two of them are rows of such; beside: one of them has numbers (samples, ...).
    lengths: first two dimensions of what layers without `batch_first` were given. over_rows: rows of what a softmax
    went along the first dimension of. ends: the tokens that end a text, as the model's `config` names them.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Keep nothing of a call."""
        self.ids: Tensor | None = None
        self._given: Tensor | None = None
        self._embedded = False
        self.later: list[Tensor] = []
        self.indices = False
        self.rows: Tensor | None = None
        self.open = self.causal = 0
        self.masked: list[Tensor] = []
        self.several = self.beside = False
        self.lengths: list[tuple[int, int]] = []
        self.over_rows: list[int] = []
        self.ends: tuple[int, ...] = ()

    def forward_begins(self, inputs: Iterable[Any], named: Mapping[str, Any], model: nn.Module | None = None) -> None:
        """The model is called."""
        self.clear()
        self.ends = _end_tokens(model)
        given = list({id(x): x for x in (*inputs, *named.values())}.values())
        wanted = {id(x) for name, x in named.items() if any(word in name.lower() for word in WANTED)}
        plain = [x for x in given if isinstance(x, Tensor) and x.layout == torch.strided]
        self.indices = any(map(_is_whole, tensors_in(given, most=LONGEST)))
        strided = [x.detach() for x in plain if not x.is_nested and x.dim() == 2 and len(x)]
        whole = [x for x in strided if _is_whole(x)]
        self.several = len(whole) > 1
        self.beside = any(x.is_floating_point() and x.dim() > 1 for x in plain)
        self._given = self.ids = next(filter(_is_tokens, (x for x in plain if id(x) not in wanted)), None)
        numbers = (x for x in strided if x.is_floating_point())
        self.rows = next((x for x in numbers if len(x) >= FEWEST_ROWS and 2 <= x.shape[1] <= MOST_COLUMNS), None)

    def attention(self, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool) -> None:
        """Attention was called: does each position see the whole sequence?"""
        if (
            self.ids is None
            or query.is_nested
            or query.shape[-2] != key.shape[-2]
            or query.shape[-2] != self.ids.shape[1]
        ):
            return
        self.causal += is_causal
        self.open += mask is None and not is_causal
        if mask is not None and not is_causal and mask.dim() > 1:
            self.masked.append(_shows_the_next(mask, key.shape[-2]))

    def weights(self, weights: Tensor) -> None:
        """The model has computed weights (..., tokens, tokens) of its attention by itself: do later ones count?"""
        self.masked.append(_most(weights.detach().diagonal(1, -2, -1) > 0))

    def may_be_weights(self, x: Tensor) -> bool:
        """Has it one number for each two tokens?"""
        return self.ids is not None and x.dim() > 2 and x.shape[-2:] == (self.ids.shape[1],) * 2

    def layer(self, module: Any, args: Any) -> None:
        """A layer was called: does it read a sequence, along which dimension, and from both ends?"""
        given = args[0] if args else None
        if isinstance(module, nn.Embedding) and isinstance(given, Tensor):
            self._embeds(given)
        if not isinstance(module, _SEQUENTIAL) or not isinstance(given, Tensor) or given.dim() != 3:
            return
        first = bool(getattr(module, "batch_first", False))
        if not first:
            self.lengths.append((given.shape[0], given.shape[1]))
        length = given.shape[1 if first else 0]
        if self.ids is None or length != self.ids.shape[1]:
            return
        both = getattr(module, "bidirectional", False)
        self.open += both and not self.several
        self.causal += isinstance(module, nn.RNNBase) and not both and self.beside

    def _embeds(self, read: Tensor) -> None:
        """An embedding reads these: the tokens, if it is the first one, or what the model was called with."""
        given = self._given
        if given is not None and self.ids is given and self._embedded:
            self._embeds_later(read)
        elif given is not None and read.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():
            self.ids, self._embedded = given, True
        elif not self._embedded and _is_tokens(read):
            self.ids, self._embedded = read.detach(), True
        else:
            self._embeds_later(read)

    def _embeds_later(self, read: Tensor) -> None:
        """Another embedding reads tokens, and not those that were read before."""
        before = [x for x in (self.ids, *self.later) if x is not None]
        if _is_tokens(read) and len(before) < READERS and all(x.data_ptr() != read.data_ptr() for x in before):
            self.later.append(read.detach())

    def softmax(self, scores: Tensor, dim: int | None) -> None:
        """A softmax over the first dimension: of what was computed, each with each left out."""
        wide = scores.dim() > 1 and scores.shape[0] > 1 and any(1 < n != scores.shape[0] for n in scores.shape[1:])
        over = 0 if dim is None and scores.dim() == 3 else dim
        if wide and over in (0, -scores.dim()) and scores.grad_fn is not None:
            self.over_rows.append(scores.shape[0])

    def mixed(self, target: Tensor) -> bool | None:
        """Do layers take the samples of this target (samples, ...) for places of a sequence? None without such layers.

        The target has one row for each sample; where a sequence is as long as the batch, nothing can be said.
        """
        if target.dim() and target.numel() == len(target) and len(target) in self.over_rows:
            return True
        if not self.lengths or not 1 <= target.dim() <= 2:
            return None
        return any(a == len(target) > 1 and b != len(target) and b > 1 for a, b in self.lengths)

    def order(self, target: Tensor, ignored: int) -> Tensor | None:
        """float32 (8,): targets, how many are the token at their own place, at the next, at the one after.

        Then how many were guessed with attention that is open, and with attention that is causal, how many are the
        most frequent one, and how many were guessed with either; none where most are ignored. target: class indices in
        the order of the tokens, of which the last ones of each sequence may be left out. Of several tokens that are
        read, those count that the targets agree with most; of these the ones whose next token is the target, and the
        last ones: what a decoder reads, which is taken for causal.
        """
        if target.is_floating_point():
            return None
        found = [self._order(ids, target, ignored, ids is self.ids) for ids in (self.ids, *self.later)]
        rows = [row for row in found if row is not None]
        if len(rows) < 2:
            return rows[0] if rows else None
        every = torch.stack(rows)
        most = every[:, 1 : 2 + AHEAD].amax(dim=1)
        agree = most + 0.5 * (every[:, 2] == most)
        return every[len(rows) - 1 - agree.flip(0).argmax()]

    def _order(self, ids: Tensor | None, target: Tensor, ignored: int, first: bool) -> Tensor | None:
        """The same of certain tokens. first: they are those that are read first."""
        width = _width(ids, target)
        if ids is None or width is None:
            return None
        length = ids.shape[1] - AHEAD
        wanted, tokens = target.reshape(len(ids), width)[:SEQUENCES, :length], ids[:SEQUENCES]
        known = wanted != ignored
        same = [(known & (wanted == tokens[:, i : i + length])).sum(dtype=torch.float32) for i in range(AHEAD + 1)]
        count = known.sum(dtype=torch.float32)
        shown = torch.where(known, wanted, -1)
        common = (known & (shown == shown.flatten().mode().values)).sum(dtype=torch.float32)
        if not first:
            return torch.stack((count, *same, torch.zeros_like(count), count, common, count))
        masks = [shown.to(count.device, non_blocking=True) for shown in self.masked]
        read = count * bool(self.open or self.causal or masks)
        seen = count * bool(self.open)
        if masks and not self.open:
            seen = count * torch.stack(masks).any()
        return torch.stack((count, *same, seen, read - seen, common, read))

    def endings(self, target: Tensor, ignored: int) -> Tensor | None:
        """float32 (2,): places whose next token ends a text, and how many of these are targets that count.

        Of a model of the next token whose `config` names such tokens. target: as in `order`.
        """
        ids = self.ids
        if not self.ends or ids is None or target.is_floating_point() or target.device != ids.device:
            return None
        if any(_width(x, target) for x in self.later):
            return None  # of a decoder
        width = min(target.numel() // len(ids), ids.shape[1] - 1)
        if target.numel() % len(ids) or width < ids.shape[1] - AHEAD:
            return None
        wanted, after = target.reshape(len(ids), -1)[:SEQUENCES, :width], ids[:SEQUENCES, 1 : width + 1]
        over = torch.stack([after == end for end in self.ends]).any(dim=0)
        taught = over & (wanted == after) & (wanted != ignored)
        return torch.stack([x.sum(dtype=torch.float32) for x in (over, taught)])

    def leak(self, target: Tensor) -> Tensor | None:
        """float32 (): the largest share of samples, over the columns of the input, whose number is the target's.

        0 where nearly all targets are equal. None where they are not one number for each sample.
        """
        rows = self.rows
        if rows is None or target.numel() != len(rows) or target.device != rows.device:
            return None
        rows, wanted = rows[:MOST_ROWS], target.detach().reshape(-1, 1)[:MOST_ROWS].to(rows.dtype)
        share = (rows == wanted).sum(dim=0).amax().float() / len(rows)
        alike = (wanted == wanted.T).sum(dim=0).amax()
        return torch.where(len(rows) - alike < FEWEST_DIFFER, torch.zeros_like(share), share)
