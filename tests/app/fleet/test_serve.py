"""Replicas as plain objects, and the files that they are deployed with."""

import asyncio
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from app.backend import Result
from app.decoding.pool import Opened
from app.errors import ApiError
from app.fleet.serve import Decoding, Ingress, Scoring, application, build
from app.schemas import TimingsOut
from app.settings import Settings, SettingsError
from model.detector import Score
from model.images import Facts, Picture
from model.verdicts import Reason
from tests.fakes import POISON, FakeDetector, evidence_from, grounds_of, load_fake
from tests.images import jpeg
from tests.server.conftest import ROOT, eventually
from tests.server.test_detect import grey

SETTINGS = Settings(allow_anonymous=True)
FILES = sorted((ROOT / "deploy/ray").glob("*.yaml"))


def test_a_decoder_answers_also_what_is_wrong() -> None:
    async def run() -> None:
        decoding = Decoding(SETTINGS)
        opened = await decoding(jpeg(80, 70), 64, "id")
        assert isinstance(opened, Opened)
        assert (opened.picture.facts.width, opened.is_read) == (80, True)
        assert opened.provenance is not None
        assert opened.took_s > 0
        refused = [await decoding(data, 64, "id") for data in (b"no image", grey(1, (60, 60)))]
        assert [r.code for r in refused if isinstance(r, ApiError)] == [
            "unsupported_media_type",
            "image_too_small",
        ]
        decoding.check_health()

    asyncio.run(run())


def test_files_that_nobody_waits_for_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may send many that are expensive, and leave."""
    begun, going_on = list[str](), threading.Event()

    def opening(*given: Any) -> ApiError:
        begun.append(given[-1])
        going_on.wait(20)
        return ApiError("corrupt_image", "Damaged.")

    monkeypatch.setattr("app.fleet.serve.open_upload", opening)

    async def run() -> None:
        decoding = Decoding(SETTINGS)
        asked = [asyncio.create_task(decoding(b"", 64, str(n))) for n in range(5)]
        await asyncio.to_thread(eventually, lambda: begun)
        for task in asked[1:4]:
            task.cancel()
        await asyncio.wait(asked[1:4])
        going_on.set()
        await asyncio.gather(asked[0], asked[4])

    asyncio.run(run())
    assert begun == ["0", "4"]


def test_a_decoder_that_hangs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, going_on = threading.Event(), threading.Event()

    def hang(*_: Any) -> None:
        entered.set()
        going_on.wait(20)

    monkeypatch.setattr("app.fleet.serve.open_upload", hang)

    async def run() -> None:
        decoding = Decoding(SETTINGS)
        asked = asyncio.create_task(decoding(b"", 64, "id"))
        await asyncio.to_thread(entered.wait, 20)
        decoding.check_health()
        decoding._threads._stuck_after_s = 0.0
        with pytest.raises(RuntimeError):
            decoding.check_health()
        going_on.set()
        await asked

    asyncio.run(run())


@pytest.mark.parametrize(("given", "threads"), [(0, 3), (1, 1)])
def test_a_scorer_has_threads_for_its_own_cores_alone(
    monkeypatch: pytest.MonkeyPatch, given: int, threads: int
) -> None:
    """There may be many of them on a machine."""

    class Context:
        def get_assigned_resources(self) -> dict[str, float]:
            return {"CPU": 3.5}

    monkeypatch.setattr("ray.get_runtime_context", Context)
    asked = []

    def load(settings: Settings) -> FakeDetector:
        asked.append(settings.threads())
        return FakeDetector()

    Scoring(Settings(allow_anonymous=True, torch_threads=given), load)
    assert asked == [threads]


def picture(value: int) -> Opened:
    pixels = np.full((70, 80, 3), value, np.uint8)
    return Opened(Picture(pixels, Facts("PNG", 80, 70, ())), None, took_s=0.25)


def test_a_scorer_scores_what_comes_at_once_in_one_batch() -> None:
    fake = FakeDetector()

    async def run() -> None:
        settings = Settings(torch_threads=1, allow_anonymous=True)
        # Longer than any machine takes: the batch waits for the three that it is told of.
        settings = settings.model_copy(update={"max_wait_ms": 600_000})
        scoring = Scoring(settings, lambda _: fake)
        answers = await asyncio.gather(*(scoring(picture(v), "id", False) for v in (100, 101, 102)))
        for (model, outcome), value in zip(answers, (100, 101, 102), strict=True):
            assert model == fake.about.identity
            assert isinstance(outcome, Result)
            assert outcome.score.value == pytest.approx(value / 255)
            assert outcome.timings.decode == 250
        assert fake.batches == [3]
        _, poisoned = await scoring(picture(POISON), "id", False)
        assert isinstance(poisoned, ApiError)
        assert poisoned.code == "inference_failed"
        error = ApiError("corrupt_image", "Damaged.")
        assert await scoring(error, "id", False) == (fake.about.identity, error)
        assert await scoring.about() == fake.about
        scoring.check_health()

    asyncio.run(run())


def test_a_scorer_whose_device_is_gone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers would be errors, and quick ones: most of what comes would go there."""
    fake, ended = FakeDetector(), list[int]()
    monkeypatch.setattr("os._exit", ended.append)

    async def run() -> None:
        scoring = Scoring(Settings(torch_threads=1, allow_anonymous=True), lambda _: fake)
        await scoring(picture(POISON), "id", False)
        assert not ended
        fake.broken = True
        await scoring(picture(100), "id", False)
        await asyncio.to_thread(eventually, lambda: not scoring._scorer.alive)
        await scoring(picture(101), "id", False)
        assert ended
        with pytest.raises(RuntimeError):
            scoring.check_health()

    asyncio.run(run())


def test_without_keys_or_consent_it_does_not_start() -> None:
    """Ray's proxies listen to a network, whatever NSNET_HOST says."""

    async def begun(settings: Settings) -> None:
        class Handle:
            @property
            def about(self) -> "Handle":
                return self

            ready = about

            async def remote(self) -> Any:
                return FakeDetector.about

        handle: Any = Handle()
        await Ingress.__init__(object.__new__(Ingress), settings, handle, handle)

    with pytest.raises(SettingsError, match="NSNET_ALLOW_ANONYMOUS"):
        asyncio.run(begun(Settings(host="127.0.0.1")))
    asyncio.run(begun(SETTINGS))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_deployed_is_what_there_is(path: Path) -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    [shipped] = schema.applications
    assert shipped.import_path == f"{build.__module__}:{build.__name__}"
    names = {deployment.name for deployment in shipped.deployments}
    assert names == {"ingress", "decoding", "scoring"}
    variables = {
        name.removeprefix("NSNET_").lower(): value
        for name, value in shipped.runtime_env["env_vars"].items()
    }
    assert variables.keys() <= Settings.model_fields.keys()
    assert "api_keys_file" in variables
    settings = Settings(**variables)
    for deployment in shipped.deployments:
        assert deployment.autoscaling_config
        if deployment.name == "ingress":
            assert deployment.max_ongoing_requests > settings.max_queue  # which refuses first
        if deployment.name == "scoring":
            assert deployment.max_ongoing_requests >= settings.max_batch
    assert application(SETTINGS, load_fake)


@pytest.mark.process
def test_an_ingress_answers_without_torch() -> None:
    """It took a gigabyte in each, and with the first request four seconds."""
    grounds = grounds_of(np.zeros((450, 600, 3), np.uint8))
    score = Score(0.5, 0.0, 1, (Reason.LOW_QUALITY,), evidence=evidence_from(grounds, 26))
    timings = TimingsOut(decode=0, patches=0, queue=0, inference=0)
    result = Result(Facts("JPEG", 600, 450, ()), None, score, timings)
    code = f"""
import asyncio, pickle, sys
import httpx
from app.fleet.serve import create_app, fleet
from app.settings import Settings

class Handle:
    def remote(self, *_):
        answer = asyncio.get_running_loop().create_future()
        answer.set_result((about.identity, result))
        return answer

about, result = pickle.loads({pickle.dumps((FakeDetector.about, result))!r})

async def run():
    app = create_app(Settings(), fleet(about, Handle(), Handle()))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://ingress") as client,
    ):
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
        answer = (await client.post("/detect?explain=true", content=b"picture")).json()
        assert answer["verdict"] == "uncertain", answer
        assert answer["evidence"]["heatmap"]["image"]

asyncio.run(run())
assert not {{"torch", "sklearn"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.process
def test_a_decoder_decodes_without_torch() -> None:
    """Likewise."""
    code = f"""
import asyncio, sys
from app.fleet.serve import Decoding
from app.settings import Settings

opened = asyncio.run(Decoding(Settings())({jpeg(80, 70)!r}, 64, "id"))
assert opened.picture.facts.width == 80
assert not {{"torch", "sklearn"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
