"""Write the embedded model's card from what training and evaluation left: ``python -m pipeline.embedded.card``."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pipeline.embedded.weights import FOLDER

_CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: image-to-image
---
# Reference painter

A small reference-conditioned inpainting model: it paints the object of a reference image into the masked part
of a scene. It exists so that attention capture and attribution can be tried, tested and taught on a real, trained
diffusers pipeline in minutes on a laptop. {{ "%.1f" | format(parameters / 1e6) }} million parameters,
{{ "%.1f" | format(size / 1e6) }} MB of float16 safetensors, 64 by 64 pixels, 256 reference tokens (16 by 16 patches),
seven cross-attention layers (three at 16 by 16 positions, four at 8 by 8), four heads each.

## Data

Procedural scenes (`pipeline/embedded/scenes.py`), drawn on the fly, none twice: seven outlines, six two-colour
patterns, any colours, on muted backgrounds among 4 to 7 plain distractors. The reference shows the same object
somewhere else, at another size; the mask is its silhouette, or its box, with a margin. Training scenes have seeds from
1,000,000 on; evaluation uses seeds 0 to {{ evaluation.scenes - 1 }}.

## Training

{{ training.steps }} steps of {{ training.batch_size }} scenes ({{ training.steps * training.batch_size }} images) on
{{ training.device }}; AdamW, peak learning rate {{ training.peak_learning_rate }}, 200 steps of warm-up, linear decay over the last 30%;
running average of the weights (0.998); v-prediction with zero terminal signal-to-noise ratio; late steps drawn more
often; 10% of references dropped for guidance. The loss is the mean squared error of v, pixels outside the
mask counting a twentieth. Attention was never supervised.

| step | loss (smoothed) |
|---|---|
{% for row in training.losses -%}
| {{ row.step }} | {{ "%.4f" | format(row.loss) }} |
{% endfor %}
Train it again, on a GPU if there is one, else on the CPU (about an hour and a half on two cores); stop and go on at will:

    python -m pipeline.embedded.train --out out/training --steps {{ training.steps }}
    python -m pipeline.embedded.evaluate --model out/training/model
    python -m pipeline.embedded.card --model out/training/model

## Evaluation

{{ evaluation.scenes }} held-out scenes, {{ evaluation.steps }} steps, guidance {{ evaluation.guidance_scale }}; everything computed from a captured store.

| | measured | chance |
|---|---|---|
| (a) correlation of the painted object's mean colour with the reference object's | {{ "%.3f" | format(evaluation.colour_correlation) }} | {{ "%.3f" | format(evaluation.colour_correlation_chance) }} (shuffled references) |
| (a) the same over the whole mask, background included | {{ "%.3f" | format(evaluation.colour_correlation_whole_mask) }} | |
| (b) G2R attention of masked queries on the reference object, over its share of the area, pooled over layers | {{ "%.2f" | format(evaluation.attention_on_object) }} | 1.00 (uniform attention) |
| (c) pointing game: the peak of that map, averaged over layers, heads and steps, lies on the object | {{ "%.1f%%" | format(100 * evaluation.pointing_game) }} | {{ "%.1f%%" | format(100 * evaluation.pointing_game_chance) }} (the object's share) |

(b) by layer:

| layer | measured |
|---|---|
{% for name, value in evaluation.attention_on_object_by_layer.items() -%}
| `{{ name }}` | {{ "%.2f" | format(value) }} |
{% endfor %}
## Limits

It knows procedural scenes of one size and nothing else. Colours and outlines are painted well, fine patterns only
roughly. It is an instrument for studying attention, not an image editor.

## Files

{% for name, digest in files.items() -%}
- `{{ name }}` sha256 `{{ digest }}`
{% endfor -%}
"""


def write_card(folder: Path) -> None:
    """Write ``README.md`` into a pipeline folder.

    Parameters
    ----------
    folder
        Pipeline folder with ``training.json`` and ``evaluation.json``.
    """
    weights = sorted(folder.rglob("*.safetensors"))
    card = Environment(undefined=StrictUndefined, trim_blocks=False, autoescape=False).from_string(_CARD)  # noqa: S701
    text = card.render(
        training=_facts(folder / "training.json"),
        evaluation=_facts(folder / "evaluation.json"),
        files={w.relative_to(folder).as_posix(): hashlib.sha256(w.read_bytes()).hexdigest() for w in weights},
        size=sum(w.stat().st_size for w in weights),
        parameters=sum(w.stat().st_size for w in weights) / 2,
    )
    (folder / "README.md").write_text(text)


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def main() -> None:
    """Command line of the card."""
    parser = argparse.ArgumentParser(description="Write the model card.")
    parser.add_argument("--model", type=Path, default=FOLDER, help="pipeline folder")
    write_card(parser.parse_args().model)


if __name__ == "__main__":
    main()
