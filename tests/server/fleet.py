"""`pytest tests/server --fleet`: the contract, asked of the Ray Serve application.

Tests that reach into the server's process, its sockets or its end are skipped: there it has none of
its own.
"""

import atexit
import functools
import itertools
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

import httpx
import pytest

from app.settings import Settings
from tests.fakes import load_fake


class Asked:
    """What is asked over HTTP, by clients with more patience than httpx has: machines are busy."""

    url: str

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=30, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", timeout=30, **options)


class Fleet(Asked):
    """The application on a cluster of this machine; see `conftest.Running`.

    Args:
        deploy: gives its URL; called where that is asked for: many tests are skipped before, and
            others deploy something else in between.
    """

    def __init__(self, deploy: Callable[[], str]) -> None:
        self._deploy = deploy

    @property
    def url(self) -> str:  # type: ignore[override]
        try:
            return self._deploy()
        except AttributeError as error:  # which would skip the test, as below
            raise RuntimeError("it cannot be deployed") from error

    def metric(self, _: str) -> NoReturn:
        """Each ingress has its own, and they go on from test to test."""
        pytest.skip("counts what one server did")

    def exposition(self) -> NoReturn:
        """Likewise."""
        pytest.skip("counts what one server did")

    def ours(self) -> NoReturn:
        """Ray has proxies of its own, and processes that no test reaches into."""
        pytest.skip("is about how our own server speaks HTTP")

    def __getattr__(self, name: str) -> NoReturn:
        pytest.skip(f"reaches into the server's process: {name}")


def fleet_of(settings: Settings, *, anew: bool) -> Fleet:
    """One that is deployed where the settings are others, or it is to know of nothing before."""
    if anew:
        settings = settings.model_copy(update={"cache_ttl_s": settings.cache_ttl_s + next(_MORE)})
    return Fleet(functools.partial(_deployed, pickle.dumps(settings)))


_MORE = itertools.count(1)


@functools.lru_cache(maxsize=1)
def _deployed(settings: bytes) -> str:
    from ray import serve

    from app.fleet.serve import application

    url = cluster()
    chosen: Settings = pickle.loads(settings)  # noqa: S301
    serve.run(application(chosen, load_fake))
    return url


@functools.cache
def cluster() -> str:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    from tests.server.conftest import free_ports

    overflow = tempfile.mkdtemp("", "ray-overflow-", "/dev/shm")

    @atexit.register
    def tidy() -> None:
        ray.shutdown()  # which would come after, and make the folder anew
        shutil.rmtree(overflow, ignore_errors=True)

    # The driver's own prints of the workers' logs would drown the report.
    ray.init(
        "local",  # whatever else runs here
        num_cpus=8,  # of which there may be fewer: it is what replicas ask for
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=300 << 20,
        object_spilling_directory=overflow,
    )
    [port] = free_ports(1)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    return f"http://127.0.0.1:{port}"


def shut_down() -> None:
    """End the cluster: other tests have one of their own."""
    import ray
    from ray import serve

    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
    _deployed.cache_clear()
    cluster.cache_clear()
