"""Connect over TLS twice; the second time resumes the TLS session, which spares both sides work.

python examples/tls_client.py wss://127.0.0.1:9001/ cert.pem        needs examples/tls_server.py
"""

import asyncio
import ssl
import sys

from picows_fast import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect


class Client(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, "hello")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            print(f"received {frame.get_payload_as_utf8_text()}")
            transport.send_close(WSCloseCode.OK)


async def main(url: str, authority: str) -> None:
    # Without a context, ws_connect trusts the system's authorities, as browsers do.
    context = ssl.create_default_context(cafile=authority)
    session = None
    for _ in range(2):
        transport, _ = await ws_connect(Client, url, ssl_context=context, ssl_session=session)
        tls = transport.underlying_transport.get_extra_info("ssl_object")
        print(f"{tls.version()}, session resumed: {tls.session_reused}")
        await transport.wait_disconnected()
        # With TLS 1.3 the session comes after the handshake: take it late. It is good for one use.
        session = transport.ssl_session


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
