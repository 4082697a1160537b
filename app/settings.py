"""Every setting of the service: an environment variable with the prefix `NSNET_`.

An empty variable is an unset one, as compose's `${NAME:-}` leaves it. No `.env` file is read.
Neither torch nor scikit-learn is imported here: a mistake is told before the seconds they take.
"""

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.hardware import Runtime, cores
from model.images import Limits

PREFIX = "NSNET_"
MIB = 1024 * 1024

# Ours, but read by docker-compose.yml: the published address.
_NO_SETTINGS = frozenset({"NSNET_PUBLISH"})
# What Kubernetes tells every container of a Service called nsnet, or nsnet-and-more, and Docker
# those that are linked to one called nsnet.
_SERVICE = re.compile(
    r"NSNET_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)"
    r"|NSNET_NAME|NSNET_ENV_.+",
    re.DOTALL,
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


class SettingsError(Exception):
    """The environment holds what no setting allows."""


class Settings(BaseSettings):
    """The service's settings; see each field's description."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    root_path: str = Field("", description="path under which a reverse proxy mounts the service")
    docs: bool = Field(True, description="whether /docs is served")
    forwarded_allow_ips: str = Field(
        "", description="addresses of reverse proxies whose X-Forwarded-For is believed"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level that is logged; no level logs an image or its name"
    )

    checkpoint: Path | None = Field(
        None, description="the NS-Net checkpoint; without it the one that came with the package"
    )
    backbone: Path | None = Field(
        None, description="the CLIP tower's file; without it the cache, then the registry"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    engine: Literal["auto", "torch", "openvino", "onnxruntime"] = Field(
        "auto", description="what runs the tower; auto: the fastest here"
    )
    precision: Literal["auto", "float", "int8"] = Field(
        "auto",
        description="what the tower's products multiply in; float: dtype; auto: with the engine's "
        "choice",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of all other operations; auto: bfloat16 on CUDA, AMX and AVX-512 BF16, else "
        "float32",
    )
    canvases: Literal["all", "adaptive"] = Field(
        "adaptive",
        description="how much of an image is looked at: all canvases; adaptive: windows only where "
        "the whole image leaves doubt",
    )
    torch_threads: int = Field(
        0, ge=0, description="threads of the forward pass; 0: the cores this process may use"
    )

    max_batch: int = Field(8, ge=1, le=512, description="images in one forward pass")
    max_wait_ms: float = Field(
        5.0, ge=0, le=1000, description="how long the first image of a batch waits for others"
    )
    max_queue: int = Field(64, ge=1, description="images admitted and not yet answered")
    decode_workers: int = Field(
        0, ge=0, le=64, description="threads that decode images; 0: the cores this process may use"
    )
    deadline_s: float = Field(
        30.0, gt=0, le=600, description="from a request's first byte to its answer"
    )
    drain_delay_s: float = Field(
        0.0, ge=0, le=120, description="after SIGTERM, how long /readyz says 503 before closing"
    )
    drain_timeout_s: float = Field(
        60.0, ge=0, le=600, description="after that, how long admitted requests may take"
    )

    max_upload_bytes: int = Field(32 * MIB, ge=1024, description="bytes of one image file")
    max_request_bytes: int = Field(128 * MIB, ge=1024, description="bytes of a request's body")
    max_files: int = Field(32, ge=1, le=1000, description="images of one batch request")
    max_pixels: int = Field(64_000_000, ge=10_000, description="width x height of one image")
    max_aspect: float = Field(32.0, ge=1, description="longer side over shorter side")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="comma-separated; with any, /detect* and /model want one as Bearer token"
    )
    rate_limit_per_minute: int = Field(
        0, ge=0, description="images per minute per API key, or per address without keys; 0: off"
    )
    cache_size: int = Field(4096, ge=0, description="results kept, by content digest; 0: none")
    cache_ttl_s: float = Field(600.0, gt=0, description="how long a result is kept")

    _notes: tuple[str, ...] = PrivateAttr(())

    @field_validator("engine", mode="before")
    @classmethod
    def _no_precision(cls, value: object) -> object:
        if value == "int8":
            raise ValueError("int8 is a precision: use NSNET_PRECISION=int8")
        return value

    @field_validator("host", "root_path", "forwarded_allow_ips")
    @classmethod
    def _is_text(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("it is no printable text")
        return value

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError("it is none of auto, cpu, cuda and cuda:N")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        keys = [key.strip() for key in value.split(",") if key.strip()]
        if value and not keys:
            raise ValueError("it holds no key; leave it empty to ask for none")
        return keys

    @field_validator("api_keys")
    @classmethod
    def _can_be_sent(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        texts = [key.get_secret_value() for key in keys]
        if not all(text.strip() and text.isprintable() for text in texts):
            raise ValueError("a key is no printable text: no client could send it")
        return keys

    @property
    def notes(self) -> tuple[str, ...]:
        """What the log should say at the start of how the environment was read."""
        if self.api_keys:
            return self._notes
        return (*self._notes, "NSNET_API_KEYS is not set: the service is open to all who reach it")

    def threads(self) -> int:
        """Threads for the forward pass: not more than the cores that this process may use.

        Too many cost more than too few: eight threads on two cores take six times as long.
        """
        return self.torch_threads or cores()

    def decoders(self) -> int:
        """Threads that decode images."""
        return self.decode_workers or cores()

    def runtime(self) -> Runtime:
        """Where and how the tower runs.

        Raises:
            ModelError: the device cannot be used here.
        """
        return Runtime.resolve(
            device=self.device,
            dtype=self.dtype,
            engine=self.engine,
            precision=self.precision,
            threads=self.threads(),
        )

    def limits(self, min_side: int) -> Limits:
        """What an upload may cost at most.

        Args:
            min_side: smallest side that the detector takes, pixels.
        """
        return Limits(
            max_bytes=self.max_upload_bytes,
            max_pixels=self.max_pixels,
            max_aspect=self.max_aspect,
            min_side=min_side,
        )


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        SettingsError: one line for all that is wrong, without a value: a variable that is no
            setting, a setting in two spellings, a value that its setting does not allow, settings
            that contradict each other.
    """
    everything = [(name.upper(), value) for name, value in os.environ.items()]
    given = [(name, value) for name, value in everything if value]
    environment = dict(everything) | dict(given)
    port = f"{PREFIX}PORT"
    injected = bool(_SERVICE_ADDRESS.match(environment.get(port, "")))
    wrong = [*_unknown(environment), *_repeated(name for name, _ in given)]
    try:
        # What is given here goes before the environment.
        settings = Settings(port=Settings.model_fields["port"].default) if injected else Settings()
    except ValidationError as error:
        wrong += [
            f"{_variable(str(e['loc'][0]))}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_input=False)
        ]
    else:
        wrong += _contradictions(settings)
    if wrong:
        raise SettingsError("; ".join(wrong))
    if injected:
        settings._notes = (
            f"{port} is an address, as Kubernetes sets it for a Service called nsnet: the port is "
            f"{settings.port}",
        )
    return settings


def _variable(field: str) -> str:
    return f"{PREFIX}{field.upper()}"


def _unknown(environment: Mapping[str, str]) -> Iterator[str]:
    """One clause for each variable that looks like a setting and is none."""
    settings = {_variable(field) for field in Settings.model_fields}
    for name, value in environment.items():
        if not name.startswith(PREFIX) or name in settings | _NO_SETTINGS:
            continue
        if _SERVICE.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_ADDRESS.match(value)):
            continue
        [nearest] = difflib.get_close_matches(name, settings, n=1, cutoff=0)
        yield f"{repr(name)[1:-1]} is no setting; the nearest is {nearest}"


def _repeated(names: Iterable[str]) -> Iterator[str]:
    """One clause for each setting of which several spellings have a value: one would be dropped."""
    counts = Counter(names)
    for variable in map(_variable, Settings.model_fields):
        if counts[variable] > 1:
            yield f"{variable} is set in several spellings; case does not matter: set one alone"


def _contradictions(settings: Settings) -> Iterator[str]:
    if settings.max_files > settings.max_queue:
        yield "NSNET_MAX_FILES is above NSNET_MAX_QUEUE: no full batch would ever be admitted"
    if settings.max_upload_bytes > settings.max_request_bytes:
        yield "NSNET_MAX_UPLOAD_BYTES is above NSNET_MAX_REQUEST_BYTES: no file so large can arrive"
    if 0 < settings.rate_limit_per_minute < settings.max_files:
        yield "NSNET_RATE_LIMIT_PER_MINUTE is below NSNET_MAX_FILES: no full batch is ever allowed"
    # The default may: a shorter queue only leaves the batches smaller.
    if "max_batch" in settings.model_fields_set and settings.max_batch > settings.max_queue:
        yield "NSNET_MAX_BATCH is above NSNET_MAX_QUEUE: no forward pass would ever be full"


@dataclass(frozen=True, slots=True)
class Described:
    """One setting, for people."""

    variable: str
    value: str
    default: str
    description: str


def describe_settings(settings: Settings) -> list[Described]:
    """Every setting with its value and default; secrets are counted, not shown."""

    def shown(name: str, value: object) -> str:
        if name == "api_keys":
            return f"{len(value)} keys" if isinstance(value, tuple) and value else "none"
        return "" if value is None else str(value)

    return [
        Described(
            _variable(name),
            shown(name, getattr(settings, name)),
            shown(name, field.default),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]
