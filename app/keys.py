"""API keys: who may ask for what, and which jobs are whose.

A line of the file, or of the variable, is one key: ``NAME SCOPE,SCOPE sha256:HEX``, and after that perhaps
``rate=60/min``, another rate than that of all keys (``rate=none``: no bound). Only the SHA-256 of a key is
kept: keys are 256 random bits, so it can't be searched for.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import parse_qs, urlencode

from app.limits import Allowance, Rate
from workers.settings import SettingsError

Scope = Literal["generate", "batch", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
KEY_PREFIX = "smalti-"

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})\s+([a-z,]+)\s+sha256:([0-9a-f]{64})(?:\s+rate=(\S+))?")
_NO_RATE = "none"
_SIGNED = ("key", "expires", "signature")  # what a signed address has in its query


@dataclass(frozen=True)
class Key:
    """One key, without the secret.

    sha256: of the secret, in hexadecimal. rate: None for no bound; of a key that has one of its own, or none
    at all (``has_own_rate``), that of all keys does not count.
    """

    name: str
    scopes: frozenset[Scope]
    sha256: str
    rate: Rate | None = None
    has_own_rate: bool = False

    def may(self, scope: Scope) -> bool:
        """Whether it may do what this scope is for; an administrator may do all."""
        return scope in self.scopes or "admin" in self.scopes

    def sign(self, path: str, lifetime_s: int) -> str:
        """Return the path with a signature, with which anyone may get it, for so long.

        Without the key, the signature is void.
        """
        expires = int(time.time()) + lifetime_s
        signed = zip(_SIGNED, (self.name, expires, self._signature(path, expires)), strict=True)
        return f"{path}?{urlencode(dict(signed))}"

    def has_signed(self, path: str, expires: str, signature: str) -> bool:
        """Whether this is a signature of the path that still holds."""
        if not re.fullmatch(r"[0-9]{1,12}", expires) or int(expires) < time.time():
            return False
        return hmac.compare_digest(self._signature(path, int(expires)).encode(), signature.encode())

    def _signature(self, path: str, expires: int) -> str:
        message = f"{path} {expires}".encode()
        return hmac.new(bytes.fromhex(self.sha256), message, hashlib.sha256).hexdigest()


# Of the request that is answered now; None where there are no keys, or the address is open.
current_key: ContextVar[Key | None] = ContextVar("current_key", default=None)


def current_owner() -> str:
    """Return the name of the key whose request is answered now; "" where there are no keys."""
    key = current_key.get()
    return key.name if key else ""


def current_viewer() -> str | None:
    """Return the name of the key whose things alone the current request may see.

    None where it may see everyone's: an administrator, or where there are no keys.
    """
    key = current_key.get()
    return None if key is None or key.may("admin") else key.name


def shown_address(path: str, lifetime_s: int) -> str:
    """Return a path as the current request's client is told it: signed where there are keys."""
    key = current_key.get()
    return path if key is None else key.sign(path, lifetime_s)


class Keys:
    """All keys that are known."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_name: dict[str, Key] = {}
        self._by_sha256: dict[str, Key] = {}
        for key in keys:
            if key.name in self._by_name:
                raise SettingsError(f"API keys: the name {key.name} is there twice")
            self._by_name[key.name] = self._by_sha256[key.sha256] = key

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, secret: str) -> Key | None:
        """Return the key with this secret."""
        return self._by_sha256.get(hashlib.sha256(secret.encode()).hexdigest())

    def named(self, name: str) -> Key | None:
        """Return the key of this name."""
        return self._by_name.get(name)

    def signer(self, path: str, query: str) -> Key | None:
        """Return the key that has signed an address, where one has, and its signature holds."""
        try:
            fields = {name: values[0] for name, values in parse_qs(query, max_num_fields=16).items()}
        except ValueError:  # too many
            return None
        name, expires, signature = (fields.get(each, "") for each in _SIGNED)
        key = self._by_name.get(name)
        return key if key is not None and key.has_signed(path, expires, signature) else None


@dataclass(frozen=True)
class KeyLimits:
    """The limits of all keys. rate: of one that has none of its own. max_waiting: jobs of one key."""

    rate: Rate | None = None
    max_waiting: int | None = None

    def allowance(self) -> Allowance:
        """Return what the key of the current request may ask for."""
        key = current_key.get()
        if key is None:
            return Allowance()
        return Allowance(key.rate if key.has_own_rate else self.rate, self.max_waiting)


def make_key(name: str, scopes: Iterable[Scope]) -> tuple[str, str]:
    """Return a new secret, and the line for the file.

    Raises: ValueError for a name or scopes that a line can't have.
    """
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {','.join(scopes)} sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
    read_line(line)
    return secret, line


def read_line(line: str) -> Key:
    """Return the key of a line.

    Raises: ValueError, without the line, which may hold a secret by mistake.
    """
    found = _LINE.fullmatch(line.strip())
    if found is None:
        raise ValueError("is not NAME SCOPE,SCOPE sha256:HEX; `smalti new-key NAME` makes such a line")
    name, scopes, sha256, rate = found.groups()
    known = [scope for scope in SCOPES if scope in scopes.split(",")]
    if len(known) != len(scopes.split(",")):
        raise ValueError(f"has a scope that there isn't: there are {', '.join(SCOPES)}")
    own_rate = Rate.read(rate) if rate not in (None, _NO_RATE) else None
    return Key(name, frozenset(known), sha256, own_rate, has_own_rate=rate is not None)


def load_keys(text: str, path: Path | None) -> Keys:
    """Return the keys of a setting, with lines or semicolons between them, and of a file.

    Raises: SettingsError.
    """
    lines = {f"SMALTI_API_KEYS, line {i}": line for i, line in enumerate(re.split(r"[;\n]", text), 1)}
    if path is not None:
        try:
            written = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"SMALTI_API_KEYS_FILE: {path} can't be read: {error}") from error
        lines |= {f"{path}, line {i}": line for i, line in enumerate(written.splitlines(), 1)}
    return Keys(_read_lines(lines))


def _read_lines(lines: Mapping[str, str]) -> Iterable[Key]:
    for place, line in lines.items():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            yield read_line(line)
        except ValueError as error:
            raise SettingsError(f"{place} {error}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
