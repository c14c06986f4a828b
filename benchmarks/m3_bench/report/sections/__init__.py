"""The parts of the page, one module each; a part without data is None."""
