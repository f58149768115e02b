"""What can be searched: parameters, their scales and tiers, conditions, presets. Never imports torch or lightning."""
