"""Settings from the environment: each one read once, or from the file that `NAME_FILE` points to."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit


class SettingsError(Exception):
    """A setting is missing or cannot be used. The text is one sentence for the operator."""


def read(environ: Mapping[str, str], name: str, default: str | None = None) -> str:
    """The value of `name`, or the content of the file named by `name`_FILE, or `default`.

    Raises SettingsError when there is no value, or when both forms are given.
    """
    value, path = environ.get(name, ""), environ.get(f"{name}_FILE", "")
    if value and path:
        raise SettingsError(f"Both {name} and {name}_FILE are set; keep one of them.")
    if path:
        value = _read_file(name, Path(path))
    if not value and default is None:
        raise SettingsError(f"{name} is not set; set it, or {name}_FILE to a file that holds it.")
    return value or default or ""


def read_url(environ: Mapping[str, str], name: str, default: str | None = None) -> str:
    """An http(s) URL without its trailing slash."""
    url = read(environ, name, default).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(f"{name} must be an http:// or https:// URL with a host.")
    return url


def read_folder(environ: Mapping[str, str], name: str, *, create: bool = False) -> Path:
    """An absolute folder. With `create` it is made when it is missing; without, it must exist."""
    folder = Path(read(environ, name)).absolute()
    if create:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"{name}={folder} cannot be made: {error.strerror}.") from error
    if not folder.is_dir():
        raise SettingsError(f"{name}={folder} is not a folder.")
    return folder


def read_number(environ: Mapping[str, str], name: str, default: int) -> int:
    """A whole number above 0."""
    text = read(environ, name, str(default))
    if not text.isdecimal() or int(text) == 0:
        raise SettingsError(f"{name} must be a whole number above 0, not {text!r}.")
    return int(text)


def _read_file(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name}_FILE={path} cannot be read.") from error
