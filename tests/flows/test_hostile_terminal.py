"""Names and notes that would steer a terminal or a page of Prefect: they stand there and do nothing."""

from __future__ import annotations

import html
import io
import json
import pty
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from i2am.flows.console import output
from i2am.flows.console.progress import Progress, emit, show_progress
from i2am.flows.prefect.markdown import cells, plain
from i2am.storage.errors import InputError
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.signed_json import canonical, signed
from i2am.storage.writing.create import create_run
from tests.flows.conftest import Outcome

PAYLOADS = (
    "\x1b[2J\x1b[H",
    "\x1b]0;owned\x07",
    "\x1b]8;;http://127.0.0.1/\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m",
    "a\rb",
    "a\b\b\b\x7f",
    "\u202egnp\u2066\u200f\u061c",
    "[red]a[/red][link=file:///etc/passwd]b[/link]:smile:",
    "[bold",
    "\\",
    "a\nb\x0b\x0c\x85\u2028",
    "\ud800",
    "\U000e0041\ufeff\u200b",
)
TEXT = st.text() | st.sampled_from(PAYLOADS) | st.text(alphabet="".join(PAYLOADS))


def harmless(text: str) -> bool:
    """Only lines of characters that print; an oracle of its own: by Unicode's categories."""
    import unicodedata

    return all(c == "\n" or c == " " or unicodedata.category(c)[0] not in "CZ" for c in text)


@given(TEXT, TEXT)
def test_printed_lines_are_harmless(line: str, other: str) -> None:
    for write, stream in ((output.print_line, "stdout"), (output.log, "stderr")):
        with pytest.MonkeyPatch.context() as patch:
            written = io.StringIO()
            patch.setattr(output.sys, stream, written)
            write(f"{line} {other}")
        assert harmless(written.getvalue())
        assert written.getvalue().count("\n") == 1
        for word in re.findall(r"[a-z\[\]=/:]+", line):
            assert word in written.getvalue()


@given(TEXT.filter(lambda text: text not in ("a", "b")))
def test_json_is_harmless_and_loses_nothing(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        written = io.StringIO()
        patch.setattr(output.sys, "stdout", written)
        output.print_json({"a": [text], text: 1.0, "b": "é×"})
    assert harmless(written.getvalue())
    assert json.loads(written.getvalue()) == {"a": [text], "b": "é×"} | {text: 1.0}
    assert "é×" in written.getvalue()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_table_reads_no_markup(payload: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["name"], [[payload], ["[b]kept[/b]:smile:"]])
    out = capsys.readouterr().out
    assert harmless(out)
    assert "[b]kept[/b]:smile:" in out


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_progress_bar_in_a_terminal(payload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real terminal: what is drawn has rich's own sequences, and none of the payload's."""
    drawn = bars("x", monkeypatch), bars(payload, monkeypatch)
    assert set(sequences(drawn[1])) <= set(sequences(drawn[0]))
    assert harmless(re.sub(SEQUENCE, "", drawn[1]).replace("\r", ""))
    for word in re.findall(r"\[/?[a-z]+\]|:smile:", payload):
        assert word in drawn[1]


SEQUENCE = r"\x1b\[[\d;?]*[A-Za-z]"


def sequences(text: str) -> list[str]:
    return [
        found
        for found in re.findall(r"\x1b.{0,2}[\d;?]*[A-Za-z]?|\x9b|\x07|\x08", text)
        if not found.endswith("A")
    ]


def bars(what: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a progress bar of a unit called ``what`` writes to a terminal."""
    master, slave = pty.openpty()
    read: list[bytes] = []

    def listen() -> None:
        import os

        try:
            while data := os.read(master, 4096):
                read.append(data)
        except OSError:
            pass

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    with open(slave, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        with show_progress():
            emit(Progress("capture", 0, 3))
            emit(Progress("capture", 1, 3, what))
    reader.join(10)
    import os

    os.close(master)
    return b"".join(read).decode().replace("\r\n", "\n")


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        for number, payload in enumerate(PAYLOADS):
            emit(Progress("capture", number, 99, payload))
    err = capsys.readouterr().err
    assert harmless(err)
    assert len(err.splitlines()) == len(PAYLOADS)


def test_a_defect_shows_its_traceback_without_what_it_holds(
    i2am: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*given: object, **more: object) -> None:
        raise RuntimeError("".join(PAYLOADS[:-2]))

    monkeypatch.setattr("i2am.storage.reading.open.open_any", broken)
    found = i2am("inspect", tmp_path)
    assert found.status == 70
    assert "Traceback" in found.err
    assert harmless(found.err)


def hostile_run(path: Path) -> Path:
    """A run of attributes, annotations and ids that somebody else wrote and signed."""
    rng = np.random.default_rng(0)
    spec = LayerSpec(
        "[red]layer[bold]", heads=1, head_dim=4, gen_grid=(2, 2), ref_grid=(2, 2), dtype="float32"
    )
    attrs = {f"key{number}": payload for number, payload in enumerate(PAYLOADS[:-2])}
    samples = ("[bold]a[/bold]", "\u202eb", "gone\u202e")
    with create_run(path, [spec], [1], samples, attrs=attrs, image_shapes={"[u]i": (2, 2, 3)}) as run:
        for sample in samples[:2]:
            with run.sample(sample) as sink:
                sink.put_image("[u]i", np.zeros((2, 2, 3), np.uint8))
                sink.annotate(note=PAYLOADS[0])
                data = rng.normal(size=(1, 4, 4)).astype(np.float32)
                sink.put(spec.name, 0, query=data, key=data)
    root = path / "zarr.json"
    document = json.loads(root.read_text())
    own = {key: value for key, value in document["attributes"]["i2am"].items() if key != "digest"}
    document["attributes"]["i2am"] = signed({**own, "\x1b[2Jkey": "\x1b]0;owned\x07"})
    root.write_bytes(canonical(document))
    return path


@pytest.mark.parametrize(
    "command",
    [
        ("inspect",),
        ("inspect", "--json"),
        ("verify",),
        ("verify", "--json"),
        ("imacs",),
        ("maps", "--sample", "\x1b[2J", "--out", "F.npz"),
        ("maps", "--layers", "\x1b]0;owned\x07", "--out", "F.npz"),
    ],
    ids=" ".join,
)
def test_commands_on_a_hostile_store(
    i2am: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    run = hostile_run(tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path)
    found = i2am(command[0], run, *command[1:])
    assert found.status in (0, 1, 2), found.err
    assert found.out or found.err
    assert harmless(found.out), found.out
    assert harmless(found.err), found.err
    if command == ("inspect",):
        assert "[red]layer[bold]" in found.out
        assert "[link=file:///etc/passwd]" in found.out
    if command == ("inspect", "--json"):
        assert found.json["samples"]["missing"] == ["gone\u202e"]


def test_a_path_that_steers(i2am: Callable[..., Outcome], tmp_path: Path) -> None:
    found = i2am("inspect", tmp_path / "\x1b[2J\udcff.zarr")
    assert found.status == 2
    assert harmless(found.err)
    assert len(found.err.splitlines()) == 1


MARKS = st.text(alphabet="<>&\"'`*_{}[]()#+-.!|~\\:/@=ahtpsw1 \n\u202e\x1b") | st.sampled_from(
    [
        "<script>alert(1)</script>",
        "![x](http://127.0.0.1/x.png)",
        "[x](javascript:alert(1))",
        "http://127.0.0.1 www.example.org a@example.org",
        "a | b | c",
        "# x\n\n---\n\n1. y",
        "`code` ~~~ <!-- -->",
        "&lt;b&gt; &#60;",
    ]
)


@given(MARKS)
def test_markdown_shows_a_text_and_nothing_else(text: str) -> None:
    """By a CommonMark parser with HTML, tables and strikethrough on: one text in each place."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    wanted = output.visible(" ".join(text.split()))
    own = plain(text)
    page = f"# a {own}\n\n- b {own}\n\n| c | d |\n|---|---|\n| e {own} | f |\n\nIt: {own}\n"
    tokens = parser.parse(page)
    inner = [child for token in tokens if token.type == "inline" for child in token.children or []]
    assert {child.type for child in inner} <= {"text", "text_special"}
    assert not {"html_block", "fence", "code_block", "hr"} & {token.type for token in tokens}
    drawn = ["".join(c.content for c in token.children or []) for token in tokens if token.type == "inline"]
    assert drawn == [f"a {wanted}".strip(), f"b {wanted}".strip(), "c", "d", f"e {wanted}".strip(), "f",
                     f"It: {wanted}".strip()]  # fmt: skip
    assert html.unescape(plain(text)) == wanted


def test_artifacts_are_made_of_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every artifact of the three flows, from summaries full of marks."""
    from i2am.flows.prefect import analyze_flow, capture_flow, sweep_flow
    from i2am.flows.prefect.reporter import Reporter

    evil, steering = "<img src=x onerror=alert(1)>", "\x1b[2J"
    made: list[dict[str, Any]] = []
    for module in (analyze_flow, capture_flow):
        for kind in ("create_markdown_artifact", "create_table_artifact"):
            monkeypatch.setattr(module, kind, lambda **given: made.append(given))
    row = {"sample": steering, "reason": steering, "value": 1.5}
    summary = {
        "run": evil,
        "report": evil,
        "captured": 1,
        "seconds": 1.0,
        "committed": 1,
        "declared": 1,
        "bytes": 1,
        "files": 1,
        "samples": [row],
        "scores": [row],
        "failed": [row],
        "lost": [evil],
        "shards": [row],
        "refusals": [{"reason": evil}],
        "up_to_date": False,
        "new": [],
    }
    for publish in (analyze_flow.publish_analysis, capture_flow.publish_capture):
        publish.fn(summary)
    monkeypatch.setattr(sweep_flow, "run_sweep", lambda *given: summary)
    sent: list[dict[str, Any]] = []
    client = SimpleNamespace(
        request=lambda *words, json: sent.append(json) or SimpleNamespace(json=lambda: {"id": 1})
    )
    reporter = Reporter("sweep", evil)
    sweep_flow.reported_sweep(None, False, reporter)  # type: ignore[arg-type]
    while not reporter._calls.empty():
        reporter._calls.get()(client)
    made += [{"description": each["description"], each["type"]: each["data"]} for each in sent]
    for each in made:
        if isinstance(each.get("table"), str):
            each["table"] = json.loads(each["table"])
    assert len(made) == 7
    for artifact in made:
        for text in (artifact.get("markdown", ""), artifact.get("description", "")):
            assert not re.search(r"[<>]|\x1b", text)
        for entry in artifact.get("table", []):
            assert entry == {"sample": "\ufffd[2J", "reason": "\ufffd[2J", "value": 1.5}
    assert sum(plain(evil) in artifact.get("markdown", "") for artifact in made) == 3
    assert cells([{"a": None}]) == [{"a": None}]


def test_an_error_from_outside_is_one_printable_line(
    i2am: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*given: object, **more: object) -> None:
        raise InputError("".join(PAYLOADS[:-2]))

    monkeypatch.setattr("i2am.storage.reading.open.open_any", broken)
    found = i2am("inspect", tmp_path)
    found.refused("i2am: ")
    assert harmless(found.err)
