"""Reports of runs and of policies: one HTML file each, their figures and tables."""
