"""The HTTP server and the command line around `merasteer`."""
