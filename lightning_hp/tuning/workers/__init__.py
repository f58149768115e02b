"""Worker processes of a study: leases while they train, how they are started, how they join from elsewhere."""
