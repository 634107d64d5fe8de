"""FLUX.1 Kontext with IP-Adapters: two kinds of reference in one generation.

The image that is edited is in the joint sequence, as for the adapter "flux-kontext"; those of the IP-Adapters
are references of their own, from number 1 on, as for "flux-ip-adapter". Each of the two can be named alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from i2am.pipeline.adapters.contract import JointSite, Spans
from i2am.pipeline.adapters.flux_ip_adapter import FluxIPAdapter
from i2am.pipeline.adapters.flux_kontext import FluxKontext


class FluxKontextIPAdapter(FluxIPAdapter):
    """``FluxKontextPipeline`` and its inpainting variant, IP-Adapters loaded."""

    name = "flux-kontext-ip-adapter"
    pipelines = ("FluxKontext",)
    first = 1
    _kontext = FluxKontext()

    def sites(self, pipe: Any) -> Sequence[JointSite]:
        return [*self._kontext.sites(pipe), *super().sites(pipe)]

    def spans(
        self, pipe: Any, arguments: Mapping[str, Any], sites: Sequence[JointSite]
    ) -> Mapping[str, Spans]:
        joint = [site for site in sites if not site.reference_index]
        others = [site for site in sites if site.reference_index]
        found = dict(self._kontext.spans(pipe, arguments, joint) or {})
        return found | dict(super().spans(pipe, arguments, others) or {}) if others else found

    def inputs(self, pipe: Any) -> Mapping[str, str | Sequence[str]]:
        own = {**self._kontext.inputs(pipe), **super().inputs(pipe)}
        return {**own, "ip_adapter_image": "reference-1"}
