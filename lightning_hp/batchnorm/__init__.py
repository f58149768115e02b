"""The BatchNorm half: statistics, rules, repair. Imports torch only."""
