"""``i2am adapters``: what is at hand, and the census of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from i2am.pipeline.adapters import registry
from i2am.pipeline.adapters.census import MECHANISMS, census
from tests.flows.conftest import Outcome

I2am = Callable[..., Outcome]


def test_adapters_built_in_and_installed_are_listed(i2am: I2am, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", "tests.standins.own_adapter:Mine", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]))
    registry.adapters.cache_clear()
    try:
        listed = {each["adapter"]: each for each in i2am("adapters", "--json").json["adapters"]}
        assert listed.keys() == registry.adapters().keys()
        assert (listed["mine"]["from"], listed["mine"]["reads"]) == (
            "tests.standins.own_adapter",
            "reference",
        )
        assert listed["diffusers-text"]["reads"] == "text"
        assert {each["from"] for name, each in listed.items() if name != "mine"} == {"built in"}
        assert all(each["serves"] for each in listed.values())
        shown = i2am("adapters")
        assert shown.status == 0
        assert "FLUX.1 Kontext" in shown.out
        assert "StableDiffusionPipeline" not in shown.out
    finally:
        registry.adapters.cache_clear()


def test_the_census_is_listed_with_its_answers(i2am: I2am) -> None:
    facts = i2am("adapters", "--pipelines", "--json").json
    assert [each["pipeline"] for each in facts["pipelines"]] == list(census())
    assert facts["mechanisms"] == MECHANISMS
    answers = {each["pipeline"]: each["answer"] for each in facts["pipelines"]}
    assert answers["FluxKontextPipeline"] == "flux-kontext; with an IP-Adapter: flux-kontext-ip-adapter"
    assert (
        answers["StableDiffusionInpaintPipeline"] == "attention cannot answer; with an IP-Adapter: ip-adapter"
    )
    assert answers["Flux2Pipeline"] == "flux2"
    assert answers["ZImageOmniPipeline"] == "no adapter yet"
    assert answers["SanaPipeline"] == "no image"
    shown = i2am("adapters", "--pipelines").out
    assert all(name in shown for name in answers)
    assert all(f"{word}: {says}" in shown for word, says in MECHANISMS.items())
