"""The witness: what is about to be stored, compared with what the attention kernel was given.

A few rows of every layer, sample, role and step are compared: logits with scale and mask, in float32, and
the numbers of rows, heads and tokens. What agrees is recorded in the commit record; what differs refuses the
sample.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from i2am.pipeline.recording.batch_rows import SampleAttention
from i2am.pipeline.taps.kernels import KernelCall
from i2am.pipeline.taps.projections import QueryKey
from i2am.storage.errors import CaptureError

GEN_ROWS, REF_COLUMNS = 4, 64
"""Generated tokens, and reference tokens of each, that are compared at a step."""

Array = NDArray[Any]
Submit = Callable[[torch.Tensor, Callable[[Array], None]], None]


@dataclass(slots=True)
class Agreement:
    """What was compared of one layer of a sample."""

    kernel: str = ""
    largest: float = 0.0  # largest difference of a logit
    rows: int = 0  # of logits that were compared
    steps: int = 0  # witnessed
    unseen: int = 0  # steps not witnessed

    def to_json(self) -> dict[str, Any]:
        facts = {"kernel": self.kernel or None, "steps": self.steps, "rows": self.rows}
        return {**facts, "largest_difference": self.largest, "unwitnessed_steps": self.unseen}


@dataclass(slots=True, eq=False)
class Part:
    """One layer of one sample and role at one step: both sides of a comparison, [head, gen, ref]."""

    name: str
    sample: int
    step: int
    row: int
    heads: tuple[int, ...]
    stored: Array | None = None
    block: torch.Tensor | None = None
    seen: Array | None = None
    kernel: str = ""
    precision: float = 0.0  # of the kernel's logits
    rounding: float = 0.0  # of a stored key that stands for one rounded otherwise


@dataclass(slots=True, eq=False)
class Expected:
    """A layer whose query and key were tapped, and whose kernel call is to come."""

    rows: int  # this and the next three: the size of the kernel's logits
    heads: int
    gen: int
    ref: int
    gen_start: int  # where the stored tokens begin among the kernel's
    ref_start: int
    gen_stored: int  # how many tokens are stored
    ref_stored: int
    shares_call: bool = False  # with other layers of the store: several references in one joint sequence
    parts: list[Part] = field(default_factory=list)
    taken: int = 0

    @classmethod
    def of(cls, layer: QueryKey) -> Expected:
        rows, gen, heads, _ = layer.query.shape
        ref = layer.key.shape[1]
        totals = layer.tokens or (gen, ref)
        return cls(rows, heads, *totals, layer.gen_start, layer.ref_start, gen, ref, layer.tokens is not None)

    def add(self, part: SampleAttention, step: int) -> Part:
        self.parts.append(Part(part.spec.name, part.sample, step, part.row, part.heads))
        return self.parts[-1]

    def take(self, call: KernelCall, gen: torch.Tensor, ref: torch.Tensor) -> bool:
        """Keep the rows of a kernel call that are compared; return whether the call is complete."""
        if call.logits is not None:
            return self._take_logits(call, call.logits, gen, ref)
        if call.query is None or call.key is None:
            return False
        query, key = call.query.detach(), call.key.detach()
        if query.shape[1] == 1 and query.shape[0] == self.rows * self.heads:  # heads are among the rows
            query, key = (x.reshape(self.rows, self.heads, *x.shape[2:]) for x in (query, key))
        if (*query.shape[:3], key.shape[2]) != (self.rows, self.heads, self.gen, self.ref):
            return False
        for part in self.parts:
            heads = list(part.heads)
            q, k = query[part.row, heads][:, gen].float(), key[part.row, heads][:, ref].float()
            part.block = q @ k.transpose(-1, -2) * call.scale
            part.kernel, part.precision = call.kernel, torch.finfo(torch.float32).eps
            if call.mask is not None:
                mask = call.mask.expand(self.rows, self.heads, self.gen, self.ref)
                mask = mask[part.row, heads][:, gen][:, :, ref]
                boolean = mask.dtype == torch.bool
                part.block = part.block.masked_fill(~mask, -torch.inf) if boolean else part.block + mask
        return True

    def _take_logits(
        self, call: KernelCall, logits: torch.Tensor, gen: torch.Tensor, ref: torch.Tensor
    ) -> bool:
        count, total = logits.shape[0], self.rows * self.heads
        if tuple(logits.shape[1:]) != (self.gen, self.ref) or self.taken + count > total:
            return False
        for part in self.parts:
            part.kernel, part.precision = call.kernel, float(torch.finfo(logits.dtype).eps)
            wanted = [part.row * self.heads + head - self.taken for head in part.heads]
            if part.block is None:
                part.block = torch.full((len(wanted), len(gen), len(ref)), torch.nan, device=logits.device)
            here = [place for place, flat in enumerate(wanted) if 0 <= flat < count]
            if here:
                chosen = logits[[wanted[place] for place in here]]
                part.block[here] = chosen[:, gen][:, :, ref].float()
        self.taken += count  # sliced attention makes a call for each slice of rows and heads
        return self.taken >= total


class Witness:
    """Compares one generation's stored attention with its kernels."""

    def __init__(self, submit: Submit, seed: int = 0) -> None:
        self._submit, self._random = submit, random.Random(seed)
        self._expected: dict[Any, list[Expected]] = {}
        self._places: dict[tuple[int, int, int], tuple[list[int], list[int]]] = {}
        self._on_device: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self.agreements: dict[tuple[int, str], Agreement] = {}

    def places(self, step: int, gen: int, ref: int) -> tuple[list[int], list[int]]:
        """Generated and reference tokens that are compared at a step, drawn anew for each."""
        key = step, gen, ref
        if key not in self._places:
            draw = self._random.sample
            self._places[key] = draw(range(gen), min(gen, GEN_ROWS)), draw(range(ref), min(ref, REF_COLUMNS))
        return self._places[key]

    def expect(self, module: Any, expected: Expected) -> None:
        """A layer was tapped; the next kernel call of its module that fits is its own."""
        self._expected.setdefault(module, []).append(expected)

    def stored(self, part: Part, query: Array, key: Array, scale: float, rounding: float = 0.0) -> None:
        """Query and key [head, token, dim] of a part are about to be stored; ``rounding`` is the key's."""
        part.rounding = rounding
        rows, columns = self.places(part.step, query.shape[1], key.shape[1])
        q, k = query[:, rows].astype(np.float32), key[:, columns].astype(np.float32)
        part.stored = q @ k.transpose(0, 2, 1) * np.float32(scale)
        self._compare(part)

    def called(self, module: Any, call: KernelCall) -> None:
        """A kernel was called inside an attention module."""
        for expected in tuple(self._expected.get(module, ())):
            step = expected.parts[0].step
            device = (call.query if call.query is not None else call.logits).device  # type: ignore[union-attr]
            gen, ref = self._indices(step, expected, device)
            with torch.autocast(device.type, enabled=False):
                complete = expected.take(call, gen, ref)
            if complete:
                self._expected[module].remove(expected)
                for part in expected.parts:
                    self._submit(part.block, partial(self._seen, part))  # type: ignore[arg-type]
            if (complete or expected.taken) and not expected.shares_call:
                return

    def module_ended(self, module: Any) -> None:
        """An attention module has run: what no kernel call fitted stays unwitnessed."""
        for expected in self._expected.pop(module, ()):
            for part in expected.parts:
                self._agreement(part).unseen += 1

    def of_sample(self, sample: int) -> dict[str, Any]:
        """What the commit record says of a sample: layer to its agreement."""
        return {layer: found.to_json() for (of, layer), found in self.agreements.items() if of == sample}

    def _indices(
        self, step: int, expected: Expected, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens that are compared, by their places in the kernel's sequence."""
        key = step, expected.gen_stored, expected.ref_stored, expected.gen_start, expected.ref_start, device
        if key not in self._on_device:
            if len(self._on_device) > 64:
                self._on_device.clear()
            rows, columns = self.places(step, expected.gen_stored, expected.ref_stored)
            gen = torch.tensor(rows, device=device) + expected.gen_start
            self._on_device[key] = gen, torch.tensor(columns, device=device) + expected.ref_start
        return self._on_device[key]

    def _seen(self, part: Part, block: Array) -> None:
        part.seen, part.block = block, None
        self._agreement(part).kernel = part.kernel
        self._compare(part)

    def _agreement(self, part: Part) -> Agreement:
        return self.agreements.setdefault((part.sample, part.name), Agreement())

    def _compare(self, part: Part) -> None:
        """Compare once both sides are there."""
        stored, seen = part.stored, part.seen
        if stored is None or seen is None:
            return
        difference = float(np.abs(stored - seen).max()) if stored.shape == seen.shape else np.inf
        size = max(1.0, float(np.abs(stored[np.isfinite(stored)]).max(initial=0.0)))
        agreement = self._agreement(part)
        agreement.steps, agreement.rows = (
            agreement.steps + 1,
            agreement.rows + stored.shape[0] * stored.shape[1],
        )
        agreement.largest = max(agreement.largest, difference)
        if not difference <= max(16 * part.precision, 4 * part.rounding) * size:
            masked = bool((seen - stored < -1000).any())  # -inf, or the large number added for it
            worst = np.unravel_index(
                np.nanargmax(np.abs(np.where(np.isfinite(seen), stored - seen, 0))), stored.shape
            )
            raise CaptureError(
                f"layer {part.name!r}, step {part.step}: what was about to be stored is not what the kernel "
                f"{agreement.kernel} was given",
                expected="a logit masked out" if masked else f"logit {seen[worst]:.6g}",
                got=f"{stored[worst]:.6g}" if not masked else "reference tokens without a mask",
                remedy="leave the layer out with layers=; something changes query, key or mask after the "
                "projections: a LoRA, a processor or a hook that came after the capture began",
            )
        part.stored = part.seen = None
