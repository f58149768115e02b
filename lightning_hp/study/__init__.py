"""A study on disk: its folder, its storage, its description, its trials and its result."""
