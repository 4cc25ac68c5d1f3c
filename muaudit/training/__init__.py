"""How the auditor trains: networks, recipes, many models at once, on one machine or a cluster."""
