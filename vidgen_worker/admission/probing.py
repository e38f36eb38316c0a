"""What the provider's account says about a trouble: a read that is free.

It decides nothing: who asks closes, keeps or opens a gate by it.
"""

from vidgen_worker.domain.faults import Fault, Probe
from vidgen_worker.providers.protocol import Provider


async def account_problem(
    provider: Provider, probe: Probe, model: str, price: float = 1
) -> str | None:
    """Why what was refused would be refused again, by this probe; None where nothing shows.

    `price` is what the account must have for a generation to begin.
    """
    try:
        account = await provider.account()
    except Fault as fault:
        return fault.details
    if probe is Probe.BALANCE and account.credit_balance < price:
        return f"{account.credit_balance} credits are left, a generation costs {price:g}"
    limits = account.models.get(model)
    if (
        probe is Probe.DAILY_LIMIT
        and limits is not None
        and limits.max_daily is not None
        and limits.daily_generations >= limits.max_daily
    ):
        return f"{limits.daily_generations} of {limits.max_daily} generations today"
    return None
