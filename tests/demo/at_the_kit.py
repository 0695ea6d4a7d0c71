"""The demo site at the test kit's OpenID Provider, that of the environment, instead of its own."""

import os

from demo_site.settings import *  # noqa: F403
from demo_site.settings import OIDC_RP as USUAL

ISSUER = os.environ["KIT_ISSUER"]
OIDC_RP = USUAL | {
    "PROVIDERS": {
        "demo-rs256": {
            "LABEL": "Demo Provider",
            "ISSUER": ISSUER,
            "CLIENT_ID": os.environ["KIT_CLIENT_ID"],
            "CLIENT_SECRET": os.environ["KIT_CLIENT_SECRET"],
            "API_ORIGINS": [ISSUER],
        },
    },
}
