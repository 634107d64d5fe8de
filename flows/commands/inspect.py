"""``i2am inspect``: what a run holds and how complete it is."""

from __future__ import annotations

from i2am.flows.commands.options import AsJson, Label, OneOrMoreRuns
from i2am.flows.console.output import emit, human_bytes, say, table


def inspect(
    run: OneOrMoreRuns,
    label: Label = False,
    as_json: AsJson = False,
) -> None:
    """What is in a run, how complete."""
    from i2am.flows.console.describe_run import describe
    from i2am.storage.reading.open import open_any

    facts = describe(open_any(run, label=label))
    if as_json:
        emit(facts)
        return
    samples = facts["samples"]
    for own in facts["runs"]:
        say(f"{own['path']}: {own['samples']} samples")
    say(f"{facts['path']}: {samples['committed']} of {samples['declared']} samples committed")
    for key, value in facts["provenance"].items():
        say(f"  {key}: {value}")
    say(f"  steps: {facts['steps']}; images: {', '.join(facts['images']) or 'none'}")
    say(f"  stored: {human_bytes(facts['bytes'])} in {facts['files']} files of samples")
    table(
        ["layer", "stored as", "dtype", "heads × dim", "generated", "reference", "key", "role"],
        [
            [
                layer["name"],
                layer["representation"],
                layer["dtype"],
                f"{layer['heads']} × {layer['head_dim']}",
                _grid(layer["gen_grid"]),
                _grid(layer["ref_grid"], layer["ref_prefix"]),
                "once" if layer["static_key"] else "each step",
                layer["role"],
            ]
            for layer in facts["layers"]
        ],
    )
    if samples["missing"]:
        say(f"missing: {', '.join(samples['missing'][:20])}{' ...' if len(samples['missing']) > 20 else ''}")


def _grid(grid: list[int], prefix: int = 0) -> str:
    places = f"{grid[0]}×{grid[1]}"
    return f"{prefix} + {places}" if prefix and grid[0] else str(prefix) if prefix else places
