"""Every setting of the service: an environment variable with the prefix `NSNET_`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.cores import cores

PREFIX = "NSNET_"
DEFAULT_CHECKPOINT = Path(__file__).parent.parent / "weights" / "nsnet-vit-b-16.safetensors"
MIB = 1024 * 1024


class SettingsError(Exception):
    """An environment variable holds what its setting does not allow."""


class Settings(BaseSettings):
    """The service's settings; see each field's description."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

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

    checkpoint: Path = Field(DEFAULT_CHECKPOINT, description="the NS-Net checkpoint")
    backbone: Path | None = Field(
        None, description="the CLIP tower's file; without it the cache, then the registry"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of the tower; auto: bfloat16 on CUDA, AMX and AVX-512 BF16, else float32",
    )
    engine: Literal["auto", "torch", "openvino", "int8"] = Field(
        "auto", description="what runs the tower; auto: the fastest here"
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

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [key.strip() for key in value.split(",") if key.strip()]
        return value

    def threads(self) -> int:
        """Threads for the forward pass: not more than the cores that this process may use.

        Too many cost more than too few: eight threads on two cores take six times as long.
        """
        return self.torch_threads or cores()

    def decoders(self) -> int:
        """Threads that decode images."""
        return self.decode_workers or cores()


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        SettingsError: one line per wrong variable, without its value.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_input=False)
        ]
        raise SettingsError("; ".join(lines)) from None


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
            f"{PREFIX}{name.upper()}",
            shown(name, getattr(settings, name)),
            shown(name, field.default),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]
