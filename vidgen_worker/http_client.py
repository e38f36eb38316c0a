"""httpx's client as all our adapters use it: without cookies.

None of the services that we ask uses cookies, and httpx looks for them in every answer by way of
the standard library's cookie jar: a twentieth of the CPU that a request takes. What is asked, and
what follows from an answer, is the adapters' business.
"""

import httpx


class _NoCookies(httpx.Cookies):
    """Stays empty."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Leave them in the answer."""


_NO_COOKIES = _NoCookies()


class HttpClient(httpx.AsyncClient):
    """Keeps no cookies."""

    @property
    def cookies(self) -> httpx.Cookies:
        """Nothing, whatever the answers set."""
        return _NO_COOKIES

    @cookies.setter
    def cookies(self, _: object) -> None:
        raise AttributeError("this client keeps no cookies; send a header instead")


__all__ = ["HttpClient"]
