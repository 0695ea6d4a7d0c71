"""The attacks, by the promise of docs/promises.md that each of them breaks where it gets through.

Each begins as an honest walk, with one bite taken out of it.
"""

from .accounts import ACCOUNTS
from .answers import ANSWERS
from .callbacks import CALLBACKS
from .calls import CALLS
from .id_tokens import ID_TOKENS
from .logouts import LOGOUTS
from .walks import Attack

ATTACKS: tuple[Attack, ...] = (*ID_TOKENS, *CALLBACKS, *ANSWERS, *ACCOUNTS, *CALLS, *LOGOUTS)
