"""Result documents to one page: summary, tables, pictures, and a link from each number to its raw values."""
