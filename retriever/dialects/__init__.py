"""How other people's clients ask and want to be answered, one file a dialect; plug-in kind `dialect`."""
