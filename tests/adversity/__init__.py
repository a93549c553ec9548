"""What peers, networks and callers can do to a connection: cuts, delays, hostile peers,
cancellation.
"""
