"""The one settings file. Everything comes from the environment, once; what is missing is said by name."""

import os
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured


def env(name: str, default: str | None = None) -> str:
    """The variable `name`, or the content of the file that `<name>_FILE` names, or `default`."""
    if path := os.environ.get(f"{name}_FILE"):
        return Path(path).read_text(encoding="utf-8").strip()
    value = os.environ.get(name, default)
    if value is None:
        raise ImproperlyConfigured(
            f"Set the environment variable {name} (or {name}_FILE). `make up` sets it for you."
        )
    return value


def flag(name: str) -> bool:
    return env(name, "").lower() in ("1", "true", "yes", "on")


DATABASE_LINE = {
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
"""A Postgres whose host is gone without a word is missed in half a minute: the kernel alone would wait for a
quarter of an hour."""


def _database(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    if parts.scheme not in ("postgres", "postgresql") or not parts.path.strip("/"):
        raise ImproperlyConfigured("DATABASE_URL must look like postgresql://user:password@host:5432/name")
    return {
        "ENGINE": "stillhouse.core.postgres",
        "NAME": unquote(parts.path.strip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or 5432),
        # Under ASGI every request has a thread of its own: a connection kept by a thread would never be used
        # again, and soon Postgres would have no slot left. So the threads share a pool.
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        # `reconnect_timeout`: after an outage the pool tries anew with the next request, not after pauses
        # that have grown to minutes.
        "OPTIONS": {
            **DATABASE_LINE,
            # A process that stands still, or whose host is gone, gives back its locks.
            "options": "-c idle_in_transaction_session_timeout=2min -c tcp_keepalives_idle=30 "
            "-c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
            "pool": {"min_size": 1, "max_size": 16, "timeout": 10, "reconnect_timeout": 2.0},
        },
    }


REPOSITORY = Path(__file__).resolve().parents[2]

SECRET_KEY = env("SECRET_KEY")
DEBUG = flag("DEBUG")
STILLHOUSE_URL = env("STILLHOUSE_URL", "http://127.0.0.1:8000").rstrip("/")
ALLOWED_HOSTS = [urlsplit(STILLHOUSE_URL).hostname or "", *filter(None, env("ALLOWED_HOSTS", "").split(","))]
CSRF_TRUSTED_ORIGINS = [STILLHOUSE_URL]
CSRF_FAILURE_VIEW = "stillhouse.web.views.errors.csrf_failed"

DATABASE_URL = env("DATABASE_URL")
DATABASES = {"default": _database(DATABASE_URL)}
BROKER_URL = env("BROKER_URL")

S3_ENDPOINT = env("S3_ENDPOINT")
S3_PUBLIC_ENDPOINT = env("S3_PUBLIC_ENDPOINT", S3_ENDPOINT)
S3_ACCESS_KEY = env("S3_ACCESS_KEY")
S3_SECRET_KEY = env("S3_SECRET_KEY")
S3_BUCKET = env("S3_BUCKET", "stillhouse")
S3_REGION = env("S3_REGION", "us-east-1")

WORKER_TOKEN = env("WORKER_TOKEN")
AGENT_TOKEN = env("AGENT_TOKEN")
STILLHOUSE_HOME = Path(env("STILLHOUSE_HOME", str(REPOSITORY / "var")))
SPOOL_DIR = Path(env("SPOOL_DIR", str(STILLHOUSE_HOME / "spool")))
TRACING = env("TRACING", "") not in ("", "0")  # the gateway's OpenTelemetry spans; see docs/operate.md
METRICS_TOKEN = env("METRICS_TOKEN", "")  # of whoever reads the gateway's /metrics; empty: nobody does
ESCALATION_DESTINATIONS = [  # origins that prompts may go to, such as https://models.example.com; none: off
    origin.rstrip("/") for origin in env("ESCALATION_DESTINATIONS", "").replace(" ", "").split(",") if origin
]
BASES_DIR = Path(env("BASES_DIR", str(REPOSITORY / "var" / "bases")))

LEASE_SECONDS = int(env("LEASE_SECONDS", "60"))
REPORT_SECONDS = float(env("REPORT_SECONDS", "2"))
RETRY_SECONDS = float(env("RETRY_SECONDS", "5"))
CHECKPOINT_SECONDS = float(env("CHECKPOINT_SECONDS", "300"))
CHECKPOINTS_KEPT = int(env("CHECKPOINTS_KEPT", "2"))
HANG_SECONDS = float(env("HANG_SECONDS", "900"))
FLEET_WORKSPACE = env("FLEET_WORKSPACE", "")  # its administrators may drain and revoke workers
MAX_UPLOAD_BYTES = int(env("MAX_UPLOAD_BYTES", str(20 * 1024**3)))
DATA_QUOTA_BYTES = int(env("DATA_QUOTA_BYTES", str(200 * 1024**3)))  # of a workspace without its own
ERASURE_GRACE = timedelta(days=float(env("ERASURE_GRACE_DAYS", "7")))  # from a lead's word to the bytes' end

KEEPER_CHORES = [  # of apps that `jobs` may not import: what, how often in seconds, the function
    ("erasures ended", 10, "stillhouse.erasure.forgetting.settle_erasures"),
    ("objects that nothing names removed", 600, "stillhouse.erasure.unnamed.remove_unnamed"),
    ("kept prompts and answers removed", 60, "stillhouse.usage.kept.forget_expired"),
    ("notices made", 5, "stillhouse.notifications.notices.collect_notices"),
    ("notices delivered", 2, "stillhouse.notifications.delivering.deliver_in_background"),
    ("old notices forgotten", 3600, "stillhouse.notifications.delivering.forget_old_notices"),
]

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "django_htmx",
    "stillhouse.core",
    "stillhouse.accounts",
    "stillhouse.audit",
    "stillhouse.jobs",
    "stillhouse.usage",
    "stillhouse.datasets",
    "stillhouse.catalog",
    "stillhouse.training",
    "stillhouse.adapters",
    "stillhouse.serving",
    "stillhouse.evaluations",
    "stillhouse.approvals",
    "stillhouse.publishing",
    "stillhouse.erasure",
    "stillhouse.notifications",
    "stillhouse.worker_api",
    "stillhouse.embedded",
    "stillhouse.web",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "stillhouse.web.middleware.ContentSecurityPolicyMiddleware",
    "stillhouse.web.middleware.UserErrorMiddleware",
]

ROOT_URLCONF = "stillhouse.urls"
ASGI_APPLICATION = "stillhouse.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [REPOSITORY / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "stillhouse.web.context.shell",
            ],
        },
    }
]

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
ACCOUNT_ADAPTER = "stillhouse.accounts.allauth.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_EMAIL_VERIFICATION = "none"  # accounts are made by an administrator; there is no open sign-up
ACCOUNT_SESSION_REMEMBER = True
LOGIN_REDIRECT_URL = "/"
LOGIN_URL = "account_login"
EMAIL_BACKEND = env("EMAIL_BACKEND", "django.core.mail.backends.console.EmailBackend")
EMAIL_HOST = env("EMAIL_HOST", "localhost")
EMAIL_PORT = int(env("EMAIL_PORT", "25"))
EMAIL_HOST_USER = env("EMAIL_HOST_USER", "")
EMAIL_HOST_PASSWORD = env("EMAIL_HOST_PASSWORD", "")
EMAIL_USE_TLS = flag("EMAIL_USE_TLS")
EMAIL_TIMEOUT = 10
WEBHOOK_PRIVATE_HOSTS = [host for host in env("WEBHOOK_PRIVATE_HOSTS", "").split(",") if host]
DEFAULT_FROM_EMAIL = env("DEFAULT_FROM_EMAIL", "stillhouse@localhost")

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = STILLHOUSE_URL.startswith("https://")
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if flag("BEHIND_PROXY") else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 32 * 1024**2  # far above a report with a full log tail and 1,000 points

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"
STATIC_ROOT = REPOSITORY / "var" / "static"
WHITENOISE_USE_FINDERS = True  # the files are few and vendored: nothing to collect, nothing to forget
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name} {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env("LOG_LEVEL", "INFO")},
}
