"""The demo relying party: what the README shows, and the few settings that any project has.

DEMO_HTTPS=1 is the same site behind a proxy that speaks TLS: `manage.py check --deploy` is clean.
"""

from demo_site.https_settings import *  # noqa: F403
from demo_site.installation import (
    HS256_CLIENT_ID,
    HTTPS,
    ISSUER,
    RS256_CLIENT_ID,
    load_secrets,
    sqlite,
)
from demo_site.request_log import LOGGING as LOGGING

secrets = load_secrets()

# ---- oidc_rp --------------------------------------------------------------------------------

OIDC_RP = {
    "PROVIDERS": {
        "demo-rs256": {
            "LABEL": "Demo Provider",
            "ISSUER": ISSUER,
            "CLIENT_ID": RS256_CLIENT_ID,
            "CLIENT_SECRET": secrets.rs256_client_secret,
            "API_ORIGINS": [ISSUER],  # the calendar is served there, too
        },
        "demo-hs256": {
            "LABEL": "Demo Provider, HS256",
            "ISSUER": ISSUER,
            "CLIENT_ID": HS256_CLIENT_ID,
            "CLIENT_SECRET": secrets.hs256_client_secret,
            "API_ORIGINS": [ISSUER],
            "ID_TOKEN_SIGNED_RESPONSE_ALG": "HS256",
        },
    },
    # For both of them:
    "SCOPES": [
        *("openid", "profile", "email", "address", "groups"),  # who somebody is
        *("calendar", "offline_access"),  # what this site may do for them, also when they are away
    ],
    "ALLOW_LOOPBACK_HTTP": not HTTPS,
    "GROUPS_CLAIM": "groups",
    "GROUPS": {"staff": "Support desk"},  # what that group may see and do: prepare_site
    "STAFF_GROUPS": ["staff"],
    "SESSION_RENEWAL": 300,  # seconds, and the provider has to vouch for a session again
    "TOKEN_KEYS": [secrets.token_key],
}
AUTHENTICATION_BACKENDS = [
    "oidc_rp.backends.OIDCBackend",
    "django.contrib.auth.backends.ModelBackend",
]
LOGIN_URL = "oidc_rp:login_chooser"
LOGIN_REDIRECT_URL = "profile"

# ---- any project ----------------------------------------------------------------------------

SECRET_KEY = secrets.site_secret_key
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "demo_site.urls"

INSTALLED_APPS = [
    "demo_site",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "oidc_rp",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "oidc_rp.middleware.SessionRenewal",
    "oidc_rp.middleware.TokenRenewal",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
DATABASES = sqlite("site.sqlite3")
SILENCED_SYSTEM_CHECKS = ["oidc_rp.W006"]  # one process, one person: SQLite is enough for a demo
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "cache",  # one for all processes: keys of providers, states already used
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"

# Cookies are kept per host, not per port, and the provider is on this host, too.
SESSION_COOKIE_NAME = "site_session"
CSRF_COOKIE_NAME = "site_csrf"
