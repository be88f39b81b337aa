"""The commands of `mera`, one file per family."""
