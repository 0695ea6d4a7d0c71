"""`manage.py oidc_attack`: what a site refuses is said so, what it lets through is said too."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model, login
from django.contrib.auth.signals import user_logged_in
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.urls import include, path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from pytest_django import Settings

from oidc_rp import conf, session_index
from oidc_rp.attack import ATTACKS, run
from oidc_rp.attack.accounts import ACCOUNTS
from oidc_rp.attack.callbacks import CALLBACKS
from oidc_rp.attack.logouts import LOGOUTS
from oidc_rp.attack.outcomes import FAILED, GOT_THROUGH, REFUSED, REFUSED_OTHERWISE, Outcome
from oidc_rp.backends import OIDCBackend
from oidc_rp.errors import LoginRefused
from oidc_rp.models import Event, Identity, LogoutMark, Session
from oidc_rp.sealing import generate_key
from oidc_rp.signals import login_failed, signed_in
from oidc_rp.testing import OpenIDProvider, SigningKey
from oidc_rp.testing.signing import decode_jws
from oidc_rp.views import CallbackView
from tests.conftest import Configure

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).parent.parent
PROMISES, TOLD = ((ROOT / "docs" / name).read_text() for name in ("promises.md", "attack.md"))


def sign_anybody_in(request: HttpRequest, slug: str) -> HttpResponse:
    """A callback of a site that wrote its own, and believes whoever comes."""
    person, _ = get_user_model().objects.get_or_create(username="anybody")
    login(request, person, backend="django.contrib.auth.backends.ModelBackend")
    return HttpResponse("welcome")


def turn_away(request: HttpRequest, slug: str) -> HttpResponse:
    """A callback that signs in the first who comes, and sends the others home without a word."""
    if get_user_model().objects.exists():
        return redirect("/sorry/")
    return CallbackView.as_view()(request, slug=slug)


def fall_over(request: HttpRequest, slug: str) -> HttpResponse:
    raise ZeroDivisionError


def log_out_unverified(request: HttpRequest, slug: str) -> HttpResponse:
    """A back channel of a site that wrote its own: it knows the algorithm and the key by their
    names, and verifies no signature."""
    header, claims, *_ = decode_jws(request.POST["logout_token"])
    if header["alg"] != "RS256" or claims["iss"] not in conf.provider(slug).issuers():
        return JsonResponse({"error_description": "logout_token.alg (x)"}, status=400)
    session_index.rows().update(ended_at=timezone.now())
    return HttpResponse()


def send_on(get_response: Any) -> Any:
    """A middleware that sends people where they wanted to go, wherever that is."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response: HttpResponse = get_response(request)
        if "next" in request.GET:
            response.set_cookie("next", request.GET["next"])
        elif response.status_code == 302 and "next" in request.COOKIES:
            response.headers["Location"] = request.COOKIES["next"]
        return response

    return middleware


def is_verified(user: Any) -> bool:
    """For DANGEROUSLY_LINK_BY_EMAIL: a site that has verified every address."""
    return True


class Replaced:
    """URLs of a site that has one view of its own in the place of ours."""

    def __init__(self, place: str, view: Any) -> None:
        self.urlpatterns = [
            path(f"oidc/<slug:slug>/{place}/", csrf_exempt(view)),
            path("oidc/", include("oidc_rp.urls")),
        ]


class Strict(OIDCBackend):
    """A site that lets in members alone."""

    def verify_claims(self, claims: Any) -> bool:
        return bool(claims.get("member"))


class Once(OIDCBackend):
    """A site that lets in nobody after the first."""

    welcome: ClassVar[list[bool]] = []

    def verify_claims(self, claims: Any) -> bool:
        return self.welcome != [] and self.welcome.pop()


class ByEmail(OIDCBackend):
    """A site that takes any address for a proof, whether or not the OP has verified it."""

    def filter_users_by_claims(self, claims: Any) -> Any:
        same_email = {f"{self.UserModel.get_email_field_name()}__iexact": claims["email"]}
        return self.UserModel.objects.filter(**same_email)


class UnlessUnverified(ByEmail):
    """A site that takes any address for a proof that is not called unverified."""

    def filter_users_by_claims(self, claims: Any) -> Any:
        verified = claims.get("email_verified", True)
        return super().filter_users_by_claims(claims if verified else claims | {"email": ""})


class ByName(OIDCBackend):
    """A site that makes users by a name, and takes those that are there already."""

    def create_user(self, claims: Any) -> Any:
        name = {self.UserModel.USERNAME_FIELD: claims["preferred_username"]}
        return self.UserModel.objects.get_or_create(**name)[0]


class StrictForMembers(OIDCBackend):
    """At one of the providers."""

    def authenticate(self, request: Any, oidc: Any = None, **credentials: Any) -> Any:
        if oidc is not None and oidc.provider == "members":
            raise LoginRefused("account.claims", "members alone")
        return super().authenticate(request, oidc, **credentials)


def attack(*arguments: str) -> str:
    out = StringIO()
    call_command("oidc_attack", *arguments, stdout=out, stderr=out)
    return out.getvalue()


@pytest.fixture(autouse=True)
def project(settings: Settings) -> None:
    """A project whose provider nobody can reach from here."""
    own = {
        "ISSUER": "https://op.invalid/",
        "CLIENT_ID": "the-site",
        "CLIENT_SECRET": "a secret that nobody is going to ask for",
    }
    settings.OIDC_RP = {"PROVIDERS": {"own": own}}


def options(settings: Settings, **more: Any) -> None:
    own = settings.OIDC_RP["PROVIDERS"]["own"] | more
    settings.OIDC_RP = {**settings.OIDC_RP, "PROVIDERS": {"own": own}}


def promised() -> list[str]:
    return re.findall(r"^- \*\*(M\d+[ab]?)\*\*", PROMISES, re.MULTILINE)


def verdicts(found: Iterable[Outcome], promise: str) -> list[str]:
    return [outcome.told for outcome in found if outcome.attack.promise == promise]


def not_withstood(found: Iterable[Outcome]) -> list[str]:
    return [outcome.told for outcome in found if not outcome.withstood]


def counts() -> dict[str, int]:
    models = (get_user_model(), Identity, Session, Event, LogoutMark)
    return {model.__name__: model._default_manager.count() for model in models}


def test_a_site_refuses_all_and_keeps_nothing() -> None:
    """Every attack is refused by its own code; database, cache and settings are as before."""
    cache.set("mine", "kept")
    before, own = counts(), django_settings.OIDC_RP
    outcomes = list(run("own"))
    assert not_withstood(outcomes) == []
    assert (counts(), django_settings.OIDC_RP, cache.get("mine")) == (before, own, "kept")
    assert conf.provider("own").issuer == "https://op.invalid/"


def test_nobody_of_the_project_hears_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """No receiver is called, no record is written, and both work again afterwards."""
    heard: list[Any] = []

    def listen(sender: Any, **told: Any) -> None:
        heard.append(told["signal"])

    signals = (signed_in, login_failed, user_logged_in)
    for signal in signals:
        signal.connect(listen)
    try:
        list(run("own"))
        assert (heard, caplog.records) == ([], [])
        login_failed.send(Identity)
        logging.getLogger("oidc_rp").error("heard again")
    finally:
        for signal in signals:
            signal.disconnect(listen)
    assert (heard, len(caplog.records)) == ([login_failed], 1)


@pytest.mark.parametrize(
    "more",
    [
        {"ID_TOKEN_SIGNED_RESPONSE_ALG": "HS256"},
        {
            "ID_TOKEN_SIGNED_RESPONSE_ALG": "EdDSA",
            "USERINFO_SIGNED_RESPONSE_ALG": "HS384",
            "LEEWAY": 0,
            "TRUSTED_AUDIENCES": ["https://another.example"],
        },
        {
            "ID_TOKEN_SIGNED_RESPONSE_ALG": "ES256",
            "RESPONSE_MODE": "form_post",
            "DEFAULT_MAX_AGE": 300,
            "DEFAULT_ACR_VALUES": ["gold"],
            "USERINFO_SIGNED_RESPONSE_ALG": "ES256",
        },
        {
            "ISSUER": "https://op.invalid/{tenantid}/v2.0",
            "TENANTS": ["one", "two"],
            "USERINFO": False,
        },
        {
            "TOKEN_ENDPOINT_AUTH_METHOD": "private_key_jwt",
            "TOKEN_ENDPOINT_AUTH_SIGNING_ALG": "ES256",
            "PRIVATE_KEY": SigningKey.generate("ES256").private_jwk,
        },
        {
            "CLIENT_SECRET": None,
            "TOKEN_ENDPOINT_AUTH_METHOD": "none",
            "REQUIRE_PUSHED_AUTHORIZATION_REQUESTS": True,
            "EMAIL_DOMAINS": ["example.org"],
            "CREATE_USERS": False,
            "REDIRECT_URIS": ["https://testserver/oidc/own/callback/"],
        },
        {"SCOPES": ["openid", "offline_access"], "API_ORIGINS": ["https://api.example"]},
    ],
    ids=["hmac", "eddsa", "strict", "tenants", "private_key_jwt", "public", "tokens"],
)
def test_the_projects_own_options_are_attacked(settings: Settings, more: dict[str, Any]) -> None:
    """Whatever the options: an honest sign-in succeeds, and no attack does."""
    settings.OIDC_RP["TOKEN_KEYS"] = [generate_key()]
    options(settings, **more)
    found = list(run("own"))
    assert not_withstood(found) == []
    assert len(found) > 75


def test_attacks_on_what_was_asked_for_only_fit_who_asks(settings: Settings) -> None:
    """acr and auth_time are attacked where the options ask for them, tenants where they are."""
    plain = conf.provider("own")
    left_out = " ".join(attack.promise for attack in ATTACKS if not attack.fits(plain))
    assert left_out == (
        "M18 M24 M29 M29 M29 M37 M37 M7 M15 M15 M31 M34 M36 M36 M36 M38 M30 M30 M54"
    )


def test_what_the_options_let_in_is_not_called_refused(settings: Settings) -> None:
    """An audience that the settings trust gets through, and nothing else does."""
    options(settings, TRUSTED_AUDIENCES=["https://attacker.example"])
    found = [outcome for outcome in run("own") if not outcome.withstood]
    assert [outcome.attack.promise for outcome in found] == ["M24"]
    assert found[0].told == f"{GOT_THROUGH}: somebody is signed in"


BY_EMAIL = "A stranger with the e-mail address of somebody who has an account here."
BY_EMAIL_UNSAID = "A stranger with such an address, and nobody says whether it is verified."
BY_NAME = "A stranger with the user name of somebody who has an account here."


@pytest.mark.parametrize(
    ("backend", "through"),
    [
        ("ByEmail", [BY_EMAIL, BY_EMAIL_UNSAID]),
        ("UnlessUnverified", [BY_EMAIL_UNSAID]),
        ("ByName", [BY_NAME]),
    ],
)
def test_M33_a_hook_that_hands_over_an_account_is_found_out(
    settings: Settings, backend: str, through: list[str]
) -> None:
    """By the address alone, or by the name alone; whoever has an account here for other reasons is
    somebody else."""
    settings.AUTHENTICATION_BACKENDS = [f"tests.test_attack.{backend}"]
    found = {outcome.attack.sentence: outcome for outcome in run("own", attacks=ACCOUNTS)}
    assert [sentence for sentence, outcome in found.items() if not outcome.withstood] == through
    taken_over = f"{GOT_THROUGH}: somebody else's account was taken over"
    assert {found[sentence].told for sentence in through} == {taken_over}
    assert not get_user_model().objects.exists()


def test_M33_a_stranger_is_somebody_new() -> None:
    """Nothing is refused, and nothing is lost; the exit code is 0, and the line says so."""
    told = attack("own")
    row = rf"M33   CAME TO NOTHING +{BY_EMAIL}"
    assert re.search(row, told)
    assert re.search(r"own: \d+ of \d+ attacks refused, 5 came to nothing\.", told)


def test_M33_whom_nobody_can_tell_is_no_victim(settings: Settings) -> None:
    """Where nobody has an account, none is taken over, and that says nothing."""
    settings.AUTHENTICATION_BACKENDS = ["tests.test_attack.Once"]
    Once.welcome.append(True)
    assert verdicts(run("own", attacks=ACCOUNTS), "M33") == [f"{FAILED}: NobodySignedIn"] * 3


def test_M33_whoever_is_sent_home_without_a_code_has_proven_nothing(settings: Settings) -> None:
    """Neither was the stranger refused, nor did they become somebody new."""
    settings.ROOT_URLCONF = Replaced("callback", turn_away)
    found = list(run("own", attacks=(*ACCOUNTS, *CALLBACKS)))
    assert verdicts(found, "M33") == [f"{FAILED}: HTTP 302 without a code"] * 3
    assert verdicts(found, "M12") == ["CAME TO NOTHING"] * 2


def test_M33_an_unverified_address_links_nobody_where_verified_ones_do(settings: Settings) -> None:
    """And a verified one needs its owner's own sign-in here."""
    options(settings, DANGEROUSLY_LINK_BY_EMAIL="tests.test_attack.is_verified")
    found = list(run("own", attacks=ACCOUNTS))
    assert verdicts(found, "M33") == ["CAME TO NOTHING"] * 3
    assert verdicts(found, "M34") == [f"{REFUSED} by account.confirm"]
    assert not_withstood(found) == []


@pytest.mark.parametrize("model", ["email_user", "unique_email"])
def test_M33_other_user_models_are_attacked_as_well(model: str, tmp_path: Path) -> None:
    """A user without a name, and one whose address is unique: what is fine is called fine, and
    what is not is found out. AUTH_USER_MODEL is one for a whole process."""
    scenarios = ("test_a_site_refuses_all", "test_M33_a_hook")
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-k", " or ".join(scenarios)]
    command += [f"--ds=tests.users.{model}_settings", "-p", "no:cacheprovider"]
    command += [f"--basetemp={tmp_path / 'inner'}"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "4 passed" in ran.stdout


def test_M12_a_redirect_to_another_site_is_found_out(settings: Settings) -> None:
    """A middleware of a site's own believes what `next` says."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.test_attack.send_on"]
    sent_away = f"{GOT_THROUGH}: the browser was sent to another site"
    assert verdicts(run("own", attacks=CALLBACKS), "M12") == [sent_away] * 2


def test_M12_a_refusal_that_nothing_asks_for_is_another() -> None:
    """The login is honest: whatever refuses it has not looked at `next`."""
    to_another_site = next(attack for attack in ATTACKS if attack.promise == "M12")
    assert Outcome(to_another_site, "", "state.unknown").told == (
        f"{REFUSED_OTHERWISE} by state.unknown"
    )


def test_a_logout_token_without_a_verified_signature_is_found_out(settings: Settings) -> None:
    """A back channel that looks at the header and the issuer alone is told so."""
    settings.ROOT_URLCONF = Replaced("backchannel-logout", log_out_unverified)
    told = {outcome.attack.sentence: outcome.told for outcome in run("own", attacks=LOGOUTS)}
    forged = told["A logout token of another key under the OP's own kid."]
    assert forged == f"{GOT_THROUGH}: a session has ended"
    assert told["An unsigned logout token."] == f"{REFUSED} by logout_token.alg"
    other = told["A logout token of another issuer."]
    assert other == f"{REFUSED_OTHERWISE} by logout_token.alg, not by logout_token.iss"


def test_a_callback_that_signs_anybody_in_is_found_out(settings: Settings) -> None:
    """A site with a callback of its own is told what gets through; the exit code is 1."""
    settings.ROOT_URLCONF = Replaced("callback", sign_anybody_in)
    out = StringIO()
    with pytest.raises(CommandError, match=r"^\d+ attacks were not refused\.$") as failed:
        call_command("oidc_attack", "own", stdout=out)
    assert failed.value.returncode == 1
    row = r"M18 +GOT THROUGH: somebody is signed in +An unsigned ID Token \(alg none\)\."
    assert re.search(row, out.getvalue())
    assert not get_user_model().objects.exists()


def test_a_view_that_falls_over_is_no_refusal(settings: Settings) -> None:
    """A 500 is told as a failure of its own attack, and of no other."""
    settings.ROOT_URLCONF = Replaced("frontchannel-logout", fall_over)
    outcomes = {outcome.attack.promise: outcome for outcome in run("own", attacks=LOGOUTS)}
    assert outcomes.pop("M59").told == f"{FAILED}: HTTP 500"
    assert not_withstood(outcomes.values()) == []


def test_a_logout_without_any_check_is_not_called_refused(settings: Settings) -> None:
    """Whoever answers 200 to a foreign front channel has let it through."""
    settings.ROOT_URLCONF = Replaced("frontchannel-logout", lambda request, slug: HttpResponse())
    outcomes = {outcome.attack.promise: outcome for outcome in run("own", attacks=LOGOUTS)}
    assert outcomes["M59"].told == f"{GOT_THROUGH}: HTTP 200"


def test_a_refusal_by_another_code_proves_nothing(settings: Settings) -> None:
    """It is counted apart; the exit code is 1."""
    settings.ROOT_URLCONF = Replaced(
        "frontchannel-logout",
        lambda request, slug: JsonResponse({"error_description": "logout.sid (x)"}, status=400),
    )
    out = StringIO()
    with pytest.raises(CommandError, match=r"^1 attack was refused otherwise\b") as failed:
        call_command("oidc_attack", "own", stdout=out)
    assert failed.value.returncode == 1
    assert "M59   REFUSED OTHERWISE by logout.sid, not by logout.iss" in out.getvalue()
    summary = r"own: \d+ of \d+ attacks refused, 1 otherwise, 5 came to nothing\."
    assert re.search(summary, out.getvalue())


def test_a_provider_that_cannot_be_used_is_told(settings: Settings) -> None:
    """Without a slug the others are attacked all the same; the exit code is 1."""
    own = settings.OIDC_RP["PROVIDERS"]["own"]
    settings.OIDC_RP = {"PROVIDERS": {"half": {"ISSUER": "https://half.example"}, "own": own}}
    out = StringIO()
    with pytest.raises(CommandError, match=r"^half is not attacked: configuration\.prov") as failed:
        call_command("oidc_attack", "--json", stdout=out)
    assert failed.value.returncode == 1
    (told,) = json.loads(out.getvalue())["providers"]
    assert told["provider"] == "own"
    assert told["refused"] + told["came_to_nothing"] == len(told["attacks"])


@pytest.mark.parametrize("providers", [None, {}, "no.such.callable", dict])
def test_without_any_provider_there_is_nothing_to_attack(
    settings: Settings, providers: Any
) -> None:
    """Also where what names them cannot be read."""
    settings.OIDC_RP = {"PROVIDERS": providers}
    with pytest.raises(CommandError, match=r"^OIDC_RP\['PROVIDERS'\] (has no|cannot be read)"):
        attack()


def test_without_an_honest_sign_in_nothing_is_proven(settings: Settings) -> None:
    """The command tells the code and exits with 2; the claims that are needed help."""
    settings.AUTHENTICATION_BACKENDS = ["tests.test_attack.Strict"]
    with pytest.raises(CommandError, match=r"sign-in is refused by account\.claims") as failed:
        attack("own")
    assert failed.value.returncode == 2
    assert "attacks refused, 5 came to nothing." in attack("own", "--claims", '{"member": true}')


def test_the_others_are_attacked_where_nothing_is_proven_of_one(settings: Settings) -> None:
    """Whichever comes first; the exit code tells that something is not proven."""
    own = settings.OIDC_RP["PROVIDERS"]["own"]
    members = own | {"CLIENT_ID": "members"}
    settings.OIDC_RP = {"PROVIDERS": {"members": members, "own": own}}
    settings.AUTHENTICATION_BACKENDS = ["tests.test_attack.StrictForMembers"]
    out = StringIO()
    with pytest.raises(CommandError, match=r"^members: .* refused by account\.claims") as failed:
        call_command("oidc_attack", "--json", stdout=out)
    assert failed.value.returncode == 2
    (told,) = json.loads(out.getvalue())["providers"]
    assert told["provider"] == "own"
    assert told["refused"] + told["came_to_nothing"] == len(told["attacks"])


def test_a_broken_callback_proves_nothing(settings: Settings) -> None:
    """A view that raises is no refusal."""
    settings.ROOT_URLCONF = Replaced("callback", fall_over)
    with pytest.raises(CommandError, match="refused by HTTP 500") as failed:
        attack("own")
    assert failed.value.returncode == 2


def test_json_is_for_scripts() -> None:
    """One object, and nothing beside it; without a slug all providers are in it."""
    (told,) = json.loads(attack("--json"))["providers"]
    counted = ("refused", "refused_otherwise", "came_to_nothing")
    assert told.keys() == {"provider", *counted, "attacks"}
    assert told["provider"] == "own"
    assert sum(told[name] for name in counted) == len(told["attacks"])
    assert told["refused_otherwise"] == 0
    assert told["attacks"][0] == {
        "promise": "M17",
        "attack": "An ID Token of four parts.",
        "verdict": "REFUSED",
        "code": "id_token.format",
        "expected": "id_token.format",
        "problem": "",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "provider.unknown"),
        (["own", "--claims", "{"], "not JSON"),
        (["own", "--claims", "[]"], "not a JSON object"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], message: str) -> None:
    """An unknown provider, or claims that are none, are a CommandError and no traceback."""
    with pytest.raises(CommandError, match=re.escape(message)):
        attack(*arguments)


def test_a_site_without_our_urls_is_told_so(settings: Settings) -> None:
    """There is nothing to attack then."""
    settings.ROOT_URLCONF = type("Empty", (), {"urlpatterns": []})
    with pytest.raises(CommandError, match="not included"):
        attack("own")


def test_each_attack_names_a_promise() -> None:
    """And no two attacks say the same."""
    assert {attack.promise for attack in ATTACKS} <= set(promised())
    assert len({attack.sentence for attack in ATTACKS}) == len(ATTACKS)


def test_what_is_not_attacked_is_told() -> None:
    """docs/attack.md names every promise without an attack, and no other."""
    attacked = {attack.promise for attack in ATTACKS}
    untried = TOLD.partition("## What it does not show")[2]
    told = re.findall(r"\bM\d+[ab]?\b", untried)
    assert sorted(told) == sorted(set(promised()) - attacked)


def test_the_samples_of_the_documentation_are_true(settings: Settings) -> None:
    """The lines of the first are printed so, and the counts of both are a default provider's."""
    settings.OIDC_RP = {"PROVIDERS": {"genauth": settings.OIDC_RP["PROVIDERS"]["own"]}}
    printed = attack("genauth")
    first = TOLD.partition("`oidc_attack`")[0]
    sample = re.findall(r"^    (?!\$|\.\.\.)(.+)$", first, re.MULTILINE)
    assert [line for line in sample if f"{line}\n" not in printed] == []
    assert sample[-1].startswith("genauth: ")
    (told,) = json.loads(attack("--json"))["providers"]
    (shown,) = json.loads(TOLD.partition("```json\n")[2].partition("```")[0])["providers"]
    assert all(attack in told["attacks"] for attack in shown["attacks"])
    assert shown | {"attacks": []} == told | {"attacks": []}


def test_a_login_that_leads_elsewhere_is_not_followed(
    configure: Configure, db: None, settings: Settings, op: OpenIDProvider
) -> None:
    """No request leaves for where a view of the project sends people."""
    urls = ModuleType("gated_urls")
    gate = path("oidc/<slug>/login/", lambda *_, **__: redirect(f"{op.origin}/elsewhere?client=x"))
    urls.urlpatterns = [gate, path("", include("tests.urls"))]  # type: ignore[attr-defined]
    settings.ROOT_URLCONF = urls
    before = len(op.requests)
    with pytest.raises(CommandError, match=f"a redirect to {op.origin}/elsewhere;") as failed:
        call_command("oidc_attack", "op")
    assert failed.value.returncode == 2
    assert len(op.requests) == before


def test_it_is_for_a_process_of_its_own(configure: Configure, db: None) -> None:
    """A server's threads would have its settings meanwhile."""
    with ThreadPoolExecutor(1) as pool, pytest.raises(CommandError, match="one of its own"):
        pool.submit(call_command, "oidc_attack", "op").result()
