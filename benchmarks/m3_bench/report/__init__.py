"""Result documents to one HTML page: tiles, charts and tables."""
