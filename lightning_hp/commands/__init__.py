"""The verbs of ``lightning-hp``: one function a verb, each loads what it needs when it runs."""
