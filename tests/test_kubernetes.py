"""The manifests render, are valid, and agree with the code that they deploy."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.metrics import Metrics
from app.settings import PREFIX, Settings, load_settings
from benchmarks.autoscaler import Policy, Rule
from benchmarks.fleet import TARGETS
from tests.server.conftest import running
from tests.test_deploy import ROOT, image_environment, most_memory, ours, parsed, text

FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu")
EXAMPLES = sorted((FOLDER / "examples").glob("*.yaml"))
VERSIONS = ("1.32", "1.37")  # what clusters run, oldest and newest
Manifest = dict[str, Any]


# --- rendering ----------------------------------------------------------------------------------


def rendered(folder: Path) -> dict[tuple[str, str], Manifest]:
    """What `kubectl kustomize` makes of these overlays, by kind and name.

    Knows what they use: resources, strategic merges by path, image tags.
    """
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) <= {"apiVersion", "kind", "resources", "patches", "images"}
    manifests: dict[tuple[str, str], Manifest] = {}
    for resource in kustomization["resources"]:
        path = folder / resource
        if path.is_dir():
            manifests |= rendered(path)
        else:
            manifest = yaml.safe_load(path.read_text())
            manifests[manifest["kind"], manifest["metadata"]["name"]] = manifest
    for patch in kustomization.get("patches", ()):
        assert set(patch) == {"path"}
        change = yaml.safe_load((folder / patch["path"]).read_text())
        key = change["kind"], change["metadata"]["name"]
        manifests[key] = merged(manifests[key], change)
    for image in kustomization.get("images", ()):
        assert set(image) == {"name", "newTag"}
        for manifest in manifests.values():
            for container in containers(manifest):
                if container["image"] == image["name"]:
                    container["image"] += f":{image['newTag']}"
    return manifests


def merged(base: Any, change: Any) -> Any:
    """A strategic merge; of lists, those whose items have names are merged by these."""
    if isinstance(base, dict) and isinstance(change, dict):
        both = {key: merged(base[key], change[key]) for key in base.keys() & change.keys()}
        return base | change | both
    if isinstance(base, list) and all("name" in item for item in [*base, *change]):
        names = {item["name"]: item for item in base}
        for item in change:
            names[item["name"]] = merged(names.get(item["name"], {}), item)
        return list(names.values())
    return change


def containers(manifest: Manifest) -> list[Manifest]:
    spec = manifest.get("spec", {}).get("template", {}).get("spec", {})
    return [*spec.get("containers", ()), *spec.get("initContainers", ())]


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def manifests(overlay: str) -> dict[tuple[str, str], Manifest]:
    return rendered(FOLDER / "overlays" / overlay)


@pytest.fixture
def pod(manifests: dict[tuple[str, str], Manifest]) -> Manifest:
    spec: Manifest = manifests["Deployment", "nsnet"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def environment(manifests: dict[tuple[str, str], Manifest]) -> dict[str, str]:
    """The settings of a pod: the image's, and the ConfigMap's over them."""
    given: dict[str, str] = manifests["ConfigMap", "nsnet-settings"]["data"]
    return ours(image_environment()) | given


@pytest.fixture
def settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    return load_settings()


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl, which has kustomize")
def test_kustomize_renders_the_same(
    overlay: str, manifests: dict[tuple[str, str], Manifest]
) -> None:
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    real = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(output)}
    assert real == manifests


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(version: str, manifests: dict[tuple[str, str], Manifest]) -> None:
    assert {kind for kind, _ in manifests} == {
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_manifest_would_be_found() -> None:
    manifest = rendered(FOLDER / "overlays/cpu")["Deployment", "nsnet"]
    manifest["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


# --- what a pod may do --------------------------------------------------------------------------


def test_pods_are_hardened(pod: Manifest) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    [uid] = re.findall(r"(?m)^USER (\d+):\1$", text("Dockerfile"))
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert {security[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(uid)}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_account_has_no_token(
    pod: Manifest, manifests: dict[tuple[str, str], Manifest]
) -> None:
    account = manifests["ServiceAccount", pod["serviceAccountName"]]
    assert account["automountServiceAccountToken"] is False


def test_no_secret_is_committed_and_its_file_is_read_again(
    pod: Manifest, settings: Settings
) -> None:
    assert "Secret" not in {yaml.safe_load(path.read_text())["kind"] for path in resources()}
    [container], [volume] = pod["containers"], pod["volumes"]
    [mount] = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert mount["readOnly"] is True
    assert "subPath" not in mount  # such a file never changes
    assert settings.api_keys_file == Path(mount["mountPath"]) / "keys"
    secret = volume["secret"]
    assert secret["defaultMode"] == 0o440
    created = f"create secret generic {secret['secretName']} --from-file=keys="
    for guide in ("docs/deployment.md", "deploy/kubernetes/README.md"):
        assert created in text(guide)
    settings.check_access()


def resources() -> list[Path]:
    return [p for p in FOLDER.rglob("*.yaml") if p.parent.name != "examples"]


def test_the_network_lets_in_whom_it_names_and_nobody_out(
    manifests: dict[tuple[str, str], Manifest],
) -> None:
    policy = manifests["NetworkPolicy", "nsnet"]["spec"]
    pods = manifests["Deployment", "nsnet"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == pods
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["egress"] == []
    assert {rule["ports"][0]["port"] for rule in policy["ingress"]} == {"http", "operations"}
    for rule in policy["ingress"]:
        assert len(rule["ports"]) == 1
        for peer in rule["from"]:
            assert all(selector.get("matchLabels") for selector in peer.values()), "anybody"


# --- agreement with the code --------------------------------------------------------------------


def test_names_select_each_other(manifests: dict[tuple[str, str], Manifest]) -> None:
    deployment = manifests["Deployment", "nsnet"]
    pods = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == pods
    assert manifests["Service", "nsnet"]["spec"]["selector"] == pods
    budget = manifests["PodDisruptionBudget", "nsnet"]["spec"]
    assert budget["selector"]["matchLabels"] == pods
    for spread in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == pods
    aim = manifests["HorizontalPodAutoscaler", "nsnet"]["spec"]["scaleTargetRef"]
    assert (aim["kind"], aim["name"]) in manifests
    assert aim["apiVersion"] == deployment["apiVersion"]
    assert "replicas" not in deployment["spec"]  # the autoscaler's
    [source] = deployment["spec"]["template"]["spec"]["containers"][0]["envFrom"]
    assert ("ConfigMap", source["configMapRef"]["name"]) in manifests


def test_ports_are_the_settings(
    pod: Manifest, manifests: dict[tuple[str, str], Manifest], settings: Settings
) -> None:
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    assert ports == {"http": settings.port, "operations": settings.operations_port}
    assert settings.port == Settings.model_fields["port"].default
    for port in manifests["Service", "nsnet"]["spec"]["ports"]:
        assert port["targetPort"] == port["name"]
        assert port["port"] == ports[port["name"]]


def test_probes_ask_what_is_answered(pod: Manifest) -> None:
    [container] = pod["containers"]
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/readyz", "liveness": "/livez", "readiness": "/readyz"}
    with running() as server, server.client() as client:
        for path in paths.values():
            assert client.get(path).status_code == 200
    names = {port["name"] for port in container["ports"]}
    assert {probe["httpGet"]["port"] for probe in probes.values()} <= names
    startup = probes["startup"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120


def test_a_pod_is_given_the_time_that_draining_takes(pod: Manifest, settings: Settings) -> None:
    drained = settings.drain_delay_s + settings.drain_timeout_s
    assert pod["terminationGracePeriodSeconds"] > drained
    readiness = pod["containers"][0]["readinessProbe"]
    unready = readiness["periodSeconds"] * readiness["failureThreshold"]
    assert settings.drain_delay_s > unready + readiness["timeoutSeconds"]


def test_memory_is_above_the_sum_of_the_guide(
    pod: Manifest, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = pod["containers"][0]["resources"]
    cores = int(resources["limits"]["cpu"])  # whole ones: the forward's threads
    limit = int(resources["limits"]["memory"].removesuffix("Gi"))
    assert most_memory(environment, cores, monkeypatch) < limit
    idle = 3 if environment["NSNET_DEVICE"] == "cuda" else 1.3
    assert int(resources["requests"]["memory"].removesuffix("Gi")) > idle


def test_the_device_is_the_one_that_is_asked_for(
    overlay: str, pod: Manifest, settings: Settings
) -> None:
    gpus = pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
    assert (settings.device, gpus) == {"cpu": ("cpu", None), "gpu": ("cuda", "1")}[overlay]


def test_the_autoscaler_reads_a_gauge_and_follows_the_rule_that_is_simulated(
    overlay: str, manifests: dict[tuple[str, str], Manifest]
) -> None:
    spec = manifests["HorizontalPodAutoscaler", "nsnet"]["spec"]
    [metric] = spec["metrics"]
    assert metric["type"] == "Pods"
    gauges = {family.name: family.type for family in Metrics().registry.collect()}
    assert gauges[metric["pods"]["metric"]["name"]] == "gauge"
    up, down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
    rule = Rule(
        float(metric["pods"]["target"]["averageValue"]),
        min_replicas=spec["minReplicas"],
        max_replicas=spec["maxReplicas"],
        up_window_s=up["stabilizationWindowSeconds"],
        down_window_s=down["stabilizationWindowSeconds"],
        up=tuple(map(policy, up["policies"])),
        down=tuple(map(policy, down["policies"])),
    )
    assert rule == {"cpu": Rule(), "gpu": Rule(4, max_replicas=20)}[overlay]
    assert rule.target == TARGETS[overlay]
    assert f"**Target {TARGETS['cpu']:g}** on CPUs" in text("docs/scaling.md")
    assert f"; {TARGETS['gpu']:g} on a GPU" in text("docs/scaling.md")
    [keda] = [
        example["spec"]
        for example in map(yaml.safe_load, (path.read_text() for path in EXAMPLES))
        if example.get("kind") == "ScaledObject"
    ]
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == spec["behavior"]


def policy(manifest: Manifest) -> Policy:
    return Policy(manifest["type"], manifest["value"], manifest["periodSeconds"])


def test_versions_and_settings_are_real() -> None:
    version = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for path in (*FOLDER.rglob("*.*"), ROOT / "docs/scaling.md"):
        content = path.read_text()
        assert set(re.findall(r"\bNSNET_[A-Z0-9_]+", content)) <= known, path
        tags = re.findall(r"\bnsnet:(\d[\w.]*)|newTag: (\S+)", content)
        assert {tag for pair in tags for tag in pair if tag} <= {version}, path
    images = parsed("deploy/kubernetes/base/kustomization.yaml")["images"]
    assert images == [{"name": "nsnet", "newTag": version}]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_say_that_they_were_not_run_and_read_what_exists(path: Path) -> None:
    content = path.read_text()
    assert content.startswith("# Not run by this project's tests.")
    exposed = {family.name for family in Metrics().registry.collect()}
    code = re.sub(r"(?m)^#.*\n", "", content)
    assert set(re.findall(r"\bnsnet_\w+", code)) <= exposed
    assert yaml.safe_load(content)


def test_kserves_pods_are_those_of_the_base() -> None:
    """But for what KServe does itself: the operations port and a start that it waits for."""
    example = yaml.safe_load((FOLDER / "examples/kserve.yaml").read_text())
    predictor = example["spec"]["predictor"]
    pod = rendered(FOLDER / "overlays/cpu")["Deployment", "nsnet"]["spec"]["template"]["spec"]
    [theirs], [ours_] = predictor.pop("containers"), pod.pop("containers")
    assert predictor.items() <= pod.items()
    for name in ("envFrom", "image", "securityContext", "resources", "volumeMounts"):
        assert theirs[name] == ours_[name]
    for name in ("livenessProbe", "readinessProbe"):
        assert theirs[name]["httpGet"]["path"] == ours_[name]["httpGet"]["path"]
    with running() as server, server.client() as client:
        assert client.get("/v2/health/ready").status_code == 200  # as its head says


def test_the_guide_names_whom_an_address_is_believed_from() -> None:
    """Behind an ingress, one client's wrong keys would be everybody's."""
    for path in ("base/settings.yaml", "README.md"):
        assert "NSNET_FORWARDED_ALLOW_IPS" in (FOLDER / path).read_text()
    key = "0123456789abcdef"
    for trusted, status in (("", 429), ("127.0.0.0/8", 200)):
        with running(api_keys=key, forwarded_allow_ips=trusted) as server:
            for client, sent, expected in (
                *[("10.0.0.1", "wrong", 401)] * 10,
                ("10.0.0.2", key, status),
            ):
                headers = {"X-Forwarded-For": client, "X-API-Key": sent}
                with server.client(headers=headers) as one:
                    assert one.get("/model").status_code == expected
