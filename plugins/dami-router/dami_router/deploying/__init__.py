"""`dami deploy`: from a family's manifest to the files that run it on one machine, on Kubernetes or on Ray."""
