"""Every setting of the service: an environment variable with the prefix `NSNET_`.

An empty variable is an unset one, as compose's `${NAME:-}` leaves it. No `.env` file is read.
Neither torch nor scikit-learn is imported here: a mistake is told before the seconds they take.
"""

import difflib
import os
import re
import ssl
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.intake.keyring import Key, parse_keys, plain_key
from model.hardware import Runtime, cores
from model.images import Limits

PREFIX = "NSNET_"
MIB = 1024 * 1024

# What Kubernetes tells every container of a Service called nsnet, or nsnet-and-more, and Docker
# those that are linked to one called nsnet.
_SERVICE = re.compile(
    r"NSNET_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)"
    r"|NSNET_NAME|NSNET_ENV_.+",
    re.DOTALL,
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)
_PATH = re.compile(r"[\w.~/-]*", re.ASCII)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
_HOST = re.compile(r"(\*\.)?[\w.-]+|\[?[0-9a-f]*:[0-9a-f]*:[0-9a-f:.]*\]?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


# What decoding and scoring go by, wherever they are done; all else is about serving.
_BACKEND = frozenset(
    {
        "backbone",
        "backbone_sha256",
        "canvases",
        "checkpoint",
        "deadline_s",
        "decode_cpu_s",
        "decode_workers",
        "device",
        "dtype",
        "engine",
        "log_format",
        "log_level",
        "max_aspect",
        "max_batch",
        "max_pixels",
        "max_upload_bytes",
        "max_wait_ms",
        "precision",
        "provenance",
        "torch_threads",
        "trust_anchors",
    }
)


class SettingsError(Exception):
    """The environment holds what no setting allows."""


class Settings(BaseSettings):
    """The service's settings; see each field's description."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    operations_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of its own for /metrics, which the first one then has no longer, and for "
        "the probes, which it keeps; asks for no key",
    )
    root_path: str = Field(
        "",
        description="path under which a reverse proxy mounts the service; it may strip it or not",
    )
    keep_alive_s: float = Field(
        90.0,
        gt=0,
        le=3600,
        description="how long a connection may wait for another request; more than a balancer "
        "keeps one",
    )
    max_connections: int = Field(
        512, ge=1, description="connections at once; beyond, one gives way that waits on its client"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="comma-separated origins whose web pages may use the service, or *; none: off",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="comma-separated names without port by which the service is asked, *.name: "
        "all below; none: any",
    )
    docs: bool = Field(True, description="whether /docs is served")
    page: bool = Field(True, description="whether the page for people is served at /")
    oip: bool = Field(
        True,
        description="whether the Open Inference Protocol of KServe and Triton is served at /v2",
    )
    forwarded_allow_ips: str = Field(
        "", description="addresses of reverse proxies whose X-Forwarded-For is believed"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level that is logged; no level logs an image or its name"
    )

    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="text: for people; json: one object a line; auto: text on a terminal"
    )
    audit_log: str = Field(
        "", description="file to which a line of JSON is added per image; -: standard output"
    )

    checkpoint: Path | None = Field(
        None, description="the NS-Net checkpoint; without it the one that came with the package"
    )
    backbone: Path | None = Field(
        None, description="the CLIP tower's file; without it the cache, then the registry"
    )
    backbone_sha256: str | None = Field(
        None,
        description="digest that the tower must have, as `nsnet backbone verify` prints it; unset: "
        "one that is not the checkpoint's is only warned of",
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
    explain: bool = Field(
        True, description="whether explain=true is answered, which costs as much as 16 images"
    )
    provenance: bool = Field(
        True, description="whether what a file declares of its origin is part of the answer"
    )
    trust_anchors: Path | None = Field(
        None,
        description="certificates (PEM) of authorities whose C2PA signers are trusted; unset: no "
        "signer is called trusted or not",
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
        0,
        ge=0,
        le=64,
        description="images decoded at once, each in a process of its own; 0: the cores this "
        "process may use",
    )
    decode_cpu_s: float = Field(
        5.0, gt=0, le=600, description="CPU seconds that decoding one image may cost"
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

    api_keys: Annotated[tuple[Key, ...], NoDecode] = Field(
        (),
        repr=False,
        description="comma-separated KEY, NAME:KEY or NAME:sha256:HEX; with any, /detect*, "
        "/model and models at /v2 want one as Bearer token",
    )
    api_keys_file: Path | None = Field(
        None, description="more of them, one a line; read again when it changes"
    )
    allow_anonymous: bool = Field(
        False, description="whether other machines may be served without keys; this one always is"
    )
    publish: str = Field(
        "",
        description="where a container is published on its host, set by compose: 127.0.0.1:... "
        "counts as this machine only",
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

    @field_validator("root_path")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        path = value.strip("/")
        if not _PATH.fullmatch(path):
            raise ValueError("it is no path of letters, digits and -._~/")
        return path and f"/{path}"

    @field_validator("cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        parts = [part.strip().lower() for part in value.split(",") if part.strip()]
        if value and not parts:
            raise ValueError("it lists nothing; leave it empty for the default")
        return parts

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("an origin is https://name or https://name:port, without a path")
        return origins

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_HOST.fullmatch(host) for host in hosts):
            raise ValueError("a host is a name, *.name or an address, without a port")
        return tuple(host.strip("[]") for host in hosts)

    @field_validator("backbone_sha256")
    @classmethod
    def _is_a_digest(cls, value: str | None) -> str | None:
        if value is not None and not _SHA256.fullmatch(value):
            raise ValueError("it is not 64 hexadecimal digits")
        return value

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError("it is none of auto, cpu, cuda and cuda:N")
        return value

    @field_validator("trust_anchors")
    @classmethod
    def _are_certificates(cls, value: Path | None) -> Path | None:
        if value is not None:
            _certificates(value)
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _hash(cls, value: object) -> object:
        return parse_keys(value.split(",")) if isinstance(value, str) else value

    @property
    def notes(self) -> tuple[str, ...]:
        """What the log should say at the start of how the environment was read."""
        if self.api_keys or self.api_keys_file:
            return self._notes
        return (*self._notes, "NSNET_API_KEYS is not set: the service is open to all who reach it")

    def check_access(self, *, anywhere: bool = False) -> None:
        """Check that nobody is let in by an oversight.

        Args:
            anywhere: other machines reach the service, whatever `host` says.

        Raises:
            SettingsError: other machines reach the service, and none of keys and consent is set.
        """
        closed = self.api_keys or self.api_keys_file or self.allow_anonymous
        if anywhere and not closed:
            raise SettingsError(
                "other machines reach this service: set NSNET_API_KEYS or NSNET_API_KEYS_FILE, or "
                "NSNET_ALLOW_ANONYMOUS=true to serve all of them"
            )
        if not (closed or _is_loopback(self.host) or _is_loopback(self.publish.rpartition(":")[0])):
            raise SettingsError(
                f"NSNET_HOST={self.host} is reached by other machines: set NSNET_API_KEYS or "
                "NSNET_API_KEYS_FILE, or NSNET_ALLOW_ANONYMOUS=true to serve all of them, or "
                "listen on 127.0.0.1"
            )

    def anchors(self) -> str:
        """The certificates of `trust_anchors` (PEM); empty where there are none."""
        return _certificates(self.trust_anchors) if self.trust_anchors else ""

    def threads(self) -> int:
        """Threads for the forward pass: not more than the cores that this process may use.

        Too many cost more than too few: eight threads on two cores take six times as long.
        """
        return self.torch_threads or cores()

    def decoders(self) -> int:
        """Images that are decoded at once."""
        return self.decode_workers or cores()

    @property
    def stuck_after_s(self) -> float:
        """Seconds after which a thread that works on one image hangs."""
        # Twice the deadline after which nobody waits for it, and some for a slow disk.
        return 2 * self.deadline_s + 30

    def for_backend(self) -> "Settings":
        """These, what is about serving as by default: no keys, and nothing to be audited."""
        fields = {
            name: field.get_default(call_default_factory=True)
            for name, field in Settings.model_fields.items()
            if name not in _BACKEND
        }
        return self.model_copy(update=fields)

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


def load_settings(host: str | None = None, port: int | None = None) -> Settings:
    """Read the environment.

    Args:
        host: in place of the environment's.
        port: in place of the environment's. Where neither is set, PORT is read, by which many
            platforms tell what they run where to listen.

    Raises:
        SettingsError: one line for all that is wrong, without a value: a variable that is no
            setting, a setting in two spellings, a value that its setting does not allow, settings
            that contradict each other.
    """
    everything = [(name.upper(), value) for name, value in os.environ.items()]
    given = [(name, value) for name, value in everything if value]
    environment = dict(everything) | dict(given)
    injected = {
        field: Settings.model_fields[field].default
        for field in ("port", "operations_port")
        if _SERVICE_ADDRESS.match(environment.get(_variable(field), ""))
    }
    # What is given here goes before the environment.
    chosen: dict[str, object] = dict(injected)
    names = {field: _variable(field) for field in Settings.model_fields}
    others = os.environ.get("PORT", "")
    ours = environment.get(_variable("port")) and "port" not in injected
    if others and not ours and not _SERVICE_ADDRESS.match(others):
        chosen["port"], names["port"] = others, "PORT"
    chosen |= {k: v for k, v in (("host", host), ("port", port)) if v is not None}
    wrong = [*_unknown(environment), *_repeated(name for name, _ in given)]
    try:
        settings = Settings.model_validate(chosen)
    except ValidationError as error:
        wrong += [
            f"{names[str(e['loc'][0])]}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_input=False)
        ]
    else:
        wrong += _contradictions(settings)
    if wrong:
        raise SettingsError("; ".join(wrong))
    notes = [
        f"{_variable(field)} is an address, as Kubernetes sets it for a Service of that name: the "
        f"port is {getattr(settings, field)}"
        for field in injected
    ]
    if os.environ.get("WEB_CONCURRENCY", "1") not in ("", "1"):
        notes.append("WEB_CONCURRENCY is not read: for more than one process, run several services")
    settings._notes = tuple(notes)
    return settings


def own_api_key() -> str | None:
    """The key that a client in this environment sends: the first of NSNET_API_KEYS, if any."""
    values = {name.upper(): value for name, value in os.environ.items() if value}
    given = values.get(f"{PREFIX}API_KEYS", "").split(",")
    return plain_key(next(filter(str.strip, given), "")) or None


def _certificates(path: Path) -> str:
    """Certificates of a file (PEM).

    Raises:
        ValueError: there are none that can be read.
    """
    try:
        pem = path.read_text("ascii", errors="ignore")  # comments may be in any letters
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):  # before OSError, which the first of them is
        raise ValueError("it is no list of certificates (PEM)") from None
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    return pem


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name other than localhost may be any."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _variable(field: str) -> str:
    return f"{PREFIX}{field.upper()}"


def _unknown(environment: Mapping[str, str]) -> Iterator[str]:
    """One clause for each variable that looks like a setting and is none."""
    settings = [field.upper() for field in Settings.model_fields]
    for name, value in environment.items():
        if not name.startswith(PREFIX) or name.removeprefix(PREFIX) in settings:
            continue
        if _SERVICE.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_ADDRESS.match(value)):
            continue
        near = difflib.get_close_matches(name.removeprefix(PREFIX), settings, n=1, cutoff=0.6)
        hint = f"; the nearest is {PREFIX}{near[0]}" if near else ""
        yield f"{repr(name)[1:-1]} is no setting{hint}"


def _repeated(names: Iterable[str]) -> Iterator[str]:
    """One clause for each setting of which several spellings have a value: one would be dropped."""
    counts = Counter(names)
    for variable in map(_variable, Settings.model_fields):
        if counts[variable] > 1:
            yield f"{variable} is set in several spellings; case does not matter: set one alone"


def _contradictions(settings: Settings) -> Iterator[str]:
    if settings.operations_port and settings.operations_port == settings.port:
        yield "NSNET_OPERATIONS_PORT is NSNET_PORT: it is a port of its own, or none"
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
        if isinstance(value, tuple):
            return ",".join(value)
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
