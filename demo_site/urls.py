from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from demo_site import calls, views

urlpatterns = [
    path("", views.home, name="home"),
    path("profile/", views.profile, name="profile"),
    path("profile/calendar/", calls.calendar, name="call_calendar"),
    path("profile/contacts/", calls.contacts, name="call_contacts"),
    path("profile/id-token/", calls.id_token_instead, name="call_id_token"),
    path("safe/", views.safe, name="safe"),
    path("safe/vault/", views.vault, name="vault"),
    path("oidc/", include("oidc_rp.urls")),
    path("admin/", admin.site.urls),
    path("favicon.ico", RedirectView.as_view(url=static("demo_site/mark.svg"))),  # for the admin
]
