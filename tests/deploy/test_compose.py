"""deploy/compose.yaml: what can be told without an engine to run it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from service.settings import read_settings
from tests.deploy.memory import MIB, need_bytes
from tests.deploy.queries import DASHBOARDS, longest_range_s, panel_queries, rule_queries

FILES = ["compose.yaml", "compose.gpu.yaml"]
BASE_BYTES = {"cpu": 2560 * MIB, "cuda": 4096 * MIB}
_SIZES = {"m": MIB, "g": 1024 * MIB}


def size_bytes(text):
    number, unit = re.fullmatch(r"(\d+)([mg])", text).groups()
    return int(number) * _SIZES[unit]


@pytest.fixture(scope="module")
def composition(root):
    return yaml.safe_load((root / "deploy/compose.yaml").read_text())


@pytest.fixture(params=["cpu", "cuda"])
def service(request, root, composition):
    """The service as it is started, and with the second file laid over it; and its settings."""
    merged = dict(composition["services"]["service"])
    if request.param == "cuda":
        over = yaml.safe_load((root / "deploy/compose.gpu.yaml").read_text())["services"]["service"]
        merged |= over | {"environment": merged["environment"] | over["environment"]}
    assert all(isinstance(value, str) for value in merged["environment"].values())
    return request.param, merged, read_settings(merged["environment"])


@pytest.mark.parametrize("file", FILES)
def test_it_keeps_the_compose_specification(root, file):
    checker = Path(sys.executable).parent / "check-jsonschema"
    if not checker.exists():
        pytest.skip("no check-jsonschema in this environment, which has the specification's schema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", f"deploy/{file}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_container_is_confined(composition):
    for name, container in composition["services"].items():
        assert container["read_only"], name
        assert container["cap_drop"] == ["ALL"], name
        assert container["security_opt"] == ["no-new-privileges:true"], name
        assert container["pids_limit"] > 0, name
        assert size_bytes(container["mem_limit"]) > 0, name
        assert not {"privileged", "network_mode", "pid", "ipc", "devices", "cap_add"} & container.keys(), name


def test_images_are_pinned(composition):
    for name, container in composition["services"].items():
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-[a-z]+)?", container["image"]), name


def test_ports_are_published_on_loopback_alone(composition):
    ports = [port for container in composition["services"].values() for port in container.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in composition["services"]["redis"]


def test_no_network_leads_out(composition):
    for name, network in composition["networks"].items():
        masquerade = network.get("driver_opts", {}).get("com.docker.network.bridge.enable_ip_masquerade")
        assert network.get("internal") or masquerade == "false", name
    for name, container in composition["services"].items():
        assert set(container["networks"]) <= composition["networks"].keys(), name


def test_mounts_exist_and_are_read_only(root, composition):
    for name, container in composition["services"].items():
        for mount in container.get("volumes", ()):
            if mount["type"] == "volume":
                assert mount["source"] in composition["volumes"], name
                continue
            assert mount["read_only"], mount
            assert mount["bind"] == {"create_host_path": False}, mount
            if not mount["source"].startswith("${"):
                assert (root / "deploy" / mount["source"]).exists(), mount


def test_artefacts_are_named_by_a_path_that_leads_there_from_any_folder(root, composition):
    """Compose begins a path that is not whole at the folder of its file, and not where the command is typed."""
    (source,) = [mount["source"] for mount in composition["services"]["service"]["volumes"]]
    default = re.fullmatch(r"\$\{ARTEFACTS:-(.+)\}", source)[1]
    assert (root / "deploy" / default).resolve() == root / "build" / "demo"
    assert re.findall(r"ARTEFACTS=(\S+)", (root / "deploy/README.md").read_text()) == ["/path/to/folder"]


def test_prometheus_reads_its_configuration_and_scrapes_the_service(root, composition, service):
    _, _, settings = service
    prometheus = composition["services"]["prometheus"]["command"]
    (config,) = [word.partition("=")[2] for word in prometheus if word.startswith("--config.file=")]
    assert (root / "deploy/prometheus" / Path(config).name).is_file()
    sources = {mount["target"]: mount["source"] for mount in composition["services"]["prometheus"]["volumes"]}
    assert sources[str(Path(config).parent)] == "./prometheus"
    targets = yaml.safe_load((root / "deploy" / sources["/etc/prometheus/targets.yaml"]).read_text())
    assert [target for group in targets for target in group["targets"]] == [
        f"service:{settings.network.metrics_listen.port}"
    ]


def test_prometheus_keeps_what_dashboards_and_rules_look_back_on(composition):
    command = composition["services"]["prometheus"]["command"]
    (kept,) = [word.partition("=")[2] for word in command if word.startswith("--storage.tsdb.retention.time=")]
    queries = [*rule_queries(), *(query for path in DASHBOARDS for query in panel_queries(path))]
    wanted_s = max(longest_range_s(query.expression) for query in queries)
    assert wanted_s == 30 * 86400
    assert longest_range_s(f"[{kept}]") >= wanted_s


def test_grafana_finds_the_dashboards_and_prometheus(root, composition):
    mounts = {mount["target"]: mount["source"] for mount in composition["services"]["grafana"]["volumes"]}
    provisioning = root / "deploy" / mounts["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/phosphene.yaml").read_text())["providers"]
    assert mounts[provider["options"]["path"]] == "./grafana/dashboards"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert composition["services"][host]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_nobody_signs_in_to_grafana_with_the_password_that_it_begins_with(composition):
    """Without the form a request may still bring it (basic authentication), unless that is off, too."""
    settings = composition["services"]["grafana"]["environment"]
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert settings["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert settings["GF_AUTH_BASIC_ENABLED"] == "false"


def test_the_service_is_told_settings_that_it_takes(composition, service):
    _, container, settings = service
    published = {port.rpartition(":")[2] for port in container["ports"]}
    assert published == {str(settings.network.listen.port)}
    assert settings.cache.redis_url == "redis://redis:6379/0"
    artefacts = [entry.path for entry in (*settings.artefacts.bundles, *settings.artefacts.indexes)]
    targets = [mount["target"] for mount in container["volumes"]]
    assert all(any(path.is_relative_to(target) for target in targets) for path in artefacts)
    assert not container.get("depends_on")  # it starts, and goes on, without Redis


def test_the_image_is_built_from_the_target_for_the_device(service):
    device, container, settings = service
    assert container["build"]["target"] == device == settings.engine.device
    assert container["image"].endswith(f"-{device}")


def test_the_drain_ends_before_the_container_is_killed(service):
    _, container, settings = service
    assert int(container["stop_grace_period"].removesuffix("s")) >= settings.network.drain_s + 5


def test_memory_suffices_for_what_the_settings_allow(service):
    device, container, settings = service
    (scratch,) = [size_bytes(re.search(r"size=(\w+)", mount)[1]) for mount in container["tmpfs"]]
    assert need_bytes(settings, base_bytes=BASE_BYTES[device]) + scratch <= 0.9 * size_bytes(container["mem_limit"])


def test_redis_answers_other_containers_whoever_built_its_image(composition):
    command = composition["services"]["redis"]["command"]
    assert command[command.index("--protected-mode") + 1] == "no"


def test_the_cache_is_bounded_below_its_container(composition):
    redis = composition["services"]["redis"]
    limit = redis["command"][redis["command"].index("--maxmemory") + 1]
    assert 1.4 * size_bytes(limit.removesuffix("b")) <= size_bytes(redis["mem_limit"])
