"""Whatever happens to a decoder, its image is answered once, and the next one finds another."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from app.decoding import pool
from app.decoding.pool import Decoders, DecodersError
from app.schemas import ProvenanceOut
from benchmarks.signing import authority, signed
from model.images import ImageError, Limits, Picture, decode
from tests.app.provenance import doubles
from tests.app.provenance.files import camera, sourced, with_metadata
from tests.images import encoded, jpeg, photo
from tests.server.conftest import eventually

Start = Callable[..., Decoders]
LIMITS = Limits(max_pixels=20_000_000)


@pytest.fixture
def replaced() -> list[str]:
    return []


@pytest.fixture
def start(replaced: list[str]) -> Iterator[Start]:
    started: list[Decoders] = []

    def one(count: int = 1, wall_s: float = 30, trust_anchors: str = "") -> Decoders:
        decoders = Decoders(
            count, cpu_s=5, wall_s=wall_s, replaced=replaced.append, trust_anchors=trust_anchors
        )
        decoders.start()
        started.append(decoders)
        decoders.check()
        return decoders

    yield one
    for decoders in started:
        decoders.stop()


def pids(decoders: Decoders) -> list[int]:
    return [child._process.pid for child in decoders._children]


def code(asked: Future[Picture]) -> str:
    error = asked.exception(20)
    assert isinstance(error, ImageError), error
    return error.code


def test_pixels_and_facts_are_those_of_this_process(start: Start) -> None:
    decoders = start()
    for data in (jpeg(301, 203), encoded(photo(90, 70), "PNG"), encoded(photo(), "WEBP")):
        ours, theirs = decode(data), decoders.decode([data[:100], data[100:]], LIMITS)
        assert (ours.pixels == theirs.pixels).all()
        assert ours.facts == theirs.facts
        assert theirs.pixels.flags.writeable


def test_what_is_wrong_with_an_image_is_said_as_here_and_ends_nobody(
    start: Start, replaced: list[str]
) -> None:
    decoders = start()
    before = pids(decoders)
    for data, limits in ((b"no image", LIMITS), (jpeg()[:900], LIMITS), (jpeg(), Limits(10, 9))):
        with pytest.raises(ImageError) as ours:
            decode(data, limits)
        with pytest.raises(ImageError) as theirs:
            decoders.decode([data], limits)
        assert (ours.value.code, str(ours.value)) == (theirs.value.code, str(theirs.value))
    assert pids(decoders) == before
    assert replaced == []


def test_pixels_outlive_what_their_decoder_does_next(start: Start) -> None:
    decoders = start()
    first = decoders.decode([jpeg(seed=1)], LIMITS)
    for seed in range(2, 6):
        decoders.decode([jpeg(seed=seed)], LIMITS)
    decoders.stop()
    assert (first.pixels == decode(jpeg(seed=1)).pixels).all()


def has_ended(pid: int) -> bool:
    """Whether a process has, be it that nobody has noticed."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("ends", "answer"),
    [
        (signal.SIGSEGV, "corrupt_image"),
        (signal.SIGABRT, "corrupt_image"),
        (signal.SIGPROF, "too_expensive"),
        (signal.SIGKILL, None),
        (None, "too_expensive"),  # it does nothing any more, and takes no CPU time either
    ],
)
def test_a_decoder_that_ends_is_replaced(
    start: Start, replaced: list[str], ends: signal.Signals | None, answer: str | None
) -> None:
    decoders = start(wall_s=30 if ends else 0.5)
    before = pids(decoders)
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(decoders.decode, [jpeg()], LIMITS)
        eventually(lambda: decoders._idle.qsize() == 1)
        if ends:
            for pid in before:
                os.kill(pid, ends)
                os.kill(pid, signal.SIGCONT)
        if answer is None:  # as a system does that is out of memory: not the image's fault
            assert isinstance(asked.exception(20), DecodersError)
        else:
            assert code(asked) == answer
    reasons = {None: "killed", "corrupt_image": "crashed", "too_expensive": "too_expensive"}
    assert replaced == [reasons[answer]]
    if ends:
        eventually(lambda: all(map(has_ended, before)))  # the second one, too
    else:  # that does nothing either
        with pytest.raises(ImageError):
            decoders.decode([jpeg()], LIMITS)
    picture = decoders.decode([jpeg()], LIMITS)
    assert (picture.pixels == decode(jpeg()).pixels).all()
    assert not set(pids(decoders)) & set(before[:1] if ends is None else before)
    assert decoders.alive


@pytest.mark.parametrize(
    ("ends", "reason"), [(signal.SIGKILL, "killed"), (signal.SIGSEGV, "crashed")]
)
def test_a_decoder_that_ends_while_it_is_idle_costs_no_image(
    start: Start, replaced: list[str], ends: signal.Signals, reason: str
) -> None:
    decoders = start()
    before = [child._process for child in decoders._children]
    for process in before:
        process.send_signal(ends)
    eventually(lambda: all(process.poll() is not None for process in before))
    for _ in before:
        assert decoders.decode([jpeg()], LIMITS).facts.format == "JPEG"
    assert replaced == [reason, reason]
    assert len(pids(decoders)) == len(before)
    assert decoders.alive


def test_what_takes_too_much_memory_is_too_expensive(start: Start, replaced: list[str]) -> None:
    decoders = start()
    for pid in pids(decoders):
        has = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (has + (40 << 20), has + (40 << 20)))
    large = encoded(photo(4, 4).resize((4000, 4000)), "PNG")
    with pytest.raises(ImageError) as refused:
        decoders.decode([large], LIMITS)
    assert refused.value.code == "too_expensive"
    assert decoders.decode([jpeg()], LIMITS).facts.format == "JPEG"
    assert replaced == []  # nobody need start a process for it


def test_memory_is_limited_by_the_image_that_is_allowed(start: Start) -> None:
    decoders = start()
    for _ in range(2):
        decoders.decode([jpeg()], LIMITS)
    for pid in pids(decoders):
        memory, _ = resource.prlimit(pid, resource.RLIMIT_AS)
        assert 17 * LIMITS.max_pixels < memory < 17 * LIMITS.max_pixels + (1 << 30)
        assert resource.prlimit(pid, resource.RLIMIT_CORE)[0] == 0


def test_what_takes_too_much_time_is_too_expensive(replaced: list[str]) -> None:
    """Of a core, however long that takes on a machine that has other things to do."""
    decoders = Decoders(1, cpu_s=0.05, wall_s=30, replaced=replaced.append)
    decoders.start()
    try:
        for _ in range(5):  # what was spent before is no later image's
            decoders.decode([jpeg()], LIMITS)
        with pytest.raises(ImageError) as refused:
            decoders.decode([encoded(photo(3000, 3000), "PNG")], LIMITS)
        assert refused.value.code == "too_expensive"
        assert replaced == ["too_expensive"]
        decoders.decode([jpeg()], LIMITS)
    finally:
        decoders.stop()


def test_where_memory_ends_a_decoder_goes_before_the_service(start: Start) -> None:
    for pid in pids(start()):
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


def test_a_decoder_knows_no_keys_and_loads_no_torch(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSNET_API_KEYS", "a-secret-of-the-operators")
    decoders = start()
    for pid in pids(decoders):
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        loaded = Path(f"/proc/{pid}/maps").read_text()
        assert not any(name in loaded for name in ("torch", "pydantic", "c2pa"))
        assert "simplejpeg" in loaded or "PIL" in loaded  # they are seen so


def test_many_threads_share_few_decoders(start: Start) -> None:
    decoders = start(2)
    files = [jpeg(100 + seed, 80, seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(lambda data: decoders.decode([data], LIMITS), files))
    assert [picture.facts.width for picture in pictures] == [100 + seed for seed in range(40)]
    assert Counter(len(pids(decoders)) for _ in range(2)) == {3: 2}


def test_the_end_waits_for_no_decoder_and_leaves_none(start: Start) -> None:
    decoders = start()
    before = [child._process for child in decoders._children]
    for process in before:
        os.kill(process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(decoders.decode, [jpeg()], LIMITS)
        eventually(lambda: decoders._idle.qsize() == 1)
        began = time.monotonic()
        decoders.stop()
        assert isinstance(asked.exception(20), DecodersError)
        assert time.monotonic() - began < 5
    assert {process.wait(5) for process in before} == {-signal.SIGKILL}
    with pytest.raises(DecodersError):
        decoders.decode([jpeg()], LIMITS)


def test_where_none_can_be_started_that_is_said_until_one_can(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders = start()
    popen = subprocess.Popen

    def none(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", none)
    for pid in pids(decoders):
        os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        with pytest.raises(DecodersError):
            decoders.decode([jpeg()], LIMITS)
    assert not decoders.alive
    monkeypatch.setattr(subprocess, "Popen", popen)
    assert decoders.decode([jpeg()], LIMITS).facts.format == "JPEG"
    assert decoders.alive


def test_where_there_are_no_files_in_memory_this_process_decodes(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoders, "ISOLATED", False)
    decoders = start()
    assert pids(decoders) == []
    picture = decoders.decode([jpeg()], LIMITS)
    assert (picture.pixels == decode(jpeg()).pixels).all()


def test_of_an_image_whose_pixels_are_let_go_nothing_is_left(start: Start) -> None:
    decoders = start()
    files = len(list(Path("/proc/self/fd").iterdir()))
    picture = decoders.decode([jpeg()], LIMITS)
    pixels = weakref.ref(picture.pixels)
    assert "memfd:image" in Path("/proc/self/maps").read_text()
    del picture
    assert pixels() is None
    assert "memfd:image" not in Path("/proc/self/maps").read_text()
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def inspect(
    decoders: Decoders, parts: list[bytes], limits: Limits
) -> tuple[Picture, ProvenanceOut, bool]:
    picture, found, is_read, _ = decoders.inspect(parts, limits)
    assert found is not None
    return picture, found, is_read


def test_what_a_file_declares_comes_with_its_picture(start: Start, replaced: list[str]) -> None:
    decoders = start()
    data = signed(with_metadata("JPEG", exif=camera()), "image/jpeg")
    for _ in range(3):
        picture, found, is_read = inspect(decoders, [data[:99], data[99:]], LIMITS)
        assert is_read
        assert (picture.pixels == decode(data).pixels).all()
        assert (found.declares, found.c2pa.status, found.c2pa.trusted) == (
            "ai_generated",
            "valid",
            None,
        )
        assert found.exif.make == "Panasonic"
        assert inspect(decoders, [jpeg()], LIMITS)[1].declares == "nothing"
        decoders.decode([data], LIMITS)
    assert replaced == []


def test_trust_anchors_reach_every_decoder(start: Start) -> None:
    decoders = start(trust_anchors=authority())
    data = signed(jpeg(), "image/jpeg")
    for _ in range(2):
        assert inspect(decoders, [data], LIMITS)[1].c2pa.trusted is True
    for pid in pids(decoders):
        os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        with contextlib.suppress(DecodersError):
            assert inspect(decoders, [data], LIMITS)[1].c2pa.trusted is True


def test_what_is_wrong_with_an_image_is_said_and_not_what_it_declares(start: Start) -> None:
    decoders = start()
    with pytest.raises(ImageError) as refused:
        inspect(decoders, [b"no image"], LIMITS)
    assert refused.value.code == "unsupported_media_type"
    assert inspect(decoders, [jpeg()], LIMITS)[1].declares == "nothing"


@pytest.mark.parametrize(
    ("deed", "reason", "told"),
    [
        (doubles.KILLS_ITSELF, "crashed", "a decoder is replaced: crashed"),
        (doubles.IS_KILLED, "killed", "a decoder is replaced: killed"),
        (doubles.COMPUTES_FOR_EVER, "too_expensive", "a decoder is replaced: too_expensive"),
        (doubles.SLEEPS_FOR_EVER, "too_expensive", "a decoder is replaced: too_expensive"),
        (doubles.HOARDS, None, ""),
        (doubles.FAILS, None, "unexpected LookupError"),
        (doubles.OPENS, None, "unexpected OSError"),  # it may not
        (doubles.CONNECTS, None, "unexpected OSError"),  # nor may it that
    ],
)
def test_whatever_a_manifest_does_to_its_reader_the_picture_is_given(
    start: Start,
    replaced: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    deed: str,
    reason: str | None,
    told: str,
) -> None:
    data = signed(with_metadata("JPEG", xmp=sourced()), "image/jpeg")
    doubles.write_library(tmp_path, deed)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pool, "PROVENANCE_WALL_S", 0.5 if deed == doubles.SLEEPS_FOR_EVER else 30)
    decoders = start()
    picture, found, is_read = inspect(decoders, [data], LIMITS)
    assert not is_read
    assert (picture.pixels == decode(data).pixels).all()
    assert (found.c2pa.status, found.c2pa.declares) == ("unverified", "nothing")
    assert found.declares == "ai_generated"  # what nobody signed was told before
    assert replaced == ([reason] if reason else [])
    assert told in caplog.text
    assert "may quote" not in caplog.text
    _, found, is_read = inspect(decoders, [jpeg()], LIMITS)
    assert is_read
    assert found.c2pa.status == "absent"


def test_a_decoder_that_says_no_more_than_the_facts_costs_what_a_file_declares(
    start: Start, replaced: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "from app.provenance.declarations import Declarations\n"
        "Declarations.reports = lambda *_: os.abort()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    decoders = start()
    picture, found, is_read = inspect(decoders, [with_metadata("PNG", xmp=sourced())], LIMITS)
    assert not is_read
    assert picture.facts.format == "PNG"
    assert (found.declares, found.iptc.status, found.c2pa.status) == (
        "nothing",
        "unverified",
        "unverified",
    )
    assert replaced == ["crashed"]


def test_where_there_are_no_files_in_memory_declarations_are_read_here(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoders, "ISOLATED", False)
    decoders = start(trust_anchors=authority())
    picture, found, is_read = inspect(decoders, [signed(jpeg(), "image/jpeg")], LIMITS)
    assert is_read
    assert (picture.pixels == decode(jpeg()).pixels).all()
    assert found.c2pa.trusted is True


def test_a_decoder_that_checks_signatures_is_not_worn_out_by_it(
    start: Start, replaced: list[str]
) -> None:
    decoders = start()
    data = signed(jpeg(), "image/jpeg")
    before = pids(decoders)
    for _ in range(40):
        inspect(decoders, [data], LIMITS)
    assert pids(decoders) == before
    for pid in before:
        kilobytes = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        assert kilobytes is not None
        assert int(kilobytes[1]) < 120_000
    assert replaced == []
