"""Inception features: the network of the published FID, by torch-fidelity, from weights on this machine."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

from i2am.pipeline.features.contract import FeatureModel, Pixels, weights_fingerprint
from i2am.storage.errors import ConfigError, MissingDependency, NotFound

FILE = "weights-inception-2015-12-05-6726825d.pth"
"""Its name ends with the first digits of its SHA-256."""

URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"


def load_inception(weights: Path | None, device: str) -> FeatureModel:
    """The 2048 features of the last pool, from the file `weights` or from where torch.hub keeps it."""
    path = weights or hub_file(FILE)
    if not path.is_file():
        raise NotFound(
            f"no weights of Inception at {path}",
            remedy=f"download {URL} to that place, name the file with --weights, or choose other --features",
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise MissingDependency(
            "Inception features need torch-fidelity", got=str(error), remedy="pip install 'i2am[features]'"
        ) from error
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity itself would run a pickle
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ConfigError(
            f"weights of Inception {path}", expected=f"the contents of {URL}",
            got=str(error).splitlines()[0][:200], remedy="download it again",
        ) from error  # fmt: skip
    network = network.to(device)

    @torch.no_grad()
    def extract(images: Pixels) -> Any:
        return network(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))[0].cpu().numpy()

    with path.open("rb") as file:
        official = hashlib.file_digest(file, "sha256").hexdigest().startswith(FILE[-12:-4])
    name = "inception" if official else f"inception ({path.name})"  # whose FID is not the published one
    return FeatureModel(name, weights_fingerprint(network), extract)


def hub_file(name: str) -> Path:
    """Where torch.hub and torchvision keep a file of weights that they have downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name
