"""``i2am inspect``: what a run holds and how complete it is."""

from __future__ import annotations

from i2am.flows.commands.options import AsJson, Label, OneOrMoreRuns
from i2am.flows.console.output import counted, human_bytes, print_json, print_line, print_table


def inspect(run: OneOrMoreRuns, label: Label = False, as_json: AsJson = False) -> None:
    """What is in a run, how complete."""
    from i2am.flows.console.describe_run import describe
    from i2am.storage.format.layer_spec import OPTIONAL
    from i2am.storage.reading.open import open_any

    facts = describe(open_any(run, label=label))
    if as_json:
        print_json(facts)
        return
    samples, missing = facts["samples"], facts["samples"]["missing"]
    for own in facts["runs"]:
        print_line(f"{own['path']}: {counted(own['samples'], 'sample')}")
    print_line(
        f"{facts['path']}: {samples['committed']} of {counted(samples['declared'], 'sample')} committed"
    )
    for key, value in facts["provenance"].items():
        print_line(f"  {key}: {value}")
    print_line(f"  steps: {facts['steps']}; images: {', '.join(facts['images']) or 'none'}")
    print_line(f"  stored: {human_bytes(facts['bytes'])} in {counted(facts['files'], 'file')} of samples")
    print_line(f"  witness: {facts['witness']['summary']}")
    print_table(
        ["layer", "stored as", "dtype", "heads × dim", "generated", "reference", "key", "norms", "role"],
        [
            [
                *(layer[key] for key in ("name", "representation", "dtype")),
                f"{layer['heads']} × {layer['head_dim']}",
                _grid(layer["gen_grid"]),
                _grid(layer["ref_grid"], layer["ref_prefix"]),
                "once" if layer["static_key"] else "each step",
                ", ".join(kind.replace("_norm", "") for kind in OPTIONAL if layer.get(kind)) or "none",
                layer["role"],
            ]
            for layer in facts["layers"]
        ],
    )
    if missing:
        print_line(f"missing: {', '.join(missing[:20])}{' ...' if len(missing) > 20 else ''}")


def _grid(grid: list[int], prefix: int = 0) -> str:
    places = f"{grid[0]}×{grid[1]}"
    return f"{prefix} + {places}" if prefix and grid[0] else str(prefix) if prefix else places
