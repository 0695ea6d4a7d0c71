"""How a site is set up with each contender: the settings that its own documentation gives.

All have the same middleware (sessions, authentication), the same SQLite database in memory and
sessions in it; what one needs besides is in its entry and nowhere else. PKCE is on for all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .provider import CLIENT_ID, CLIENT_SECRET

MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"
Settings = dict[str, Any]
Metadata = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One way to let people sign in. options: the OP's metadata -> Django settings."""

    urls: str | None
    login_path: str
    options: Callable[[Metadata], Settings]
    apps: tuple[str, ...] = ()
    backend: str | None = None
    middleware: tuple[str, ...] = ()
    starts_by_post: bool = False


def _oidc_rp(**options: Any) -> Callable[[Metadata], Settings]:
    provider = {
        "LABEL": "Benchmark",
        "CLIENT_ID": CLIENT_ID,
        "CLIENT_SECRET": CLIENT_SECRET,
        "SCOPES": ["openid", "profile", "email"],
        "ALLOW_LOOPBACK_HTTP": True,
        **options,
    }
    return lambda metadata: {
        "OIDC_RP": {"PROVIDERS": {"op": {**provider, "ISSUER": metadata["issuer"]}}}
    }


def _mozilla(endpoints: Metadata) -> Settings:
    return {
        "OIDC_RP_CLIENT_ID": CLIENT_ID,
        "OIDC_RP_CLIENT_SECRET": CLIENT_SECRET,
        "OIDC_RP_SIGN_ALGO": "RS256",
        "OIDC_RP_SCOPES": "openid profile email",
        "OIDC_USE_PKCE": True,
        "OIDC_OP_AUTHORIZATION_ENDPOINT": endpoints["authorization_endpoint"],
        "OIDC_OP_TOKEN_ENDPOINT": endpoints["token_endpoint"],
        "OIDC_OP_USER_ENDPOINT": endpoints["userinfo_endpoint"],
        "OIDC_OP_JWKS_ENDPOINT": endpoints["jwks_uri"],
    }


def _social_auth(metadata: Metadata) -> Settings:
    return {
        "SOCIAL_AUTH_OIDC_OIDC_ENDPOINT": metadata["issuer"],
        "SOCIAL_AUTH_OIDC_KEY": CLIENT_ID,
        "SOCIAL_AUTH_OIDC_SECRET": CLIENT_SECRET,
        "SOCIAL_AUTH_OIDC_USE_PKCE": True,
    }


def _allauth(metadata: Metadata) -> Settings:
    app = {
        "provider_id": "op",
        "name": "Benchmark",
        "client_id": CLIENT_ID,
        "secret": CLIENT_SECRET,
        "settings": {"server_url": metadata["issuer"], "oauth_pkce_enabled": True},
    }
    return {
        "SOCIALACCOUNT_PROVIDERS": {"openid_connect": {"APPS": [app]}},
        "ACCOUNT_EMAIL_VERIFICATION": "none",
    }


BARE = "bare Django view"
OURS = "oidc_rp"
OURS_WITHOUT_USERINFO = "oidc_rp, USERINFO False"

_OIDC_RP: dict[str, Any] = {
    "urls": "oidc_rp.urls",
    "login_path": "/op/login/",
    "apps": ("oidc_rp",),
    "backend": "oidc_rp.backends.OIDCBackend",
}

CONTENDERS = {
    BARE: Contender(urls=None, login_path="/bare/begin/", options=lambda metadata: {}),
    OURS: Contender(options=_oidc_rp(), **_OIDC_RP),
    OURS_WITHOUT_USERINFO: Contender(options=_oidc_rp(USERINFO=False), **_OIDC_RP),
    "mozilla-django-oidc": Contender(
        urls="mozilla_django_oidc.urls",
        login_path="/authenticate/",
        options=_mozilla,
        apps=("mozilla_django_oidc",),
        backend="mozilla_django_oidc.auth.OIDCAuthenticationBackend",
    ),
    "social-auth-app-django": Contender(
        urls="social_django.urls",
        login_path="/login/oidc/",
        starts_by_post=True,
        options=_social_auth,
        apps=("social_django",),
        backend="social_core.backends.open_id_connect.OpenIdConnectAuth",
    ),
    "django-allauth": Contender(
        urls="allauth.urls",
        login_path="/oidc/op/login/",
        starts_by_post=True,
        options=_allauth,
        apps=(
            "allauth",
            "allauth.account",
            "allauth.socialaccount",
            "allauth.socialaccount.providers.openid_connect",
        ),
        backend="allauth.account.auth_backends.AuthenticationBackend",
        middleware=("allauth.account.middleware.AccountMiddleware",),
    ),
}
PEERS = ("mozilla-django-oidc", "social-auth-app-django", "django-allauth")


def django_settings(
    contender: Contender, metadata: Metadata, cache_directory: str | None
) -> Settings:
    """Return the whole settings of a contender's site. cache_directory: None = cache of its own."""
    backend = (contender.backend,) if contender.backend else ()
    cache: Settings = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    if cache_directory:
        cache = {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": cache_directory,
        }
    return {
        "SECRET_KEY": "benchmarks only: no site of ours has this key, and no session outlives them",
        "ALLOWED_HOSTS": ["127.0.0.1"],
        "USE_TZ": True,
        "LOGGING_CONFIG": None,
        "ROOT_URLCONF": "benchmarks.urls",
        "CONTENDER_URLS": contender.urls,
        "LOGIN_REDIRECT_URL": "/signed-in/",
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        "CACHES": {"default": cache},
        "INSTALLED_APPS": [
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            *contender.apps,
        ],
        "MIDDLEWARE": [
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            *contender.middleware,
        ],
        "AUTHENTICATION_BACKENDS": [*backend, MODEL_BACKEND],
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
            }
        ],
        **contender.options(metadata),
    }
