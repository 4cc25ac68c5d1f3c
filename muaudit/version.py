"""The version, alone, so that the build and a quick `--version` can read it without importing anything."""

VERSION = "0.1.0"
