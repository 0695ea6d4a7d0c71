from django.urls import include, path
from oauth2_provider import views as oauth2
from oauth2_provider.urls import metadata_urlpatterns, oidc_urlpatterns

from demo_site.provider import api, views

oauth2_urlpatterns = [
    path(".well-known/openid-configuration", views.DiscoveryView.as_view()),  # before DOT's own
    path("logout/", views.RPInitiatedLogoutView.as_view()),  # likewise
    *metadata_urlpatterns,
    *oidc_urlpatterns,
    path("authorize/", views.AuthorizationView.as_view(), name="authorize"),
    path("token/", oauth2.TokenView.as_view(), name="token"),
    path("revoke_token/", oauth2.RevokeTokenView.as_view(), name="revoke-token"),
]

urlpatterns = [
    path("", views.home, name="home"),
    path("login/", views.LoginView.as_view(), name="login"),
    path("second-factor/", views.SecondFactorView.as_view(), name="second_factor"),
    path("sign-out/", views.LogoutView.as_view(), name="sign_out"),
    path("take-back/", views.take_back, name="take_back"),
    path("api/calendar/", api.calendar),
    path("api/contacts/", api.contacts),
    path("api/id-token-instead/", api.id_token_instead),
    path("", include((oauth2_urlpatterns, "oauth2_provider"))),
]
