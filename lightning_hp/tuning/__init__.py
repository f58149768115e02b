"""Where search and training meet: configuration, trials, studies."""
