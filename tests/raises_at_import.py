"""A module of a site that cannot be imported, and not for want of a module."""

raise ZeroDivisionError
