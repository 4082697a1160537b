"""The Ray Serve application on a cluster of this machine, with what a fleet has to stand."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from app.fleet.serve import application
from app.settings import Settings
from tests.fakes import SLOW, load_fake
from tests.images import encoded
from tests.server.conftest import eventually
from tests.server.fleet import cluster, shut_down
from tests.server.test_detect import grey

SHARED = Path("/dev/shm")  # noqa: S108

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
    eventually(lambda: len(asked(address, 2, lambda number: grey(100 + number))) > 20, 120)
    yield address
    shut_down()


def started(title: str) -> list[psutil.Process]:
    """Processes of this cluster, by how their command lines begin."""
    children = psutil.Process().children(recursive=True)
    return [one for one in children if " ".join(_command(one)).startswith(title)]


def replicas(name: str) -> list[psutil.Process]:
    """Processes of a deployment's replicas."""
    return started(f"ray::ServeReplica:default:{name}")


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


@pytest.mark.parametrize("name", ["ingress", "decoding"])
def test_torch_is_loaded_by_scorers_alone(url: str, name: str) -> None:
    """The first request to each replica waited four seconds for it."""
    picture = {"file": grey(0, (600, 450))}
    answer = httpx.post(f"{url}/detect?explain=true", files=picture, timeout=60).json()
    assert answer["evidence"]["heatmap"]
    [scorer, *_], [other, *others] = replicas("scoring"), replicas(name)
    assert any("torch" in path.name for path in _mapped(scorer))
    assert not [path for one in (other, *others) for path in _mapped(one) if "torch" in path.name]


@pytest.mark.parametrize("name", ["decoding", "scoring"])
def test_a_replica_that_is_killed_costs_no_request(url: str, name: str) -> None:
    def kill() -> None:
        time.sleep(2)
        replicas(name)[0].kill()

    if name == "scoring":  # there has to be another
        asked(url, 8, lambda number: grey(SLOW, (80, 70 + number)))  # others' would be shared
        eventually(lambda: len(replicas(name)) >= 2, 120)
    killer = threading.Thread(target=kill)
    killer.start()
    statuses = asked(url, 8, lambda number: grey(100 + number))
    killer.join()
    assert len(statuses) > 8
    assert set(statuses) == {200}


def test_no_picture_touches_a_disk_where_the_object_store_is_full(url: str) -> None:
    """Ray writes what it has no room for to files: to its temporary folder, unless it is told."""
    [store] = started(_raylet())
    [session] = [
        Path(a.partition("=")[2]) for a in store.cmdline() if a.startswith("--session_dir=")
    ]
    known = set(session.rglob("*")) | _mapped(store)
    files = set[Path]()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            large = (one for one in session.rglob("*") if one.is_file() and _size(one) > 100_000)
            files.update(large, _mapped(store), SHARED.rglob("ray-overflow-*/*"))

    watching = threading.Thread(target=watch)
    watching.start()

    def ask(number: int) -> int:
        image = Image.new("RGB", (5000, 4000 + number), (SLOW,) * 3)  # 60 MB of pixels
        files = {"file": encoded(image, "PNG", compress_level=1)}
        return httpx.post(f"{url}/detect", files=files, timeout=120).status_code

    try:
        with ThreadPoolExecutor(24) as pool:
            statuses = set(pool.map(ask, range(24)))
    finally:
        done.set()
        watching.join()
    assert statuses == {200}
    assert any("ray-overflow-" in str(one) for one in files), "the store was never full"
    assert {
        one
        for one in files - known
        if SHARED not in one.parents and session / "logs" not in one.parents
    } == set()


def _mapped(process: psutil.Process) -> set[Path]:
    return {Path(one.path) for one in process.memory_maps() if one.path.startswith("/")}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _raylet() -> str:
    import ray

    return str(Path(ray.__file__).parent / "core/src/ray/raylet/raylet")


def test_scorers_become_more_while_images_wait(url: str) -> None:
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                client.post("/detect", files={"file": grey(SLOW, (80, 70 + number))})

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for one in clients:
        one.start()
    try:
        eventually(lambda: len(replicas("scoring")) == 3, 120)
    finally:
        stop.set()
        for one in clients:
            one.join()
