"""A client without asyncio: a blocking socket, in whatever thread you like.

python examples/codec_thread.py [url]        needs examples/echo_server.py
"""

import socket
import sys
import threading

from picows_fast import (
    ClientHandshake,
    FrameParser,
    WSCloseCode,
    WSMsgType,
    build_close_payload,
    build_frame,
    parse_url,
)


def talk(url: str) -> None:
    parsed = parse_url(url)
    with socket.create_connection((parsed.host, parsed.port), timeout=10) as sock:
        handshake = ClientHandshake(parsed)
        sock.sendall(handshake.request_bytes())
        while handshake.receive_data(data := sock.recv(65536)) is None:
            if not data:
                handshake.receive_eof()  # raises: there was no response

        parser = FrameParser(is_client=True)
        parser.feed(handshake.trailing_data)  # frames that came with the response
        # A client masks what it sends (RFC 6455 5.3).
        sock.sendall(build_frame(WSMsgType.TEXT, "hello", mask=True))
        while not parser.close_received:
            for frame in parser:
                if frame.msg_type == WSMsgType.TEXT:
                    print(f"received {frame.get_payload_as_utf8_text()}")
                    payload = build_close_payload(WSCloseCode.OK, "done")
                    sock.sendall(build_frame(WSMsgType.CLOSE, payload, mask=True))
                elif frame.msg_type == WSMsgType.PING:
                    sock.sendall(build_frame(WSMsgType.PONG, frame, mask=True))
                elif frame.msg_type == WSMsgType.CLOSE:
                    print(f"closed with {frame.get_close_code().name}")
            if not parser.close_received:
                if not (data := sock.recv(65536)):
                    raise ConnectionError("the server ended the connection without CLOSE")
                parser.feed(data)


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:9001/"
    thread = threading.Thread(target=talk, args=(address,))
    thread.start()
    thread.join()
