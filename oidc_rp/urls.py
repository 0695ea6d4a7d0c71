"""The URLs of oidc_rp, to be included below a path of the site's choice."""

from django.urls import path

from . import views

app_name = "oidc_rp"
urlpatterns = [
    path("login/", views.LoginChooserView.as_view(), name="login_chooser"),
    path("logout/", views.LogoutView.as_view(), name="logout"),
    path("<slug:slug>/login/", views.LoginView.as_view(), name="login"),
    path("<slug:slug>/callback/", views.CallbackView.as_view(), name="callback"),
]
