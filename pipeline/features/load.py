"""Find the model of features that a user names."""

from __future__ import annotations

from pathlib import Path

from i2am.pipeline.features.contract import FeatureModel
from i2am.pipeline.features.function import load_function
from i2am.pipeline.features.inception import load_inception
from i2am.pipeline.features.transformers_models import load_transformers
from i2am.storage.errors import InputError, UnknownName

NAMES = ("inception", "clip", "dino")


def load_features(name: str, weights: Path | None = None, device: str = "cpu") -> FeatureModel:
    """``inception``, ``clip``, ``dino`` from weights on this machine, or ``module:function``."""
    if ":" in name:
        if weights is not None:
            raise InputError("weights", expected=f"none with {name!r}, which loads its own", got=str(weights))
        return load_function(name)
    if name not in NAMES:
        raise UnknownName("features", name, NAMES, remedy="or give module:function")
    if name == "inception":
        return load_inception(weights, device)
    return load_transformers(name, weights, device)
