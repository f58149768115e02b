"""The Optuna half: scales, spaces, stages, samplers, pruners. Never imports torch or lightning."""
