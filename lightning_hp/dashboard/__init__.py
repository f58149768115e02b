"""Pictures, notes, the report and the dashboard server."""
