"""How bytes move: ByteStream and its implementations over a descriptor, TLS, or a foreign asyncio
transport.

Nothing in this package knows what a frame or an HTTP head is.
"""
