"""MERA: the method and the engine (arXiv 2510.13290). No web framework, no metrics library."""
