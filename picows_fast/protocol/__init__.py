"""What bytes mean, without I/O: no socket, no event loop, no clock.

Messages joined of frames, and a connection that is made of frames, messages and the rules of the
closing handshake.
"""
