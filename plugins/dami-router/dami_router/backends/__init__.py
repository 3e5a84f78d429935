"""The servers behind the router: what they are, whether they live, and which variant they serve."""
