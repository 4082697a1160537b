"""What ships beside the code names only things that exist, and keeps its promises."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.errors import CATALOGUE
from app.intake.keyring import read_keys
from app.settings import PREFIX, Settings, SettingsError, load_settings
from tests.images import jpeg
from tests.server.conftest import Process, Running, eventually, running

ROOT = Path(__file__).parent.parent
OURS = ("nsnet", "nsnet-gpu")
CONTRACT = (
    "nsnet_images_total",
    "nsnet_predictions_total",
    "nsnet_rejected_total",
    "nsnet_decoders_replaced_total",
    "nsnet_audit_lost_total",
    "nsnet_provenance_total",
    "nsnet_stage_duration_seconds_bucket",
    "nsnet_batch_size_bucket",
    "nsnet_queue_depth",
    "nsnet_inflight_images",
    "nsnet_score_bucket",
    "nsnet_cache_requests_total",
    "nsnet_model_info",
    "nsnet_model_load_seconds",
    "http_requests_total",
    "http_request_duration_seconds_bucket",
)
# What Prometheus adds to every series it scrapes, and its own series.
SCRAPED = {"job", "instance"}
BUILT_IN = {"up": SCRAPED, "ALERTS": {"alertname", "alertstate", *SCRAPED}}


def text(path: str) -> str:
    return (ROOT / path).read_text()


def parsed(path: str) -> Any:
    return json.loads(text(path)) if path.endswith(".json") else yaml.safe_load(text(path))


# --- metrics ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(cached=True) as one:
        yield one


@pytest.fixture(scope="module")
def exposed(server: Running) -> dict[str, set[str]]:
    """Labels by series, of a live scrape after one image was scored and one refused."""
    with server.client() as client:
        for body in (jpeg(), b"no image"):
            client.post("/detect", content=body, headers={"Content-Type": "image/jpeg"})
        scrape = client.get("/metrics").text
    by_series = {name: set(labels) for name, labels in BUILT_IN.items()}
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            by_series.setdefault(sample.name, set(SCRAPED)).update(sample.labels)
    return by_series


def alerts() -> list[dict[str, Any]]:
    groups = parsed("deploy/prometheus/alerts.yml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    drawn: list[dict[str, Any]] = parsed("deploy/grafana/dashboards/nsnet.json")["panels"]
    return drawn


QUERIES = [t["expr"] for panel in panels() for t in panel["targets"]]
QUERIES += [rule["expr"] for rule in alerts()]


def series(query: str) -> set[str]:
    return set(re.findall(r"\b(?:(?:nsnet|http|process)_[a-z_]+|up|ALERTS)\b(?!\")", query))


def test_the_contracts_metrics_exist_and_are_watched(exposed: dict[str, set[str]]) -> None:
    drawn = {name for panel in panels() for t in panel["targets"] for name in series(t["expr"])}
    for name in CONTRACT:
        assert name in exposed
        assert name in drawn


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_reads_series_and_labels_that_exist(
    query: str, exposed: dict[str, set[str]]
) -> None:
    assert series(query)
    assert series(query) <= exposed.keys()
    labels = set().union(*(exposed[name] for name in series(query)))
    used = re.findall(r"(\w+)(?:=~|!~|!=|=)\"", query)
    for names in re.findall(r"(?:by|ignoring|on) \(([^)]*)\)", query):
        used += names.split(", ")
    assert set(used) <= labels


def test_a_checkpoint_is_compared_with_itself_alone() -> None:
    """Verdicts and scores of another one differ, and no picture has changed."""
    compared = [query for query in QUERIES if " offset " in query]
    assert len(compared) == 3
    for query in compared:
        sums = re.findall(r"\bsum\b[^(]*\(([^)]*)\)", query)
        assert set(sums) == {"sha256"}, query


def test_queries_select_values_that_are_given(server: Running) -> None:
    with server.client() as client:
        routes = client.get("/openapi.json").json()["paths"]
    values: dict[str, Any] = {
        "reason": [*CATALOGUE, "crashed", "too_expensive", "killed"],
        "route": routes,
        "result": ["hit", "shared"],
        "job": ["nsnet"],
        "verdict": ["ai_generated", "real", "uncertain"],
        "status": ["500"],
        "alertname": [rule["alert"] for rule in alerts()],
        "alertstate": ["firing"],
    }
    for query in QUERIES:
        for label, pattern in re.findall(r"(\w+)=~?\"([^\"]*)\"", query):
            assert any(re.fullmatch(pattern, value) for value in values[label]), query


def test_panels_are_apart_and_read_the_provisioned_datasource() -> None:
    source = parsed("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_alert_says_how_bad_it_is_and_what_is_wrong() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[mh]", rule["for"])


def test_every_alert_has_a_case_for_promtool() -> None:
    cases = parsed("deploy/prometheus/alerts_test.yml")
    assert cases["rule_files"] == ["alerts.yml"]
    fired = {
        case["alertname"]
        for test in cases["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in alerts()}


# --- the image ----------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", text("Dockerfile"))).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def image_environment() -> dict[str, str]:
    last = [arguments for name, arguments in instructions() if name == "ENV"][-1]
    return dict(pair.split("=", 1) for pair in last.split())


def test_the_image_holds_what_it_copies() -> None:
    allowed = text(".dockerignore")
    stages = re.findall(r"(?m)^FROM \S+ AS (\w+)$", text("Dockerfile"))
    for name, arguments in instructions():
        if name != "COPY":
            continue
        stage = re.match(r"--from=(\w+)", arguments)
        if stage:
            assert stage.group(1) in stages
            continue
        for source in arguments.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in allowed, source


def test_build_and_run_share_one_interpreter() -> None:
    bases = [arguments.split()[0] for name, arguments in instructions() if name == "FROM"]
    stages = set(re.findall(r" AS (\w+)", text("Dockerfile")))
    assert len(set(bases) - stages) == 1


def test_the_process_is_signalled_directly_and_is_nobody() -> None:
    chosen = dict(instructions())
    assert json.loads(chosen["CMD"]) == ["nsnet", "serve"]
    assert chosen["STOPSIGNAL"] == "SIGTERM"
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", chosen["USER"])


def health_check(port: int | str, default: int = 8000, variable: str = "NSNET_PORT") -> int:
    _, _, command = dict(instructions())["HEALTHCHECK"].partition(" CMD ")
    assert "['8000']" in command
    python, *arguments = json.loads(command.replace("['8000']", f"['{default}']"))
    assert python == "python"
    # A proxy that the environment names must not be asked.
    environment = {variable: str(port), "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, timeout=30, check=False
    )
    return done.returncode


@pytest.mark.process
def test_the_health_check_follows_the_device_thread() -> None:
    with running() as server:
        port = httpx.URL(server.url).port
        assert port
        assert health_check(port) == health_check(port, variable="PORT") == 0
        server.fake.broken = True
        with server.client() as client:
            client.post("/detect", content=jpeg(), headers={"Content-Type": "image/jpeg"})
            eventually(lambda: client.get("/livez").status_code == 503)
        assert health_check(port) == 1
    assert health_check(port) == 1


@pytest.mark.parametrize("said", ["tcp://10.0.0.1:9000", "", " "])
def test_the_health_check_asks_the_default_port_where_none_is_given(said: str) -> None:
    """As the service, which does not take an address that Kubernetes gives for its port."""
    assert Settings.model_fields["port"].default == 8000
    with running() as server:
        port = httpx.URL(server.url).port
        assert port
        assert health_check(said, default=port) == 0
    assert health_check(said, default=port) == 1


# --- compose ------------------------------------------------------------------------------------


def services() -> dict[str, Any]:
    found: dict[str, Any] = parsed("docker-compose.yml")["services"]
    return found


def literal(environment: dict[str, str], **given: str) -> dict[str, str]:
    """The variables where `given` is set: `${NAME:-default}` is NAME, or its default."""

    def value(match: re.Match[str]) -> str:
        return given.get(match[1]) or match[2]

    return {k: re.sub(r"\$\{(\w+):-([^}]*)\}", value, v) for k, v in environment.items()}


def composed(name: str, **given: str) -> dict[str, str]:
    """The settings in the container of a service of compose's."""
    return ours(image_environment() | literal(services()[name]["environment"], **given))


def ours(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(PREFIX)}


@pytest.mark.parametrize("name", OURS)
def test_the_service_starts_with_these_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = services()[name]
    for variable, value in composed(name).items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert settings.host == "0.0.0.0"  # noqa: S104  (inside the container)
    assert settings.api_keys == ()
    assert service["ports"][0] == f"{service['environment']['NSNET_PUBLISH']}:{settings.port}"
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > settings.drain_delay_s + settings.drain_timeout_s
    assert settings.max_queue >= settings.max_files  # or no full batch would ever be admitted


GIB = 2**30


def most_memory(environment: dict[str, str], cpus: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """GiB, by the sum that the guide gives under "Sizing"."""
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        settings = load_settings()
    workers, file = settings.decode_workers or cpus, settings.max_upload_bytes
    process = 3 if settings.device == "cuda" else 1.3
    images = settings.max_queue * (file + 2.5e6)
    return process + (images + workers * (17 * settings.max_pixels + 3 * file)) / GIB


def test_limits_of_memory_stand_above_what_the_guide_sums_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 4 GB, uploads and decoders might have taken 5.7."""
    limits = [(composed(name), services()[name]["mem_limit"], "g") for name in OURS]
    environment, _ = in_kubernetes()
    [limit] = re.findall(r"limits: \{cpu: \S+ memory: (\d+Gi)\}", text("docs/deployment.md"))
    for given, most, unit in [*limits, (environment, limit, "Gi")]:
        assert most_memory(ours(given), 2, monkeypatch) < int(most.removesuffix(unit))
    assert round(most_memory({}, 2, monkeypatch), 1) == 5.7
    assert "5.7 GiB with the defaults on two cores" in text("docs/deployment.md")


def test_services_are_hardened_and_pinned() -> None:
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        if name in OURS:
            assert service["read_only"] is True
            assert service["init"] is True
            assert service["build"]["context"] == "."
        else:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])


def test_nothing_is_published_to_other_machines_unasked() -> None:
    for service in services().values():
        for port in service["ports"]:
            assert literal({"port": port})["port"].startswith("127.0.0.1:")


def test_compose_builds_with_arguments_that_exist_and_mounts_what_exists() -> None:
    arguments = {a.split("=")[0] for name, a in instructions() if name == "ARG"}
    assert set(services()) == {*OURS, "prometheus", "grafana"}
    assert services()["nsnet-gpu"]["profiles"] == ["gpu"]
    for service in services().values():
        assert set(service.get("build", {}).get("args", {})) <= arguments
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source


def test_prometheus_finds_the_service_and_its_rules() -> None:
    config = parsed("deploy/prometheus/prometheus.yml")
    host, _, port = config["scrape_configs"][0]["static_configs"][0]["targets"][0].partition(":")
    assert host in services()
    assert host in services()["nsnet-gpu"]["networks"]["default"]["aliases"]
    assert "NSNET_PORT" not in image_environment()  # it would go before PORT, where that is given
    assert int(port) == Settings.model_fields["port"].default
    for file in config["rule_files"]:
        assert (ROOT / "deploy/prometheus" / file).exists()


def test_grafana_finds_its_dashboard() -> None:
    grafana = services()["grafana"]
    mounted = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    provider = parsed("deploy/grafana/provisioning/dashboards/nsnet.yml")["providers"][0]
    assert provider["options"]["path"] == mounted["./deploy/grafana/dashboards"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (ROOT / "deploy/grafana/dashboards" / home.name).exists()


# --- nginx --------------------------------------------------------------------------------------

SECONDS = {"s": 1, "m": 60}


def directives() -> dict[str, list[str]]:
    """What nginx is told, by directive, in its order."""
    code = re.sub(r"#.*", "", text("deploy/nginx/nsnet.conf"))
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"([a-z_]+) +([^;{}]+);", code):
        found.setdefault(name, []).append(value.strip())
    return found


def test_nginx_agrees_with_the_settings() -> None:
    told, settings = directives(), Settings()
    [size] = told["client_max_body_size"]
    assert int(size.removesuffix("m")) << 20 == settings.max_request_bytes
    for name in ("proxy_read_timeout", "keepalive_timeout"):
        [value] = told[name]
        seconds = int(value[:-1]) * SECONDS[value[-1]]
        if name == "proxy_read_timeout":
            assert settings.deadline_s < seconds < settings.deadline_s + 10
        else:
            assert seconds < settings.keep_alive_s
    assert told["proxy_set_header"][2] == "X-Forwarded-For $remote_addr"  # not what a client says


def test_nginx_puts_no_image_on_a_disk_and_asks_no_server_thrice() -> None:
    told = directives()
    [body] = told["client_body_temp_path"]
    assert body.startswith("/dev/shm/")  # noqa: S108
    assert told["proxy_request_buffering"] == ["on"]  # else there is nothing to send again
    assert told["proxy_buffering"] == ["off"]
    assert not {"proxy_cache", "proxy_store", "client_body_in_file_only"} & set(told)
    assert told["proxy_next_upstream_tries"] == [str(len(told["server"]))]
    assert "http_500" not in told["proxy_next_upstream"][0]  # what fails here would fail there
    assert told["proxy_pass"] == ["http://nsnet"] * 2  # no path behind it


def test_nginx_bounds_what_one_address_may_have_it_hold() -> None:
    """Bodies are in its memory before a server asks for a key."""
    told = directives()
    [zone] = re.findall(r"zone=(\w+):", told["limit_conn_zone"][0])
    assert re.fullmatch(rf"{zone} [1-9]\d?", told["limit_conn"][0])
    assert told["limit_conn_status"] == ["429"]
    [patience] = told["client_body_timeout"]
    assert int(patience.removesuffix("s")) <= 10


def test_nginx_says_by_itself_what_the_contract_says() -> None:
    conf = text("deploy/nginx/nsnet.conf")
    codes, titles = (
        dict(re.findall(r'(\d{3}) "?(.*?)"?;', re.findall(rf"(?s)\${name} {{(.*?)}}", conf)[0]))
        for name in ("nsnet_code", "nsnet_title")
    )
    assert codes.keys() == titles.keys()
    for status, code in codes.items():
        assert (int(status), titles[status]) == CATALOGUE[code][:2]
    told = set()
    for pages in directives()["error_page"]:
        *causes, where = pages.split()
        assert where == "$nsnet_error"
        changed = [cause[1:] for cause in causes if cause.startswith("=")]
        told |= set(changed or causes)
    assert told == codes.keys()


# --- who is let in ------------------------------------------------------------------------------


def run_by_the_guide() -> dict[str, str]:
    """The settings of the guide's `docker run`, which publishes on this machine alone."""
    [command] = re.findall(r"docker run (.* -p (?:.*\\\n)*.*)", text("docs/deployment.md"))
    assert re.findall(r"-p (\S+)", command) == ["127.0.0.1:8000:8000"]
    return ours(image_environment() | dict(re.findall(r"-e (\w+)=(\S+)", command)))


def in_kubernetes() -> tuple[dict[str, str], str]:
    """The settings of the guide's manifest, and the folder where its secret is mounted."""
    [manifest] = re.findall(r"(?s)```yaml\n(spec:.*?)```", text("docs/deployment.md"))
    spec = yaml.safe_load(manifest)["spec"]
    [container] = spec["containers"]
    [mount], [volume] = container["volumeMounts"], spec["volumes"]
    assert mount["name"] == volume["name"]
    assert f"create secret generic {volume['secret']['secretName']} " in text("docs/deployment.md")
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    return ours(image_environment() | given), mount["mountPath"]


def test_the_guides_pod_tells_clients_behind_an_ingress_apart() -> None:
    """Or wrong keys of one would shut out the others: the default believes no address."""
    environment, _ = in_kubernetes()
    assert environment["NSNET_API_KEYS_FILE"]
    assert ip_network(environment["NSNET_FORWARDED_ALLOW_IPS"]).is_private


SHIPPED: dict[str, Callable[[], dict[str, str]]] = {
    "the guide's docker run": run_by_the_guide,
    "compose": lambda: composed("nsnet"),
    "compose, GPU": lambda: composed("nsnet-gpu"),
    "Kubernetes": lambda: in_kubernetes()[0],
}


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("example", SHIPPED)
def test_the_server_starts_in_each_environment_that_ships(example: str, tmp_path: Path) -> None:
    """As shipped, but for the port and for where the secret is mounted."""
    environment = SHIPPED[example]()
    assert environment["NSNET_HOST"] == "0.0.0.0"  # noqa: S104
    if file := environment.get("NSNET_API_KEYS_FILE"):
        _, mounted = in_kubernetes()
        environment["NSNET_API_KEYS_FILE"] = file.replace(mounted, str(tmp_path))
        (tmp_path / Path(file).name).write_text(keys_of_the_guide())
    environment |= {"NSNET_PORT": "0", "NSNET_DRAIN_DELAY_S": "0"}
    server = Process([sys.executable, "-m", "tests.server.serve_fake"], **environment)
    try:
        url = server.url().replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        eventually(lambda: httpx.get(f"{url}/readyz", timeout=30).status_code == 200, 60)
        assert httpx.get(f"{url}/model", timeout=30).status_code == (401 if file else 200)
        server.terminate()
        assert server.exit_status() == 0
    finally:
        server.popen.kill()
        server.popen.wait(10)


def keys_of_the_guide() -> str:
    [example] = re.findall(r"(?s)```\n(# openssl.*?)```", text("docs/deployment.md"))
    return str(example)


@pytest.mark.parametrize(
    ("environment", "starts"),
    [
        (ours(image_environment()), False),
        (composed("nsnet"), True),
        (composed("nsnet", NSNET_PUBLISH="127.0.0.1:9000"), True),
        (composed("nsnet", NSNET_PUBLISH="8000"), False),
        (composed("nsnet", NSNET_PUBLISH="8000", NSNET_API_KEYS="0123456789abcdef"), True),
        (composed("nsnet", NSNET_PUBLISH="8000", NSNET_ALLOW_ANONYMOUS="true"), True),
        (composed("nsnet-gpu", NSNET_PUBLISH="0.0.0.0:8000"), False),
    ],
)
def test_who_publishes_to_other_machines_needs_keys(
    environment: dict[str, str], starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    if starts:
        settings.check_access()
    else:
        with pytest.raises(SettingsError):
            settings.check_access()


def test_the_guides_keys_are_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(keys_of_the_guide())
    assert [key.name for key in read_keys(file)] == ["shop", "archive"]


# --- the rest -----------------------------------------------------------------------------------


def test_every_variable_that_any_file_names_is_a_setting() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    files = [
        "Dockerfile",
        "docker-compose.yml",
        "README.md",
        "weights/README.md",
        "docs/deployment.md",
        "CONTRIBUTING.md",
    ]
    for file in files:
        named = set(re.findall(r"\bNSNET_[A-Z0-9_]+", text(file)))
        assert named <= known, file


def test_the_guides_name_files_and_targets_that_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z0-9-]+):", text("Makefile")))
    for guide in ("CONTRIBUTING.md", "docs/deployment.md"):
        for path in re.findall(
            r"`((?:app|model|cli|tests|deploy|docs|benchmarks)/[^`]*)`", text(guide)
        ):
            assert (ROOT / path).exists(), path
        assert set(re.findall(r"(?m)(?:^|`)make ([a-z0-9-]+)", text(guide))) <= targets


def test_every_defence_has_a_test_that_exists() -> None:
    table = text("SECURITY.md").partition("## Threats and defences")[2].partition("Not defended")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row.rstrip("| ").rpartition(" | ")[2])
        assert named, row
        for file, test in named:
            assert re.search(rf"(?m)^def {test}\(", text(f"tests/{file}")), (file, test)


def test_the_gates_run_targets_that_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z0-9-]+):", text("Makefile")))
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text()
    assert re.findall(r"(?m)^make (\w+)", script.read_text()) == ["check", "test", "e2e"]
    for repo in parsed(".pre-commit-config.yaml")["repos"]:
        assert repo["repo"] == "local"  # nothing is fetched
        for hook in repo["hooks"]:
            assert hook["language"] == "system"
            assert hook["entry"].removeprefix("make ") in targets
