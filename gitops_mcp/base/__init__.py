"""Values, errors, limits and masking, for every other package."""
