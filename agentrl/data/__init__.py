"""Questions: rows of files and hub datasets, and the named recipes that select among them."""
