"""Models and data: a BatchNorm MLP, its LightningModules, DataModules."""
