"""What was tuned when, on what data, and when a re-test is due. Imports nothing of ours."""
