"""A first ``tune.yaml`` for a project: what can be searched, on which metric, for how long, at what cost."""
