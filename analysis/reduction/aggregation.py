"""A reduction over attention, declared once: chunk, combine, finalize.

A declaration says what to do with a piece of the attention of one layer and sample (chunk), how two pieces
become one (combine), and how the result is made from the whole (finalize). `i2am.analysis.reduction.reduce`
runs it in pieces of bounded size, and the result must not depend on where the attention was cut. The design
follows flox's aggregations.

A user's own declaration is a few lines in any file::

    import numpy as np
    from i2am import Aggregation

    def chunk(attention):
        p = attention.probabilities("g2r")                       # (step, head, gen, ref)
        return -(p * np.log(p + 1e-12)).sum(-1).mean(-1)         # (step, head)

    my_entropy = Aggregation("my_entropy", chunk, units="nats")

run with ``i2am analyze RUN --aggregation mymodule:my_entropy``.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.reduction.attention import Attention
from i2am.storage.errors import AggregationError, InputError
from i2am.storage.format.layer_spec import LayerSpec

Array = NDArray[Any]
# What a chunk becomes: an array or several, each with the kept axes in front.
State = Array | tuple[Array, ...]
Over = Literal["scores", "marginals", "logits"]
AXES = ("step", "head", "gen")  # axes along which attention may be cut
TOKENS = ("gen", "ref")  # axes that are places in an image; a result that has one is a map


def add(left: State, right: State) -> State:
    """Combine by addition, member by member."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        return tuple(a + b for a, b in zip(left, right, strict=True))
    return np.add(left, right)


def unchanged(state: State, layer: LayerSpec) -> Array:
    """Finalize a state that is the result already."""
    if isinstance(state, tuple):
        raise TypeError("a state of several arrays needs a finalize function")
    return state


def ratio(state: State, layer: LayerSpec) -> Array:
    """Finalize (sum, weight) as a mean; NaN where the weight is 0."""
    total, weight = state
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.asarray(total, dtype=np.float64) / weight)


@dataclass(frozen=True)
class Aggregation:
    """A reduction over the attention of one layer and sample.

    Attributes
    ----------
    name
        Letters, digits, dots, dashes and underscores; the name of the result's array, table and section.
    chunk
        `Attention` to a state.
    over
        What `Attention` holds. "scores": logits and softmaxes of some steps and heads, all tokens, in pieces
        of at most `reduce.PIECE_BYTES`, unless one head of one step has more. "marginals": the means of both
        softmaxes, from the derived store. "logits": query and key as they were read, for kernels that tile
        by themselves.
    keep
        Leading axes of each array of the state, in the order step, head, gen. Pieces are put side by side
        along these, and combined along the others.
    combine
        Two states, of neighbouring pieces, to one; associative.
    finalize
        State and layer to the result, an array with the axes `dims`.
    dims
        Axes of the result; as `keep` if None. "step" and "head" are those of the run; "gen" and "ref" (one of
        the two) make it a map on the generated image or on the reference, and must be all generated patches,
        or all reference tokens with a place; any other needs `labels`, or is "other_head".
    labels
        Labels of axes other than those above.
    rows
        The chunk treats generated patches one by one, so that a plane may come in pieces along gen.
    place
        The aggregation needs positions in the reference: layers whose tokens have none are left out. Implied
        by "ref".
    units, title
        Text for figures and reports; the title is the name if it is empty.
    """

    name: str
    chunk: Callable[[Attention], State]
    over: Over = "scores"
    keep: tuple[str, ...] = ("step", "head")
    combine: Callable[[State, State], State] = add
    finalize: Callable[[State, LayerSpec], Array] = unchanged
    dims: tuple[str, ...] | None = None
    labels: Mapping[str, Sequence[str | float]] = field(default_factory=dict)
    rows: bool = False
    place: bool = False
    units: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        """Check the declaration, so that mistakes show when it is made."""
        if not re.fullmatch(r"[A-Za-z_][\w.-]{0,99}", self.name):
            self._refuse("name", "letters, digits, dots, dashes, underscores; a letter first", self.name)
        if self.over not in ("scores", "marginals", "logits"):
            self._refuse("over", "scores, marginals or logits", self.over)
        if tuple(axis for axis in AXES if axis in self.keep) != tuple(self.keep):
            self._refuse("keep", "some of step, head, gen, in this order", self.keep)
        known = {"step", "head", "gen", "ref", "other_head", *self.labels}
        unknown = [axis for axis in self.axes if axis not in known]
        if unknown or len(set(self.axes)) != len(self.axes):
            self._refuse("dims", f"each once, of {', '.join(sorted(known))}", self.axes)
        if len([axis for axis in self.axes if axis in TOKENS]) > 1:
            self._refuse("dims", "one of gen and ref: a map lies on one image", self.axes)
        for part in ("chunk", "combine", "finalize"):
            if not callable(getattr(self, part)):
                self._refuse(part, "a function", getattr(self, part))

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes of the result."""
        return tuple(self.keep if self.dims is None else self.dims)

    @property
    def words(self) -> str:
        """Title, or the name."""
        return self.title or self.name

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle functions of a user's own file whole: plain pickle would look for the file on a worker."""
        import cloudpickle

        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return _restore, (self.name, cloudpickle.dumps(parts))

    def _refuse(self, what: str, expected: str, got: object) -> None:
        raise InputError(f"aggregation {self.name!r}: {what}", expected=expected, got=repr(got))


def _restore(name: str, data: bytes) -> Aggregation:
    """Load on a worker; a failure is raised by the task, because an error here would end the worker."""
    try:
        return Aggregation(**pickle.loads(data))
    except Exception as error:  # noqa: BLE001 - raised by the task, below
        reason = f"{type(error).__name__}: {error}"

    def refuse(attention: Attention) -> State:
        raise AggregationError(
            f"aggregation {name!r} cannot be loaded by a worker",
            got=reason,
            remedy="keep what it imports in its own folder, or install that on the workers",
        )

    return Aggregation(name, refuse)
