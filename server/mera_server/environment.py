"""`MERA_*` variables that no command knows: one that is nearly an option is refused, others are told.

An option whose variable is misspelt would silently have its default, which may be a server without keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from mera_server.nearest import nearest
from mera_server.settings import PREFIX
from merasteer.errors import UnknownField

__all__ = ["check_environment"]

# Not options of a command: the clients', the compose file's, the engine's cache, the tests', and what Kubernetes sets for a service
# named mera.
OTHERS = (
    "MERA_URL", "MERA_API_KEY", "MERA_CONFIG", "MERA_MODELS_DIR", "MERA_STORE_DIR", "MERA_KEYS_DIR", "MERA_READ_KEY", "MERA_CACHE",
    "MERA_DATA", "MERA_MODELS", "MERA_SOAK_*", "MERA_BENCH_*", "MERA_SERVICE_*", "MERA_PORT_[0-9]*",
)  # fmt: skip


def check_environment(environ: Mapping[str, str], options: Iterable[str]) -> list[str]:
    """What is to be told of variables that are ignored, a line each. Raises UnknownField for one that is nearly an option's.

    options: names of the variables that commands read. A variable that is set to nothing is not set.
    """
    known, told = sorted(set(options)), []
    for name in sorted(environ):
        if not name.startswith(PREFIX) or not environ[name] or name in known:
            continue
        if any(fnmatchcase(name, other) for other in OTHERS):
            continue
        near = nearest(name.removeprefix(PREFIX), (one.removeprefix(PREFIX) for one in known))
        if near is not None:
            raise UnknownField(f"{name}: no such option, did you mean {PREFIX}{near}? Correct the name, or unset it")
        told.append(f"{name}: no option of mera has this name; it is ignored")
    return told
