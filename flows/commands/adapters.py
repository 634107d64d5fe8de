"""``i2am adapters``: what can be captured, and how each pipeline of diffusers sees its image."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from i2am.flows.commands.options import AsJson
from i2am.flows.console.output import print_json, print_line, print_table


def adapters(
    pipelines: Annotated[
        bool, typer.Option("--pipelines", help="Also how each pipeline of diffusers sees its image.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Adapters at hand; how each pipeline of diffusers sees its image."""
    from i2am.flows.capture.load_pipeline import check_installed

    check_installed()
    from i2am.pipeline.adapters.census import MECHANISMS, census
    from i2am.pipeline.adapters.registry import described

    facts: dict[str, Any] = {"adapters": described()}
    if pipelines:
        facts["mechanisms"] = MECHANISMS
        facts["pipelines"] = [
            {
                "pipeline": entry.pipeline,
                "mechanisms": entry.mechanisms,
                "attended": entry.attended,
                "adapter": entry.adapter,
                "ip_adapter": entry.ip_adapter,
                "answer": entry.answer,
            }
            for entry in census().values()
        ]
    if as_json:
        print_json(facts)
        return
    columns = ["adapter", "reads", "from", "serves"]
    print_table(columns, [[each[column] for column in columns] for each in facts["adapters"]])
    if pipelines:
        rows = [[row["pipeline"], ", ".join(row["mechanisms"]), row["answer"]] for row in facts["pipelines"]]
        print_table(["pipeline", "its image", "answered by"], rows)
        for word, says in MECHANISMS.items():
            print_line(f"{word}: {says}")
