"""What ships beside the code names only things that exist."""

import json
import re
from pathlib import Path

import yaml

from app.metrics import Metrics
from app.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent


def exposed() -> set[str]:
    """Every series name that /metrics can hold."""
    names = {"up"}
    for family in Metrics().registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
        for suffix in suffixes.get(family.type, [""]):
            names.add(family.name + suffix)
    return names


def series(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:nsnet|http|process)_[a-z_]+|\bup\b", expression))


def test_the_contracts_metrics_exist() -> None:
    names = exposed()
    for name in (
        "nsnet_images_total", "nsnet_predictions_total", "nsnet_rejected_total",
        "nsnet_stage_duration_seconds_bucket", "nsnet_batch_size_bucket", "nsnet_queue_depth",
        "nsnet_inflight_images", "nsnet_score_bucket", "nsnet_cache_requests_total",
        "nsnet_model_info", "nsnet_model_load_seconds", "http_requests_total",
        "http_request_duration_seconds_bucket",
    ):  # fmt: skip
        assert name in names


def test_dashboard_and_alerts_query_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/nsnet.json").read_text())
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    queries += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    assert len(queries) > 15
    for query in queries:
        assert series(query), query
        assert series(query) <= exposed(), query


def test_compose_mounts_what_exists_and_sets_what_is_a_setting() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert {"nsnet", "nsnet-gpu", "prometheus", "grafana"} == set(compose["services"])
    assert compose["services"]["nsnet-gpu"]["profiles"] == ["gpu"]
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    target = scrape["scrape_configs"][0]["static_configs"][0]["targets"][0]
    assert target.split(":")[0] in compose["services"]


def test_every_variable_that_any_file_names_is_a_setting() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    known.add("NSNET_PUBLISH")  # compose's own: the published address
    files = ["Dockerfile", "docker-compose.yml", "README.md", "weights/README.md",
             "docs/deployment.md", "CONTRIBUTING.md"]  # fmt: skip
    for file in files:
        named = set(re.findall(r"\bNSNET_[A-Z_]+", (ROOT / file).read_text()))
        assert named <= known, file


def test_the_image_holds_what_it_copies() -> None:
    allowed = (ROOT / ".dockerignore").read_text()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in allowed, source
