"""Whether an address is public: a foreign answer may lead to no other.

A server outside could lead this machine to its own network: to a metadata service, say. `refusal`
looks before anything is opened. A name may resolve to something else the second time, so the
address of each connection is looked at as well: `public_sockets` makes no socket for another one,
and where the transport is httpx's own, `only_public` looks at the address that was reached, before
a byte is sent there.
Where a proxy connects, the proxy decides: what it reaches is not known here.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from vidgen_worker.providers.aiohttp_transport import AddressInfo, Sockets

HTTPS_PORT = 443

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Trace = Callable[[str, dict[str, Any]], Awaitable[None]]

# Written out, because what Python calls global differs from version to version.
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
        "168.63.129.16/32",  # Azure's, answered by the host below a machine
        "2001::/23", "2001:db8::/32", "3fff::/20",
    )
]  # fmt: skip
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is assigned; ::1, fc00::/7, fe80::/10 and future ranges are outside it."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


class NotPublicError(OSError):
    """A connection would lead to an address that is not public, or has; nothing was sent."""


async def refusal(url: httpx.URL, *, allow_loopback: bool = False) -> str | None:
    """Say why `url` is refused; None for https at a public address.

    With `allow_loopback` also for http, and for any port of this machine's loopback.
    """
    addresses = await _addresses(url.host)
    if url.userinfo:
        return "a user's name in the address"
    if allow_loopback and addresses and all(map(_is_loopback, addresses)):
        return None if url.scheme in ("http", "https") else f"the scheme {url.scheme}"
    if url.scheme != "https" and not (allow_loopback and url.scheme == "http"):
        return f"the scheme {url.scheme}"
    if url.port not in (None, HTTPS_PORT) and not allow_loopback:
        return f"the port {url.port}"
    for address in addresses:
        if not is_public(address) and not (allow_loopback and _is_loopback(address)):
            return f"the private address {address} of {url.host}"
    return None


def only_public(url: httpx.URL, *, allow_loopback: bool = False) -> Trace:
    """Return what httpx is to call on each step of a request ("trace" in its extensions).

    It raises NotPublicError, which leaves httpx as it is.
    """
    host = ""

    async def trace(step: str, info: dict[str, Any]) -> None:
        nonlocal host
        if step == "connection.connect_tcp.started":
            host = str(info["host"])
        if step != "connection.connect_tcp.complete" or host != url.raw_host.decode("ascii"):
            return  # another host than the one asked for is the proxy's
        stream = info["return_value"]
        theirs = str(stream.get_extra_info("server_addr")[0])
        ours = str(stream.get_extra_info("client_addr")[0])
        if allow_loopback and _is_loopback(theirs):
            return
        if not is_public(theirs) or theirs == ours:
            await stream.aclose()
            raise NotPublicError(f"the private address {theirs} of {url.host}")

    return trace


def public_sockets(*, allow_loopback: bool = False) -> Sockets:
    """Return what makes the sockets of a transport; it raises NotPublicError instead of one."""

    def make(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        theirs = str(address[0])
        allowed = allow_loopback and _is_loopback(theirs)
        if not allowed and (not is_public(theirs) or theirs == _source(family, address)):
            raise NotPublicError(f"the private address {theirs}")
        return socket.socket(family, kind, protocol)

    return make


def _source(family: int, address: tuple[Any, ...]) -> str:
    """This machine's address towards another one: its own, towards itself. Sends nothing."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return ""  # no route to it: the error of the connection says more
        return str(probe.getsockname()[0])


async def _addresses(host: str) -> list[str]:
    """Resolve a name; nothing where that is not possible, as behind a proxy."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for *_, address in found]


def is_public(text: str) -> bool:
    """Whether an address is one of the Internet's, also by what it carries inside."""
    address = _parsed(text)
    if address is None:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inside = _carried(address)
        if inside is not None:
            return is_public(str(inside))
        if address not in _UNICAST:
            return False
    return not any(
        address in network for network in _NOT_PUBLIC if network.version == address.version
    )


def _is_loopback(text: str) -> bool:
    address = _parsed(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address is not None and address.is_loopback


def _parsed(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address to which an IPv6 one leads: mapped, NAT64, 6to4 or ISATAP."""
    if address in _NAT64 or int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
