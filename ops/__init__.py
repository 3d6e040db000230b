"""One module per operator family: rules and resizes, nothing else."""

SPA_RULES = True  # tells this package from PyPI's `ops`
