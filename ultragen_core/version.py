"""The version of the pack and of the library."""

VERSION = "0.1.0"
