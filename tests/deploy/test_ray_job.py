"""deploy/ray: the manifest against the API's schemas, our command line, and the pins; no cluster ever ran it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from index.__main__ import main


@pytest.fixture
def documents(root):
    return list(yaml.safe_load_all((root / "deploy/ray/index-job.yaml").read_text()))


@pytest.fixture
def job(documents):
    return documents[0]


@pytest.fixture
def policy(documents):
    return documents[1]


def templates(job):
    """Those of the pods that make the index."""
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def all_templates(job):
    return [*templates(job), job["spec"]["submitterPodTemplate"]]


def test_everything_keeps_the_schemas_of_the_api(documents, job, policy):
    assert [document["kind"] for document in documents] == ["RayJob", "NetworkPolicy"]
    assert job["apiVersion"] == "ray.io/v1"
    kubernetes_validate.validate(policy, kubernetes_validate.latest_version(), strict=True)
    for template in all_templates(job):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x"} | template["metadata"],
            "spec": template["spec"],
        }
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_the_command_is_one_of_ours(job, capsys):
    python, dash, module, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, dash, module) == ("python", "-m", "index")
    # It is understood, and ends at what is not there.
    arguments = ["/nowhere" if argument.startswith("/artefacts") else argument for argument in arguments]
    assert main(arguments) == 2
    assert "/nowhere" in capsys.readouterr().err
    assert arguments[arguments.index("--engine") + 1] == "ray"


def test_every_pod_sees_the_same_files_and_reports_nothing(job):
    paths = set(re.findall(r"(?<=\s)/[^/\s]+", job["spec"]["entrypoint"]))
    assert paths == {"/artefacts"}
    for template in templates(job):
        (container,) = template["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert paths <= mounts.keys()
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes[mounts["/artefacts"]]["persistentVolumeClaim"]["claimName"] == "phosphene-artefacts"


def test_every_pod_is_one_of_the_restricted_standard_runs_our_image_and_reports_nothing(root, job):
    version = re.search(r"phosphene:[\d.]+-ray", (root / "deploy/ray/Dockerfile").read_text())[0]
    for template in all_templates(job):
        pod = template["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert pod["automountServiceAccountToken"] is False
        assert container["image"] == version
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
    # KubeRay gives the submitter its command, and takes no other restart policy.
    assert "command" not in container
    assert pod["restartPolicy"] == "Never"


def test_the_job_s_pods_reach_one_another_and_names_and_kuberay_reaches_the_job_server(job, policy):
    assert policy["metadata"]["namespace"] == job["metadata"]["namespace"] == "phosphene"
    spec = policy["spec"]
    for template in all_templates(job):
        assert spec["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    among = {"podSelector": spec["podSelector"]}
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    own, operator = spec["ingress"]
    assert own == {"from": [among]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    assert all({"namespaceSelector", "podSelector"} == peer.keys() for peer in operator["from"])
    own, names = spec["egress"]
    assert own == {"to": [among]}
    assert {(port["port"], port["protocol"]) for port in names["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert names["to"]


def test_no_other_policy_selects_the_job_s_pods_but_the_one_that_denies(root, job):
    others = yaml.safe_load_all((root / "deploy/kubernetes/base/network-policy.yaml").read_text())
    for other in others:
        labels = other["spec"]["podSelector"].get("matchLabels", {})
        selects = all(labels.items() <= template["metadata"]["labels"].items() for template in all_templates(job))
        assert selects == (other["metadata"]["name"] == "default-deny")


def test_the_cluster_has_room_for_the_tasks_that_are_asked_for(job):
    words = shlex.split(job["spec"]["entrypoint"])
    tasks, threads = (int(words[words.index(name) + 1]) for name in ("--workers", "--threads"))
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    cpus = [
        group["maxReplicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
        for group in groups
    ]
    assert sum(cpus) >= tasks * threads
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_ray_has_one_version(root, job):
    versions = {
        re.search(r"^ray(?:\[default\])?==(\S+)", (root / f"requirements/{name}.txt").read_text(), flags=re.M)[1]
        for name in ("dev", "ray")
    }
    assert versions == {job["spec"]["rayClusterSpec"]["rayVersion"]}


def test_the_image_installs_our_pins_into_the_environment_of_the_service(root):
    text = (root / "deploy/ray/Dockerfile").read_text()
    (python,) = set(re.findall(r"PIP_PYTHON=(\S+)", (root / "Dockerfile").read_text()))
    assert re.findall(r"PIP_PYTHON=(\S+)", text) == [python]
    (installed,) = re.findall(r"pip install .*", text)
    assert re.findall(r"-r /requirements/(\S+)", installed) == ["ray.txt"]
    assert "==" not in installed
    assert "source=requirements,target=/requirements" in text
    assert "!requirements" in (root / ".dockerignore").read_text().splitlines()


def test_the_image_of_a_job_is_not_asked_whether_it_serves(root):
    assert re.findall(r"^HEALTHCHECK (\S+)", (root / "Dockerfile").read_text(), flags=re.M)
    assert re.findall(r"^HEALTHCHECK (.*)$", (root / "deploy/ray/Dockerfile").read_text(), flags=re.M) == ["NONE"]


def test_a_login_shell_finds_ray(root, tmp_path):
    (command,) = re.findall(r"^RUN (echo .*)$", (root / "deploy/ray/Dockerfile").read_text(), flags=re.M)
    profile = tmp_path / "phosphene.sh"
    subprocess.run(["sh", "-c", command.replace("/etc/profile.d/phosphene.sh", str(profile))], check=True)
    # What Debian's /etc/profile leaves of PATH before it reads /etc/profile.d.
    shell = f"PATH=/usr/local/bin:/usr/bin:/bin; . {profile}; echo $PATH"
    found = subprocess.run(["sh", "-c", shell], check=True, capture_output=True, text=True).stdout.strip()
    assert found == "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin"


def test_hadolint_finds_nothing(root):
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("no hadolint in this environment; requirements/dev.txt has it")
    command = [hadolint, "--config", ".hadolint.yaml", "--no-color", "deploy/ray/Dockerfile"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
