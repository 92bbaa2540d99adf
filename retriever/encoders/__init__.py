"""Encoders: text to vectors. `spec` says which one and how, one file a runtime; plug-in kind `encoder`."""
