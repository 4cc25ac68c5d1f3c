"""Makes pytest put the repository on the import path instead of this folder, whose `muaudit` would pass for the package."""
