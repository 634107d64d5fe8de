"""A factory for InstantID in its own code: its pipeline, which is given a face's picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from research_common import inside


def instantid(device: str, dtype: str, checkout: str, base: str, weights: str = "checkpoints") -> Any:
    """InstantID; ``base`` is SDXL, ``weights`` holds ``ip-adapter.bin`` and ``ControlNetModel``.

    The face's embedding and key points come from insightface's antelopev2, in ``models`` of the checkout.
    """
    with inside(checkout):
        from diffusers import ControlNetModel
        from insightface.app import FaceAnalysis
        from pipeline_stable_diffusion_xl_instantid import StableDiffusionXLInstantIDPipeline, draw_kps

        faces = FaceAnalysis(
            name="antelopev2", root="./", providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        faces.prepare(ctx_id=0, det_size=(640, 640))

        class FromPicture(StableDiffusionXLInstantIDPipeline):
            """The largest face of the picture is the reference."""

            def __call__(self, prompt: Any, reference_image: Any, **more: Any) -> Any:
                picture = reference_image.convert("RGB")
                found = faces.get(np.asarray(picture)[..., ::-1])
                face = max(found, key=lambda face: np.prod(face["bbox"][2:] - face["bbox"][:2]))
                points = draw_kps(picture, face["kps"])
                return super().__call__(prompt, image_embeds=face["embedding"], image=points, **more)

        precision = getattr(torch, dtype)
        net = ControlNetModel.from_pretrained(f"{weights}/ControlNetModel", torch_dtype=precision)
        pipe = FromPicture.from_pretrained(base, controlnet=net, torch_dtype=precision).to(device)
        pipe.load_ip_adapter_instantid(f"{weights}/ip-adapter.bin")
    return pipe
