"""The opening handshake with itself, websockets and wsproto, in memory and in both directions."""

from __future__ import annotations

import pytest
import websockets.client
import websockets.exceptions
import websockets.server
import websockets.uri
import wsproto
import wsproto.events

from picows_fast.exceptions import WSInvalidHeaderError, WSInvalidStatusError
from picows_fast.protocol.upgrade import ClientHandshake, ServerHandshake
from picows_fast.protocol.url import parse_url

URL = parse_url("ws://example.com/chat")
TRAILING = b"\x81\x02hi"

OFFERS = [
    ([], [], None),
    (["one", "two"], ["two"], "two"),
    (["one"], ["three"], None),
]


@pytest.mark.parametrize(("offered", "spoken", "selected"), OFFERS)
def test_with_itself(offered, spoken, selected):
    ours = ClientHandshake(URL, subprotocols=offered)
    server = ServerHandshake(subprotocols=spoken)
    server.receive_data(ours.request_bytes())
    assert ours.receive_data(server.accept().to_bytes() + TRAILING) is not None
    assert ours.subprotocol == server.subprotocol == selected
    assert ours.trailing_data == TRAILING


@pytest.mark.parametrize(("offered", "spoken", "selected"), [OFFERS[0], OFFERS[1]])
def test_client_with_websockets(offered, spoken, selected):
    ours = ClientHandshake(
        parse_url("ws://user:secret@example.com:81/p?q"), subprotocols=offered or None
    )
    peer = websockets.server.ServerProtocol(subprotocols=spoken or None)
    peer.receive_data(ours.request_bytes())
    [event] = peer.events_received()
    assert event.path == "/p?q"
    assert event.headers["Host"] == "example.com:81"
    peer.send_response(peer.accept(event))
    assert ours.receive_data(b"".join(peer.data_to_send())) is not None
    assert ours.subprotocol == peer.subprotocol == selected


@pytest.mark.parametrize(("offered", "spoken", "selected"), OFFERS)
def test_server_with_websockets(offered, spoken, selected):
    peer = websockets.client.ClientProtocol(
        websockets.uri.parse_uri("ws://example.com/p"), subprotocols=offered or None
    )
    peer.send_request(peer.connect())
    ours = ServerHandshake(subprotocols=spoken)
    assert ours.receive_data(b"".join(peer.data_to_send())).path == b"/p"
    peer.receive_data(ours.accept().to_bytes())
    [event] = peer.events_received()
    assert event.status_code == 101
    assert peer.handshake_exc is None
    assert peer.subprotocol == ours.subprotocol == selected


def test_refusal_is_read_by_websockets():
    peer = websockets.client.ClientProtocol(websockets.uri.parse_uri("ws://example.com/"))
    peer.send_request(peer.connect())
    ours = ServerHandshake()
    data = b"".join(peer.data_to_send()).replace(b"Version: 13", b"Version: 12")
    ours.receive_data(data)
    with pytest.raises(WSInvalidHeaderError) as caught:
        ours.accept()
    peer.receive_data(ours.reject(caught.value).to_bytes())
    assert isinstance(peer.handshake_exc, websockets.exceptions.InvalidStatus)
    assert peer.handshake_exc.response.status_code == 426
    assert b"version 13" in peer.handshake_exc.response.body


@pytest.mark.parametrize(("offered", "spoken", "selected"), OFFERS)
def test_client_with_wsproto(offered, spoken, selected):
    ours = ClientHandshake(URL, subprotocols=offered)
    peer = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    peer.receive_data(ours.request_bytes())
    [event] = peer.events()
    assert (event.host, event.target, event.subprotocols) == ("example.com", "/chat", offered)
    data = peer.send(wsproto.events.AcceptConnection(subprotocol=selected))
    data += peer.send(wsproto.events.TextMessage("hi"))
    assert ours.receive_data(data) is not None
    assert ours.subprotocol == selected
    assert ours.trailing_data == TRAILING


def test_client_refused_by_wsproto():
    ours = ClientHandshake(URL)
    peer = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    peer.receive_data(ours.request_bytes())
    list(peer.events())
    data = peer.send(wsproto.events.RejectConnection(status_code=403, has_body=True))
    data += peer.send(wsproto.events.RejectData(data=b"no", body_finished=True))
    with pytest.raises(WSInvalidStatusError) as caught:
        ours.receive_data(data)
    assert caught.value.response.body == b"no"


@pytest.mark.parametrize(("offered", "spoken", "selected"), OFFERS)
def test_server_with_wsproto(offered, spoken, selected):
    peer = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    data = peer.send(wsproto.events.Request(host="example.com", target="/p", subprotocols=offered))
    ours = ServerHandshake(subprotocols=spoken)
    assert ours.receive_data(data).path == b"/p"
    peer.receive_data(ours.accept().to_bytes())
    [event] = peer.events()
    assert isinstance(event, wsproto.events.AcceptConnection)
    assert event.subprotocol == ours.subprotocol == selected
