"""What ``core`` is made of: sending, calling the application, counting, logging."""
