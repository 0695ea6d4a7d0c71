from django.apps import AppConfig, apps
from django.utils.translation import gettext_lazy as _


class OIDCRelyingPartyConfig(AppConfig):
    name = "oidc_rp"
    verbose_name = _("OpenID Connect")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.contrib.auth.signals import user_logged_in, user_logged_out
        from django.core.signals import request_finished
        from django.db.models.signals import post_delete, post_save, pre_delete

        from . import checks, closing, refresh, revocation, sessions  # noqa: F401 - checks registers them

        user_logged_in.connect(closing.forget_replaced_session)
        user_logged_in.connect(sessions.note_local_login)
        user_logged_out.connect(closing.forget_session)
        post_save.connect(
            closing.forget_user
        )  # by no sender: a proxy of the user model is one, too
        pre_delete.connect(closing.forget_grant, sender="oidc_rp.Grant")
        pre_delete.connect(closing.forget_identity, sender="oidc_rp.Identity")
        post_delete.connect(closing.tell_unlinked, sender="oidc_rp.Identity")
        post_save.connect(revocation.soon, sender="oidc_rp.PendingRevocation")
        request_finished.connect(refresh.store_waiting)

        if apps.is_installed("django.contrib.admin"):
            from django.contrib import admin

            from .admin import add_inline

            add_inline()  # a user admin of the site's own may have come after ours
            # The login page of the default admin site gets our buttons, unless it has its own.
            if admin.site.login_template is None:
                admin.site.login_template = "oidc_rp/admin_login.html"
