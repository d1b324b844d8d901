"""Networks as sampling and training use them."""
