"""One file a section of the pilot file; each field carries its unit and meaning."""
