"""Arguments in, tables out; no arithmetic, no torch at import."""
