"""What runs every experiment: flags, runs, training, the command, sweeps and their report."""
