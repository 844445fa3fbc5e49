"""convoscope opens any convolutional network."""
