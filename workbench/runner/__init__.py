"""Runs the roadmap: notebooks headlessly where papermill is installed, bare stages elsewhere."""
