from django.apps import AppConfig, apps
from django.utils.translation import gettext_lazy as _


class OIDCRelyingPartyConfig(AppConfig):
    name = "oidc_rp"
    verbose_name = _("OpenID Connect")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.contrib.auth.signals import user_logged_in

        from . import checks, sessions  # noqa: F401 - checks registers them

        user_logged_in.connect(sessions.note_local_login)

        if apps.is_installed("django.contrib.admin"):
            from django.contrib import admin

            from .admin import add_inline

            add_inline()  # a user admin of the site's own may have come after ours
            # The login page of the default admin site gets our buttons, unless it has its own.
            if admin.site.login_template is None:
                admin.site.login_template = "oidc_rp/admin_login.html"
