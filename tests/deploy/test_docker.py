"""The Dockerfile: what can be told without an engine to build it."""

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from phosphene.errors import SettingError
from service import health_probe
from service.settings import read_settings
from tests.deploy.real_process import without_settings

TARGETS = ["cpu", "cuda"]
BUNDLES = {"PHOSPHENE_BUNDLES": "scenes=/artefacts/bundle"}
_OPEN_A_DECODE_WORKER = """
import asyncio
from phosphene.image_limits import ImageLimits
from service.decoding.process import open_decode_process

async def start():
    async with open_decode_process(ImageLimits(), 10.0):
        pass

asyncio.run(start())
"""


@dataclass
class Stage:
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, name):
        return next((value for given, value in reversed(self.instructions) if given == name), None)


@pytest.fixture(scope="module")
def stages(root):
    """Stages by name, in order."""
    text = re.sub(r"^#.*\n", "", (root / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, value = line.partition(" ")
        if name == "FROM":
            base, stage = re.fullmatch(r"(\S+) AS (\S+)", value).groups()
            found[stage] = Stage(base)
        else:
            found[stage].instructions.append((name, value.strip()))
    return found


def lineage(stages, name):
    """The instructions that make up a target, those of its bases first."""
    stage = stages[name]
    return (lineage(stages, stage.base) if stage.base in stages else []) + stage.instructions


def environment(stages, name):
    pairs = [shlex.split(value) for given, value in lineage(stages, name) if given == "ENV"]
    return dict(pair.split("=", 1) for part in pairs for pair in part)


def pins(root, *names):
    """Package to version, of some requirement files and those that they include: what this Python would install."""
    found = {}
    for name in names:
        for line in (root / "requirements" / name).read_text().splitlines():
            line = line.partition("#")[0].strip()
            if line.startswith("-r "):
                found |= pins(root, line[3:])
            elif line:
                pin = Requirement(line)
                (version,) = pin.specifier
                assert version.operator == "==", line
                if pin.marker is None or pin.marker.evaluate():
                    found[canonicalize_name(pin.name)] = version.version
    return found


def test_hadolint_finds_nothing(root):
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("no hadolint in this environment; requirements/dev.txt has it")
    command = [hadolint, "--config", ".hadolint.yaml", "--no-color", "Dockerfile"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_outside_images_are_pinned_and_the_default_target_is_the_cpu(stages):
    outside = {stage.base for stage in stages.values()} - stages.keys()
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", image) for image in outside), outside
    assert list(stages)[-1] == "cpu"
    assert set(TARGETS) <= stages.keys()


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_the_service_without_privileges(stages, target):
    steps = lineage(stages, target)
    last = dict(steps)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert [name for name, _ in steps].index("USER") > [name for name, _ in steps].index("RUN")
    assert json.loads(last["ENTRYPOINT"]) == ["python", "-m", "service"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert not {"ADD", "VOLUME", "SHELL", "CMD"} & last.keys()


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_fetched_at_run_time(stages, target):
    variables = environment(stages, target)
    assert (variables["HF_HUB_OFFLINE"], variables["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert variables["HOME"] == "/tmp"
    assert not any(
        word in value for name, value in lineage(stages, target) if name == "RUN" for word in ("http", "pip")
    )


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_listens_beyond_loopback_only_where_it_is_told_how(stages, target):
    variables = environment(stages, target) | BUNDLES
    with pytest.raises(SettingError, match="PHOSPHENE_ALLOW_PLAINTEXT"):
        read_settings(variables)
    settings = read_settings(variables | {"PHOSPHENE_ALLOW_PLAINTEXT": "yes"})
    assert settings.engine.device == target
    ports = {int(port) for name, value in lineage(stages, target) if name == "EXPOSE" for port in value.split()}
    assert ports == {settings.network.listen.port, settings.network.metrics_listen.port}


def test_the_health_check_is_the_probe_and_gives_up_before_the_engine_does(stages):
    options, _, command = dict(lineage(stages, "cpu"))["HEALTHCHECK"].partition(" CMD ")
    assert json.loads(command) == ["python", "-m", health_probe.__spec__.name]
    seconds = {name: int(value) for name, value in re.findall(r"--([a-z-]+)=(\d+)s", options)}
    assert health_probe.DEFAULT_TIMEOUT_S < seconds["timeout"] < seconds["interval"]


def test_every_copied_path_exists_and_passes_dockerignore(root, stages):
    ignored = (root / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        value.split()[0]
        for stage in stages.values()
        for name, value in stage.instructions
        if name == "COPY" and "--from" not in value
    }
    assert copied == allowed
    assert all((root / path).exists() for path in copied)


@pytest.mark.slow
def test_what_is_copied_is_enough_to_start(root, stages, tmp_path):
    app = tmp_path / "app"
    (compile_all,) = [value for name, value in stages["source"].instructions if name == "RUN"]
    for name, value in stages["source"].instructions:
        if name == "COPY" and (root / value.split()[0]).is_dir():
            shutil.copytree(root / value.split()[0], app / value.split()[1])
    # An interpreter that has the packages and, unlike this one, no editable checkout among them.
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    packages = {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*arguments):
        command = [tmp_path / "venv/bin/python", *arguments]
        return subprocess.run(
            command, cwd=app, env=without_settings() | packages, capture_output=True, text=True, check=False
        )

    compiled = run(*compile_all.split()[1:])
    assert compiled.returncode == 0, compiled.stdout
    before = sorted(app.rglob("*"))
    started = run("-m", "service", "--help")
    assert started.returncode == 0, started.stderr
    assert "PHOSPHENE_LISTEN" in started.stdout
    probed = run("-c", "import phosphene, service.health_probe; print(phosphene.__file__)")
    assert probed.stdout.startswith(str(app))
    decoded = run("-c", _OPEN_A_DECODE_WORKER)
    assert decoded.returncode == 0, decoded.stderr
    assert sorted(app.rglob("*")) == before


def test_every_package_of_the_service_is_copied(root, stages):
    packages = {path.parent.name for path in root.glob("*/__main__.py")} - {"benchmarks", "examples", "embedded"}
    copied = " ".join(value for name, value in stages["source"].instructions if name == "COPY").split()
    assert packages | {"phosphene"} <= set(copied)


def test_the_pins_leave_nothing_for_pip_to_choose(root):
    """Whatever a pinned package needs is pinned too, and in the version that it needs."""
    pinned = pins(root, "cpu.txt", "tracing.txt", "qdrant.txt")
    for package in pinned:
        for line in importlib.metadata.requires(package) or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                name = canonicalize_name(need.name)
                assert name in pinned, f"{package} needs {line}"
                assert need.specifier.contains(pinned[name], prereleases=True), f"{package} needs {line}"


def test_the_targets_install_what_the_repository_pins(root, stages):
    installed = {
        name: {
            file
            for given, value in stages[f"packages-{name}"].instructions
            if given == "RUN"
            for file in re.findall(r"-r requirements/(\S+)", value)
        }
        for name in TARGETS
    }
    options = {"tracing.txt", "qdrant.txt"}
    assert installed == {"cpu": {"cpu.txt", *options}, "cuda": {"gpu.txt", *options}}
    assert environment(stages, "packages-cpu")["PIP_ONLY_BINARY"] == ":all:"
    runs = {
        name: [value for given, value in stages[f"packages-{name}"].instructions if given == "RUN"] for name in TARGETS
    }
    assert runs["cpu"][1:] == runs["cuda"][1:]
    pattern = re.search(r"grep -E '([^']+)'", runs["cpu"][0])[1]
    lines = (root / "requirements/runtime.txt").read_text().splitlines()
    assert len([line for line in lines if re.search(pattern, line)]) == 1
