"""The URLs of oidc_rp, to be included below a path of the site's choice."""

from django.urls import path

from . import identity_views, logout_views, views

app_name = "oidc_rp"
urlpatterns = [
    path("login/", views.LoginChooserView.as_view(), name="login_chooser"),
    path("logout/", views.LogoutView.as_view(), name="logout"),
    path("logged-out/", views.LoggedOutView.as_view(), name="logged_out"),
    path("identities/", identity_views.IdentitiesView.as_view(), name="identities"),
    path("<slug:slug>/login/", views.LoginView.as_view(), name="login"),
    path("<slug:slug>/callback/", views.CallbackView.as_view(), name="callback"),
    path("<slug:slug>/initiate/", views.InitiateView.as_view(), name="initiate"),
    path(
        "<slug:slug>/backchannel-logout/",
        logout_views.BackchannelLogoutView.as_view(),
        name="backchannel_logout",
    ),
    path(
        "<slug:slug>/frontchannel-logout/",
        logout_views.FrontchannelLogoutView.as_view(),
        name="frontchannel_logout",
    ),
]
