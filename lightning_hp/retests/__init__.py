"""What becomes of a study that is tuned: re-tests of its best, and the short studies that refresh it."""
