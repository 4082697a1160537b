import threading

from app.cache import ResultCache
from app.metrics import Metrics


def count(metrics: Metrics, result: str) -> float:
    return metrics.registry.get_sample_value("nsnet_cache_requests_total", {"result": result}) or 0


def test_it_keeps_so_many_and_counts() -> None:
    metrics = Metrics()
    cache: ResultCache[str] = ResultCache(2, 60, metrics)
    assert cache.find("a") is None
    for key in "abc":
        cache.keep(key, key.upper())
    assert [cache.find(key) for key in "abc"] == [None, "B", "C"]
    assert (count(metrics, "hit"), count(metrics, "miss")) == (2, 2)


def test_it_forgets_what_is_old() -> None:
    cache: ResultCache[str] = ResultCache(2, 0, Metrics())
    cache.keep("a", "A")
    assert cache.find("a") is None


def test_without_room_it_keeps_and_counts_nothing() -> None:
    metrics = Metrics()
    cache: ResultCache[str] = ResultCache(0, 60, metrics)
    cache.keep("a", "A")
    assert cache.find("a") is None
    assert (count(metrics, "hit"), count(metrics, "miss")) == (0, 0)


def test_threads_do_not_get_into_each_others_way() -> None:
    cache: ResultCache[int] = ResultCache(50, 60, Metrics())
    wrong: list[object] = []

    def use(start: int) -> None:
        try:
            for i in range(3000):
                key = (start + i) % 100
                cache.keep(key, key)
                if cache.find(key) not in (key, None):
                    wrong.append(key)
        except Exception as error:  # noqa: BLE001
            wrong.append(error)

    threads = [threading.Thread(target=use, args=(n * 13,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
