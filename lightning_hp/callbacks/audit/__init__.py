"""The BatchNorm audit as a Trainer callback."""
