"""What deploy/ holds: the chart by Helm itself and Kubernetes' schemas, and that its settings are the server's own."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from m3_runtime.cli import commands_of, parser
from m3_runtime.cli.environment import variables
from m3_runtime.version import __version__

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "m3"
EVERYTHING: dict[str, Any] = {
    "export": {"enabled": True, "args": ["--budget", "strict"], "env": [{"name": "HF_TOKEN", "value": "x"}]},
    "autoscaling": {"enabled": True, "queueTokens": 1_000_000},
    "serviceMonitor": {"enabled": True, "keySecret": {"name": "m3-metrics", "key": "key"}, "labels": {"team": "a"}},
    "podDisruptionBudget": {"enabled": True},
    "auth": {"existingSecret": "m3-keys"},
    "settings": {"workers": 2, "max-texts": 1_000_000, "deadline-s": 2.5, "auto-truncate": True},
    "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"}],
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"operator": "Exists"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"a": "b"},
    "imagePullSecrets": [{"name": "registry"}],
    "service": {"annotations": {"a": "b"}},
    "bundle": {"storageClassName": "fast"},
}


def rendered(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The manifests that Helm makes of some values, by their kinds."""
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        texts = chart.render(values, name="demo", namespace="search")
    documents = [one for name, text in texts.items() if name.endswith(".yaml") for one in yaml.safe_load_all(text)]
    found = {one["kind"]: one for one in documents if one}
    assert len(found) == len([one for one in documents if one])
    return found


def pods(manifests: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for kind in ("Deployment", "Job"):
        if kind in manifests:
            yield manifests[kind]["spec"]["template"]["spec"]


def containers(manifests: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for pod in pods(manifests):
        yield from [*pod.get("initContainers", []), *pod["containers"]]


def environment(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The server's variables."""
    (server,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in server["env"]}


def test_helm_finds_nothing_wrong():
    found = helm_python.lint(str(CHART))
    assert found["errors"] == []
    assert [one["error"] for one in found["messages"] if one["severity"] > 1] == []


@pytest.mark.parametrize("release", ["1.26", "1.33"])
@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_manifests_are_what_kubernetes_takes(values, release):
    manifests = rendered(values)
    kinds = {"Deployment", "Service", "PersistentVolumeClaim"}
    if values:
        kinds |= {"Job", "HorizontalPodAutoscaler", "PodDisruptionBudget", "ServiceMonitor"}
    assert set(manifests) == kinds
    for kind, manifest in manifests.items():
        if kind != "ServiceMonitor":  # the Prometheus operator's own, which is in no schema of Kubernetes
            kubernetes_validate.validate(manifest, release, strict=True)


def test_the_monitor_finds_the_service():
    manifests = rendered(EVERYTHING)
    monitor, service = manifests["ServiceMonitor"]["spec"], manifests["Service"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {end["port"] for end in monitor["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}


def test_the_service_finds_the_pods_and_not_the_export():
    manifests = rendered(EVERYTHING)
    selector = manifests["Service"]["spec"]["selector"].items()
    assert selector <= manifests["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert not selector <= manifests["Job"]["spec"]["template"]["metadata"]["labels"].items()


def test_no_container_may_more_than_it_needs():
    manifests = rendered(EVERYTHING)
    for pod in pods(manifests):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False  # they would set M3_PORT
    for container in containers(manifests):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_settings_are_options_of_the_server():
    given = environment(rendered(EVERYTHING))
    known = variables(commands_of(parser())["serve"])
    assert [name for name in given if name.startswith("M3_") and name not in known] == []
    assert given["M3_MAX_TEXTS"] == "1000000"  # and not 1e+06
    assert (given["M3_DEADLINE_S"], given["M3_AUTO_TRUNCATE"], given["M3_WORKERS"]) == ("2.5", "true", "2")
    text = f"{(DEPLOY / 'Dockerfile').read_text()}\n{(DEPLOY / 'compose.yaml').read_text()}"
    named = set(re.findall(r"\bM3_[A-Z_]+", text))
    assert named
    assert named <= known.keys()


@pytest.mark.parametrize(
    ("resources", "settings", "threads"),
    [
        ({}, {}, "limits.cpu"),
        ({"limits": {"cpu": None, "memory": "4Gi"}}, {}, "requests.cpu"),
        ({"limits": {"cpu": None}, "requests": {"cpu": None}}, {}, None),
        ({}, {"threads": 3}, "3"),
        ({}, {"workers": 2}, None),  # the server shares the limit among them
    ],
)
def test_threads_follow_the_resources(resources, settings, threads):
    found = environment(rendered({"resources": resources, "settings": settings})).get("M3_THREADS")
    assert (found["resourceFieldRef"]["resource"] if isinstance(found, dict) else found) == threads


def test_what_is_exported_is_what_is_served():
    manifests = rendered(EVERYTHING)
    (job,) = manifests["Job"]["spec"]["template"]["spec"]["containers"]
    assert job["args"] == ["BAAI/bge-m3", environment(manifests)["M3_BUNDLE"], "--budget", "strict"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pods(manifests)
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {manifests["PersistentVolumeClaim"]["metadata"]["name"]}
    another = rendered(EVERYTHING | {"export": {"enabled": True, "source": "/bundles/mine"}})
    assert another["Job"]["metadata"]["name"] != manifests["Job"]["metadata"]["name"]


def test_a_claim_of_ones_own_is_taken():
    manifests = rendered({"bundle": {"existingClaim": "mine"}})
    assert "PersistentVolumeClaim" not in manifests
    (bundles,) = manifests["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert bundles["persistentVolumeClaim"] == {"claimName": "mine"}


@pytest.mark.parametrize(
    "values",
    [
        {"setting": {}},
        {"replicas": "two"},
        {"settings": {"port": 1}},
        {"settings": {"max_texts": 1}},
        {"autoscaling": {"queue": 1}},
    ],
)
def test_misspelt_values_are_refused(values):
    with helm_python.Chart.load(str(CHART)) as chart, pytest.raises(helm_python.HelmError):
        chart.validate_schema(values)


def test_the_chart_is_of_this_release():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


def test_probes_ask_what_is_answered_without_a_key():
    (server,) = rendered({})["Deployment"]["spec"]["template"]["spec"]["containers"]
    paths = {server[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"/ready", "/health"}


def test_compose_starts_the_server_and_qdrant():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert {"m3", "qdrant"} <= {name for name, service in services.items() if "profiles" not in service}
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert {service["build"]["target"] for service in services.values() if "build" in service} <= set(stages)
    assert services["m3"]["read_only"] is True
    assert services["m3"]["volumes"][0].endswith(":/bundle:ro")


def test_nothing_of_one_machine_stands_here():
    for path in [one for one in DEPLOY.rglob("*") if one.is_file()]:
        assert not re.search(r"(?<![\w.$])/(home|root|work|Users)/\w", path.read_text()), path
    json.loads((CHART / "values.schema.json").read_text())
