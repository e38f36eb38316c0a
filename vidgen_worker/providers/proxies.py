"""The environment's proxies and certificates, looked at before anything is built with them.

httpx reads them while a client is made, and its errors name no variable. Nothing here sends a
request.
"""

import importlib.util
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vidgen_worker.domain.foreign_text import printable

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_SCHEMES = ("http", "https", "socks5", "socks5h")
_HOST = re.compile(r"[\w.:-]+")
"""Letters of any alphabet, and what an address of IPv6 is written with."""
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")


def problems(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each variable with which httpx would fail."""
    found = [*_certificates(environment)]
    for name, value in _set(environment, _PROXIES):
        if said := wrong_with(value):
            found.append(f"{name}: {said}; correct it, or unset it")
    if not found and environment is os.environ:
        found += _the_rest(environment)
    return found


def names_set(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The variables that send our requests through a proxy."""
    return [name for name, _ in _set(environment, _PROXIES)]


def secrets(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The passwords of proxies."""
    found = []
    for _, value in _set(environment, _PROXIES):
        try:
            password = urlsplit(value if "://" in value else f"http://{value}").password
        except ValueError:
            found.append(value)
            continue
        if password:
            found += [password, unquote(password)]
    return found


def _set(environment: Mapping[str, str], names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Name and value of those that are set, in either spelling."""
    for name, value in environment.items():
        if name.lower() in names and value.strip():
            yield name, value.strip()


def wrong_with(value: str) -> str | None:
    """Return what is wrong with a proxy's URL."""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port, host = parts.port, parts.hostname
    except ValueError:
        return "it is no URL of a proxy; write http://host:port"
    if parts.scheme not in _SCHEMES or not _HOST.fullmatch(host or "") or port == 0:
        return "it is no URL of a proxy; write http://host:port"
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        return "a SOCKS proxy needs the package socksio (pip install socksio)"
    import httpx  # noqa: PLC0415 - a tenth of a second that most verbs need not wait for

    try:
        httpx.Proxy(value if "://" in value else f"http://{value}")
    except (ValueError, httpx.InvalidURL):
        return "it is no URL of a proxy; write http://host:port"
    return None


def _certificates(environment: Mapping[str, str]) -> Iterator[str]:
    file, folder = environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR")
    if file:
        try:
            ssl.create_default_context(cafile=file)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            yield (
                f"SSL_CERT_FILE: {printable(file, 200)} can't be used as certificates "
                f"({_reason(error)}); correct it, or unset it"
            )
    elif folder:
        try:
            names = [path.name for path in Path(folder).iterdir()]
        except (OSError, ValueError) as error:
            said = _reason(error)
        else:
            said = "" if any(map(_HASHED.fullmatch, names)) else "no hashed certificate in it"
        if said:
            yield (
                f"SSL_CERT_DIR: {printable(folder, 200)} can't be used as certificates ({said}); "
                "correct it, or unset it"
            )
    key_log = environment.get("SSLKEYLOGFILE")
    if key_log:
        try:
            with Path(key_log).open("ab"):
                pass
        except (OSError, ValueError) as error:
            yield (
                f"SSLKEYLOGFILE: {printable(key_log, 200)} can't be written ({_reason(error)}); "
                "correct it, or unset it"
            )


def _the_rest(environment: Mapping[str, str]) -> Iterator[str]:
    """Make a client as our adapters do: of the rest only NO_PROXY is read."""
    import httpx  # noqa: PLC0415 - as above

    # The certificates were looked at before; to read all of them costs 40 ms at each start.
    trusts_nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        httpx.Client(verify=trusts_nobody).close()
    except (ValueError, OSError, ImportError, httpx.InvalidURL) as error:
        named = [name for name, _ in _set(environment, ("no_proxy",))]
        yield (
            f"{named[0] if named else 'The proxies of the environment'}: it can't be read "
            f"({printable(str(error), 200)}); write host names and addresses without brackets, "
            "with commas between them"
        )


def _reason(error: Exception) -> str:
    return printable(getattr(error, "strerror", None) or str(error), 200)
