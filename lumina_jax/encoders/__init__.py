"""The networks around the backbone: text and media to features and back."""
