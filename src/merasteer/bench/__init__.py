"""The study: models × tasks × methods, each cell measured the way it would be served, in one resumable command."""

from merasteer.bench.ahead import check_grid
from merasteer.bench.grid import Grid, bench, write_results
from merasteer.bench.methods import METHODS, Method, chosen_methods

__all__ = ["METHODS", "Grid", "Method", "bench", "check_grid", "chosen_methods", "write_results"]
