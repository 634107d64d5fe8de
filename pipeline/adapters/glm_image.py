"""GLM-Image (Zhipu, 2026), given images: one joint sequence with keys that were made before the first step.

A call for each reference keeps its keys. A step's conditional call has the keys [reference..., words,
generated] and the queries [words, generated]; the unconditional one sees no reference. What the language
model drew is added to the latents, and has no tokens of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from i2am.pipeline.adapters.contract import JointSite, Spans, TokenLayout, Tokens
from i2am.pipeline.adapters.joint import JointAdapter

_KEPT: WeakKeyDictionary[Any, dict[tuple[int, int], TokenLayout]] = WeakKeyDictionary()
"""Of a cache of keys: from (sample, tokens kept before) to the layout of a reference.

The adapter holds no state: what the pipeline keeps is known as long as the cache itself.
"""


class GlmImage(JointAdapter):
    """``GlmImagePipeline``."""

    name = "glm-image"
    attention = "attn1"
    pipelines = ("GlmImagePipeline",)
    lists = True
    removable = False

    def prepares(self, pipe: Any, arguments: Mapping[str, Any]) -> bool:
        """Calls that keep a reference's keys; its grid is noted, which later calls do not tell."""
        caches = arguments.get("kv_caches")
        if caches is None or caches[0].mode != "write":
            return False
        sample, kept = caches[0].current_sample_idx, caches[0].k_caches
        before = kept[sample].shape[1] if sample < len(kept) else 0
        _KEPT.setdefault(caches, {})[sample, before] = self._layout(pipe, arguments)
        return True

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans]:
        caches = arguments.get("kv_caches")
        mode = None if caches is None else caches[0].mode
        if self.prepares(pipe, arguments) or mode == "skip":
            return {}
        noted = _KEPT.get(caches, {}) if caches is not None else {}
        if mode != "read" or not noted:
            raise self._no_reference("keys of references, kept", "none", "give the pipeline image=")
        samples = {sample: [noted[key] for key in sorted(noted) if key[0] == sample] for sample, _ in noted}
        layouts = samples[0]
        if any(own != layouts for own in samples.values()):
            raise self._no_reference(
                "references of the same sizes in all samples of a call",
                "other sizes",
                "capture one sample a call",
            )
        found, kept = [], 0
        for layout in layouts:
            found.append(Tokens.after(kept, layout))
            kept += layout.tokens
        words, generated = int(arguments["encoder_hidden_states"].shape[1]), self._layout(pipe, arguments)
        length = words + generated.tokens
        spans = Spans(
            length, kept + length, Tokens.after(words, generated), tuple(found), slice(kept, kept + words),
            static_keys=True,
        )  # fmt: skip
        return dict.fromkeys((site.name for site in sites), spans)

    def inputs(self, pipe: Any) -> Mapping[str, str | Sequence[str]]:
        return {"image": ["source"], "prompt": "prompt"}

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        """The model is called with one less."""
        return arguments["timestep"] + 1

    def _layout(self, pipe: Any, arguments: Mapping[str, Any]) -> TokenLayout:
        patch, latents = self.config(pipe).patch_size, arguments["hidden_states"]
        return TokenLayout((latents.shape[-2] // patch, latents.shape[-1] // patch))
