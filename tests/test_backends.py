"""The door of django.contrib.auth: hooks that a site may override, and what happens around them."""

import logging
from typing import Any

import pytest
from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import connection, transaction
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoCaptureOnCommitCallbacks, Settings

from oidc_rp import signals
from oidc_rp.backends import CallbackResponse, OIDCBackend
from oidc_rp.errors import OIDCError
from oidc_rp.models import Identity
from oidc_rp.testing import OpenIDProvider
from oidc_rp.testing.browser import Browser
from oidc_rp.views import LoginView
from tests.test_accounts import outcome, refusal, sign_in

calls: list[tuple[str, dict[str, Any]]] = []
"""The hooks that were called, each with its claims."""


class SiteBackend(OIDCBackend):
    """A site's subclass, written as one of mozilla-django-oidc's backend would be."""

    def note(self, hook: str, claims: Any) -> None:
        calls.append((hook, dict(claims)))

    def verify_claims(self, claims: Any) -> bool:
        self.note("verify_claims", claims)
        return claims.get("family_name") != "Nobody"

    def filter_users_by_claims(self, claims: Any) -> Any:
        self.note("filter_users_by_claims", claims)
        return self.UserModel.objects.filter(username=f"staff-{claims['sub']}")

    def get_username(self, claims: Any) -> str:
        self.note("get_username", claims)
        return f"site-{claims['sub']}"

    def create_user(self, claims: Any) -> Any:
        self.note("create_user", claims)
        user = super().create_user(claims)
        user.last_name = "Created"
        user.save()
        return user

    def update_user(self, user: Any, claims: Any) -> Any:
        self.note("update_user", claims)
        user.last_name = "Updated"
        user.save()
        return user

    def describe_user_by_claims(self, claims: Any) -> str:
        self.note("describe_user_by_claims", claims)
        return "somebody of the site"


class Raising(OIDCBackend):
    """Raises, or returns, what a test says, from the hook that it names."""

    hook = ""
    result: Any = None

    def _answer(self, hook: str, usual: Any) -> Any:
        if self.hook != hook:
            return usual()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def verify_claims(self, claims: Any) -> Any:
        return self._answer("verify_claims", lambda: super(Raising, self).verify_claims(claims))

    def filter_users_by_claims(self, claims: Any) -> Any:
        usual = super().filter_users_by_claims
        return self._answer("filter_users_by_claims", lambda: usual(claims))

    def get_username(self, claims: Any) -> Any:
        return self._answer("get_username", lambda: super(Raising, self).get_username(claims))

    def create_user(self, claims: Any) -> Any:
        return self._answer("create_user", lambda: super(Raising, self).create_user(claims))

    def update_user(self, user: Any, claims: Any) -> Any:
        return self._answer("update_user", lambda: super(Raising, self).update_user(user, claims))


def use(settings: Settings, backend: type) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.{backend.__name__}"]
    calls.clear()


@pytest.mark.usefixtures("browser")
def test_account_hooks_work_in_a_subclass(op: OpenIDProvider, settings: Settings) -> None:
    """Each is called when it was in mozilla-django-oidc, with iss and sub in its claims."""
    use(settings, SiteBackend)
    user = sign_in()
    assert (user.username, user.last_name) == ("site-248289761001", "Created")
    hooks = [hook for hook, _ in calls]
    assert hooks == ["verify_claims", "filter_users_by_claims", "create_user", "get_username"]
    calls_before = len(calls)
    assert sign_in() == user
    user.refresh_from_db()
    assert user.last_name == "Updated"
    assert [hook for hook, _ in calls[calls_before:]] == ["verify_claims", "update_user"]
    for _, claims in calls:
        assert (claims["iss"], claims["sub"]) == (op.issuer, op.person["sub"])
        assert claims["address"] == op.person["address"]


@pytest.mark.usefixtures("browser")
def test_verify_claims_may_refuse(op: OpenIDProvider, settings: Settings) -> None:
    """A falsy answer keeps somebody out, at every sign-in."""
    use(settings, SiteBackend)
    sign_in()
    op.person["family_name"] = "Nobody"
    assert refusal() == "account.claims"
    assert [hook for hook, _ in calls][-1] == "verify_claims"


@pytest.mark.usefixtures("browser")
def test_filter_users_by_claims_links_who_the_site_names(
    op: OpenIDProvider, settings: Settings
) -> None:
    """One user, not privileged and active, is linked; the hook is not asked again."""
    use(settings, SiteBackend)
    user = User.objects.create_user("staff-248289761001")
    assert sign_in() == user
    assert Identity.objects.get().user == user
    calls.clear()
    assert sign_in() == user
    assert "filter_users_by_claims" not in [hook for hook, _ in calls]


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("account.match", {"is_staff": True}),
        ("account.match", {"is_superuser": True}),
        ("account.inactive", {"is_active": False}),
    ],
)
def test_M34_filter_users_by_claims_links_nobody_privileged(
    settings: Settings, code: str, fields: dict[str, bool]
) -> None:
    """Even the site's own choice has its limits."""
    use(settings, SiteBackend)
    User.objects.create_user("staff-248289761001", **fields)
    assert refusal() == code
    assert not Identity.objects.exists()


@pytest.mark.usefixtures("browser")
def test_M34_filter_users_by_claims_must_name_one(settings: Settings) -> None:
    """Two users are nobody; a list is as good as a queryset."""
    use(settings, Raising)
    users = [User.objects.create_user(name) for name in ("one", "two")]
    Raising.hook, Raising.result = "filter_users_by_claims", users
    assert refusal() == "account.match"
    Raising.result = users[:1]
    assert sign_in() == users[0]


def test_describe_user_by_claims_is_for_the_log(
    op: OpenIDProvider, browser: Browser, configure: Any, settings: Settings, caplog: Any
) -> None:
    """The operator reads it; the visitor does not."""
    configure(CREATE_USERS=False)
    use(settings, SiteBackend)
    with caplog.at_level(logging.WARNING, "oidc_rp"):
        response = browser.sign_in("op")
    assert outcome(response) == "account.unknown"
    assert "somebody of the site" in caplog.text
    assert "somebody of the site" not in response.content.decode()


HOOKS = ("verify_claims", "filter_users_by_claims", "create_user", "get_username", "update_user")


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize("error", [SuspiciousOperation("no"), PermissionDenied("no")])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_may_refuse_with_an_exception(
    settings: Settings, hook: str, error: Exception
) -> None:
    """As in mozilla-django-oidc: the sign-in fails, politely, and nothing is kept of it."""
    if hook == "update_user":
        sign_in()
    before = (User.objects.count(), Identity.objects.count())
    use(settings, Raising)
    Raising.hook, Raising.result = hook, error
    assert refusal() == "account.hook"
    assert (User.objects.count(), Identity.objects.count()) == before


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize(
    ("hook", "code"),
    [
        ("verify_claims", "account.claims"),
        ("filter_users_by_claims", "/home/"),
        ("create_user", "account.hook"),
        ("get_username", "account.hook"),
        ("update_user", "account.hook"),
    ],
)
def test_a_hook_that_returns_none_signs_nobody_else_in(
    settings: Settings, hook: str, code: str
) -> None:
    """None is nobody, from whichever hook it comes."""
    if hook == "update_user":
        sign_in()
    use(settings, Raising)
    Raising.hook, Raising.result = hook, None
    assert outcome(Browser().sign_in("op")) == code


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize("somebody", [AnonymousUser(), "other"])
def test_update_user_cannot_swap_users(settings: Settings, somebody: Any) -> None:
    """The identity says whose it is; a hook that returns another user is refused."""
    sign_in()
    other = User.objects.create_user("other")
    use(settings, Raising)
    Raising.hook, Raising.result = "update_user", other if somebody == "other" else somebody
    assert refusal() == "account.hook"


@pytest.mark.usefixtures("browser")
def test_a_user_who_waits_for_approval_is_kept_and_refused(settings: Settings) -> None:
    """create_user may make an inactive user; somebody approves, and the next sign-in works."""
    use(settings, Pending)
    assert refusal() == "account.inactive"
    User.objects.update(is_active=True)
    assert sign_in().username == "pending"
    assert Identity.objects.count() == 1


class Pending(OIDCBackend):
    def create_user(self, claims: Any) -> Any:
        return self.UserModel.objects.create_user("pending", is_active=False)


def test_get_extra_params_adds_to_the_request(rf: RequestFactory, browser: Browser) -> None:
    """The hook of the login view is asked, too; what our checks rest on it cannot set."""
    request = rf.get("/oidc/op/login/")
    request.session = browser.client.session

    class WithHint(LoginView):
        def get_extra_params(self, request: Any) -> dict[str, Any]:
            return {"login_hint": "jane", "claims": {"id_token": {"acr": None}}}

    class WithState(LoginView):
        def get_extra_params(self, request: Any) -> dict[str, Any]:
            return {"state": "mine"}

    url = WithHint.as_view()(request, slug="op").headers["Location"]
    assert "login_hint=jane" in url
    assert "claims=%7B%22id_token%22" in url
    request.user = AnonymousUser()
    response = WithState.as_view()(request, slug="op")
    assert response.status_code == 400


# Django's view of the backend


def test_a_backend_costs_nothing_to_make(settings: Settings) -> None:
    """Django makes one at every permission check: no settings, no I/O, nothing kept."""
    del settings.OIDC_RP
    backend = OIDCBackend()
    assert vars(backend) == {}
    assert backend.UserModel is get_user_model()


def test_permission_checks_cost_no_query_of_ours(db: None, settings: Settings) -> None:
    """As many queries as with Django's backend alone, and the same answers."""
    user = User.objects.create_user("jane")
    user.user_permissions.add(Permission.objects.get(codename="view_identity"))
    counts = []
    for backend in ("django.contrib.auth.backends.ModelBackend", "oidc_rp.backends.OIDCBackend"):
        settings.AUTHENTICATION_BACKENDS = [backend]
        fresh = User.objects.get(pk=user.pk)
        with CaptureQueriesContext(connection) as queries:
            assert fresh.has_perm("oidc_rp.view_identity")
            assert not fresh.has_perm("oidc_rp.delete_identity")
            assert fresh.has_module_perms("oidc_rp")
        counts.append(len(queries))
    assert counts[0] == counts[1]


@pytest.mark.django_db
def test_other_credentials_are_not_ours(rf: RequestFactory) -> None:
    """A password is for another backend; without a request or a response nobody is signed in."""
    user = User.objects.create_user("jane", password="pw")
    request = rf.post("/")
    assert authenticate(request, username="jane", password="pw") == user
    assert authenticate(request, username="jane", password="wrong") is None
    backend = OIDCBackend()
    assert backend.authenticate(None, username="jane", password="pw") is None
    assert backend.authenticate(request, nonce="n", code_verifier="c") is None
    assert backend.authenticate(None, oidc=object()) is None  # type: ignore[arg-type]


@pytest.mark.django_db
def test_M38_get_user_knows_active_users_only() -> None:
    """Unlike the parent's: the session of somebody deactivated is nobody's."""
    user = User.objects.create_user("jane")
    backend = OIDCBackend()
    assert backend.get_user(user.pk) == user
    User.objects.update(is_active=False)
    assert backend.get_user(user.pk) is None
    assert backend.get_user(0) is None


def test_M53_a_response_shows_nothing_of_itself() -> None:
    """No code is in the repr that a debug page or an error report prints."""
    response = CallbackResponse("op", "https://rp/", "query", {"code": ["hunter2"]}, None)  # type: ignore[arg-type]
    assert "hunter2" not in repr(response)


@pytest.mark.usefixtures("browser")
def test_a_site_without_the_backend_signs_nobody_in(settings: Settings) -> None:
    """Then authenticate() knows nobody: a refusal, not a crash."""
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
    assert refusal() == "configuration.backend"


class AnswersEverybody(ModelBackend):
    """Signs in whoever asks, say by a certificate or the proxy's word."""

    def authenticate(self, request: Any, *args: Any, **credentials: Any) -> Any:
        return User.objects.get(username="anybody")


@pytest.mark.usefixtures("browser")
def test_another_backends_answer_is_no_sign_in_of_ours(
    op: OpenIDProvider, settings: Settings
) -> None:
    """A backend before ours that takes any credentials: a refusal, and nobody is signed in."""
    User.objects.create_user("anybody")
    use(settings, AnswersEverybody)
    settings.AUTHENTICATION_BACKENDS += ["oidc_rp.backends.OIDCBackend"]
    browser = Browser()
    response = browser.sign_in("op")
    assert (response.status_code, outcome(response)) == (400, "configuration.backend")
    assert "_auth_user_id" not in browser.client.session
    assert op.calls("token") == 0


# Signals


class Heard:
    """What the signals told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def listen(self, name: str) -> Any:
        def receiver(sender: Any, signal: Any, **arguments: Any) -> None:
            assert sender is Identity
            self.told.append((name, arguments))

        getattr(signals, name).connect(receiver, weak=False)
        return lambda: getattr(signals, name).disconnect(receiver)


@pytest.fixture
def heard() -> Any:
    heard = Heard()
    names = ("identity_linked", "signed_in", "login_failed")
    stops = [heard.listen(name) for name in names]
    yield heard
    for stop in stops:
        stop()


@pytest.mark.django_db(transaction=True)
def test_signals_of_a_first_and_a_second_sign_in(
    op: OpenIDProvider, configure: Any, heard: Heard
) -> None:
    """Linked, then signed in; the second time signed in alone; a refusal tells its reference."""
    user = sign_in()
    assert [name for name, _ in heard.told] == ["identity_linked", "signed_in"]
    for _, arguments in heard.told:
        assert set(arguments) == {"request", "user", "identity"}
        assert (arguments["user"], arguments["identity"]) == (user, Identity.objects.get())
        assert arguments["request"].user == user
    heard.told.clear()
    sign_in()
    assert [name for name, _ in heard.told] == ["signed_in"]
    heard.told.clear()
    User.objects.update(is_active=False)
    browser = Browser()
    response = browser.sign_in("op")
    ((name, arguments),) = heard.told
    assert name == "login_failed"
    assert (arguments["provider"], arguments["error"].code) == ("op", "account.inactive")
    assert isinstance(arguments["error"], OIDCError)
    assert arguments["reference"] == response.context["reference"]


@pytest.mark.django_db
def test_signals_are_sent_after_commit(
    heard: Heard, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    """In order, when the transaction is committed; never when it is rolled back."""
    with django_capture_on_commit_callbacks(execute=True):
        for name in ("identity_linked", "signed_in"):
            signals.send_after_commit(getattr(signals, name), Identity, user=name)
        assert heard.told == []
    assert [name for name, _ in heard.told] == ["identity_linked", "signed_in"]
    heard.told.clear()
    with django_capture_on_commit_callbacks(execute=True), transaction.atomic():
        signals.send_after_commit(signals.signed_in, Identity)
        transaction.set_rollback(True)
    assert heard.told == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["identity_linked", "signed_in", "login_failed"])
def test_a_failing_receiver_is_logged_and_harmless(
    op: OpenIDProvider, configure: Any, heard: Heard, name: str, caplog: Any
) -> None:
    """The sign-in goes on, and so do the other receivers."""

    def failing(**_: Any) -> None:
        raise RuntimeError("a receiver of the site")

    signal = getattr(signals, name)
    signal.connect(failing, weak=False)
    try:
        if name == "login_failed":
            op.id_token_claims["aud"] = "somebody else"
            assert refusal() == "id_token.aud"
        else:
            sign_in()
    finally:
        signal.disconnect(failing)
    assert name in [told for told, _ in heard.told]
    assert "a receiver of the site" in caplog.text
