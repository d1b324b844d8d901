"""How commands start, and where their flags come from."""
