"""REDIS_URL: what form it may have, and how it is shown without its password."""

from urllib.parse import urlsplit

_SCHEMES = ("redis", "rediss", "unix")
_FORMS = "redis://:password@host:6379/0, rediss://… with TLS, or unix:///path"


def require_address(url: str) -> None:
    """Check that an address has the form of one. The error's message doesn't hold its password.

    Raises: ValueError.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ValueError(f"must begin with redis://, as in redis://{_without_login(url)}")
    if scheme not in _SCHEMES:
        raise ValueError(f"must be {_FORMS}, got {scheme}://{_without_login(rest)}")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(
            f"must be {_FORMS}; its port is not a number, or / in its password not %2F"
        ) from None
    if scheme != "unix" and not parts.path.strip("/").isdigit() and parts.path.strip("/"):
        raise ValueError(f"must end in the number of a database, as in {scheme}://host:6379/0")


def shown(url: str) -> str:
    """Return an address without its password, for a message or a log."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{_without_login(rest)}"


def _without_login(rest: str) -> str:
    address, _, options = rest.partition("?")
    return "…" if "@" in options else address.rpartition("@")[2]
