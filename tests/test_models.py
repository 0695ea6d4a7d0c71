"""Identity: (iss, sub), byte for byte, on every database."""

from datetime import datetime
from datetime import timezone as tz
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext, override_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from oidc_rp.models import Event, Identity, digest
from oidc_rp.testing import OpenIDProvider
from tests.test_accounts import sign_in

ISS = "https://op.example"
LOOK_ALIKES = [
    "abc",
    "ABC",
    "Abc",
    "abc ",
    " abc",
    "abc\t",
    "abc\u200b",
    "\u00e1bc",  # one code point
    "a\u0301bc",  # two, the same to the eye
    "\u00c1bc",
    "\uff41bc",
    "ß",
    "ss",
    "\u0131",  # i without a dot
    "i",
    "\u0130",
    "1",
    "01",
    "1.0",
]


def identity(sub: str, iss: str = ISS, **fields: Any) -> Identity:
    user = User.objects.create(username=f"user-{User.objects.count()}")
    return Identity.objects.create(user=user, provider="op", iss=iss, sub=sub, **fields)


@pytest.mark.django_db
def test_M28_subjects_that_look_alike_are_different_people() -> None:
    """Case, blanks and Unicode forms make another subject; none is found in another's place."""
    made = {sub: identity(sub) for sub in LOOK_ALIKES}
    for sub, one in made.items():
        assert Identity.objects.find(ISS, sub) == one
        one.refresh_from_db()
        assert one.sub == sub
    assert Identity.objects.find(ISS, "aBc") is None


@pytest.mark.django_db
@pytest.mark.parametrize(
    "iss",
    [ISS + "/", "https://OP.example", "https://op.example/a", "http://op.example", ISS + " "],
)
def test_M28_an_issuer_is_compared_byte_for_byte(iss: str) -> None:
    """One more slash is another issuer."""
    one, other = identity("abc"), identity("abc", iss)
    assert Identity.objects.find(ISS, "abc") == one
    assert Identity.objects.find(iss, "abc") == other


@pytest.mark.django_db
def test_M28_one_person_has_one_identity() -> None:
    """The database refuses a second one, for another user and another slug too."""
    identity("abc")
    with pytest.raises(IntegrityError), transaction.atomic():
        identity("abc")
    assert Identity.objects.count() == 1


@pytest.mark.django_db
def test_M28_a_row_is_found_by_its_digest_and_proven_by_its_text() -> None:
    """A row whose sub was changed behind our back is nobody's."""
    one = identity("abc")
    Identity.objects.filter(pk=one.pk).update(sub="ABC")
    assert Identity.objects.find(ISS, "abc") is None
    assert Identity.objects.find(ISS, "ABC") is None


@pytest.mark.parametrize("sub", ["s", "x" * 255, "\U0001f600" * 255, "a b\tc", "'; DROP TABLE"])
@pytest.mark.usefixtures("browser")
def test_M28_any_subject_of_up_to_255_characters_signs_in_twice(
    op: OpenIDProvider, sub: str
) -> None:
    """What Core §2 allows as sub is kept as it came."""
    op.person["sub"] = sub
    assert sign_in() == sign_in()
    assert Identity.objects.get().sub == sub


@settings(max_examples=200, derandomize=True, deadline=None)
@given(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=12)] * 4)
def test_M28_a_digest_is_equal_only_for_equal_pairs(a: str, b: str, c: str, d: str) -> None:
    """No other split of the same characters, and no other pair, has the same digest."""
    assert (digest(a, b) == digest(c, d)) == ((a, b) == (c, d))
    moved = (a + b[:1], b[1:])
    assert (digest(a, b) == digest(*moved)) == ((a, b) == moved)


@pytest.mark.django_db
def test_finding_is_one_look_up() -> None:
    """One query brings the identity, through the unique index."""
    identity("abc")
    with CaptureQueriesContext(connection) as queries:
        found = Identity.objects.find(ISS, "abc")
    assert found is not None
    assert (found.sub, found.user.username) == ("abc", "user-0")
    assert len(queries) == 1
    assert "WHERE digest = " in queries[0]["sql"]
    assert Identity._meta.get_field("digest").unique


@pytest.mark.django_db
def test_an_identity_goes_with_its_user() -> None:
    """No identity is left that would belong to nobody."""
    identity("abc").user.delete()
    assert not Identity.objects.exists()


@pytest.mark.django_db
def test_an_identity_says_who_it_is() -> None:
    """In the admin's words: the subject, and the provider."""
    assert str(identity("abc")) == "abc (op)"


@pytest.mark.usefixtures("browser")
def test_an_identity_that_was_removed_links_anew(op: OpenIDProvider) -> None:
    """Unlinking is final: the next sign-in is a new user's."""
    before = sign_in()
    Identity.objects.all().delete()
    assert sign_in() != before


class ReadsElsewhere:
    """A router whose reads go to a database that is not there."""

    def db_for_read(self, model: Any, **_: Any) -> str:
        return "replica"

    def db_for_write(self, model: Any, **_: Any) -> str:
        return "default"


@pytest.mark.django_db
def test_somebody_is_looked_up_where_identities_are_written(settings: Any) -> None:
    """A replica may lag behind: who has just signed up would be made a second time."""
    made = identity("abc")
    settings.DATABASE_ROUTERS = ["tests.test_models.ReadsElsewhere"]
    assert Identity.objects.find(ISS, "abc") == made


@pytest.mark.django_db
def test_a_moment_without_a_zone_is_of_the_sites() -> None:
    """As Django's own now() makes them where USE_TZ is False."""
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Shanghai"):
        event = Event.objects.create(name="closed", at=datetime(2026, 3, 1, 20))  # noqa: DTZ001
    assert Event.objects.get(pk=event.pk).at == datetime(2026, 3, 1, 12, tzinfo=tz.utc)
