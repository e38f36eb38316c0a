"""The provider's account, read by a verb: one free request, without the SDK."""

from datetime import timedelta

from pydantic import SecretStr

from vidgen_worker.providers.protocol import Account

PATIENCE = timedelta(seconds=20)
"""How long Runway may take to answer."""


async def read_account(api_secret: SecretStr, base_url: str) -> Account:
    """Ask Runway for the account. Raises Fault, and ValueError for what can't be a key."""
    import httpx  # noqa: PLC0415 - it takes long, and settings may be wrong

    from vidgen_worker.providers.http_client import HttpClient, certificates  # noqa: PLC0415
    from vidgen_worker.providers.runway.reader import Reader  # noqa: PLC0415

    # Not the worker's own client, which takes longer to import than a single request.
    client = HttpClient(verify=certificates(), timeout=httpx.Timeout(PATIENCE.total_seconds()))
    reader = Reader(
        client, api_secret=api_secret.get_secret_value(), base_url=base_url, timeout=PATIENCE
    )
    try:
        return await reader.account()
    finally:
        await reader.aclose()
