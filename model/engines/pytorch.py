"""The tower in torch: kernel by kernel, and on a GPU as CUDA graphs."""

from collections.abc import Callable

import torch
from torch import Tensor

from model.engines.base import chunk_of, in_parts
from model.nsnet import NSNet

BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # canvases in one forward on a GPU


class TorchEngine:
    """The network's own tower."""

    name = "torch"

    def __init__(self, model: NSNet, device: torch.device, dtype: torch.dtype) -> None:
        model.visual.to(dtype)
        self._model = model.to(device)
        self._chunk = chunk_of(model.visual) if device.type == "cpu" else 0

    def __call__(self, canvases: Tensor) -> Tensor:
        """See `Engine`."""
        return in_parts(self._model.tokens, canvases, self._chunk or len(canvases))


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
        found = run(canvases)

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay


class CudaEngine(TorchEngine):
    """The network's own tower on a GPU, one CUDA graph for each of a few batch sizes.

    Kernel by kernel, Python takes longer to launch the tower than the GPU to run it on a few
    canvases; a graph is one launch. A batch is padded to the next size, a larger one than the
    largest goes in parts.

    Args:
        model: the network.
        device: a GPU.
        dtype: of the tower.
        capture: makes a function replayable on one tensor's memory.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: NSNet,
        device: torch.device,
        dtype: torch.dtype,
        capture: Callable[..., Callable[[], Tensor]] = _captured,
    ) -> None:
        super().__init__(model, device, dtype)
        side = model.config.patches.canvas_size
        shape = (BUCKETS[-1], 3, side, side)
        self._canvases = torch.zeros(shape, dtype=torch.uint8, device=device)
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
