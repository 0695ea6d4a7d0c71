"""The URLs of the site whose admin is looked at."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("admin/", admin.site.urls), path("", include("oidc_rp.urls"))]
