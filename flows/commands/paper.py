"""``i2am paper``: the paper's experiments on the embedded model, and a page of what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from i2am.flows.commands import options
from i2am.flows.console.output import print_json, print_line


def paper(
    out: Annotated[Path, typer.Option(help="Folder of the run, the experiments and the page.")] = Path(
        "out/paper"
    ),
    samples: Annotated[int, typer.Option(min=2, help="Held-out scenes.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Denoiser steps.")] = 20,
    prefect: options.Prefect = False,
    direct: options.Direct = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Detection, quality and faithfulness on the embedded model, beside the paper's numbers.

    Run it again after an interruption: what is done stays.
    """
    from i2am.flows.console.progress import show_progress
    from i2am.flows.prefect.choose import as_flow
    from i2am.flows.subprocesses import termination_interrupts

    through_prefect = as_flow(prefect, direct)
    with show_progress(quiet), termination_interrupts():
        if through_prefect:
            from i2am.flows.prefect.server import prefect_server

            with prefect_server(shows=(str(out),)):
                from i2am.flows.prefect.paper_flow import paper_flow

                made = paper_flow(str(out), samples, steps)
        else:
            from i2am.flows.experiments.paper.experiments import make_paper

            made = make_paper(out, samples, steps)
    if as_json:
        print_json(made)
    else:
        print_line(f"page: {made['page']}")
