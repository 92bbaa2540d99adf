"""The run directory: one writer, many readers, files that are never half-written. No torch."""
