"""The specifications as values and pure functions: no Django, network, clock or settings."""
