"""User models as sites have them: an address instead of a name, and an address that is unique."""

from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import AbstractUser
from django.db import models


class EmailUserManager(BaseUserManager["EmailUser"]):
    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "EmailUser":
        user = self.model(email=self.normalize_email(email), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user


class EmailUser(AbstractBaseUser):
    """Known by an address; no user name, no given name, no groups."""

    email = models.EmailField(unique=True)
    nickname = models.CharField(max_length=20, blank=True)
    is_active = models.BooleanField(default=True)

    objects = EmailUserManager()

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    def __str__(self) -> str:
        return self.email


class UniqueEmailUser(AbstractUser):
    """Django's own user, with an address that nobody shares."""

    email = models.EmailField(unique=True)

    class Meta:
        swappable = "AUTH_USER_MODEL"
