"""An echo server on trio, without asyncio. python examples/codec_trio.py [port]"""

import sys

import trio

import picows_fast
from picows_fast import WSMsgType, build_frame


async def serve(stream: trio.SocketStream) -> None:
    handshake = picows_fast.ServerHandshake()
    try:
        with trio.fail_after(5):
            while not handshake.receive_data(data := await stream.receive_some()):
                if not data:
                    return
        response = handshake.accept()  # raises if the request does not ask for WebSocket
    except picows_fast.WSHandshakeError as error:
        await stream.send_all(handshake.reject(error).to_bytes())
        return
    await stream.send_all(response.to_bytes())
    parser = picows_fast.FrameParser(is_client=False)
    parser.feed(handshake.trailing_data)
    try:
        while True:
            for frame in parser:
                answer = WSMsgType.PONG if frame.msg_type == WSMsgType.PING else frame.msg_type
                if frame.msg_type != WSMsgType.PONG:  # CLOSE is answered with the same (5.5.1)
                    await stream.send_all(build_frame(answer, frame, fin=frame.fin))
            if parser.close_received or not (data := await stream.receive_some()):
                return
            parser.feed(data)
    except picows_fast.WSPeerProtocolError as error:
        close = picows_fast.build_close_payload(error.code, error.close_reason)
        await stream.send_all(build_frame(WSMsgType.CLOSE, close))


async def handle(stream: trio.SocketStream) -> None:
    try:
        await serve(stream)
    except (trio.TooSlowError, trio.BrokenResourceError) as error:
        print(f"client lost: {error!r}", flush=True)


async def main(port: int) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        print(f"listening on ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/", flush=True)
        with trio.open_signal_receiver(2) as interrupts:  # Ctrl-C
            async for _ in interrupts:
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 9001)
