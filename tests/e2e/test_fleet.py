"""The Ray Serve application on a cluster of this machine, with what a fleet has to stand."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from app.fleet.serve import application
from app.settings import Settings
from tests.fakes import SLOW, load_fake
from tests.server.conftest import eventually
from tests.server.fleet import cluster
from tests.server.test_detect import grey

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Two decoders, and as many scorers as there is work for, up to three."""
    from ray import serve

    address = cluster()
    settings = Settings(cache_size=0, allow_anonymous=True)
    scaling = {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_ongoing_requests": 2,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 1,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 600,
    }
    serve.run(
        application(
            settings,
            load_fake,
            decoding={"num_replicas": 2},
            scoring={"autoscaling_config": scaling},
        )
    )
    yield address
    serve.delete("default")


def replicas(name: str) -> list[psutil.Process]:
    """Processes of a deployment's replicas."""
    title = f"ray::ServeReplica:default:{name}"
    return [one for one in psutil.process_iter() if " ".join(_command(one)).startswith(title)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def asked(url: str, seconds: float, image: Callable[[int], bytes]) -> list[int]:
    """Statuses of four clients, who ask for so long."""
    end = time.monotonic() + seconds

    def one(number: int) -> list[int]:
        statuses = []
        with httpx.Client(base_url=url, timeout=60) as client:
            while time.monotonic() < end:
                answer = client.post("/detect", files={"file": image(number)})
                statuses.append(answer.status_code)
        return statuses

    with ThreadPoolExecutor(4) as pool:
        return [status for statuses in pool.map(one, range(4)) for status in statuses]


@pytest.mark.parametrize("name", ["decoding", "scoring"])
def test_a_replica_that_is_killed_costs_no_request(url: str, name: str) -> None:
    def kill() -> None:
        time.sleep(2)
        replicas(name)[0].kill()

    if name == "scoring":  # there has to be another
        asked(url, 6, lambda _: grey(SLOW))
        eventually(lambda: len(replicas(name)) >= 2, 60)
    killer = threading.Thread(target=kill)
    killer.start()
    statuses = asked(url, 8, lambda number: grey(100 + number))
    killer.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_scorers_become_more_while_images_wait(url: str) -> None:
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                client.post("/detect", files={"file": grey(SLOW)})

    clients = [threading.Thread(target=ask) for _ in range(12)]
    for one in clients:
        one.start()
    try:
        eventually(lambda: len(replicas("scoring")) == 3, 60)
    finally:
        stop.set()
        for one in clients:
            one.join()
