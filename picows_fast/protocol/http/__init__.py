"""HTTP/1.1 as far as an opening handshake needs it: requests and responses, the careful reader and
the quick one.
"""
