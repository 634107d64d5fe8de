"""Situations of capture, each with its outcome: a stored sample that is witnessed, or a refusal in one line.

``python -m tests.pipeline.situations`` runs them all and writes ``docs/situations.md``.
"""

from __future__ import annotations

import inspect
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from i2am.pipeline.capture import capture
from i2am.storage.errors import InputError
from i2am.storage.reading.open import open_run
from tests.pipeline.kernel_spy import kernel_witness
from tests.pipeline.situation_changes import CHANGES
from tests.pipeline.situation_models import FAMILIES, Family, root_of

PAGE = Path(__file__).parents[2] / "docs" / "situations.md"


@dataclass(frozen=True)
class Situation:
    """One way to use a pipeline; ``refused`` is the line it ends in, as a regular expression."""

    family: str
    scheduler: str = ""  # the family's own
    guidance: float = 2.0
    prompts: int = 1
    images: int = 1  # of each prompt
    ids: int = 0  # declared; 0: one for each image
    change: str = ""  # made to the pipeline before the capture
    during: str = ""  # made while the sample is recorded, before or after its first step
    dtype: str = "float32"
    threads: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # of the capture
    refused: str = ""
    slow: bool = False  # left to -m slow, and to the page

    @property
    def name(self) -> str:
        facts = [(f.name, getattr(self, f.name), f.default) for f in fields(self) if f.name not in _NOT_NAMED]
        told = [f"{name} {value}" for name, value, default in facts[1:] if value != default]
        return ", ".join([self.family, *told, *(f"{k}={v}" for k, v in self.options.items())])


_NOT_NAMED = ("options", "refused", "slow")


@dataclass(frozen=True)
class Outcome:
    """How a situation ended: the refusal, or the largest differences of a logit and their limits."""

    line: str = ""
    witnessed: float = 0.0  # as the commit record says
    watched: float = 0.0  # seen by a watch that shares nothing with the project
    limit: float = 0.0
    image_equal: bool = True


# -------------------------------------------------------------------------------------------- the table

S = Situation
_UNSEEN = "declare every image of the call"
_LATE = "not what the kernel .* was given"
SITUATIONS = (
    # families, and guidance on and off
    *(S(family) for family in FAMILIES),
    *(S(family, guidance=1.0, slow=True) for family in FAMILIES if family not in ("redux", "pasd", "sdxl")),
    # schedulers
    S("sd", "EulerDiscreteScheduler"), S("sd", "HeunDiscreteScheduler"),
    *(S("sd", name, slow=True) for name in (
        "PNDMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler",
        "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
        "KDPM2DiscreteScheduler", "UniPCMultistepScheduler", "DDPMScheduler",
    )),
    S("img2img", "EulerDiscreteScheduler"),
    # rows
    S("sd", prompts=3), S("sd", images=3), S("sd", prompts=2, images=2), S("sd", images=2, guidance=1.0),
    S("ip-adapters", prompts=2),
    *(S(family, prompts=2, slow=True) for family in ("sdxl", "pix2pix", "controlnet", "paint-by-example")),
    S("kontext", images=2), S("qwen-edit", images=2),
    S("painter", prompts=2), S("ldm", prompts=2),
    *(S(family, prompts=2, slow=True) for family in ("stableviton", "seesr")),
    S("sd", images=2, ids=1, guidance=1.0, refused=_UNSEEN), S("sd", images=2, ids=1, refused=_UNSEEN),
    S("kontext", images=2, ids=1, refused=_UNSEEN), S("ldm", prompts=2, ids=1, refused=_UNSEEN),
    S("sd", prompts=3, ids=2, guidance=1.0, refused="a multiple of 2 declared samples"),
    S("sd", guidance=1.0, options={"roles": ("uncond",)}, refused="role 'uncond'"),
    # hooks, adapters and processors
    *(S("sd", change=name) for name in (
        "LoRA", "hook on to_q", "hook on attention", "offloaded weights",
        "layerwise casting", "written-out attention", "SDPA processor", "sliced processor",
        "attention slicing", "freeu", "vae tiling", "channels last",
    )),
    S("sd", change="fused projections", refused="unfuse_qkv_projections"),
    S("sd", change="processor that scales", refused=_LATE),
    S("sd", change="uneven slices"),
    S("sd", change="reference mask", guidance=1.0, refused="masked out"),
    S("ip-adapter", change="IP scale 0.3"), S("ip-adapter", change="LoRA"),
    S("ip-adapter", change="IP scale 0", refused="an IP-Adapter whose scale is not 0"),
    S("kontext", change="LoRA"), S("kontext", change="hook on to_q"),
    S("kontext", change="offloaded weights"),
    *(S(family, change=name) for family, name in (
        ("kontext", "offloaded leaves"), ("sd", "offloaded blocks"), ("kontext", "leaves on disk"),
        ("sd", "blocks on disk"), ("kontext", "layerwise casting to float8"), ("kontext", "vae tiling"),
    )),
    S("kontext", change="fused projections"), S("kontext", change="math backend"),
    S("qwen-edit", change="LoRA"), S("controlnet", change="LoRA", slow=True),
    S("sdxl", change="freeu", slow=True),
    # while a sample is recorded
    S("sd", during="LoRA before the first step", refused=_LATE),
    S("kontext", during="LoRA before the first step"),
    S("sd", during="LoRA after the first step", refused=_LATE),
    S("kontext", during="LoRA after the first step"),
    S("sd", during="hook on to_q after the first step", refused=_LATE),
    S("sd", during="written-out attention after the first step"),
    # numbers
    S("sd", dtype="bfloat16"), S("sdxl", dtype="bfloat16"), S("ip-adapter", dtype="bfloat16"),
    S("kontext", dtype="bfloat16"), S("sd", dtype="autocast"), S("kontext", dtype="autocast"),
    S("sd", dtype="float64", refused="float64"), S("sd", dtype="inference mode"),
    S("sd", dtype="bfloat16", change="written-out attention"),
    # threads
    S("sd", threads="two captures"), S("kontext", threads="two captures"),
    S("sd", threads="a bystander"), S("kontext", threads="a bystander"),
    S("sd", threads="a bystander with the same pipeline"), S("kontext", threads="a nested capture"),
    # compiled models
    *(S("sd", change=f"compiled {way}") for way in ("whole", "in place", "blocks")),
    *(S("kontext", change=f"compiled {way}") for way in ("whole", "blocks")),
    S("ip-adapter", change="compiled whole"), S("controlnet", change="compiled whole"),
    S("sd", change="compiled whole", dtype="bfloat16", prompts=2, slow=True),
)  # fmt: skip

# --------------------------------------------------------------------------------------------- to run one


def play(situation: Situation, folder: Path) -> Outcome:
    """Run a situation, and a second time under the watch."""
    family = FAMILIES[situation.family]
    pipe = _pipe(situation, family)
    path = folder / "r.zarr"
    kept: list[Any] = []
    try:
        with _threads(situation, family, pipe, folder) as beside:
            _record(situation, family, pipe, path, kept, beside)
    except InputError as error:
        line = str(error)
        return Outcome(line=line, image_equal=not kept or _equal(kept[0], _plain(situation, family)))
    watched, images = _watch(situation, family)
    witnessed, difference, limit = _compare(situation, family, path, watched)
    alike = np.allclose(kept[0], images, atol=1e-4) if situation.threads else _equal(kept[0], images)
    return Outcome("", witnessed, difference, limit, bool(alike))  # MKL may round otherwise beside a thread


def _pipe(situation: Situation, family: Family) -> Any:
    pipe = family.make()
    if situation.scheduler:
        kind = getattr(diffusers, situation.scheduler)
        wanted = {"steps_offset": 1, "skip_prk_steps": True}
        pipe.scheduler = kind(**{k: v for k, v in wanted.items() if k in inspect.signature(kind).parameters})
    if situation.dtype in ("bfloat16", "float64"):
        pipe.to(getattr(torch, situation.dtype))
    if situation.change:
        CHANGES[situation.change](pipe, family)
    return pipe


def _generate(situation: Situation, family: Family, pipe: Any) -> Any:
    dtype = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(situation.dtype, torch.float32)
    more: dict[str, Any] = {}
    what, _, when = situation.during.partition(" before ")
    if when:
        CHANGES[what](pipe, family)
    what, _, when = situation.during.partition(" after ")
    if when:

        def change(pipe: Any, step: int, timestep: Any, values: Any) -> Any:
            if step == 0:
                CHANGES[what](pipe, family)
            return values

        more["callback_on_step_end"] = change
    with torch.autocast("cpu", torch.bfloat16) if situation.dtype == "autocast" else nullcontext():
        mode = torch.inference_mode() if situation.dtype == "inference mode" else nullcontext()
        with mode:
            return family.run(pipe, situation.prompts, situation.images, situation.guidance, dtype, **more)


def _record(
    situation: Situation, family: Family, pipe: Any, path: Path, kept: list[Any], beside: Callable[[], None]
) -> None:
    ids = [f"s{i}" for i in range(situation.ids or situation.prompts * situation.images)]
    options = {"adapter": family.adapter, **situation.options}
    with capture(pipe, path, samples=ids, **options) as cap, cap.samples(ids) as handles:
        beside()
        kept.append(_generate(situation, family, pipe))
        for handle, image in zip(handles, kept[0], strict=False):
            handle.generated = image


@contextmanager
def _threads(situation: Situation, family: Family, pipe: Any, folder: Path) -> Iterator[Callable[[], None]]:
    """What runs beside the capture; the function given is called inside its sample."""
    plain = Situation(situation.family)
    with ExitStack() as exits:
        if situation.threads == "a nested capture":
            cap = exits.enter_context(
                capture(pipe, folder / "outer.zarr", samples=["x"], adapter=family.adapter)
            )
            exits.enter_context(cap.sample("x"))
        other = family.make() if situation.threads in ("two captures", "a bystander") else pipe
        if situation.threads == "two captures":
            target = lambda: _record(plain, family, other, folder / "other.zarr", [], lambda: None)  # noqa: E731
        elif situation.threads.startswith("a bystander"):
            target = lambda: _generate(plain, family, other)  # noqa: E731
        else:
            target = None
        if target is None:
            yield lambda: None
            return
        thread = threading.Thread(target=target)
        exits.callback(lambda: thread.join())
        same = "same pipeline" in situation.threads  # its modules hold state of one call
        yield lambda: (thread.start(), thread.join() if same else None)  # type: ignore[arg-type, return-value]


def _plain(situation: Situation, family: Family) -> Any:
    return _generate(situation, family, _pipe(situation, family))


def _watch(situation: Situation, family: Family) -> tuple[dict[str, list[Any]], Any]:
    """Every forward's kernel calls by layer, and the images, of a generation without capture."""
    pipe, found = _pipe(situation, family), {}
    with pytest.MonkeyPatch.context() as patch, ExitStack() as watches:
        seen = {
            prefix: watches.enter_context(kernel_witness(root_of(pipe, attribute), family.path, patch))
            for attribute, prefix in family.roots
        }
        with torch.compiler.set_stance("force_eager"):
            images = _generate(situation, family, pipe)
    for prefix, forwards in seen.items():
        found |= {f"{prefix}{name}": calls for name, calls in forwards.items()}
    return found, images


def _compare(
    situation: Situation, family: Family, path: Path, watched: dict[str, list[Any]]
) -> tuple[float, float, float]:
    """Largest differences that capture has recorded and that the watch has seen, and what they may be."""
    run = open_run(path)
    witness, difference, limit = 0.0, 0.0, np.inf
    used = set()
    for layer, spec in run.layers.items():
        name, _, part = layer.partition("@")
        module, _, adapter = name.partition(".processor.to_k_ip.")
        forwards = watched[module][:: 2 if family.separate and situation.guidance > 1 else 1]
        used.add(module)
        number = int(adapter) + 1 if adapter else 0
        own = np.stack(
            [_rows(family, spec, forward, number, len(run.samples)) for forward in forwards], axis=1
        )
        if family.joint is not None:
            gen, ref = family.joint(spec, int(part.removeprefix("reference-") or 0))
            own = own[..., gen : gen + spec.gen, ref : ref + spec.ref]
        stored = run.scores(layer).compute()
        assert stored.shape == own.shape, (layer, stored.shape, own.shape)
        eps = float(torch.finfo(getattr(torch, spec.dtype)).eps)
        limit = min(limit, 16 * eps * max(1.0, float(np.abs(own).max())))
        difference = max(difference, float(np.abs(stored - own).max()))
        for sample in run.samples:
            agreed = run.record(sample)["witness"][layer]
            assert agreed["unwitnessed_steps"] == 0 < agreed["rows"], (layer, agreed)
            witness = max(witness, agreed["largest_difference"])
    assert used == set(watched), "layers that were not stored"
    return witness, difference, limit


def _rows(family: Family, spec: Any, forward: list[Any], number: int, samples: int) -> np.ndarray:
    """Logits [sample, head, gen, ref] of the conditional rows of one forward of a layer."""
    if forward[0].logits.ndim == 3:  # a softmax that is written out, in slices
        logits = torch.cat([call.logits for call in forward]).unflatten(0, (-1, spec.heads))
    else:
        logits = forward[number].logits
    rows = slice(samples) if family.cond_first else slice(-samples, None)
    return logits[rows].double().numpy()


def _equal(one: Any, other: Any) -> bool:
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True))


def check(situation: Situation, outcome: Outcome) -> None:
    """The outcome is the one that the table states; there is no third."""
    assert outcome.image_equal, "capture has changed the image"
    if situation.refused:
        assert re.search(situation.refused, outcome.line), outcome.line or "captured"
        assert "\n" not in outcome.line
    else:
        assert not outcome.line, outcome.line
        assert outcome.witnessed <= outcome.limit
        assert outcome.watched <= outcome.limit


# ------------------------------------------------------------------------------------------------ the page

_HEAD = """# Situations

What happens when a pipeline is used in one of these ways, tried with small models of the real classes. The
sample is stored, and its logits are those that the attention kernel was given; or it is refused, in the line
shown. There is no third outcome. *Witnessed* is the largest difference of a logit in the commit record,
*watched* that of a watch at the kernel which shares nothing with the project. Made by
`python -m tests.pipeline.situations`; the tests run the same table.

| situation | outcome | witnessed | watched | limit |
|---|---|---|---|---|
"""


def row(situation: Situation, outcome: Outcome | None = None) -> str:
    """A line of the page; without an outcome, as much as the table itself says."""
    start = f"| {situation.name} | {'refused' if situation.refused else 'captured'} |"
    if outcome is None:
        return start
    if outcome.line:
        return f"{start} {outcome.line.replace('|', '/')} | | |"
    return f"{start} {outcome.witnessed:.1e} | {outcome.watched:.1e} | {outcome.limit:.1e} |"


def write_page(path: Path = PAGE) -> None:
    """Run every situation and write the page."""
    lines = []
    for situation in SITUATIONS:
        with tempfile.TemporaryDirectory() as folder:
            outcome = play(situation, Path(folder))
        check(situation, outcome)
        lines.append(row(situation, outcome))
    path.write_text(_HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what diffusers says of its own
    write_page()
