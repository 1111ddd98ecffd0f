"""The command line: what it prints, how it ends, and the live display."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from api.app import create_app
from s2d.cli.app import run
from s2d.plan.document import load_plan
from s2d.settings import Settings

PAIR = ("--teacher", "Qwen/Qwen3-8B", "--student", "Qwen/Qwen3-1.7B", "--gpu", "H100")
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs a command as its entry point does; (exit code, stdout, stderr)."""
    for name in ("S2D_URL", "S2D_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("S2D_ALLOW_HUB", "false")
    monkeypatch.setenv("S2D_STATE_DIR", str(tmp_path / "state"))

    def call(*arguments: object) -> tuple[int, str, str]:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        monkeypatch.setattr(sys, "argv", ["s2d", *map(str, arguments)])
        try:
            with pytest.raises(SystemExit) as end:
                run()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return call


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "labels.jsonl"
    rows = [json.dumps({"problem": f"What is {n} + {n}?", "answer": str(2 * n)}) for n in range(100)]
    file.write_text("\n".join([*rows, "not json"]))
    return file


# --- start ----------------------------------------------------------------------------------------------------------


def test_help_is_there_at_once_and_loads_no_heavy_library() -> None:
    code = (
        "import sys; sys.argv = ['s2d', '--help']\n"
        "from s2d.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'sqlalchemy', 'celery', 'fastapi', 'pydantic', 'httpx', 'api', 'worker'}\n"
        "print('loaded:', sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("loaded: []\n")
    for command in ("up", "plan", "train", "jobs", "files", "keys", "models", "chat", "demo"):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize("module", ["s2d.cli.up", "s2d.cli.demo", "s2d.cli.jobs", "s2d.cli.plan", "s2d.embedded"])
def test_no_command_imports_the_service_or_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'api', 'worker', 'torch'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- errors ---------------------------------------------------------------------------------------------------------


def test_wrong_usage_is_exit_code_2(cli: Cli) -> None:
    assert cli("plan", "--labels", "many")[0] == 2
    assert cli("no-such-command")[0] == 2
    assert cli("train", "--plan", "no-such-file")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("plan", "--teacher", "x", "--labels", 10),
            "Error: This plan request cannot be used. student: Field required",
        ),
        (("plan", *PAIR, "--file", "/no/such.jsonl"), "Error: /no/such.jsonl: No such file or directory"),
        (("models",), "Error: No API key: set S2D_API_KEY, or start the service once with `s2d up`"),
    ],
)
def test_an_error_is_one_line_without_traceback(cli: Cli, arguments: tuple[object, ...], message: str) -> None:
    code, out, err = cli(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_setting_that_cannot_be_read_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2D_PORT", "http")
    code, _, err = cli("up")
    assert code == 1
    assert err.startswith("Error: A setting cannot be used. S2D_PORT: Input should be a valid integer")


def test_a_service_that_is_not_there_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("S2D_URL", url)
    code, _, err = cli("models", "--key", "x")
    assert code == 1
    assert err.startswith(f"Error: No s2d answers at {url} ")


def test_up_names_a_busy_port(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, err = cli("up", "--port", port)
    assert code == 1
    assert f"Port {port} on 127.0.0.1 is in use" in err


# --- plan and train -------------------------------------------------------------------------------------------------


def test_a_local_plan_counts_the_file_and_is_kept_whole(cli: Cli, labels: Path, tmp_path: Path) -> None:
    out_file = tmp_path / "plan.json"
    code, out, _ = cli("plan", *PAIR, "--file", labels, "--seed", 3, "--out", out_file, "--format", "json")
    assert code == 0
    plan = load_plan(out_file.read_text())
    assert load_plan(out) == plan
    assert (plan.data.labeled, plan.seed, plan.hardware.name) == (100, 3, "H100")
    assert plan.data.file_sha256 is not None


def test_the_command_line_wins_over_the_options_file(cli: Cli, tmp_path: Path) -> None:
    options = tmp_path / "options.json"
    options.write_text(
        json.dumps({"labeled_budget": 500, "seed": 7, "hardware": {"name": "A100", "price_per_hour": 2, "devices": 4}})
    )
    code, out, _ = cli("plan", *PAIR, "--labels", 800, "--price", 2.5, "--options", options, "--format", "json")
    assert code == 0
    plan = load_plan(out)
    assert (plan.data.labeled, plan.seed, plan.hardware.name, plan.hardware.devices) == (800, 7, "H100", 4)
    assert plan.hardware.price_per_hour == 2.5


@pytest.mark.parametrize("text", ["[]", "{", '{"hardware": 3}'])
def test_a_wrong_options_file_is_refused(cli: Cli, tmp_path: Path, text: str) -> None:
    options = tmp_path / "options.json"
    options.write_text(text)
    code, _, err = cli("plan", *PAIR, "--labels", 800, "--options", options)
    assert code == 1
    assert str(options) in err


@pytest.mark.parametrize(("format", "start"), [("page", "plan_"), ("markdown", "# Plan `plan_")])
def test_a_plan_is_printed_for_people(cli: Cli, format: str, start: str) -> None:
    code, out, _ = cli("plan", *PAIR, "--labels", 800, "--format", format)
    assert code == 0
    assert out.startswith(start)
    assert "teacher_rl" in out


def test_train_resumes_only_when_told_to(cli: Cli, labels: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "run"
    assert cli("plan", *PAIR, "--file", labels, "--out", plan)[0] == 0
    arguments = ("train", "--plan", plan, "--file", labels, "--out", out)
    code, _, err = cli(*arguments, "--resume")
    assert (code, "holds no run to resume" in err) == (1, True)
    out.mkdir()
    (out / "plan.json").write_text(plan.read_text())
    code, _, err = cli(*arguments)
    assert (code, "add --resume" in err) == (1, True)


def test_train_refuses_another_file(cli: Cli, labels: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert cli("plan", *PAIR, "--file", labels, "--out", plan)[0] == 0
    labels.write_text(labels.read_text() + "\n" + json.dumps({"problem": "1 + 1?", "answer": "2"}))
    code, _, err = cli("train", "--plan", plan, "--file", labels, "--out", tmp_path / "run")
    assert (code, "another file" in err) == (1, True)


# --- against the real API -------------------------------------------------------------------------------------------


@contextmanager
def running(server: uvicorn.Server, listener: socket.socket) -> Iterator[None]:
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The API without a worker, on the state folder that the commands use."""
    settings = Settings(state_dir=tmp_path / "state", allow_hub=False)
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("S2D_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    config = uvicorn.Config(create_app(settings), log_level="warning", timeout_graceful_shutdown=1)
    with running(uvicorn.Server(config), listener):
        yield


@pytest.mark.usefixtures("cli", "service")
def test_from_labels_to_a_cancelled_job(cli: Cli, labels: Path, tmp_path: Path) -> None:
    code, out, err = cli("files", "upload", labels)
    assert code == 0
    file_id = out.strip()
    assert "100 labeled, 0 unlabeled" in err
    assert "line 101:" in err
    assert file_id in cli("files", "list")[1]

    plan_file = tmp_path / "plan.json"
    code, _, err = cli("plan", *PAIR, "--remote", "--file", file_id, "--out", plan_file)
    assert (code, err) == (0, "")
    plan = load_plan(plan_file.read_text())

    code, out, _ = cli("jobs", "create", "--plan", plan.id, "--file", file_id, "--name", "mine")
    assert code == 0
    job = out.strip()
    (row,) = [line for line in cli("jobs", "list", "--state", "queued")[1].splitlines() if job in line]
    assert row.split()[:3] == [job, "mine", "queued"]
    assert json.loads(cli("jobs", "show", job)[1])["plan"] == plan.id

    assert cli("jobs", "cancel", job)[1] == "cancelled\n"
    events = [json.loads(line) for line in cli("jobs", "events", job)[1].splitlines()]
    assert [event["data"]["state"] for event in events] == ["queued", "cancelled"]
    assert cli("jobs", "events", job, "--after", 1)[1].count("\n") == 1

    code, out, _ = cli("jobs", "watch", job)
    assert code == 1
    assert out.splitlines() == ["job queued", "job cancelled", "Job cancelled."]


@pytest.mark.usefixtures("cli", "service")
def test_the_services_own_words_reach_the_user(cli: Cli, labels: Path) -> None:
    code, _, err = cli("jobs", "show", "job_nope")
    assert (code, err) == (1, "Error: There is no job 'job_nope'.\n")
    assert "API key" in cli("models", "--key", "wrong")[2]
    labels.write_text("[]")
    assert cli("files", "upload", labels)[0] == 1
    assert "There is no student yet" in cli("chat", "hello")[2]
