"""Reading, refusing and resolving WebSocket URLs."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picows_fast.exceptions import WSInvalidURL
from picows_fast.protocol.url import parse_url


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "resource_name", "host_header"),
    [
        ("ws://example.com", "ws", "example.com", 80, "/", "example.com"),
        ("wss://example.com", "wss", "example.com", 443, "/", "example.com"),
        ("WSS://Example.COM/Path", "wss", "example.com", 443, "/Path", "example.com"),
        ("ws://example.com:80/", "ws", "example.com", 80, "/", "example.com"),
        ("ws://example.com:443/", "ws", "example.com", 443, "/", "example.com:443"),
        ("wss://example.com:/", "wss", "example.com", 443, "/", "example.com"),
        ("ws://example.com:0/", "ws", "example.com", 0, "/", "example.com:0"),
        ("ws://example.com:65535/", "ws", "example.com", 65535, "/", "example.com:65535"),
        ("ws://example.com.:1/", "ws", "example.com.", 1, "/", "example.com.:1"),
        ("ws://my_host-1/", "ws", "my_host-1", 80, "/", "my_host-1"),
        ("ws://127.0.0.1:8080/a/b?c=d&e", "ws", "127.0.0.1", 8080, "/a/b?c=d&e", "127.0.0.1:8080"),
        ("ws://h?q", "ws", "h", 80, "/?q", "h"),
        ("ws://h/?", "ws", "h", 80, "/", "h"),
        ("ws://h/p?a?b/c", "ws", "h", 80, "/p?a?b/c", "h"),
        ("ws://[::1]", "ws", "::1", 80, "/", "[::1]"),
        ("ws://[2001:DB8:0::1]:81/x", "ws", "2001:db8::1", 81, "/x", "[2001:db8::1]:81"),
        ("ws://[fe80::1%25eth0]:81/x", "ws", "fe80::1%eth0", 81, "/x", "[fe80::1]:81"),
        ("ws://b\u00fccher.example/", "ws", "xn--bcher-kva.example", 80, "/", None),
        ("ws://h/\u00e9?\u00fc=\u20ac", "ws", "h", 80, "/%C3%A9?%C3%BC=%E2%82%AC", "h"),
        ('ws://h/?q={"a":[1]}', "ws", "h", 80, "/?q=%7B%22a%22:%5B1%5D%7D", "h"),
        ("ws://h/%7e%C3%a9", "ws", "h", 80, "/%7e%C3%a9", "h"),
        ("ws://h/btc@trade/a,b;c=1!$'()*+", "ws", "h", 80, "/btc@trade/a,b;c=1!$'()*+", "h"),
    ],
)
def test_good_urls(url, scheme, host, port, resource_name, host_header):
    parsed = parse_url(url)
    assert parsed.url == url
    assert (parsed.scheme, parsed.host, parsed.port) == (scheme, host, port)
    assert parsed.is_secure == (scheme == "wss")
    assert parsed.resource_name == resource_name
    assert parsed.host_header == (host_header or host)
    assert parsed.user_info is None
    assert parsed == pickle.loads(pickle.dumps(parsed))


def test_path_and_query_are_kept_apart():
    parsed = parse_url("ws://user@h:1/p?q")
    assert (parsed.netloc, parsed.path, parsed.query) == ("user@h:1", "/p", "q")
    assert parse_url("ws://h").path == ""


@pytest.mark.parametrize(
    ("url", "username", "password", "user_info"),
    [
        ("ws://u:p@h/", "u", "p", ("u", "p")),
        ("ws://u@h/", "u", None, ("u", "")),
        ("ws://u:@h/", "u", "", ("u", "")),
        ("ws://:p@h/", "", "p", ("", "p")),
        ("ws://u:p:q@h/", "u", "p:q", ("u", "p:q")),
        ("ws://us%40er:p%3Aw%2F%C3%A9@h/", "us@er", "p:w/\u00e9", ("us@er", "p:w/\u00e9")),
        ("ws://h/u:p@x", None, None, None),
    ],
)
def test_user_info_is_decoded_and_never_in_host(url, username, password, user_info):
    parsed = parse_url(url)
    assert (parsed.username, parsed.password, parsed.user_info) == (username, password, user_info)
    assert parsed.host_header == parsed.host == "h"


def test_repr_has_no_secret():
    url = "wss://user:secret@[::1]:5"
    assert repr(parse_url(f"{url}/secret?secret")) == "<WSParsedURL wss://[::1]:5/...>"
    assert repr(parse_url(url)) == "<WSParsedURL wss://[::1]:5>"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "http://h/",
        "https://h/",
        "ftp://h/",
        "ws:/h/",
        "ws:h",
        "//h/",
        "ws://",
        "ws:///p",
        "ws://:80/",
        "ws://u:p@/",
        "ws://h/#",
        "ws://h/#f",
        "ws://h?q#f",
        "ws://a@b@h/",
        "ws://h:x/",
        "ws://h:-1/",
        "ws://h:65536/",
        "ws://h:123456/",
        "ws://h:80:81/",
        "ws://h:\u0661/",
        "ws://a..b/",
        "ws://.a/",
        "ws://" + "a" * 64 + "/",
        "ws://" + "a." * 200 + "b/",
        "ws://a%41/",
        "ws://a\\b/",
        "ws://a<b/",
        "ws://\u2100.com/",
        "ws://[::1/",
        "ws://::1/",
        "ws://[::g]/",
        "ws://[1.2.3.4]/",
        "ws://[::1]x/",
        "ws://[fe80::1%eth0]/",
        "ws://[fe80::1%25]/",
        "ws://[fe80::1%25a b]/",
        "ws://h/%",
        "ws://h/%4",
        "ws://h/%zz",
        "ws://h/?%g0",
        "ws://%zz@h/",
        "ws://u:%ff@h/",
        "ws://u%0d:p@h/",
        "ws://u%3Av:p@h/",
        "ws://h/\ud800",
        *(f"ws://h/a{character}b" for character in "\0\t\n\r\x1f \x7f\x85\u00a0\u2028\u3000\ufeff"),
        "ws://h\r\nX: y/",
        "ws://u\n:p@h/",
        " ws://h/",
        "ws://h/\n",
    ],
)
def test_bad_urls(url):
    with pytest.raises(WSInvalidURL) as caught:
        parse_url(url)
    assert caught.value.url == url


@pytest.mark.parametrize("url", [b"ws://h/", None, 5])
def test_url_must_be_a_str(url):
    with pytest.raises(TypeError, match="url"):
        parse_url(url)


@settings(max_examples=300)
@given(st.text(alphabet="wsh:/@[]%?#.1ae\r\n \u00e9\u2100\\", max_size=20))
def test_anything_is_read_or_refused(text):
    try:
        parsed = parse_url("ws://" + text)
    except WSInvalidURL:
        return
    written = parsed.resource_name + parsed.host_header
    assert written.isascii()
    assert written.isprintable()
    assert " " not in written
    assert "@" not in parsed.host_header
    assert parsed.resource_name.startswith("/")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("c", "ws://h:81/a/c"),
        ("/c?d", "ws://h:81/c?d"),
        ("?d", "ws://h:81/a/b?d"),
        ("", "ws://h:81/a/b?q"),
        ("../../c", "ws://h:81/c"),
        ("//o/c", "ws://o/c"),
        ("http://o/c", "ws://o/c"),
        ("HTTPS://o:5/c", "wss://o:5/c"),
        ("ws://o/c", "ws://o/c"),
        ("wss://o/c#fragment", "wss://o/c"),
        ("/\u00e9", "ws://h:81/\u00e9"),
    ],
)
def test_redirect_resolves(location, expected):
    assert parse_url("ws://h:81/a/b?q").redirect(location) == parse_url(expected)


def test_redirect_resolves_against_ipv6_with_zone():
    target = parse_url("ws://[fe80::1%25eth0]:81/a").redirect("b")
    assert (target.host, target.port, target.path) == ("fe80::1%eth0", 81, "/b")


@pytest.mark.parametrize(
    ("location", "user_info"),
    [
        ("/c", ("u", "p")),
        ("https://H:443/c", ("u", "p")),
        ("wss://h/c", ("u", "p")),
        ("wss://other:name@h/c", ("other", "name")),
        ("wss://h:444/c", None),
        ("wss://o/c", None),
        ("//o/c", None),
    ],
)
def test_redirect_keeps_credentials_within_the_origin_only(location, user_info):
    assert parse_url("wss://u:p@h/a").redirect(location).user_info == user_info


def test_redirect_to_encryption_is_another_origin():
    assert parse_url("ws://u:p@h/a").redirect("wss://h/a").user_info is None


@pytest.mark.parametrize("location", ["ws://h/", "http://h/"])
def test_redirect_never_gives_up_encryption(location):
    with pytest.raises(WSInvalidURL, match="wss to ws"):
        parse_url("wss://h/").redirect(location)


@pytest.mark.parametrize(
    "location",
    [
        "ftp://h/",
        "mailto:x",
        "javascript:x",
        "/a b",
        "/a\r\nX: y",
        "https://",
        "http://[::1/",
        "/%",
    ],
)
def test_redirect_refuses(location):
    with pytest.raises(WSInvalidURL):
        parse_url("ws://h/").redirect(location)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ws://h/a", "ws://u:p@H:80/b?c", True),
        ("ws://h/", "wss://h/", False),
        ("ws://h:443/", "wss://h/", False),
        ("ws://h/", "ws://h:81/", False),
        ("ws://h/", "ws://i/", False),
    ],
)
def test_same_origin(one, other, same):
    assert parse_url(one).same_origin(parse_url(other)) is same
    assert parse_url(other).same_origin(parse_url(one)) is same
