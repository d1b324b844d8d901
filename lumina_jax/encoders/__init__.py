"""Networks around the backbone: text encoders and codecs."""
