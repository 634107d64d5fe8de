"""Attention that a model writes out: query and key of the product whose softmax is taken.

``softmax(q @ k.transpose(-1, -2) * scale)`` by any of torch's products. The scale is read off the logits.
"""

from __future__ import annotations

from typing import Any

import torch

from i2am.pipeline.taps.kernels import KernelCall

_TOLERANCE = 1e-2
"""Relative, of logits in any precision: what is read this way the witness compares exactly."""

_ROWS, _COLUMNS, _KEPT = 4, 64, 8

_PLAIN = {
    torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm,
}  # fmt: skip
_ADDED = {torch.baddbmm, torch.Tensor.baddbmm}
PRODUCTS = frozenset({*_PLAIN, *_ADDED, torch.einsum})
"""Functions that may make logits."""


class Products:
    """Products that a module made since its last softmax."""

    def __init__(self) -> None:
        self._found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(self, function: Any, args: tuple[Any, ...]) -> None:
        """A product is about to be made."""
        operands = _operands(function, args)
        if operands is not None and min(tensor.ndim for tensor in operands) > 2:
            self._found = [*self._found[1 - _KEPT :], operands]

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> KernelCall | None:
        """What a softmax is taken of; None if of no product that was noted."""
        found, self._found = self._found, []
        logits, axis = args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs.get("dim")
        if axis not in (-1, logits.ndim - 1):
            return None
        for query, key in reversed(found):
            if logits.shape[-2:] != (query.shape[-2], key.shape[-2]) or logits.ndim < 3:
                continue
            key = key.expand(*query.shape[:-2], *key.shape[-2:])
            if query.shape[:-1].numel() * key.shape[-2] != logits.numel():
                continue
            flat = logits.detach().reshape(-1, *logits.shape[-2:])
            scale = _scale(query.detach().flatten(0, -3), key.detach().flatten(0, -3), flat)
            if scale is not None:
                q, k = (x if x.ndim == 4 else x.flatten(0, -3)[:, None] for x in (query, key))
                return KernelCall("softmax", q, k, scale, logits=flat)
        return None


def _operands(function: Any, args: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The factors of a product, [..., query, dim] and [..., key, dim]."""
    if function is torch.einsum:
        return _of_einsum(*args)
    given = args[1:3] if function in _ADDED else args[:2]
    if len(given) < 2 or not all(isinstance(tensor, torch.Tensor) for tensor in given):
        return None
    return given[0], given[1].transpose(-1, -2) if given[1].ndim > 1 else given[1]


def _of_einsum(equation: Any, *operands: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Factors of ``b h i d, b h j d -> b h i j`` in any order of letters."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "." in equation:
        return None
    given, _, out = equation.replace(" ", "").partition("->")
    first, _, second = given.partition(",")
    summed = [letter for letter in first if letter in second and letter not in out]
    if len(out) < 3 or len(summed) != 1 or out[-2] not in first or out[-1] not in second:
        return None
    orders = (out[:-2] + out[-2] + summed[0], first), (out[:-2] + out[-1] + summed[0], second)
    if any(sorted(wanted) != sorted(have) for wanted, have in orders):
        return None
    query, key = (
        tensor.permute([have.index(letter) for letter in wanted])
        for tensor, (wanted, have) in zip(operands, orders, strict=True)
    )
    return query, key


def _scale(query: torch.Tensor, key: torch.Tensor, logits: torch.Tensor) -> float | None:
    """The factor that makes ``logits`` of a product, [batch, query, key]; None if they are not made of it."""
    own = logits[:, :_ROWS, :_COLUMNS].double()
    product = query[:, :_ROWS].double() @ key[:, :_COLUMNS].double().transpose(1, 2)
    seen = own > -1e4  # others are masked
    own, product = own[seen], product[seen]
    size = float((product * product).sum())
    if not size:
        return None
    factor = float((own * product).sum()) / size
    usual = 1.0, query.shape[-1] ** -0.5
    factor = next((each for each in usual if abs(factor - each) < _TOLERANCE * each), factor)
    if factor not in usual:  # as many digits as its rounding leaves
        factor = float(f"{factor:.{6 if logits.dtype == torch.float32 else 3}g}")
    fits = (own - factor * product).abs().max() <= _TOLERANCE * own.abs().max()
    return factor if bool(fits) else None
