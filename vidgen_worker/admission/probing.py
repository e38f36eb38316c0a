"""A free read of the provider's account, to find out whether a trouble lasts.

The caller decides whether a gate closes, stays closed or opens.
"""

from vidgen_worker.domain.faults import Fault, Probe
from vidgen_worker.providers.protocol import Provider


async def account_problem(
    provider: Provider, probe: Probe, model: str, price: float = 1
) -> str | None:
    """The reason why a submission would be refused again, or None where the account shows none.

    `price` is the balance that the account needs for one generation, in the provider's credits.
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
