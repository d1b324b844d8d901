"""A call, from its arguments to finished samples."""
