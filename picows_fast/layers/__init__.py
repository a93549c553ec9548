"""What can be put on top of the transport: optional, each module on its own.

Neither ``import picows_fast`` nor anything below imports it, so what is not used costs nothing.
"""
