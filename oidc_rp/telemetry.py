"""Events as a counter of OpenTelemetry: `pip install "oidc_rp[opentelemetry]"`.

The counter is `oidc_rp.events`, its attributes event, code and provider; it names no person.
"""

try:
    from opentelemetry import metrics
except ImportError:  # an extra: nobody counts

    def count(event: str, code: str, provider: str) -> None:
        """Nothing: OpenTelemetry is not installed."""

else:
    # Until the site sets a MeterProvider, before or after this, the counter goes nowhere.
    _events = metrics.get_meter("oidc_rp").create_counter(
        "oidc_rp.events", unit="{event}", description="What happened to identities and their grants"
    )

    def count(event: str, code: str, provider: str) -> None:
        """Add one to the events of this kind."""
        _events.add(1, {"event": event, "code": code, "provider": provider})
