"""The kinds of index besides BM25, one file each; plug-in kind `index`."""
