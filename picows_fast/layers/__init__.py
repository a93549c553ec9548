"""What can be put on top of the transport: optional, each module on its own.

Nothing outside of this package imports it, so what is not used costs nothing.
"""
