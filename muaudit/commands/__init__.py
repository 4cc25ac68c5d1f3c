"""Commands of the command line that have files of their own, by what they are about."""
