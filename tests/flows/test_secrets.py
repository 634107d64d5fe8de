"""Secrets never become attributes of a run, flow parameters, logs or errors; servers ask for a password."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from i2am.flows.capture.job import comparable
from i2am.flows.config.load_yaml import load_capture
from i2am.flows.config.models import AnalysisConfig, CaptureConfig
from i2am.flows.console.output import one_line
from i2am.storage.configuration.base import WITH_SECRETS
from i2am.storage.errors import InputError, NotFound
from i2am.storage.locations.open import locate
from i2am.storage.redaction import redact, redacted
from tests.flows.conftest import Outcome, spawn
from tests.flows.prefect_api import ask, wait_for
from tests.flows.sweeps import Sweep, sweep_config, sweeps

SECRETS = {
    "hf_token": "Qz81token-of-the-hub",
    "nested": {"api_key": ["Qz82first", "Qz82second"], "headers": {"Authorization": "Bearer Qz83headers"}},
    "store": {"connection_string": "Qz84AccountKey"},
    "prologue": "export WANDB_API_KEY=Qz85wandb",
    "hub": "https://someone:Qz86@hub.example/x",
}
OPTIONS = {"secret": "Qz87secret", "endpoint_url": "http://me:Qz88@127.0.0.1:9", "anything": "Qz89"}


@pytest.fixture
def secret_config(config: Callable[..., Path]) -> Path:
    pipeline = {"kind": "factory", "function": "tests.flows.tiny:build_with_secrets", "arguments": SECRETS}
    return config(pipeline=pipeline, storage_options=OPTIONS, call={"num_inference_steps": 2})


def test_a_configuration_as_json_or_text_has_no_secret(secret_config: Path) -> None:
    settings = load_capture(secret_config)
    assert settings.storage_options == OPTIONS
    for text in (settings.model_dump_json(), json.dumps(comparable(settings)), repr(settings)):
        assert "Qz8" not in text
        assert "num_inference_steps" in text
    other = AnalysisConfig.model_validate(
        {"cluster": {"class": "a.Cluster", "arguments": {"env": {"MY_PASSWORD": "Qz8"}, "cores": 2}}}
    )
    assert "Qz8" not in other.model_dump_json()
    again = CaptureConfig.model_validate_json(settings.model_dump_json(by_alias=True, context=WITH_SECRETS))
    assert again == settings  # for capture processes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no run at ftp://u:p@host/run.zarr", "no run at ftp://***@host/run.zarr"),
        ("git https://ghp_0123456789abcdefghij@host/x", "git https://***@host/x"),
        ("https://h/x?X-Amz-Signature=abc&part=2", "https://h/x?X-Amz-Signature=***&part=2"),
        ("401 for hf_abcdefghijklmnopqrst", "401 for ***"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
        ("https://h:80/a, and s3://bucket/run@v1 stay", "https://h:80/a, and s3://bucket/run@v1 stay"),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert str(InputError(text)) == shown
    assert one_line(ValueError(text)) == f"ValueError: {shown}"


def test_names_that_are_no_secrets_stay() -> None:
    plain = {"author": "a", "tokenizer": "b", "max_tokens": 7, "access_key_id": "c", "monkey": "d"}
    assert redact(plain) == plain


def test_values_that_were_seen_are_hidden_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    locate("memory://x", {"token": "seen-in-options"})
    monkeypatch.setenv("LAB_PASSWORD", "seen-in-environment")
    shown = str(NotFound("nothing", got="seen-in-options, seen-in-environment"))
    assert shown == "nothing; got ***, ***"


def test_a_run_and_its_failures_hold_none(
    config: Callable[..., Path], i2am: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Nor does a refusal of the resumption that shows what differs, or a wrong type of the options."""
    pipeline = {"kind": "factory", "function": "tests.flows.tiny:build_with_secrets", "arguments": SECRETS}
    done = i2am("capture", config(pipeline=pipeline), "--direct", "--keep-going", "--json")
    assert done.status == 1
    (failed,) = done.json["failed"]
    assert "refused with ***" in failed["error"]
    for file in (tmp_path / "tiny.zarr").rglob("*.json"):
        assert "Qz8" not in file.read_text(), file
    pipeline = pipeline | {"arguments": SECRETS | {"hf_token": "Qz9another-token", "hub": "x"}}
    other = i2am("capture", config(pipeline=pipeline), "--direct")
    other.refused("configuration: pipeline.arguments.hub")
    wrong = i2am("capture", config(storage_options="Qz8-as-text"), "--direct")
    wrong.refused("'storage_options'; expected a valid dictionary")
    assert "Qz" not in done.out + done.err + other.err + wrong.err


def test_the_temporary_server_asks_for_a_password(
    server: dict[str, str], config: Callable[..., Path], tmp_path: Path
) -> None:
    """And shows no secret to those who have it: parameters, states, logs and artifacts of a failing sweep."""
    for path, question in (("flow_runs/filter", b"{}"), ("admin/settings", None)):
        url = f"{server['PREFECT_API_URL']}/{path}"
        for headers in ({}, {"Authorization": "Basic aTJhbTp3cm9uZw=="}):
            request = urllib.request.Request(
                url, data=question, headers={"Content-Type": "application/json"} | headers
            )
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(request, timeout=20)
    pipeline = {"kind": "factory", "function": "tests.flows.tiny:build_with_secrets", "arguments": SECRETS}
    file = config(pipeline=pipeline, samples={"scenes": {"count": 2}})
    captured = spawn("capture", file, "--keep-going", "--json", env=server)
    assert captured.status == 1, captured.err
    swept = spawn("sweep", file, "--retry-failed", "--json", env=server)
    assert swept.status == 1, swept.err
    names = [f"{kind} {tmp_path / 'tiny.zarr'}" for kind in ("capture", "sweep")]
    mine = {"flow_runs": {"name": {"any_": names}}}
    runs = ask(server, "flow_runs/filter", mine)
    assert {run["parameters"]["config"]["pipeline"]["arguments"]["hf_token"] for run in runs} == {"***"}
    found = [ask(server, f"{kind}/filter", mine) for kind in ("task_runs", "artifacts")]
    found.append(ask(server, "logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"] for run in runs]}}}))
    assert all(found)
    assert "Qz8" not in json.dumps([runs, *found])


def test_the_password_stands_in_no_command_line(config: Callable[..., Path], tmp_path: Path) -> None:
    """Of the server that `--prefect` starts; the key of another server is not sent to it."""
    with sweeps() as start:
        sweep: Sweep = start(sweep_config(config), "--prefect", env={"PREFECT_API_KEY": "somebody-elses"})
        (server,) = wait_for(lambda: sweep.children("uvicorn"))
        line = Path(f"/proc/{server}/cmdline").read_bytes()
        environment = Path(f"/proc/{server}/environ").read_bytes().split(b"\0")
        (password,) = (e.split(b"=", 1)[1] for e in environment if e.startswith(b"PREFECT_SERVER_API_AUTH"))
        assert len(password) > 30
        assert password not in line
        assert b"somebody-elses" not in b"".join(environment)
        sweep.process.terminate()
        sweep.end()


def test_credentials_in_the_url_of_a_run_are_no_parameter() -> None:
    from i2am.flows.prefect.server import prefect_server

    with (
        pytest.raises(InputError, match=r"ftp://\*\*\*@host/run.zarr in a Prefect flow.*or use --direct"),
        prefect_server(shows=["ftp://u:Qz80@host/run.zarr"]),
    ):
        pass
