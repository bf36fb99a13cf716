"""Who there is, what they belong to, and the keys of their apps."""

from typing import ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.postgres.fields import ArrayField
from django.db import models

from stillhouse.accounts.keys import APP_SCOPES, KeyTerms
from stillhouse.core.ids import IdField


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None, *, name: str = "") -> "User":
        user = self.model(email=email.strip().lower(), name=name)
        user.set_password(password)
        user.save(using=self._db)
        return user


class User(AbstractBaseUser):
    """A person. Rights come from memberships alone; there is no superuser."""

    id = IdField("usr")
    email = models.EmailField(unique=True)
    name = models.CharField(max_length=120, blank=True)
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []
    objects = UserManager()

    def __str__(self) -> str:
        return self.name or self.email


class Workspace(models.Model):
    """The tenant: owns everything, and sees nothing of another one."""

    id = IdField("ws")
    slug = models.SlugField(unique=True, max_length=60)
    name = models.CharField(max_length=120)
    data_quota_bytes = models.PositiveBigIntegerField(null=True)
    """How much data it may store; None: as much as DATA_QUOTA_BYTES says."""
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class Role(models.TextChoices):
    EXPERT = "expert", "Domain expert"
    LEAD = "lead", "ML lead"
    ADMIN = "admin", "Administrator"


class Membership(models.Model):
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role.choices)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["user", "workspace"], name="one_membership_per_workspace"),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="membership_role_known"),
        ]


def all_scopes() -> list[str]:
    """Of a key made without saying what for. Migrations know it by this name."""
    return list(APP_SCOPES)


class ApiKey(models.Model):
    """An app's key: only the HMAC of its secret is stored; the secret is shown once."""

    id = IdField("key")
    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=120)
    prefix = models.CharField(max_length=16, unique=True)
    digest = models.CharField(max_length=64, unique=True)
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    scopes = ArrayField(models.CharField(max_length=20), default=all_scopes)
    """Of `accounts.keys.SCOPES`."""
    expires_at = models.DateTimeField(null=True, blank=True)
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_minute = models.PositiveIntegerField(null=True, blank=True)
    """Prompt and completion together. None: no limit, as in the two beside it."""
    monthly_tokens = models.PositiveBigIntegerField(null=True, blank=True)
    """Budget of a calendar month in UTC."""
    local_only = models.BooleanField(default=False, db_default=False)
    """Its requests never leave the site, whatever an alias allows."""

    @property
    def terms(self) -> KeyTerms:
        return KeyTerms(
            scopes=frozenset(self.scopes),
            expires_at=self.expires_at,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            monthly_tokens=self.monthly_tokens,
            local_only=self.local_only,
        )
