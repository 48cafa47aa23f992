"""deploy/kubernetes: every overlay, as kubectl builds it, against the API's schemas and the service's settings."""

import functools
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml
from prometheus_client import generate_latest

from service import health_probe
from service.observing.metric_events import Metrics
from service.server import METHODS
from service.settings import read_settings
from tests.deploy.memory import MIB, need_bytes

OVERLAYS = ["cpu", "gpu", "redis", "secure"]
CUSTOM = {"ScaledObject", "ServiceMonitor"}
BASE_BYTES = {"cpu": 2560 * MIB, "cuda": 4096 * MIB}
_UNITS = {"Mi": MIB, "Gi": 1024 * MIB}

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH to build overlays with")


class Overlay:
    """What one overlay makes."""

    def __init__(self, name, text):
        self.name = name
        self.resources = [document for document in yaml.safe_load_all(text) if document]

    def of_kind(self, kind):
        return {resource["metadata"]["name"]: resource for resource in self.resources if resource["kind"] == kind}

    def one(self, kind, name="phosphene"):
        return self.of_kind(kind)[name]

    @property
    def pod(self):
        return self.one("Deployment")["spec"]["template"]["spec"]

    @property
    def container(self):
        (container,) = self.pod["containers"]
        return container

    @property
    def settings(self):
        """What the container's environment means to the service."""
        maps = self.of_kind("ConfigMap")
        (name,) = [source["configMapRef"]["name"] for source in self.container["envFrom"] if "configMapRef" in source]
        assert "env" not in self.container
        return read_settings(maps[name]["data"], cpu_count=1)


@functools.cache
def build(root, name):
    command = ["kubectl", "kustomize", str(root / "deploy/kubernetes/overlays" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Overlay(name, done.stdout)


@pytest.fixture(params=OVERLAYS)
def overlay(request, root):
    return build(root, request.param)


def size_bytes(text):
    number, unit = re.fullmatch(r"(\d+)([MG]i)", text).groups()
    return int(number) * _UNITS[unit]


def deployments(overlay):
    return overlay.of_kind("Deployment").values()


def grace_s(probe):
    """Seconds of failure after which a probe acts."""
    return probe["periodSeconds"] * probe["failureThreshold"]


def test_every_overlay_is_tested(root):
    assert sorted(path.name for path in (root / "deploy/kubernetes/overlays").iterdir()) == sorted(OVERLAYS)
    components = {path.name for path in (root / "deploy/kubernetes/components").iterdir()}
    used = {
        line.rpartition("/")[2]
        for name in OVERLAYS
        for line in yaml.safe_load((root / f"deploy/kubernetes/overlays/{name}/kustomization.yaml").read_text())[
            "components"
        ]
    }
    assert components == used


def test_core_kinds_keep_the_schemas_of_the_api(overlay):
    assert {resource["kind"] for resource in overlay.resources} >= CUSTOM | {
        "ConfigMap",
        "Deployment",
        "Namespace",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }
    for resource in overlay.resources:
        if resource["kind"] not in CUSTOM:
            kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_the_oldest_kubernetes_that_is_promised_knows_every_field(root, overlay):
    (oldest,) = re.findall(r"asks for Kubernetes (\d\.\d+) or newer", (root / "deploy/README.md").read_text())
    for resource in overlay.resources:
        if resource["kind"] not in CUSTOM:
            kubernetes_validate.validate(resource, oldest, strict=True)
    # The schema of 1.29 has it too, behind a gate that is shut.
    with pytest.raises(kubernetes_validate.ValidationError, match="sleep"):
        kubernetes_validate.validate(overlay.one("Deployment"), "1.28", strict=True)


def test_a_misspelt_field_is_found(root):
    deployment = yaml.safe_load((root / "deploy/kubernetes/base/deployment.yaml").read_text())
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 45
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, kubernetes_validate.latest_version(), strict=True)


def test_everything_lies_in_one_namespace_with_the_restricted_standard(overlay):
    labels = overlay.one("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {r["metadata"].get("namespace") for r in overlay.resources if r["kind"] != "Namespace"} == {"phosphene"}


def test_pods_have_no_privileges(overlay):
    for deployment in deployments(overlay):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-[a-z]+", container["image"])
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        assert not any("hostPath" in volume for volume in pod["volumes"])
    assert overlay.one("ServiceAccount")["automountServiceAccountToken"] is False


def test_the_user_is_that_of_the_image(root, overlay):
    (user,) = set(re.findall(r"^USER (\d+):(\d+)$", (root / "Dockerfile").read_text(), flags=re.M))
    context = overlay.pod["securityContext"]
    assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user


def test_no_variable_reaches_the_pod_that_is_no_setting(overlay):
    assert overlay.pod["enableServiceLinks"] is False  # they would set PHOSPHENE_SERVICE_HOST, which is refused
    assert overlay.settings.artefacts.current is not None


def test_settings_ports_and_probes_agree(overlay):
    settings, container = overlay.settings, overlay.container
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": settings.network.listen.port, "metrics": settings.network.metrics_listen.port}
    assert settings.network.admin_listen.is_loopback
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
        if settings.security.certificate is None:
            assert probe["grpc"]["port"] == settings.network.listen.port
        else:
            assert probe["exec"]["command"][:3] == ["python", "-m", health_probe.__spec__.name]
            assert probe["timeoutSeconds"] > health_probe.DEFAULT_TIMEOUT_S


def test_readiness_acts_before_liveness_and_both_wait_for_the_start(overlay):
    container = overlay.container
    assert grace_s(container["startupProbe"]) >= 300
    assert grace_s(container["readinessProbe"]) < grace_s(container["livenessProbe"])
    assert grace_s(container["livenessProbe"]) > overlay.settings.engine.stall_s


def test_the_drain_ends_before_the_pod_is_killed(overlay):
    before_s = overlay.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert overlay.pod["terminationGracePeriodSeconds"] >= before_s + overlay.settings.network.drain_s + 10


def test_memory_and_cpu_suffice_for_what_the_settings_allow(overlay):
    settings, resources = overlay.settings, overlay.container["resources"]
    base_bytes = BASE_BYTES[settings.engine.device]
    assert need_bytes(settings, base_bytes=base_bytes) <= 0.9 * size_bytes(resources["limits"]["memory"])
    assert max(settings.engine.thread_count, settings.queue.decode_worker_count) <= int(resources["requests"]["cpu"])
    assert "cpu" not in resources["limits"]


def test_a_gpu_pod_takes_one_device_and_no_other_does(overlay):
    is_gpu = overlay.name == "gpu"
    assert (overlay.settings.engine.device == "cuda") == is_gpu
    assert overlay.container["image"].endswith("-cuda" if is_gpu else "-cpu")
    assert overlay.container["resources"]["limits"].get("nvidia.com/gpu") == ("1" if is_gpu else None)
    assert ("tolerations" in overlay.pod) == is_gpu


def test_mounts_are_read_only_but_for_scratch(overlay):
    kinds = {volume["name"]: volume for volume in overlay.pod["volumes"]}
    for mount in overlay.container["volumeMounts"]:
        volume = kinds.pop(mount["name"])
        assert mount.get("readOnly", False) == ("emptyDir" not in volume), mount
    assert not kinds
    mounted = [mount["mountPath"] for mount in overlay.container["volumeMounts"]]
    settings = overlay.settings
    files = [settings.artefacts.current, settings.security.certificate, settings.security.key, settings.security.tokens]
    for file in filter(None, files):
        assert str(file.parent) in mounted, file


def test_services_are_headless_and_select_the_pods(overlay):
    labels = overlay.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    names = {port["name"] for port in overlay.container["ports"]}
    for name in ("phosphene", "phosphene-metrics"):
        spec = overlay.one("Service", name)["spec"]
        assert spec["clusterIP"] == "None"
        assert spec["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in spec["ports"]} <= names
    published = {port["port"] for service in overlay.of_kind("Service").values() for port in service["spec"]["ports"]}
    assert overlay.settings.network.admin_listen.port not in published


def test_traffic_is_denied_but_for_callers_metrics_and_redis(overlay):
    policies = overlay.of_kind("NetworkPolicy")
    everything = policies["default-deny"]["spec"]
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    spec = policies["phosphene"]["spec"]
    ports = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
    assert ports == {overlay.settings.network.listen.port, overlay.settings.network.metrics_listen.port}
    assert all(rule["from"] for rule in spec["ingress"])
    reached = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
    assert reached == ({6379, 53} if overlay.name == "redis" else set())
    if overlay.name == "redis":
        (rule,) = policies["redis"]["spec"]["ingress"]
        assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "phosphene"}}}]
        assert overlay.one("Service", "redis")["spec"]["ports"][0]["port"] == 6379
        assert overlay.settings.cache.redis_url == "redis://redis:6379/0"


def test_replicas_belong_to_the_autoscaler_and_the_budget_lets_one_go(overlay):
    deployment, scaled = overlay.one("Deployment"), overlay.one("ScaledObject")["spec"]
    assert "replicas" not in deployment["spec"]
    assert scaled["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "phosphene"}
    assert 1 <= scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    assert overlay.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    (trigger,) = scaled["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "Value")
    assert float(trigger["metadata"]["threshold"]) > 0
    assert trigger["metadata"]["query"].count("(") == trigger["metadata"]["query"].count(")")


def test_the_service_monitor_finds_the_metrics_service(overlay):
    spec = overlay.one("ServiceMonitor")["spec"]
    found = [
        service
        for service in overlay.of_kind("Service").values()
        if spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ]
    assert [service["metadata"]["name"] for service in found] == ["phosphene-metrics"]
    (endpoint,) = spec["endpoints"]
    assert endpoint["port"] == found[0]["spec"]["ports"][0]["name"]
    seconds = [int(endpoint[name].removesuffix("s")) for name in ("scrapeTimeout", "interval")]
    assert seconds[0] < seconds[1]


def test_redis_is_bounded_below_its_container(root):
    (redis,) = build(root, "redis").one("Deployment", "redis")["spec"]["template"]["spec"]["containers"]
    maxmemory = redis["args"][redis["args"].index("--maxmemory") + 1]
    assert 1.4 * int(maxmemory.removesuffix("mb")) * MIB <= size_bytes(redis["resources"]["limits"]["memory"])


def test_secrets_encrypt_and_ask_for_tokens(root):
    settings = build(root, "secure").settings.security
    assert settings.certificate is not None
    assert settings.tokens is not None


def test_the_autoscaler_asks_for_metrics_that_the_service_shows_from_the_start(root):
    query = build(root, "cpu").one("ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    asked = set(re.findall(r'(phosphene_\w+)\{(\w+="\w+")', query))
    assert asked
    shown = generate_latest(Metrics(methods=METHODS, queue_capacity=1).registry).decode()
    for name, label in asked:
        assert re.search(rf"^{name}\{{[^}}]*{label}", shown, flags=re.M), (name, label)
