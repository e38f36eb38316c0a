"""Whether an address is public: what a foreign answer leads to must be.

A server outside could lead this machine to its own network: to a metadata service, say. Names are
resolved as they will be; where there is no resolver, because a proxy resolves, the proxy decides.
"""

import asyncio
import ipaddress
import socket

import httpx


async def refusal(url: httpx.URL) -> str | None:
    """Say why nobody is led to `url`; None for a public http(s) address."""
    if url.scheme not in ("http", "https"):
        return f"the scheme {url.scheme}"
    for address in await _addresses(url.host):
        if not _is_public(address):
            return f"the private address {address} of {url.host}"
    return None


async def _addresses(host: str) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found]


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        # 64:ff9b::/96 and 2002::/16 carry an IPv4 address too, and lead to it.
        if found in _NAT64:
            found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        else:
            found = found.ipv4_mapped or found.sixtofour or found
    return found.is_global and not found.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
