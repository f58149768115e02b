"""A study on disk: its folder, its storage, what it says of itself, its trials and its result."""
