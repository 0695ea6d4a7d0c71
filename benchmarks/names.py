"""The names of the ways to call an API with a token that expires; ways.py tells what they do."""

OURS = "oidc_rp"
OURS_IN_TRANSACTION = "oidc_rp, in a transaction, 1 view of 20 raises"
NO_LOCK = "by hand, no lock"
ROW_LOCK = "select_for_update, 1 view of 20 raises"
AUTHLIB = "Authlib, update_token"
REQUESTS_OAUTHLIB = "requests-oauthlib, token_updater"
