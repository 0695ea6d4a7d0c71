"""The project's own settings against an OP that misbehaves: what gets through, and what does not.

for outcome in run("genauth"):
    print(outcome.attack.promise, outcome.verdict, outcome.code)
"""

from .attacks import ATTACKS
from .outcomes import NotProven, Outcome, run
from .walks import Attack

__all__ = ["ATTACKS", "Attack", "NotProven", "Outcome", "run"]
