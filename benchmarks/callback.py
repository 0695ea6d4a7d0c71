"""A whole callback request ÷ a bare Django view that makes (or gets) the user and calls login().

Measured is the CPU of the relying party's process, user and system, from the WSGI environment to
the closed response: middleware, session, state, requests, ID Token and UserInfo validation, linking
of the account, login(), and saving the session. The bare view gets the same: a browser that has a
session with a pending login in it. Sessions, users and identities are in SQLite in memory.
With the OP stubbed, the sending and receiving below requests' adapter is left out for everybody;
with the network, it is all there, over kept or new loopback connections as each contender has them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .contenders import BARE, OURS, OURS_WITHOUT_USERINFO, PEERS
from .measure import Ratio, paired, ratios
from .provider import RunningProvider, running_provider
from .relying_party_site import Callbacks, Cost, Site, running_sites

ROUNDS = 18
CALLBACKS = 4
Costs = dict[str, list[tuple[Cost, Cost]]]
NAMES = (BARE, OURS, OURS_WITHOUT_USERINFO, *PEERS)


@dataclass(frozen=True)
class CallbackResults:
    """Ratios per user ("new", "returning"), and network calls per login by endpoint."""

    op_stubbed: dict[str, dict[str, Ratio]]
    with_network: dict[str, dict[str, Ratio]]
    calls: dict[str, dict[str, int]]


def measure() -> CallbackResults:
    with running_provider() as provider, running_sites(NAMES, provider.metadata) as running:
        sites = dict(zip(NAMES, running, strict=True))
        costs = {user: _costs(sites, user) for user in ("new", "returning")}
        calls = {name: _calls(provider, site) for name, site in sites.items() if name != BARE}
    return CallbackResults(
        op_stubbed=_ratios(costs, lambda cost: cost.op_stubbed),
        with_network=_ratios(costs, lambda cost: cost.with_network),
        calls=calls,
    )


def _costs(sites: dict[str, Site], user: str) -> Costs:
    order = Callbacks(CALLBACKS, user)
    slices = {name: partial(site.receive, order) for name, site in sites.items()}
    return paired(slices, BARE, ROUNDS)


def _ratios(
    costs: dict[str, Costs], seconds: Callable[[Cost], float]
) -> dict[str, dict[str, Ratio]]:
    return {
        user: ratios(
            {
                name: [(seconds(bare), seconds(cost)) for bare, cost in pairs]
                for name, pairs in contenders.items()
            },
            BARE,
        )
        for user, contenders in costs.items()
    }


def _calls(provider: RunningProvider, site: Site) -> dict[str, int]:
    """Count the calls of one login, from its start to the end of its callback, caches warm."""
    provider.take_calls()
    site.receive(Callbacks(1, "returning"))
    return dict(provider.take_calls())
