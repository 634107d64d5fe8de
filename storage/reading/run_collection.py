"""`Runs`: several runs read as one, such as the shards or the resolution buckets of a sweep."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from i2am.storage.errors import EmptyRun, InputError, ShapeMismatch, UnknownName
from i2am.storage.format.block import Block
from i2am.storage.format.header import Timestep
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.index_selection import Indices
from i2am.storage.reading.compatibility import check_compatible, describe_geometries, geometry
from i2am.storage.reading.run import Run

if TYPE_CHECKING:
    import dask.array as da

Array = np.ndarray[Any, Any]


class Runs:
    """The samples of several runs of one model, one run after the other, read as those of one run.

    Layers have the same names and heads in all of them, and there are as many steps. Grids may differ: then
    maps, which are densities, are made at one size, and scores cannot be put together. Pickled it carries its
    members, which are cheap, and nothing else.

    Parameters
    ----------
    members : sequence of Run
        At least one.

    Raises
    ------
    EmptyRun
        If there is no member.
    InputError
        If two members hold one sample, or differ in their layers or in their number of steps.
    """

    def __init__(self, members: Sequence[Run]) -> None:
        self.members = tuple(members)
        if not self.members:
            raise EmptyRun("no runs", expected="at least one", remedy="name some")
        for member in self.members[1:]:
            check_compatible(self.members[0], member)
        self._check_ids()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the index of samples behind."""
        return {"members": self.members}

    def __repr__(self) -> str:
        return f"<Runs {self.path}: {len(self.samples)} of {len(self.declared)} samples>"

    def _check_ids(self) -> None:
        if len(self._homes) == len(self.samples):
            return
        seen: dict[str, Run] = {}
        for member in self.members:
            for sample in member.samples:
                if sample in seen:
                    raise InputError(
                        f"sample {sample!r} is in two runs",
                        expected="every id once",
                        got=f"{seen[sample].path} and {member.path}",
                        remedy="leave one of them out, or name samples RUN/SAMPLE: label=True, or --label",
                    )
                seen[sample] = member

    @cached_property
    def _homes(self) -> dict[str, Run]:
        return {sample: member for member in self.members for sample in member.samples}

    @property
    def path(self) -> str:
        """The paths of the members, in words."""
        first, last = self.members[0].path, self.members[-1].path
        count = len(self.members)
        if count < 3:
            return " and ".join(member.path for member in self.members)
        return f"{first} … {last} ({count} runs)"

    @property
    def name(self) -> str:
        """The names of the members, in words."""
        names = [member.name for member in self.members]
        return ", ".join(names) if len(names) < 4 else f"{names[0]} … {names[-1]}, {len(names)} runs"

    @property
    def run_id(self) -> str:
        """An id that depends on the members, their order and their samples."""
        found = hashlib.sha256()
        for member in self.members:
            found.update("\n".join((member.run_id, *member.samples, "")).encode())
        return f"runs-{found.hexdigest()[:32]}"

    @cached_property
    def samples(self) -> tuple[str, ...]:
        """Ids of the committed samples, member by member."""
        return tuple(sample for member in self.members for sample in member.samples)

    @property
    def declared(self) -> tuple[str, ...]:
        """Ids of all samples that the runs shall have; once where several runs declare one."""
        return tuple(dict.fromkeys(sample for member in self.members for sample in member.declared))

    @property
    def layers(self) -> Mapping[str, LayerSpec]:
        """Layer name to specification in the first run; grids, dtypes and storage may differ in others."""
        return MappingProxyType(dict(self.members[0].layers))

    @property
    def timesteps(self) -> tuple[Timestep, ...]:
        """The scheduler's value for each step; NaN where the runs do not agree."""
        every = zip(*(member.timesteps for member in self.members), strict=True)
        return tuple(values[0] if len(set(values)) == 1 else float("nan") for values in every)

    @property
    def attrs(self) -> dict[str, Any]:
        """Those attributes that are the same in all runs."""
        first, *others = (member.attrs for member in self.members)
        absent = object()
        return {
            key: value
            for key, value in first.items()
            if all(other.get(key, absent) == value for other in others)
        }

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images that every run has."""
        first, *others = (member.images for member in self.members)
        return tuple(name for name in first if all(name in other for other in others))

    @property
    def onegeometry(self) -> bool:
        """Whether every layer has the same grids in all runs."""
        first = self.members[0].layers
        return all(len({geometry(member.layers[name]) for member in self.members}) == 1 for name in first)

    def home(self, sample: str) -> Run:
        """Return the run that holds a sample.

        Parameters
        ----------
        sample : str
            A committed sample.

        Returns
        -------
        Run
            One of the members.

        Raises
        ------
        UnknownName
            If there is no such sample.
        """
        if sample not in self._homes:
            remedy = "it is declared, but not committed yet" if sample in self.declared else None
            raise UnknownName("sample", sample, self.samples, remedy=remedy)
        return self._homes[sample]

    def spec(self, layer: str | LayerSpec) -> LayerSpec:
        """Return a layer of the first run; see `Run.spec`."""
        return self.members[0].spec(layer)

    def step_group(self, layer: str | LayerSpec) -> int:
        """Return how many steps share a stored chunk in every run at least; see `Run.step_group`."""
        return min(member.step_group(layer) for member in self.members)

    def scores(self, layer: str | LayerSpec) -> da.Array:
        """Return the scaled logits of all committed samples, lazily.

        Parameters
        ----------
        layer : str or LayerSpec
            Name of a layer.

        Returns
        -------
        dask.array.Array
            (sample, step, head, gen, ref) float32.

        Raises
        ------
        UnknownName
            If there is no such layer.
        ShapeMismatch
            If the runs have different grids.
        """
        return self._together("scores", layer)

    def lse(self, layer: str | LayerSpec) -> da.Array:
        """Return the log-sum-exp of each row of a joint softmax, (sample, step, head, gen); see `Run.lse`."""
        return self._together("lse", layer)

    def value_norm(self, layer: str | LayerSpec) -> da.Array:
        """Return the norms of W_o v, (sample, step or 1, head, ref); see `Run.value_norm`."""
        return self._together("value_norm", layer)

    def contribution(self, layer: str | LayerSpec) -> da.Array:
        """Return what the reference adds, (sample, step, gen); see `Run.contribution`."""
        return self._together("contribution", layer)

    def _together(self, what: str, layer: str | LayerSpec) -> da.Array:
        import dask.array as da

        name = self.spec(layer).name
        found = {geometry(member.layers[name]): member.path for member in self.members}
        if len(found) > 1:
            raise ShapeMismatch(
                f"{what} of layer {name!r}",
                expected="one geometry in all runs",
                got=describe_geometries(found),
                remedy="ask for maps, which can be made at one size, or take runs.home(sample) one by one",
            )
        return da.concatenate([getattr(member, what)(name) for member in self.members])

    def read(
        self, layer: str | LayerSpec, sample: str, steps: Indices = None, heads: Indices = None
    ) -> Block:
        """Read some steps and heads of one sample now; see `Run.read`."""
        return self.home(sample).read(layer, sample, steps, heads)

    def read_kind(
        self, spec: LayerSpec, kind: str, sample: str, steps: Sequence[int], heads: Sequence[int]
    ) -> Array:
        """Read one stored array; see `Run.read_kind`."""
        home = self.home(sample)
        return home.read_kind(home.spec(spec), kind, sample, steps, heads)

    def image(self, name: str, sample: str) -> Array:
        """Return one image (y, x, channel) of a sample; see `Run.image`."""
        return self.home(sample).image(name, sample)

    def record(self, sample: str) -> dict[str, Any]:
        """Return the commit record of a sample, as its run has it; see `Run.record`."""
        return self.home(sample).record(sample)

    def fingerprint(self, sample: str) -> str:
        """Return a digest that changes whenever the sample's data would; see `Run.fingerprint`."""
        return self.home(sample).fingerprint(sample)

    def files(self, sample: str) -> dict[str, int]:
        """Return the files of a sample, below its own run; see `Run.files`."""
        return self.home(sample).files(sample)

    def check(self, sample: str) -> None:
        """Check cheaply that a sample can be trusted; see `Run.check`."""
        self.home(sample).check(sample)


AnyRun = Run | Runs
"""What an analysis can be asked about."""


def members_of(run: AnyRun) -> tuple[Run, ...]:
    """Return the runs that `run` consists of."""
    return run.members if isinstance(run, Runs) else (run,)


def home_of(run: AnyRun, sample: str) -> Run:
    """Return the run that holds a sample; it is cheap to pickle."""
    return run.home(sample) if isinstance(run, Runs) else run


def distinct_layers(run: AnyRun) -> list[LayerSpec]:
    """Return the layers of all members; a layer comes again where it differs from run to run."""
    members = members_of(run)
    return list(dict.fromkeys(own.layers[name] for name in members[0].layers for own in members))
