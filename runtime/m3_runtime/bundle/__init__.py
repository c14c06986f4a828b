"""The bundle's format: manifest, reader, writer, vector space."""
