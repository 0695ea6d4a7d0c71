"""The circuit of a provider: how long it stays open, and that it closes."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection

from oidc_rp import circuit
from oidc_rp.models import DatabaseClock, ProviderCircuit

pytestmark = pytest.mark.django_db


def let_pass() -> None:
    ProviderCircuit.objects.update(not_before=DatabaseClock(timedelta(seconds=-1)))


def test_M55_a_provider_that_was_never_refused_may_be_asked() -> None:
    assert circuit.seconds_open("op") == 0.0
    circuit.close("op")


def test_M55_it_opens_longer_each_time_and_not_for_ever() -> None:
    for seconds in (10, 20, 40, 80, 160, 300, 300):
        circuit.open_for("op", "token.invalid_client")
        assert circuit.seconds_open("op") == pytest.approx(seconds, abs=2)
        let_pass()
        assert circuit.seconds_open("op") < 0
    row = ProviderCircuit.objects.get()
    assert (row.provider, row.failures, row.last_error) == ("op", 7, "token.invalid_client")


def test_M55_many_refusals_at_once_are_one_failure() -> None:
    for _ in range(50):
        circuit.open_for("op", "token.invalid_client")
    assert ProviderCircuit.objects.get().failures == 1
    assert circuit.seconds_open("op") <= circuit.FIRST


def test_M55_one_good_answer_forgets_it_all() -> None:
    circuit.open_for("op", "token.invalid_client")
    circuit.open_for("other", "token.invalid_client")
    circuit.close("op")
    assert circuit.seconds_open("op") == 0.0
    assert circuit.seconds_open("other") > 0
    circuit.open_for("op", "transport.tls")
    assert circuit.seconds_open("op") <= circuit.FIRST


def test_a_code_of_any_length_is_noted() -> None:
    circuit.open_for("op", "x" * 200)
    assert ProviderCircuit.objects.get().last_error == "x" * 100


@pytest.mark.django_db(transaction=True)
def test_M55_the_first_refusals_come_at_the_same_moment() -> None:
    """Where threads have connections of their own; in memory they come one after the other."""

    def refused(_: int) -> None:
        try:
            circuit.open_for("op", "token.invalid_client")
        finally:
            connection.close()

    threads = 1 if connection.vendor == "sqlite" else 8
    with ThreadPoolExecutor(threads) as pool:
        if threads == 1:
            [refused(number) for number in range(8)]
        else:
            list(pool.map(refused, range(8)))
    assert ProviderCircuit.objects.get().failures == 1
