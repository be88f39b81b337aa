"""Every option of `mera serve`, from the command line, `MERA_*` variables and one TOML file, in that order of precedence.

The file holds option names, underscored, at the top level or in a table named after the command:

    store = "probes_store"
    [serve]
    port = 8080
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Set
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mera_server.nearest import meant
from merasteer.errors import InvalidInput, UnknownField

__all__ = ["COMMANDS", "PREFIX", "Settings", "read_config"]

PREFIX = "MERA_"
COMMANDS = (
    "serve",
    "run",
    "collect",
    "fit",
    "calibrate",
    "evaluate",
    "probes",
    "tasks",
    "demo",
    "bench",
    "recertify",
    "keys",
)

_ARTIFACT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}(@[0-9a-f]{4,64})?")
Positive = Annotated[int, Field(ge=1)]
_HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-fA-F:]+\](:[0-9]{1,5})?")


_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 80


class Settings(BaseModel):
    """What one server is started with. An engine size of null is the engine's own default (`merasteer.engine.EngineConfig`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: Annotated[
        str | None, Field(description="model folder, .gguf file or hub id, or demo; none: the built-in demo")
    ] = None
    served_model_name: Annotated[
        tuple[str, ...], Field(description="what requests on /v1 call the model, between commas; none: its id")
    ] = ()
    store: Annotated[Path, Field(description="folder of artifacts, read beside the demo's own")] = Path("probes_store")
    create_store: Annotated[
        bool, Field(description="make the store where it does not exist; without it that is an error")
    ] = False
    host: Annotated[str, Field(description="address to listen on", min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(description="port to listen on, 0 for any free one", ge=0, le=65535)] = 8000
    device: Annotated[str, Field(description="auto, cpu or cuda[:n]")] = "auto"
    device_map: Annotated[
        str | None,
        Field(description="in place of device: auto, balanced, sequential or a device, as accelerate takes it"),
    ] = None
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Field(description="dtype of the weights")] = (
        "auto"
    )
    steering: Annotated[Literal["on", "off"], Field(description="off: nothing is ever steered")] = "on"
    require_certified: Annotated[
        bool,
        Field(
            description="replay the canaries at the start, and end it unless every certificate of a task's artifact holds here"
        ),
    ] = False
    require: Annotated[
        tuple[str, ...],
        Field(
            description="not ready until these are each task's default artifact: TASK or TASK@DIGEST, between commas"
        ),
    ] = ()
    default_task: Annotated[
        str | None, Field(description="task of requests that name none; none: they are not steered")
    ] = None
    max_new_tokens_limit: Annotated[
        Positive | None,
        Field(description="largest max_new_tokens that a request may ask for; none: what the context allows"),
    ] = None
    max_body_bytes: Annotated[Positive, Field(description="largest request body")] = 1_048_576
    max_prompt_tokens: Annotated[
        Positive | None, Field(description="longest prompt; none: what the model and the cache take")
    ] = None
    request_timeout: Annotated[
        float, Field(description="seconds after which a request ends with an error, however far it is", gt=0)
    ] = 600.0
    drain_timeout: Annotated[
        float, Field(description="seconds that running requests have to finish when the server is stopped", ge=0)
    ] = 30.0
    keys_file: Annotated[
        Path | None, Field(description="file of API keys, see mera keys; none: nobody is asked for one")
    ] = None
    open: Annotated[bool, Field(description="others may ask without a key, and this is meant: no warning")] = False
    rate_limit: Annotated[
        float | None, Field(description="generations a second for each key; more are refused with 429", gt=0)
    ] = None
    rate_burst: Annotated[
        Positive | None, Field(description="generations at once for each key; none: those of ten seconds")
    ] = None
    cors_origin: Annotated[
        tuple[str, ...], Field(description="origins whose pages may ask, between commas; * for any; none: no other")
    ] = ()
    allowed_host: Annotated[
        tuple[str, ...],
        Field(
            description="names that requests may call this server by, between commas; * for any; none: any, "
            "but without keys no public name"
        ),
    ] = ()
    tls_cert: Annotated[Path | None, Field(description="certificate chain (PEM): HTTPS in place of HTTP")] = None
    tls_key: Annotated[Path | None, Field(description="its private key (PEM)")] = None
    max_requests: Annotated[Positive | None, Field(description="requests in the batch at once")] = None
    max_waiting: Annotated[
        int | None,
        Field(
            description="requests waiting for a place; while so many do, more are refused (429); none: half of max_requests",
            ge=0,
        ),
    ] = None
    max_policies: Annotated[Positive | None, Field(description="steering vectors resident at once, per hook point")] = (
        None
    )
    max_batch_tokens: Annotated[Positive | None, Field(description="tokens of one forward pass")] = None
    cache_tokens: Annotated[Positive | None, Field(description="tokens that the KV cache holds over all requests")] = (
        None
    )
    page_size: Annotated[Positive | None, Field(description="tokens of one page of that cache")] = None
    share_prefixes: Annotated[
        bool | None, Field(description="compute equal beginnings of prompts once, where no policy touches them")
    ] = None
    pack_weights: Annotated[
        bool | None, Field(description="on a CPU, hold weights in the layout that multiplies fastest")
    ] = None
    tensor_parallel: Annotated[
        Positive, Field(description="processes that each hold a part of the model; start them by torchrun")
    ] = 1
    reload_seconds: Annotated[
        float, Field(description="seconds between two looks at the store and the keys; 0: only when asked", ge=0)
    ] = 5.0
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="how much is logged")] = "info"
    log_format: Annotated[Literal["text", "json"], Field(description="form of the log lines")] = "text"
    otel_endpoint: Annotated[
        str | None, Field(description="URL of an OTLP/HTTP collector that gets a span for each request (extra: otel)")
    ] = None
    log_checks: Annotated[bool, Field(description="health checks and scrapes have a line in the access log, too")] = (
        False
    )
    log_content: Annotated[bool, Field(description="log prompts and answers, too; without it no line holds any")] = (
        False
    )

    @field_validator("cors_origin", "allowed_host", "require", "served_model_name", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        """A text is split at its commas."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("cors_origin")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [origin for origin in value if origin != "*" and not _ORIGIN.fullmatch(origin)]:
            raise ValueError(f"{_shown(wrong[0])} is no origin such as https://example.org:8443, without a path")
        return value

    @field_validator("require")
    @classmethod
    def _are_artifacts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in value if not _ARTIFACT.fullmatch(one)]:
            raise ValueError(
                f"{_shown(wrong[0])} is neither a task's name nor TASK@DIGEST with 4 to 64 hexadecimal digits"
            )
        return value

    @field_validator("allowed_host")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [host for host in value if host != "*" and not _HOST.fullmatch(host)]:
            raise ValueError(f"{wrong[0]!r} is no name such as llm.example.org, without a port")
        return tuple(host.lower() for host in value)

    @model_validator(mode="after")
    def _belong_together(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key: one was given without the other; give both or none")
        if self.rate_burst is not None and self.rate_limit is None:
            raise ValueError("rate_burst: given without rate_limit; give both or none")
        return self

    @property
    def burst(self) -> float:
        """Generations that a key may ask for at once."""
        return max(1.0, 10 * (self.rate_limit or 0.0)) if self.rate_burst is None else float(self.rate_burst)

    @property
    def engine_sizes(self) -> dict[str, Any]:
        """The sizes and switches that were set; the engine's defaults hold for the rest."""
        names = (
            "max_requests", "max_waiting", "max_policies", "max_batch_tokens", "cache_tokens", "page_size", "share_prefixes",
            "pack_weights",
        )  # fmt: skip
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @classmethod
    def load(
        cls,
        given: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        config: Path | None = None,
        known: Set[str] = frozenset(),
    ) -> Settings:
        """The settings from `given` (the command line; None: not given) over `environ` over the file `config`.

        The file is also named by MERA_CONFIG. known: names that other commands read from it. Raises InvalidInput in one line.
        """
        environ = environ or {}
        named = config or (Path(environ[PREFIX + "CONFIG"]) if environ.get(PREFIX + "CONFIG") else None)
        layers: list[tuple[str, Mapping[str, Any]]] = []
        if named is not None:
            values = read_config(named, "serve", known | set(cls.model_fields))
            layers.append((f"{named}: ", {name: value for name, value in values.items() if name in cls.model_fields}))
        layers.append(
            (PREFIX, {name: environ[key] for name in cls.model_fields if environ.get(key := PREFIX + name.upper())})
        )
        layers.append(("--", {name: value for name, value in (given or {}).items() if value is not None}))
        merged = {name: value for _, layer in layers for name, value in layer.items()}
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise InvalidInput(_one_line(error, layers)) from None


def read_config(path: Path, command: str, known: Set[str]) -> dict[str, Any]:
    """The values that the file holds for `command`: its top level, then the command's table. Unknown names are errors."""
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InvalidInput(f"config: {path} cannot be read ({error.strerror}); give a TOML file") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise InvalidInput(f"config: {path} is not TOML in UTF-8 ({error}); write lines such as port = 8000") from None
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    for table in tables.keys() - set(COMMANDS):
        raise UnknownField(
            f"config: {path} has an unknown table [{_shown(table)[1:-1]}]{meant(table, COMMANDS)}; use one of {', '.join(COMMANDS)}"
        )
    values = {name: value for name, value in content.items() if name not in tables} | tables.get(command, {})
    for name in values.keys() - known:
        raise UnknownField(
            f"config: {path} has an unknown option {_shown(name)}{meant(name, known)}; known options: {', '.join(sorted(known))}"
        )
    return values


def _shown(value: object) -> str:
    """For a message, shortened."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def _one_line(error: ValidationError, layers: list[tuple[str, Mapping[str, Any]]]) -> str:
    """The first problem: where the value came from, what it is, what is allowed."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # options that do not go together
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    source = next((source for source, layer in reversed(layers) if name in layer), "")
    spelt = {"--": f"--{name.replace('_', '-')}", PREFIX: PREFIX + name.upper()}.get(source, source + name)
    field = Settings.model_fields.get(name)
    about = f" ({field.description})" if field else ""
    allowed = first["msg"][0].lower() + first["msg"][1:]
    return f"{spelt}: {_shown(first['input'])} is not accepted, {allowed}{about}"
