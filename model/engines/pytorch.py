"""The tower in torch: kernel by kernel, and on a GPU as CUDA graphs."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from model.engines.base import Engine, Fetched, chunk_of, in_parts
from model.hardware import Runtime
from model.network import NSNet

BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # canvases in one forward on a GPU


class TorchEngine(Engine):
    """The network's own tower.

    Args:
        model: the network; moved to the device, its tower to the dtype.
        runtime: device and dtype.
    """

    name = "torch"
    owns_weights = False

    def __init__(self, model: NSNet, runtime: Runtime) -> None:
        model.visual.to(runtime.dtype)
        self.precision = runtime.dtype_name
        self._device = runtime.device
        self._model = model.to(runtime.device)
        self._chunk = chunk_of(model.visual) if runtime.device.type == "cpu" else 0

    def __call__(self, canvases: Tensor) -> Tensor:
        """See `Engine`."""
        return in_parts(self._model.tokens, canvases, self._chunk or len(canvases))

    def torch_threads(self, threads: int) -> int:
        """All of them: they are the engine's."""
        return threads

    def upload(self, pixels: Tensor) -> Tensor:
        """See `Engine`."""
        return pixels.to(self._device)


def _captured(run: Callable[[Tensor], Tensor], canvases: Tensor) -> Callable[[], Tensor]:
    """`run(canvases)` as a CUDA graph: reads what `canvases` holds when it is replayed."""
    device = canvases.device
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):  # kernels are chosen, and their workspaces taken, in the first runs
            run(canvases)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # The stream of this device: torch's own for captures is the first device's, where nothing of
    # this would be recorded. What other threads do meanwhile, e.g. take pinned memory, is none of
    # this graph's business.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        tokens = run(canvases)

    def replay() -> Tensor:
        graph.replay()
        return tokens

    return replay


class CudaEngine(TorchEngine):
    """The network's own tower on a GPU, one CUDA graph for each of a few batch sizes.

    Kernel by kernel, Python takes longer to launch the tower than the GPU to run it on a few
    canvases; a graph is one launch. A batch is padded to the next size, a larger one than the
    largest goes in parts.

    Args:
        model: the network.
        runtime: on a GPU.
        capture: makes a function replayable on one tensor's memory.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: NSNet,
        runtime: Runtime,
        capture: Callable[..., Callable[[], Tensor]] = _captured,
    ) -> None:
        super().__init__(model, runtime)
        shape = (BUCKETS[-1], 3, *model.visual.image_size)
        self._canvases = torch.zeros(shape, dtype=torch.uint8, device=runtime.device)
        self._streams = threading.local()
        self._replays = {n: capture(model.tokens, self._canvases[:n]) for n in BUCKETS}

    @torch.inference_mode()
    def __call__(self, canvases: Tensor) -> Tensor:
        """See `Engine`."""
        return in_parts(self._run, canvases, BUCKETS[-1])

    def _run(self, canvases: Tensor) -> Tensor:
        size = next(n for n in BUCKETS if n >= len(canvases))
        self._canvases[: len(canvases)].copy_(canvases)
        # The next replay writes to the same memory.
        return self._replays[size]()[: len(canvases)].clone()

    def upload(self, pixels: Tensor) -> Tensor:
        """See `Engine`; inside `beside`, which waits for it."""
        return pixels.pin_memory().to(self._device, non_blocking=True)

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """On this thread's stream beside the forward's, done in the end."""
        # One a thread: memory that one stream let go of is not another's.
        stream: torch.cuda.Stream | None = getattr(self._streams, "own", None)
        if stream is None:
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._streams.own = stream
        with torch.cuda.stream(stream):
            yield
            stream.synchronize()  # only this thread waits: the forward goes on meanwhile

    def fetch(self, values: Tensor) -> Fetched:
        """Copied behind the forward, into pinned memory."""
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(values.device))
        return _Copied(host, copied)


class _Copied:
    """Numbers in pinned memory, still being written to until the event."""

    def __init__(self, host: Tensor, copied: torch.cuda.Event) -> None:
        self._host = host
        self._copied = copied

    @property
    def ready(self) -> bool:
        done: bool = self._copied.query()  # type: ignore[no-untyped-call]
        return done

    def values(self) -> list[float]:
        self._copied.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers
