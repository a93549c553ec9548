"""WebSocket URLs (RFC 6455 3): reading, checking and resolving them.

Owns the way from the text of a URL to host, port and resource name, and the comparison of origins.
Opens no connection, resolves no host name, and knows nothing of headers but the value of Host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from urllib.parse import quote, unquote_to_bytes, urljoin

from ..exceptions import WSInvalidURL

__all__ = ["WSParsedURL", "parse_url", "tls_server_name"]

_DEFAULT_PORTS = {"ws": 80, "wss": 443}
_WEBSOCKET_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}

# RFC 3986 appendix B, with "//" required.
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<netloc>[^/?#]*)"
    r"(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?",
    re.DOTALL,
)
_NETLOC = re.compile(
    r"(?:(?P<userinfo>[^@]*)@)?"
    r"(?:\[(?P<ipv6>[^\[\]@]*)\]|(?P<name>[^\[\]:@]*))(?::(?P<port>[0-9]{0,5}))?"
)
# The whitespace and control characters of Unicode that a copied text may contain.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f\u3000\ufeff]")
_HOST_NAME = re.compile(r"[a-z0-9_\-]+(?:\.[a-z0-9_\-]+)*\.?")
_ZONE_ID = re.compile(r"[A-Za-z0-9._~\-]+")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_PATH_CHARACTERS = "/!$&'()*+,;=:@%"
_QUERY_CHARACTERS = _PATH_CHARACTERS + "?"

# Longer than any name that DNS can hold; keeps IDNA's cost bounded.
_MAX_HOST_LENGTH = 255
# Of what stands between two dots (RFC 1035 2.3.4). IDNA has nothing to say about an ASCII name that
# is no longer.
_MAX_LABEL_LENGTH = 63


@dataclass(frozen=True)
class WSParsedURL:
    """A WebSocket URL and its parts (RFC 6455 3). Made by `parse_url`.

    `url`: as it was given. `scheme`: "ws" or "wss"; `is_secure`: whether it is "wss".
    `netloc`: user info, host and port as given.
    `host`: lower case, in its ASCII form (IDNA); an IPv6 address without brackets.
    `port`: the default of the scheme if the URL has none.
    `path`, `query`: percent-encoded, without the "?" between them.
    `username`, `password`: percent-decoded, None if absent.

    Its repr has scheme, host and port: the rest may be secret.
    """

    url: str
    scheme: str
    is_secure: bool
    netloc: str
    host: str
    port: int
    path: str
    query: str
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        hidden = "" if self.resource_name == "/" else "/..."
        return (
            f"<{type(self).__name__} {self.scheme}://{_bracketed(self.host)}:{self.port}{hidden}>"
        )

    @property
    def resource_name(self) -> str:
        """Path and query as they stand in the request line, "/" at least (RFC 6455 3)."""
        resource_name = self.path or "/"
        return f"{resource_name}?{self.query}" if self.query else resource_name

    @property
    def user_info(self) -> tuple[str, str] | None:
        """User name and password ("" if there is none), or None if the URL names no user."""
        return None if self.username is None else (self.username, self.password or "")

    @property
    def host_header(self) -> str:
        """The value of the Host header (RFC 9110 7.2).

        Without user info, IPv6 zone and default port.
        """
        host = _bracketed(self.host.partition("%")[0])
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port as a text, the port always written out."""
        return f"{self.scheme}://{_bracketed(self.host)}:{self.port}"

    def same_origin(self, other: WSParsedURL) -> bool:
        """Whether both have the same scheme, host and port (RFC 6454 5)."""
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)

    def redirect(self, location: str) -> WSParsedURL:
        """The URL that a Location header of this URL's server points to (RFC 9110 10.2.2).

        A relative `location` is resolved; http means ws and https wss; a fragment is dropped. User
        name and password of this URL are kept within its origin, and never leave it.

        Raises WSInvalidURL if the result is not a WebSocket URL, or leaves wss for ws.
        """
        _check_characters(location)
        # urljoin resolves relative references for the http schemes only.
        user_info, at_sign, host_and_port = self.netloc.rpartition("@")
        base = f"{'https' if self.is_secure else 'http'}://{host_and_port}"
        try:
            joined = urljoin(base + self.resource_name, location)
        except ValueError:
            raise WSInvalidURL(location, "it cannot be resolved") from None
        scheme, separator, rest = joined.partition("://")
        websocket_scheme = _WEBSOCKET_SCHEMES.get(scheme.lower())
        if not separator or websocket_scheme is None:
            raise WSInvalidURL(location, "redirect to a scheme other than ws, wss, http and https")
        if self.is_secure and websocket_scheme != "wss":
            raise WSInvalidURL(location, "redirect from wss to ws, which would give up encryption")
        target = parse_url(f"{websocket_scheme}://{rest.partition('#')[0]}")
        if at_sign and target.username is None and self.same_origin(target):
            target = parse_url(target.url.replace("://", f"://{user_info}@", 1))
        return target


def parse_url(url: str) -> WSParsedURL:
    """Reads a ws: or wss: URL (RFC 6455 3, RFC 3986).

    Characters that may not stand in a path or query as they are (non-ASCII, quotes, braces ...) are
    percent-encoded as UTF-8. Whitespace and control characters are not repaired.

    Raises WSInvalidURL, and TypeError if `url` is not a str.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, got {type(url).__name__}")
    _check_characters(url)
    parts = _URL.fullmatch(url)
    if parts is None or parts["scheme"].lower() not in _DEFAULT_PORTS:
        raise WSInvalidURL(url, "scheme isn't ws or wss")
    if parts["fragment"] is not None:
        raise WSInvalidURL(url, "a fragment has no meaning here, write '#' as %23 (RFC 6455 3)")
    scheme = parts["scheme"].lower()

    authority = _NETLOC.fullmatch(parts["netloc"])
    if authority is None:
        raise WSInvalidURL(url, "host, port or user info isn't well-formed")
    port = int(authority["port"]) if authority["port"] else _DEFAULT_PORTS[scheme]
    if port > 65535:
        raise WSInvalidURL(url, "port isn't within 0..65535")
    username, password = _read_user_info(url, authority["userinfo"])

    return WSParsedURL(
        url=url,
        scheme=scheme,
        is_secure=scheme == "wss",
        netloc=parts["netloc"],
        host=(
            _read_host_name(url, authority["name"])
            if authority["ipv6"] is None
            else _read_ipv6_address(url, authority["ipv6"])
        ),
        port=port,
        path=_encode(url, parts["path"], _PATH_CHARACTERS),
        query=_encode(url, parts["query"] or "", _QUERY_CHARACTERS),
        username=username,
        password=password,
    )


def tls_server_name(host: str) -> str:
    """The name for SNI and for the check of a certificate (RFC 6066 3).

    Without a final dot, which only resolvers understand, and without the zone of an IPv6 address.
    """
    return host.partition("%")[0].removesuffix(".")


def _check_characters(url: str) -> None:
    found = _FORBIDDEN.search(url)
    if found is not None:
        raise WSInvalidURL(url, f"whitespace or control character {found[0]!r}")
    try:
        url.encode("utf-8")
    except UnicodeEncodeError:
        raise WSInvalidURL(url, "lone surrogate") from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_percent_encoding(url: str, part: str) -> None:
    if _BAD_PERCENT.search(part):
        raise WSInvalidURL(url, "'%' without two hexadecimal digits, write it as %25")


def _encode(url: str, part: str, characters: str) -> str:
    _check_percent_encoding(url, part)
    return quote(part, safe=characters)


def _read_host_name(url: str, name: str) -> str:
    if not name:
        raise WSInvalidURL(url, "hostname isn't provided")
    if len(name) > _MAX_HOST_LENGTH:
        raise WSInvalidURL(url, "hostname is too long")
    if name.isascii() and len(name) <= _MAX_LABEL_LENGTH:
        host = name.lower()
    else:
        try:
            host = name.encode("idna").decode("ascii").lower()
        except UnicodeError as error:
            raise WSInvalidURL(url, f"hostname isn't valid: {error}") from None
    # Checked after IDNA, which maps some characters to ASCII delimiters.
    if _HOST_NAME.fullmatch(host) is None:
        raise WSInvalidURL(url, "hostname has an empty label or a character that none has")
    return host


def _read_ipv6_address(url: str, text: str) -> str:
    # RFC 6874: the "%" before the zone is itself percent-encoded.
    address, separator, zone = text.partition("%25")
    try:
        host = str(IPv6Address(address))
    except ValueError:
        raise WSInvalidURL(url, "not an IPv6 address within the brackets") from None
    if "%" in address or (separator and _ZONE_ID.fullmatch(zone) is None):
        raise WSInvalidURL(url, "IPv6 zone isn't well-formed")
    return f"{host}%{zone}" if separator else host


def _read_user_info(url: str, user_info: str | None) -> tuple[str | None, str | None]:
    if user_info is None:
        return None, None
    username, separator, password = user_info.partition(":")
    decoded = []
    for part in (username, password):
        _check_percent_encoding(url, part)
        try:
            decoded.append(unquote_to_bytes(part).decode("utf-8"))
        except UnicodeDecodeError:
            raise WSInvalidURL(url, "user name or password isn't UTF-8") from None
        if _CONTROL.search(decoded[-1]):
            raise WSInvalidURL(url, "control character in user name or password")
    # RFC 7617 2: Basic authentication cannot carry it.
    if ":" in decoded[0]:
        raise WSInvalidURL(url, "':' in the user name")
    return decoded[0], decoded[1] if separator else None
