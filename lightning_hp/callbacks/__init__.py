"""Callbacks for an existing Trainer."""
