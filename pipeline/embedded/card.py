"""Write the embedded model's card from what training and evaluation left.

``python -m i2am.pipeline.embedded.card``
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from i2am.pipeline.embedded.weights import FOLDER

_TEMPLATE = Path(__file__).parent / "card.md.j2"


def write_card(folder: Path) -> None:
    """Write ``README.md`` into a pipeline folder that has ``training.json`` and ``evaluation.json``."""
    weights = sorted(folder.rglob("*.safetensors"))
    card = Environment(undefined=StrictUndefined, trim_blocks=False, autoescape=False).from_string(
        _TEMPLATE.read_text()
    )
    text = card.render(
        training=json.loads((folder / "training.json").read_text()),
        evaluation=json.loads((folder / "evaluation.json").read_text()),
        files={w.relative_to(folder).as_posix(): hashlib.sha256(w.read_bytes()).hexdigest() for w in weights},
        size=sum(w.stat().st_size for w in weights),
        parameters=sum(w.stat().st_size for w in weights) / 2,
    )
    (folder / "README.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the model card.")
    parser.add_argument("--model", type=Path, default=FOLDER, help="pipeline folder")
    write_card(parser.parse_args().model)


if __name__ == "__main__":
    main()
