"""Classes of other libraries over a bundle: the same names, arguments and results, without the library."""
